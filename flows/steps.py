"""One step of a flow: skip it where its output is up to date, else have a Ray job do it, and check what it wrote.

A step's output ends with a JSON file, written last, that carries `inputs_digest`: what the result depends on. An output
is up to date where that digest is today's and its files verify; a digest alone is no proof that the files are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import exponential_backoff
from pydantic import Field

from dataset_build import storage
from dataset_build.errors import StorageError
from dataset_build.progress import duration
from flows import orphans, ray_jobs
from flows.console import outlive_the_reader
from flows.lease import prefect_server
from flows.redact import redactor

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State
    from ray.dashboard.modules.job.pydantic_models import JobDetails
    from ray.job_submission import JobSubmissionClient

# Parameters that all flows share: checked before a run starts, described on Prefect's page by the flows' docstrings.
RecipeName = Annotated[str, Field(min_length=1, max_length=500)]
Overrides = Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+=.*$")]], Field(max_length=100)]
Force = bool
Minutes = Annotated[float, Field(gt=0, le=60 * 24 * 30)]

# (problems of the output's files, given the content of its final JSON); an empty list means that it verifies.
Check = Callable[[dict[str, Any]], list[str]]


# Attempts after the first where nothing is wrong with the recipe or the data; pauses of about 10, 20 and 40 s.
RETRIES = 3


class StepFailed(RuntimeError):
    """A step's job ended well, but what it left behind is not what was asked for."""


@dataclass(frozen=True)
class Step:
    """`final` is the path of the JSON file that is written last; `arguments` are the job's, after the interpreter.

    `force_arguments` follow them where the work is to be done anew: they make the job drop what it finished before.
    """

    flow: str
    recipe: str
    out: str
    final: str
    inputs_digest: str
    arguments: list[str]
    check: Check
    force_arguments: tuple[str, ...] = ()

    def up_to_date(self) -> dict[str, Any] | None:
        """The content of the final JSON where the output is whole and of today's inputs, else None."""
        return None if self.problems() else storage.read_json(self.final)

    def problems(self) -> list[str]:
        if not storage.exists(self.final):
            return [f"{self.final} is not there"]
        try:
            content = storage.read_json(self.final)
        except ValueError as error:
            return [str(error)]
        if content.get("inputs_digest") != self.inputs_digest:
            return [f"{self.final} was made from other inputs or by other code"]
        return self.check(content)


class Outcome(NamedTuple):
    """How a step came to its result: "unchanged" (nothing ran), "submitted", "attached" or "returned" (see ray_jobs)."""

    how: str
    final: dict[str, Any]
    job_id: str | None
    job_url: str | None
    seconds: float


def worth_another_try(task: Any, task_run: Any, state: State[Any]) -> bool:
    """Whether the same may work a little later: somebody did not answer, or the job was lost."""
    import httpx
    import requests

    error = state.result(raise_on_failure=False)
    transport = (ray_jobs.NoCluster, StorageError, requests.exceptions.RequestException, httpx.TransportError)
    return isinstance(error, (*transport, ConnectionError, ray_jobs.JobLost))


@task(
    task_run_name="Ray job of {step.recipe}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=exponential_backoff(backoff_factor=10),
    retry_jitter_factor=0.5,
    retry_condition_fn=worth_another_try,
)
def run_job(step: Step, force: bool, deadline_minutes: float) -> Outcome:
    """Have a Ray job bring the step's output up to date, and check what it wrote.

    Retried by Prefect, with growing pauses, where the cluster, the store or Prefect did not answer, and where the job's
    process or node was lost (the next attempt goes on from its finished parts). A job that says what is wrong is not.
    """
    from prefect import get_run_logger
    from prefect.runtime import task_run

    from flows.artifacts import ProgressArtifact

    began, logger, owner = time.monotonic(), get_run_logger(), root_flow_run_id()
    if (task_run.run_count or 1) > 1:
        force = False  # the attempt after a lost one goes on from what that one finished
    work = work_of(step, force=force, deadline_minutes=deadline_minutes, owner=owner)
    client = ray_jobs.connect()
    orphans.follow_openly(owner, work.name)
    _sweep(client, work.name)
    attempt = ray_jobs.submit_or_attach(client, work, lambda: step.up_to_date() is not None, force=force)
    url = ray_jobs.dashboard_url(client, attempt.job_id)
    logger.info("Ray job %s: %s, %s", attempt.job_id, attempt.how, url)
    if force and attempt.how == "attached":
        logger.warning("this work was under way already, so its result is taken; nothing is done anew")
    progress = ProgressArtifact(step.flow)

    def say(line: str) -> None:
        logger.info(line)
        progress.see(line)

    if attempt.how != "returned":
        ray_jobs.follow(client, attempt.job_id, say=say, deadline_s=work.deadline_s, may_stop=_may_stop)
    content = step.up_to_date()
    if content is None:
        raise StepFailed(
            f"Ray job {attempt.job_id} ended well, but: {'; '.join(step.problems()[:5])}. Were inputs or code changed "
            "while it ran? Start the flow again"
        )
    progress.done()
    return Outcome(attempt.how, content, attempt.job_id, url, time.monotonic() - began)


