"""What a flow run prints, where nobody reads it any more."""

from __future__ import annotations

import os


def outlive_the_reader() -> None:
    """Go on where the worker, which reads this process's output through a pipe, has died.

    Prefect prints log lines through rich, and rich answers a closed pipe with SystemExit: that would end the flow and
    stop its Ray job, days of training perhaps. The lines still reach the Prefect server.
    """
    from rich.console import Console

    def fall_silent(console: Console) -> None:
        console.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        os.close(nowhere)

    Console.on_broken_pipe = fall_silent  # type: ignore[assignment]
