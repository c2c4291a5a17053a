"""From real pictures to a scored model with one command: `python -m infra.quickstart` (or `make quickstart`).

Fetches samples and models, starts the local services, runs the flow retrain-emollm/quickstart and shows its log, prints
the scores, and stops what it started. Interrupted at any point and started again, it goes on from where it was.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.progress import duration
from infra.prefect_api import FINAL_STATES, ApiError, PrefectApi
from infra.servers import PROJECT_ROOT, ServiceError

if TYPE_CHECKING:
    import psutil

    from infra.services import Services

STEPS = 6
_CANCEL_PATIENCE_S = 45.0
# How long the last log lines of a run may take to arrive.
_LAST_LINES_S = 4.0
_SILENCE_S = 30.0
_WARNING = 30
# Which of Ray's processes printed the line.
_RAY_PREFIX = re.compile(r"^\((?:\w+ )?pid=\d+(?:, ip=[\d.:a-f]+)?\)(?: |$)")
_BOILERPLATE = (
    "Worker '",
    "Running 1 deployment pull step",
    "Executing deployment step",
    "Deployment step '",
    "All deployment steps",
    "Created task run",
)


class QuickstartFailed(ValueError):
    """The quickstart could not finish; the message says where to look."""


class WorkerGone(QuickstartFailed):
    """What ran the flow has died, so that its run would stay open for ever."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM: stop what was started, then leave."""


def say(step: int, text: str) -> None:
    print(f"\n[{step}/{STEPS}] {text}", flush=True)


def run(recipe: str, parameters: dict[str, Any], home: Path, with_samples: bool) -> None:
    """Do all steps. Raises QuickstartFailed or ServiceError, after stopping what was started."""
    from infra.memory import PeakMemory

    began, tree = time.monotonic(), _OwnProcesses()
    with PeakMemory(tree) as memory:
        say(1, "samples and models")
        if with_samples:
            _prepare_samples()
        if _nothing_to_do(recipe, parameters, home):
            print("nothing changed: data, model and scores are those of today's samples, recipes and code\n")
            summarise(recipe, parameters)
        else:
            _retrain(recipe, parameters, home, tree)
    spent, peak = duration(time.monotonic() - began), memory.peak_bytes / 1024**3
    print(f"\nfinished after {spent}, peak memory {peak:.1f} GiB", flush=True)


def _retrain(recipe: str, parameters: dict[str, Any], home: Path, tree: _OwnProcesses) -> None:
    from infra import services as local

    say(2, "local services: Prefect server, worker, Ray head")
    services = local.Services.load(home)
    ours = not services.all_healthy() or _left_by_dead_quickstart(home)
    if ours:
        storage.write_bytes(str(_owner_file(home)), str(os.getpid()).encode())
    try:
        services = local.up(home)
        tree.services = services
        say(3, "deployments")
        if not ours:
            local.register(services)
        local.print_how_to(services)
        say(4, f"flow retrain-emollm/{recipe}: build, train, evaluate, promote")
        result = run_flow(services, f"retrain-emollm/{recipe}", parameters)
        say(5, "scores")
        summarise(recipe, parameters)
        _print_places(services, result)
    finally:
        if ours:
            say(6, "stopping the local services (`make up` keeps them running)")
            _ignoring_signals(lambda: local.down(home))
            _owner_file(home).unlink(missing_ok=True)
        else:
            say(6, "the local services were up before and stay up (`make down` ends them)")


class _OwnProcesses:
    """This process, its children, and the services' processes: what peak memory is taken over."""

    def __init__(self) -> None:
        self.services: Services | None = None

    def __call__(self) -> list[psutil.Process]:
        import psutil

        from infra import servers

        me = psutil.Process()
        found = {process.pid: process for process in [me, *me.children(recursive=True)]}
        roots = self.services.processes() if self.services else []
        for root in roots:
            found |= {process.pid: process for process in servers.descendants(root)}
        return list(found.values())


