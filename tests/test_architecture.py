"""The house rules that no single module can hold: who imports whom, and how fast `--help` answers."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
ROOMS = ("flows", "emollm", "dataset_build", "infra")
SHARED = {"schema", "labels", "media", "storage", "provenance", "progress", "ray_local", "chat"}
ENTRY_POINTS = (
    "dataset_build",
    "dataset_build build",
    "dataset_build verify",
    "dataset_build sources",
    "dataset_build check",
    "dataset_build stats",
    "emollm",
    "emollm train",
    "emollm evaluate",
    "emollm report",
    "emollm export",
    "emollm predict",
    "emollm rationales",
    "emollm serve",
    "infra.services",
    "infra.deploy",
    "flows.registry",
    "flows.orphans",
    "infra.quickstart",
    "infra.samples",
    "infra.check_manifests",
)


def modules(room: str) -> list[Path]:
    found = sorted((PROJECT / room).rglob("*.py"))
    assert found, f"{room} has no modules: the rule would hold over nothing"
    return found


def imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"relative import in line {node.lineno}: this project imports by full name"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def imports(path: Path, only_at_import_time: bool = False) -> Iterator[str]:
    """Dotted names that a module imports; those inside functions are left out with `only_at_import_time`."""

    def visit(node: ast.AST) -> Iterator[str]:
        if only_at_import_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if only_at_import_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        yield from imported_names(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from visit(ast.parse(path.read_text(), str(path)))


def in_room(name: str, room: str) -> bool:
    return name == room or name.startswith(room + ".")


def test_dataset_build_knows_neither_the_model_nor_the_flows() -> None:
    for path in modules("dataset_build"):
        for name in imports(path):
            assert not any(in_room(name, room) for room in ("emollm", "flows", "infra")), (
                f"{path}: imports {name}"
            )


def test_emollm_sees_only_the_shared_modules_of_dataset_build() -> None:
    for path in modules("emollm"):
        for name in imports(path):
            assert not any(in_room(name, room) for room in ("flows", "infra")), f"{path}: imports {name}"
            if in_room(name, "dataset_build"):
                assert name.split(".")[1] in SHARED, f"{path}: imports {name}; allowed are {sorted(SHARED)}"


def test_flows_use_neither_torch_nor_ray_data() -> None:
    heavy = ("torch", "transformers", "deepspeed", "ray.data", "ray.train")
    for path in modules("flows"):
        for name in imports(path):
            assert not any(in_room(name, library) for library in heavy), f"{path}: imports {name}"


def test_flows_import_only_configuration_and_records_from_the_other_rooms() -> None:
    allowed = {
        "dataset_build": SHARED | {"recipe", "manifest", "errors"},
        "emollm": {"config"},
    }
    for path in modules("flows"):
        for name in imports(path, only_at_import_time=True):
            for room, light in allowed.items():
                if in_room(name, room):
                    assert name.split(".")[1] in light, f"{path}: imports {name} when it is imported"


def test_modules_stay_small() -> None:
    for room in ROOMS:
        for path in modules(room):
            lines = len(path.read_text().splitlines())
            assert lines <= 450, f"{path.relative_to(PROJECT)} has {lines} lines: it is more than one noun"


@pytest.mark.parametrize("command", ENTRY_POINTS)
def test_help_answers_in_half_a_second_of_cpu_without_torch(command: str) -> None:
    module, *words = command.split()
    script = (
        "import runpy, sys\n"
        f"sys.argv = [{module!r}, *{words!r}, '--help']\n"
        "try:\n"
        f"    runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'transformers', 'ray', 'prefect', 'deepspeed'} & set(sys.modules)\n"
        "assert not heavy, f'--help imported {heavy}'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def run() -> tuple[subprocess.CompletedProcess[str], float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return result, (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)

    run()  # byte-compiles: what a user pays once
    result, cpu_seconds = run()
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    assert cpu_seconds < 0.5, f"{command} --help took {cpu_seconds:.2f} s of CPU time"
