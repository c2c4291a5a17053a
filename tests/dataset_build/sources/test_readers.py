"""Readers: what they read, what they refuse, and that hostile bytes cost neither time nor memory nor a row unseen."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_build.errors import BuildError
from dataset_build.sources import readers, tables

# Half a surrogate pair cannot be in a file.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\x00\x1e"), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def put(root: Path, data: bytes | str, name: str = "a.csv") -> str:
    (root / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(root)


def table(root: Path, data: bytes | str, *columns: str, **options) -> list[readers.Row]:
    return list(readers.table(put(root, data), "a.csv", columns or ("a",), **options))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """For property tests, which write the same file again and again."""
    return tmp_path_factory.mktemp("readers")


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["../secret.csv", "/etc/hostname", "a/../../secret.csv", "\\secret", "s3://b/a.csv"]
)
def test_a_path_that_leaves_the_root_is_neither_read_nor_seen(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.csv").write_text("a\n1\n")
    assert not readers.exists(str(root), path)
    for use in (readers.read, readers.text, readers.listing):
        with pytest.raises(BuildError, match="leads out"):
            use(str(root), path)
    assert readers.same_name(str(root), path) == path


@pytest.mark.parametrize("path", ["a\x00.csv", "\ud800.csv"])
def test_a_path_that_names_no_file_is_a_clear_error(tmp_path, path):
    assert not readers.exists(str(tmp_path), path)
    with pytest.raises(BuildError, match="not the name of a file"):
        readers.read(str(tmp_path), path)


def test_a_link_out_of_the_root_is_not_followed_and_the_error_says_so(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.csv").write_text("a\n1\n")
    (root / "a.csv").symlink_to(tmp_path / "secret.csv")
    (root / "up").symlink_to(tmp_path)
    (root / "inside.csv").write_text("a\n1\n")
    (root / "b.csv").symlink_to(root / "inside.csv")
    for path in ("a.csv", "up/secret.csv"):
        assert not readers.exists(str(root), path)
        with pytest.raises(BuildError, match="a link leads out"):
            readers.read(str(root), path)
        with pytest.raises(BuildError, match="a link leads out"):
            readers.find(str(root), path)
    with pytest.raises(BuildError, match="a link leads out"):
        readers.listing(str(root), "up")
    assert readers.read(str(root), "b.csv") == b"a\n1\n"


def test_a_root_that_is_a_link_is_a_root(tmp_path):
    put(tmp_path, "a\n1\n")
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    assert readers.exists(f"{tmp_path}-link", "a.csv")
    assert readers.text(f"{tmp_path}-link", "a.csv") == "a\n1\n"


def test_find_takes_the_first_that_is_there_and_names_all_otherwise(tmp_path):
    put(tmp_path, "", "b.csv")
    assert readers.find(str(tmp_path), "a.csv", "b.csv") == "b.csv"
    with pytest.raises(BuildError, match=r"a\.csv, c\.csv"):
        readers.find(str(tmp_path), "a.csv", "c.csv")


def test_a_listing_leaves_out_what_operating_systems_leave_behind(tmp_path):
    for name in ("b/2.jpg", "b/1.jpg", "b/.DS_Store", "__MACOSX/b/._1.jpg", ".git/config", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert readers.listing(str(tmp_path)) == ["a.txt", "b/1.jpg", "b/2.jpg"]
    assert readers.listing(str(tmp_path), "b") == ["b/1.jpg", "b/2.jpg"]
    with pytest.raises(BuildError, match="c: the folder is not there"):
        readers.listing(str(tmp_path), "c")


def test_a_pipe_or_a_folder_is_an_error_and_not_an_endless_wait(tmp_path):
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    for name in ("a.csv", "b.csv"):
        with pytest.raises(BuildError, match="not a regular file"):
            readers.read(str(tmp_path), name)


def test_what_is_no_annotation_file_is_named_with_its_remedy(tmp_path, monkeypatch):
    with pytest.raises(BuildError, match=r"a\.csv: the annotation file cannot be read .*fetch the source"):
        readers.read(str(tmp_path), "a.csv")
    put(tmp_path, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(BuildError, match="git lfs pull"):
        readers.read(str(tmp_path), "a.csv")
    with open(tmp_path / "a.csv", "wb") as stream:
        stream.truncate(readers.MAX_ANNOTATION_BYTES + 1)  # a hole: no byte of it is on the disk
    with pytest.raises(BuildError, match="too large for an annotation file"):
        readers.read(str(tmp_path), "a.csv")


def test_a_name_is_found_in_the_other_unicode_form(tmp_path):
    put(tmp_path, "", "caf\u00e9.mp4")
    assert readers.same_name(str(tmp_path), "cafe\u0301.mp4") == "caf\u00e9.mp4"
    assert readers.same_name(str(tmp_path), "th\u00e9.mp4") == "th\u00e9.mp4"


# --- text ------------------------------------------------------------------------------------------------------------


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufeff"), max_size=60))
def test_utf_8_and_utf_16_with_a_bom_read_alike(value):
    plain = readers.decode(value.encode())
    for data in (
        value.encode("utf-8-sig"),
        b"\xff\xfe" + value.encode("utf-16-le"),
        b"\xfe\xff" + value.encode("utf-16-be"),
    ):
        assert readers.decode(data) == plain


@given(st.binary(max_size=200))
def test_any_bytes_become_text_without_half_characters_or_misread_controls(data):
    value = readers.decode(data)
    value.encode()
    assert not any(code in value for code in map(chr, (0x80, 0x85, 0x92, 0x93, 0x9F)))


def test_only_the_line_that_is_no_utf_8_is_read_as_windows_1252():
    data = "café\n".encode() + "it’s naïve\n".encode("cp1252") + "日本".encode()
    assert readers.decode(data) == "café\nit’s naïve\n日本"
    assert readers.decode(b"\xef\xbb\xbf" + data) == "café\nit’s naïve\n日本"


def test_a_large_file_of_both_encodings_reads_line_by_line_too():
    lines = ["café"] * 300_000
    data = "\n".join(lines).encode() + b"\nna\xefve\n" + "\n".join(lines).encode()
    assert readers.decode(data) == "\n".join([*lines, "naïve", *lines])


def test_c1_controls_become_the_characters_that_windows_means():
    assert readers.decode("it\u0092s".encode()) == "it’s"


def test_half_a_surrogate_pair_in_bytes_is_no_half_character():
    readers.decode(b"a\xed\xa0\x80b").encode()


# --- JSON ------------------------------------------------------------------------------------------------------------


@given(JSON)
@settings(max_examples=60)
def test_json_comes_back_as_it_was_written(folder, value):
    put(folder, json.dumps([value]), "a.json")
    expected = json.loads(readers.mend_c1(json.dumps([value])))
    assert readers.json_value(str(folder), "a.json", list) == expected


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "not JSON"),
        ("[1, 2", "not JSON"),
        ("{}", "expected a JSON list, found a dict"),
        ("[" * 1_000_000, "too many levels of brackets"),
        ('[{"a":' * 100_000, "too many levels of brackets"),
        ("[" + "9" * 5000 + "]", "not JSON"),  # Python's own limit for reading whole numbers
        ('[{"id": 1, "id": 2}]', "the key 'id' stands twice"),
        ('[{"' + "k" * 9999 + '": 1, "' + "k" * 9999 + '": 2}]', "stands twice"),
        ("\x00[]", "not JSON"),
    ],
    ids=["empty", "cut", "dict", "brackets", "objects", "digits", "twice", "long key", "NUL"],
)
def test_what_is_not_json_is_an_error_that_names_the_file(tmp_path, content, says):
    put(tmp_path, content, "a.json")
    with pytest.raises(BuildError, match=says) as error:
        readers.json_value(str(tmp_path), "a.json", list)
    assert str(tmp_path / "a.json") in str(error.value) and len(str(error.value)) < 600


def test_numbers_that_are_none_come_as_floats_that_number_and_whole_refuse(tmp_path):
    put(tmp_path, "[NaN, Infinity, -Infinity, 1e999]", "a.json")
    for value in readers.json_value(str(tmp_path), "a.json", list):
        assert not math.isfinite(value) and readers.number(value) is None and readers.whole(value) is None


def test_a_json_file_beyond_the_limit_is_not_even_read(tmp_path):
    with open(tmp_path / "a.json", "wb") as stream:
        stream.truncate(readers.MAX_JSON_BYTES + 1)
    with pytest.raises(BuildError, match="too large"):
        readers.json_value(str(tmp_path), "a.json", list)


def test_items_keep_repeated_keys_of_the_whole_and_refuse_those_inside(tmp_path):
    put(tmp_path, '{"1": {"a": 1}, "2": {"a": 2}, "1": {"a": 3}}', "a.json")
    assert readers.json_items(str(tmp_path), "a.json") == [("1", {"a": 1}), ("2", {"a": 2}), ("1", {"a": 3})]
    for content in ('{"1": {"a": 1, "a": 2}}', '{"1": {"b": {"a": 1, "a": 2}}, "2": {}}'):
        put(tmp_path, content, "a.json")
        with pytest.raises(BuildError, match="the key 'a' stands twice"):
            readers.json_items(str(tmp_path), "a.json")
    for content in ('[{"a": 1}]', "3", '{"a": '):
        put(tmp_path, content, "a.json")
        with pytest.raises(BuildError):
            readers.json_items(str(tmp_path), "a.json")


@given(st.lists(st.dictionaries(LINE, LINE, max_size=3), max_size=5), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=60)
def test_json_lines_are_numbered_as_an_editor_does(folder, rows, end):
    content = end.join(["", *(json.dumps(row) for row in rows), ""])
    put(folder, content, "a.jsonl")
    expected = [(number, json.loads(readers.mend_c1(json.dumps(row)))) for number, row in enumerate(rows, 2)]
    assert list(readers.json_lines(str(folder), "a.jsonl")) == expected


def test_a_bad_line_costs_itself_and_no_other(tmp_path):
    bad = ["[1]", "{", "nonsense", '{"a": 1, "a": 2}', "[" * 200_000, '{"a": ' + "9" * 5000 + "}", "\x00"]
    put(tmp_path, "\n".join(['{"n": 0}', *bad, '{"n": 1}']), "a.jsonl")
    found = list(readers.json_lines(str(tmp_path), "a.jsonl"))
    assert [number for number, _ in found] == list(range(1, len(bad) + 3))
    assert found[0][1] == {"n": 0} and found[-1][1] == {"n": 1}
    assert all(isinstance(value, str) and len(value) < 300 for _, value in found[1:-1])


def test_a_line_may_hold_separators_that_python_splits_at_elsewhere(tmp_path):
    put(tmp_path, '{"a": "x\u2028y\u0085z"}\n', "a.jsonl")
    assert len(list(readers.json_lines(str(tmp_path), "a.jsonl"))) == 1


# --- tables ----------------------------------------------------------------------------------------------------------


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8) | st.sampled_from(
    ['"', '""', "a,b", "\t", "line\nline", "line\r\nline", "'", " x ", "é"]
)


@given(
    st.lists(st.tuples(CELL, CELL, CELL), max_size=6),
    st.sampled_from([",", "\t", ";"]),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
@settings(max_examples=150)
def test_what_a_csv_writer_writes_comes_back_row_by_row(folder, rows, delimiter, end, bom):
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end)
    writer.writerows([("a", "b", "c"), *rows])
    data = buffer.getvalue().encode("utf-8-sig" if bom else "utf-8")
    found = table(folder, data, "a", "c", delimiter=delimiter)
    expected = [tuple(map(readers.mend_c1, row)) for row in rows if any(cell.strip() for cell in row)]
    assert [tuple(row.cells[name] for name in "abc") for row in found] == expected
    assert [row.line for row in found] == list(range(1, len(expected) + 1))
    assert not any(row.problem for row in found)


@given(st.lists(st.tuples(LINE, LINE), max_size=6))
def test_unquoted_tables_keep_their_quotes(folder, rows):
    rows = [tuple(cell.replace("\t", " ") for cell in row) for row in rows]
    content = "\n".join(["a\tb", *("\t".join(row) for row in rows)])
    expected = [tuple(map(readers.mend_c1, row)) for row in rows if any(cell.strip() for cell in row)]
    assert [(row.cells["a"], row.cells["b"]) for row in table(folder, content, quoting=False)] == expected


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_are_rows_or_a_clear_error(folder, data):
    try:
        rows = table(folder, b"a,b\n" + data)
    except BuildError as error:
        assert "a.csv" in str(error)
    else:
        assert all(row.problem or set(row.cells) == {"a", "b"} for row in rows)


def test_a_table_may_be_a_tab_file_with_a_bom_called_csv_or_one_without_a_header(tmp_path):
    assert table(tmp_path, "\ufeffa\tb\r\n1\t2\r\n", "a", "b") == [readers.Row(1, {"a": "1", "b": "2"})]
    assert table(tmp_path, "1,2\n", header=("a", "b")) == [readers.Row(1, {"a": "1", "b": "2"})]
    assert table(tmp_path, "a\r1\r2\r") == [readers.Row(1, {"a": "1"}), readers.Row(2, {"a": "2"})]


def test_a_quote_that_is_never_closed_costs_its_line_and_no_other(tmp_path):
    """Else it would swallow the rows behind it, and nobody would miss them."""
    for content in ('a,b\n1,x\n2,"y\n3,z\n4,w', 'a,b\n1,x\n2,"y\n3,z\n4,w\n'):
        found = table(tmp_path, content)
        assert [row.cells["a"] for row in found] == ["1", "2", "3", "4"]
        assert [bool(row.problem) for row in found] == [False, True, False, False]
    assert len(table(tmp_path, 'a,b\n1,x\n2,"y\n3,z\n', quoting=False)) == 3
    with pytest.raises(BuildError, match="column a missing"):
        table(tmp_path, '"a,b\n1,2\n')


def test_a_quote_that_the_next_one_closes_costs_no_row_either(tmp_path):
    content = 'a,b,c\n1,x,"y\n2,x,y\n3,"x",y\n4,"x\ny",z\n5,x,y\n'
    found = table(tmp_path, content)
    assert [row.cells["a"] for row in found] == ["1", "2", "3", "4", "5"]
    assert [row.line for row in found if row.problem] == [1]
    assert found[3].cells["b"] == "x\ny"


@given(
    st.integers(0, 30),
    st.data(),
    st.sampled_from(['{n},"x,y', '"{n},x,y', '{n},x,"y', '{n},x""","y', '{n},"x"",y']),
)
def test_every_line_beside_an_open_quote_is_a_row_of_its_own(folder, count, data, broken):
    lines = [f"{number},x,y" for number in range(count)]
    place = data.draw(st.integers(0, count))
    lines.insert(place, broken.replace("{n}", "broken"))
    found = table(folder, "\n".join(["a,b,c", *lines]), "a", "b", "c")
    assert len(found) == len(lines) and found[place].problem
    del found[place]
    assert [row.cells for row in found] == [{"a": str(n), "b": "x", "c": "y"} for n in range(count)]
    assert not any(row.problem for row in found)


