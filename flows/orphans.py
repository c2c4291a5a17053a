"""Ray jobs that nobody waits for any more: found and stopped.

A flow run that is cancelled stops its job itself, but one whose process was killed cannot. A job is an orphan where the
flow run that submitted it has ended or is unknown to Prefect, and no other open run follows it (each run that follows a
job carries the tag `ray-job:NAME`). Jobs of other Prefect servers, and jobs that no flow submitted, are left alone.

Every flow sweeps before it submits; `python -m flows.orphans` does so by hand or from cron.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID

from flows import ray_jobs
from flows.lease import prefect_server

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun
    from ray.job_submission import JobSubmissionClient


class Orphan(NamedTuple):
    job_id: str
    why: str
    stopped: bool


def tag_of(work: str) -> str:
    """What a flow run carries while it follows a job of this name."""
    return f"ray-job:{work}"


def follow_openly(run_id: str, work: str) -> None:
    """Tag the flow run as one that follows the jobs called `work`. Called before it submits or attaches."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        tags = client.read_flow_run(UUID(run_id)).tags
        if tag_of(work) not in tags:
            client.update_flow_run(UUID(run_id), tags=[*tags, tag_of(work)])


def followers(work: str) -> set[str]:
    """The ids of the open flow runs that follow the jobs called `work`."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[tag_of(work)]))
    with get_client(sync_client=True) as client:
        return {str(run.id) for run in client.read_flow_runs(flow_run_filter=tagged) if _open(run)}


def is_open(run_id: str) -> bool:
    """Whether the flow run is about to run or runs; False where Prefect does not know it."""
    run = _read(run_id)
    return run is not None and _open(run)


def sweep(
    client: JobSubmissionClient, *, keep: str = "", every_server: bool = False, dry_run: bool = False
) -> list[Orphan]:
    """Stop the orphans, except jobs called `keep`: what the caller is about to attach to.

    `every_server`: also jobs that flow runs of another Prefect server submitted. Raises ValueError without a Prefect
    server: it alone knows who is still there.
    """
    from prefect.settings import get_current_settings

    if not get_current_settings().api.url:
        raise ValueError(
            "no Prefect server is named, so nobody can say which flow runs are still there: set PREFECT_API_URL"
        )
    here, found = prefect_server(), []
    for job in client.list_jobs():
        metadata = job.metadata or {}
        owner, work = metadata.get("flow_run"), metadata.get("work")
        if not job.submission_id or job.status.is_terminal() or not owner or not work or work == keep:
            continue
        if not every_server and metadata.get("prefect") != here:
            continue
        why = _gone(owner)
        if why and not followers(work):
            stopped = not dry_run and ray_jobs.stop(client, job.submission_id)
            found.append(Orphan(job.submission_id, why, stopped))
    return found


def stop_jobs_of(client: JobSubmissionClient, owner: str) -> list[str]:
    """Stop every unfinished job that the flow run `owner` submitted and no other open run follows; returns their ids."""
    stopped = []
    for job in client.list_jobs():
        metadata = job.metadata or {}
        if not job.submission_id or job.status.is_terminal() or metadata.get("flow_run") != owner:
            continue
        if not followers(metadata.get("work", "")) - {owner}:
            ray_jobs.stop(client, job.submission_id)
            stopped.append(job.submission_id)
    return stopped


def _gone(run_id: str) -> str | None:
    """Why nobody waits for a job of this flow run; None where it is open."""
    run = _read(run_id)
    if run is None:
        return f"its flow run {run_id} is unknown"
    return None if _open(run) else f"its flow run {run.name} is {run.state_name}"


def _read(run_id: str) -> FlowRun | None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        identifier = UUID(run_id)
    except ValueError:
        return None
    with get_client(sync_client=True) as client:
        try:
            return client.read_flow_run(identifier)
        except ObjectNotFound:
            return None


def _open(run: FlowRun) -> bool:
    return run.state is not None and not run.state.is_final()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m flows.orphans",
        description="Stop Ray jobs whose flow run has ended, crashed or is unknown. It asks the cluster that RAY_ADDRESS "
        "names and the Prefect server that PREFECT_API_URL names.",
        epilog="exit codes: 0 done, 1 a job did not stop or a server did not answer",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say which jobs they are")
    parser.add_argument(
        "--every-server",
        action="store_true",
        help="also jobs of other Prefect servers: right only where no other server uses this cluster any more",
    )
    chosen = parser.parse_args(arguments)
    try:
        found = sweep(ray_jobs.connect(), every_server=chosen.every_server, dry_run=chosen.dry_run)
    except Exception as error:  # of Ray's client, of Prefect's client: all mean that somebody does not answer
        from flows.redact import redactor

        print(f"error: {redactor()(str(error)) or type(error).__name__}", file=sys.stderr)
        return 1
    for orphan in found:
        what = "would be stopped" if chosen.dry_run else "stopped" if orphan.stopped else "DID NOT STOP"
        print(f"{orphan.job_id}: {orphan.why}: {what}")
    if not found:
        print("no orphans")
    return 0 if chosen.dry_run or all(orphan.stopped for orphan in found) else 1


if __name__ == "__main__":
    sys.exit(main())
