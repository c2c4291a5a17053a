"""`emollm export`: a trained fold, or a checkpoint of an unfinished training, as a folder that `from_pretrained` loads.

full      all weights, with LoRA beside those it changes; the logits are the same to the bit
merged    all weights, LoRA folded in; the logits are the same up to rounding (float32: 1e-5 in the tests)
adapter   the trained weights and a reference to the foundations, as training writes; LoRA also in peft's own format,
          in `lora/`, for the foundation alone (MVP is not in it)
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dataset_build import storage
from dataset_build.provenance import sha256_of_file
from emollm import model_card
from emollm.config import TrainRecipe, load_recipe
from emollm.model.base import EmoLLMBase
from emollm.model.load import load_model, load_processor
from emollm.train.loop import FOLD_FILE, RECIPE_FILE
from emollm.train.resume import METADATA

Form = Literal["full", "merged", "adapter"]
LORA_FOLDER = "lora"


class ExportError(ValueError):
    """A model that cannot be exported as asked; the message names the folder and the remedy."""


class Trained(NamedTuple):
    """A model and what is known of it."""

    model: EmoLLMBase
    processor: Any
    fold: dict[str, Any]  # the content of fold.json
    facts: dict[str, Any] | None  # that of card.json; None for a model trained before there was one
    digests: tuple[str, ...]  # by which an evaluation of it may name it


def export(
    source: str,
    destination: str,
    form: Form = "full",
    *,
    evaluation: str | None = None,
    recipe: str | None = None,
) -> str:
    """Write the model in `source` to the new folder `destination`; what the card says of scores, for people.

    `evaluation` is a folder with results.json, or one that holds `evaluation/results.json`; without it, one beside the
    run is taken if it is of this model. `recipe` is for checkpoints that do not say what trained them. Raises ExportError.
    """
    if storage.is_remote(destination):
        raise ExportError(f"{destination}: models are written to a local folder; export there and copy it")
    path = Path(destination)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ExportError(f"{destination}: is there already and not empty; give a new folder")
    trained = _from_checkpoint(source, recipe) if is_checkpoint(source) else _from_folder(source)
    results, said = _results(source, trained, evaluation)
    model = trained.model
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if form == "adapter":
            if model.config.foundations is None:
                raise ExportError(
                    f"{source}: holds all weights and refers to no foundations, so there is no adapter to take out of it; "
                    "export the fold that training wrote"
                )
            write_peft(model, partial / LORA_FOLDER)
        else:
            model.config.foundations = None
            if form == "merged":
                model.merge_lora()
        model.save_pretrained(partial)
        trained.processor.save_pretrained(partial)
        if trained.fold:  # which protocol's test rows it has not seen
            storage.write_json(str(partial / FOLD_FILE), trained.fold)
        model_card.write(partial, trained.facts, trained.fold, form, results)
        if path.exists():
            path.rmdir()
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return said


def _from_folder(source: str) -> Trained:
    folder = Path(source)
    if not (folder / "config.json").is_file():
        raise ExportError(
            f"{source}: no trained model there; give a fold that training wrote (OUT/fold-0), or a checkpoint of it "
            "(OUT/checkpoints/fold-0/step-000030)"
        )
    from emollm.evaluate.models import read_model

    digests = [read_model(source).digest]
    run = folder.resolve().parent / "training.json"
    if run.is_file() and folder.resolve().name.startswith("fold-"):
        digests.append(storage.read_json(str(run))["model_digest"])
    known = folder / model_card.FACTS
    return Trained(
        load_model(source),
        load_processor(source),
        storage.read_json(str(folder / FOLD_FILE)) if (folder / FOLD_FILE).is_file() else {},
        storage.read_json(str(known)) if known.is_file() else None,
        tuple(digests),
    )


# --- checkpoints -----------------------------------------------------------------------------------------------------


def is_checkpoint(folder: str) -> bool:
    """Is this a checkpoint's folder, whole or not? (`OUT/checkpoints/fold-0/step-000030`)"""
    return (Path(folder) / METADATA).is_file() or bool(re.fullmatch(r"step-\d+", Path(folder).resolve().name))


