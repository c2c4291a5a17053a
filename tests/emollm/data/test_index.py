"""The index: light, the same whoever makes it, made once, and every row that cannot be trained on is named."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from emollm.config import TrainRecipe
from emollm.data import index as index_module
from emollm.data.emobench import DataError, data_files, read_digest
from emollm.data.index import (
    index_here,
    index_on_ray,
    index_schema,
    joined,
    make_index,
    outline,
    stored_index,
)
from emollm.train.fold import row_encoder, trainable
from tests.emollm.data.test_stream import drawn, write_rows
from tests.emollm.train.small_emobench import read_rows


def test_the_index_holds_no_media_and_no_texts() -> None:
    """So what a rank keeps of a row does not depend on how large the row is."""
    kinds = {field.name: field.type for field in index_schema()}
    assert not any(pa.types.is_nested(kind) or pa.types.is_binary(kind) for kind in kinds.values())
    assert not {"messages", "media", "options"} & set(kinds)


def test_lengths_pictures_and_places_are_those_of_the_rows(tiny_recipe: TrainRecipe) -> None:
    encoder = row_encoder(tiny_recipe)
    index = make_index(tiny_recipe.data, tiny_recipe.out, encoder, read_digest(tiny_recipe.data))
    rows = {row["uid"]: row for row in read_rows(tiny_recipe.data, "train", "test")}
    expected = sorted(uid for uid, row in rows.items() if row["fold"] is not None or row["split"] == "train")
    assert index.column("uid") == expected
    for number, uid in enumerate(expected):
        encoded = encoder.text(rows[uid])
        assert index.lengths[number] == len(encoded.input_ids)
        assert index.pictures[number] == sum(
            len(medium["data"]) for medium in rows[uid]["media"] if medium["kind"] != "audio"
        )
    light = outline(tiny_recipe.data)
    for name in ("uid", "source", "sub_task", "split", "fold", "answer", "file", "group", "place"):
        assert light.column(name) == index.column(name)


def test_it_is_made_once_and_again_for_other_data_or_another_prompt(
    tiny_recipe: TrainRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = row_encoder(tiny_recipe)
    digest = read_digest(tiny_recipe.data)
    assert stored_index(tiny_recipe.data, tiny_recipe.out, encoder, digest) is None
    made = make_index(tiny_recipe.data, tiny_recipe.out, encoder, digest)
    other = row_encoder(tiny_recipe.model_copy(update={"prompt": "emoprompt"}))
    assert stored_index(tiny_recipe.data, tiny_recipe.out, other, digest) is None
    assert stored_index(tiny_recipe.data, tiny_recipe.out, encoder, "other data") is None
    monkeypatch.setattr(index_module, "index_file", lambda *_: pytest.fail("it is there already"))
    again = make_index(tiny_recipe.data, tiny_recipe.out, row_encoder(tiny_recipe), digest)
    assert again.table.to_pylist() == made.table.to_pylist()


def test_every_row_that_cannot_be_trained_on_is_named_before_anything_starts(
    tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    rows = [drawn(number) for number in range(30)]
    for number in (3, 7):
        rows[number]["answer"] = None
    rows[9]["media"] = []
    rows[3]["sub_task"] = "emo_o"
    data = write_rows(tmp_path / "data", rows, per_file=10)
    recipe = tiny_recipe.model_copy(update={"data": str(data), "out": str(tmp_path / "out")})
    index = make_index(recipe.data, recipe.out, row_encoder(recipe), read_digest(recipe.data))
    with pytest.raises(DataError, match="3 of 30 training rows cannot be trained on") as found:
        trainable(index, recipe, 0)
    for number, why in ((3, "has no answer"), (7, "has no answer"), (9, "do not fit")):
        assert f"drawn/all/{number:04d}" in str(found.value) and why in str(found.value)
    assert len((tmp_path / "out" / "index" / "errors.txt").read_text().splitlines()) == 3
    without = recipe.model_copy(update={"mix": {"drawn/emo_o": 0}})
    with pytest.raises(DataError, match="2 of 30"):
        trainable(index, without, 0)


def test_a_row_that_cannot_be_encoded_stands_in_for_no_other(
    tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    """Rows of a source that `mix` leaves out stay in the index, and one without a length is not the shortest."""
    rows = [drawn(number) for number in range(4)]
    rows[2] |= {"sub_task": "emo_o", "answer": None}
    data = write_rows(tmp_path / "data", rows, per_file=4)
    mix = {"drawn/emo_o": 0}
    recipe = tiny_recipe.model_copy(update={"data": str(data), "out": str(tmp_path / "out"), "mix": mix})
    index = make_index(recipe.data, recipe.out, row_encoder(recipe), read_digest(recipe.data))
    found = trainable(index, recipe, 0)
    assert len(found) == 4 and found.table.column("error")[found.shortest].as_py() is None


def test_a_uid_that_is_there_twice_is_refused(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [drawn(1), drawn(2), drawn(1)], per_file=2)
    with pytest.raises(DataError, match="uid 'drawn/all/0001' is in the data 2 times"):
        make_index(str(data), str(tmp_path), row_encoder(tiny_recipe), read_digest(str(data)))


def test_a_file_with_other_rows_than_the_manifest_says_is_refused(
    tiny_recipe: TrainRecipe, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "data", [drawn(1), drawn(2)], per_file=2)
    kept = (data / "manifest.json").read_text()
    write_rows(tmp_path / "data", [drawn(1)], per_file=2)
    (data / "manifest.json").write_text(kept)
    with pytest.raises(DataError, match="drawn-00000.parquet: 1 rows, the manifest says 2"):
        outline(str(data))
    with pytest.raises(DataError, match="drawn-00000.parquet: its bytes are not those of the manifest"):
        make_index(str(data), str(tmp_path), row_encoder(tiny_recipe), read_digest(str(data)))


def test_a_damaged_file_is_named(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    """Arrow's own words for damaged pages name no file."""
    data = write_rows(tmp_path / "data", [drawn(1), drawn(2)], per_file=2)
    (path,) = (data / "train").glob("*.parquet")
    content = path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little")
    for start in (4, len(content) - 8 - footer):  # a page, what the pages are
        path.write_bytes(content[:start] + bytes(64) + content[start + 64 :])
        with pytest.raises(
            DataError, match="train/drawn-00000.parquet: cannot be read .*build EmoBench again"
        ):
            outline(str(data))


def test_one_flipped_bit_of_a_picture_is_refused(tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    """Arrow reads such a file without a word, and the picture may even open."""
    data = write_rows(tmp_path / "data", [drawn(1), drawn(2)], per_file=2)
    (path,) = (data / "train").glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 1
    path.write_bytes(bytes(content))
    assert len(outline(str(data))) == 2
    with pytest.raises(DataError, match="drawn-00000.parquet: its bytes .*build EmoBench again"):
        make_index(str(data), str(tmp_path), row_encoder(tiny_recipe), read_digest(str(data)))


def test_a_ray_data_job_makes_the_same_index(ray_session, tiny_recipe: TrainRecipe, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "data", [drawn(number) for number in range(30)], per_file=9, per_group=4)
    encoder, files = row_encoder(tiny_recipe), data_files(str(data))

    def parts(make) -> dict[str, pa.Table]:
        return {file.path: table for file, table in make(str(data), files, encoder)}

    here, by_ray = (joined(str(data), parts(make)).table for make in (index_here, index_on_ray))
    assert by_ray.equals(here) and len(here) == 30
