"""What can be scored: a trained EmoLLM, any transformers image-text-to-text model, any OpenAI-compatible endpoint.

`--model` is a folder that `emollm train` or `export` wrote; `hf:NAME_OR_FOLDER` (a folder with another model is recognised
without the prefix); or `openai:MODEL`, asked at the recipe's endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataset_build import storage
from dataset_build.provenance import sha256_of_file, sha256_of_json
from emollm.evaluate.protocol import EvaluationError, Row

if TYPE_CHECKING:
    from emollm.config import EvaluateRecipe

EMOLLM, TRANSFORMERS, ENDPOINT = "emollm", "transformers", "endpoint"
KINDS = (EMOLLM, TRANSFORMERS, ENDPOINT)
HF_PREFIX, OPENAI_PREFIX = "hf:", "openai:"
_OWN_TYPES = ("emollm", "emollm_attached")


@dataclass(frozen=True)
class Model:
    """What is scored. `path` is where it is loaded from, or the endpoint's name of it.

    `folds` is None for a single model: an EmoLLM then answers what `protocol` tests and no more. Models of other kinds
    were not trained on EmoBench by us, so they answer the test rows of every protocol.
    """

    path: str
    name: str
    digest: str
    inputs_digest: str | None
    data_digest: str | None
    folds: tuple[int, ...] | None
    recipe: dict[str, Any] | None
    protocol: int = 0
    kind: str = EMOLLM

    def protocols(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """The protocols whose test rows the model may be asked."""
        if self.kind == EMOLLM:
            return self.folds or (self.protocol,)
        ends = [(row.fold or 0) + 1 for row in rows] + [row.n_folds or 1 for row in rows]
        return tuple(range(max(ends, default=1)))


def kind_of(spec: str) -> str:
    """The kind of model that a `--model` argument names; a folder that is not there counts as an EmoLLM."""
    for prefix, kind in ((HF_PREFIX, TRANSFORMERS), (OPENAI_PREFIX, ENDPOINT)):
        if spec.startswith(prefix):
            return kind
    config = storage.join(spec, "config.json")
    if storage.exists(config) and not storage.exists(storage.join(spec, "training.json")):
        return EMOLLM if storage.read_json(config).get("model_type") in _OWN_TYPES else TRANSFORMERS
    return EMOLLM


def default_out(spec: str, recipe: EvaluateRecipe, narrowed: Sequence[str] = ()) -> str:
    """Where results go if not told: beside an EmoLLM, else below `runs/`; one folder per fold, mode and ablation.

    `narrowed`: what was asked for beside the recipe, as `limit=10`. A look at ten rows has a folder of its own and
    leaves the answers to all rows alone.
    """
    name = spec.rstrip("/").rpartition("/")[2]
    ways: list[str] = [name] if re.fullmatch(r"fold-\d+", name) else []
    ways += [re.sub(r"\W+", "_", one).strip("_") for one in narrowed]
    ways += [recipe.mode] if recipe.mode != "likelihood" else []
    ways += [recipe.ablation] if recipe.ablation != "none" else []
    ways += ["calibrated"] if recipe.calibrate else []
    ways += [f"as_{recipe.option_form}"] if recipe.option_form != "asked" else []
    folder = "-".join(["evaluation", *ways])
    if kind_of(spec) == EMOLLM:
        return storage.join(spec.rstrip("/").rpartition("/")[0] or ".", folder)
    plain = spec.removeprefix(HF_PREFIX).removeprefix(OPENAI_PREFIX)
    name = re.sub(r"[^\w.-]+", "_", plain.rstrip("/")).strip("_.")
    return storage.join("runs", name, folder)


def read_model(spec: str, recipe: EvaluateRecipe | None = None) -> Model:
    """The model that `spec` names; an endpoint is the one of the recipe. Raises EvaluationError naming what is missing."""
    kind = kind_of(spec)
    if kind == ENDPOINT:
        return _endpoint(spec.removeprefix(OPENAI_PREFIX), recipe)
    if kind == TRANSFORMERS:
        return _foreign(spec.removeprefix(HF_PREFIX))
    if storage.exists(storage.join(spec, "training.json")):
        return _training(spec)
    if not storage.exists(storage.join(spec, "config.json")):
        raise EvaluationError(
            f"{spec}: neither training.json nor config.json is there; give a folder that `emollm train` wrote, "
            f"hf:NAME for a model of the hub, or openai:NAME with --endpoint URL"
        )
    fold_path = storage.join(spec, "fold.json")
    fold = storage.read_json(fold_path) if storage.exists(fold_path) else {}
    return Model(
        spec, _last(spec), _digest_of_folder(spec), None, fold.get("data_digest"), None, None, fold.get("fold", 0)
    )  # fmt: skip


def _training(path: str) -> Model:
    training_path = storage.join(path, "training.json")
    training = storage.read_json(training_path)
    folds = tuple(sorted(int(fold["fold"]) for fold in training["folds"]))
    if not folds:
        raise EvaluationError(f"{training_path}: names no fold; train again")
    for fold in training["folds"]:
        if fold["path"] != f"fold-{fold['fold']}" or not storage.exists(
            storage.join(path, fold["path"], "config.json")
        ):
            raise EvaluationError(
                f"{path}/{fold['path']}: named in training.json, but no model is there; train again"
            )
    return Model(
        path, training["recipe"]["name"], training["model_digest"], training["inputs_digest"], training["data_digest"],
        folds, training["recipe"],
    )  # fmt: skip


def _foreign(path: str) -> Model:
    if not path:
        raise EvaluationError("hf: names no model; write hf:NAME_OR_FOLDER")
    from transformers import AutoModelForImageTextToText

    from emollm.model.foundations import read_config

    config = read_config(path, "evaluation")  # raises where there is none
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise EvaluationError(
            f"{path}: a {config.model_type!r} model is not one that takes pictures and answers in words; "
            "transformers calls those image-text-to-text"
        )
    if storage.exists(storage.join(path, "config.json")):
        digest = _digest_of_folder(path)
    else:
        digest = sha256_of_json({"hub": path, "revision": config._commit_hash})
    return Model(path, _last(path), digest, None, None, None, None, kind=TRANSFORMERS)


def _endpoint(name: str, recipe: EvaluateRecipe | None) -> Model:
    if not name:
        raise EvaluationError("openai: names no model; write openai:MODEL, as the endpoint calls it")
    if recipe is None or recipe.endpoint is None:
        raise EvaluationError(f"openai:{name} is asked at an endpoint; name it with --endpoint URL")
    if recipe.mode != "generate":
        raise EvaluationError(
            f"openai:{name}: an endpoint gives no probabilities of options; score what it generates with --mode generate"
        )
    digest = sha256_of_json({"model": name, "url": recipe.endpoint.url.rstrip("/")})
    return Model(name, name, digest, None, None, None, None, kind=ENDPOINT)


def _digest_of_folder(path: str) -> str:
    files = [name for name in storage.list_files(path) if not name.startswith(("log/", "."))]
    return sha256_of_json({name: sha256_of_file(storage.join(path, name)) for name in files})


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]