def test_quotes_that_are_never_closed_take_no_time_to_speak_of(tmp_path):
    started = time.monotonic()
    assert len(table(tmp_path, b"a,b\n" + b'1,"\n' * 200_001)) >= 100_000
    for line in (b'x"y,"\n', b'"\n', b'1,"""\n', b'",\n"\n'):
        try:
            table(tmp_path, b"a,b\n" + line * 100_000)
        except BuildError as error:
            assert "too many quotes that are never closed" in str(error)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "content, says",
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        ("b,c\n1,2\n", "column a missing; found 'b, c'"),
        ("a,a\n1,2\n", "column a stands twice"),
        ("a,b\n1,2\n".encode("utf-16-le"), "UTF-16 without a BOM"),
    ],
    ids=["empty", "blank", "missing", "twice", "utf-16"],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, content, says):
    with pytest.raises(BuildError, match=says):
        table(tmp_path, content)


def test_odd_rows_come_with_their_problem_and_short(tmp_path):
    huge = "x" * (readers.MAX_CELL_CHARS + 1)
    content = f"a,b\n1\n1,2,3\n1,\x00\n{huge},2\n{huge}\n1,2\n"
    found = table(tmp_path, content)
    assert [row.problem.split(";")[0] for row in found] == [
        "1 cells, the header has 2",
        "3 cells, the header has 2",
        "column b holds a NUL character",
        f"column a holds {len(huge)} characters",
        "1 cells, the header has 2",
        "",
    ]
    assert all(len(cell) <= 200 for row in found for cell in row.cells.values())


