"""Any image-text-to-text model of transformers, asked through its own processor and chat template.

torchvision is not needed: pictures go through the Pillow image processors, and the frames of a clip are shown as so many
pictures (transformers' video processors want torchvision). Sound is left out. Everything runs in float32.

The first samples are scored twice, in batches from a shared cache and one by one without (`careful`): a kind of model
for which the two differ is scored the second way.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dataset_build.media import open_picture
from dataset_build.schema import PLACEHOLDERS
from emollm.evaluate.asking import Asking
from emollm.evaluate.careful import CarefulScorer, agrees
from emollm.evaluate.protocol import EvaluationError
from emollm.evaluate.replica import prompts_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from emollm.evaluate.score import Prompt, Scorer

_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS.values())))
_CHECKED_SAMPLES = 3


class ForeignInputs(NamedTuple):
    """What the processor gives for one sample: tensors with one row."""

    tensors: dict[str, Any]

    @property
    def input_ids(self) -> list[int]:
        ids: list[int] = self.tensors["input_ids"][0].tolist()
        return ids


def load_foreign(path: str) -> ForeignReplica:
    """The model in a folder or of the hub, with its processor. Raises FoundationError or EvaluationError."""
    import torch

    from emollm.model.foundations import load_mllm

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ForeignReplica(load_mllm(path).float().eval().to(device), load_foreign_processor(path))


def load_foreign_processor(path: str) -> Any:
    """The processor that belongs to a model, with Pillow for pictures and nothing for videos."""
    from transformers import AutoConfig, AutoImageProcessor
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    from emollm.model.foundations import load_mllm_tokenizer

    config = AutoConfig.from_pretrained(path)
    if type(config) not in PROCESSOR_MAPPING:
        raise EvaluationError(f"{path}: transformers has no processor for {config.model_type!r} models")
    processor_class: Any = PROCESSOR_MAPPING[type(config)]
    _without_num2words(processor_class)
    # Without its video processor, which would want torchvision: a class that does not insist on having one.
    stills_only: Any = type(
        processor_class.__name__, (processor_class,), {"check_argument_for_proper_class": lambda *_: None}
    )
    try:
        tokenizer = load_mllm_tokenizer(path)
        parts = {"image_processor": AutoImageProcessor.from_pretrained(path), "tokenizer": tokenizer}
        settings, _ = processor_class.get_processor_dict(path)
        plain = {key: value for key, value in settings.items() if key not in processor_class.get_attributes()}
        arguments = [parts.get(name) for name in processor_class.get_attributes()]
        made = stills_only.from_args_and_dict(arguments, plain)
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise EvaluationError(f"{path}: its processor cannot be loaded: {error}") from error
    processor = made[0] if isinstance(made, tuple) else made
    if isinstance(processor.chat_template, str):
        tokenizer.chat_template = processor.chat_template
    return processor


def _without_num2words(processor_class: Any) -> None:
    """SmolVLM's processor refuses to start without the package, which only its text for videos uses."""
    module = sys.modules[processor_class.__module__]
    if getattr(module, "num2words", str) is None:
        module.num2words = str  # type: ignore[attr-defined]


