"""MATLAB files (versions 5 to 7.2) as plain lists, dicts, texts and numbers.

`scipy.io.loadmat` gives arrays of one or two dimensions, structs or lists of structs, depending on how many elements
there are and on its options. Here a struct is **always** a list of dicts and a cell array always a list, also where
there is one element or none, so that a reader has one case to handle.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import readers

# What the variables of a file may take once they are decompressed.
MAX_BYTES = 1 << 30
_COMPRESSED = 15
_MAX_DEPTH = 16


def load(root: str, path: str, *names: str) -> dict[str, Any]:
    """The variables `names` of a MATLAB file. Raises BuildError where it is none, is damaged or lacks one of them.

    structs: list of dicts by field. Cell arrays: list. Text: str (several rows: list of them). Numbers: list of
    float. Everything else (functions, objects): None.
    """
    from scipy.io import loadmat

    full = storage.join(root, path)
    data = readers.read(root, path)
    if b"MATLAB 7.3" in data[:128]:
        raise BuildError(f"{full}: a MATLAB 7.3 file; save it again in MATLAB with save(..., '-v7')")
    try:
        _check_size(data)
        found = loadmat(io.BytesIO(data), variable_names=list(names))
        missing = [name for name in names if name not in found]
        values = {name: _plain(found[name], 0) for name in names if name in found}
    except Exception as error:  # a damaged file raises whatever its bytes make it
        shown = f"{type(error).__name__}: {error}"[:300]
        raise BuildError(f"{full}: not a MATLAB file that can be read ({shown}); fetch it again") from error
    if missing:
        raise BuildError(f"{full}: variable {', '.join(missing)} missing; is it the right file?")
    return values


def _plain(value: Any, depth: int) -> Any:
    import numpy as np

    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    if not isinstance(value, np.ndarray):
        return None
    if value.dtype.names:
        return [
            {name: _plain(element[name], depth + 1) for name in value.dtype.names}
            for element in value.ravel(order="F")
        ]
    if value.dtype.kind == "O":
        return [_plain(element, depth + 1) for element in value.ravel(order="F")]
    if value.dtype.kind == "U":
        lines = [str(line) for line in value.ravel()]
        return lines[0] if len(lines) == 1 else lines or ""
    if value.dtype.kind in "biuf":
        return [float(number) for number in value.ravel(order="F")]
    return None


def _check_size(data: bytes) -> None:
    """Raise ValueError where the variables would take more than `MAX_BYTES`, without keeping what is decompressed."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None:
        raise ValueError("no MATLAB 5 header")
    place, total = 128, 0
    while place + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        if kind == _COMPRESSED:
            inflate, rest = zlib.decompressobj(), data[place + 8 : place + 8 + size]
            while rest and not inflate.eof:
                total += len(inflate.decompress(rest, 1 << 20))
                rest = inflate.unconsumed_tail
                if total > MAX_BYTES:
                    break
        else:
            total += size
        if total > MAX_BYTES:
            raise ValueError(f"its variables take more than {MAX_BYTES >> 20} MiB")
        place += 8 + size