def test_a_cell_of_100_mb_costs_its_row_and_no_other(tmp_path):
    data = b'a,b\n1,"' + b"x" * (100 << 20) + b'"\n2,y\n'
    started = time.monotonic()
    first, second = table(tmp_path, data)
    assert "the limit is 1048576" in first.problem and len(first.cells["b"]) == 200
    assert second == readers.Row(2, {"a": "2", "b": "y"})
    assert time.monotonic() - started < 30


def test_a_line_beyond_the_limit_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "MAX_LINE_CHARS", 1000)
    monkeypatch.setattr(tables, "MAX_LINE_CHARS", 1000)
    for content in (f"a,b\n1,{'x' * 1001}\n", 'a,b\n1,"' + "x\n" * 501 + '"\n'):
        with pytest.raises(BuildError, match=r"a\.csv: .*(a line of 1004 characters|field larger than)"):
            table(tmp_path, content)
    put(tmp_path, '{"a": 1}\n{"a": "' + "x" * 1000 + '"}\n', "a.jsonl")
    assert "the limit is 1000" in list(readers.json_lines(str(tmp_path), "a.jsonl"))[1][1]


def test_a_million_empty_lines_and_cells_take_a_moment(tmp_path):
    started = time.monotonic()
    assert table(tmp_path, b"a\n" + b"\n" * 1_000_000) == []
    assert table(tmp_path, b"a\n" + b"," * 1_000_000 + b"1")[0].problem
    assert time.monotonic() - started < 20


