"""`python -m emollm`: train, export, predict, evaluate, report, rationales. Nothing heavy is imported until a command runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

DONE, DATA_PROBLEM, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="emollm", description="Train, export, try and score EmoLLM.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_export(commands)
    _add_predict(commands)
    _add_serve(commands)
    from emollm.evaluate.cli import add_subcommands

    add_subcommands(commands)
    from emollm.rationales.cli import add_subcommand

    add_subcommand(commands)
    chosen = parser.parse_args(arguments)
    try:
        return int(chosen.run(chosen) or DONE)
    except ValueError as error:
        from emollm.config import RecipeError

        print(f"emollm {chosen.command}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, RecipeError) else DATA_PROBLEM


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train",
        help="train a recipe on a finished EmoBench",
        description="Train all folds of a recipe with Ray Train and DeepSpeed. Killed and started again, it goes on "
        "from the newest whole checkpoint; started again when done, it says that nothing changed.",
    )
    train.add_argument("recipe", help="a YAML file, or the name of a shipped recipe")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override, e.g. tune.epochs=2",
    )
    train.add_argument("--force", action="store_true", help="train again what is trained already")
    train.add_argument(
        "--allow-world-size-change",
        action="store_true",
        help="go on from checkpoints that another number of workers wrote",
    )
    train.add_argument(
        "--allow-code-change",
        action="store_true",
        help="go on from checkpoints that an earlier version of this code wrote; fold.json says so",
    )
    train.add_argument(
        "--dry-run", action="store_true", help="print rows, steps, parameters and memory, and stop"
    )
    train.set_defaults(run=_train)


def _add_export(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser(
        "export",
        help="write a trained fold or a checkpoint as a folder to keep, with a model card",
        description="Write a trained fold, or a checkpoint of an unfinished training, as a folder that from_pretrained "
        "loads, with a model card (README.md). Without an option it holds all weights and needs no foundation beside it.",
    )
    export.add_argument(
        "model",
        metavar="CKPT",
        help="a trained fold (runs/quickstart/model/fold-0) or a checkpoint (OUT/checkpoints/fold-0/step-000030)",
    )
    export.add_argument("destination", metavar="DEST", help="a new folder")
    form = export.add_mutually_exclusive_group()
    form.add_argument(
        "--merge", action="store_true", help="all weights, LoRA folded into the language model's"
    )
    form.add_argument(
        "--adapter",
        action="store_true",
        help="the trained weights alone, with a reference to the foundations; LoRA also as peft has it",
    )
    export.add_argument(
        "--evaluation",
        metavar="RUN",
        help="what `emollm evaluate` wrote of this model, for the scores in the card (default: `evaluation` beside the run)",
    )
    export.add_argument(
        "--recipe", metavar="RECIPE", help="for a checkpoint without recipe.json beside it: what trained it"
    )
    export.set_defaults(run=_export)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = commands.add_parser(
        "predict",
        help="ask a trained model about pictures and videos",
        description="Print the answer for each picture or video, and how probable each option is.",
    )
    predict.add_argument("paths", nargs="+", metavar="IMAGE_OR_VIDEO")
    predict.add_argument(
        "--model", default="runs/quickstart/model/fold-0", help="a trained fold, or an export of one"
    )
    predict.add_argument("--task", default="emo_c", help="sub-task (default: emo_c)")
    predict.add_argument(
        "--options", help="labels to choose from, separated by commas (default: those of the task)"
    )
    predict.add_argument("--text", default="", help="words that go with the picture or video")
    predict.add_argument(
        "--frames", type=int, default=4, help="frames taken of a video (default: 4, as a build does)"
    )
    predict.add_argument(
        "--explain",
        action="store_true",
        help="also let the model reason aloud (EmoPrompt), and print what it answers behind its reasoning",
    )
    predict.set_defaults(run=_predict)


def _add_serve(commands: argparse._SubParsersAction) -> None:
    serve = commands.add_parser(
        "serve",
        help="answer OpenAI-compatible chat completions with a model",
        description="Answer OpenAI-compatible chat completions (pictures as data URLs) greedily, on loopback.",
    )
    serve.add_argument("--model", required=True, help="a trained fold, an export, or hf:NAME_OR_FOLDER")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback)")
    serve.add_argument("--port", type=int, default=8399, help="port (default: 8399; 0 takes a free one)")
    serve.add_argument("--name", help="what clients call the model (default: the folder's name)")
    serve.set_defaults(run=_serve)


def _train(arguments: argparse.Namespace) -> int:
    from emollm.config import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.overrides)
    from emollm.train import run

    if arguments.dry_run:
        from emollm.train import estimate

        print(estimate.describe(recipe))
    else:
        run.train(
            recipe,
            force=arguments.force,
            allow_world_size_change=arguments.allow_world_size_change,
            allow_code_change=arguments.allow_code_change,
        )
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from emollm.export import export

    form: Any = "merged" if arguments.merge else "adapter" if arguments.adapter else "full"
    said = export(
        arguments.model,
        arguments.destination,
        form,
        evaluation=arguments.evaluation,
        recipe=arguments.recipe,
    )
    print(f"exported to {arguments.destination}; {said}")
    return DONE


def _serve(arguments: argparse.Namespace) -> int:
    from emollm.serve import serve

    serve(arguments.model, arguments.host, arguments.port, arguments.name)
    return DONE


def _predict(arguments: argparse.Namespace) -> int:
    from emollm.predict import Predictor, default_options

    options = [word.strip() for word in arguments.options.split(",")] if arguments.options else None
    options = options or default_options(arguments.task)
    predictor = Predictor(arguments.model)
    for path in arguments.paths:
        prediction = predictor.predict(path, arguments.task, options, arguments.text, arguments.frames)
        print(f"{path}: {prediction.answer}")
        _print_shares(prediction.probabilities)
        if arguments.explain:
            told = predictor.explain(path, arguments.task, options, arguments.text, arguments.frames)
            print(f"  reasoning: {told.reasoning or '(none)'}{'' if told.whole else ' ...'}")
            print(f"  behind the reasoning: {told.prediction.answer}")
            _print_shares(told.prediction.probabilities)
    if arguments.explain and predictor.processor.prompt == "direct":
        print("this model was trained with prompt: direct, so nothing has taught it to reason aloud")
    return DONE


def _print_shares(probabilities: dict[str, float]) -> None:
    for option, probability in sorted(probabilities.items(), key=lambda pair: -pair[1]):
        print(f"  {probability:6.1%}  {option}")


if __name__ == "__main__":
    sys.exit(main())
