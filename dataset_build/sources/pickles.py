"""Pickles of hostile origin: only plain containers, texts, numbers and NumPy arrays come out; nothing is executed.

A pickle is a program for a small machine. This one runs a subset of it: the instructions that build None, numbers,
texts, bytes, lists, tuples, dicts and sets, and the few calls with which pickles spell NumPy arrays, sets and ordered
dicts. Those calls go to functions of this module, never to what the pickle names: NumPy's own `_reconstruct` and
`dtype` trust their arguments with memory. What the machine builds is bounded as well: how many instructions, how deep,
how large when every shared part is written out, and what may be hashed (nested tuples take exponential time).
Protocols 0 to 5 are read; texts of Python 2 as latin-1.
"""

from __future__ import annotations

import functools
import io
import pickle
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from dataset_build import storage
from dataset_build.errors import BuildError
from dataset_build.sources import readers

if TYPE_CHECKING:
    import numpy

# One instruction makes at most about 200 bytes beside what it copies out of the file.
MAX_INSTRUCTIONS = 20_000_000
MAX_DEPTH = 50
# Values counted as often as they are reached; a file of shared lists can write out to more than any memory holds.
MAX_VALUES = 50_000_000
# Python neither prints nor reads longer ones in decimal.
MAX_INTEGER_BITS = 4096

_DTYPE = re.compile(r"[<>=|]?(\?|b1|[iuf](1|2|4|8)|f16|c(8|16)|[SUO][0-9]{0,9})", re.ASCII)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
# Left out: calls of classes (NEWOBJ, INST, OBJ), persistent ids, extension codes, out-of-band buffers, DUP.
_INSTRUCTIONS = re.findall(
    r"\w+",
    """
    MARK STOP POP POP_MARK PROTO FRAME NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    BYTEARRAY8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS
    EMPTY_SET ADDITEMS FROZENSET PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD
    """,
)


class _Call:
    """Something a pickle may name and call: the function that does it here."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class _Dtype:
    """A NumPy dtype while it is being described."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not isinstance(code, str) or not _DTYPE.fullmatch(code):
            raise pickle.UnpicklingError(
                f"NumPy type {code!r:.80} is not one of numbers, truth values and texts"
            )
        self.code, self.order = code, "="

    def build(self, state: Any) -> None:
        version, order, *structure = state
        if version not in (3, 4) or order not in ("<", ">", "|", "=") or any(structure[:3]):
            raise pickle.UnpicklingError("a structured NumPy type; only plain ones are read")
        self.order = order

    def dtype(self) -> numpy.dtype[Any]:
        import numpy as np

        found = np.dtype(self.code)
        return found if self.order == "|" else found.newbyteorder(self.order)  # type: ignore[arg-type]


class _Array:
    """A NumPy array between its naming and its contents."""

    def __init__(self, kind: object = None, shape: object = (0,), code: object = b"b") -> None:
        if kind is not _NDARRAY:
            raise pickle.UnpicklingError("only plain NumPy arrays are read")
        self.array: numpy.ndarray[Any, Any] | None = None

    def build(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


def _array(raw: Any, dtype: Any, shape: Any, order: Any = "C") -> numpy.ndarray[Any, Any]:
    """The array that `raw` (its bytes, or for objects the list of them) holds: exactly as many items as `shape` says."""
    import numpy as np

    found = dtype.dtype()
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(size) is int for size in shape):
        raise pickle.UnpicklingError(f"{shape!r:.80} is not the shape of an array")
    count = 1
    for size in shape:
        if size < 0:
            raise pickle.UnpicklingError(f"{shape!r:.80} is not the shape of an array")
        count *= size
    if found.kind == "O":
        if not isinstance(raw, list) or len(raw) != count:
            raise pickle.UnpicklingError(f"an array of shape {shape} without its {count} objects")
        flat = np.empty(count, dtype=object)
        for place, item in enumerate(raw):
            flat[place] = item
    else:
        data = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(data, bytes) or found.itemsize == 0 or len(data) != count * found.itemsize:
            raise pickle.UnpicklingError(
                f"an array of shape {shape} and type {found} whose data have another size"
            )
        flat = np.frombuffer(data, found) if data else np.empty(0, found)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, raw: Any) -> Any:
    if dtype.code.lstrip("<>=|").startswith("O"):
        raise pickle.UnpicklingError("a NumPy scalar that is an object")
    return _array(raw, dtype, ())[()]


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """How Python 3 spells bytes in the protocols of Python 2. Other codecs could grow a text without bound."""
    if encoding not in ("latin1", "latin-1", "utf-8"):
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r:.80}, which data do not need")
    return bytes(text.encode(encoding))


