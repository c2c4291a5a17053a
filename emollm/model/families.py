"""Foundation MLLMs that MVP attaches to: how each takes pictures and clips. One class per family, one entry in FAMILIES.

A family says what a medium becomes in the chat text (`text`, with the visual token repeated), turns pictures into the
tensors that its vision tower takes (`visual`), and gives the visual tokens for them (`tokens`). Everything else (chat
template, masking, packing, training, scoring) is the same for all.

Pictures go through the Pillow processors of transformers, so torchvision is not needed. Where a family has a choice,
the plain one is taken: one view a picture (no tiling; EmoBench's pictures are small), and clips as frames.

`tokens` runs the vision tower exactly once, whatever the pictures and clips: under ZeRO 3 every run of it gathers weights
from all ranks, so all ranks must run it equally often (see `AttachedEmoLLM`).
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image, ImageOps
from torch import Tensor


class Visual(NamedTuple):
    """One picture or clip as the vision tower takes it. `grid_thw` is (time, rows, columns) of its patches."""

    kind: str  # "image" or "video"
    pixels: Tensor
    grid_thw: tuple[int, int, int] = (1, 1, 1)

    @property
    def n_bytes(self) -> int:
        return self.pixels.numel() * self.pixels.element_size()


class Size(NamedTuple):
    """What the text of a medium depends on: frames (0 for a still picture), width and height in pixels."""

    frames: int
    width: int
    height: int


class Family(Protocol):
    """How one kind of foundation takes pictures. Made from the foundation's config and the recipe's picture limit."""

    image_token: str  # what the chat template writes for a picture, and what is repeated
    video_token: str | None  # the same for a clip; None where clips are shown as so many pictures
    needs_positions: bool  # positions are (3, T): time, row, column

    def text(self, size: Size) -> str: ...

    def visual(self, pictures: Sequence[Image.Image], is_video: bool) -> Visual: ...

    def tokens(self, foundation: Any, visuals: Sequence[Visual]) -> list[Tensor]: ...

    def positions(self, input_ids: Sequence[int], sizes: Sequence[Size]) -> list[list[int]]: ...


def blank(family: Family) -> Visual:
    """A small black picture, for a rank that must run the tower and has no picture."""
    return family.visual([Image.new("RGB", (8, 8))], False)


class _OneGrid:
    """What the families with square pictures of one size share: n tokens a picture, positions one after the other."""

    image_token = "<image>"
    video_token: str | None = None
    needs_positions = False

    def __init__(self, processor: Any, tokens_per_picture: int) -> None:
        self.processor = processor
        self.tokens_per_picture = tokens_per_picture

    def text(self, size: Size) -> str:
        return self.image_token * self.tokens_per_picture

    def visual(self, pictures: Sequence[Image.Image], is_video: bool) -> Visual:
        pixels = self.processor(list(pictures), return_tensors="pt")["pixel_values"]
        return Visual("video" if is_video else "image", pixels)

    def tokens(self, foundation: Any, visuals: Sequence[Visual]) -> list[Tensor]:
        pixels = torch.cat([visual.pixels for visual in visuals]).to(foundation.device, foundation.dtype)
        features = self._features(foundation, pixels)
        return list(
            torch.cat([f.reshape(-1, f.shape[-1]) for f in features]).split(_counts(visuals, features))
        )

    def _features(self, foundation: Any, pixels: Tensor) -> list[Tensor]:
        return list(foundation.model.get_image_features(pixels, return_dict=True).pooler_output)

    def positions(self, input_ids: Sequence[int], sizes: Sequence[Size]) -> list[list[int]]:
        raise AssertionError("these families count positions from 0")


def _counts(visuals: Sequence[Visual], features: Sequence[Tensor]) -> list[int]:
    """How many tokens each visual has: those of its pictures, which follow one another."""
    sizes, start = [], 0
    for visual in visuals:
        sizes.append(sum(len(f) for f in features[start : start + len(visual.pixels)]))
        start += len(visual.pixels)
    return sizes


class Llava(_OneGrid):
    """LLaVA-1.5: a picture, padded to a square as in its training, is 576 tokens at 336 px; a clip is its frames.

    (The published processor crops to the middle square instead, which would cut the words off wide pictures.)
    """

    def __init__(self, config: Any, max_side_px: int | None) -> None:
        from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

        side = config.vision_config.image_size
        processor = LlavaImageProcessorPil(
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True
        )
        super().__init__(processor, (side // config.vision_config.patch_size) ** 2)


class SmolVLM(_OneGrid):
    """SmolVLM: a picture (SmolVLM2-2.2B: 384 px) is 81 tokens (pixel shuffle by 3; the smaller ones: 512 px, 64 tokens,
    by 4) between tokens of its own; a clip is its frames as pictures."""

    def __init__(self, config: Any, max_side_px: int | None) -> None:
        from transformers.image_utils import PILImageResampling
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        side = config.vision_config.image_size
        processor = SiglipImageProcessorPil(
            size={"height": side, "width": side}, resample=PILImageResampling.LANCZOS
        )
        patches = (side // config.vision_config.patch_size) ** 2
        super().__init__(processor, patches // config.scale_factor**2)

    def text(self, size: Size) -> str:
        return f"<fake_token_around_image><global-img>{super().text(size)}<fake_token_around_image>"

    def _features(self, foundation: Any, pixels: Tensor) -> list[Tensor]:
        # (1, pictures, …): the batch dimension only says which pictures belong to one row.
        (features,) = foundation.model.get_image_features(pixels.unsqueeze(0), return_dict=True).pooler_output
        return list(features.unflatten(0, (len(pixels), -1)))


class LlavaOneVision(_OneGrid):
    """LLaVA-OneVision: a picture is one 384 px view (729 tokens and a new line), a clip 196 tokens a frame."""

    video_token: str | None = "<video>"

    def __init__(self, config: Any, max_side_px: int | None) -> None:
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        side = config.vision_config.image_size
        processor = SiglipImageProcessorPil(size={"height": side, "width": side})
        self.grid = side // config.vision_config.patch_size
        super().__init__(processor, self.grid**2 + 1)

    def text(self, size: Size) -> str:
        if not size.frames:
            return super().text(size)
        assert self.video_token
        return self.video_token * (size.frames * (-(-self.grid // 2)) ** 2 + 1)

    def tokens(self, foundation: Any, visuals: Sequence[Visual]) -> list[Tensor]:
        pixels = torch.cat([visual.pixels for visual in visuals]).to(foundation.device, foundation.dtype)
        # A picture is cut into tiles only where its row has no other, so this says that there is one more.
        views = foundation.model.get_image_features(
            pixels.unsqueeze(1),
            torch.tensor([pixels.shape[-2:]] * len(pixels), device=pixels.device),
            batch_num_images=torch.tensor([len(pixels) + 1]),
            return_dict=True,
        ).pooler_output
        found, start = [], 0
        for visual in visuals:
            own = torch.stack(list(views[start : start + len(visual.pixels)]))
            start += len(visual.pixels)
            if visual.kind == "video":  # the new line, which is the last token, comes once behind all frames
                frames = foundation.model.apply_pooling(own[:, :-1]).flatten(0, 1)
                found.append(torch.cat([frames, own[-1, -1:]]))
            else:
                found.append(own.flatten(0, 1))
        return found


class Qwen25VL:
    """Qwen2.5-VL: pictures of any size in 14 px patches, 2×2 patches a token; two frames of a clip are one patch deep."""

    image_token, video_token = "<|image_pad|>", "<|video_pad|>"
    needs_positions = True

    def __init__(self, config: Any, max_side_px: int | None) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        vision = config.vision_config
        self.config = config
        self.patch, self.merge, self.depth = (
            vision.patch_size,
            vision.spatial_merge_size,
            vision.temporal_patch_size,
        )
        self.unit = self.patch * self.merge
        self.limits = {"min_pixels": 4 * self.unit**2, "max_pixels": (max_side_px or 448) ** 2}
        self.processor = Qwen2VLImageProcessorPil(
            patch_size=self.patch, merge_size=self.merge, temporal_patch_size=self.depth, **self.limits
        )

    def grid(self, size: Size) -> tuple[int, int, int]:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        if not size.width or not size.height:
            raise ValueError("a picture without width and height: their numbers of patches are not known")
        width, height = _not_too_long(size.width, size.height)
        height, width = smart_resize(height, width, factor=self.unit, **self.limits)
        return -(-max(1, size.frames) // self.depth), height // self.patch, width // self.patch

    def text(self, size: Size) -> str:
        time, rows, columns = self.grid(size)
        token = self.video_token if size.frames else self.image_token
        return token * (time * rows * columns // self.merge**2)

    def visual(self, pictures: Sequence[Image.Image], is_video: bool) -> Visual:
        held = [ImageOps.pad(one, _not_too_long(*one.size), color="white") for one in pictures]
        batch = self.processor(held, return_tensors="pt")
        _, rows, columns = batch["image_grid_thw"][0].tolist()
        if not is_video:
            return Visual("image", batch["pixel_values"], (1, rows, columns))
        # A picture's patches hold it twice (the depth of a patch is two frames). A clip's hold one frame after the other.
        channels_F = (
            batch["pixel_values"].unflatten(0, (len(pictures), -1)).unflatten(-1, (3, self.depth, -1))
        )
        frames = list(channels_F) + [channels_F[-1]] * (-len(pictures) % self.depth)
        pairs = [
            torch.stack([frames[start + d][:, :, d] for d in range(self.depth)], dim=2).flatten(1)
            for start in range(0, len(frames), self.depth)
        ]
        return Visual("video", torch.cat(pairs), (len(pairs), rows, columns))

    def tokens(self, foundation: Any, visuals: Sequence[Visual]) -> list[Tensor]:
        pixels = torch.cat([visual.pixels for visual in visuals]).to(foundation.device, foundation.dtype)
        grid = torch.tensor([visual.grid_thw for visual in visuals], device=foundation.device)
        # Pictures and clips are the same to the tower: both have a grid.
        return list(foundation.model.get_image_features(pixels, grid, return_dict=True).pooler_output)

    def positions(self, input_ids: Sequence[int], sizes: Sequence[Size]) -> list[list[int]]:
        """Time, row and column of every token, as the foundation counts them."""
        from transformers import Qwen2_5_VLModel

        ids = torch.tensor([input_ids])
        kinds = (ids == self.config.image_token_id).int() + 2 * (ids == self.config.video_token_id).int()
        images = torch.tensor([self.grid(size) for size in sizes if not size.frames], dtype=torch.long)
        videos = torch.tensor([self.grid(size) for size in sizes if size.frames], dtype=torch.long)
        # The method reads nothing of a model but its config.
        shell: Any = SimpleNamespace(
            config=self.config,
            get_vision_position_ids=lambda *a, **k: Qwen2_5_VLModel.get_vision_position_ids(shell, *a, **k),
        )
        get_rope_index: Any = Qwen2_5_VLModel.get_rope_index
        found, _ = get_rope_index(
            shell, ids, kinds, images if len(images) else None, videos if len(videos) else None
        )
        return found[:, 0].tolist()


def _not_too_long(width: int, height: int) -> tuple[int, int]:
    """Width and height with the shorter one grown to a 200th of the longer: Qwen's resizing takes nothing longer."""
    return max(width, -(-height // 200)), max(height, -(-width // 200))


# By the `model_type` of the foundation's config.
FAMILIES: dict[str, type] = {
    "llava": Llava,
    "llava_onevision": LlavaOneVision,
    "qwen2_5_vl": Qwen25VL,
    "smolvlm": SmolVLM,
}


def make_family(config: Any, max_side_px: int | None = None) -> Family:
    """The family of a foundation's config. Raises ValueError for one that is not known."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"a foundation of type {config.model_type!r} is not known; known: {', '.join(FAMILIES)}"
        )
    family: Family = FAMILIES[config.model_type](config, max_side_px)
    return family
