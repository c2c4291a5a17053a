"""Pickles: data come back, and a hostile one runs nothing and takes neither memory nor time."""

from __future__ import annotations

import collections
import os
import pickle
import pickletools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.sources import pickles

KEYS = st.text(max_size=5) | st.integers(-(10**6), 10**6) | st.tuples(st.text(max_size=3), st.integers(0, 9))
DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
    ),
    max_leaves=15,
)


def load(folder: Path, data: bytes) -> Any:
    (folder / "a.pkl").write_bytes(data)
    return pickles.load(str(folder), "a.pkl")


def refused(folder: Path, data: bytes, says: str = "") -> None:
    """It is refused with an error that names the file, and soon."""
    started = time.monotonic()
    with pytest.raises(BuildError, match=says) as error:
        load(folder, data)
    assert str(folder / "a.pkl") in str(error.value) and len(str(error.value)) < 700
    assert time.monotonic() - started < 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pickles")


# --- data ------------------------------------------------------------------------------------------------------------


@given(DATA, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=200)
def test_plain_data_come_back_from_every_protocol(folder, value, protocol):
    found = load(folder, pickle.dumps(value, protocol))
    assert found == value and type(found) is type(value)


@given(DATA)
@settings(max_examples=50)
def test_shared_parts_come_back_wherever_they_stand(folder, value):
    assert load(folder, pickle.dumps([value, {"a": value}, (value, value)])) == [
        value,
        {"a": value},
        (value, value),
    ]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([], dtype="f4"),
        np.array(["a", "längere"]),
        np.array([b"a", b"bc"]),
        np.array([True, False]),
        np.array([1, 2], dtype=">i2"),
        np.array([["a", None], [1, [2, 3]]], dtype=object),
        np.array(3.5),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_numpy_arrays_come_back_from_every_protocol(tmp_path, array, protocol):
    for value in (array, {"a": [array, array]}):
        found = load(tmp_path, pickle.dumps(value, protocol))
        for part in [found] if value is array else found["a"]:
            assert type(part) is np.ndarray and part.dtype == array.dtype and part.shape == array.shape
            assert part.tolist() == array.tolist()


def test_numpy_scalars_and_ordered_dicts_come_back_as_plain_ones(tmp_path):
    value = collections.OrderedDict([("b", np.float64(1.5)), ("a", np.int32(2)), ("c", np.str_("x"))])
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found = load(tmp_path, pickle.dumps(value, protocol))
        assert list(found.items()) == [("b", 1.5), ("a", 2), ("c", "x")] and type(found) is dict


def test_numpy_integers_may_be_keys_and_are_found_by_plain_ones(tmp_path):
    value = {np.int64(7): "a", np.uint8(8): "b", ("c", np.int32(9)): {np.int64(7), 8}}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert load(tmp_path, pickle.dumps(value, protocol)) == {7: "a", 8: "b", ("c", 9): {7, 8}}
    refused(tmp_path, pickle.dumps({np.uint64(2**61): 1}), "as a key")
    refused(tmp_path, pickle.dumps({np.float64(0.5): 1}), "as a key")


def test_a_python_2_pickle_comes_back_with_its_texts_as_latin_1(tmp_path):
    text = b"(dp0\nS'caf\\xe9'\np1\n(lp2\nI1\naL2L\naF0.5\naI01\nas."  # {'caf\xe9': [1, 2L, 0.5, True]} of Python 2
    assert load(tmp_path, text) == {"café": [1, 2, 0.5, True]}
    folds = (
        b"\x80\x02]q\x00cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01bq\x04\x87q\x05Rq\x06"
        b"(K\x01K\x02\x85q\x07cnumpy\ndtype\nq\x08U\x02i8q\tK\x00K\x01\x87q\nRq\x0b(K\x03U\x01<q\x0cNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\r"
        b"b\x89U\x10\x02\x00\x00\x00\x00\x00\x00\x00\xe9\x00\x00\x00\x00\x00\x00\x00q\x0etq\x0fba."
    )
    assert load(tmp_path, folds)[0].tolist() == [2, 0xE9]