def _unique(values: Any = (), kind: Callable[..., Any] = set) -> Any:
    for value in values:
        _check_key(value)
    return kind(values)


def _pairs(pairs: Any = ()) -> dict[Any, Any]:
    found = {}
    for key, value in pairs:
        _check_key(key)
        found[key] = value
    return found


def _check_key(key: Any, depth: int = 0) -> None:
    """Only keys whose hash takes no time to speak of: nested tuples and chosen integers are ways to hang a program."""
    if key is None or isinstance(key, (str, bytes, bool)) or (type(key) is int and abs(key) < 1 << 60):
        return
    if type(key) is tuple and len(key) <= 16 and depth < 2:
        for part in key:
            _check_key(part, depth + 1)
        return
    import numpy as np

    # Of at most 64 bits, and with the hash of Python's own number: the same bound holds.
    if isinstance(key, np.integer) and key.dtype.kind in "iu" and abs(int(key)) < 1 << 60:
        return
    raise pickle.UnpicklingError(f"a {type(key).__name__} as a key; data use texts and numbers")


_NDARRAY = _Call(_Array)  # named only as the class of an array; a call of it is refused for want of itself
_NAMES: dict[tuple[str, str], _Call] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _Call(_Dtype),
    ("_codecs", "encode"): _Call(_encode),
    ("collections", "OrderedDict"): _Call(_pairs),
    **{(module, "set"): _Call(_unique) for module in ("builtins", "__builtin__")},
    # Without arguments only: how the first protocols spell b"".
    **{(module, "bytes"): _Call(lambda: b"") for module in ("builtins", "__builtin__")},
    **{
        (module, "frozenset"): _Call(lambda values=(): _unique(values, frozenset))
        for module in ("builtins", "__builtin__")
    },
    **{
        (f"numpy.{core}.{module}", name): _Call(function)
        for core in ("core", "_core")
        for module, name, function in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _array),
        )
    },
}


