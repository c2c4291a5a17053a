"""Tasks on Ray: the long work of a conversion through Ray Data, short ones (writing, reading back) as plain Ray tasks.

Measured with Ray 2.60: Ray Data learns what the cluster has a second after an execution has begun and runs one task at a
time until then, and it needs 0.15 to 0.2 s from the end of a task to the start of the next on the same core, as it
polls every 0.1 s. That is as long as a shard of small pictures takes. So what Ray Data runs as one task is a group of ours,
large at first and single at the end, when cores would wait for the last one ("guided self-scheduling", Polychronopoulos
and Kuck, IEEE Transactions on Computers C-36(12), 1987); results do not wait for their group, only for the task after
theirs. And what takes a few seconds in all does without Ray Data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dataset_build.errors import StorageError

Task = dict[str, Any]
Function = Callable[[Task], dict[str, Any]]

# Heap of one task, which Ray cannot see: one shard's media, decoded one at a time.
_MEMORY = 512 << 20
# A group is lost with its node, and a cluster that grows should find groups left to take.
_LARGEST_GROUP = 4
# How often a short task starts again after its node or its process has died.
_RETRIES = 5
# The key of a task's result that says why a store (`s3://`) kept it from finishing.
_STORE_FAILED = "store_failed"


def run(function: Function, tasks: Sequence[Task], workers: int | None) -> Iterator[dict[str, Any]]:
    """Run `function` on every task through Ray Data, yielding results as they come, in any order.

    Tasks and results are what JSON holds. `workers` bounds how many run at once. Raises StorageError where a store
    failed a task, with what the worker said.
    """
    if not tasks:
        return
    import pyarrow as pa
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plan and progress lines; ours are enough
    # A cluster that is still to grow may have no CPU yet.
    cores = int(ray.cluster_resources().get("CPU", 0)) or len(tasks)
    texts = [json.dumps(task) for task in tasks]
    blocks, start = [], 0
    for size in group_sizes(len(texts), min(cores, workers or cores)):
        blocks.append(pa.table({"task": texts[start : start + size]}))
        start += size
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    # Every result is a block of its own, which leaves when the next is made.
    context.target_max_block_size = 1
    run_group: Callable[..., Any] = _run_group
    with ray.data.DataContext.current(context):
        dataset = ray.data.from_arrow(blocks).map_batches(
            run_group,
            fn_kwargs={"function": function},
            batch_size=None,
            batch_format="numpy",
            num_cpus=1,
            memory=_MEMORY,
            compute=ray.data.TaskPoolStrategy(size=workers) if workers else None,
        )
    for row in dataset.iter_rows():
        yield _checked(json.loads(row["result"]))


def run_short(function: Function, tasks: Sequence[Task], workers: int | None) -> Iterator[dict[str, Any]]:
    """As `run`, for work of seconds: without Ray Data. Tasks and results may be what Python pickles.

    Where the caller stops early (an error), tasks that run are cancelled, which is not waited for: what they write is
    whole or not there.
    """
    import ray

    remote = ray.remote(num_cpus=1, memory=_MEMORY, max_retries=_RETRIES)(_run_one)
    waiting = list(reversed(tasks))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and (workers is None or len(running) < workers):
                running.append(remote.remote(waiting.pop(), function))
            (done,), running = ray.wait(running)
            yield _checked(ray.get(done))
    finally:
        for reference in running:
            ray.cancel(reference)


def group_sizes(tasks: int, cores: int) -> list[int]:
    """How many tasks each group has: half of each core's share of what is left, at most `_LARGEST_GROUP`."""
    sizes = []
    while tasks:
        sizes.append(max(1, min(_LARGEST_GROUP, tasks // (2 * cores))))
        tasks -= sizes[-1]
    return sizes


def _run_group(batch: dict[str, Any], function: Function) -> Iterator[dict[str, list[str]]]:
    for task in batch["task"]:
        yield {"result": [json.dumps(_run_one(json.loads(task), function))]}


def _checked(result: dict[str, Any]) -> dict[str, Any]:
    if _STORE_FAILED in result:
        raise StorageError(result[_STORE_FAILED])
    return result


def _run_one(task: Task, function: Function) -> dict[str, Any]:
    try:
        return function(task)
    # As a result, so that it reaches the person without Ray's own traceback.
    except StorageError as error:
        return {_STORE_FAILED: str(error)}
    except OSError as error:  # a full disk, a folder that may not be written to
        return {_STORE_FAILED: f"{error}; mend that and start the same command again"}