def _from_checkpoint(source: str, recipe_name: str | None) -> Trained:
    """The model of a checkpoint: the recipe's, with the checkpoint's weights in it. Raises ExportError."""
    from emollm.train.build import initial_model

    folder = Path(source).resolve()
    if not (folder / METADATA).is_file():
        raise ExportError(
            f"{source}: this checkpoint was not finished (no {METADATA}); give the one before it"
        )
    metadata = storage.read_json(str(folder / METADATA))
    for name, digest in metadata["files"].items():
        if not (folder / name).is_file() or sha256_of_file(str(folder / name)) != digest:
            raise ExportError(
                f"{folder / name}: missing or not as it was written, so this checkpoint is damaged; give the one before it"
            )
    recorded = folder.parent / RECIPE_FILE
    known = storage.read_json(str(recorded)) if recorded.is_file() else {}
    if recipe_name:
        recipe = load_recipe(recipe_name)
    elif known:
        recipe = TrainRecipe.model_validate(known["recipe"])
    else:
        raise ExportError(
            f"{recorded}: not there, so what this checkpoint belongs to is not known; give its recipe with --recipe"
        )
    weights = checkpoint_weights(str(folder), recipe.deepspeed.precision)
    model, processor = initial_model(recipe, recipe.seed)
    wanted = model.trained_names()  # a checkpoint may hold a tied head beside them
    if missing := sorted(wanted - set(weights)):
        raise ExportError(
            f"{source}: has no weights for {', '.join(missing[:3])} ({len(missing)} of {len(wanted)} are missing), which "
            f"the recipe {recipe.name} trains; give the recipe that it was trained with by --recipe"
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)
    fold: dict[str, Any] = {"checkpoint_step": metadata["step"]}
    if known:
        fold |= {"fold": known["fold"], "data_digest": known["card"]["data"]["digest"]}
    return Trained(model, processor, fold, known.get("card"), ())


def checkpoint_weights(folder: str, precision: str) -> dict[str, Tensor]:
    """The trained weights in a DeepSpeed checkpoint of any ZeRO stage, whole, as training would export them.

    Only tensors and plain values are unpickled. Raises ExportError for a file that holds anything else.
    """
    plain = Path(folder) / "mp_rank_00_model_states.pt"
    try:
        with _only_tensors():
            if plain.is_file():  # ZeRO 0, 1, 2: every rank has the whole module
                state: dict[str, Tensor] = torch.load(plain, map_location="cpu", weights_only=True)["module"]
            else:
                from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

                path = Path(folder)
                state = dict(
                    get_fp32_state_dict_from_zero_checkpoint(
                        str(path.parent), tag=path.name, exclude_frozen_parameters=True
                    )
                )
    except Exception as error:
        raise ExportError(f"{folder}: cannot be read as a DeepSpeed checkpoint: {error}") from error
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    return {name: tensor.detach().to(dtype) for name, tensor in state.items()}


@contextmanager
def _only_tensors() -> Iterator[None]:
    """DeepSpeed asks torch to unpickle anything; inside this, only tensors, plain values and the classes named here."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals(
            [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
        ):
            yield
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


# --- peft ------------------------------------------------------------------------------------------------------------


def write_peft(model: EmoLLMBase, folder: Path) -> None:
    """LoRA alone, in the format of `peft.PeftModel.from_pretrained(FOUNDATION, folder)`. Nothing where there is none.

    FOUNDATION is the language model of a composed model, the whole multimodal model of an attached one. What MVP adds to
    its visual tokens is not in it: for words alone its logits are the model's.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    if model.config.lora is None:
        return
    attached = model.config.model_type == "emollm_attached"
    root = "foundation." if attached else "language_model."
    tensors = {
        f"base_model.model.{name.removeprefix(root).replace('.default.', '.')}": value.detach()
        .cpu()
        .contiguous()
        for name, value in model.named_parameters()
        if ".lora_" in name
    }
    modules = sorted({name.removeprefix("base_model.model.").split(".lora_")[0] for name in tensors})
    lora, reference = model.config.lora, model.config.foundations or {}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=0.0,
        bias="none",
        target_modules=modules,  # by full name: a vision tower has layers of the same short ones
        base_model_name_or_path=reference.get("mllm" if attached else "language"),
        inference_mode=True,
        task_type=None if attached else "CAUSAL_LM",
    ).save_pretrained(str(folder))


# --- scores ----------------------------------------------------------------------------------------------------------


def _results(source: str, trained: Trained, evaluation: str | None) -> tuple[dict[str, Any] | None, str]:
    """(results.json of an evaluation of this model or None, what to say about it). Raises ExportError."""
    if evaluation is not None:
        places = [Path(evaluation), Path(evaluation) / "evaluation"]
    else:  # beside the run: OUT/fold-0 is evaluated as OUT, into `evaluation` beside OUT
        folder = Path(source).resolve()
        places = [folder.parent / "evaluation", folder.parent.parent / "evaluation"]
    found = next((place for place in places if (place / "results.json").is_file()), None)
    if found is None:
        if evaluation is not None:
            raise ExportError(
                f"{evaluation}: no results.json there; give the folder that `emollm evaluate` wrote"
            )
        return None, "no evaluation of it was found beside it, so the card has no scores"
    results: dict[str, Any] = storage.read_json(str(found / "results.json"))
    if results["model"]["digest"] in trained.digests:
        return results, f"scores in the card are those of {found}"
    if evaluation is not None:
        raise ExportError(
            f"{found}: is an evaluation of another model ({results['model']['path']}, digest "
            f"{results['model']['digest'][:16]}); evaluate {source} and name that"
        )
    return None, f"{found} is an evaluation of another model, so the card has no scores"
