"""Jobs on a real cluster: submitted once, attached to, returned, retried, stopped, explained."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows import ray_jobs
from flows.ray_jobs import JobFailed, JobLost, Work
from flows.steps import worth_another_try
from infra.servers import RayHead

# Counts its starts in starts.txt; what it does next is its first argument.
JOB = """
    import json, pathlib, sys, time
    out = pathlib.Path(sys.argv[2])
    with open(out / "starts.txt", "a") as stream:
        stream.write("start\\n")
    print("reading rows: 3/12 rows, 25 %, 1.0 rows/s, 9 s left")
    if sys.argv[1] == "write":
        (out / "final.json").write_text(json.dumps({"ok": True}))
    elif sys.argv[1] == "wait":
        until = time.time() + 60
        while not (out / "go").exists() and time.time() < until:
            time.sleep(0.1)
        (out / "final.json").write_text(json.dumps({"ok": True}))
    elif sys.argv[1] == "hold":
        import ray

        @ray.remote(num_cpus=3)
        class Holder:
            def ready(self):
                return True

        ray.init(log_to_driver=False)
        holder = Holder.remote()
        ray.get(holder.ready.remote())
        print("3 CPUs are held", flush=True)
        time.sleep(120)
    elif sys.argv[1] == "typo":
        print("error: sources.0.rot: unknown key; did you mean root?", file=sys.stderr)
        sys.exit(2)
    elif sys.argv[1] == "fail":
        print("error: emoji_pictures: 12 of 300 rows rejected, over the budget of 1 %", file=sys.stderr)
        sys.exit(1)
"""


@pytest.fixture
def client(ray_cluster: RayHead):
    return ray_jobs.connect()


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "job.py"
    path.write_text(textwrap.dedent(JOB))
    return str(path)


def work(script: str, out: Path, does: str, name: str, deadline_s: float = 60) -> Work:
    return Work(name, [script, does, str(out)], str(out), deadline_s, owner="flow-run-of-the-test")


def starts(out: Path) -> int:
    return (out / "starts.txt").read_text().count("start") if (out / "starts.txt").exists() else 0


def wait_for(condition, limit_s: float = 30) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.1)


def test_a_job_is_submitted_once_then_returned_and_submitted_anew_when_its_output_is_gone(
    client, script: str, tmp_path: Path
) -> None:
    name = ray_jobs.job_name("build-emobench", "my recipe/v1", "ab" * 32)
    assert name == "build-emobench-my-recipe-v1-" + "ab" * 8
    task, final, said = work(script, tmp_path, "write", name), tmp_path / "final.json", []
    first = ray_jobs.submit_or_attach(client, task, final.exists)
    assert first == (name, "submitted")
    ray_jobs.follow(client, name, say=said.append, deadline_s=60)
    assert json.loads(final.read_text()) == {"ok": True}
    assert any(line.startswith("reading rows: 3/12") for line in said)

    assert ray_jobs.submit_or_attach(client, task, final.exists) == (name, "returned")
    assert starts(tmp_path) == 1

    final.unlink()
    again = ray_jobs.submit_or_attach(client, task, final.exists)
    assert again == (f"{name}-a2", "submitted")
    ray_jobs.follow(client, again.job_id, say=said.append, deadline_s=60)
    assert final.exists() and starts(tmp_path) == 2


def test_a_second_start_attaches_to_the_running_job(client, script: str, tmp_path: Path) -> None:
    task = work(script, tmp_path, "wait", "attach-test-0000")
    first = ray_jobs.submit_or_attach(client, task, lambda: False)
    second = ray_jobs.submit_or_attach(client, task, lambda: False)
    assert (first.how, second.how) == ("submitted", "attached")
    assert first.job_id == second.job_id
    (tmp_path / "go").touch()
    assert ray_jobs.follow(client, second.job_id, say=print, deadline_s=60).status.value == "SUCCEEDED"
    assert starts(tmp_path) == 1


def test_the_same_inputs_into_another_folder_are_another_job(client, script: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()
    one = ray_jobs.submit_or_attach(client, work(script, here, "wait", "folders-0000"), lambda: False)
    two = ray_jobs.submit_or_attach(client, work(script, there, "wait", "folders-0000"), lambda: False)
    assert (one.how, two.how, two.job_id) == ("submitted", "submitted", "folders-0000-a2")
    for out, attempt in ((here, one), (there, two)):
        (out / "go").touch()
        ray_jobs.follow(client, attempt.job_id, say=print, deadline_s=60)
        assert (out / "final.json").exists()


def test_a_failed_job_explains_itself_and_the_next_start_is_attempt_two(
    client, script: str, tmp_path: Path
) -> None:
    task = work(script, tmp_path, "fail", "fail-test-0000")
    ray_jobs.submit_or_attach(client, task, lambda: False)
    with pytest.raises(JobFailed) as caught:
        ray_jobs.follow(client, task.name, say=print, deadline_s=60)
    message = str(caught.value)
    assert "12 of 300 rows rejected, over the budget of 1 %" in message
    assert "exit code 1 (a problem with the data or their store)" in message
    assert "reading rows" not in message  # progress explains nothing
    assert caught.value.exit_code == 1 and type(caught.value) is JobFailed
    assert ray_jobs.submit_or_attach(client, task, lambda: True).job_id == "fail-test-0000-a2"


def test_a_job_past_its_deadline_is_stopped(client, script: str, tmp_path: Path) -> None:
    task = work(script, tmp_path, "wait", "deadline-test-0000")
    ray_jobs.submit_or_attach(client, task, lambda: False)
    with pytest.raises(JobFailed, match="deadline"):
        ray_jobs.follow(client, task.name, say=print, deadline_s=2)
    assert client.get_job_status(task.name).value == "STOPPED"


FOLLOWER = """
    import signal, sys
    from flows import ray_jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background inherits it ignored
    client = ray_jobs.connect()
    ray_jobs.follow(client, sys.argv[1], say=lambda line: print(line, flush=True), deadline_s=60)
