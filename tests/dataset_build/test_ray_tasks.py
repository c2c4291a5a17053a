"""Tasks through Ray Data: each once, small groups last, results before their group ends, one line for a full disk."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build import ray_tasks
from dataset_build.errors import StorageError


@given(st.integers(0, 5_000), st.integers(1, 64))
def test_groups_hold_every_task_and_shrink_to_single_ones(tasks: int, cores: int) -> None:
    sizes = ray_tasks.group_sizes(tasks, cores)
    assert sum(sizes) == tasks
    assert sizes == sorted(sizes, reverse=True)
    assert all(0 < size <= ray_tasks._LARGEST_GROUP for size in sizes)
    # No core has more than one task to do when the first runs out of them.
    assert sizes[-cores:] == [1] * min(tasks, cores)
    # Until then a group is no more than half of a core's share.
    assert all(size == 1 or 2 * cores * size <= tasks for size in sizes)


def test_a_result_comes_before_the_rest_of_its_group_has_run(ray_session: Any, tmp_path: Path) -> None:
    def two_behind(task: dict[str, Any]) -> dict[str, Any]:
        """Waits until the result of the last task but one has been seen."""
        for _ in range(600):
            if task["number"] < 2 or Path(task["folder"], str(task["number"] - 2)).exists():
                return {"number": task["number"]}
            time.sleep(0.1)
        raise AssertionError(f"nobody has seen the result of task {task['number'] - 2}")

    assert ray_tasks.group_sizes(8, 1)[0] == 4
    seen = []
    tasks = [{"number": number, "folder": str(tmp_path)} for number in range(8)]
    for result in ray_tasks.run(two_behind, tasks, workers=1):
        seen.append(result["number"])
        (tmp_path / str(result["number"])).touch()
    assert seen == list(range(8))


@pytest.mark.parametrize("run", [ray_tasks.run, ray_tasks.run_short])
def test_every_task_runs_once_and_no_more_at_a_time_than_allowed(
    run: Any, ray_session: Any, tmp_path: Path
) -> None:
    def alone(task: dict[str, Any]) -> dict[str, Any]:
        with open(Path(task["folder"], "one at a time"), "x"):  # fails where another has it
            (Path(task["folder"]) / f"task {task['number']}").touch(exist_ok=False)
            time.sleep(0.02)
        Path(task["folder"], "one at a time").unlink()
        return {"number": task["number"]}

    tasks = [{"number": number, "folder": str(tmp_path)} for number in range(20)]
    assert sorted(result["number"] for result in run(alone, tasks, 1)) == list(range(20))
    assert list(run(alone, [], 1)) == []


@pytest.mark.parametrize("run", [ray_tasks.run, ray_tasks.run_short])
def test_a_process_that_dies_costs_no_result_and_doubles_none(
    run: Any, ray_session: Any, tmp_path: Path
) -> None:
    """It dies in the third task of a group, whose first result has been seen by then."""

    def dies_once(task: dict[str, Any]) -> dict[str, Any]:
        folder, number = Path(task["folder"]), task["number"]
        for _ in range(600):
            if number != 2 or (folder / "0").exists():
                break
            time.sleep(0.1)
        if number == 2 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"number": number}

    tasks = [{"number": number, "folder": str(tmp_path)} for number in range(8)]
    assert ray_tasks.group_sizes(8, 1)[0] == 4
    seen = []
    for result in run(dies_once, tasks, 1):
        seen.append(result["number"])
        (tmp_path / str(result["number"])).touch()
    assert sorted(seen) == list(range(8))
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("run", [ray_tasks.run, ray_tasks.run_short])
def test_a_full_disk_in_a_worker_is_said_in_one_line(run: Any, ray_session: Any) -> None:
    def full(_: dict[str, Any]) -> dict[str, Any]:
        raise OSError(28, "No space left on device", "out/train/a-00000.parquet")

    with pytest.raises(StorageError) as caught:
        list(run(full, [{}], None))
    assert str(caught.value) == (
        "[Errno 28] No space left on device: 'out/train/a-00000.parquet'; mend that and start the same command again"
    )
