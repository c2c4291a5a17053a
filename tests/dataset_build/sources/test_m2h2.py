"""M2H2: layouts of several commits, scenes as context, who speaks to whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataset_build.errors import BuildError
from dataset_build.schema import MediaRef, Record, Reject, Turn
from dataset_build.sources import base, m2h2
from tests.fixtures.sources import m2h2 as fixture

SHOW = "shrimaan shrimati phir se"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("m2h2")
    fixture.build(folder)
    return folder


def records(root, **options) -> dict[str, Record]:
    found = m2h2.read(str(root), m2h2.Options(**options))
    return {item.uid: item for item in found if isinstance(item, Record)}


def write(folder: Path, *rows: str) -> str:
    folder.mkdir(parents=True)
    (folder / "Ep-7.tsv").write_text("\n".join([fixture.HEADER, *rows]), encoding="utf-8")
    return str(folder.parent)


def test_an_utterance_comes_with_its_clip_speaker_and_groups(root):
    record = records(root)["m2h2/all/25/Scene_2/5"]
    assert record.media == (MediaRef("video", "Main-Dataset/Raw-Visual/25/Scene_2/5.mp4"),)
    assert (record.label, record.native_label, record.text) == ("No", "non-humor", "यह किसने किया? 25")
    assert record.speaker == "Koki" and record.split is None
    assert record.group_keys == {
        "episode": f"{SHOW}/25",
        "show": SHOW,
        "scene": f"{SHOW}/25/Scene_2",
        "speaker": f"{SHOW}/koki",
        "answers": f"{SHOW}/25/4",
    }


def test_a_duration_does_not_cut_the_clip(root):
    assert all(
        ref.start_s is None and ref.end_s is None for item in records(root).values() for ref in item.media
    )


def test_context_is_what_was_said_before_in_the_scene(root):
    found = records(root)
    assert found["m2h2/all/25/Scene_1/3a"].context == (Turn("Koki", "अरे बाबा! 25"), Turn("Koki", "वॉट! 25"))
    assert found["m2h2/all/25/Scene_2/3b"].context == ()
    assert records(root, context_turns=1)["m2h2/all/25/Scene_1/3a"].context == (Turn("Koki", "वॉट! 25"),)
    assert records(root, context_turns=0)["m2h2/all/25/Scene_1/3a"].context == ()


def test_an_episode_under_its_older_name_is_read_once(root, tmp_path):
    assert len([uid for uid in records(root) if uid.startswith("m2h2/all/30/")]) == 6
    folder = tmp_path / "Raw-Text"
    rows = "Scene_1\t1\t0\t0\tहाँ\thumor\tKoki,u-"
    write(folder, rows)
    (folder / "ICMI-2021-dataset - Ep-7.tsv").write_bytes((folder / "Ep-7.tsv").read_bytes())
    assert len(list(m2h2.read(str(tmp_path), m2h2.Options()))) == 1


@pytest.mark.parametrize(
    ("above", "gap"), [("", "-"), ("", " "), ("Main Dataset", " "), ("Main-Dataset", "-")]
)
def test_folders_of_all_commits_are_found(tmp_path, above, gap):
    folder = tmp_path / above / f"Raw{gap}Text"
    write(folder, "2\t1\t0\t0\tहाँ\tHumor\tKoki")
    (tmp_path / above / f"Raw{gap}Visual").mkdir()
    (record,) = records(tmp_path).values()
    assert record.media[0].path == f"{above}/Raw{gap}Visual/7/Scene_2/1.mp4".lstrip("/")
    assert (record.label, record.speaker) == ("Yes", "Koki") and "answers" not in record.group_keys


def test_quotes_are_part_of_the_text(tmp_path):
    root = write(
        tmp_path / "Raw-Text", 'Scene_1\t1\t0\t0\t"हाँ\thumor\tKoki,u-', "Scene_1\t2\t0\t0\tना\thumor\tKoki,u1"
    )
    assert [record.text for record in records(root).values()] == ['"हाँ', "ना"]


def test_rejects_say_what_is_missing(root):
    found = {item.uid: item for item in m2h2.read(str(root), m2h2.Options()) if isinstance(item, Reject)}
    assert found["m2h2/all/22/Scene_3/7c"].reason == "unknown_label"
    # Nothing, or pandas' nan: nobody labelled them, which is no fault of the copy.
    unlabelled = [found[f"m2h2/all/22/Scene_3/{number}"].reason for number in ("7", "7b")]
    assert unlabelled == ["source_rule"] * 2
    assert "none may be empty" in found["m2h2/all/22/Scene_3/8"].detail
    assert "3 cells" in found["m2h2/all/22/Scene_3/9"].detail


def test_episodes_can_be_drawn_into_folds():
    assert base.split_mode(m2h2, m2h2.Options(split="folds")) == "folds"
    assert base.split_mode(m2h2, m2h2.Options()) == "shares"


def test_a_folder_without_episodes_is_an_error(tmp_path):
    (tmp_path / "Raw-Text").mkdir()
    (tmp_path / "Raw-Text/notes.tsv").write_text("x")
    with pytest.raises(BuildError, match=r"no Ep-<n>\.tsv"):
        list(m2h2.read(str(tmp_path), m2h2.Options()))
