"""Errors for the person who runs a build. The command line prints them without a traceback."""

from __future__ import annotations

from dataset_build import schema


class UsageError(ValueError):
    """The command or the recipe is wrong: nothing was read. Exit code 2."""


class BuildError(ValueError):
    """The data cannot become EmoBench as asked: names what was found and what to do. Exit code 1."""


class StorageError(BuildError):
    """A store (`s3://`) refused or did not answer, retries included, or this machine ran out of something: names the
    path or row. The same command goes on later."""


class MediaError(ValueError):
    """A file that cannot be used. `reason` is a reject reason, the message says what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in schema.REJECT_REASONS:
            raise AssertionError(f"{reason!r} is not a reject reason")
        super().__init__(detail)
        self.reason = reason