class _Machine(pickle._Unpickler):  # type: ignore[misc, name-defined]  # the one written in Python
    """The standard library's own machine with fewer instructions, each call and each key checked."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]  # type: ignore[attr-defined]
        for name in _INSTRUCTIONS
    }

    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="latin1")
        self.left = MAX_INSTRUCTIONS

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data do not need"[:300])
        return _NAMES[module, name]

    def reduce(self) -> None:
        arguments = self.stack.pop()
        call = self.stack[-1]
        if type(call) is not _Call or type(arguments) is not tuple:
            raise pickle.UnpicklingError(f"it calls a {type(call).__name__}")
        self.stack[-1] = call.function(*arguments)

    def build(self) -> None:
        state = self.stack.pop()
        unfinished = self.stack[-1]
        if type(unfinished) not in (_Dtype, _Array):
            raise pickle.UnpicklingError(f"it changes the inside of a {type(unfinished).__name__}")
        unfinished.build(state)
        self.stack[-1] = _finished(unfinished)

    def buffer(self) -> None:
        """BYTEARRAY8 as bytes; the library makes room for what is announced before it looks for it."""
        size = int.from_bytes(self.read(8), "little")
        self.stack.append(self.read(size))

    def get(self, load: Callable[[Any], None]) -> None:
        load(self)
        self.stack[-1] = _finished(self.stack[-1])

    def container(self, kind: type, load: Callable[[Any], None]) -> None:
        """An instruction that puts what is behind the mark into the container before it."""
        if not self.metastack or not self.metastack[-1] or type(self.metastack[-1][-1]) is not kind:
            raise pickle.UnpicklingError(f"no {kind.__name__} to put things into")
        for key in self.stack if kind is set else self.stack[::2] if kind is dict else ():
            _check_key(key)
        load(self)

    def one(self, kind: type, place: int, load: Callable[[Any], None]) -> None:
        """An instruction that puts one thing, or a key and a value, into a container at `place` of the stack."""
        if type(self.stack[place]) is not kind:
            raise pickle.UnpicklingError(f"no {kind.__name__} to put things into")
        if kind is dict:
            _check_key(self.stack[-2])
        load(self)

    def keyed(self, step: int, load: Callable[[Any], None]) -> None:
        for key in self.stack[::step]:
            _check_key(key)
        load(self)


def _finished(value: Any) -> Any:
    return value.array if type(value) is _Array and value.array is not None else value


def _check_instructions() -> None:
    """Wrap the instructions that call, fill containers, hash or take from the memo."""
    table = _Machine.dispatch

    def wrap(names: str, method: Callable[..., None], *arguments: Any) -> None:
        for name in names.split():
            code = getattr(pickle, name)[0]
            table[code] = functools.partial(_checked, method, arguments, table[code])

    wrap("GET BINGET LONG_BINGET", _Machine.get)
    wrap("APPENDS", _Machine.container, list)
    wrap("SETITEMS", _Machine.container, dict)
    wrap("ADDITEMS", _Machine.container, set)
    wrap("APPEND", _Machine.one, list, -2)
    wrap("SETITEM", _Machine.one, dict, -3)
    wrap("DICT", _Machine.keyed, 2)
    wrap("FROZENSET", _Machine.keyed, 1)
    table[pickle.REDUCE[0]] = _Machine.reduce
    table[pickle.BUILD[0]] = _Machine.build
    table[pickle.BYTEARRAY8[0]] = _Machine.buffer
    for code, load in list(table.items()):
        table[code] = _counted(load)


def _checked(
    method: Callable[..., None], arguments: tuple[Any, ...], load: Callable[[Any], None], machine: _Machine
) -> None:
    method(machine, *arguments, load)


def _counted(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def run(machine: _Machine) -> None:
        machine.left -= 1
        if machine.left < 0:
            raise pickle.UnpicklingError(f"more than {MAX_INSTRUCTIONS} instructions")
        load(machine)

    return run


_check_instructions()


def load(root: str, path: str) -> Any:
    """The value of a pickle (Python 2's too, texts as latin-1); its arrays may be read-only.

    Raises BuildError where it asks for anything but data, is damaged, or builds more than the limits above.
    """
    full = storage.join(root, path)
    data = readers.read(root, path)
    try:
        value = _Machine(data).load()
        _check(value)
    except Exception as error:  # a damaged pickle raises whatever its bytes make it
        shown = f"{type(error).__name__}: {error}"[:300]
        raise BuildError(f"{full}: not a pickle of plain data ({shown}); fetch the source again") from error
    return value


def _check(value: Any) -> None:
    """Raises UnpicklingError where a value is not plain data, or too deep or too large to walk through."""
    import numpy as np

    # id → (how many values it is when written out, how deep); None while its parts are being counted.
    known: dict[int, tuple[int, int] | None] = {}
    waiting = [value]
    while waiting:
        node = waiting[-1]
        if isinstance(node, (*_PLAIN, np.generic)):
            if type(node) is int and node.bit_length() > MAX_INTEGER_BITS:
                raise pickle.UnpicklingError(f"a whole number of {node.bit_length()} bits")
            known[id(node)] = (1, 0)
            waiting.pop()
            continue
        parts = _parts(node)
        if id(node) in known:  # its parts are counted, or it was met before
            if known[id(node)] is None:
                sizes = [known[id(part)] for part in parts]
                if None in sizes:
                    raise pickle.UnpicklingError("a container that holds itself")
                count = 1 + sum(size[0] for size in sizes if size)
                depth = 1 + max((size[1] for size in sizes if size), default=0)
                if count > MAX_VALUES or depth > MAX_DEPTH:
                    limits = f"{MAX_VALUES} values and {MAX_DEPTH} levels"
                    raise pickle.UnpicklingError(f"more than {limits} when shared parts are written out")
                known[id(node)] = (count, depth)
            waiting.pop()
            continue
        known[id(node)] = None
        for part in parts:
            if id(part) not in known:
                waiting.append(part)
            elif known[id(part)] is None:
                raise pickle.UnpicklingError("a container that holds itself")


def _parts(node: Any) -> list[Any]:
    import numpy as np

    if type(node) is dict:
        return [*node.keys(), *node.values()]
    if type(node) in (list, tuple, set, frozenset):
        return list(node)
    if type(node) is np.ndarray:
        return list(node.flat) if node.dtype.kind == "O" else []
    raise pickle.UnpicklingError(f"a {type(node).__name__} is left in it, which is no data")
