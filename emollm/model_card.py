"""README.md of a trained model, as a Hugging Face model card: what it is made of, learned from, scores, and may not do.

Training writes `card.json` (what only the training knows) and the card into every fold's folder; `emollm export` copies
the one and renders the other anew, with scores where an evaluation is named. Nothing in them depends on time or place:
local folders appear by their last name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataset_build import storage
from dataset_build.labels import SUB_TASK_NAMES
from emollm.config import FOUNDATION_PARTS, TrainRecipe
from emollm.data.folds import validating_folds

CARD, FACTS = "README.md", "card.json"
DEMONSTRATION = "demonstration, separable by style"
# Words by which a licence keeps a source from commercial use, or from being passed on.
_RESTRICTED = re.compile(
    r"non-?commercial|research|academic|\bNC\b|no licence|no data licence|no redistribution|third part",
    re.IGNORECASE,
)
# As the models' pages on the hub state it; what is not here is to be looked up there.
_FOUNDATION_LICENCES = {
    "lmsys/vicuna-7b-v1.5": "Llama 2 Community License Agreement",
    "llava-hf/llava-1.5-7b-hf": "Llama 2 Community License Agreement",
    "openai/whisper-small": "Apache-2.0",
    "Qwen/Qwen2.5-VL-7B-Instruct": "Apache-2.0",
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": "Apache-2.0",
}
_PARTS = {
    "vision": "vision tower",
    "language": "language model",
    "audio": "audio encoder",
    "mllm": "multimodal model",
}
_FORMS = {
    "light": "the trained weights alone; the foundations are loaded beside them",
    "full": "all weights; it needs no foundation beside it",
    "merged": "all weights, LoRA folded into the language model's; it needs no foundation beside it",
    "adapter": "the trained weights alone; the foundations are loaded beside them. `lora/` holds LoRA in peft's format",
}


def facts(
    recipe: TrainRecipe,
    keys: Sequence[str],
    taken: Iterable[int],
    manifest: Mapping[str, Any],
    foundations: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of `card.json`.

    `keys` is `source/sub_task` of every training row of the protocol, `taken` the numbers of those that the first epoch
    takes, `foundations` what a light folder's config refers to.
    """
    plain = recipe.model_dump(mode="json", exclude={"out", "data", "evaluate", "workers"})
    for part in FOUNDATION_PARTS:
        plain["foundation"][part] = _name(plain["foundation"][part])
    rows, used = Counter(keys), Counter(keys[number] for number in taken)
    sources = {
        name: {**fact, "rows": {split: counts["kept"] for split, counts in manifest["sources"][name].items()}}
        for name, fact in manifest.get("source_facts", {}).items()
    }
    return {
        "recipe": plain,
        "foundations": {
            part: {"name": _name(foundations[part]), "digest": digest}
            for part, digest in foundations["digests"].items()
        },
        "data": {
            "name": manifest.get("recipe", {}).get("name", "EmoBench"),
            "digest": manifest["digest"],
            "rows": {key: [rows[key], used[key]] for key in sorted(rows)},
            "sources": sources,
            "fold_val": bool(validating_folds(manifest)),
            "warnings": list(manifest.get("warnings", ())),
        },
    }


def write(
    folder: str | Path,
    known: Mapping[str, Any] | None,
    fold: Mapping[str, Any],
    form: str,
    results: Mapping[str, Any] | None = None,
) -> None:
    """Write the card, and `card.json` where the facts are known. `fold` is the content of `fold.json`."""
    if known is not None:
        storage.write_json(str(Path(folder) / FACTS), known)
    text = render(known, fold, form, results)
    storage.write_bytes(str(Path(folder) / CARD), text.encode())


