"""Writing a checkpoint while training goes on.

At the step boundary every rank copies its part of the state to the memory of the CPU, which is all that training waits
for. A thread then writes the copy, and the digests of what it wrote as `part-RANK.json`; rank 0's thread waits until the
parts of all ranks are there and calls `finish`, which writes the metadata, last. Whatever ends a process in between
leaves a folder without metadata, which is no checkpoint.

At most one checkpoint is being written. Each rank asks after it at the end of every step (`Writing.anywhere`), so
that an error of one rank's writer ends all of them at the same step.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from emollm.train.deepspeed import group_device

# How long the parts of other ranks are waited for where training has ended with an error: one of them may be gone.
GRACE_S = 5.0


# Memory of copies that are written, by shape and type, for the next checkpoint to copy into: fresh memory takes the system
# as long to hand out as the copying itself.
Buffers = dict[tuple[torch.Size, torch.dtype], list[torch.Tensor]]


class Captured:
    """Stands in for DeepSpeed's checkpoint writer during one save: keeps a copy of what each file is to hold."""

    def __init__(self, writer: Any, buffers: Buffers) -> None:
        self.writer, self.buffers = writer, buffers
        self.files: list[tuple[Any, Path]] = []
        self._copies: list[torch.Tensor] = []

    def save(self, state_dict: Any, path: str) -> None:
        self.files.append((self._copied(state_dict, {}), Path(path)))

    def write(self) -> dict[str, str]:
        """Write the files; their digests by name. The memory of the copies can be used again afterwards."""
        digests = {}
        for state, path in self.files:
            self.writer.save(state, str(path))
            digests[path.name] = sha256_of_file(str(path))
        self.files = []
        while self._copies:
            free = self._copies.pop()
            self.buffers.setdefault((free.shape, free.dtype), []).append(free)
        return digests

    def _copied(self, value: Any, known: dict[Any, torch.Tensor]) -> Any:
        """`value` with its tensors copied to memory of their own on the CPU; tensors that are the same place stay one.

        `known` are the copies by place, valid while the state keeps its tensors where they are: for one file. Containers
        are made anew. Whatever else a state holds (numbers, shapes, the config) is not changed by later steps.
        """
        if isinstance(value, torch.Tensor):
            return self._copy_of(value.detach(), known)
        if isinstance(value, dict):
            made = copy.copy(value)
            for key, one in value.items():
                made[key] = self._copied(one, known)
            return made
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*(self._copied(one, known) for one in value))
        if type(value) in (list, tuple):
            return type(value)(self._copied(one, known) for one in value)
        return value

    def _copy_of(self, tensor: torch.Tensor, known: dict[Any, torch.Tensor]) -> torch.Tensor:
        start = tensor.untyped_storage().data_ptr()
        place = (tensor.device, start, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
        if place not in known:
            free = self.buffers.get((tensor.shape, tensor.dtype))
            buffer = free.pop() if free else torch.empty(tensor.shape, dtype=tensor.dtype)
            known[place] = buffer.copy_(tensor)
            self._copies.append(known[place])
        return known[place]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)


class Writing:
    """One checkpoint on its way to the disk: this rank's part, and on rank 0 what makes it whole.

    `guard` is entered around all writing and turns its errors into those that a user shall see.
    """

    def __init__(
        self,
        path: Path,
        captured: Captured,
        guard: Callable[[], Any],
        finish: Callable[[dict[str, str]], None],
    ) -> None:
        self.path = path
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._captured, self._guard, self._finish = captured, guard, finish
        self.error: Exception | None = None
        self._part_written = threading.Event()
        self._left = threading.Event()  # the others' parts are no longer waited for
        self._thread = threading.Thread(target=self._run, name=f"writes {path.name}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._guard():
                digests = self._captured.write()
                storage.write_json(str(part_file(self.path, self.rank)), digests)
        except Exception as error:  # raised by the rank's own thread, at the next step
            self.error = error
        self._part_written.set()
        if self.rank or self.error:
            return
        try:
            with self._guard():
                if (found := self._all_parts()) is not None:
                    self._finish(found)
        except Exception as error:
            self.error = error

    def _all_parts(self) -> dict[str, str] | None:
        """The digests of all files, once all ranks have written; None where they are no longer waited for."""
        parts = [part_file(self.path, rank) for rank in range(self.world)]
        while not all(part.is_file() for part in parts):
            if self._left.wait(0.005):
                return None
        found: dict[str, str] = {}
        for part in parts:
            found |= storage.read_json(str(part))
            part.unlink()
        return found

    def anywhere(self) -> tuple[bool, bool]:
        """Whether the writer of any rank has failed, and whether any still runs. Every rank calls this at the same step."""
        runs = self._thread.is_alive()  # before the error: one that has ended will not fail any more
        counts = torch.tensor([self.error is not None, runs], dtype=torch.int64, device=group_device())
        dist.all_reduce(counts)
        return bool(counts[0]), bool(counts[1])

    def wait(self) -> bool:
        """Wait until the checkpoint is whole or the writer of some rank has failed; whether one has. Every rank calls this."""
        self._part_written.wait()
        failed, _ = self.anywhere()
        if not failed:  # all parts are there, so rank 0's thread has nothing to wait for
            self._thread.join()
            failed, _ = self.anywhere()
        return failed

    def leave(self, grace_s: float = 0.0) -> None:
        """Wait for this rank's part, and for the others' no longer than `grace_s`. A rank may call this alone."""
        self._part_written.wait()
        self._thread.join(grace_s)
        self._left.set()
        self._thread.join()


def part_file(path: Path, rank: int) -> Path:
    return path / f"part-{rank}.json"
