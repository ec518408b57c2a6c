"""What other Python threads can do while a call into the core runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def runs_beside_python(call: Callable[[], object]) -> bool:
    """Whether this thread makes progress in the middle half of a call that another thread makes."""
    span: list[float] = []

    def work() -> None:
        span.append(time.perf_counter())
        call()
        span.append(time.perf_counter())

    thread = threading.Thread(target=work)
    ticks = []
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(1e-3)
    start, end = span
    quarter = (end - start) / 4
    return any(start + quarter < tick < end - quarter for tick in ticks)
