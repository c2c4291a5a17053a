"""`emollm rationales`: let a teacher write them, keep those that lead to the label, store them beside the samples."""

from __future__ import annotations

import argparse
import json
import os
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emollm.rationales.job import Plan, Target

DONE = 0


def add_subcommand(subparsers: Any) -> None:
    """Add `rationales` to an argparse sub-parser collection; it sets `run`, which returns the exit code."""
    rationales = subparsers.add_parser(
        "rationales",
        help="let a teacher write rationales for EmoPrompt",
        description="Let a teacher write a short rationale for each sample, its label in view; keep those from which "
        "the label follows without it. They are stored beside the samples, in OUT/rationales/NAME. Killed and started "
        "again, it goes on where it was.",
    )
    rationales.add_argument("data", metavar="OUT", help="a finished EmoBench")
    teacher = rationales.add_mutually_exclusive_group(required=True)
    teacher.add_argument(
        "--teacher",
        metavar="MODEL",
        help="folder or hub name: a text model, a foundation MLLM, or a trained EmoLLM",
    )
    teacher.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible endpoint, up to and with /v1"
    )
    rationales.add_argument("--teacher-model", metavar="NAME", help="the endpoint's model")
    rationales.add_argument(
        "--api-key-env", metavar="VARIABLE", help="environment variable that holds the endpoint's key"
    )
    rationales.add_argument(
        "--request", metavar="JSON", default="{}",
        help="keys of the endpoint's request body to add or replace; a null removes one",
    )  # fmt: skip
    rationales.add_argument("--name", help="of these rationales (default: the teacher's name)")
    rationales.add_argument(
        "--split", choices=("train", "val", "test", "all"), default="train",
        help="whose rows are asked (default: train); training under folds takes rows of all",
    )  # fmt: skip
    rationales.add_argument(
        "--sub-task", action="append", default=[], metavar="NAME", help="only this sub-task; can be repeated"
    )
    rationales.add_argument(
        "--limit", type=_at_least_one, default=0, metavar="N", help="at most N samples per sub-task"
    )
    rationales.add_argument(
        "--workers", type=_at_least_one, default=2, metavar="N",
        help="actors with a model each, or requests at once (default: 2)",
    )  # fmt: skip
    rationales.add_argument(
        "--batch-size", type=_at_least_one, default=8, metavar="N", help="of a local teacher (default: 8)"
    )
    rationales.add_argument(
        "--max-side-px",
        type=int,
        metavar="PX",
        help="largest side of a picture for a local MLLM of any picture size",
    )
    rationales.add_argument(
        "--retry-errors", action="store_true", help="ask again where the endpoint gave no usable response"
    )
    rationales.add_argument("--force", action="store_true", help="write again what is written already")
    rationales.add_argument(
        "--dry-run", action="store_true", help="print what would be asked, with an example, and stop"
    )
    rationales.set_defaults(run=run)


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Run `emollm rationales`; returns the exit code."""
    from dataset_build import storage
    from dataset_build.schema import SUB_TASKS
    from emollm.config import RecipeError
    from emollm.rationales import job

    for task in arguments.sub_task:
        if task not in SUB_TASKS:
            raise RecipeError(f"--sub-task {task!r} is not one of {', '.join(SUB_TASKS)}")
    data = arguments.data if storage.is_remote(arguments.data) else os.path.abspath(arguments.data)
    selection = job.Selection(
        job.splits_of(arguments.split), tuple(sorted(set(arguments.sub_task))), arguments.limit
    )
    target = _target(arguments, data)
    plan = job.make_plan(data, selection, target.teacher["digest"])
    if arguments.dry_run:
        print(describe(plan, target, arguments.endpoint is not None))
        return DONE
    if arguments.force:
        job.forget(target)
    elif (done := job.known(plan, target, selection)) and not arguments.retry_errors:
        print(f"nothing changed: {job.store.folder(data, target.name)} holds these rationales")
        print(table(done))
        return DONE
    shards = job.unfinished(plan, target, arguments.retry_errors)
    already = plan.n_samples - sum(len(shard.uids) for shard in shards)
    if already:
        print(f"rationales: {already} of {plan.n_samples} samples were asked by an earlier run", flush=True)
    if shards:
        job.reopen(target)
        _ask(arguments, target, plan, shards, already)
    manifest = job.finish(plan, target, selection)
    print(table(manifest))
    print(f"rationales {target.name!r}: {job.store.folder(data, target.name)}", flush=True)
    return DONE


def _target(arguments: argparse.Namespace, data: str) -> Target:
    """Where the rationales go. Raises RecipeError where arguments do not fit together."""
    from dataset_build.provenance import sha256_of_json
    from emollm.config import RecipeError, foundation_digest
    from emollm.rationales.job import Target

    if arguments.endpoint is not None:
        if not arguments.teacher_model:
            raise RecipeError("--endpoint needs --teacher-model, the name of the model there")
        kind, name = "endpoint", arguments.teacher_model
        digest = sha256_of_json({"endpoint model": name, "request": _request(arguments)})
    else:
        if arguments.teacher_model or arguments.api_key_env or arguments.request != "{}":
            raise RecipeError(
                "--teacher-model, --api-key-env and --request go with --endpoint, not with --teacher"
            )
        kind, name = "local", os.path.basename(os.path.normpath(arguments.teacher))
        if os.path.isabs(arguments.teacher) and not os.path.isdir(arguments.teacher):
            raise RecipeError(f"--teacher {arguments.teacher}: no such folder")
        digest = sha256_of_json([foundation_digest(arguments.teacher), arguments.max_side_px])
    chosen = arguments.name or re.sub(r"[^\w.-]+", "-", name).strip("-.")
    if not re.fullmatch(r"\w[\w.-]*", chosen):
        raise RecipeError(f"--name {chosen!r}: letters, digits, _, - and . only, for it is a folder's name")
    return Target(data, chosen, {"kind": kind, "name": name, "digest": digest})


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    from emollm.config import RecipeError

    try:
        found = json.loads(arguments.request)
    except ValueError as error:
        raise RecipeError(f"--request {arguments.request!r} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(
            f'--request {arguments.request!r}: give an object, for example {{"max_tokens": 300}}'
        )
    return found


def _ask(arguments: argparse.Namespace, target: Target, plan: Plan, shards: Any, already: int) -> None:
    from dataset_build import storage
    from dataset_build.progress import Progress
    from emollm.rationales import job
    from emollm.rationales.teacher import check

    if arguments.endpoint is None:
        local = job.LocalJob(
            target,
            _absolute(arguments.teacher),
            arguments.batch_size,
            arguments.max_side_px,
            folder=os.getcwd(),
        )
        check(local.path)  # here, where an error is a line: a Ray actor that cannot start is a page
        with Progress("rationales", plan.n_samples, "samples", already=already) as progress:
            job.run_on_ray(local, shards, arguments.workers, progress.advance)
        return
    from emollm.rationales.endpoint import EndpointTeacher

    teacher = EndpointTeacher(
        arguments.endpoint,
        arguments.teacher_model,
        storage.join(target.data, "rationales", job.RESPONSES),
        key=_key(arguments.api_key_env),
        workers=arguments.workers,
        request=_request(arguments),
    )
    with teacher, Progress("rationales", plan.n_samples, "samples", already=already) as progress:
        job.run_with(teacher, shards, target, progress.advance)
    print(f"rationales: {teacher.sent} requests sent to {urllib.parse.urlsplit(arguments.endpoint).hostname}")


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.isdir(path) else path


def _key(variable: str | None) -> str:
    """The key in an environment variable; empty where none is named. Raises RecipeError without showing it."""
    from emollm.config import RecipeError

    if variable is None:
        return ""
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", variable):
        raise RecipeError(
            "--api-key-env: give the name of an environment variable (A-Z, 0-9, _), not the key itself"
        )
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RecipeError(f"--api-key-env names {variable}, which is not set in the environment")
    return key


def describe(plan: Plan, target: Target, is_endpoint: bool) -> str:
    """What a run would ask, with the first sample's request in full."""
    from emollm.rationales import job, prompts

    n_samples = plan.n_samples
    lines = [
        f"{n_samples} samples in {len(plan.shards)} shards, to {job.store.folder(target.data, target.name)}",
        *(f"  {source} {task}: {count}" for (source, task), count in sorted(plan.counts.items())),
        f"teacher: {target.teacher['name']} ({target.teacher['kind']}), prompts {prompts.VERSION}",
        f"at most {2 * n_samples} {'requests' if is_endpoint else 'answers'}: one to write each rationale, one to check it",
    ]
    sample = job.read_samples(target.data, plan.shards[0])[0]
    lines += [f"for example {sample['uid']} is asked:", *_indented(prompts.written(sample))]
    lines += ["and then, without the media:", *_indented(prompts.checked(sample, "(its rationale, masked)"))]
    lines.append(f"which has to give: {prompts.expected(sample)}")
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  | {line}" for line in text.splitlines()]


def table(manifest: dict[str, Any]) -> str:
    """Counts per source and sub-task, and what the reasons mean."""
    from emollm.rationales.verify import REASONS

    lines, used = [], set()
    for source, tasks in sorted(manifest["counts"].items()):
        for task, entry in sorted(tasks.items()):
            reasons = sorted(entry["rejected"].items(), key=lambda pair: (-pair[1], pair[0]))
            used.update(entry["rejected"])
            why = ", ".join(f"{count} {reason}" for reason, count in reasons)
            rejected = sum(entry["rejected"].values())
            lines.append(
                f"{source} {task}: {entry['asked']} asked = {entry['accepted']} accepted + {rejected} rejected"
                + (f" ({why})" if why else "")
            )
    lines.append(
        f"all: {manifest['asked']} asked = {manifest['accepted']} accepted + {manifest['rejected']} rejected"
    )
    lines += [f"  {reason}: {REASONS[reason]}" for reason in REASONS if reason in used]
    return "\n".join(lines)
