"""Pickles of hostile origin: only plain containers, texts, numbers and NumPy arrays come out; nothing is executed."""

from __future__ import annotations

import io
import pickle
from typing import Any

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import readers

# (module, name) of everything a pickle may call. None of them runs code of the pickle's choice.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("__builtin__", "set"),
    ("__builtin__", "frozenset"),
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data do not need")
        return super().find_class(module, name)


def load(root: str, path: str) -> Any:
    """The value of a pickle (Python 2's too, texts as latin-1). Raises BuildError where it asks for anything but data."""
    full = storage.join(root, path)
    try:
        return _Restricted(io.BytesIO(readers.read(root, path)), encoding="latin1").load()
    except BuildError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes make it
        raise BuildError(
            f"{full}: not a pickle of plain data ({type(error).__name__}: {error})"[:500]
        ) from error
