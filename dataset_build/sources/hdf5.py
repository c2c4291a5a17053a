"""Computational sequences (CMU Multimodal SDK): HDF5 files `NAME/data/<video>/{intervals, features}`, read in a process of
their own.

The HDF5 library is C code that a damaged file can crash, and a hostile one can make it open other files or unpack
without end. So it runs in a child with limits on memory and time, gets the bytes on its standard input, follows no
link, and passes numbers back as JSON. This file is run as the child's program: it imports nothing of the project then.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any, NamedTuple

MAX_SEGMENTS = 500_000
MAX_COLUMNS = 64
_MEMORY_BYTES = 4 << 30
_CPU_SECONDS = 120


class Interval(NamedTuple):
    """A stretch of a video in seconds, with the values of all columns; any of them may be NaN."""

    start_s: float
    end_s: float
    values: tuple[float, ...]


def sequence(root: str, path: str, n_columns: int) -> dict[str, list[Interval]]:
    """Video → its intervals in the file's order, videos sorted. Raises BuildError naming the file and what is wrong."""
    from dataset_build import storage
    from dataset_build.errors import BuildError
    from dataset_build.sources import readers

    full = storage.join(root, path)
    command = [sys.executable, "-P", __file__, str(n_columns)]
    try:
        child = subprocess.run(
            command,
            input=readers.read(root, path),
            capture_output=True,
            timeout=2 * _CPU_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{full}: not read within {2 * _CPU_SECONDS} s; fetch the file again") from error
    if child.returncode:
        lines = child.stderr.decode("utf-8", "replace").strip().splitlines()
        why = lines[-1][:300] if lines else f"the HDF5 library ended with {child.returncode}"
        raise BuildError(f"{full}: not a computational sequence ({why}); fetch the file again")
    found = json.loads(child.stdout)
    return {
        video: [Interval(start, end, tuple(values)) for start, end, values in rows]
        for video, rows in found.items()
    }


def _child(data: bytes, n_columns: int) -> dict[str, Any]:
    """Runs in the child. Raises ValueError for what is no computational sequence of `n_columns` columns."""
    import h5py

    with h5py.File(io.BytesIO(data), "r") as file:
        for name in file:
            top = _own(file, name, h5py.Group)
            if "data" in top:
                videos = _own(top, "data", h5py.Group)
                break
        else:
            raise ValueError("no group NAME/data in it")
        left, found = MAX_SEGMENTS, {}
        for video in sorted(videos):
            group = _own(videos, video, h5py.Group)
            intervals = _numbers(_own(group, "intervals", h5py.Dataset), 2, left)
            features = _numbers(_own(group, "features", h5py.Dataset), n_columns, left)
            if len(intervals) != len(features):
                raise ValueError(f"{video}: {len(intervals)} intervals, but {len(features)} rows of features")
            left -= len(intervals)
            found[video] = [[*interval, values] for interval, values in zip(intervals, features)]
        return found


def _own(group: Any, name: str, kind: Any) -> Any:
    """A member of a group that lies in this file: links to other places and files are not followed."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{group.name}/{name} is missing or a link")
    member = group[name]
    if not isinstance(member, kind):
        raise ValueError(f"{group.name}/{name} is not a {kind.__name__.lower()}")
    return member


def _numbers(dataset: Any, n_columns: int, max_rows: int) -> list[list[float]]:
    """The rows of a small table of numbers that is stored in this file."""
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{dataset.name} is stored in another file")
    if dataset.dtype.kind not in "fiu" or len(dataset.shape) != 2 or dataset.shape[1] != n_columns:
        raise ValueError(
            f"{dataset.name} is {dataset.dtype}{dataset.shape}, expected N x {n_columns} numbers"
        )
    if n_columns > MAX_COLUMNS or dataset.shape[0] > max_rows:
        raise ValueError(f"{dataset.name}: more than {MAX_SEGMENTS} rows")
    rows: list[list[float]] = dataset[()].astype("float64").tolist()
    return rows


def _main() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes to a pipe only
    try:
        found = _child(sys.stdin.buffer.read(), int(sys.argv[1]))
    except Exception as error:  # the library raises whatever the bytes make it
        text = str(error).strip() or type(error).__name__
        sys.exit(f"{type(error).__name__}: {text.splitlines()[0]}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    _main()
