"""Groups of real training processes over gloo, without Ray.

A fork server imports torch, DeepSpeed and the model classes once for the whole test run; a rank is a fork of it, so it is
there in a tenth of a second. It is a process of its own: it can be killed, meet a full disk, or die while it writes.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from emollm.train.metrics import read_metrics

_WHAT_RANKS_IMPORT = (
    "tests.emollm.train.ranks",
    "deepspeed",
    "emollm.train.loop",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.llama.modeling_llama",
)


class Job(NamedTuple):
    """One call of `train_fold`. A group runs its jobs one after the other."""

    overrides: Sequence[str]
    fold: int = 0
    other_world_size: bool = False


class Fault(NamedTuple):
    """What befalls one rank in the checkpoint of `step` of the run in `out`: it dies in the `write`, or before the
    `metadata`, or its disk is `full`."""

    kind: str
    rank: int
    step: int
    out: Path


class Group:
    """Running ranks; `log` and `results` are what they left."""

    def __init__(self, folder: Path, processes: list[BaseProcess], jobs: int) -> None:
        self.folder, self.processes, self.jobs = folder, processes, jobs

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"rank-{rank}.log").read_text()

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.processes[rank].pid or 0, signal.SIGKILL)

    def end(self, limit_s: float = 120) -> list[int | None]:
        """The exit codes, once all ranks have ended by themselves."""
        deadline = time.monotonic() + limit_s
        try:
            for process in self.processes:
                process.join(timeout=max(0.0, deadline - time.monotonic()))
            return [process.exitcode for process in self.processes]
        finally:
            for process in self.processes:  # one that waits for a rank that is gone
                process.kill()

    def finish(self, limit_s: float = 240) -> list[dict[str, Any]]:
        """What `train_fold` returned for each job."""
        codes = self.end(limit_s)
        assert codes == [0] * len(codes), f"{codes}\n" + "\n".join(
            self.log(rank)[-3000:] for rank in range(len(codes))
        )
        return [
            json.loads((self.folder / f"result-{number}.json").read_text()) for number in range(self.jobs)
        ]


def start(world: int, folder: Path, *jobs: Job, fault: Fault | None = None) -> Group:
    """Start `world` ranks; an empty extension cache in `folder` shows that nothing is compiled."""
    folder.mkdir(parents=True, exist_ok=True)
    rendezvous = folder / f"rendezvous-{time.monotonic_ns()}"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_WHAT_RANKS_IMPORT))
    processes: list[BaseProcess] = [
        context.Process(target=_run, args=(rank, world, rendezvous, folder, jobs, fault), daemon=True)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    return Group(folder, processes, len(jobs))


def _run(
    rank: int, world: int, rendezvous: Path, folder: Path, jobs: Sequence[Job], fault: Fault | None
) -> None:
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined] # has decode workers
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "cold-extensions")
    os.environ.pop("CXX", None)
    # Ended with the tests, whatever happens, but with children of its own: decode workers.
    multiprocessing.current_process().daemon = False
    import torch.distributed as dist

    from emollm.config import load_recipe
    from emollm.train.loop import train_fold
    from emollm.train.resume import Resume

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    if fault is not None and fault.rank == rank:
        _befall(fault)
    try:
        for number, job in enumerate(jobs):
            recipe = load_recipe("smoke", job.overrides)
            result = train_fold(recipe, job.fold, "test-digest", resume=Resume(job.other_world_size))
            if rank == 0:
                (folder / f"result-{number}.json").write_text(json.dumps(result))
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    dist.destroy_process_group()


def _befall(fault: Fault) -> None:
    """Arm the fault in this rank. Deaths are signals to itself at that point; the full disk is the kernel's refusal."""
    from emollm.train.checkpoint import Checkpoints

    def at_the_step(path: Any) -> bool:
        return f"step-{fault.step:06d}" in str(path) and str(path).startswith(f"{fault.out}/")

    if fault.kind == "metadata":
        finish = Checkpoints._finish

        def die_before(self: Checkpoints, path: Path, *arguments: Any) -> None:
            if at_the_step(path):
                os.kill(os.getpid(), signal.SIGKILL)
            finish(self, path, *arguments)

        Checkpoints._finish = die_before  # type: ignore[method-assign]
        return
    save = torch.save

    def disturbed(value: Any, path: Any, *arguments: Any, **named: Any) -> None:
        if not at_the_step(path):
            return save(value, path, *arguments, **named)
        whole = io.BytesIO()
        save(value, whole)
        half = whole.getvalue()[: len(whole.getvalue()) // 2]
        if fault.kind == "write":
            Path(path).write_bytes(half)
            os.kill(os.getpid(), signal.SIGKILL)
        # Python ignores the signal that comes with it, so a write fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(half), resource.RLIM_INFINITY))
        try:
            save(value, path, *arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    torch.save = disturbed  # type: ignore[assignment]


def wait_for(condition: Callable[[], bool], group: Group, limit_s: float = 120) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline and all(p.is_alive() for p in group.processes), group.log()[-3000:]
        time.sleep(0.01)


def curve(out: Path, fold: int = 0) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return read_metrics(str(out / f"fold-{fold}" / "log" / "metrics.jsonl"))
    return []


def weights(out: Path, fold: int = 0) -> dict[str, torch.Tensor]:
    return load_file(out / f"fold-{fold}" / "trained.safetensors")


def same_bits(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def apart(one: Path, other: Path) -> float:
    """The largest difference between the weights of two runs.

    Without the bias of attention's keys: it adds the same to all scores of a query, so the loss does not depend on it. Its
    gradient is rounding noise around zero, which Adam, dividing by the gradient's size, turns into steps.
    """
    ours, theirs = (
        {name: _mattering(name, value) for name, value in weights(out).items()} for out in (one, other)
    )
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def _mattering(name: str, weight: torch.Tensor) -> torch.Tensor:
    return weight.chunk(2)[1] if name.endswith("_kv.bias") else weight  # keys, then values