def run_step(step: Step, *, force: bool, deadline_minutes: float) -> Outcome:
    """Bring the step's output up to date. Call it inside a Prefect flow: log, progress and cancellation go there.

    Raises JobFailed or NoCluster (see ray_jobs), and StepFailed where the output does not verify afterwards.
    """
    from prefect import get_run_logger

    outlive_the_reader()
    began, logger = time.monotonic(), get_run_logger()
    if not force and (content := step.up_to_date()) is not None:
        logger.info("unchanged: %s is up to date with its inputs, and its files verify", step.out)
        return Outcome("unchanged", content, None, None, time.monotonic() - began)
    for problem in step.problems()[:5]:
        logger.info("to do: %s", problem)
    if force:
        storage.remove(step.final)
    outcome = run_job(step, force, deadline_minutes)
    logger.info("%s: %s after %s", step.out, outcome.how, duration(time.monotonic() - began))
    return outcome


def _sweep(client: JobSubmissionClient, keep: str) -> None:
    """Jobs that nobody waits for would take the CPUs that this one needs. What goes wrong here is only said."""
    from prefect import get_run_logger

    try:
        for orphan in orphans.sweep(client, keep=keep):
            ending = "stopped" if orphan.stopped else "it could not be stopped"
            get_run_logger().warning("Ray job %s was left behind, %s: %s", orphan.job_id, orphan.why, ending)
    except Exception as error:
        get_run_logger().info("orphaned jobs were not looked for: %s", redactor()(str(error)))


def work_of(step: Step, *, force: bool, deadline_minutes: float, owner: str) -> ray_jobs.Work:
    """The step as a job. Forced or not, it has the same name: a forced one is the next attempt at the same work."""
    return ray_jobs.Work(
        name=ray_jobs.job_name(step.flow, step.recipe, step.inputs_digest),
        arguments=[*step.arguments, *(step.force_arguments if force else ())],
        out=storage.filesystem(step.out)[1],
        deadline_s=deadline_minutes * 60,
        owner=owner,
        metadata={"flow": step.flow, "recipe": step.recipe, "prefect": prefect_server()},
    )


def root_flow_run_id() -> str:
    """The id of the flow run that a person or a schedule started, also inside of a flow that it calls."""
    from prefect.runtime import flow_run

    return str(flow_run.root_flow_run_id or flow_run.id or "")


def _may_stop(job: JobDetails) -> bool:
    """Whether a cancelled run may stop the job: not while another open run waits for it."""
    metadata, me = job.metadata or {}, root_flow_run_id()
    try:
        return not orphans.followers(metadata.get("work", "")) - {me}
    except Exception:  # Prefect does not answer: then whoever submitted the job decides
        return metadata.get("flow_run") == me


def stop_orphans(flow: Any, flow_run: Any, state: Any) -> None:
    """Cancellation hook: stop what the run left behind where its process could not do so itself."""
    for job_id in orphans.stop_jobs_of(ray_jobs.connect(), str(flow_run.id)):
        print(f"flow run {flow_run.name} was cancelled: Ray job {job_id} stopped", flush=True)
