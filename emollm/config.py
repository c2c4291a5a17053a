"""Recipes: one class per component, composed into `TrainRecipe` and `EvaluateRecipe`.

A recipe is one YAML file. A new knob goes into its owner's class here, and nowhere else. `load_recipe` names the
nearest valid key where a key is unknown; the digest functions say what makes two trainings or evaluations the same.
This module imports neither torch nor ray, so that flows and command lines can read it cheaply.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from dataset_build import storage
from dataset_build.provenance import code_digest, sha256_of_file, sha256_of_json
from dataset_build.schema import SUB_TASKS
from emollm.component import Component, RecipeError, known_sub_tasks
from emollm.evaluate.recipe import ENDPOINT_PACE, EvaluateRecipe
from emollm.rationales.store import finished

RECIPE_FOLDER = Path(__file__).resolve().parent / "recipes"
FOUNDATION_PARTS = ("vision", "language", "audio", "mllm")
# What `emollm` may import of dataset_build, and so what of it can change a trained model.
SHARED_MODULES = ("schema", "labels", "media", "storage", "provenance", "progress")
# What neither trains nor scores: it may change without either being done again.
AFTER_TRAINING = tuple(
    f"emollm/{name}" for name in ("__main__", "predict", "serve", "export", "model_card", "rationales")
)


# Keys that say how a training runs, not what it learns: it may be gone on with, or be finished, under other values. The
# number of workers moves the last bits of the weights (1e-5); a checkpoint knows its own.
HOW_IT_RUNS = {
    "workers": ("count", "cpus", "memory_gib", "max_failures"),
    "checkpoint": ("every_steps", "keep", "background"),
    "tune": ("log_every",),
}


class FoundationConfig(Component):
    """Which pretrained parts the model is made of, as transformers folders or hub names.

    *composed*: `vision`, `language` and, if it shall hear, `audio`. *attached*: `mllm`, a multimodal model whose own
    projector MVP wraps (LLaVA-1.5, LLaVA-OneVision, Qwen2.5-VL, SmolVLM).
    """

    family: Literal["composed", "attached"] = "composed"
    vision: str = ""
    language: str = ""
    mllm: str = ""
    max_side_px: int | None = Field(
        default=None,
        ge=28,
        description="attached families with pictures of any size: largest side of a square",
    )
    image_size: int = Field(
        default=112, ge=8, description="pixels; pictures are resized to a square of this side"
    )
    audio: str | None = Field(
        default=None, description="a Whisper folder or hub name; without one, the sound of clips is left out"
    )
    tokens_per_audio: int = Field(default=16, ge=1, description="a sound is averaged to so many tokens")
    chat: Literal["own", "language"] = Field(
        default="own",
        description="composed: this project's chat format, the same for all language models and with `Answer:` before "
        "the answer, or the language model's own, where its tokenizer has a template",
    )

    @model_validator(mode="after")
    def _parts_of_the_family(self) -> FoundationConfig:
        wanted = {"composed": ("vision", "language"), "attached": ("mllm",)}[self.family]
        if missing := [part for part in wanted if not getattr(self, part)]:
            raise ValueError(f"the {self.family} family needs {', '.join(missing)}")
        foreign = {"composed": ("mllm",), "attached": ("vision", "language", "audio")}[self.family]
        if extra := [part for part in foreign if getattr(self, part)]:
            raise ValueError(f"the {self.family} family takes no {', '.join(extra)}")
        return self


class MVPConfig(Component):
    """Multi-perspective Visual Projection; `content` and `relation` can be switched off one by one."""

    content: bool = True
    relation: bool = True
    time: bool = Field(default=True, description="frames of a video get a learned projection of their time")
    width: int = Field(default=128, ge=4, description="inner width of the content and relation perspectives")
    heads: int = Field(default=4, ge=1)
    content_queries: int = Field(default=8, ge=1, description="K learned queries of the content perspective")
    neighbours: int = Field(
        default=4, ge=0, description="nearest patches in feature space, beside the spatial ones"
    )
    tokens_per_image: int = Field(
        default=16, ge=1, description="a square number; patches are averaged down to it"
    )
    tokens_per_frame: int = Field(default=4, ge=1, description="the same for one frame of a video")

    @model_validator(mode="after")
    def _check(self) -> MVPConfig:
        for name in ("tokens_per_image", "tokens_per_frame"):
            value = getattr(self, name)
            if round(value**0.5) ** 2 != value:
                raise ValueError(f"{name} must be a square number (1, 4, 9, 16, ...), not {value}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class LoRAConfig(Component):
    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AlignConfig(Component):
    """Stage 1: the mean visual token is pulled towards the LM's input embedding of the label word (supervised)."""

    steps: int = Field(default=150, ge=0)
    batch_size: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    temperature: float = Field(default=0.07, gt=0)
    sub_tasks: tuple[str, ...] = ("emo_c", "emo_o", "intent")

    @model_validator(mode="after")
    def _check(self) -> AlignConfig:
        known_sub_tasks(self.sub_tasks)
        return self


