"""A Ray job's log: followed through broken connections, and reduced to the lines that explain a failure."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_SLOWEST_RETRY_S = 10.0
# More lines than this between two looks are counted, not shown: the dashboard has them all.
_MOST_LINES_AT_ONCE = 200
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_PROGRESS = re.compile(r"(?P<what>.+): (?P<done>\d+)/(?P<total>\d+) (?P<unit>\S+?),")
_RAY_CHATTER = re.compile(
    r"^(\(raylet\)|Running entrypoint for job|\d{4}-\d\d-\d\d [\d:,]+\s+(INFO|WARNING)\s"
    r"|\[\d{4}-\d\d-\d\d .*\b[IW] \d|.*View the dashboard at|.*Connecting to existing Ray cluster"
    r"|\((?:\w+ )?pid=\d+(?:, ip=[\d.:a-f]+)?\)\s*$)"  # an empty line of one of Ray's processes
)


class Progress(NamedTuple):
    what: str
    percent: float
    line: str


def progress_of(line: str) -> Progress | None:
    """What a line of `dataset_build.progress` says, or None for any other line."""
    matched = _PROGRESS.match(line.strip())
    if not matched or not int(matched["total"]):
        return None
    percent = min(100.0, 100.0 * int(matched["done"]) / int(matched["total"]))
    return Progress(matched["what"].strip(), percent, line.strip())


def clean_lines(text: str) -> list[str]:
    """The lines of a terminal's output: without colours, and of a line overwritten in place only what was left."""
    return [
        _ANSI.sub("", line).rsplit("\r", 1)[-1].rstrip() for line in text.replace("\r\n", "\n").split("\n")
    ]


def last_useful_lines(text: str, most: int = 15) -> list[str]:
    """The last lines that can explain a failure: no blank lines, progress, or Ray's own start-up messages."""
    lines = [line for line in clean_lines(text) if line.strip()]
    useful = [line for line in lines if not _RAY_CHATTER.match(line) and progress_of(line) is None]
    return useful[-most:]


class LogTail(threading.Thread):
    """Follows a job's log over the Jobs API's web socket in the background; `drain` hands over what has come.

    A broken connection is opened again, with growing pauses, and what was already handed over is skipped.
    """

    def __init__(self, client: JobSubmissionClient, job_id: str) -> None:
        super().__init__(name=f"log of {job_id}", daemon=True)
        self._client, self._job_id = client, job_id
        self._chunks: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._finished = threading.Event()
        self._handing_over = threading.Lock()
        self._seen = 0
        self._partial = ""

    def run(self) -> None:
        asyncio.run(self._follow())

    def finish(self) -> None:
        """The job has ended: fetch what the web socket has not brought yet (it closes seconds later), and no more."""
        self._finished.set()
        try:
            text = self._client.get_job_logs(self._job_id)
        except Exception:  # whoever polls the job has already said what is wrong with the cluster
            text = ""
        with self._handing_over:
            self._chunks.put(text[self._seen :] + "\n")
            self._seen = max(self._seen, len(text))

    def drain(self, say: Callable[[str], None]) -> None:
        """Hand every whole line that has come to `say`, but Ray's own chatter; of a flood only the last lines."""
        text = self._partial
        while not self._chunks.empty():
            text += self._chunks.get()
        whole, _, self._partial = text.rpartition("\n")
        lines = [line for line in clean_lines(whole) if line.strip() and not _RAY_CHATTER.match(line)]
        if len(lines) > _MOST_LINES_AT_ONCE:
            say(
                f"({len(lines) - _MOST_LINES_AT_ONCE} lines are left out here; the Ray dashboard has them all)"
            )
        for line in lines[-_MOST_LINES_AT_ONCE:]:
            say(line)

    async def _follow(self) -> None:
        pause = 0.5
        while True:
            skip = self._seen
            try:
                async for chunk in self._client.tail_job_logs(self._job_id):
                    pause = 0.5
                    with self._handing_over:
                        if self._finished.is_set():
                            return
                        fresh = chunk[skip:]
                        skip = max(0, skip - len(chunk))
                        self._seen += len(fresh)
                        self._chunks.put(fresh)
            except (
                Exception
            ):  # the head is restarting, or the job has not started: whoever polls the job will know
                pause = min(pause * 2, _SLOWEST_RETRY_S)
            if self._finished.is_set():
                return
            await asyncio.sleep(pause)