def run_flow(services: Services, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Run the deployment and show its log until it ends; an open run of it is followed instead of starting another.

    When interrupted, cancels the run (which stops its Ray job) before the interruption goes on. Raises
    QuickstartFailed where the run does not complete.
    """
    assert services.prefect
    api = services.api
    deployment_id = api.deployment_id(deployment)
    flow_run = api.open_run_of(deployment_id)
    if flow_run and flow_run["parameters"].items() >= parameters.items():
        print(f"following the run {flow_run['name']} that is already under way", flush=True)
    else:
        flow_run = api.start(deployment_id, parameters)
    run_id = str(flow_run["id"])
    print(f"Prefect page of this run: {services.prefect.page_url}/runs/flow-run/{run_id}", flush=True)
    try:
        finished = _follow(api, run_id, lambda: _anyone_runs_it(services))
    except WorkerGone:
        raise  # nobody is left who could take a cancellation; the next start of the services tidies up
    except BaseException:
        _ignoring_signals(lambda: _cancel(api, run_id))
        raise
    if finished["state_type"] != "COMPLETED":
        raise QuickstartFailed(
            f"the flow run ended as {finished['state_name']}: {finished['state'].get('message') or 'no message'}\n"
            f"Its log: {services.prefect.page_url}/runs/flow-run/{run_id} (while the services are up, `make up`)"
        )
    return finished


def _anyone_runs_it(services: Services) -> bool:
    """Whether the worker or a flow run that it started is alive."""
    from infra import servers

    return services.worker is not None and bool(servers.family(services.worker))


def _follow(api: PrefectApi, run_id: str, alive: Callable[[], bool]) -> dict[str, Any]:
    """Print the log lines of the run and the runs it calls as they come; returns the finished run.

    Raises WorkerGone where the run has been silent for a while and nothing is `alive` that could end it.
    """
    shown: dict[str, int] = {}
    silent_since = time.monotonic()
    failures, ended = 0, 0.0
    while True:
        try:
            state = api.run(run_id)
            for each in [run_id, *api.children(run_id)]:
                for line in api.logs([each], shown.get(each, 0)):
                    shown[each] = shown.get(each, 0) + 1
                    silent_since = time.monotonic()
                    _show(line.level, line.message)
            failures = 0
        except ApiError:
            failures += 1
            if failures > 30:  # about a minute
                raise
            time.sleep(2)
            continue
        if state["state_type"] in FINAL_STATES:
            # The run's process sends its last lines in a batch, which may arrive after its final state.
            ended = ended or time.monotonic()
            if time.monotonic() - ended > _LAST_LINES_S:
                return state
        if time.monotonic() - silent_since > _SILENCE_S:
            if not alive():
                raise WorkerGone(
                    "the Prefect worker and its flow run ended without a word (out of memory?); "
                    "run the same command again to go on"
                )
            silent_since = time.monotonic()
            print(f"  ... {state['state_name'].lower()}", flush=True)
        time.sleep(1.0)


def _show(level: int, message: str) -> None:
    """A message without tracebacks (Prefect's page has them); what Prefect says about every run alike is left out."""
    if level < _WARNING and message.startswith(_BOILERPLATE):
        return
    if "Traceback (most recent call last)" in message:
        message = (
            message.split("Traceback (most recent call last)")[0].strip() or message.strip().splitlines()[-1]
        )
    prefix = "  ! " if level >= _WARNING else "  "
    for line in message.splitlines():
        text = _RAY_PREFIX.sub("", line)
        if text.strip():
            print(f"{prefix}{text}", flush=True)


def _cancel(api: PrefectApi, run_id: str) -> None:
    print("\ncancelling the flow run and its Ray job; what is finished is kept", flush=True)
    try:
        api.set_state(run_id, "CANCELLING", "the quickstart was interrupted")
        until = time.monotonic() + _CANCEL_PATIENCE_S
        while time.monotonic() < until and api.run(run_id)["state_type"] not in FINAL_STATES:
            time.sleep(0.5)
    except ApiError as error:
        print(f"the run could not be cancelled: {error}", file=sys.stderr)


def _nothing_to_do(recipe: str, parameters: dict[str, Any], home: Path) -> bool:
    """Whether everything is up to date already, so that no service needs to be started to find that out."""
    (home / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))  # importing flows must not write elsewhere
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from flows.retrain_emollm import up_to_date

    return up_to_date(recipe, parameters.get("build_overrides", []), parameters.get("train_overrides", []))


def summarise(recipe: str, parameters: dict[str, Any]) -> None:
    """The score table, what was decided about the model, and where everything is."""
    import json

    from emollm.config import load_recipe
    from flows.artifacts import score_rows

    train_recipe = load_recipe(recipe, parameters.get("train_overrides", []))
    runs = Path(train_recipe.out).parent
    _print_table(score_rows(storage.read_json(str(runs / "evaluation" / "results.json"))))
    history = storage.read_bytes(str(runs / "registry" / "history.jsonl")).decode().strip().splitlines()
    decision = json.loads(history[-1])
    print(f"\nmodel:          {decision['decision']} ({decision['reason']})")
    print(f"report:         {(runs / 'evaluation' / 'report.html').resolve()}")
    print(f"EmoBench card:  {(Path(train_recipe.data) / 'README.md').resolve()}", flush=True)


def _print_places(services: Services, finished: dict[str, Any]) -> None:
    assert services.prefect and services.ray
    print(
        f"Prefect page:   {services.prefect.page_url}/runs/flow-run/{finished['id']} (while the services are up)"
    )
    print(f"Ray dashboard:  {services.ray.dashboard_url} (token: {services.ray.token_path})", flush=True)


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="accuracy with 95 % interval (gain: paired difference to the baseline)")
    columns = [name for name in rows[0] if any(str(row[name]) for row in rows)]
    for name in columns:
        table.add_column(name.replace("_", "-"), overflow="fold")
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)


