"""Deltas in the forms that serving stacks load: a PEFT LoRA adapter, and a LoRA adapter for llama.cpp."""

from __future__ import annotations

from .gguf import save_gguf
from .peft import save_peft

__all__ = ["save_gguf", "save_peft"]
