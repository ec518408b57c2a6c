"""The memory that the C library keeps when it is freed."""

from __future__ import annotations

import ctypes

_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc


def trim_heap() -> None:
    """Give the system what was freed: many small tensors leave gaps which a few large ones cannot use."""
    if _malloc_trim is not None:
        _malloc_trim(0)
