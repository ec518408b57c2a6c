"""Memory that libraries keep: the C library what is freed, and oneDNN the kernels that it has made."""

from __future__ import annotations

import ctypes
import os

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def trim_heap() -> None:
    """Give the system what was freed: many small tensors leave gaps which a few large ones cannot use."""
    if _malloc_trim is not None:
        _malloc_trim(0)


def bound_kernel_cache() -> None:
    """Have oneDNN keep 128 kernels, unless the environment says how many; to be called before the first is made.

    It makes one for each shape of a product in half precision, and in float32 where `products` goes by it, and keeps
    1,024: with prompts of all lengths these come to most of a GB in half precision.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
