"""Peak memory of processes started here, sampled in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil


class PeakMemory:
    """The largest sum of proportional set sizes (PSS) of `processes()` while the block runs, in bytes.

    PSS counts a page shared by n processes as 1/n in each, so that Ray's object store and forked workers are not
    counted several times. Where PSS cannot be had (other systems than Linux), the unique or resident size stands in.
    """

    def __init__(self, processes: Callable[[], list[psutil.Process]], every_s: float = 3.0) -> None:
        self.peak_bytes = 0
        self._processes, self._every_s = processes, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak_bytes = max(self.peak_bytes, sum(size_of(process) for process in self._processes()))
            self._stop.wait(self._every_s)


def size_of(process: psutil.Process) -> int:
    """Bytes of one process; 0 for one that has ended or belongs to another user."""
    import psutil

    try:
        full = process.memory_full_info()
    except (psutil.Error, OSError):
        return 0
    return int(getattr(full, "pss", 0) or getattr(full, "uss", 0) or full.rss)
