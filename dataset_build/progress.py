"""Progress with time left: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Progress:
    """Counts `total` units of work and says how far it is, how fast, and how long it will take.

    >>> with Progress("converting", total=300, unit="rows") as progress:
    ...     progress.advance(100, rejects=2)
    """

    def __init__(self, what: str, total: int, unit: str, every_s: float = 5.0, already: int = 0) -> None:
        self.what, self.total, self.unit, self.every_s = what, total, unit, every_s
        self.done = already
        self._already = already
        self._notes: dict[str, object] = {}
        self._started = self._said = time.monotonic()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._say(last=True)

    def advance(self, by: int = 1, **notes: object) -> None:
        """Add `by` units; `notes` (for example rejects=3, loss=0.71) are shown behind the count."""
        self.done += by
        self._notes.update(notes)
        pause = 0.2 if sys.stdout.isatty() else self.every_s
        if time.monotonic() - self._said >= pause:
            self._say()

    @property
    def rate(self) -> float:
        """Units a second since the start."""
        spent = time.monotonic() - self._started
        return (self.done - self._already) / spent if spent > 0 else 0.0

    def _say(self, last: bool = False) -> None:
        self._said = time.monotonic()
        spent, rate = self._said - self._started, self.rate
        parts = [f"{self.what}: {self.done}/{self.total} {self.unit}"]
        if self.total:
            parts.append(f"{100 * self.done / self.total:.0f} %")
        parts.append(f"{rate:.1f} {self.unit}/s")
        parts += [f"{name} {value}" for name, value in self._notes.items()]
        if self.done < self.total and rate > 0:
            parts.append(f"{duration(max(0.0, (self.total - self.done) / rate))} left")
        elif last:
            parts.append(f"took {duration(spent)}")
        line = ", ".join(parts)
        if sys.stdout.isatty():
            print(f"\r\x1b[2K{line}", end="\n" if last else "", flush=True)
        else:
            print(line, flush=True)


def duration(seconds: float) -> str:
    """`75.2` → `1 min 15 s`."""
    whole = int(round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {secs} s" if minutes else f"{secs} s"


def data_size(n_bytes: float) -> str:
    """Bytes for people: `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
