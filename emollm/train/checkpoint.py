"""Checkpoints that are whole or not there.

All ranks write their part with DeepSpeed into `step-000030/`; rank 0 then writes `checkpoint.json` into it, last, with
the digest of every file. A folder without that file, or with a file that does not match it, is not a checkpoint.
`latest` is a file that names the newest whole one. Old checkpoints go only after a new one is whole. Nothing about
random numbers or the position in the data needs saving: both follow from the seed and the step.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dataset_build import storage
from dataset_build.provenance import sha256_of_file

METADATA = "checkpoint.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says why and what to do."""


class Checkpoints:
    """The checkpoints of one fold in `folder`, which all workers must see (a local disk or a shared one)."""

    def __init__(self, folder: str, identity: dict[str, Any], keep: int) -> None:
        """`identity` (inputs digest, fold, world size) is stored with a checkpoint and must match on load."""
        self.folder, self.identity, self.keep = Path(folder), identity, keep

    def save(self, engine: Any, step: int) -> None:
        """Write the checkpoint of `step` finished steps. Every rank calls this."""
        path = self._path(step)
        if dist.get_rank() == 0 and path.exists():
            shutil.rmtree(path)
        dist.barrier()
        engine.save_checkpoint(
            str(self.folder), tag=path.name, save_latest=False, exclude_frozen_parameters=True
        )
        dist.barrier()
        if dist.get_rank() == 0:
            files = {name: sha256_of_file(str(path / name)) for name in storage.list_files(str(path))}
            storage.write_json(
                str(path / METADATA), {"step": step, "identity": self.identity, "files": files}
            )
            storage.write_bytes(str(self.folder / "latest"), f"{path.name}\n".encode())
            self._rotate()
        dist.barrier()

    def load_newest(self, engine: Any) -> int:
        """Load the newest whole checkpoint; the number of steps it has done, 0 without one. Every rank calls this."""
        step = self.newest_whole()
        if step == 0:
            return 0
        found, _ = engine.load_checkpoint(
            str(self.folder), tag=self._path(step).name, load_module_strict=False
        )
        if found is None:
            raise CheckpointError(
                f"{self._path(step)}: DeepSpeed could not load it; remove the folder to go on without"
            )
        return step

    def newest_whole(self) -> int:
        """The step of the newest whole checkpoint, as rank 0 sees it, so that all ranks agree; 0 without one."""
        answer: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                answer = [self._newest_whole()]
            except CheckpointError as error:
                answer = [str(error)]
        dist.broadcast_object_list(answer, src=0)
        if isinstance(answer[0], str):
            raise CheckpointError(answer[0])
        return int(answer[0])

    def _newest_whole(self) -> int:
        for path in sorted(self.folder.glob("step-*"), reverse=True):
            problem = self._problem(path)
            if problem is None:
                return int(path.name.split("-")[1])
            print(
                f"checkpoint {path.name} is not used: {problem}; falling back to the one before", flush=True
            )
        return 0

    def _problem(self, path: Path) -> str | None:
        """Why `path` is not a whole checkpoint, None if it is. A checkpoint of another run is an error."""
        if not (path / METADATA).is_file():
            return "it was not finished"
        try:
            metadata = storage.read_json(str(path / METADATA))
        except ValueError as error:
            return str(error)
        for name, digest in metadata["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256_of_file(str(path / name)) != digest:
                return f"{name} is damaged"
        for key, value in self.identity.items():
            if metadata["identity"].get(key) != value:
                raise CheckpointError(
                    f"{path}: was written with {key} {metadata['identity'].get(key)!r}, this run has {value!r}; "
                    f"use the same {key}, or remove the folder to start again"
                )
        return None

    def _rotate(self) -> None:
        whole = sorted(path for path in self.folder.glob("step-*") if (path / METADATA).is_file())
        for path in whole[: -self.keep]:
            (path / METADATA).unlink()  # first, so that what is half removed is no checkpoint
            shutil.rmtree(path)

    def remove_all(self) -> None:
        """Remove the folder, once the fold's model is exported. Rank 0 calls this."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"
