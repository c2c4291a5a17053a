"""Sources of pictures that evoke feelings: FI, Emotion6, ArtEmis. What is particular to each."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataset_build import labels
from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject
from dataset_build.sources import artemis, emotion6, fi
from tests.fixtures.sources import base


def read(adapter, root: Path, **options) -> list[Record | Reject]:
    return list(adapter.read(str(root), adapter.Options.model_validate(options)))


def kept(found: list[Record | Reject]) -> list[Record]:
    return [item for item in found if isinstance(item, Record)]


def left(found: list[Record | Reject]) -> list[tuple[str, str]]:
    return [(item.uid, item.reason) for item in found if isinstance(item, Reject)]


# --- FI --------------------------------------------------------------------------------------------------------------


def test_fi_reads_the_label_folders_below_the_root_or_one_further_down(tmp_path):
    base.write(tmp_path / "emotion_dataset/awe/awe_1.jpg", b"adapters open no media")
    for root, path in (
        (tmp_path, "emotion_dataset/awe/awe_1.jpg"),
        (tmp_path / "emotion_dataset", "awe/awe_1.jpg"),
    ):
        (record,) = kept(read(fi, root))
        assert (record.uid, record.label, record.split) == ("fi/all/awe/awe_1.jpg", "awe", None)
        assert record.media == (MediaRef("image", path),)
        assert record.group_keys == {"picture": "fi/awe/awe_1.jpg"}


def test_fi_names_the_folders_that_it_looked_for(tmp_path):
    base.write(tmp_path / "pictures/1.jpg", b"x")
    with pytest.raises(BuildError, match="amusement, awe, contentment"):
        read(fi, tmp_path)


# --- Emotion6 --------------------------------------------------------------------------------------------------------

_SHARES = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")


def _emotion6(root: Path, *rows: tuple[str, list[float]]) -> Path:
    names = ["image_filename", "valence", "arousal", *(f"prob. {emotion}" for emotion in _SHARES)]
    lines = ["\t".join(f"[{name}]" for name in names)]
    lines += ["\t".join([name, "6.8", "4.9", *map(str, shares)]) for name, shares in rows]
    base.write(root / "ground_truth.txt", "\n".join(lines))
    return root


def test_emotion6_label_is_the_largest_share_and_not_the_folder(tmp_path):
    root = _emotion6(tmp_path, ("joy/12.jpg", [0, 0, 0.0667, 0.1333, 0, 0.0667, 0.7333]))
    (record,) = kept(read(emotion6, root))
    assert (record.uid, record.label, record.label_rule) == ("emotion6/all/joy/12.jpg", "neutral", "argmax")
    assert record.media == (MediaRef("image", "images/joy/12.jpg"),)
    assert record.group_keys == {"picture": "emotion6/joy/12.jpg", "keyword": "joy"}
    assert record.options == labels.EKMAN_NEUTRAL


def test_emotion6_a_tie_has_no_label_and_over_half_asks_for_more(tmp_path):
    root = _emotion6(
        tmp_path,
        ("joy/1.jpg", [0.4, 0, 0, 0.4, 0, 0, 0.2]),
        ("joy/2.jpg", [0.3, 0, 0, 0.5, 0, 0, 0.2]),
        ("joy/3.jpg", [0.3, 0, 0, 0.6, 0, 0, 0.1]),
    )
    found = read(emotion6, root)
    assert left(found) == [("emotion6/all/joy/1.jpg", "source_rule")]
    assert [record.label for record in kept(found)] == ["joy", "joy"]
    strict = read(emotion6, root, label_rule="over_half")
    assert [(record.uid, record.label_rule) for record in kept(strict)] == [
        ("emotion6/all/joy/3.jpg", "over_half")
    ]
    assert {reason for _, reason in left(strict)} == {"source_rule"}


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7))
def test_emotion6_any_distribution_is_a_label_that_nothing_exceeds_or_a_reject(tmp_path_factory, shares):
    (item,) = read(emotion6, _emotion6(tmp_path_factory.mktemp("emotion6"), ("joy/1.jpg", shares)))
    if isinstance(item, Record):
        own = shares[_SHARES.index(item.label)]
        assert own > 0 and [share for share in shares if share >= own] == [own]
    else:
        assert max(shares) == 0 or shares.count(max(shares)) > 1


# --- ArtEmis ---------------------------------------------------------------------------------------------------------


def _artemis(root: Path, *rows: tuple[str, str, str]) -> Path:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["art_style", "painting", "emotion", "utterance", "repetition"])
    writer.writerows([*row, "The still\nwater makes me feel calm", "6"] for row in rows)
    base.write(root / "artemis_dataset_release_v0.csv", stream.getvalue())
    (root / "wikiart").mkdir(exist_ok=True)
    return root


_QUAY = ("Impressionism", "jane-doe_quiet-harbour")


def test_artemis_asks_a_painting_once_with_what_most_annotators_felt(tmp_path):
    emotions = ("awe", "contentment", "contentment", "excitement")
    found = read(artemis, _artemis(tmp_path, *((*_QUAY, emotion) for emotion in emotions)))
    (record,) = kept(found)
    uid = "artemis/all/Impressionism/jane-doe_quiet-harbour"
    assert (record.uid, record.label, record.label_rule) == (f"{uid}#2", "contentment", "majority")
    assert record.media == (MediaRef("image", "wikiart/Impressionism/jane-doe_quiet-harbour.jpg"),)
    assert record.group_keys == {"painting": _QUAY[1], "art_style": _QUAY[0], "artist": "jane-doe"}
    assert record.options == (*labels.MIKELS, "something else")
    assert left(found) == [(f"{uid}#{number}", "source_rule") for number in (1, 3, 4)]
    details = [item.detail for item in found if isinstance(item, Reject)]
    assert "contentment, 2 of 4" in details[0] and f"{uid}#2" in details[1]


def test_artemis_never_shows_the_explanation_that_gives_the_answer_away(tmp_path):
    root = _artemis(tmp_path, (*_QUAY, "contentment"))
    for rule in ("majority", "each"):
        (record,) = kept(read(artemis, root, label_rule=rule))
        assert "water" not in repr(record)


def test_artemis_a_tie_leaves_the_painting_out_and_each_keeps_every_row(tmp_path):
    root = _artemis(
        tmp_path, *((*_QUAY, emotion) for emotion in ("awe", "fear", "fear", "awe", "something else"))
    )
    found = read(artemis, root)
    assert kept(found) == [] and {reason for _, reason in left(found)} == {"source_rule"}
    each = kept(read(artemis, root, label_rule="each"))
    assert [record.label for record in each] == ["awe", "fear", "fear", "awe", "something else"]
    assert len({record.uid for record in each}) == 5
    assert {record.group_keys["painting"] for record in each} == {_QUAY[1]}


def test_artemis_can_ask_the_majority_for_a_share_of_the_annotations(tmp_path):
    root = _artemis(tmp_path, *((*_QUAY, emotion) for emotion in ("awe", "awe", "fear", "anger", "disgust")))
    assert len(kept(read(artemis, root, min_share=0.4))) == 1
    assert kept(read(artemis, root, min_share=0.5)) == []


def test_artemis_a_painting_filed_under_two_styles_stays_in_one_group(tmp_path):
    found = kept(read(artemis, _artemis(tmp_path, (*_QUAY, "awe"), ("Realism", _QUAY[1], "fear"))))
    assert len(found) == 2 and len({record.group_keys["painting"] for record in found}) == 1


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
def test_artemis_finds_names_in_either_unicode_form(tmp_path, on_disk):
    name = "jané_été"
    base.write(tmp_path / "wikiart/Cubism" / f"{unicodedata.normalize(on_disk, name)}.jpg", b"x")
    for in_table in ("NFC", "NFD"):
        root = _artemis(tmp_path, ("Cubism", unicodedata.normalize(in_table, name), "awe"))
        (record,) = kept(read(artemis, root))
        assert record.media[0].path == f"wikiart/Cubism/{unicodedata.normalize(on_disk, name)}.jpg"


@given(st.lists(st.sampled_from(artemis.VOCABULARY), min_size=1, max_size=12), st.floats(0, 1))
def test_artemis_majority_is_more_than_any_other_or_none(emotions, min_share):
    counts = Counter(emotions)
    found = artemis.majority(counts, min_share)
    winners = [emotion for emotion, count in counts.items() if count == max(counts.values())]
    if found.emotion:
        assert winners == [found.emotion] and counts[found.emotion] / len(emotions) >= min_share - 1e-9
    else:
        assert found.problem
        assert len(winners) > 1 or counts[winners[0]] / len(emotions) < min_share + 1e-9


def test_artemis_rows_without_a_known_emotion_do_not_vote(tmp_path):
    rows = [(*_QUAY, emotion) for emotion in ("nostalgia", "nostalgia", "awe")]
    found = read(artemis, _artemis(tmp_path, *rows))
    assert [record.label for record in kept(found)] == ["awe"]
    assert [reason for _, reason in left(found)] == ["unknown_label"] * 2