def test_an_array_in_a_pickle_of_a_hundred_thousand_texts_takes_a_moment(tmp_path):
    value = {
        f"clip-{number}": {"text": f"line {number}", "words": ["a", "b", "c"]} for number in range(25_000)
    }
    started = time.monotonic()
    assert load(tmp_path, pickle.dumps(value)) == value
    assert time.monotonic() - started < 10


# --- code ------------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def hostile(marker: Path) -> dict[str, Any]:
    """Objects whose unpickling by the standard library makes the file `marker`."""
    command = f"{sys.executable} -c \"open({str(marker)!r}, 'w')\""
    return {
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "exec": Call(exec, f"open({str(marker)!r}, 'w')"),
        "open": Call(open, str(marker), "w"),
        "subprocess": Call(subprocess.call, [sys.executable, "-c", f"open({str(marker)!r}, 'w')"]),
        "in a list": ["fine", Call(os.system, command)],
        "as a key": {("a", Call(os.system, command)): 1},
        "in an object array": np.array([["fine", Call(os.system, command)]], dtype=object),
        "in an object array in an array": np.array([np.array([Call(os.system, command), 1], dtype=object), 1], dtype=object),
    }  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_runs_nothing(tmp_path, protocol):
    marker = tmp_path / "ran"
    for name, value in hostile(marker).items():
        data = pickle.dumps(value, protocol)
        refused(tmp_path, data, "it asks for .*which data do not need")
        assert not marker.exists(), name
    pickle.loads(pickle.dumps(hostile(marker)["open"], protocol))  # noqa: S301
    assert marker.exists(), "the pickle was to be harmful"


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\nload\n(S'/etc/hostname'\ntR.",
        b"cnumpy\nfromfile\n(S'/etc/hostname'\ntR.",
        b"cbuiltins\ngetattr\n(I1\nS'real'\ntR.",
        b"c__builtin__\n__import__\n(S'os'\ntR.",
        b"ccopyreg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",
        b"c_codecs\ndecode\n(S'x'\nS'zlib'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x10core.os.system\x93.",
        b"\x80\x02coperator\nattrgetter\nU\x01a\x85R.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93)}\x92.",
        b"Psomewhere\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_data_do_not_need_is_refused(tmp_path, data):
    refused(tmp_path, data, "not a pickle of plain data")


@pytest.mark.parametrize(
    "data",
    [
        b"cnumpy\nndarray\n.",
        b"cnumpy\nndarray\n((I1000000000000\ntS'f8'\ntR.",
        b"]cnumpy\ndtype\n(S'f8'\ntRa.",
        b"cnumpy\ndtype\n(S'V8'\ntR.",
        b"cnumpy\ndtype\n(S'f8,f8'\ntR.",
        b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\n(I9\ntNNI-1\nI-1\nI0\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I1000000000000\ntS'b'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\n(I0\ntS'b'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1000000\ntcnumpy\ndtype\n(S'f8'\ntRI00\nS'short'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I-1\nI-8\ntcnumpy\ndtype\n(S'b1'\ntRI00\nS'8 bytes!'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\ntRI00\nS'8 bytes!'\ntb.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I4611686018427387904\ntcnumpy\ndtype\n(S'S0'\ntRI00\nS''\ntb.",
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O8'\ntRS'8 bytes!'\ntR.",
        b"ccollections\nOrderedDict\n)R(dS'items'\nI1\nsb.",
        b"c_codecs\nencode\n(Vx\nS'hex'\ntR.",
        b"S'text'\n)R.",
        b"I3\n(S'a'\nI1\nu.",
        b"](S'a'\nI1\nu.",
        b"}I1\na.",
    ],
    ids=lambda data: repr(data)[-40:],
)  # fmt: skip
def test_arrays_that_lie_about_their_memory_are_refused(tmp_path, data):
    refused(tmp_path, data, "not a pickle of plain data")


# --- bombs -----------------------------------------------------------------------------------------------------------


def doubling(levels: int, start: bytes, pair: bytes) -> bytes:
    """`levels` times: the last value twice, in the container that the instructions `pair` build."""
    code = b"\x80\x02" + start + b"q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        code += pair.replace(b"G", get) + b"q" + bytes([level + 1])
    return code


BOMBS = {
    "a text that announces a terabyte": b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"x.",
    "bytes that announce an exabyte": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",
    "a frame of a terabyte and no end": b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N",
    "a growing buffer of a terabyte": b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.",
    "lists that share their parts": doubling(100, b"]", b"](GGe") + b".",
    "tuples that share their parts": doubling(100, b")", b"GG\x86") + b".",
    "such a tuple as a key": doubling(100, b")", b"GG\x86") + b"0}hdK\x01s.",
    "such tuples in a set": b"\x80\x04\x8f(" + doubling(100, b")", b"GG\x86")[2:] + b"\x90.",
    "a codec that doubles": b"(lp0\n" + b"Vx\np1\n" + b"c_codecs\nencode\n(g1\nS'hex'\ntR" * 60 + b"a.",
    "a list in itself": b"]q\x00h\x00a.",
    "a dict in itself": b"}q\x00K\x01h\x00s.",
    "brackets in brackets": b"]" * 300_000 + b"a" * 299_999 + b".",
    "tuples in tuples": b")" + b"\x85" * 300_000 + b".",
    "a number of a million bits": b"\x80\x02\x8b"
    + (200_000).to_bytes(4, "little")
    + b"\x7f" * 200_000
    + b".",
    "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
    "integers with one hash": b"}(" + b"".join(b"L%dL\nN" % (n * (2**61 - 1)) for n in range(20_000)) + b"u.",
    "marks and nothing": b"(" * 1_000_000 + b".",
    "nothing": b"",
    "an end and nothing": b".",
    "a text": b"hello, this is no pickle",
    "json": b'{"a": [1, 2]}',
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_soon(tmp_path, name):
    refused(tmp_path, BOMBS[name], "not a pickle of plain data")


def test_bombs_take_no_memory_either(tmp_path):
    """All of them, one after the other, in a process of their own: less than one GiB more at the peak."""
    for number, data in enumerate(BOMBS.values()):
        (tmp_path / f"{number}.pkl").write_bytes(data)
    code = (
        "import re, sys\n"
        "import numpy\n"
        "from dataset_build.errors import BuildError\n"
        "from dataset_build.sources import pickles\n"
        # Not getrusage: a new process starts with the peak of the one that made it.
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "before = peak()\n"
        "for number in range(int(sys.argv[2])):\n"
        "    try:\n"
        "        pickles.load(sys.argv[1], f'{number}.pkl')\n"
        "    except BuildError: pass\n"
        "print(peak() - before)\n"
    )
    arguments = [sys.executable, "-c", code, str(tmp_path), str(len(BOMBS))]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    assert int(done.stdout) < 1 << 20, "KiB"


def test_the_number_of_instructions_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 1000)
    refused(tmp_path, pickle.dumps([[] for _ in range(1000)]), "more than 1000 instructions")


@given(DATA, st.integers(0, 5), st.data())
@settings(max_examples=300)
def test_a_damaged_pickle_is_data_or_a_build_error(folder, value, protocol, data):
    whole = bytearray(pickle.dumps([value, np.arange(3)], protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        repr(load(folder, bytes(whole[: data.draw(st.integers(1, len(whole)))])))
    except BuildError as error:
        assert len(str(error)) < 700


@given(
    st.lists(
        st.sampled_from([op.code.encode("latin1") for op in pickletools.opcodes] + [b"\x00", b"1\n"]),
        max_size=30,
    )
)
@settings(max_examples=300)
def test_any_instructions_are_data_or_a_build_error(folder, codes):
    try:
        repr(load(folder, b"".join(codes) + b"."))
    except BuildError as error:
        assert len(str(error)) < 700
