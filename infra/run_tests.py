"""Runs all tests but the slow ones in two processes beside each other: `python -m infra.run_tests [PYTEST ARGUMENTS]`.

One runs the files that need servers (marker `servers`, see tests/conftest.py) and is seen as it runs; the output of the
other one follows. Arguments go to both. It fails if either does; Ctrl-C reaches both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

NO_TESTS = 5  # pytest.ExitCode.NO_TESTS_COLLECTED
CHOSEN = "not slow and not gpu"


def main() -> int:
    command = [sys.executable, "-m", "pytest", *sys.argv[1:]]
    with tempfile.TemporaryFile() as output:
        others = subprocess.Popen(
            [*command, "-m", f"{CHOSEN} and not servers", "-o", "cache_dir=.pytest_cache/others"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            status = subprocess.call([*command, "-m", f"{CHOSEN} and servers"])
        finally:
            status_of_others = others.wait()
            output.seek(0)
            sys.stdout.flush()
            print("\nthe tests that need no servers:", flush=True)
            sys.stdout.buffer.write(output.read())
    found = {status, status_of_others} - {NO_TESTS} or {NO_TESTS}  # arguments may leave one without any
    return max(found)


if __name__ == "__main__":
    sys.exit(main())
