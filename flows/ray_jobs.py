"""Work as Ray jobs: submit or attach, follow, stop.

A job's submission id is `<flow>-<recipe>-<digest16>`, so the same work has the same id wherever it is asked for. Before
submitting, the cluster is asked what it knows of that id: a job that runs is followed, one that succeeded and whose
outputs verify is returned, one that failed or was stopped is followed by `-a2`, `-a3` and so on.

Where the code comes from: jobs run `cd HOME && PYTHON -m …`. On this machine HOME is this project and PYTHON this
interpreter; nothing is uploaded. On a cluster whose image holds the project, set EMOBENCH_JOB_HOME and
EMOBENCH_JOB_PYTHON to its folder and interpreter there. Where it does not, set EMOBENCH_JOB_WORKING_DIR to a
`working_dir` of Ray's runtime environments (a local folder is uploaded, or the URI of a zip file is fetched).
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.job_logs import LogTail, last_useful_lines
from flows.redact import redactor, refuse_secrets

if TYPE_CHECKING:
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# How long the cluster may be out of reach (a restarting head) before the flow gives up waiting for it.
PATIENCE_S = 300.0
STOP_PATIENCE_S = 25.0
# An answer of the Jobs API that takes longer is not coming: a node went away without closing its connections.
_ANSWER_S = 30.0
# What Ray says of a job whose node or supervising process went away.
_LOST = (
    "JOB_SUPERVISOR_ACTOR_DIED",
    "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
)
_SLOWEST_POLL_S = 2.0
_SLOWEST_RETRY_S = 15.0


class NoCluster(ValueError):
    """No Ray cluster is named, or it does not answer."""


class JobFailed(RuntimeError):
    """A job ended badly. The message holds its last useful lines; `exit_code` is None where it never ran or was stopped."""

    def __init__(self, job_id: str, message: str, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.job_id, self.exit_code = job_id, exit_code


class JobLost(JobFailed):
    """The job did not end by itself: its process was killed, or the node that it ran on went away.

    What it finished is kept, so it is worth another attempt, unlike a job that said what it cannot do.
    """


@dataclass(frozen=True)
class Placement:
    """Where jobs find the code; see the top of this module."""

    home: str = str(PROJECT_ROOT)
    python: str = sys.executable
    working_dir: str | None = None

    @classmethod
    def from_environment(cls, env: Mapping[str, str] = os.environ) -> Placement:
        working_dir = env.get("EMOBENCH_JOB_WORKING_DIR")
        return cls(
            home=env.get("EMOBENCH_JOB_HOME", "." if working_dir else str(PROJECT_ROOT)),
            python=env.get("EMOBENCH_JOB_PYTHON", "python" if working_dir else sys.executable),
            working_dir=working_dir,
        )

    def entrypoint(self, arguments: list[str]) -> str:
        return f"cd {shlex.quote(self.home)} && exec {shlex.join([self.python, *arguments])}"

    @property
    def runtime_env(self) -> dict[str, Any]:
        return {"working_dir": self.working_dir} if self.working_dir else {}


@dataclass(frozen=True)
class Work:
    """What a job does. `arguments` follow the interpreter (`-m dataset_build build …`); `out` is what it writes.

    `deadline_s` counts from the job's start, whoever started it. `owner` is the flow run that asks.
    """

    name: str
    arguments: list[str]
    out: str
    deadline_s: float
    owner: str = ""
    metadata: dict[str, str] = field(default_factory=dict)


class Attempt(NamedTuple):
    job_id: str
    how: str  # "submitted", "attached" (it was running already) or "returned" (it had succeeded already)


def job_name(flow: str, recipe: str, inputs_digest: str) -> str:
    """`<flow>-<recipe>-<digest16>`, the recipe's name reduced to what a URL shows as it is."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "-", recipe).strip("-") or "recipe"
    return f"{flow}-{plain}-{inputs_digest[:16]}"


