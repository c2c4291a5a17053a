"""Teachers that are transformers models: a text model, a foundation MLLM, or a trained EmoLLM, in a folder or on the hub.

Everything is greedy and in float32, and `Scorer` decides near ties on the sample alone, so that neither batch size nor the
number of workers changes a rationale. A foundation MLLM is run as an EmoLLM at step 0, whose logits are its own. The second
pass reads closed questions by the log-probabilities of the options, open ones by what is generated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dataset_build import storage
from dataset_build.schema import PLACEHOLDERS, option_texts
from emollm.rationales import prompts, verify

if TYPE_CHECKING:
    from emollm.evaluate.score import Answer, Prompt
    from emollm.model.chat import Turns

MAX_NEW_TOKENS = 160
_OPEN_TOKENS = 8
_VISIBLE = ("image", "video")


class TeacherError(ValueError):
    """A teacher that cannot be used; the message names it and the remedy."""


class Written(NamedTuple):
    """A reply to the first request, or a key of `verify.REASONS` why there is none."""

    text: str = ""
    cut_off: bool = False
    reason: str = ""
    detail: str = ""


class Said(NamedTuple):
    """What the second pass said, and a key of `verify.REASONS` where it does not confirm the label."""

    text: str
    reason: str = ""
    detail: str = ""


class Teacher(Protocol):
    """`write` sees media and label; `check` the question without media and the masked rationales. Both keep the order."""

    def write(self, samples: Sequence[dict[str, Any]]) -> list[Written]: ...

    def check(self, samples: Sequence[dict[str, Any]], masked: Sequence[str]) -> list[Said]: ...


def visible(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """The media that a teacher can be shown: pictures and clips, without their sound."""
    return [medium for medium in sample["media"] or [] if medium["kind"] in _VISIBLE]


def nothing_to_see(sample: dict[str, Any], sees: bool) -> bool:
    """Whether the row has media, and this teacher can take none of them."""
    return bool(sample["media"]) and not (sees and visible(sample))


class LocalTeacher:
    """A model and its processor; see the module's docstring."""

    def __init__(self, path: str, batch_size: int = 8, max_side_px: int | None = None) -> None:
        from emollm.evaluate.replica import make_scorer

        self.model, self.processor, self.sees = load(path, max_side_px)
        self.scorer = make_scorer(self.model, self.processor, batch_size)
        config = self.model.config.get_text_config()
        self.max_tokens: int | None = getattr(config, "max_position_embeddings", None)

    def write(self, samples: Sequence[dict[str, Any]]) -> list[Written]:
        found: dict[int, Written] = {}
        asked: dict[int, Prompt] = {}
        for place, sample in enumerate(samples):
            if nothing_to_see(sample, self.sees):
                kinds = ", ".join(sorted({medium["kind"] for medium in sample["media"]}))
                found[place] = Written(reason="unseen_media", detail=kinds)
                continue
            try:
                asked[place] = self._prompt(sample, prompts.written(sample), (), MAX_NEW_TOKENS)
            except ValueError as error:
                found[place] = Written(reason="not_put", detail=str(error)[:300])
        for place, answer in zip(asked, self._answers(list(asked.values()), MAX_NEW_TOKENS), strict=True):
            found[place] = Written(answer.text or "", cut_off=len(answer.token_ids) >= MAX_NEW_TOKENS)
        return [found[place] for place in range(len(samples))]

    def check(self, samples: Sequence[dict[str, Any]], masked: Sequence[str]) -> list[Said]:
        found: dict[int, Said] = {}
        asked: dict[int, Prompt] = {}
        for place, (sample, text) in enumerate(zip(samples, masked, strict=True)):
            bare = {**sample, "media": []}
            options = option_texts(sample)
            try:
                asked[place] = self._prompt(bare, prompts.checked(sample, text), options, _OPEN_TOKENS)
            except ValueError as error:
                found[place] = Said("", "not_put", f"second pass: {error}"[:300])
        for place, answer in zip(asked, self._answers(list(asked.values()), _OPEN_TOKENS), strict=True):
            if answer.choice is not None:
                found[place] = Said(*verify.chosen_answer(samples[place], answer.choice))
            else:
                found[place] = Said(*verify.second_answer(samples[place], answer.text or ""))
        return [found[place] for place in range(len(samples))]

    def _prompt(self, sample: dict[str, Any], text: str, options: Sequence[str], room: int) -> Prompt:
        """The request as the model takes it. Raises ValueError where it cannot."""
        from emollm.data.collate import encode_sample
        from emollm.evaluate.score import Prompt, option_token_ids

        media = visible(sample) if self.sees else []
        text = text.replace(PLACEHOLDERS["audio"], "")
        asked = {**sample, "media": media, "messages": [{"role": "user", "content": text}]}
        encoded = encode_sample(asked, self.processor, supervise=False)
        if self.max_tokens is not None and len(encoded.input_ids) + room > self.max_tokens:
            raise ValueError(
                f"{len(encoded.input_ids)} tokens and room for {room} more, but the teacher takes {self.max_tokens}"
            )
        ids = option_token_ids(options, self.processor.continuation, self.processor.end_id) if options else []
        return Prompt(encoded, ids)

    def _answers(self, asked: list[Prompt], room: int) -> list[Answer]:
        self.scorer.max_new_tokens = room
        return self.scorer.answers(asked)