class TuneConfig(Component):
    """Stage 2: MVP in full and LoRA on the language model; loss on the answers only."""

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=8, ge=1, description="rows per optimizer step, over all workers together")
    micro_batch: int = Field(default=8, ge=1, description="rows per forward pass of one worker")
    packing: bool = True
    pack_tokens: int = Field(
        default=512, ge=1, description="a packed sequence holds at most this many tokens"
    )
    pack_pictures: int = Field(
        default=0, ge=0, description="and at most this many pictures and frames; 0: as many as fit"
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="of the language model's LoRA weights")
    projector_learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    warmup_share: float = Field(
        default=0.1, ge=0, lt=1, description="share of the steps with a rising learning rate"
    )
    final_share: float = Field(
        default=0.1, ge=0, le=1, description="the cosine ends at this share of the learning rate"
    )
    clip_norm: float = Field(default=1.0, ge=0, description="0 switches gradient clipping off")
    cache_gib: float = Field(
        default=2.0, ge=0, description="memory per worker for features of the frozen vision tower"
    )
    activation_checkpointing: bool = Field(
        default=False, description="compute activations again in the backward pass instead of keeping them"
    )
    log_every: int = Field(default=2, ge=1, description="steps between two log lines (and reports to Ray)")


class LoaderConfig(Component):
    """How rows reach the step. Only the two shuffle keys change what is learned; see `emollm.data.plan`."""

    decode_workers: int = Field(
        default=0,
        ge=0,
        description="processes per worker that read rows and decode media; 0: the worker itself",
    )
    prefetch: int = Field(default=2, ge=1, description="steps that each decode worker is ahead")
    shuffle_rows: int = Field(
        default=4096,
        ge=0,
        description="rows (of whole row groups) mixed at a time; data with no more rows, or 0: all",
    )
    shuffle_files: int = Field(default=16, ge=1, description="files whose row groups are mixed at a time")
    memory_mib: int = Field(
        default=512, ge=1, description="row groups kept by each decode worker (or by the worker itself)"
    )
    cache_folder: str = Field(
        default="",
        description="where copies of remote files lie, shared by the workers of a node; empty: below its temporary folder",
    )
    cache_gib: float = Field(
        default=50.0, gt=0, description="size of that folder; least recently used go first"
    )


# Loader keys that change when a row comes, but neither which nor what it holds: not part of a training's digest.
LOADER_SPEED = {"decode_workers", "prefetch", "memory_mib", "cache_folder", "cache_gib"}


class DeepSpeedConfig(Component):
    stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    offload_optimizer: bool = False
    offload_parameters: bool = Field(default=False, description="ZeRO 3 only")
    bucket_size: int = Field(default=50_000_000, ge=1000)

    @model_validator(mode="after")
    def _check(self) -> DeepSpeedConfig:
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"offload_parameters needs stage 3, not {self.stage}")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("offload_optimizer needs stage 1, 2 or 3")
        return self


class WorkersConfig(Component):
    count: int = Field(default=2, ge=1)
    cpus: float = Field(default=1, gt=0)
    gpus: float = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1, description="OpenMP threads of one worker")
    memory_gib: float = Field(default=3.0, gt=0, description="what Ray reserves for one worker")
    max_failures: int = Field(
        default=3, ge=0, description="how often the worker group is started again after a loss"
    )


