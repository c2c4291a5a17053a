"""One model in memory that answers samples: an EmoLLM here, any other transformers model in `foreign`.

A replica encodes samples (`prompts`), has a `scorer`, and gives `features` of pictures where it has a frozen tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dataset_build import storage
from emollm.evaluate import ablation
from emollm.evaluate.asking import Asking
from emollm.evaluate.protocol import EvaluationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from emollm.evaluate.score import Answer, Prompt, Scorer


class Replica(Protocol):
    def prompts(self, samples: Sequence[dict[str, Any]], asking: Asking) -> list[Prompt]:
        """Prompts of samples; an EvaluationError names the sample that cannot be put to the model."""
        ...

    def scorer(self, batch_size: int, max_new_tokens: int) -> Any: ...

    def features(self, samples: Sequence[dict[str, Any]], batch_size: int) -> NDArray[np.float32]: ...


def answers(
    replica: Replica, samples: Sequence[dict[str, Any]], asking: Asking, batch_size: int
) -> list[Answer]:
    """The model's answers to samples, in order."""
    prompts = replica.prompts([ablation.ablated(sample, asking.ablation) for sample in samples], asking)
    scorer = replica.scorer(
        batch_size, asking.max_new_tokens
    )  # only now: `foreign` picks it by its first prompts
    if not asking.calibrate:
        return scorer.answers(prompts)
    closed = [number for number, prompt in enumerate(prompts) if prompt.options]
    bare = replica.prompts(
        [ablation.ablated(samples[number], ablation.CONTENT_FREE) for number in closed], asking
    )
    content_free: list[Prompt | None] = [None] * len(prompts)
    for number, prompt in zip(closed, bare, strict=True):
        content_free[number] = prompt
    return scorer.calibrated(prompts, content_free)


class OwnReplica:
    """An EmoLLM and its processor."""

    def __init__(self, model: Any, processor: Any, known: PatchFeatures | None = None) -> None:
        self.model, self.processor = model, processor
        self.known = known or PatchFeatures()

    def prompts(self, samples: Sequence[dict[str, Any]], asking: Asking) -> list[Prompt]:
        return encode_prompts(samples, self.processor, asking)

    def scorer(self, batch_size: int, max_new_tokens: int) -> Scorer:
        return make_scorer(self.model, self.processor, batch_size, max_new_tokens, known=self.known)

    def features(self, samples: Sequence[dict[str, Any]], batch_size: int) -> NDArray[np.float32]:
        """Mean patch features of the frozen vision tower, averaged over a sample's pictures or frames: (N, D).

        For an attached foundation the mean of its own visual tokens, without MVP.
        """
        import numpy as np
        import torch

        from emollm.data.collate import decode_pictures, decode_visuals

        if hasattr(self.model, "frozen_features"):  # an attached foundation
            with torch.inference_mode():
                return np.stack(
                    [self.model.frozen_features(decode_visuals(sample, self.processor)) for sample in samples]
                )
        pictures_of = [decode_pictures(sample, self.processor) for sample in samples]
        flat = [picture for pictures in pictures_of for picture in pictures]
        means = []
        with torch.inference_mode():
            for start in range(0, len(flat), batch_size):
                patches_NPD = self.known.of(self.model, torch.stack(flat[start : start + batch_size]))
                means.append(patches_NPD.mean(dim=1).float().cpu().numpy())
        mean_MD = np.concatenate(means)
        ends = np.cumsum([len(pictures) for pictures in pictures_of])
        return np.stack([part.mean(axis=0) for part in np.split(mean_MD, ends[:-1])])


def load_own(
    model_dir: str, name: str, training_recipe: dict[str, Any] | None, known: PatchFeatures | None = None
) -> OwnReplica:
    """An EmoLLM (float32, evaluation mode) with its processor: `fold-k`, `single` or `untrained`."""
    import torch

    if name == "untrained":
        from emollm.config import TrainRecipe
        from emollm.train.build import initial_model

        recipe = TrainRecipe.model_validate(training_recipe)
        model, processor = initial_model(recipe, recipe.seed)
    else:
        from emollm.model import load

        folder = model_dir if name == "single" else storage.join(model_dir, name)
        model, processor = load.load_model(folder), load.load_processor(folder)
    model.merge_lora()  # the same function in a quarter less time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return OwnReplica(model.float().eval().to(device), processor, known)


class PatchFeatures:
    """Patch features of pictures seen before. The tower is frozen, so fold models share them, and so do sub-tasks.

    Pictures go through the tower one at a time, as in training: what else is in a batch cannot change a bit of them.
    """

    MAX_PICTURES = 2048  # about 100 kB each with DINOv2-S at 112 px

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._tower: str | None = None

    def of(self, model: Any, pictures_NCHW: Any) -> Any:
        """Features (N, P, D), computed for the pictures that are not known yet."""
        import hashlib

        import torch

        tower = ((model.config.foundations or {}).get("digests") or {}).get("vision")
        if tower is None or tower != self._tower or len(self._known) > self.MAX_PICTURES:
            self._known, self._tower = {}, tower
        keys = [hashlib.sha256(picture.numpy().tobytes()).digest() for picture in pictures_NCHW]
        for key, picture in zip(keys, pictures_NCHW, strict=True):
            if key not in self._known:
                (self._known[key],) = model.patch_features(picture.unsqueeze(0).to(model.device))
        return torch.stack([self._known[key] for key in keys])


def make_scorer(
    model: Any,
    processor: Any,
    batch_size: int,
    max_new_tokens: int = Asking().max_new_tokens,
    *,
    known: PatchFeatures | None = None,
    padding_side: Literal["right", "left"] = "right",
) -> Scorer:
    """A Scorer for an EmoLLM and its processor."""
    features = known or PatchFeatures()
    from emollm.data.collate import collate
    from emollm.evaluate.score import Scorer

    def to_batch(encoded: list[Any]) -> dict[str, Any]:
        batch = collate(encoded, processor.pad_id, padding_side=padding_side)
        if "pixel_values" in batch:
            batch["patches"] = features.of(model, batch.pop("pixel_values"))
        return {
            name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()
        }

    return Scorer(
        model,
        to_batch,
        decode=lambda ids: processor.decode(ids, skip_special_tokens=True),
        end_ids=[processor.end_id],
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )


def encode_prompts(
    samples: Sequence[dict[str, Any]], processor: Any, asking: Asking | None = None
) -> list[Prompt]:
    """Prompts of samples for an EmoLLM; an error names the sample."""
    from emollm.data.collate import encode_sample

    return prompts_of(
        samples,
        asking or Asking(),
        lambda sample: encode_sample(sample, processor, supervise=False),
        processor.continuation,
        processor.end_id,
    )


def prompts_of(
    samples: Sequence[dict[str, Any]],
    asking: Asking,
    encode: Callable[[dict[str, Any]], Any],
    continuation: Callable[[str], list[int]],
    end_id: int,
) -> list[Prompt]:
    """Encoded samples with the token ids of their options."""
    from emollm.evaluate.score import Prompt, option_token_ids

    prompts = []
    for sample in samples:
        try:
            encoded = encode(sample)
            options = asking.options(sample)
            ids = option_token_ids(options, continuation, end_id) if options else []
        except (ValueError, OSError) as error:
            raise EvaluationError(f"{sample['uid']}: cannot be put to the model: {error}") from error
        prompts.append(Prompt(encoded, ids))
    return prompts
