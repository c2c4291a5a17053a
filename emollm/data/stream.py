"""What a rank reads, step by step, decoded by processes of its own while it computes.

The order and the content of what comes depend neither on the number of decode workers nor on where a stream starts. A
row that cannot be read ends the stream with its uid, and a decode worker that dies with a message: never a hang.

Decode workers are forked from a small server process that has imported what they need and started no threads
("forkserver"): a fork of the training process itself could copy a lock that a thread of Ray or of torch holds.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from emollm.config import LoaderConfig
from emollm.data.collate import Encoded
from emollm.data.emobench import DataError
from emollm.data.masking import IGNORED
from emollm.data.rows import Rows

# The rows of each micro-batch of one step.
StepRows = list[list[Encoded]]


class _Failure(NamedTuple):
    """What a decode worker says in place of rows."""

    message: str


class _Sent(NamedTuple):
    """Rows on their way between processes: all their tensors in one, because each needs a file descriptor."""

    rows: list[list[Encoded]]
    shapes: list[torch.Size]
    values: Tensor


class Steps(Dataset):
    """The steps of a rank by number: row numbers go in, encoded rows come out.

    `decode` says of each row of the index whether its media are wanted. A micro-batch without rows gets `filler`, with
    nothing supervised: a rank without rows takes part in everything and weighs nothing.
    """

    def __init__(
        self, rows: Rows, steps: Sequence[Sequence[Sequence[int]]], decode: NDArray[np.bool_], filler: int
    ) -> None:
        self.rows, self.steps, self.decode, self.filler = rows, steps, decode, filler

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> StepRows | _Sent | _Failure:
        try:
            found = [
                [self._encoded(row) for row in batch]
                if batch
                else [_unsupervised(self._encoded(self.filler))]
                for batch in self.steps[number]
            ]
        except (ValueError, OSError) as error:  # a clean message in place of a worker's traceback
            return _Failure(str(error) or type(error).__name__)
        return found if get_worker_info() is None else _bundled(found)

    def _encoded(self, row: int) -> Encoded:
        return self.rows.encoded(row, media=bool(self.decode[row]))


class Stream:
    """Iterates over the steps from `start` on; close it (or use `with`) to end its decode workers.

    Raises DataError where a row cannot be read, naming it, or a decode worker died.
    """

    def __init__(self, steps: Steps, loader: LoaderConfig, start: int = 0) -> None:
        self._workers = min(loader.decode_workers, max(0, len(steps) - start))
        self._loader: DataLoader = DataLoader(
            steps,
            batch_size=None,
            sampler=range(start, len(steps)),
            num_workers=self._workers,
            prefetch_factor=loader.prefetch if self._workers else None,
            multiprocessing_context=_forkserver() if self._workers else None,
            collate_fn=_as_it_is,
            worker_init_fn=functools.partial(_begin_worker, dict(os.environ)),
            generator=torch.Generator(),  # its own: the global one belongs to the model
        )
        self._iterator: Iterator[Any] | None = None
        self._closed = False

    def __iter__(self) -> Iterator[StepRows]:
        return self

    def __next__(self) -> StepRows:
        if self._closed:
            raise StopIteration
        if self._iterator is None:
            self._iterator = iter(self._loader)
        try:
            found = next(self._iterator)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            self.close()
            raise DataError(
                f"a decode worker died ({error}); if it was killed for memory, or /dev/shm is full, lower "
                f"loader.decode_workers, loader.prefetch or loader.memory_mib"
            ) from error
        if isinstance(found, _Failure):
            self.close()
            raise DataError(found.message)
        return _unbundled(found) if isinstance(found, _Sent) else found

    def close(self) -> None:
        """End the decode workers; nothing comes after it."""
        self._iterator, self._closed = None, True

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def start_server(loader: LoaderConfig) -> None:
    """Start the process that decode workers are forked from, and do not wait: it imports for some seconds."""
    if loader.decode_workers:
        _forkserver()
        forkserver.ensure_running()


def _forkserver() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _begin_worker(environment: dict[str, str], worker: int) -> None:
    """Give a decode worker the environment of the rank (the store's credentials), and end it when the rank is gone.

    The fork server may be older than what is in the environment now. PyTorch's own watch looks at the parent, which is
    that server: after a rank was killed it would live as long as its workers, and they as long as it.
    """
    os.environ.update(environment)
    rank = multiprocessing.parent_process()
    assert rank is not None, "a decode worker is started by a rank"

    def watch() -> None:
        multiprocessing.connection.wait([rank.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with the rank").start()


def _as_it_is(rows: Any) -> Any:
    return rows


def _unsupervised(row: Encoded) -> Encoded:
    return row._replace(labels=[IGNORED] * len(row.labels))


def _bundled(rows: StepRows) -> _Sent:
    """All float32 tensors of the rows, one after the other in one tensor."""
    taken: list[Tensor] = []

    def take(tensor: Tensor) -> None:
        assert tensor.dtype == torch.float32, "media are float32"
        taken.append(tensor)

    light = [[_with_tensors(row, take) for row in batch] for batch in rows]
    values = torch.cat([tensor.reshape(-1) for tensor in taken]) if taken else torch.empty(0)
    return _Sent(light, [tensor.shape for tensor in taken], values)


def _unbundled(sent: _Sent) -> StepRows:
    start = 0
    shapes = iter(sent.shapes)

    def give(_: None) -> Tensor:
        nonlocal start
        shape = next(shapes)
        start += shape.numel()
        return sent.values[start - shape.numel() : start].view(shape)

    return [[_with_tensors(row, give) for row in batch] for batch in sent.rows]


def _with_tensors(row: Encoded, change: Any) -> Encoded:
    """The row with each of its tensors, in a fixed order, replaced by what `change` makes of it."""
    return row._replace(
        pictures=[change(picture) for picture in row.pictures],
        sounds=[sound._replace(mel_WMX=change(sound.mel_WMX)) for sound in row.sounds],
        visuals=[visual._replace(pixels=change(visual.pixels)) for visual in row.visuals],
    )
