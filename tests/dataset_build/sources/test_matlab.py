"""MATLAB and NumPy annotation files: what comes out of good ones, and that nothing happens with bad ones."""

from __future__ import annotations

import contextlib
import pickle
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from dataset_build.errors import BuildError
from dataset_build.sources import arrays, matlab
from tests.fixtures.sources import emotic as fixture
from tests.fixtures.sources.base import GIT_LFS_POINTER

_TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=9)
_NUMBERS = st.lists(st.floats(-1e6, 1e6), max_size=5)
_PLAIN = st.recursive(_TEXTS | _NUMBERS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=8)


def _matlab(value):
    """What to hand to `savemat` for a plain value; a tuple stands for a cell array."""
    if isinstance(value, tuple):
        return fixture.cell(*map(_matlab, value)) if value else np.empty((1, 0), dtype=object)
    return np.array([value], dtype=float) if isinstance(value, list) else value


def _plain(value):
    return list(map(_plain, value)) if isinstance(value, tuple) else value


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.fixed_dictionaries({"first": _PLAIN, "second": _PLAIN}), min_size=1, max_size=4),
    st.booleans(),
)
def test_a_struct_array_comes_back_as_the_values_that_were_saved(tmp_path_factory, elements, compressed):
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    array = fixture.structs([{name: _matlab(value) for name, value in one.items()} for one in elements])
    savemat(path, {"other": np.zeros((2, 2)), "wanted": array}, do_compression=compressed)
    expected = [{name: _plain(value) for name, value in one.items()} for one in elements]
    assert list(matlab.structs(str(path.parent), "a.mat", "wanted")) == expected


def test_one_struct_and_one_cell_are_lists_of_one(tmp_path):
    element = fixture.picture("mscoco/images", "a.jpg", fixture.person([1.0, 2.0, 3.0, 4.0], ["Peace"]))
    savemat(tmp_path / "a.mat", {"train": fixture.structs([element])})
    (picture,) = matlab.structs(str(tmp_path), "a.mat", "train")
    assert picture["filename"] == "a.jpg"
    (person,) = picture["person"]
    assert person["body_bbox"] == [1.0, 2.0, 3.0, 4.0]
    assert person["annotations_categories"] == [{"categories": ["Peace"]}]


def _tagged(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f"{order}II", kind, len(data)) + data + bytes(-len(data) % 8)


def _array(order: str, kind: int, name: str, body: bytes, dimensions: tuple[int, ...]) -> bytes:
    flags = _tagged(order, 6, struct.pack(f"{order}II", kind, 0))
    sizes = _tagged(order, 5, struct.pack(f"{order}{len(dimensions)}i", *dimensions))
    return _tagged(order, 14, flags + sizes + _tagged(order, 1, name.encode()) + body)


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_are_read_in_both_byte_orders_and_with_the_letters_that_matlab_writes(tmp_path, order):
    letters = "Peace".encode("utf-16-le" if order == "<" else "utf-16-be")
    text = _array(order, 4, "", _tagged(order, 4, letters), (1, 5))
    rows = _array(order, 4, "", _tagged(order, 2, b"acbd"), (2, 2))  # column by column
    small = struct.pack(f"{order}I", 1 << 16 | 2) + b"\x07\0\0\0"  # one byte, inside its tag
    number = _array(order, 6, "", small, (1, 1))
    names = b"text".ljust(8, b"\0") + b"rows".ljust(8, b"\0") + b"number".ljust(8, b"\0")
    width = struct.pack(f"{order}Ii", 4 << 16 | 5, 8)
    body = width + _tagged(order, 1, names) + text + rows + number
    header = b"MATLAB 5.0 MAT-file".ljust(124) + (b"\0\1IM" if order == "<" else b"\1\0MI")
    (tmp_path / "a.mat").write_bytes(header + _array(order, 2, "train", body, (1, 1)))
    found = list(matlab.structs(str(tmp_path), "a.mat", "train"))
    assert found == [{"text": "Peace", "rows": ["ab", "cd"], "number": [7.0]}]


def _good(path: Path, compressed: bool = False) -> bytes:
    people = [fixture.person([1.0, 2.0, 30.0, 40.0], ["Anger"], ["Fear", "Peace"]) for _ in range(2)]
    savemat(
        path,
        {"train": fixture.structs([fixture.picture("mscoco/images", "a.jpg", *people)])},
        do_compression=compressed,
    )
    return path.read_bytes()