class TextProcessor:
    """The tokenizer and chat template of a language model, with the interface of the processors that see."""

    hears = False
    prompt = "direct"

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.chat_template:
            raise TeacherError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; a teacher must be a model that was "
                f"trained to follow instructions"
            )
        self.tokenizer = tokenizer
        end = tokenizer.eos_token_id
        if end is None:
            raise TeacherError(f"{tokenizer.name_or_path}: its tokenizer has no end token")
        self.end_id: int = end
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end

    def render(self, messages: Sequence[dict[str, str]], answer: str | None, media: Sequence[Any]) -> Turns:
        from emollm.model.chat import Turns

        text = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
        return Turns(self.tokenizer.encode(text, add_special_tokens=False), None)

    def continuation(self, answer: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(answer, add_special_tokens=False)
        return ids

    def positions(self, input_ids: Sequence[int], media: Sequence[Any]) -> None:
        """Positions are counted from 0."""

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return str(self.tokenizer.decode(ids, **kwargs))


def kind_of(path: str) -> str:
    """What a folder or hub name holds, from its configuration alone: `emollm`, `mllm` or `text`. Raises TeacherError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from emollm.model.families import FAMILIES

    config_file = Path(path) / "config.json"
    own = storage.read_json(str(config_file)).get("model_type", "") if config_file.is_file() else ""
    if own.startswith("emollm"):
        return "emollm"
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise TeacherError(f"{path}: neither a transformers model nor a trained EmoLLM: {reason}") from error
    if config.model_type in FAMILIES:
        return "mllm"
    if type(config) in AutoModelForCausalLM._model_mapping:
        return "text"
    raise TeacherError(
        f"{path}: a model of type {config.model_type!r} cannot write; give a language model, one of "
        f"{', '.join(sorted(FAMILIES))}, or a trained EmoLLM"
    )


def text_processor(path: str) -> TextProcessor:
    """The processor of a text model. Raises TeacherError where it follows no instructions."""
    from transformers import AutoTokenizer

    return TextProcessor(AutoTokenizer.from_pretrained(path))


def check(path: str) -> None:
    """Raise TeacherError where a model cannot be a teacher, as far as that is known without its weights."""
    if kind_of(path) == "text":
        text_processor(path)


def load(path: str, max_side_px: int | None = None) -> tuple[Any, Any, bool]:
    """(model in float32, processor, whether it sees) of a folder or hub name. Raises TeacherError."""
    import torch
    from transformers import AutoModelForCausalLM

    from emollm.config import FoundationConfig, MVPConfig

    kind = kind_of(path)
    model: Any
    processor: Any
    if kind == "emollm":
        from emollm.model import load as saved

        model, processor = saved.load_model(path), saved.load_processor(path)
        processor.prompt = "direct"
        model.merge_lora()
    elif kind == "mllm":
        from emollm.model.attached_model import AttachedEmoLLM
        from emollm.model.attached_processor import AttachedProcessor
        from emollm.model.foundations import load_mllm_tokenizer, read_config

        foundation = FoundationConfig(family="attached", mllm=path, max_side_px=max_side_px)
        model = AttachedEmoLLM.attached(foundation, MVPConfig(content=False, relation=False), None, False)
        config = read_config(path, "teacher")
        processor = AttachedProcessor(load_mllm_tokenizer(path), config, max_side_px=max_side_px)
    else:
        model, processor = AutoModelForCausalLM.from_pretrained(path), text_processor(path)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.float().eval().to(device), processor, kind != "text"
