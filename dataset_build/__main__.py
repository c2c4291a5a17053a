"""Command line of dataset_build: build, verify, sources, stats."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 1 a problem with the data, 2 a problem with the command or recipe."""
    options = _parser().parse_args(arguments)
    from dataset_build.errors import UsageError

    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"dataset_build: {error}", file=sys.stderr)
        return 2
    except (ValueError, OSError) as error:
        print(f"dataset_build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dataset_build: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dataset_build", description="Turn source data sets into EmoBench."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build", help="build EmoBench from a recipe; goes on where an earlier build stopped"
    )
    build.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (quickstart, smoke)")
    build.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, e.g. sources.jokes.options.per_label=20",
    )
    build.add_argument(
        "--dry-run", action="store_true", help="read the annotations and say what would be done"
    )
    build.add_argument(
        "--workers", type=int, metavar="N", help="convert at most N shards at once (same result for any N)"
    )
    build.set_defaults(run=_build)

    verify = commands.add_parser("verify", help="check a finished build: digests, ledger, every row")
    verify.add_argument("out", help="the folder of the build")
    verify.add_argument("--shallow", action="store_true", help="digests and ledger only")
    verify.set_defaults(run=_verify)

    sources = commands.add_parser("sources", help="list the sources that recipes can name")
    sources.set_defaults(run=_sources)

    stats = commands.add_parser("stats", help="print the ledger, labels and rejects of a finished build")
    stats.add_argument("out", help="the folder of the build")
    stats.set_defaults(run=_stats)
    return parser


def _build(options: argparse.Namespace) -> int:
    from dataset_build import pipeline
    from dataset_build.errors import UsageError
    from dataset_build.recipe import load_recipe

    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least one is needed")
    recipe = load_recipe(options.recipe, options.set)
    if options.dry_run:
        pipeline.dry_run(recipe)
    else:
        pipeline.build(recipe, workers=options.workers)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from dataset_build import manifest

    problems = manifest.verify(options.out, deep=not options.shallow)
    for problem in problems:
        print(problem)
    if problems:
        print(f"{options.out}: {len(problems)} problems; build it again", file=sys.stderr)
        return 1
    content = manifest.read_manifest(options.out)
    print(f"{options.out}: {len(content['files'])} files verified, digest {content['digest']}")
    return 0


def _sources(options: argparse.Namespace) -> int:
    from dataset_build import ledger, sources

    rows = [["source", "sub-tasks", "split", "licence", "what"]]
    for name in sources.REGISTRY:
        adapter = sources.adapter(name)
        rows.append([name, ", ".join(adapter.SUB_TASKS), adapter.SPLIT, adapter.LICENCE, adapter.TITLE])
    print(ledger.aligned(rows, right_from=99))
    return 0


def _stats(options: argparse.Namespace) -> int:
    from dataset_build import card, manifest

    content = manifest.read_manifest(options.out)
    print(card.text_summary(content, card.collect(options.out, content)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