def render(
    known: Mapping[str, Any] | None,
    fold: Mapping[str, Any],
    form: str,
    results: Mapping[str, Any] | None = None,
) -> str:
    """The card. `known`: `facts`, or None for a model that was trained without; `results`: results.json of its evaluation."""
    import yaml

    front = yaml.safe_dump(_front_matter(known, form, results), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{front}---",
        _head(known, fold, form),
        _use(known),
        _made_of(known, fold),
        _data(known, fold),
        _scores(results),
        _restrictions(known),
        _limits(known, results),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def restricted(licence: str) -> bool:
    """Does the text of a source's licence keep it from commercial use or from being passed on?"""
    return bool(_RESTRICTED.search(licence))


def _front_matter(
    known: Mapping[str, Any] | None, form: str, results: Mapping[str, Any] | None
) -> dict[str, Any]:
    front: dict[str, Any] = {
        # What is inside has licences of its own: foundations and sources.
        "license": "other",
        "license_name": "foundations-and-sources",
        "license_link": CARD,
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["emollm", "emotion-recognition", "affective-computing", "multimodal"],
        "datasets": ["emobench"],
    }
    hub = [part["name"] for part in (known or {}).get("foundations", {}).values() if "/" in part["name"]]
    if hub:
        front["base_model"] = hub
        front["base_model_relation"] = "adapter" if form in ("light", "adapter") else "finetune"
    if results:
        front["metrics"] = ["accuracy", "f1"]
        name = known["recipe"]["name"] if known else results["name"]
        front["model-index"] = [{"name": f"EmoLLM {name}", "results": _index(results)}]
    return front


def _index(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = []
    for sub_task, entry in results["sub_tasks"].items():
        if not entry["n"]:
            continue
        note = f" ({DEMONSTRATION})" if entry["demonstration"] else ""
        metrics = [
            {"type": kind, "name": name, "value": round(value, 4)}
            for kind, name, value in (
                ("accuracy", "Accuracy", entry["accuracy"]),
                ("f1", "Macro-F1", entry["macro_f1"]),
            )
            if value is not None
        ]
        entries.append(
            {
                "task": {"type": "image-text-to-text", "name": f"{SUB_TASK_NAMES[sub_task]}{note}"},
                "dataset": {
                    "type": "emobench",
                    "name": "EmoBench",
                    "split": results["split"],
                    "revision": results["data_digest"][:16],
                },
                "metrics": metrics,
            }
        )
    return entries


def _head(known: Mapping[str, Any] | None, fold: Mapping[str, Any], form: str) -> str:
    name = known["recipe"]["name"] if known else "a trained model"
    number = f", fold {fold['fold']}" if "fold" in fold else ""
    unfinished = ""
    if "checkpoint_step" in fold:
        unfinished = f"\n\n> **Not finished.** This is a checkpoint after step {fold['checkpoint_step']}, not the end of the training."
    return f"""# EmoLLM: {name}{number}

A multimodal language model that answers questions about feelings, intents, hate, humour and sarcasm in pictures, clips
and words. It adds Multi-perspective Visual Projection (MVP) to foundation models, after the idea of EmoLLM
(arXiv 2406.16442), whose authors released no code, data or weights: design and numbers here are this project's own.

This folder holds {_FORMS[form]}.{unfinished}"""


def _use(known: Mapping[str, Any] | None) -> str:
    attached = known is not None and known["recipe"]["foundation"]["family"] == "attached"
    auto = "AutoModelForImageTextToText" if attached else "AutoModelForCausalLM"
    return f"""## Use

```python
from emollm.model.load import load_model, load_processor  # this project's code; it also registers the Auto classes
model, processor = load_model("FOLDER"), load_processor("FOLDER")  # or {auto}.from_pretrained("FOLDER")
```

or `python -m emollm predict PICTURE_OR_CLIP --model FOLDER --task emo_c`.

**Intended use**: research on how models read affect in pictures, clips and words, with material of people who know of it
and agree, or of nobody (drawings, art). Other uses are not intended; see *Limits* and *Law* below."""


def _made_of(known: Mapping[str, Any] | None, fold: Mapping[str, Any]) -> str:
    if known is None:
        return (
            "## What it is made of\n\nNot recorded: the model was trained before trainings wrote this down."
        )
    rows = [
        [
            _PARTS[part],
            f"`{found['name']}`",
            _FOUNDATION_LICENCES.get(found["name"], "see its own page"),
            f"`{found['digest'][:16]}`",
        ]
        for part, found in known["foundations"].items()
    ]
    recipe, tune = known["recipe"], known["recipe"]["tune"]
    off = [name for name in ("content", "relation") if not recipe["mvp"][name]]
    learns = (
        f"LoRA of rank {recipe['lora']['rank']} in the language model"
        if recipe["lora"]
        else "all weights of the language model"
        if recipe["full_language"]
        else "nothing of the language model"
    )
    lines = [
        "## What it is made of\n",
        _table(["part", "foundation", "licence", "digest of its files"], rows),
        f"\nLearned: MVP (inner width {recipe['mvp']['width']}, {recipe['mvp']['content_queries']} content queries, "
        f"{recipe['mvp']['neighbours']} nearest patches{'; switched off: ' + ', '.join(off) if off else ''}) and {learns}; "
        "the other weights of the foundations are theirs.",
        f"Trained with prompt style `{recipe['prompt']}`, {tune['epochs']} {'epoch' if tune['epochs'] == 1 else 'epochs'}, batches of {tune['batch_size']} rows, "
        f"learning rates {tune['learning_rate']:g} and {tune['projector_learning_rate']:g} (MVP), "
        f"{recipe['deepspeed']['precision']}, ZeRO {recipe['deepspeed']['stage']}, seed {recipe['seed']}.",
    ]
    if fold.get("steps"):
        lines.append(
            f"{fold['steps']:,} steps over {fold['samples_seen']:,} rows; mean loss of the last steps {fold['final_loss']:.3f}."
        )
    if opened := fold.get("perspectives"):
        shares = ", ".join(f"{name} {share:.1%}" for name, share in opened.items())
        lines.append(
            f"How far MVP's perspectives opened (norm of each one's contribution, relative to the scene's): {shares}."
        )
    return "\n".join(lines)


def _data(known: Mapping[str, Any] | None, fold: Mapping[str, Any]) -> str:
    if known is None:
        return f"## Training data\n\nEmoBench with digest `{fold.get('data_digest', 'unknown')}`."
    data, sources = known["data"], known["data"]["sources"]
    rows = []
    for key, (there, taken) in data["rows"].items():
        source, sub_task = key.split("/")
        fact = sources.get(source, {})
        note = DEMONSTRATION if fact.get("demonstration") else ""
        rows.append([f"`{source}`", SUB_TASK_NAMES[sub_task], f"{there:,}", f"{taken:,}", note])
    parts = [
        f"## Training data\n\nEmoBench `{data['name']}`, digest `{data['digest'][:16]}`.",
        _table(["source", "sub-task", "training rows", "taken an epoch", "note"], rows),
        _held_out(data, fold),
        *(f"> **Warning: leaking sources.** {warning}" for warning in data["warnings"]),
    ]
    if sources:
        counts = [
            [f"`{name}`", fact["title"], *(f"{fact['rows'].get(split, 0):,}" for split in ("train", "val", "test")),
             fact["licence"], fact["citation"]]
            for name, fact in sources.items()
        ]  # fmt: skip
        head = ["source", "what", "train", "val", "test", "licence", "cite"]
        said = "All sources of this EmoBench, with the rows of each split"
        if any(fact.get("folds") for fact in sources.values()):
            said += " (of sources with folds, as fold 0 has them)"
        parts.append(f"{said}:\n\n{_table(head, counts)}")
    return "\n\n".join(part for part in parts if part)


def _held_out(data: Mapping[str, Any], fold: Mapping[str, Any]) -> str:
    sources = data["sources"]
    folded = [name for name, fact in sources.items() if fact.get("folds")]
    number = fold.get("fold", 0)
    said = "Held out: the rows of the splits val and test"
    if folded:
        named = ", ".join(f"`{name}` (one of {sources[name]['folds']})" for name in folded)
        said += f", and of the sources with folds, {named}, those of fold {number}"
        said += " and, for validation, those of the fold after it" if data["fold_val"] else ""
    whole = [name for name, fact in sources.items() if fact.get("groups_whole") and fact.get("group_key")]
    if whole:
        named = ", ".join(f"`{name}` ({sources[name]['group_key']})" for name in whole)
        said += f". No group of these is on both sides: {named}"
    return f"{said}."


def _scores(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "## Scores\n\nNone in this card: name an evaluation with `emollm export … --evaluation RUN`."
    rows = []
    for sub_task, entry in results["sub_tasks"].items():
        title = SUB_TASK_NAMES[sub_task]
        if not entry["n"]:
            rows.append([title, 0, "–", "–", "–", entry.get("note", "")])
            continue
        note = DEMONSTRATION if entry["demonstration"] else entry.get("note", "")
        rows.append(
            [title, f"{entry['n']:,}", _share(entry), _percent(entry["macro_f1"]), _against(entry), note]
        )
    overall = results["overall"]
    if overall["accuracy"] is not None:
        title = f"mean of {len(overall['sub_tasks'])}"
        rows.append(
            [f"**{title}**", "", f"**{_share(overall)}**", "", _against(overall), "without demonstrations"]
        )
    folds = results["model"]["folds"]
    by = (
        f"Each row was answered by the model of {len(folds)} that had not seen its fold, so the scores are of all of them "
        "together, not of this one alone."
        if folds and len(folds) > 1
        else "Scored with this model alone."
    )
    return (
        f"## Scores\n\nEmoBench, split {results['split']}, {results['n']:,} samples, data digest "
        f"`{results['data_digest'][:16]}`. {by} Empty and unreadable answers count as wrong.\n\n"
        + _table(["sub-task", "n", "accuracy (95 % interval)", "macro-F1", "baselines: accuracy; model minus it", "note"], rows)
        + "\n\nIntervals are bootstrap intervals over groups of related samples; those of differences are paired."
    )  # fmt: skip


def _share(entry: Mapping[str, Any]) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in entry["ci95"])
    return f"{_percent(entry['accuracy'])} ({low} to {high})"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _against(entry: Mapping[str, Any]) -> str:
    cells = []
    for name, other in entry.get("baselines", {}).items():
        low, high = (f"{100 * bound:+.1f}" for bound in other["diff_ci95"])
        said = f"{name.replace('_', ' ')} {_percent(other['accuracy'])}; {100 * other['diff']:+.1f} ({low} to {high})"
        cells.append(said)
    return "<br>".join(cells) or "–"


def _restrictions(known: Mapping[str, Any] | None) -> str:
    text = """## Licences and restrictions

The foundations' licences hold for their weights, and so for what is made of them."""
    if known is None:
        return f"{text} What it was trained on is not recorded; assume that commercial use is not allowed."
    sources = known["data"]["sources"]
    used = {key.split("/")[0] for key in known["data"]["rows"]}
    strict = [name for name in sources if name in used and restricted(sources[name]["licence"])]
    if strict:
        listed = "\n".join(f"* `{name}`: {sources[name]['licence']}" for name in strict)
        return (
            f"{text} Sources that it learned from **do not allow commercial use, or do not say that they do**; whether a model "
            f"trained on them may be used or passed on is for those terms to say:\n\n{listed}"
        )
    if sources:
        return f"{text} No licence text of the sources that it learned from forbids commercial use; some want attribution (table above)."
    return f"{text} The licences of its sources are not recorded in its EmoBench; ask whoever built it."


def _limits(known: Mapping[str, Any] | None, results: Mapping[str, Any] | None) -> str:
    shown = known["data"]["sources"] if known else {}
    demonstrations = sorted({
        SUB_TASK_NAMES[sub_task]
        for fact in shown.values() if fact["demonstration"] for sub_task in fact["sub_tasks"]
    } | {
        SUB_TASK_NAMES[name]
        for name, entry in (results or {"sub_tasks": {}})["sub_tasks"].items() if entry.get("demonstration")
    })  # fmt: skip
    text = """## Limits

An answer says what annotators of the sources would probably call a picture. It is no measurement of what a person feels:
how a face looks and what is felt differ between people, cultures and situations, and labels carry the annotators' habits.
Do not use it to decide about people, to diagnose, or without the knowledge of those who are shown. It was not tested for
equal quality over age, gender, skin colour or culture."""
    if demonstrations:
        text += f"""

**Demonstration sub-tasks** ({", ".join(demonstrations)}): rows of these sources can be told apart by their style, so a score
on them shows that the path works, not that the model understands the sub-task."""
    if shown:
        text += "\n\nWhat is known of the sources:\n\n"
        text += "\n".join(f"* `{name}`: {fact['limits']}" for name, fact in shown.items())
    return text + _LAW


_LAW = """

## Law

Emotion recognition is restricted by law in some settings. In the European Union, Regulation (EU) 2024/1689 (AI Act)

* defines an emotion recognition system as one that identifies or infers emotions or intentions of natural persons on the
  basis of their biometric data (Article 3(39));
* prohibits AI systems that infer emotions of a natural person in the areas of workplace and education institutions, except
  where the use is intended for medical or safety reasons (Article 5(1)(f));
* lists systems intended to be used for emotion recognition as high-risk, in so far as their use is permitted at all
  (Annex III, point 1(c));
* requires deployers to inform the persons who are exposed to such a system of its operation (Article 50(3)).

This is a summary and no legal advice; read the current text, and the law of the place where the model is used."""


def _name(path: str | None) -> str:
    """A hub name as it is; of a local folder its last name."""
    if not path:
        return ""
    local = path.startswith((".", "/")) or path.count("/") > 1
    return Path(path).name if local else path


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *(line(row) for row in rows)])
