"""MATLAB files (versions 5 to 7.2) as plain lists, dicts, texts and numbers, one element of a struct array at a time.

`scipy.io.loadmat` is not used: on damaged files its compiled reader has ended the whole process with a segmentation
fault, and data sets are hostile input here. It also gives arrays of one or two dimensions, structs or lists of structs,
depending on how many elements there are. Here a struct array is always a list of dicts and a cell array always a list,
also where there is one element or none, so that a reader has one case to handle.

The format is that of "MAT-File Format" (MathWorks), level 5: a header of 128 bytes, then data elements. An element is a
tag (type, size in bytes; both in one word where the data take four bytes or fewer) and its data, padded to eight bytes. A matrix is
an element of elements: flags, dimensions, name, then what its class asks for. Every element lies inside the one that
holds it, so no count in the file can ask for more memory than the file has bytes, a few times over.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import readers

# What one variable of a file may take once it is decompressed.
MAX_BYTES = 1 << 30
_MAX_DEPTH = 16
_MATRIX, _COMPRESSED = 14, 15
# Types of data elements: numbers by struct code, texts by encoding (without byte order, which the header gives).
_NUMBERS = {1: "b", 2: "B", 3: "h", 4: "H", 5: "i", 6: "I", 7: "f", 9: "d", 12: "q", 13: "Q"}
_TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
# Classes of matrices.
_CELL, _STRUCT, _CHAR, _NUMERIC = 1, 2, 4, range(6, 16)


class _Element(NamedTuple):
    kind: int
    start: int
    end: int  # of the data
    next: int  # where the element behind it starts


class _Matrix(NamedTuple):
    kind: int
    dimensions: tuple[int, ...]
    name: str
    start: int  # behind the name
    end: int


def structs(root: str, path: str, name: str) -> Iterator[dict[str, Any]]:
    """The elements of the struct array `name` of a MATLAB file, each a dict by field.

    Values: a struct array is a list of dicts, a cell array a list, text a str (of several rows: a list of them),
    numbers a list of float; everything else (functions, objects, sparse matrices) is None.
    Raises BuildError where the file is none, is damaged, or has no such struct array.
    """
    full = storage.join(root, path)
    data = readers.read(root, path)
    if b"MATLAB 7.3" in data[:128]:
        raise BuildError(f"{full}: a MATLAB 7.3 file; save it again in MATLAB with save(..., '-v7')")
    try:
        order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
        if order is None:
            raise ValueError("no MATLAB 5 header")
        for buffer in _variables(data, order):
            reader = _Reader(buffer, order)
            matrix = reader.matrix(reader.element(0, len(buffer)))
            if matrix is not None and matrix.name == name:
                if matrix.kind != _STRUCT:
                    raise ValueError(f"{name} is no struct array")
                yield from reader.elements(matrix, 0)
                return
    except (ValueError, OverflowError, struct.error, zlib.error) as error:
        raise BuildError(f"{full}: not a MATLAB file that can be read ({error}); fetch it again") from error
    raise BuildError(f"{full}: variable {name} missing; is it the right file?")


def _variables(data: bytes, order: str) -> Iterator[bytes]:
    """The matrix element of each variable, decompressed."""
    reader, place = _Reader(data, order), 128
    while place + 8 <= len(data):
        element = reader.element(place, len(data))
        if element.kind == _COMPRESSED:
            inflate = zlib.decompressobj()
            found = inflate.decompress(data[element.start : element.end], MAX_BYTES)
            if inflate.unconsumed_tail:
                raise ValueError(f"a variable takes more than {MAX_BYTES >> 20} MiB")
            yield found
        else:
            yield data[place : element.end]
        place = element.next


class _Reader:
    """Elements of one buffer, each checked to lie inside the one that holds it. Raises ValueError, struct.error."""

    def __init__(self, data: bytes, order: str) -> None:
        self.data, self.order = data, order

    def element(self, place: int, limit: int) -> _Element:
        """The element whose tag is at `place`; it must end at `limit` at the latest."""
        if place + 8 > limit:
            raise ValueError(f"an element is cut short at byte {place}")
        kind, size = struct.unpack_from(f"{self.order}II", self.data, place)
        if kind >> 16:  # type and size share the first word
            element = _Element(kind & 0xFFFF, place + 4, place + 4 + (kind >> 16), place + 8)
            if element.end > element.next:
                raise ValueError(f"a small element at byte {place} says {kind >> 16} bytes")
            return element
        end = place + 8 + size
        if end > limit:
            raise ValueError(f"the element at byte {place} ends behind what holds it")
        padding = 0 if kind == _COMPRESSED else -size % 8
        return _Element(kind, place + 8, end, min(end + padding, limit))

    def matrix(self, element: _Element) -> _Matrix | None:
        """What a matrix element says of itself; None for an empty one and for what is no matrix."""
        if element.kind != _MATRIX or element.start == element.end:
            return None
        flags = self.element(element.start, element.end)
        (word,) = self.numbers(flags)[:1] or [0]
        kind = int(word) & 0xFF
        if kind > _NUMERIC.stop - 1:  # functions and objects have no dimensions
            return _Matrix(kind, (), "", element.end, element.end)
        sizes = self.element(flags.next, element.end)
        dimensions = tuple(int(size) for size in self.numbers(sizes))
        if not 2 <= len(dimensions) <= _MAX_DEPTH or min(dimensions) < 0:
            raise ValueError(f"the dimensions at byte {sizes.start} are {dimensions[:8]}")
        name = self.element(sizes.next, element.end)
        return _Matrix(kind, dimensions, self.text(name), name.next, element.end)

    def value(self, element: _Element, depth: int) -> Any:
        """The plain value of a matrix element."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"nested deeper than {_MAX_DEPTH}")
        matrix = self.matrix(element)
        if matrix is None:
            return []
        if matrix.kind == _STRUCT:
            return list(self.elements(matrix, depth))
        if matrix.kind == _CELL:
            values, place = [], matrix.start
            for _ in range(self.count(matrix)):
                cell = self.element(place, matrix.end)
                values.append(self.value(cell, depth + 1))
                place = cell.next
            return values
        if matrix.kind == _CHAR:
            return self.lines(matrix)
        if matrix.kind in _NUMERIC:
            return [float(number) for number in self.numbers(self.element(matrix.start, matrix.end))]
        return None

    def elements(self, matrix: _Matrix, depth: int) -> Iterator[dict[str, Any]]:
        """The elements of a struct array."""
        width = self.element(matrix.start, matrix.end)
        (length,) = (int(number) for number in self.numbers(width)[:1] or [0])
        names = self.element(width.next, matrix.end)
        packed = self.data[names.start : names.end]
        if length <= 0 or not packed:
            return
        fields = [
            packed[at : at + length].split(b"\0")[0].decode("latin-1") for at in range(0, len(packed), length)
        ]
        place = names.next
        for _ in range(self.count(matrix)):
            found: dict[str, Any] = {}
            for field in fields:
                element = self.element(place, matrix.end)
                found[field] = self.value(element, depth + 1)
                place = element.next
            yield found

    def count(self, matrix: _Matrix) -> int:
        """How many elements a cell or struct array has: each takes a tag of eight bytes at least."""
        count = math.prod(matrix.dimensions)
        if count * 8 > matrix.end - matrix.start:
            raise ValueError(f"{count} elements in {matrix.end - matrix.start} bytes")
        return count

    def lines(self, matrix: _Matrix) -> str | list[str]:
        """Text: stored column by column, so that the letters of the rows take turns."""
        if math.prod(matrix.dimensions) == 0:
            return ""
        text = self.text(self.element(matrix.start, matrix.end))
        rows = matrix.dimensions[0]
        if rows == 1:
            return text
        if math.prod(matrix.dimensions) != len(text):
            raise ValueError(f"{len(text)} letters in a text of {matrix.dimensions}")
        return [text[row::rows] for row in range(rows)]

    def numbers(self, element: _Element) -> tuple[float, ...]:
        code = _NUMBERS.get(element.kind)
        if code is None:
            raise ValueError(f"numbers of the unknown type {element.kind}")
        count = (element.end - element.start) // struct.calcsize(code)
        return struct.unpack_from(f"{self.order}{count}{code}", self.data, element.start)

    def text(self, element: _Element) -> str:
        encoding = _TEXTS.get(element.kind)
        if encoding is None:
            raise ValueError(f"text of the unknown type {element.kind}")
        if encoding in ("utf-16", "utf-32"):
            encoding += "-le" if self.order == "<" else "-be"
        return self.data[element.start : element.end].decode(encoding, "replace")