def test_no_damage_to_a_file_does_more_than_an_error_that_names_it(tmp_path):
    good = _good(tmp_path / "a.mat")
    draw = random.Random(3)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(600):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(data))
            if draw.random() < 0.8:
                data[place] = draw.choice((0, 1, 14, 15, 127, 255, draw.randrange(256)))
            else:
                del data[place : place + draw.randint(1, 40)]
        (tmp_path / "a.mat").write_bytes(data)
        try:
            assert all(isinstance(one, dict) for one in matlab.structs(str(tmp_path), "a.mat", "train"))
            outcomes["read"] += 1
        except BuildError as error:
            assert "a.mat" in str(error)
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_a_variable_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    bomb = zlib.compress(bytes(5_000_000))
    (tmp_path / "a.mat").write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    monkeypatch.setattr(matlab, "MAX_BYTES", 1 << 20)
    with pytest.raises(BuildError, match="takes more than 1 MiB"):
        list(matlab.structs(str(tmp_path), "a.mat", "train"))


def test_a_count_that_the_file_cannot_hold_takes_no_memory(tmp_path):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    width = struct.pack("<Ii", 4 << 16 | 5, 8)
    body = width + _tagged("<", 1, b"text\0\0\0\0")
    (tmp_path / "a.mat").write_bytes(header + _array("<", 2, "train", body, (40_000, 40_000)))
    with pytest.raises(BuildError, match="1600000000 elements"):
        list(matlab.structs(str(tmp_path), "a.mat", "train"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MATLAB 7.3 MAT-file".ljust(512), "save it again"),
        (b"", "no MATLAB 5 header"),
        (b"<html>" * 100, "no MATLAB 5 header"),
        (GIT_LFS_POINTER, "git lfs pull"),
    ],
)
def test_what_is_no_matlab_5_file_is_an_error_with_a_remedy(tmp_path, data, message):
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(BuildError, match=message):
        list(matlab.structs(str(tmp_path), "a.mat", "train"))


@pytest.mark.parametrize("compressed", [False, True])
def test_a_variable_that_is_missing_is_named(tmp_path, compressed):
    _good(tmp_path / "a.mat", compressed)
    with pytest.raises(BuildError, match="variable val missing"):
        list(matlab.structs(str(tmp_path), "a.mat", "val"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array("3"), "3"),
        (np.array(["7"]), "7"),
        (np.array(3), "3"),
        (np.array([[4]], dtype=np.uint8), "4"),
        (np.array(b"5"), "5"),
        (np.array(2.5), "2.5"),
    ],
)
def test_a_numpy_file_gives_its_only_value_as_text(tmp_path, value, text):
    np.save(tmp_path / "a.npy", value)
    assert arrays.scalar(str(tmp_path), "a.npy") == text


def test_a_numpy_file_of_objects_is_refused_and_not_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.save(tmp_path / "a.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("a.npy", "b.npy"):
        with pytest.raises(ValueError):
            arrays.scalar(str(tmp_path), name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("value", [np.zeros(2), np.zeros(0), np.array("x" * 1000)])
def test_a_numpy_file_of_more_or_less_than_one_value_is_refused(tmp_path, value):
    np.save(tmp_path / "a.npy", value)
    with pytest.raises(ValueError, match="expected one number or text"):
        arrays.scalar(str(tmp_path), "a.npy")


def test_a_numpy_header_that_announces_too_much_takes_no_memory(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(1))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data.replace(b"(1,), }            ", b"(9999999999999,), }"))
    with pytest.raises(ValueError, match=r"found shape \(9999999999999,\)"):
        arrays.scalar(str(tmp_path), "a.npy")


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 140))
def test_damage_to_a_numpy_file_is_a_value_or_a_value_error(tmp_path_factory, noise, place):
    folder = tmp_path_factory.mktemp("npy")
    np.save(folder / "a.npy", np.array("3"))
    data = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(data[:place] + noise + data[place + len(noise) :])
    with contextlib.suppress(ValueError):
        assert isinstance(arrays.scalar(str(folder), "a.npy"), str)
