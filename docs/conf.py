"""Settings of Sphinx: one site of the pages in this folder and the references of Python and C++. See `make docs`."""

from __future__ import annotations

import re
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "emmet"
author = "The emmet authors"
release = version = installed_version("emmet-edit")

extensions = ["myst_parser", "sphinx.ext.autodoc", "breathe"]
exclude_patterns = ["Doxyfile", "results/**/report.md"]  # those of `emmet sweep`, for who reads the sources
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"emmet {version}"
html_copy_source = False

smartquotes = False
maximum_signature_line_length = 100
default_role = "py:obj"  # a link where `name` is documented, code where it is not
autodoc_default_options = {"members": True, "member-order": "bysource"}
autoclass_content = "both"
autodoc_preserve_defaults = True

breathe_projects = {"emmet": "../build/doxygen/xml"}
breathe_default_project = "emmet"

# Docstrings describe parameters in a block of "name: text", with the rest of a text indented: for Sphinx, fields.
_PARAMETER = re.compile(r"[a-z_]+: \S")

# What pybind11 writes into signatures, and what users write.
_PYBIND_NOTATION = {
    r"self: emmet\._core\.\w+(, )?": "",
    r"typing\.Supports(Float|Int) \| typing\.SupportsIndex": lambda match: match[1].lower(),
    r"emmet\._core\.": "emmet.",
}


def mark_parameters(_app: Sphinx, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Make fields of the parameters that a docstring describes, in place."""
    before = ""
    for number, line in enumerate(lines):
        if _PARAMETER.match(line) and (not before or before.startswith((" ", ":param "))):
            lines[number] = f":param {line}"
        before = lines[number]


def plain_types(
    _app: Sphinx, _what: str, _name: str, _object: object, _options: object, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """A signature with types as users write them."""
    return _plain(arguments), _plain(returned)


def _plain(text: str | None) -> str | None:
    if text is not None:
        for written, meant in _PYBIND_NOTATION.items():
            text = re.sub(written, meant, text)
    return text


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", mark_parameters)
    app.connect("autodoc-process-signature", plain_types)
