"""What an evaluation would do: `emollm evaluate --dry-run`. No model is loaded, nothing is asked or written."""

from __future__ import annotations

from collections import Counter

from dataset_build import storage
from emollm.config import EvaluateRecipe
from emollm.evaluate import collect, plan
from emollm.evaluate.asking import Asking
from emollm.evaluate.models import ENDPOINT, read_model
from emollm.evaluate.protocol import EvaluationError, read_rows, select_rows
from emollm.evaluate.results import read_data_manifest
from emollm.evaluate.run import answers_path


def describe(model_path: str, data: str, out: str, recipe: EvaluateRecipe) -> str:
    """The plan as text: samples per sub-task and source, questions per pass, and how many have an answer already."""
    model, manifest = read_model(model_path, recipe), read_data_manifest(data)
    rows = read_rows(data, manifest)
    asked, left_out = select_rows(rows, recipe.split, recipe.sub_tasks, recipe.limit, model.protocols(rows))
    if not asked:
        raise EvaluationError(f"{data}: no row of split {recipe.split} in {', '.join(recipe.sub_tasks)}; widen the recipe")  # fmt: skip
    asking = Asking.of(recipe)
    lines = [
        f"model: {model_path} ({model.kind})",
        f"data: {data}, split {recipe.split}: {len(asked)} samples",
    ]
    for (sub_task, source), count in sorted(Counter((row.sub_task, row.source) for row in asked).items()):
        lines.append(f"  {sub_task:8} {source:20} {count}")
    lines += [f"left out, {reason.replace('_', ' ')}: {count}" for reason, count in sorted(left_out.items())]
    lines.append(
        f"asked: {asking.mode}, ablation {asking.ablation}, options as {asking.option_form}"
        f"{', calibrated' if asking.calibrate else ''}, at most {asking.max_new_tokens} generated tokens"
    )
    work = collect.make_plan(model, manifest["digest"], rows, asked, recipe)
    for name in dict.fromkeys(shard.pass_name for shard in work.shards):
        mine = [shard for shard in work.shards if shard.pass_name == name]
        questions = sum(len(shard.questions) for shard in mine)
        known = sum(len(s.questions) for s in mine if storage.exists(answers_path(out, s)))
        lines.append(f"pass {name}: {questions} questions, {known} of them answered already")
    if model.kind == ENDPOINT and recipe.endpoint is not None:
        media = {row.uid: len(row.media_kinds) for row in asked}
        shown = sum(media[q.uid] for s in work.shards if s.pass_name == plan.MODEL for q in s.questions)
        lines.append(
            f"endpoint: {recipe.endpoint.url}, {recipe.endpoint.concurrency} requests at once, "
            f"{shown} pictures and clips in the pass {plan.MODEL}"
        )
    lines.append(f"out: {out}")
    return "\n".join(lines)