class CheckpointConfig(Component):
    every_steps: int = Field(default=15, ge=1)
    keep: int = Field(default=2, ge=2, description="whole checkpoints kept; two, so that one can be damaged")
    background: bool = Field(default=True, description="write while training goes on, from a copy in memory")


class EarlyStopConfig(Component):
    """Stop once the validation rows' score has not got better for a while; the weights of the best score are exported.

    The rule: a score is better if it beats the best so far by more than `min_delta`; after `patience` scores in a row
    that are not better, training stops. `loss` is the mean per supervised token, `accuracy` the share of rows whose
    whole answer greedy decoding gives. The validation rows are those of the protocol (`emollm.data.folds`).
    """

    every_steps: int = Field(ge=1, description="optimizer steps between two scores")
    metric: Literal["loss", "accuracy"] = "loss"
    patience: int = Field(default=3, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class TrainRecipe(Component):
    """Everything a training needs. `data` is an EmoBench folder, `out` receives the model; neither is in the digest.

    `mix` says how many rows of `source/sub_task` one epoch takes: a whole number of rows (at most all), a weight with a
    decimal point (0.3: three rows in ten; 2.5: every row two or three times, five times in two epochs), or "all" (the
    default for those not named); see `emollm.data.plan.epoch_rows`. `folds` is "all", or the protocols to train (an EmoBench without folds has protocol 0 only).
    """

    name: str
    data: str
    out: str
    seed: int = 0
    folds: Literal["all"] | tuple[int, ...] = "all"
    foundation: FoundationConfig
    mvp: MVPConfig = MVPConfig()
    lora: LoRAConfig | None = LoRAConfig()
    full_language: bool = Field(
        default=False, description="all weights of the language model learn; lora must be null then"
    )
    prompt: Literal["direct", "emoprompt", "mixed"] = Field(
        default="direct", description="how questions are asked; mixed is asked directly after training"
    )
    mixed_share: float = Field(
        default=0.5, ge=0, le=1, description="mixed: this share of the training rows is asked directly"
    )
    rationales: str | None = Field(
        default=None,
        pattern=r"^\w[\w.-]*$",
        description="name of rationales beside the data, which rows say before their answer",
    )
    mix: dict[str, Literal["all"] | int | float] = {}
    align: AlignConfig = AlignConfig()
    tune: TuneConfig = TuneConfig()
    loader: LoaderConfig = LoaderConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stop: EarlyStopConfig | None = None
    evaluate: EvaluateRecipe = EvaluateRecipe()

    @model_validator(mode="after")
    def _check(self) -> TrainRecipe:
        if self.full_language and self.lora is not None:
            raise ValueError("full_language tunes all weights of the language model: set lora to null")
        if self.full_language and self.foundation.family != "attached":
            raise ValueError("full_language is for attached foundations; composed ones learn through lora")
        if self.rationales is not None and self.prompt == "direct":
            raise ValueError("rationales are said under prompt emoprompt or mixed, not under direct")
        for key, amount in self.mix.items():
            source, _, sub_task = key.partition("/")
            if not source or sub_task not in SUB_TASKS:
                raise ValueError(
                    f"mix: {key!r} is not source/sub_task with a sub_task of {', '.join(SUB_TASKS)}"
                )
            if amount != "all" and not 0 <= amount < float("inf"):
                raise ValueError(
                    f"mix: {key}: {amount!r} is neither a number of rows (48), a weight (0.3, 2.0), nor all"
                )
        return self


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> TrainRecipe:
    """The recipe in a YAML file, or a shipped one by name, with `KEY=VALUE` overrides applied.

    KEY is dotted (`tune.epochs`), VALUE is read as YAML. Raises RecipeError naming file, key, value and remedy.
    """
    import yaml

    path = recipe_path(name_or_path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of keys to values, not {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    try:
        return TrainRecipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{path}: " + "; ".join(_explain(problem) for problem in error.errors())) from error


def evaluate_recipe(overrides: Sequence[str] = ()) -> EvaluateRecipe:
    """An EvaluateRecipe of default values with `KEY=VALUE` overrides, where no recipe file is named."""
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override)
    try:
        return EvaluateRecipe.model_validate(values)
    except ValidationError as error:
        explained = "; ".join(_explain(problem, EvaluateRecipe) for problem in error.errors())
        raise RecipeError(f"evaluate: {explained}") from error


def recipe_path(name_or_path: str) -> Path:
    """The YAML file that `name_or_path` means: a path, or the name of a shipped recipe."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        return path
    shipped = {file.stem: file for file in sorted(RECIPE_FOLDER.glob("*.yaml"))}
    if name_or_path not in shipped:
        raise RecipeError(f"no shipped recipe named {name_or_path!r}; there are: {', '.join(shipped)}")
    return shipped[name_or_path]


def _apply_override(values: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {override!r}: write KEY=VALUE, for example --set tune.epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {key}: {text!r} is not a YAML value: {error}") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
            value = float(value) if value[:1].isdigit() and "e" in value.lower() else value
    here = values
    parts = key.split(".")
    for part in parts[:-1]:
        here = here.setdefault(part, {})
        if not isinstance(here, dict):
            raise RecipeError(f"--set {key}: {part!r} is a plain value, it has no keys below it")
    here[parts[-1]] = value


def _explain(problem: Any, root: type[Component] | None = None) -> str:
    """One validation problem as `key: what is wrong, and the nearest valid key`."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        valid = _keys_below(location[:-1], root or TrainRecipe)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.0)
        hint = f"; did you mean {'.'.join([*location[:-1], near[0]])!r}?" if near else ""
        return f"unknown key {key!r}{hint}"
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    # A check of a whole section names the value itself, or does not for a reason (a URL with a password in it).
    whole = problem["type"] == "value_error" and isinstance(problem["input"], dict)
    found = "" if whole else f" (found {problem['input']!r})"
    return f"{key}: {problem['msg']}{found}" if key else str(problem["msg"])


def _keys_below(location: list[str], root: type[Component]) -> list[str]:
    model: Any = root
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def foundation_digest(path: str) -> str:
    """Digest of the files of one foundation folder; of the name itself where it is a hub name."""
    if not Path(path).is_dir():
        return sha256_of_json({"hub": path})
    names = [name for name in storage.list_files(path) if not name.startswith(".")]
    return sha256_of_json({name: sha256_of_file(storage.join(path, name)) for name in names})


def _shared_code() -> dict[str, str]:
    folder = Path(storage.__file__).resolve().parent
    files = {name: folder / f"{name}.py" for name in SHARED_MODULES}
    return {name: sha256_of_file(str(file)) for name, file in files.items() if file.exists()}


def train_inputs_digest(recipe: TrainRecipe, data_digest: str) -> str:
    """The digest of `train_inputs`."""
    return sha256_of_json(train_inputs(recipe, data_digest))


def train_inputs(recipe: TrainRecipe, data_digest: str) -> dict[str, Any]:
    """What makes two trainings the same: recipe (without places and the evaluate part), data, rationales, foundations,
    code. Raises RationalesError where the rationales that the recipe names are not there or are of other data."""
    plain = recipe.model_dump(
        mode="json", exclude={"out": True, "data": True, "evaluate": True, "loader": LOADER_SPEED}
    )
    if recipe.rationales is not None:
        plain["rationales"] = finished(recipe.data, recipe.rationales, data_digest)["digest"]
    for part, keys in HOW_IT_RUNS.items():
        for key in keys:
            del plain[part][key]
    for part in FOUNDATION_PARTS:
        if plain["foundation"][part]:
            plain["foundation"][part] = foundation_digest(plain["foundation"][part])
    left_out = ("emollm/evaluate", "emollm/recipes", *AFTER_TRAINING)
    code = {"emollm": code_digest(["emollm"], leave_out=left_out), "dataset_build": _shared_code()}
    return {"recipe": plain, "data": data_digest, "code": code}


def evaluate_inputs_digest(recipe: EvaluateRecipe, model_digest: str, data_digest: str) -> str:
    """What makes two evaluations the same: the evaluate recipe, the model's weights, the data, the code."""
    left_out = ("emollm/train", "emollm/recipes", *AFTER_TRAINING)
    code = {"emollm": code_digest(["emollm"], leave_out=left_out), "dataset_build": _shared_code()}
    plain = recipe.model_dump(mode="json", exclude={"workers": True, "endpoint": ENDPOINT_PACE})
    return sha256_of_json({"recipe": plain, "model": model_digest, "data": data_digest, "code": code})
