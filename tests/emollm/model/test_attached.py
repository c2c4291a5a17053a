"""MVP attached to foundation MLLMs: exactly the foundation at step 0, and really something else after training."""

from __future__ import annotations

import copy

import pytest
import torch

from emollm.config import MVPConfig
from emollm.model.attached import ATTACH, AttachedMVP, attach, average_blocks
from tests.fixtures.tiny_mllms import MLLMS, make

SMALL = MVPConfig(width=8, heads=2, content_queries=3, neighbours=2)


def seeded(name: str) -> None:
    torch.manual_seed(sum(name.encode()))


def attached(model, config: MVPConfig = SMALL) -> AttachedMVP:
    mvp = attach(model, config)
    mvp.reset_parameters(seeded)
    return mvp


def open_up(mvp: AttachedMVP) -> None:
    """What training does to W_c and W_r, at once."""
    torch.manual_seed(3)
    for out in (mvp.content_out, mvp.relation_out):
        if out is not None:
            torch.nn.init.normal_(out.weight, std=0.5)


@pytest.fixture(params=sorted(MLLMS))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_family_that_can_be_attached_is_tested():
    assert set(MLLMS) == set(ATTACH)


@torch.no_grad()
def test_at_step_0_the_logits_are_exactly_the_foundations(family):
    model, batch = make(family)
    before = model(**batch).logits
    attached(model)
    assert torch.equal(model(**batch).logits, before)


@torch.no_grad()
def test_the_foundations_weights_are_kept_by_value(family):
    model, _ = make(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attached(model)
    after = {name.replace(".scene.", "."): value for name, value in model.state_dict().items()}
    assert set(before) <= set(after)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_one_training_step_opens_both_perspectives_and_moves_the_logits(family):
    model, batch = make(family)
    mvp = attached(model)
    model.requires_grad_(False)
    mvp.requires_grad_(True)
    mvp.scene.requires_grad_(False)
    before = model(**batch).logits.detach()
    optimizer = torch.optim.SGD([p for p in mvp.parameters() if p.requires_grad], lr=1.0)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    model(**batch, labels=labels).loss.backward()
    optimizer.step()
    assert not torch.equal(model(**batch).logits, before)
    assert all(share > 0 for share in mvp.opened(lambda: model(**batch)).values())
    assert set(mvp.opened(lambda: model(**batch))) == {"content", "relation"}


@torch.no_grad()
@pytest.mark.parametrize("kept", ["content", "relation"])
def test_switching_one_perspective_off_leaves_the_other_unchanged(family, kept):
    both, batch = make(family)
    mvp = attached(both)
    open_up(mvp)
    one, _ = make(family)
    alone = attached(
        one, SMALL.model_copy(update={"content": kept == "content", "relation": kept == "relation"})
    )
    getattr(alone, f"{kept}_out").weight.copy_(getattr(mvp, f"{kept}_out").weight)
    other = {"content": "relation", "relation": "content"}[kept]
    getattr(mvp, f"{other}_out").weight.zero_()
    assert torch.equal(both(**batch).logits, one(**batch).logits)


@torch.no_grad()
def test_each_token_gets_what_its_own_patches_found(family):
    """The foundation's token t and MVP's addition to token t come from the same patches."""
    model, batch = make(family)
    mvp = attached(model)
    seen: list[torch.Tensor] = []
    hook = mvp.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    model(**batch)
    hook.remove()
    with torch.enable_grad():
        for features in seen:
            features = features.detach().requires_grad_(True)
            _remember_grid(mvp, batch, features)
            scene = mvp.scene(features).flatten(0, -2)
            blocks = mvp.layout.tokens(
                [average_blocks(p.patches_NPD, p.grid, p.block) for p in mvp.layout.pictures(features)], scene
            ).flatten(0, -2)
            assert len(scene) == len(blocks)
            for token in range(len(scene)):
                (by_scene,) = torch.autograd.grad(scene[token].sum(), features, retain_graph=True)
                (by_block,) = torch.autograd.grad(blocks[token].sum(), features, retain_graph=True)
                assert _rows(by_scene).any()
                assert torch.equal(_rows(by_block), _rows(by_block) | _rows(by_scene)), token


def _rows(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.flatten(0, -2).abs().sum(-1) > 0


def _remember_grid(mvp, batch, features) -> None:
    """Qwen's layout needs the grid of the pictures that these features came from."""
    if hasattr(mvp.layout, "grid_thw"):
        for name in ("image_grid_thw", "video_grid_thw"):
            if int(batch[name].prod(1).sum()) == len(features):
                mvp.layout.grid_thw = batch[name]


@torch.no_grad()
def test_qwens_patches_come_back_row_by_row_from_the_order_of_the_windows():
    model, batch = make("qwen2_5_vl")
    mvp = attached(model)
    merge, place = 2, []
    for time, rows, columns in batch["image_grid_thw"].tolist():
        for t in range(time):
            for unit_row in range(rows // merge):
                for unit_column in range(columns // merge):
                    place += [
                        [t, unit_row * merge + r, unit_column * merge + c]
                        for r in range(merge)
                        for c in range(merge)
                    ]
    tower = model.model.visual
    mvp.layout.grid_thw = batch["image_grid_thw"]
    features = tower.permute_input_for_window_attn(
        torch.tensor(place).float(), mvp.layout._window_index(torch.zeros(1)), len(place)
    )
    for pictures, (time, rows, columns) in zip(
        mvp.layout.pictures(features), batch["image_grid_thw"].tolist()
    ):
        expected = torch.cartesian_prod(torch.arange(time), torch.arange(rows), torch.arange(columns)).float()
        assert torch.equal(pictures.patches_NPD.flatten(0, 1), expected)


@torch.no_grad()
@pytest.mark.parametrize("clips", ["llava_onevision", "qwen2_5_vl"])
def test_adjacent_frames_are_joined_by_temporal_edges(clips):
    """Another last frame changes what relation adds to the first frame's tokens only through temporal edges."""
    model, batch = make(clips)
    mvp = attached(model)
    seen = []
    layout_pictures = mvp.layout.pictures
    mvp.layout.pictures = lambda features: seen.append(layout_pictures(features)) or seen[-1]
    model(**batch)
    frames = [p.media_frames for pictures in seen for p in pictures]
    assert (3,) in frames and all(set(f) == {0} for f in frames if f != (3,))


def test_another_family_is_refused_by_name():
    model = copy.copy(make("llava")[0])
    model.config = copy.copy(model.config)
    model.config.model_type = "blip"
    with pytest.raises(ValueError, match="'blip'"):
        attach(model, SMALL)
