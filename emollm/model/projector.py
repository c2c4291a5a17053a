"""Multi-perspective Visual Projection (MVP), our reading of EmoLLM (arXiv 2406.16442); see the design document.

Shape suffixes: N pictures (or frames) of a batch, P patches of one picture (a square grid, row by row), D width of the
vision tower, C inner width, H heads, Z = C / H, K content queries, E edges of one patch, M visual tokens of the batch
(patches averaged to a smaller grid), L width of the language model.

    h = scene + content · W_c + relation · W_r + time · W_t         with W_c, W_r and W_t starting at zero

(`time` is the place of a frame in its video as sinusoids; still pictures have none.)

so that at step 0 the result is exactly the scene, which for an attached model is its foundation's own projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Row and column steps of the eight neighbours of a patch.
_STEPS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
_SPATIAL, _FEATURE, _BEFORE, _AFTER = (
    0,
    8,
    9,
    10,
)  # edge types: 8 directions, near in feature space, adjacent frames
_EDGE_TYPES = 11


class Edges(NamedTuple):
    """The patch graph. `index_NPE` points into the N·P patches of the batch; where `valid_NPE` is False, no edge."""

    index_NPE: Tensor
    valid_NPE: Tensor
    type_E: Tensor


class Perspectives(NamedTuple):
    """What each perspective contributes to every visual token, each (M, L); None where it is switched off."""

    scene_ML: Tensor
    content_ML: Tensor | None
    relation_ML: Tensor | None
    time_ML: Tensor | None


class SceneProjection(nn.Module):
    """The composed family's own projection of every token: LayerNorm, two layers with GELU (as in LLaVA-1.5).

    Sounds have one of their own of the same make.
    """

    def __init__(self, tower_width: int, language_width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(tower_width)
        self.up = nn.Linear(tower_width, language_width)
        self.down = nn.Linear(language_width, language_width)

    def reset_parameters(self, scale: float | None = None) -> None:
        """Initialise from torch's current seed; `scale`, where given, is the root mean square of the output."""
        self.norm.reset_parameters()
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)
        if scale is not None:
            with torch.no_grad():  # the GELU of a standard normal has a root mean square of 0.652
                self.down.weight *= scale / 0.652

    def forward(self, tokens_MD: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(self.norm(tokens_MD))))


