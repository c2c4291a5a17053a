"""A flow run goes on when its worker, the reader of its output, is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys, time
from pathlib import Path
from rich.console import Console
if sys.argv[1] == "outlive":
    from flows.console import outlive_the_reader
    outlive_the_reader()
console = Console(file=sys.stderr)
console.print("first")
sys.stdin.readline()  # until the reader is gone
for _ in range(3):
    console.print("nobody reads this")
print("nor this", flush=True)
Path(sys.argv[2]).write_text("went on")
"""


def ends_with(how: str, done: Path) -> int:
    """The exit code of a process whose output's reader goes away while it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how, str(done)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout and process.stdin
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stdin.write(b"gone\n")
    process.stdin.close()
    return process.wait(timeout=30)


def test_a_process_whose_reader_died_goes_on(tmp_path: Path) -> None:
    assert ends_with("outlive", tmp_path / "done") == 0
    assert (tmp_path / "done").read_text() == "went on"


def test_without_that_rich_ends_it(tmp_path: Path) -> None:
    assert ends_with("as it is", tmp_path / "done") != 0
    assert not (tmp_path / "done").exists()