"""


def test_telling_the_follower_to_end_stops_the_job_and_its_process_and_frees_its_cpus(
    client, ray_session: RayHead, script: str, tmp_path: Path
) -> None:
    import ray

    assert ray.available_resources()["CPU"] == 4, "an earlier test left something running"
    task = work(script, tmp_path, "hold", "cancel-test-0000")
    ray_jobs.submit_or_attach(client, task, lambda: False)
    follower = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FOLLOWER), task.name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ray_session.env},
    )
    assert follower.stdout is not None
    assert any("3 CPUs are held" in line for line in follower.stdout)  # reads until the line comes
    wait_for(lambda: ray.available_resources().get("CPU", 0) == 1)
    began = time.monotonic()
    follower.send_signal(signal.SIGINT)
    follower.wait(timeout=30)
    assert client.get_job_status(task.name).value == "STOPPED"
    wait_for(lambda: ray.available_resources()["CPU"] == 4)
    assert time.monotonic() - began < 30
    mine = [p for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]
    assert mine == []


@pytest.mark.parametrize(
    ("does", "kind", "says"),
    [
        ("typo", JobFailed, "exit code 2 (a problem with the recipe or the command)"),
        ("wait", JobLost, "was killed by signal 9"),
    ],
)
def test_only_a_job_that_was_killed_is_tried_again(
    client, script: str, tmp_path: Path, does: str, kind: type[JobFailed], says: str
) -> None:
    from prefect.states import Failed

    task = work(script, tmp_path, does, f"fault-{does}-0000")
    ray_jobs.submit_or_attach(client, task, lambda: False)
    if does == "wait":
        wait_for(lambda: starts(tmp_path) == 1)
        (mine,) = [p for p in psutil.process_iter(["cmdline"]) if script in (p.info["cmdline"] or [])]
        mine.kill()
    with pytest.raises(JobFailed, match=re.escape(says)) as failed:
        ray_jobs.follow(client, task.name, say=print, deadline_s=60)
    assert type(failed.value) is kind
    assert worth_another_try(None, None, Failed(data=failed.value)) == (kind is JobLost)


class Interruptible(threading.Thread):
    """A TCP proxy in front of the Jobs API whose connections can be cut, and which can refuse new ones."""

    def __init__(self, target: tuple[str, int]) -> None:
        super().__init__(daemon=True)
        self._target, self.down = target, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.start()

    def run(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def cut(self) -> None:
        self.down = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)


def test_the_log_is_followed_through_a_broken_connection_without_gaps_or_repeats(
    ray_cluster: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = tmp_path / "count.py"
    counter.write_text("import time\nfor n in range(40):\n    print('line', n, flush=True); time.sleep(0.1)")
    port = int(ray_cluster.dashboard_url.rsplit(":", 1)[1])
    proxy = Interruptible(("127.0.0.1", port))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", proxy.url)
    client, said = ray_jobs.connect(), []
    task = Work("interrupted-test-0000", [str(counter)], str(tmp_path), 60)
    ray_jobs.submit_or_attach(client, task, lambda: False)

    def say(line: str) -> None:
        said.append(line)
        if line == "line 5":
            proxy.cut()
            threading.Timer(2.0, lambda: setattr(proxy, "down", False)).start()

    try:
        ray_jobs.follow(client, task.name, say=say, deadline_s=60)
    finally:
        proxy.close()
    assert [line for line in said if line.startswith("line")] == [f"line {n}" for n in range(40)]


def test_two_starts_at_the_same_moment_give_one_job(client, script: str, tmp_path: Path) -> None:
    task = work(script, tmp_path, "wait", "race-test-0000")
    attempts: list[ray_jobs.Attempt] = []
    threads = [
        threading.Thread(
            target=lambda: attempts.append(ray_jobs.submit_or_attach(client, task, lambda: False))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt.how for attempt in attempts) == ["attached"] * 3 + ["submitted"]
    assert {attempt.job_id for attempt in attempts} == {task.name}
    (tmp_path / "go").touch()
    ray_jobs.follow(client, task.name, say=print, deadline_s=60)
    assert starts(tmp_path) == 1


def test_secrets_stay_out_of_metadata_and_errors(
    client, ray_cluster: RayHead, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    leaky = Work("secret-test-0000", [script, "write", "wJalrXUtnFEMI"], str(tmp_path), 60)
    with pytest.raises(ValueError, match="holds a secret") as caught:
        ray_jobs.submit_or_attach(client, leaky, lambda: False)
    assert "wJalrXUtnFEMI" not in str(caught.value)
    assert all(job.submission_id != "secret-test-0000" for job in client.list_jobs())

    teller = tmp_path / "teller.py"
    teller.write_text(
        "import os; raise SystemExit('token is ' + open(os.environ['RAY_AUTH_TOKEN_PATH']).read())"
    )
    task, said = Work("secret-test-0001", [str(teller)], str(tmp_path), 60), []
    ray_jobs.submit_or_attach(client, task, lambda: False)
    with pytest.raises(JobFailed) as failed:
        ray_jobs.follow(client, task.name, say=said.append, deadline_s=60)
    token = Path(ray_cluster.token_path).read_text().strip()
    assert "token is ***" in str(failed.value)
    assert token not in str(failed.value) and token not in "\n".join(said)


def test_no_cluster_named_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ray_jobs.NoCluster, match="make up"):
        ray_jobs.connect()