def connect() -> JobSubmissionClient:
    """A client of the cluster that RAY_API_SERVER_ADDRESS or RAY_ADDRESS names. Raises NoCluster with the remedy."""
    if not (os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")):
        raise NoCluster("no Ray cluster is named: run `make up`, or set RAY_ADDRESS to a cluster's address")
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's own waits for an answer for ever."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": _ANSWER_S, **options})

    try:
        return Client()
    except Exception as error:  # ray raises whatever its HTTP client or its GCS client raised
        where = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ["RAY_ADDRESS"]
        reason = redactor()(str(error)).strip()
        raise NoCluster(
            f"the Ray cluster at {where} does not answer ({reason}); is it up (`make status`), and does "
            "RAY_AUTH_TOKEN_PATH name its token?"
        ) from error


def dashboard_url(client: JobSubmissionClient, job_id: str) -> str:
    return f"{client._address}/#/jobs/{job_id}"


def submit_or_attach(
    client: JobSubmissionClient, work: Work, verified: Callable[[], bool], force: bool = False
) -> Attempt:
    """The job that does `work`: a running one, one that succeeded and whose outputs are `verified()`, or a new one.

    With `force` a job that succeeded is not returned. Raises ValueError where the command or metadata hold a secret.
    """
    placement = Placement.from_environment()
    metadata = {"work": work.name, "out": work.out, "flow_run": work.owner, **work.metadata}
    refuse_secrets([*work.arguments, *metadata.values()], "the job's command or metadata:")
    for _ in range(5):
        attempts = _attempts(client, work.name)
        ours = {n: job for n, job in attempts.items() if (job.metadata or {}).get("out") == work.out}
        if ours:
            latest = ours[max(ours)]
            job_id = str(latest.submission_id)
            if not latest.status.is_terminal():
                return Attempt(job_id, "attached")
            if latest.status.value == "SUCCEEDED" and not force and verified():
                return Attempt(job_id, "returned")
        number = max(attempts, default=0) + 1
        job_id = work.name if number == 1 else f"{work.name}-a{number}"
        try:
            client.submit_job(
                entrypoint=placement.entrypoint(work.arguments),
                submission_id=job_id,
                runtime_env=placement.runtime_env,
                metadata=metadata,
            )
        except RuntimeError:
            if any(job.submission_id == job_id for job in _attempts(client, work.name).values()):
                continue  # somebody else submitted it in between: look again
            raise
        return Attempt(job_id, "submitted")
    raise RuntimeError(f"{work.name}: others keep submitting it at the same time; try again")


def _attempts(client: JobSubmissionClient, name: str) -> dict[int, JobDetails]:
    """The jobs called `name`, `name-a2`, ... that the cluster knows, by attempt number."""
    pattern = re.compile(re.escape(name) + r"(?:-a(\d+))?")
    found = {}
    try:
        jobs = client.list_jobs()
    except RuntimeError as error:
        if not re.search(r"status code 5\d\d", str(error)):
            raise
        raise NoCluster(f"the Ray cluster cannot say which jobs it has: {redactor()(str(error))}") from error
    for job in jobs:
        matched = pattern.fullmatch(job.submission_id or "")
        if matched:
            found[int(matched.group(1) or 1)] = job
    return found


def follow(
    client: JobSubmissionClient,
    job_id: str,
    *,
    say: Callable[[str], None],
    deadline_s: float,
    may_stop: Callable[[JobDetails], bool] = lambda job: True,
) -> JobDetails:
    """Wait for the job's end, handing its log lines to `say`; returns its details.

    Raises JobFailed where it failed, was stopped, vanished or ran longer than `deadline_s` (it is stopped then), and
    NoCluster where the cluster stays out of reach. When this process is told to end (the flow is cancelled), the job
    is stopped before the signal goes on, provided `may_stop(job)`.
    """
    redact = redactor()
    tail = LogTail(client, job_id)
    tail.start()
    pause = 0.5
    try:
        while True:
            job = _details(client, job_id)
            tail.drain(lambda line: say(redact(line)))
            if job.status.is_terminal():
                break
            spent = time.time() - (job.start_time or time.time() * 1000) / 1000
            if spent > deadline_s:
                stop(client, job_id)
                raise JobFailed(
                    job_id,
                    f"job {job_id} was stopped: it ran longer than its deadline of {deadline_s / 60:.0f} min. "
                    "Its finished parts are kept; raise the deadline and start it again to go on",
                )
            time.sleep(pause)
            pause = min(pause * 1.3, _SLOWEST_POLL_S)
    except Exception:
        raise
    except BaseException:  # KeyboardInterrupt, or Prefect's TerminationSignal
        say(f"told to end: stopping job {job_id}")
        _stop_if_ours(client, job_id, may_stop, say)
        raise
    finally:
        tail.finish()
        tail.drain(lambda line: say(redact(line)))
    if job.status.value != "SUCCEEDED":
        kind = JobLost if _was_lost(job) else JobFailed
        raise kind(job_id, _explain(client, job, redact), job.driver_exit_code)
    return job


def stop(client: JobSubmissionClient, job_id: str, patience_s: float = STOP_PATIENCE_S) -> bool:
    """Stop the job and wait until it has ended. False where it still runs after `patience_s`."""
    client.stop_job(job_id)
    until = time.monotonic() + patience_s
    while time.monotonic() < until:
        if client.get_job_status(job_id).is_terminal():
            return True
        time.sleep(0.3)
    return False


def _stop_if_ours(
    client: JobSubmissionClient,
    job_id: str,
    may_stop: Callable[[JobDetails], bool],
    say: Callable[[str], None],
) -> None:
    try:
        if not may_stop(client.get_job_info(job_id)):
            say(f"job {job_id} goes on: the flow run that submitted it is still running")
        elif not stop(client, job_id):
            say(f"job {job_id} did not end within {STOP_PATIENCE_S:.0f} s")
    except Exception as error:  # the signal that brought us here must go on whatever happens
        say(f"could not stop job {job_id}: {error}")


def _details(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """The job's details, through restarts of the head. A cluster that has forgotten the job raises JobFailed."""
    import requests

    pause, began = 0.5, time.monotonic()
    while True:
        try:
            return client.get_job_info(job_id)
        except (ConnectionError, requests.exceptions.RequestException) as error:
            problem: Exception = error
        except RuntimeError as error:
            if "status code 404" in str(error):
                raise JobLost(
                    job_id,
                    f"the cluster no longer knows job {job_id}: its head was probably started anew. "
                    "Start the flow again; finished parts are kept",
                ) from error
            problem = error  # 5xx while the head starts
        if time.monotonic() - began > PATIENCE_S:
            raise NoCluster(
                f"the Ray cluster has not answered for {PATIENCE_S / 60:.0f} min (last: {problem}); job {job_id} "
                "may still be running: start the flow again to attach to it"
            ) from problem
        time.sleep(pause)
        pause = min(pause * 2, _SLOWEST_RETRY_S)


def _was_lost(job: JobDetails) -> bool:
    """Whether a signal or the loss of a node ended the job, rather than the job itself or somebody who stopped it."""
    if job.status.value != "FAILED":
        return False
    killed = job.driver_exit_code is not None and job.driver_exit_code < 0
    return killed or job.error_type in _LOST


def _explain(client: JobSubmissionClient, job: JobDetails, redact: Callable[[str], str]) -> str:
    """Why the job did not succeed, for the person who will fix it."""
    if job.status.value == "STOPPED":
        return f"job {job.submission_id} was stopped; start the flow again to go on from its finished parts"
    try:
        text = client.get_job_logs(str(job.submission_id))
    except Exception:
        text = job.message or ""
    lines = last_useful_lines(text) or [job.message or "it left no log"]
    codes = {1: " (a problem with the data or their store)", 2: " (a problem with the recipe or the command)"}
    code = job.driver_exit_code
    ending = f"failed with exit code {code}{codes.get(code, '')}" if code is not None else "failed"
    if code is not None and code < 0:
        ending = f"was killed by signal {-code} (out of memory?); finished parts are kept"
    return redact(f"job {job.submission_id} {ending}:\n" + "\n".join(f"  {line}" for line in lines))