# --- values ----------------------------------------------------------------------------------------------------------


@given(JSON.filter(lambda value: "inf" not in repr(value)))
@settings(max_examples=60)
def test_literals_come_back(value):
    assert readers.literal(repr(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "__import__('os').system('true')",
        "open('/etc/passwd')",
        "[1, 2",
        "a",
        "f'{1}'",
        "[].append(1)",
        "'\x00'",
    ]
    + ["(" * 100_000, "[" * 500 + "]" * 500, "-" * 200_000 + "1", "1" + "+1" * 100_000, "9" * 5000, "1_" * 9]
    + ["0x" + "f" * 100_000, "{[]: 1}", "{{}: 1}", "lambda: 1", "'" + "a" * 30, "\ud800", "'\ud800'"]
    + ["1" * (readers.MAX_CELL_CHARS + 1), "2 ** 9", "[1] * 10 ** 9"],
    ids=lambda value: value[:12].encode("unicode_escape").decode(),
)
def test_what_is_no_literal_is_an_error_and_runs_nothing(value):
    with pytest.raises(ValueError, match=r"not a Python literal|too long"):
        readers.literal(value)


@given(st.text(st.sampled_from("[](){}'\",:-+0123456789eExj._ \\nTrue#"), max_size=60) | st.text(max_size=60))
@settings(max_examples=300)
def test_any_text_is_a_literal_that_prints_or_a_value_error(value):
    try:
        repr(readers.literal(value))
    except ValueError as error:
        assert len(str(error)) < 600