def _prepare_samples() -> None:
    """In a process of its own: converting the models takes memory that would stay with this one."""
    code = subprocess.call([sys.executable, "-m", "infra.samples"], cwd=PROJECT_ROOT)
    if code:
        raise QuickstartFailed(
            "samples or models are missing (see above); run the same command again to go on"
        )


def _owner_file(home: Path) -> Path:
    return home / "quickstart.pid"


def _left_by_dead_quickstart(home: Path) -> bool:
    """Whether the running services were started by a quickstart that was killed, so that this one must end them."""
    import psutil

    path = _owner_file(home)
    return path.exists() and not psutil.pid_exists(int(path.read_text() or 0))


def _ignoring_signals(work: Any) -> None:
    """Clean-up that a second Ctrl-C does not cut short."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        work()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise Interrupted(signal.Signals(number).name)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.quickstart", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--recipe", default="quickstart", help="deployment of retrain-emollm (default: %(default)s)"
    )
    parser.add_argument("--home", help="folder of the local services' state (default: .local/services)")
    parser.add_argument(
        "--set-build", action="append", default=[], metavar="KEY=VALUE", help="change the build recipe"
    )
    parser.add_argument(
        "--set-train", action="append", default=[], metavar="KEY=VALUE", help="change the train recipe"
    )
    parser.add_argument("--no-samples", action="store_true", help="do not fetch samples and models")
    chosen = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    parameters: dict[str, Any] = {"recipe": chosen.recipe}
    if chosen.set_build:
        parameters["build_overrides"] = chosen.set_build
    if chosen.set_train:
        parameters["train_overrides"] = chosen.set_train
    home = Path(chosen.home).resolve() if chosen.home else PROJECT_ROOT / ".local" / "services"
    os.chdir(PROJECT_ROOT)
    try:
        run(chosen.recipe, parameters, home, with_samples=not chosen.no_samples)
    except (QuickstartFailed, ServiceError, ApiError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted ({stop}); run the same command again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
