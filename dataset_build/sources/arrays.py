"""NumPy files that hold one value each, as some sources write a label per picture. Objects are never unpickled."""

from __future__ import annotations

import io
import math

from dataset_build.sources import readers

# A scalar as text is a few characters; a header that announces more is not ours.
_MAX_ITEM_BYTES = 256


def scalar(root: str, path: str) -> str:
    """The only value of a `.npy` file as text, be it a number, a text or an array of one of them.

    Raises ValueError saying what was found for anything else, BuildError where the file cannot be read.
    """
    import numpy as np

    data = readers.read(root, path)
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
    except Exception as error:  # a damaged header raises whatever its bytes make it
        raise ValueError(f"not a NumPy file, it starts with {data[:16]!r}") from error
    # Checked before a value is read: the header alone decides how much memory is taken.
    if dtype.hasobject or dtype.names or math.prod(shape) != 1 or not 0 < dtype.itemsize <= _MAX_ITEM_BYTES:
        raise ValueError(f"expected one number or text, found shape {shape} of {str(dtype)[:80]}")
    stream.seek(0)
    try:
        value = np.load(stream, allow_pickle=False).reshape(())[()]
    except Exception as error:
        raise ValueError(f"the value is cut short or damaged ({type(error).__name__})") from error
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