def test_a_literal_must_be_text():
    for value in (None, 3, ["a"]):
        with pytest.raises(ValueError, match="expected the text"):
            readers.literal(value)


@given(st.integers(-(10**29), 10**29))
def test_whole_numbers_are_found_in_every_spelling(value):
    for spelling in (value, str(value), f" {value} ", f"{value}.0"):
        assert readers.whole(spelling) == value
    if abs(value) < 2**53:
        assert readers.whole(float(value)) == value


@pytest.mark.parametrize(
    "value", [True, 3.5, "", "nan", "+-3", "--3", "3.0.0", "1_0", "٣", "²", "1e3", "9" * 31, None, []]
)
def test_what_is_no_whole_number_is_none(value):
    assert readers.whole(value) is None


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_found_as_such_and_as_text(value):
    assert readers.number(value) == readers.number(repr(value)) == value


@pytest.mark.parametrize(
    "value", [True, "", "x", "nan", float("nan"), "inf", "1e999", "1_0", "٣", "9" * 10_000_000, 10**400, None, [1], b"1"],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_what_is_no_number_is_none(value):
    started = time.monotonic()
    assert readers.number(value) is None
    assert time.monotonic() - started < 1


@given(st.text(max_size=30) | st.text(string.digits + ".:,- ", max_size=30) | st.none() | st.integers())
@settings(max_examples=300)
def test_seconds_numbers_and_wholes_of_anything_are_finite_or_none(value):
    for found in (readers.seconds(value), readers.number(value), readers.whole(value)):
        assert found is None or math.isfinite(found)


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_seconds_are_read_from_clock_times(hours, minutes, secs, milli):
    total = hours * 3600 + minutes * 60 + secs + milli / 1000
    for spelling in (
        f"{hours}:{minutes:02}:{secs:02},{milli:03}",
        f"{hours}:{minutes}:{secs}.{milli:03}",
        f"{total:.3f}",
    ):
        assert readers.seconds(spelling) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize(
    "value", ["", ":", "1:2:3:4", "-1", "1:-2", "1.5:3", "nan", "1e3", "9" * 399, "1:" + "9" * 395, None, 3]
)
def test_what_is_no_clock_time_is_none(value):
    assert readers.seconds(value) is None


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (900000000000000001, "900000000000000001"),
        ("0042", "0042"),
        (9.00000000000000001e17, ""),
        (True, ""),
        (-5, ""),
        ("12a", ""),
        ("٣", ""),
        (10**30, ""),
        ("1" * 31, ""),
    ],
)
def test_an_id_of_digits_is_never_taken_from_a_float(value, found):
    assert readers.digits(value) == found
