"""MVP attached to a foundation MLLM: around its own projector or merger, whose weights stay as they are.

    h = scene(x) + mean over the token's patches of content(x) · W_c + of relation(x) · W_r

`scene` is the foundation's own module, and W_c, W_r start at zero, so at step 0 the logits are the foundation's. The
language model never sees another token than before. A family is described by a `Layout`: where its projector sits, and
how the rows that go into it are pictures with a grid of patches and come out as tokens of one or several patches.

Shape suffixes as in `projector`: N pictures (or frames), P patches of one, D width of the vision tower, C inner width,
T tokens of one picture, L width of the language model; S all patches of a batch in the order of the family.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from emollm.config import MVPConfig
from emollm.model.projector import ContentPerspective, RelationPerspective, patch_graph, reset_perspective


class Pictures(NamedTuple):
    """Pictures of one size: patches (N, P, D) row by row, the grid (rows, columns), and how many are of one video.

    `media_frames` has one entry a medium: 0 for a still picture, n for a video of n frames. A token of the projector
    stands for a block of `block`×`block` patches.
    """

    patches_NPD: Tensor
    grid: tuple[int, int]
    media_frames: tuple[int, ...]
    block: int


class Layout(Protocol):
    """How a family's projector input is pictures, and in which order their tokens come out."""

    def pictures(self, features: Tensor) -> list[Pictures]: ...

    def tokens(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """The tokens (N, T, L) of each entry of `pictures`, in the shape and order of the projector's output."""
        ...


class AttachedMVP(nn.Module):
    """A foundation's projector with the content and relation perspectives beside it."""

    def __init__(
        self, scene: nn.Module, layout: Layout, vision_width: int, language_width: int, config: MVPConfig
    ) -> None:
        super().__init__()
        self.scene = scene
        self.layout = layout
        self.neighbours = config.neighbours
        width, heads = config.width, config.heads
        self.content = (
            ContentPerspective(vision_width, width, heads, config.content_queries) if config.content else None
        )
        self.content_out = nn.Linear(width, language_width, bias=False) if config.content else None
        self.relation = RelationPerspective(vision_width, width, heads) if config.relation else None
        self.relation_out = nn.Linear(width, language_width, bias=False) if config.relation else None
        self._record: dict[str, float] | None = None
        self._closed = False

    def reset_parameters(self, seeded: Callable[[str], object]) -> None:
        """Initialise each perspective from its own seed (`seeded(name)` seeds torch); the scene is left alone."""
        for name in ("content", "relation"):
            part, out = getattr(self, name), getattr(self, f"{name}_out")
            if part is not None:
                seeded(name)
                reset_perspective(part, out)

    def forward(self, features: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        h: Tensor = self.scene(features, *args, **kwargs)
        if self._closed or (self.content is None and self.relation is None):
            return h
        pictures = self.layout.pictures(features)
        for name, views in self._views(pictures):
            contribution = self.layout.tokens(views, h).to(h.dtype)
            if self._record is not None:
                self._record[name] = float(contribution.detach().norm() / h.detach().norm())
            h = h + contribution
        return h

    def _views(self, pictures: list[Pictures]) -> Iterator[tuple[str, list[Tensor]]]:
        if self.content is not None and self.content_out is not None:
            dtype = self.content_out.weight.dtype
            yield (
                "content",
                [
                    self.content_out(average_blocks(self.content(p.patches_NPD.to(dtype)), p.grid, p.block))
                    for p in pictures
                ],
            )
        if self.relation is not None and self.relation_out is not None:
            dtype = self.relation_out.weight.dtype
            found = []
            for p in pictures:
                patches_NPD = p.patches_NPD.to(dtype)
                edges = patch_graph(patches_NPD, self.neighbours, p.media_frames, p.grid)
                found.append(
                    self.relation_out(average_blocks(self.relation(patches_NPD, edges), p.grid, p.block))
                )
            yield "relation", found

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """The foundation's own projection alone, for the length of a block."""
        self._closed = True
        try:
            yield
        finally:
            self._closed = False

    def opened(self, run: Callable[[], Any]) -> dict[str, float]:
        """How far each perspective has opened: its contribution's norm relative to the sum before it, while `run` runs."""
        self._record = {}
        try:
            with torch.no_grad():
                run()
            return dict(self._record)
        finally:
            self._record = None


def average_blocks(x_NPX: Tensor, grid: tuple[int, int], block: int) -> Tensor:
    """Average blocks of `block`×`block` patches of a row-by-row grid. (N, P, X) → (N, P / block², X), row by row."""
    if block == 1:
        return x_NPX
    rows, columns = grid
    if rows % block or columns % block:
        raise ValueError(f"a grid of {rows}×{columns} patches has no blocks of {block}×{block}")
    x_NhawbX = x_NPX.unflatten(1, (rows // block, block, columns // block, block))
    return x_NhawbX.mean(dim=(2, 4)).flatten(1, 2)


# --- families --------------------------------------------------------------------------------------------------------


class SquareLayout:
    """Square pictures, (N, P, D) in and (N, P / block², L) out: LLaVA-1.5, LLaVA-OneVision (tiles), SmolVLM.

    `media` is set while clips pass: for each medium 0, or its number of frames (they follow one another).
    """

    def __init__(self, block: int = 1) -> None:
        self.block = block
        self.media: tuple[int, ...] = ()

    def pictures(self, features: Tensor) -> list[Pictures]:
        count, patches, _ = features.shape
        side = math.isqrt(patches)
        if side * side != patches:
            raise ValueError(f"{patches} patches are no square grid")
        return [Pictures(features, (side, side), self.media or (0,) * count, self.block)]

    def tokens(self, parts: list[Tensor], like: Tensor) -> Tensor:
        return parts[0]


class QwenLayout:
    """Pictures and clips of any size in one row of patches, in the order of the tower's attention windows.

    Before the windows, patches come by merge unit: (time, rows / m, columns / m, m, m). The tower's merger sees them
    in window order, one token a unit; the tower undoes the order behind it. `grid_thw` is that of the running batch.
    """

    def __init__(self, tower: Any) -> None:
        self.merge = int(tower.spatial_merge_size)
        self.window = {"window_size": tower.window_size, "patch_size": tower.patch_size}
        self.grid_thw: Tensor | None = None

    def pictures(self, features: Tensor) -> list[Pictures]:
        units_UmD = features.reshape(-1, self.merge**2, features.shape[-1])
        plain = units_UmD[torch.argsort(self._window_index(features))].flatten(0, 1)
        found, start, m = [], 0, self.merge
        for time, rows, columns in self._grids():
            size = time * rows * columns
            x = plain[start : start + size].unflatten(0, (time, rows // m, columns // m, m, m))
            patches_NPD = x.transpose(2, 3).flatten(3, 4).flatten(1, 2).flatten(1, 2)
            found.append(Pictures(patches_NPD, (rows, columns), (time,) if time > 1 else (0,), m))
            start += size
        return found

    def tokens(self, parts: list[Tensor], like: Tensor) -> Tensor:
        rows_UL = torch.cat([part.flatten(0, 1) for part in parts])
        return rows_UL[self._window_index(like)]

    def _grids(self) -> list[tuple[int, int, int]]:
        if self.grid_thw is None:
            raise RuntimeError(
                "the merger ran outside its vision tower, so the size of the pictures is not known"
            )
        return [(int(t), int(h), int(w)) for t, h, w in self.grid_thw.tolist()]

    def _window_index(self, like: Tensor) -> Tensor:
        from transformers.vision_utils import get_vision_window_index

        self._grids()
        assert self.grid_thw is not None
        index, _ = get_vision_window_index(self.grid_thw, self.merge, **self.window)
        return index.to(like.device)


def _attach_llava(model: Any, config: MVPConfig) -> AttachedMVP:
    inner = model.model
    layers = model.config.vision_feature_layer
    width = model.config.vision_config.hidden_size * (1 if isinstance(layers, int) else len(layers))
    mvp = AttachedMVP(
        inner.multi_modal_projector, SquareLayout(), width, model.config.text_config.hidden_size, config
    )
    inner.multi_modal_projector = mvp
    return mvp


def _attach_onevision(model: Any, config: MVPConfig) -> AttachedMVP:
    mvp = _attach_llava(model, config)
    layout = mvp.layout
    assert isinstance(layout, SquareLayout)
    plain = model.model.get_video_features

    def get_video_features(pixel_values_videos: Tensor, *args: Any, **kwargs: Any) -> Any:
        clips, frames = pixel_values_videos.shape[:2]
        layout.media = (frames,) * clips  # so that adjacent frames are known
        try:
            return plain(pixel_values_videos, *args, **kwargs)
        finally:
            layout.media = ()

    model.model.get_video_features = get_video_features
    return mvp


def _attach_qwen(model: Any, config: MVPConfig) -> AttachedMVP:
    tower = model.model.visual
    layout = QwenLayout(tower)
    mvp = AttachedMVP(
        tower.merger, layout, tower.config.hidden_size, model.config.text_config.hidden_size, config
    )
    tower.merger = mvp

    def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout.grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]

    tower.register_forward_pre_hook(remember, with_kwargs=True)
    return mvp


def _attach_smolvlm(model: Any, config: MVPConfig) -> AttachedMVP:
    inner = model.model
    mvp = AttachedMVP(
        inner.connector,
        SquareLayout(block=model.config.scale_factor),
        model.config.vision_config.hidden_size,
        model.config.text_config.hidden_size,
        config,
    )
    inner.connector = mvp
    return mvp


# By the `model_type` of the foundation's config.
ATTACH: dict[str, Callable[[Any, MVPConfig], AttachedMVP]] = {
    "llava": _attach_llava,
    "llava_onevision": _attach_onevision,
    "qwen2_5_vl": _attach_qwen,
    "smolvlm": _attach_smolvlm,
}


def attach(foundation: PreTrainedModel, config: MVPConfig) -> AttachedMVP:
    """Put MVP around the projector of a foundation MLLM, in place; returns it. Raises ValueError for other families."""
    kind = foundation.config.model_type
    if kind not in ATTACH:
        raise ValueError(f"MVP attaches to {', '.join(ATTACH)}; the foundation is a {kind!r}")
    return ATTACH[kind](foundation, config)
