"""Errors for the person who runs a build. The command line prints them without a traceback."""

from __future__ import annotations


class UsageError(ValueError):
    """The command or the recipe is wrong: nothing was read. Exit code 2."""


class BuildError(ValueError):
    """The data cannot become EmoBench as asked: names what was found and what to do. Exit code 1."""


class StorageError(BuildError):
    """A store (`s3://`) refused or did not answer, retries included, or this machine ran out of something: names the
    path or row. The same command goes on later."""