class ContentPerspective(nn.Module):
    """K learned queries attend to the patches and hand what they found back to each patch. (N, P, D) → (N, P, C)."""

    def __init__(self, vision_width: int, width: int, heads: int, queries: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(vision_width)
        self.queries_KC = nn.Parameter(torch.empty(queries, width))
        self.gather_kv = nn.Linear(vision_width, 2 * width)
        self.return_q = nn.Linear(vision_width, width)
        self.return_kv = nn.Linear(width, 2 * width)

    def forward(self, patches_NPD: Tensor) -> Tensor:
        x_NPD = self.norm(patches_NPD)
        key_NPC, value_NPC = self.gather_kv(x_NPD).chunk(2, dim=-1)
        queries_NKC = self.queries_KC.expand(len(patches_NPD), -1, -1)
        found_NKC = queries_NKC + self._attend(queries_NKC, key_NPC, value_NPC)
        key_NKC, value_NKC = self.return_kv(found_NKC).chunk(2, dim=-1)
        return self._attend(self.return_q(x_NPD), key_NKC, value_NKC)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        mixed = nn.functional.scaled_dot_product_attention(split(q), split(k), split(v))
        return mixed.transpose(1, 2).flatten(-2)


class RelationPerspective(nn.Module):
    """Graph attention (GATv2, arXiv 2105.14491) over the patch graph. (N, P, D) → (N, P, C)."""

    def __init__(self, vision_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(vision_width)
        self.receive = nn.Linear(vision_width, width)
        self.send = nn.Linear(vision_width, width)
        self.score_HZ = nn.Parameter(torch.empty(heads, width // heads))
        self.edge_bias_QH = nn.Parameter(torch.zeros(_EDGE_TYPES, heads))

    def forward(self, patches_NPD: Tensor, edges: Edges) -> Tensor:
        x_NPD = self.norm(patches_NPD)
        receive_NPHZ = self.receive(x_NPD).unflatten(-1, (self.heads, -1))
        send_NPC = self.send(x_NPD)
        send_XC = send_NPC.flatten(0, 1).index_select(0, edges.index_NPE.flatten())
        send_NPEHZ = send_XC.view(*edges.index_NPE.shape, self.heads, -1)
        joint_NPEHZ = nn.functional.leaky_relu(receive_NPHZ.unsqueeze(2) + send_NPEHZ, 0.2)
        score_NPEH = (joint_NPEHZ * self.score_HZ).sum(-1) + self.edge_bias_QH[edges.type_E]
        score_NPEH = score_NPEH.masked_fill(~edges.valid_NPE.unsqueeze(-1), float("-inf"))
        weight_NPEH = score_NPEH.softmax(dim=2)
        return (weight_NPEH.unsqueeze(-1) * send_NPEHZ).sum(2).flatten(-2)


def reset_perspective(part: nn.Module, out: nn.Linear) -> None:
    """Initialise a content or relation perspective; its output projection starts at zero."""
    for layer in part.children():
        if isinstance(layer, nn.LayerNorm):
            layer.reset_parameters()
        elif isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    if isinstance(part, ContentPerspective):
        nn.init.normal_(part.queries_KC, std=1.0)
    elif isinstance(part, RelationPerspective):
        nn.init.normal_(part.score_HZ, std=1 / math.sqrt(part.score_HZ.shape[1]))
        nn.init.zeros_(part.edge_bias_QH)
    nn.init.zeros_(out.weight)


class MVP(nn.Module):
    """Multi-perspective Visual Projection around any `scene` projection. (N, P, D) → tokens per picture (T, L).

    `forward` returns the visual tokens of all pictures in order, as one (sum of T, L) tensor: `tokens_per_image` for a
    still picture, `tokens_per_frame` for each frame of a video, as `media_frames` says (one entry a medium: 0 for a
    still picture, n for a video of n frames; None means stills only).
    """

    def __init__(
        self,
        scene: nn.Module,
        vision_width: int,
        language_width: int,
        *,
        content: bool = True,
        relation: bool = True,
        time: bool = True,
        width: int = 128,
        heads: int = 4,
        content_queries: int = 8,
        neighbours: int = 4,
        tokens_per_image: int = 16,
        tokens_per_frame: int = 4,
    ) -> None:
        super().__init__()
        self.tokens_per_image, self.tokens_per_frame, self.neighbours = (
            tokens_per_image,
            tokens_per_frame,
            neighbours,
        )
        self.scene = scene
        self.content = ContentPerspective(vision_width, width, heads, content_queries) if content else None
        self.content_out = nn.Linear(width, language_width, bias=False) if content else None
        self.relation = RelationPerspective(vision_width, width, heads) if relation else None
        self.relation_out = nn.Linear(width, language_width, bias=False) if relation else None
        self.time_out = nn.Linear(width, language_width, bias=False) if time else None

    def reset_parameters(self, seeded: Callable[[str], object], scene_rms: float | None = None) -> None:
        """Initialise every part from its own seed, so that switching one off leaves the others as they were.

        `seeded(name)` seeds torch for the part. `scene_rms`, where given, is the root mean square that the scene's
        output is scaled to (that of the language model's input embeddings); the scene of an attached foundation is
        left alone.
        """
        if isinstance(self.scene, SceneProjection):
            seeded("scene")
            self.scene.reset_parameters(scene_rms)
        if self.time_out is not None:
            nn.init.zeros_(self.time_out.weight)
        for name in ("content", "relation"):
            part, out = getattr(self, name), getattr(self, f"{name}_out")
            if part is None:
                continue
            seeded(name)
            reset_perspective(part, out)

    def perspectives(self, patches_NPD: Tensor, media_frames: Sequence[int] | None = None) -> Perspectives:
        """The contribution of each perspective to every visual token."""
        content_ML = relation_ML = None
        if self.content is not None and self.content_out is not None:
            content_ML = self.content_out(self.pool(self.content(patches_NPD), media_frames))
        if self.relation is not None and self.relation_out is not None:
            edges = patch_graph(patches_NPD, self.neighbours, media_frames)
            relation_ML = self.relation_out(self.pool(self.relation(patches_NPD, edges), media_frames))
        time_ML = self._time(media_frames, len(patches_NPD))
        scene_ML = self.scene(self.pool(patches_NPD, media_frames))
        return Perspectives(scene_ML, content_ML, relation_ML, time_ML)

    def _time(self, media_frames: Sequence[int] | None, pictures: int) -> Tensor | None:
        """When each visual token was seen, projected; zero rows for still pictures. None where it is switched off."""
        if self.time_out is None:
            return None
        rows = []
        for frames in media_frames or [0] * pictures:
            if frames:
                places_F = torch.arange(frames, dtype=torch.float32)
                rows.append(
                    sinusoids(places_F, self.time_out.in_features).repeat_interleave(
                        self.tokens_per_frame, dim=0
                    )
                )
            else:
                rows.append(torch.zeros(self.tokens_per_image, self.time_out.in_features))
        weight = self.time_out.weight
        return self.time_out(torch.cat(rows).to(weight.device, weight.dtype))

    def forward(self, patches_NPD: Tensor, media_frames: Sequence[int] | None = None) -> Tensor:
        views = self.perspectives(patches_NPD, media_frames)
        h_ML = views.scene_ML
        for part_ML in views[1:]:
            if part_ML is not None:
                h_ML = h_ML + part_ML
        return h_ML

    @torch.no_grad()
    def opened(self, patches_NPD: Tensor, media_frames: Sequence[int] | None = None) -> dict[str, float]:
        """How far each perspective has opened: the norm of its contribution relative to the scene's, over a batch."""
        views = self.perspectives(patches_NPD, media_frames)
        scene = views.scene_ML.norm()
        return {
            name: float(part.norm() / scene)
            for name, part in (
                ("content", views.content_ML),
                ("relation", views.relation_ML),
                ("time", views.time_ML),
            )
            if part is not None
        }

    def pool(self, x_NPX: Tensor, media_frames: Sequence[int] | None) -> Tensor:
        """Average patches (N, P, X) to the visual tokens of the batch (M, X)."""
        if not media_frames or not any(media_frames):
            return average_patches(x_NPX, self.tokens_per_image).flatten(0, 1)
        parts, start = [], 0
        for frames in media_frames:
            count = max(1, frames)
            tokens = self.tokens_per_frame if frames else self.tokens_per_image
            parts.append(average_patches(x_NPX[start : start + count], tokens).flatten(0, 1))
            start += count
        return torch.cat(parts)


def sinusoids(places_F: Tensor, width: int) -> Tensor:
    """Sine and cosine of each place at `width / 2` wavelengths from 2π to 20,000π (arXiv 1706.03762, 3.5). → (F, width)"""
    half = width // 2
    rate_H = 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    angle_FH = places_F[:, None] * rate_H
    return nn.functional.pad(torch.cat([angle_FH.sin(), angle_FH.cos()], dim=1), (0, width - 2 * half))


def average_patches(x_NPX: Tensor, tokens: int) -> Tensor:
    """Average a square grid of P patches down to a square grid of `tokens`. (N, P, X) → (N, tokens, X)."""
    side, goal = math.isqrt(x_NPX.shape[1]), math.isqrt(tokens)
    if side * side != x_NPX.shape[1] or goal * goal != tokens:
        raise ValueError(f"{x_NPX.shape[1]} patches and {tokens} tokens must both be square numbers")
    if side % goal:
        raise ValueError(
            f"a grid of {side}×{side} patches cannot be averaged down to {goal}×{goal} tokens; "
            f"choose an image size and a number of tokens whose sides divide"
        )
    step = side // goal
    return x_NPX.unflatten(1, (goal, step, goal, step)).mean(dim=(2, 4)).flatten(1, 2)


def patch_graph(
    patches_NPD: Tensor,
    neighbours: int,
    media_frames: Sequence[int] | None = None,
    grid: tuple[int, int] | None = None,
) -> Edges:
    """Eight spatial neighbours, the `neighbours` nearest patches by cosine, and the same patch in adjacent frames.

    `grid` is (rows, columns) of the patches, row by row; without it they are a square. Nearest patches are of the same
    picture, never the patch itself. Which edges exist is not differentiated.
    """
    count, patches, _ = patches_NPD.shape
    rows, columns = grid or (math.isqrt(patches), math.isqrt(patches))
    if rows * columns != patches:
        raise ValueError(f"{patches} patches are no grid of {rows}×{columns}")
    device = patches_NPD.device
    cell_P = torch.arange(patches, device=device)
    row_P, column_P = cell_P // columns, cell_P % columns
    index, valid, kinds = [], [], []
    for kind, (down, right) in enumerate(_STEPS):
        row, column = row_P + down, column_P + right
        inside_P = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        index.append((row * columns + column).where(inside_P, cell_P).expand(count, -1).unsqueeze(-1))
        valid.append(inside_P.expand(count, -1).unsqueeze(-1))
        kinds.append(_SPATIAL + kind)
    near = min(neighbours, patches - 1)
    if near > 0:
        with torch.no_grad():
            unit_NPD = nn.functional.normalize(patches_NPD.detach().float(), dim=-1)
            likeness_NPP = unit_NPD @ unit_NPD.transpose(1, 2)
            likeness_NPP.diagonal(dim1=1, dim2=2).fill_(-2.0)
            nearest_NPE = likeness_NPP.topk(near, dim=-1).indices
        index.append(nearest_NPE)
        valid.append(torch.ones_like(nearest_NPE, dtype=torch.bool))
        kinds += [_FEATURE] * near
    offset_N11 = (torch.arange(count, device=device) * patches).view(-1, 1, 1)
    index = [part + offset_N11 for part in index]
    if media_frames is not None and any(frames > 1 for frames in media_frames):
        before_N, after_N = _adjacent_frames(media_frames, device)
        here_NP1 = cell_P.view(1, -1, 1) + offset_N11
        for has_N, shift, kind in ((before_N, -patches, _BEFORE), (after_N, patches, _AFTER)):
            has_NP1 = has_N.view(-1, 1, 1).expand(-1, patches, 1)
            index.append((here_NP1 + shift).where(has_NP1, here_NP1))
            valid.append(has_NP1)
            kinds.append(kind)
    return Edges(torch.cat(index, -1), torch.cat(valid, -1), torch.tensor(kinds, device=device))


def _adjacent_frames(media_frames: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """For every picture of the batch: has it a frame before, and one after, in the same video?"""
    before: list[bool] = []
    after: list[bool] = []
    for frames in media_frames:
        count = max(1, frames)
        before += [position > 0 for position in range(count)]
        after += [position < count - 1 for position in range(count)]
    return torch.tensor(before, device=device), torch.tensor(after, device=device)
