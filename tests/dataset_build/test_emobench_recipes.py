"""The two recipes for licensed sources: they load, name what they should, and ask all six sub-tasks."""

from __future__ import annotations

import pytest

from dataset_build import leakage, sources
from dataset_build.errors import BuildError
from dataset_build.recipe import BuildRecipe, load_recipe, shipped_recipes
from dataset_build.schema import SUB_TASKS, Record
from dataset_build.sources import base
from tests.fixtures import sources as fixtures

TEN = {
    "emoset", "caer_s", "meld", "dfew", "intentonomy", "mintrec2", "hateful_memes", "mmsd2", "urfunny", "mustard",
}  # fmt: skip
# Those of the quickstart, which need no licence of anybody.
OF_THE_QUICKSTART = {"emoji_pictures", "emoji_clips", "gestures", "jokes", "sarcastic_jokes"}


@pytest.fixture(scope="module", params=["emobench", "emobench_all"])
def recipe(request: pytest.FixtureRequest) -> BuildRecipe:
    return load_recipe(request.param, ["root=/data/licensed"])


def names(recipe: BuildRecipe) -> set[str]:
    return {spec.name for spec in recipe.sources}


def test_emobench_is_the_ten_open_sources():
    assert names(load_recipe("emobench")) == TEN


def test_emobench_all_has_every_licensed_source_but_one_of_each_forbidden_pair():
    chosen = names(load_recipe("emobench_all"))
    left_out = set(sources.REGISTRY) - OF_THE_QUICKSTART - chosen
    assert all(len(pair & left_out) == 1 and len(pair & chosen) == 1 for pair in leakage.FORBIDDEN)
    assert left_out <= set().union(*leakage.FORBIDDEN)


def test_what_emobench_tests_emobench_all_never_trains_on():
    """The ten sources are in both, with the same options and seed, so their rows lie in the same splits."""
    small, large = load_recipe("emobench"), load_recipe("emobench_all")
    assert {spec.name: spec for spec in small.sources}.items() <= {
        spec.name: spec for spec in large.sources
    }.items()
    assert (small.seed, small.splits) == (large.seed, large.splits)


def test_both_are_shipped_under_their_names(recipe):
    assert recipe.name in shipped_recipes()


def test_each_source_has_a_folder_of_its_own_below_the_root(recipe):
    for spec in recipe.sources:
        assert recipe.source_root(spec) == f"/data/licensed/{spec.name}"


def test_a_fifth_of_the_emotion_rows_is_asked_openly(recipe):
    for spec in recipe.sources:
        options = recipe.source_options(spec)
        if isinstance(options, base.EmotionOptions):
            assert (options.ask, options.open_share) == ("mixed", 0.2), spec.name


def test_media_suit_a_model_of_seven_billion_weights(recipe):
    media = recipe.media
    assert (media.max_side_px, media.video_frames, media.audio) == (448, 8, True)


def test_no_forbidden_pair_is_in_one_recipe_and_none_is_allowed_in_by_the_back_door(recipe):
    assert leakage.check_pairs(names(recipe), recipe.leakage.allow_pairs) == []
    for pair in leakage.FORBIDDEN:
        with pytest.raises(BuildError, match=" and ".join(sorted(pair))):
            leakage.check_pairs(names(recipe) | pair, recipe.leakage.allow_pairs)


def test_emobench_asks_all_six_sub_tasks(tmp_path_factory):
    recipe = load_recipe("emobench")
    asked: set[str] = set()
    for spec in recipe.sources:
        root = tmp_path_factory.mktemp(spec.name)
        planted = fixtures.build(spec.name, root)
        adapter = sources.adapter(spec.name)
        options = adapter.Options.model_validate({**planted.options, **spec.options})
        found = {item.sub_task for item in adapter.read(str(root), options) if isinstance(item, Record)}
        assert found <= set(adapter.SUB_TASKS)
        asked |= found
    assert asked == set(SUB_TASKS)
