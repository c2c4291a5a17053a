"""Adapters: driven by the annotation, every item a Record or a Reject, nothing opened but the annotation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from dataset_build import quality, sources
from dataset_build.errors import BuildError
from dataset_build.labels import EMOJI_FEELINGS, GESTURE_INTENTS
from dataset_build.schema import CLOSED_SUB_TASKS, Record, Reject
from dataset_build.sources import (
    emoji_clips,
    emoji_files,
    emoji_pictures,
    emoji_table,
    gestures,
    jokes,
    sarcastic_jokes,
    texts,
)
from tests.fixtures.emoji_tree import write_emoji_tree

REAL_SAMPLES = Path(__file__).resolve().parents[2] / ".local" / "samples"


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    write_emoji_tree(root, clips=1)
    return root


def rows_of(root: Path, vendor: str = "google") -> list[dict]:
    return json.loads((root / "emoji" / vendor / "emoji.json").read_text())


def with_rows(tmp_path: Path, rows: list) -> str:
    for vendor in ("google", "twitter"):
        (tmp_path / vendor).mkdir()
        (tmp_path / vendor / "emoji.json").write_text(json.dumps(rows))
    return str(tmp_path)


def split_items(items) -> tuple[list[Record], list[Reject]]:
    items = list(items)
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Reject)]


def test_registry_names_modules_that_keep_the_adapter_contract():
    for name in sources.REGISTRY:
        adapter = sources.adapter(name)
        assert name == adapter.NAME
        assert adapter.Options.model_validate({}) is not None
        assert all(
            getattr(adapter, field)
            for field in ("VERSION", "TITLE", "LICENCE", "CITATION", "LIMITS", "GROUP_KEY")
        )


def test_emoji_table_lists_each_emoji_once_and_every_feeling_at_least_four_times():
    assert not set(emoji_table.CLEAR) & set(emoji_table.UNCLEAR)
    counts = Counter(feeling for _, feeling in emoji_table.CLEAR.values())
    assert set(counts) == set(EMOJI_FEELINGS)
    assert min(counts.values()) >= 4
    assert len(emoji_table.CLEAR) >= 60
    assert all(emoji_table.bare_code(code) == code for code in (*emoji_table.CLEAR, *emoji_table.UNCLEAR))


def test_each_clear_picture_serves_two_sub_tasks_and_each_unclear_one_leaves_by_rule(tree):
    records, rejects = split_items(emoji_pictures.read(str(tree / "emoji"), emoji_pictures.Options()))
    assert len(records) == 8 * 2 * 3 * 2  # feelings x emoji x vendors x sub-tasks
    assert len(rejects) == 2 * 3 * 2
    assert {reject.reason for reject in rejects} == {"source_rule"}
    by_picture = Counter(record.media[0].path for record in records)
    assert set(by_picture.values()) == {2}
    for record in records:
        assert quality.check(record) is None
        assert record.label == emoji_table.CLEAR[record.group_keys["emoji"]][1]
        assert bool(record.options) == (record.sub_task in CLOSED_SUB_TASKS)


def test_adapters_open_no_media_and_need_no_media_folder(tree, tmp_path):
    bare = tmp_path / "emoji"
    for vendor in ("google", "twitter"):
        (bare / vendor).mkdir(parents=True)
        shutil.copy(tree / "emoji" / vendor / "emoji.json", bare / vendor)
    assert len(list(emoji_pictures.read(str(bare), emoji_pictures.Options()))) == (16 + 2) * 3 * 2


def test_a_vendor_without_the_picture_gives_no_record(tree, tmp_path):
    row = {**rows_of(tree)[0], "has_img_twitter": False}
    root = with_rows(tmp_path, [row])
    records, rejects = split_items(emoji_pictures.read(root, emoji_pictures.Options()))
    assert {record.group_keys["vendor"] for record in records} == {"google", "fluent3d"}
    assert not rejects


@pytest.mark.parametrize("code", sorted(emoji_files.FLUENT3D_LACKS))
def test_emoji_that_fluent_never_drew_leave_by_rule(tree, tmp_path, code):
    lacking = {**rows_of(tree)[0], "unified": code.upper() + "-FE0F", "image": f"{code}-fe0f.png"}
    root = with_rows(tmp_path, [lacking, rows_of(tree)[0]])
    records, rejects = split_items(emoji_pictures.read(root, emoji_pictures.Options(vendors=("fluent3d",))))
    assert len(records) == 2
    assert {reject.sub_task: reject.reason for reject in rejects} == dict.fromkeys(
        ("emo_c", "emo_o"), "source_rule"
    )
    assert all(reject.uid.startswith(f"emoji_pictures/all/fluent3d-{code}:") for reject in rejects)
    assert all("Fluent 3D has no drawing" in reject.detail for reject in rejects)


@pytest.mark.parametrize("tones", [None, [], "1F3FB", 3])
def test_skin_variations_that_are_no_object_cost_no_more_than_themselves(tree, tmp_path, tones):
    row = next(row for row in rows_of(tree) if row["subcategory"] == "person-gesture")
    root = with_rows(tmp_path, [{**row, "skin_variations": tones}])
    records, rejects = split_items(gestures.read(root, gestures.Options(vendors=("google",))))
    assert len(records) == 1
    assert [reject.reason for reject in rejects] == ["bad_row"]
    assert "skin_variations" in rejects[0].detail


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("not an object", "bad_row"),
        ({"subcategory": ["face-smiling"], "short_name": "x"}, "bad_row"),
        ({"subcategory": "face-smiling", "short_name": "x"}, "bad_row"),
        ({"subcategory": "face-smiling", "short_name": "x", "unified": 5, "image": "x.png"}, "bad_row"),
        ({"subcategory": "face-smiling", "short_name": "x", "unified": "1F9FF", "image": "1f9ff.png", "has_img_google": True}, "unknown_label"),
    ],
)  # fmt: skip
def test_a_broken_row_is_a_reject_and_costs_no_other_row(tree, tmp_path, row, reason):
    root = with_rows(tmp_path, [row, rows_of(tree)[0]])
    records, rejects = split_items(emoji_pictures.read(root, emoji_pictures.Options(vendors=("google",))))
    assert [reject.reason for reject in rejects] == [reason] * 2
    assert len(records) == 2


def test_emoji_outside_the_face_subgroups_are_no_items(tree, tmp_path):
    root = with_rows(tmp_path, [{**rows_of(tree)[0], "subcategory": "food-fruit"}])
    assert list(emoji_pictures.read(root, emoji_pictures.Options())) == []


def test_a_missing_or_broken_annotation_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(BuildError, match=r"google/emoji\.json"):
        list(emoji_pictures.read(str(tmp_path), emoji_pictures.Options()))
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "emoji.json").write_text("{}")
    with pytest.raises(BuildError, match="expected a JSON list, found a dict"):
        list(emoji_pictures.read(str(tmp_path), emoji_pictures.Options()))


def test_fluent_names_are_found_with_and_without_the_variation_selector(tmp_path):
    folder = tmp_path / "fluent3d" / "img"
    folder.mkdir(parents=True)
    (folder / "263a.webp").touch()
    assert emoji_files._fluent_path(str(tmp_path), "263a-fe0f") == "fluent3d/img/263a.webp"
    (folder / "263a-fe0f.webp").touch()
    assert emoji_files._fluent_path(str(tmp_path), "263a-fe0f") == "fluent3d/img/263a-fe0f.webp"


def test_men_are_the_test_split_of_gestures_and_other_tones_leave_by_rule(tree):
    options = gestures.Options(tones=("none", "1f3fe"))
    records, rejects = split_items(gestures.read(str(tree / "emoji"), options))
    assert {(record.split, record.group_keys["figure"]) for record in records} == {
        ("test", "man"), ("train", "woman"), ("train", "person"),
    }  # fmt: skip
    assert {record.label for record in records} == set(GESTURE_INTENTS)
    assert len(records) == 8 * 3 * 2 * 3
    assert Counter("tone" if "tone" in reject.detail else "gesture" for reject in rejects) == {
        "tone": 8 * 3 * 3,
        "gesture": 27,
    }
    assert all(quality.check(record) is None for record in records)


def test_clips_take_label_and_group_from_the_emoji_table(tree, tmp_path):
    records, rejects = split_items(emoji_clips.read(str(tree / "emoji_clips"), emoji_clips.Options()))
    assert [record.media[0].kind for record in records] == ["video"]
    assert not rejects
    (tmp_path / "clips.csv").write_text(
        "code,file\n1F600-FE0F,clip/a.mp4\n1f916,clip/b.mp4\n,clip/c.mp4\n1ffff,clip/d.mp4\n"
    )
    records, rejects = split_items(emoji_clips.read(str(tmp_path), emoji_clips.Options()))
    assert [record.group_keys["emoji"] for record in records] == ["1f600"]
    assert [reject.reason for reject in rejects] == ["source_rule", "bad_row", "unknown_label"]
    (tmp_path / "clips.csv").write_text("name,path\n")
    with pytest.raises(BuildError, match="expected the columns code,file"):
        list(emoji_clips.read(str(tmp_path), emoji_clips.Options()))


def test_every_line_of_the_texts_is_an_item_and_the_sample_has_the_asked_size(tree):
    records, rejects = split_items(jokes.read(str(tree / "texts"), jokes.Options(per_label=5)))
    assert Counter(record.label for record in records) == {"Yes": 5, "No": 5}
    assert len(records) + len(rejects) == 29 + 3 * 14
    assert all(record.demonstration and quality.check(record) is None for record in records)
    assert any("tagged rude" in reject.detail for reject in rejects)


def test_sarcasm_labels_follow_the_tag(tree):
    records, _ = split_items(sarcastic_jokes.read(str(tree / "texts"), sarcastic_jokes.Options(per_label=14)))
    assert Counter(record.label for record in records) == {"Yes": 14, "No": 14}
    assert all(("Oh great" in record.text) == (record.label == "Yes") for record in records)


def test_the_sample_does_not_depend_on_the_order_of_the_texts():
    uids = [f"jokes/all/joke-{number}" for number in range(200)]
    assert texts.sample(uids, 20) == texts.sample(reversed(uids), 20)
    assert texts.sample(uids, 20) < texts.sample(uids, 30)


def test_broken_text_rows_are_rejects(tmp_path):
    (tmp_path / "jokes.json").write_text(json.dumps([{"body": "", "tags": []}, {"tags": []}, 7]))
    (tmp_path / "nyt.tsv").write_bytes(b"1\t0.1\tfine\n2\tonly two\n3\t0.2\t\xff\xfe not utf-8\n")
    assert all(text.error for text in texts.jokes(str(tmp_path)))
    assert [bool(text.error) for text in texts.sentences(str(tmp_path), "nyt")] == [False, True, True]


def test_the_same_words_share_a_group_whatever_case_and_punctuation():
    assert texts.group_of("Hello, world!") == texts.group_of("hello world") != texts.group_of("hello worlds")


@pytest.mark.skipif(
    not (REAL_SAMPLES / "emoji").is_dir(), reason="the real samples are not here; fetch them first"
)
def test_every_face_of_the_real_emoji_data_is_in_the_table():
    records, rejects = split_items(emoji_pictures.read(str(REAL_SAMPLES / "emoji"), emoji_pictures.Options()))
    clips, clip_rejects = split_items(
        emoji_clips.read(str(REAL_SAMPLES / "emoji_clips"), emoji_clips.Options())
    )
    assert {reject.reason for reject in (*rejects, *clip_rejects)} == {"source_rule"}
    assert len(records) == len(emoji_table.CLEAR) * 3 * 2
    assert {clip.group_keys["emoji"] for clip in clips} <= {record.group_keys["emoji"] for record in records}
    for record in records:
        assert (REAL_SAMPLES / "emoji" / record.media[0].path).is_file(), record.media[0].path
