"""Command line of dataset_build: sources, check, build, verify, stats, export, import."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

_CODES = "Exit codes: 0 done, 1 a problem with the data or their store, 2 a problem with the command or the recipe."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 1 a problem with the data or their store, 2 a problem with the command or recipe."""
    options = _parser().parse_args(arguments)
    from dataset_build.errors import UsageError

    try:
        return int(options.run(options))
    except UsageError as error:
        print(f"dataset_build: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `… | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        print(f"dataset_build: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("dataset_build: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dataset_build",
        description="Turn source data sets into EmoBench: one benchmark of pictures and clips with questions and answers.",
        epilog="in this order:\n"
        "  python -m dataset_build sources                       which data sets there are\n"
        "  python -m dataset_build sources mustard               what to download, licence, options\n"
        "  python -m dataset_build check mustard /data/MUStARD   is the folder complete?\n"
        "  python -m dataset_build build RECIPE.yaml --dry-run   what would be built\n"
        "  python -m dataset_build build RECIPE.yaml\n"
        "  python -m dataset_build verify OUT\n"
        "  python -m dataset_build stats OUT\n"
        "  python -m dataset_build export OUT llava DEST          for other programs\n\n" + _CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = _Commands(parser)
    _add_source_commands(commands)
    _add_build_commands(commands)
    _add_export_commands(commands)
    return parser


class _Commands:
    """The sub-commands of the parser: each with a sentence, examples and the exit codes in its help."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, what: str, *examples: str) -> argparse.ArgumentParser:
        lines = "".join(f"  python -m dataset_build {name} {example}\n" for example in examples)
        return self._commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"examples:\n{lines}\n{_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )


def _add_source_commands(commands: _Commands) -> None:
    sources = commands.add(
        "sources", "list the sources that recipes can name, or say all about one", "", "mustard"
    )
    sources.add_argument("name", nargs="?", help="one source: what to download, citation, limits, options")
    sources.set_defaults(run=_sources)

    check = commands.add(
        "check",
        "compare a folder with what a source should hold: rows, media files, first bytes of the files",
        "meld /data/MELD.Raw",
        "mustard s3://bucket/MUStARD --set split=speaker_dependent",
        "caer_s /data/CAER-S --full --json",
    )
    check.add_argument("source", help="a name that `sources` lists")
    check.add_argument(
        "root", help="the folder, or s3://BUCKET/PREFIX, that a recipe would name as the source's root"
    )
    check.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of the source, e.g. ask=both",
    )
    check.add_argument(
        "--full", action="store_true", help="read the first bytes of every file, not of an even sample"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(run=_check)


def _add_build_commands(commands: _Commands) -> None:
    build = commands.add(
        "build",
        "build EmoBench from a recipe; goes on where an earlier build stopped",
        "quickstart --dry-run",
        "my_recipe.yaml --set sources.jokes.options.per_label=20 --set seed=3",
        "my_recipe.yaml --set out=s3://bucket/emobench --workers 8",
    )
    build.add_argument("recipe", help="a YAML file, or the name of a shipped recipe (quickstart, smoke, …)")
    build.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the recipe; an entry of a list is addressed by its name",
    )
    build.add_argument(
        "--dry-run", action="store_true", help="read the annotations and say what would be done"
    )
    build.add_argument(
        "--workers", type=int, metavar="N", help="convert at most N shards at once (same result for any N)"
    )
    build.set_defaults(run=_build)

    verify = commands.add(
        "verify",
        "check a finished build against its manifest: digests, ledger, and every row read back",
        "runs/emobench",
        "runs/emobench --shallow",
    )
    verify.add_argument("out", help="the folder of the build")
    verify.add_argument("--shallow", action="store_true", help="digests and ledger only")
    verify.set_defaults(run=_verify)

    stats = commands.add(
        "stats", "print the ledger, labels, rejects and leakage of a finished build", "runs/emobench"
    )
    stats.add_argument("out", help="the folder of the build")
    stats.set_defaults(run=_stats)


def _add_export_commands(commands: _Commands) -> None:
    export = commands.add(
        "export",
        "write a finished build as LLaVA conversations, for Hugging Face datasets, or as WebDataset shards",
        "runs/emobench llava runs/emobench-llava",
        "runs/emobench datasets runs/emobench-hf --split train --split val",
        "s3://bucket/emobench webdataset s3://bucket/shards --source meld --source mustard",
    )
    export.add_argument("out", help="the folder of the build")
    export.add_argument("format", help="llava, datasets or webdataset")
    export.add_argument("dest", help="a folder of its own, or s3://BUCKET/PREFIX")
    export.add_argument(
        "--split", action="append", default=[], metavar="SPLIT", help="only this split (may be repeated)"
    )
    export.add_argument(
        "--source", action="append", default=[], metavar="NAME", help="only this source (may be repeated)"
    )
    export.add_argument(
        "--force", action="store_true", help="replace what an export writes in a folder that is not empty"
    )
    export.set_defaults(run=_export)

    back = commands.add(
        "import", "make a finished build from an export", "llava runs/emobench-llava runs/emobench-again"
    )
    back.add_argument("format", choices=["llava"], help="what `export` wrote")
    back.add_argument("folder", help="the folder of the export")
    back.add_argument("out", help="where the build goes")
    back.add_argument(
        "--force", action="store_true", help="replace what a build writes in a folder that is not empty"
    )
    back.set_defaults(run=_import)


def _build(options: argparse.Namespace) -> int:
    from dataset_build.errors import UsageError
    from dataset_build.recipe import load_recipe

    if options.workers is not None and options.workers < 1:
        raise UsageError(f"--workers {options.workers}: at least one is needed")
    recipe = load_recipe(options.recipe, options.set)
    from dataset_build import pipeline

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
    from dataset_build import catalogue

    print(catalogue.facts(options.name) if options.name else catalogue.table())
    return 0


def _check(options: argparse.Namespace) -> int:
    from dataset_build import catalogue

    catalogue.check_name(options.source)
    from dataset_build import check
    from dataset_build.recipe import adapter_options

    found = check.check(
        options.source, options.root, adapter_options(options.source, options.set), full=options.full
    )
    if options.json:
        import json

        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        print(check.report(found))
    return 0 if found.fine else 1


def _stats(options: argparse.Namespace) -> int:
    from dataset_build import card, manifest

    content = manifest.read_manifest(options.out)
    print(card.text_summary(content, card.collect(options.out, content)))
    return 0


def _export(options: argparse.Namespace) -> int:
    from dataset_build import export

    export.export(
        options.out, options.format, options.dest, options.split, options.source, force=options.force
    )
    return 0


def _import(options: argparse.Namespace) -> int:
    from dataset_build.exports import llava_import

    llava_import.import_build(options.folder, options.out, force=options.force)
    return 0


if __name__ == "__main__":
    sys.exit(main())
