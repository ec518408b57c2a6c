"""Reports as Markdown and as web pages, which say the same."""

from __future__ import annotations

from .document import Document, Section, Table
from .markdown import markdown
from .page import page

__all__ = ["Document", "Section", "Table", "markdown", "page"]
