"""Checkpoints that are whole or not there.

All ranks write their part with DeepSpeed into `step-000030/`; rank 0 then writes `checkpoint.json` into it, last, with
the digest of every file. A folder without that file, or with a file that does not match it, is not a checkpoint. Training
goes on while they write (`emollm.train.background`); the next checkpoint and the end of training wait for it.
`latest` is a file that names the newest whole one. Old checkpoints go only after a new one is whole. Nothing about
random numbers or the position in the data needs saving: both follow from the seed and the step.

Early stopping keeps the weights of its best score beside the checkpoints, in `best-000020.safetensors`; checkpoints made
after it name it and its digest.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from dataset_build import storage
from dataset_build.progress import data_size
from dataset_build.provenance import sha256_of_file
from emollm.train.background import GRACE_S, Buffers, Captured, Writing
from emollm.train.deepspeed import load_universal, to_universal
from emollm.train.resume import METADATA, CheckpointError, Resume, other_world_size


def best_file(step: int) -> str:
    """The file with the trained weights of the best score, which was after `step`."""
    return f"best-{step:06d}.safetensors"


class Whole(NamedTuple):
    """A whole checkpoint: finished steps, the ranks that wrote it, and what the loop keeps in it."""

    step: int
    world_size: int
    inputs_digest: str
    kept: dict[str, Any]


class Checkpoints:
    """The checkpoints of one fold in `folder`, which all workers must see (a local disk or a shared one)."""

    def __init__(
        self, folder: Path, inputs_digest: str, keep: int, resume: Resume, background: bool = True
    ) -> None:
        self.folder, self.inputs_digest, self.keep, self.resume = folder, inputs_digest, keep, resume
        self.background = background
        self._writing: Writing | None = None
        self._buffers: Buffers = {}

    def save(self, engine: Any, step: int, kept: dict[str, Any]) -> float:
        """Begin the checkpoint of `step` finished steps; the seconds that training stood still. Every rank calls this.

        It is written while training goes on, unless `background` is false; `watch` and `wait` ask after it. One that is
        still being written is waited for first. `kept` is JSON and comes back with the checkpoint; its `best` may name the
        file of `save_best`. Raises CheckpointError where the disk is full; the checkpoints that were there stay.
        """
        started = time.monotonic()
        self.wait()
        path, kept = self._path(step), copy.deepcopy(kept)
        if dist.get_rank() == 0:
            shutil.rmtree(path, ignore_errors=True)
        dist.barrier()
        captured = Captured(engine.checkpoint_engine, self._buffers)
        engine.checkpoint_engine = captured
        try:
            with disk_trouble(self.folder):
                engine.save_checkpoint(
                    str(self.folder), tag=path.name, save_latest=False, exclude_frozen_parameters=True
                )
        finally:
            engine.checkpoint_engine = captured.writer
        self._writing = Writing(
            path,
            captured,
            guard=lambda: disk_trouble(self.folder),
            finish=lambda digests: self._finish(path, step, kept, digests),
        )
        if not self.background:
            self.wait()
        return time.monotonic() - started

    def watch(self) -> None:
        """Raise on all ranks what the writer of one has met. Every rank calls this after every step."""
        if self._writing is None:
            return
        failed, runs = self._writing.anywhere()
        if failed:
            self._give_up(self._writing)
        if not runs:
            self._writing = None

    def wait(self) -> None:
        """Wait until the checkpoint that is being written is whole. Raises as `watch`. Every rank calls this."""
        if self._writing is None:
            return
        if self._writing.wait():
            self._give_up(self._writing)
        self._writing = None

    def leave(self) -> None:
        """End the writer where training has ended with an error, so that nothing is written any more. A checkpoint
        of which all ranks have written their part is still made whole."""
        if self._writing is not None:
            self._writing.leave(GRACE_S)
            self._writing = None

    def _give_up(self, writing: Writing) -> NoReturn:
        writing.leave()
        self._writing = None
        everyone: list[Any] = [None] * writing.world
        own = writing.error
        dist.all_gather_object(
            everyone, None if own is None else (isinstance(own, CheckpointError), str(own))
        )
        if writing.rank == 0:  # all writers have ended; a half one would only take room
            shutil.rmtree(writing.path, ignore_errors=True)
        dist.barrier()
        if own is not None:
            raise own
        met = {rank: error for rank, error in enumerate(everyone) if error is not None}
        text = "; ".join(f"rank {rank}: {said}" for rank, (_, said) in met.items())
        raise (CheckpointError if any(known for known, _ in met.values()) else RuntimeError)(text)

    def _finish(self, path: Path, step: int, kept: dict[str, Any], digests: dict[str, str]) -> None:
        beside = [kept["best"]["file"]] if kept.get("best") else []
        metadata = {
            "step": step,
            "inputs_digest": self.inputs_digest,
            "world_size": dist.get_world_size(),
            "kept": kept,
            "files": dict(sorted(digests.items())),
            "beside": {name: sha256_of_file(str(self.folder / name)) for name in beside},
        }
        storage.write_json(str(path / METADATA), metadata)
        storage.write_bytes(str(self.folder / "latest"), f"{path.name}\n".encode())
        self._rotate(best_file(step))

    def save_best(self, weights: dict[str, Tensor], step: int) -> None:
        """Keep the trained weights as the best so far, in `best_file(step)`. Rank 0 calls this."""
        from safetensors.torch import save_file

        name = best_file(step)
        partial = self.folder / f".{name}.partial"
        self.folder.mkdir(parents=True, exist_ok=True)
        with disk_trouble(self.folder):
            save_file({key: value.contiguous() for key, value in weights.items()}, partial)
            partial.replace(self.folder / name)

    def load_best(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load_file

        return load_file(self.folder / name)

    def load(self, engine: Any, whole: Whole) -> None:
        """Load a checkpoint that `newest_whole` gave. Every rank calls this.

        Where it is of another world size, rank 0 converts it to DeepSpeed's universal form first; the engine must have
        been made for that.
        """
        name = self._path(whole.step).name
        if self.needs_conversion(whole, engine.zero_optimization_stage()):
            universal = f"universal-{name}"
            if dist.get_rank() == 0:
                with disk_trouble(self.folder):
                    to_universal(self.folder / name, self.folder / universal)
            dist.barrier()
            loaded = load_universal(engine, self.folder, universal)
            dist.barrier()
            if dist.get_rank() == 0:
                shutil.rmtree(self.folder / universal)
        else:
            found, _ = engine.load_checkpoint(str(self.folder), tag=name, load_module_strict=False)
            loaded = found is not None
        if not loaded:
            raise CheckpointError(
                f"{self.folder / name}: DeepSpeed could not load it; remove the folder to go on without"
            )

    @staticmethod
    def needs_conversion(whole: Whole, stage: int) -> bool:
        """Without ZeRO every rank has everything, whatever their number."""
        return stage > 0 and whole.world_size != dist.get_world_size()

    def newest_whole(self) -> Whole | None:
        """The newest whole checkpoint, as rank 0 sees it, so that all ranks agree. Every rank calls this.

        Raises CheckpointError where it is of other inputs, or of another world size that `resume` does not allow.
        """
        answer: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                answer = [self._newest_whole()]
            except CheckpointError as error:
                answer = [str(error)]
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], str):
            raise CheckpointError(answer[0])
        return None if answer[0] is None else Whole(*answer[0])

    def _newest_whole(self) -> Whole | None:
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            found = self._read(path)
            if isinstance(found, Whole):
                return found
            print(f"checkpoint {path.name} is not used: {found}; falling back to the one before", flush=True)
        return None

    def _read(self, path: Path) -> Whole | str:
        """The checkpoint, or why it is not whole. One that this run must not go on from is an error."""
        if not (path / METADATA).is_file():
            return "it was not finished"
        try:
            metadata = storage.read_json(str(path / METADATA))
        except ValueError as error:
            return str(error)
        for folder, files in ((path, metadata["files"]), (self.folder, metadata["beside"])):
            for name, digest in files.items():
                if not (folder / name).is_file():
                    return f"{name} is missing"
                if sha256_of_file(str(folder / name)) != digest:
                    return f"{name} is damaged"
        whole = Whole(*(metadata[field] for field in Whole._fields))
        if whole.inputs_digest not in (self.inputs_digest, *self.resume.earlier_inputs):
            raise CheckpointError(
                f"{path} was written with other inputs (digest {whole.inputs_digest[:16]}, this run has "
                f"{self.inputs_digest[:16]}); use the same recipe, data and code, or remove the folder to start again"
            )
        world_size = dist.get_world_size()
        if whole.world_size != world_size and not self.resume.other_world_size:
            raise CheckpointError(other_world_size(str(path), whole.world_size, world_size))
        return whole

    def _rotate(self, newest_best: str) -> None:
        """Remove all but the newest `keep` whole checkpoints, what was left half written, and best weights that none
        of those names. Best weights after `newest_best` were saved meanwhile and wait for the next checkpoint."""
        paths = sorted(self.folder.glob("step-*"))
        kept = [path for path in paths if (path / METADATA).is_file()][-self.keep :]
        for path in paths:
            if path not in kept:
                (path / METADATA).unlink(missing_ok=True)  # first: what is half removed is no checkpoint
                shutil.rmtree(path)
        named = {name for path in kept for name in storage.read_json(str(path / METADATA))["beside"]}
        for best in self.folder.glob("best-*.safetensors"):
            if best.name not in named and best.name <= newest_best:
                best.unlink()

    def remove_all(self) -> None:
        """Remove the folder, once the fold's model is exported. Rank 0 calls this."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"


@contextlib.contextmanager
def disk_trouble(folder: Path) -> Iterator[None]:
    """Turn a write that failed for want of room into a CheckpointError that names the folder and the remedy."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _no_room(error):
            raise
        free = shutil.disk_usage(
            next(path for path in (folder, *folder.absolute().parents) if path.exists())
        ).free
        raise CheckpointError(
            f"{folder}: cannot be written to: {error}; {data_size(free)} are free there. Make room (old runs, "
            "downloads) or move out to a larger disk, and start the training again: it goes on from the newest whole "
            "checkpoint"
        ) from error


def _no_room(error: Exception) -> bool:
    """No room on the device, a quota, or a limit of file sizes. The writers of torch's archives and of safetensors say it
    in their own words."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if isinstance(error, OSError):
        return error.errno in codes
    if isinstance(error, SafetensorError):
        return any(f"(os error {code})" in str(error) for code in codes)
    return "PytorchStreamWriter failed writing" in str(error) or "unexpected pos" in str(error)