class ForeignReplica:
    """A transformers model with its processor; see `emollm.evaluate.replica`."""

    def __init__(self, model: Any, processor: Any) -> None:
        from emollm.model.chat import Chat

        self.model, self.processor = model, processor
        self.tokenizer = processor.tokenizer
        self.chat = Chat(self.tokenizer)
        own_ends = model.generation_config.eos_token_id
        own_ends = own_ends if isinstance(own_ends, list) else [own_ends]
        self.end_ids = sorted({self.chat.end_id, *(end for end in own_ends if end is not None)})
        pad = self.tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None else self.chat.end_id
        self._careful: bool | None = None  # whether shortcuts were found wrong; None: not looked at yet

    def prompts(self, samples: Sequence[dict[str, Any]], asking: Asking) -> list[Prompt]:
        made = prompts_of(samples, asking, self.encode, self.chat.continuation, self.chat.end_id)
        if self._careful is None and made:
            self._careful = not self._shortcuts_hold(made)
        return made

    def scorer(self, batch_size: int, max_new_tokens: int) -> Scorer | CarefulScorer:
        if self._careful:
            return self._careful_scorer(max_new_tokens)
        return self._scorer(batch_size, max_new_tokens)

    def features(self, samples: Sequence[dict[str, Any]], batch_size: int) -> NDArray[np.float32]:
        raise AssertionError("the linear probe is not asked of foreign models")

    def encode(self, sample: dict[str, Any]) -> ForeignInputs:
        """A row as the processor gives it. Raises ValueError where placeholders and media do not fit."""
        pictures: list[Image.Image] = []
        left = [medium for medium in sample["media"] or [] if medium["kind"] != "audio"]
        messages = [
            {"role": turn["role"], "content": _parts(turn["content"], left, pictures)}
            for turn in sample["messages"]
        ]
        if left:
            raise ValueError(f"{len(left)} media have no placeholder in the messages")
        text = self.chat.prompt(messages)
        begins = self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token)
        given: dict[str, Any] = {"images": [pictures]} if pictures else {}
        found = self.processor(text=[text], return_tensors="pt", add_special_tokens=not begins, **given)
        return ForeignInputs(dict(found))

    def _shortcuts_hold(self, prompts: Sequence[Prompt]) -> bool:
        """Whether batches and the shared cache change nothing, on samples of different lengths."""
        from emollm.evaluate.score import Prompt

        by_length = sorted(prompts, key=lambda prompt: len(prompt.encoded.input_ids))
        chosen = {0, len(by_length) // 2, len(by_length) - 1}
        yes, no = self.chat.continuation("Yes"), self.chat.continuation("No")
        options = [[*yes, *no, self.chat.end_id], no]
        probes = [Prompt(by_length[place].encoded, options) for place in sorted(chosen)][:_CHECKED_SAMPLES]
        try:
            held = agrees(self._scorer(len(probes), 1), self._careful_scorer(1), probes)
        except (RuntimeError, TypeError, AttributeError, KeyError, IndexError) as error:
            print(f"evaluate: {type(self.model).__name__}: {type(error).__name__}: {error}", flush=True)
            held = False
        if not held:
            print(
                f"evaluate: batches or the cache of {type(self.model).__name__} change its probabilities; "
                "every option is scored by a forward pass of its own",
                flush=True,
            )
        return held

    def _scorer(self, batch_size: int, max_new_tokens: int) -> Scorer:
        from emollm.evaluate.score import Scorer

        collate = self._positioned if self._rope_index() else self.collate
        return Scorer(
            ForeignModel(self.model), collate, self._decode, self.end_ids, batch_size, max_new_tokens
        )

    def _careful_scorer(self, max_new_tokens: int) -> CarefulScorer:
        return CarefulScorer(self.model, self.collate, self._decode, self.end_ids, max_new_tokens)

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def collate(self, rows: Sequence[ForeignInputs]) -> dict[str, Any]:
        """Rows of inputs as one batch: tokens padded on the right, everything else to the largest shape."""
        names = sorted({name for row in rows for name in row.tensors})
        batch = {
            name: _joined([row.tensors[name] for row in rows if name in row.tensors], self._filler(name))
            for name in names
        }
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def _filler(self, name: str) -> int:
        return self.pad_id if name == "input_ids" else 0

    def _rope_index(self) -> Any:
        return getattr(getattr(self.model, "model", None), "get_rope_index", None)

    def _positioned(self, rows: Sequence[ForeignInputs]) -> dict[str, Any]:
        """A batch with the positions of a model that counts rows and columns (3, B, T)."""
        batch = self.collate(rows)
        rope_index = self._rope_index()
        known = set(inspect.signature(rope_index).parameters)
        given = {name: value for name, value in batch.items() if name in known}
        if "mm_token_type_ids" in known and "mm_token_type_ids" not in given:
            given["mm_token_type_ids"] = batch["input_ids"] * 0
        batch["position_ids"] = rope_index(**given)[0]
        return batch


class ForeignModel:
    """A model called as `Scorer` calls an EmoLLM."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._rows_and_columns = hasattr(getattr(model, "model", None), "get_rope_index")

    def eval(self) -> ForeignModel:
        return self

    def __call__(self, logits_to_keep: Any = None, position_ids: Any = None, **inputs: Any) -> Any:
        if position_ids is not None:
            if self._rows_and_columns and position_ids.dim() == 2:  # behind the media all three go on alike
                position_ids = position_ids.expand(3, *position_ids.shape)
            inputs["position_ids"] = position_ids
        if logits_to_keep is None:
            return self.model(**inputs)
        if self._can_keep:
            return self.model(**inputs, logits_to_keep=logits_to_keep)
        output = self.model(**inputs)
        output.logits = output.logits[:, logits_to_keep]
        return output


def _parts(content: str, left: list[dict[str, Any]], pictures: list[Image.Image]) -> list[dict[str, str]]:
    """A turn's content as typed parts; takes its media from the front of `left`, their pictures go to `pictures`."""
    parts: list[dict[str, str]] = []
    position = 0
    for match in _PLACEHOLDER.finditer(content):
        if text := content[position : match.start()].strip("\n"):
            parts.append({"type": "text", "text": text})
        position = match.end()
        if match.group() == PLACEHOLDERS["audio"]:
            continue
        if not left or PLACEHOLDERS[left[0]["kind"]] != match.group():
            raise ValueError(f"a {match.group()} placeholder has no medium of its kind")
        medium = left.pop(0)
        frames = medium["data"][:1] if medium["kind"] == "image" else medium["data"]
        pictures += [open_picture(data) for data in frames]
        parts += [{"type": "image"}] * len(frames)
    if text := content[position:].strip("\n"):
        parts.append({"type": "text", "text": text})
    return parts


def _joined(tensors: Sequence[Any], filler: int) -> Any:
    """Tensors one behind the other, each padded at its end to the largest size of every further dimension."""
    import torch

    if any(tensor.dim() != tensors[0].dim() for tensor in tensors):
        raise ValueError("the processor gives one sample more dimensions than another")
    largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors))]
    padded = []
    for tensor in tensors:
        room = [(0, size - own) for own, size in zip(tensor.shape[1:], largest)]
        padded.append(
            torch.nn.functional.pad(tensor, [n for pair in reversed(room) for n in pair], value=filler)
            if room
            else tensor
        )
    return torch.cat(padded)
