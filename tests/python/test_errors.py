"""What errors of libtorch are in Python."""

from __future__ import annotations

import pytest

from emmet import Covariance


def test_no_more_memory_is_a_memory_error_without_frames_of_cpp() -> None:
    with pytest.raises(MemoryError) as caught:
        Covariance(10**7)  # more bytes than an address has bits for
    assert str(caught.value).startswith("DefaultCPUAllocator: ")
    assert "800000000000000 bytes" in str(caught.value)
    assert "\n" not in str(caught.value)
