"""What a job's log is reduced to."""

from __future__ import annotations

from flows.job_logs import clean_lines, last_useful_lines, progress_of


def test_the_last_useful_lines_leave_progress_and_ray_chatter_out() -> None:
    log = "\n".join(
        [
            "Running entrypoint for job build-emobench-smoke-00: cd . && exec python -m dataset_build build smoke",
            "2026-11-23 01:22:00,123\tINFO worker.py:2000 -- Connecting to existing Ray cluster at 127.0.0.1",
            "converting: 12/300 rows, 4 %, 8.0 rows/s, 36 s left",
            "(raylet) Spilled 20 MiB",
            "(RayTrainWorker pid=4711, ip=127.0.0.1) ",
            "(pid=4711)",
            "",
            "(RayTrainWorker pid=4711) step 3",
            "error: sources.0.root: no such folder 'x'; run `make samples`",
        ]
    )
    assert last_useful_lines(log) == [
        "(RayTrainWorker pid=4711) step 3",
        "error: sources.0.root: no such folder 'x'; run `make samples`",
    ]


def test_only_the_last_lines_of_a_long_traceback_are_kept() -> None:
    lines = [f"line {n}" for n in range(100)]
    assert last_useful_lines("\n".join(lines), most=3) == ["line 97", "line 98", "line 99"]


def test_a_progress_line_gives_percent() -> None:
    progress = progress_of("training fold 1: 18/36 steps, 50 %, 0.6 steps/s, loss 0.71, 30 s left")
    assert progress is not None
    assert (progress.what, progress.percent) == ("training fold 1", 50.0)
    assert progress_of("loss: 3/4 of the rows") is None
    assert progress_of("empty: 0/0 rows, 0.0 rows/s") is None


def test_overwritten_lines_and_colours_are_resolved() -> None:
    assert clean_lines("\r\x1b[2Ka: 1/2\r\x1b[2Ka: 2/2\n\x1b[31mred\x1b[0m") == ["a: 2/2", "red"]
