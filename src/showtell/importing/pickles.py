"""Pickles and torch checkpoints of strangers, read without running anything that they ask for.

A pickle is a program that names classes and calls them. Here every name stands for `Foreign`, an object that takes
whatever it is given and does nothing, so what comes out is dicts, lists, numbers, texts, tensors and such objects.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import FormatError, NotFoundError

__all__ = ["Foreign", "StoredTensor", "read_checkpoint", "read_pickle"]

_MOST = 64 * 2**20
_MOST_STEPS = 5_000_000
_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, version, machine, the object, the order of its storages


class Foreign:
    """An object of a class that isn't here: `path` is what it was called, `state` its attributes, if it has any.

    Example:
        >>> read_pickle(pickle.dumps(Path("a")), "example").path
        'pathlib.PosixPath'
    """

    def __init__(self, path: str = "") -> None:
        """Nothing is in it yet."""
        self.path = path
        self.state: dict[Any, Any] = {}

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes."""
        state = state[0] if isinstance(state, tuple) and state else state
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """What a dict would take in is of no interest."""

    def append(self, value: Any) -> None:
        """Nor what a list or a set would."""

    extend = add = append


class _Kind:
    """A class that isn't here; calling it makes a `Foreign`."""

    __slots__ = ("path",)

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, *args: Any, **kwargs: Any) -> Foreign:
        return Foreign(self.path)


class _Dict(dict[Any, Any]):
    """A dict of one of the library's kinds; attributes that were set on it are forgotten."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if args and isinstance(args[0], list | dict) else ())

    def __setstate__(self, state: Any) -> None:
        """Take anything, do nothing."""


class StoredTensor(NamedTuple):
    """A tensor that still lies in its file: `load` reads it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], Tensor]


class _Storage(NamedTuple):
    dtype: torch.dtype
    key: str
    elements: int


def read_pickle(data: bytes, what: str) -> Any:
    """The content of one pickle, inert; `what` names it in errors.

    Raises FormatError for what is no pickle, is longer than 64 MiB or 5 million steps, or claims more than it holds.
    """
    return _unpickle(io.BytesIO(data), what, None)


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, of any torch since 0.4, inert: tensors are `StoredTensor`s, modules are `Foreign`.

    Raises NotFoundError when there is no such file, FormatError when torch didn't write it, it is damaged or claims
    more than it holds.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} is a folder; give a file" if path.is_dir() else f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _read_zip(path)
    return _read_legacy(path)


class _Budget:
    """How much is read of a file: tensors may share data, but not thousands all of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.left = path, 16 * path.stat().st_size

    def on(self, storage: _Storage) -> None:
        self.left -= storage.elements * storage.dtype.itemsize
        if self.left < 0:
            raise FormatError(f"{self.path}: its tensors are parts of one another many times over")


# --- torch's two formats ----------------------------------------------------------------------------------------------


def _read_zip(path: Path) -> Any:
    try:
        archive = zipfile.ZipFile(path)
        entries = {info.filename: info for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise FormatError(f"{path} is a compressed archive; torch.save writes uncompressed ones")
        name = next((name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")), None)
        if name is None:
            raise FormatError(f"{path} is an archive without data.pkl; torch.save didn't write it")
        folder = name.removesuffix("data.pkl")
        if entries[name].file_size > _MOST:
            raise FormatError(f"{path}: its pickle is longer than {_MOST:,} bytes")
        content = archive.read(name)
    except FormatError:
        raise
    except _ZIP_ERRORS as error:
        raise FormatError(f"{path} is a damaged archive: {error!s:.200}") from error

    spent = _Budget(path)

    def bytes_of(storage: _Storage) -> bytes:
        spent.on(storage)
        info = entries.get(f"{folder}data/{storage.key}")
        if info is None or info.file_size != storage.elements * storage.dtype.itemsize:
            raise FormatError(f"{path} holds no tensor data {storage.key!r:.60} of the size that it claims")
        try:
            return archive.read(info)
        except _ZIP_ERRORS as error:
            raise FormatError(f"{path} is damaged: {error!s:.200}") from error

    return _unpickle(io.BytesIO(content), str(path), bytes_of)


def _read_legacy(path: Path) -> Any:
    """Five pickles, then of each storage how many elements it has (8 bytes) and the elements."""
    with path.open("rb") as file:
        places: dict[str, tuple[int, int]] = {}
        spent = _Budget(path)

        def bytes_of(storage: _Storage) -> bytes:
            spent.on(storage)
            place, count = places.get(storage.key, (0, -1))
            if count != storage.elements:
                raise FormatError(f"{path} holds no tensor data {storage.key!r:.60} of the size that it claims")
            with path.open("rb") as again:
                again.seek(place)
                return again.read(count * storage.dtype.itemsize)

        widths: dict[str, int] = {}
        magic, *rest = [_unpickle(file, str(path), bytes_of, widths) for _ in range(_LEGACY_PICKLES)]
        if magic != _LEGACY_MAGIC or not isinstance(rest[-1], list):
            raise FormatError(f"{path} isn't a file that torch.save wrote")
        size = path.stat().st_size
        for key in rest[-1]:
            width = widths.get(key, 0) if isinstance(key, str) else 0
            count, place = int.from_bytes(file.read(8), "little", signed=True), file.tell()
            if not width or not 0 <= count <= (size - place) // width:
                raise FormatError(f"{path} is truncated or damaged")
            places[key] = place, count
            file.seek(place + count * width)
        return rest[2]


# --- the inert reader -------------------------------------------------------------------------------------------------


def _unpickle(
    file: BinaryIO, what: str, bytes_of: Callable[[_Storage], bytes] | None, widths: dict[str, int] | None = None
) -> Any:
    """One pickle, from where `file` stands."""
    start = file.tell()
    try:
        for steps, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if steps > _MOST_STEPS:
                raise FormatError(f"{what} is a pickle of more than {_MOST_STEPS:,} steps")
            if opcode.name in ("NEXT_BUFFER", "READONLY_BUFFER", "EXT1", "EXT2", "EXT4"):
                raise FormatError(f"{what} is a pickle of an unusual kind ({opcode.name})")
            if isinstance(argument, int) and opcode.name.endswith("PUT") and argument > _MOST:
                raise FormatError(f"{what} is a damaged pickle")
        end = file.tell()
        if end - start > _MOST:
            raise FormatError(f"{what}: its pickle is longer than {_MOST:,} bytes")
        file.seek(start)
        content = _Inert(io.BytesIO(file.read(end - start)), bytes_of, widths).load()
        file.seek(end)
        return content
    except FormatError:
        raise
    except RecursionError:
        raise FormatError(f"{what} is a damaged pickle: it nests too deep") from None
    except Exception as error:  # any operation can fail, also for lack of the memory that a damaged pickle claims
        raise FormatError(f"{what} is no pickle, or a damaged one: {type(error).__name__}: {error!s:.200}") from error


_PythonUnpickler: Any = pickle._Unpickler  # C's takes memory for any number that a file claims


class _Inert(_PythonUnpickler):  # type: ignore[misc]
    def __init__(
        self, file: BinaryIO, bytes_of: Callable[[_Storage], bytes] | None, widths: dict[str, int] | None
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._bytes_of = bytes_of
        self._widths = {} if widths is None else widths

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for whatever is asked for; those that hold data do so, nothing else is done.

        Each is made anew, so that what a pickle sets on it is gone with it.
        """
        path = f"{module}.{name}"
        if path in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter"):
            return lambda *args: _Dict(*args)
        if path in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            return lambda kind, *rest: kind() if isinstance(kind, _Kind) else Foreign()
        if path in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return lambda *args: self._tensor(*args)
        if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return lambda tensor, *rest: tensor
        return _Kind(path)

    # What becomes an object, or a key: a tuple in a tuple in a tuple takes for ever to be hashed.

    def load_newobj(self) -> None:
        self.stack.pop()
        self.stack[-1] = _made(self.stack[-1])

    def load_newobj_ex(self) -> None:
        self.stack.pop()
        self.load_newobj()

    def _instantiate(self, kind: Any, args: Any) -> None:
        self.append(_made(kind))

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(dict(zip(map(_key, items[::2]), items[1::2], strict=True)))

    def load_setitem(self) -> None:
        _key(self.stack[-2])
        super().load_setitem()

    def load_setitems(self) -> None:
        for key in self.stack[::2]:
            _key(key)
        super().load_setitems()

    def load_additems(self) -> None:
        for key in self.stack:
            _key(key)
        super().load_additems()

    def load_frozenset(self) -> None:
        self.append(frozenset(map(_key, self.pop_mark())))

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_PythonUnpickler.dispatch)
    dispatch[pickle.NEWOBJ[0]] = load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex
    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.ADDITEMS[0]] = load_additems
    dispatch[pickle.FROZENSET[0]] = load_frozenset

    def persistent_load(self, pid: Any) -> Any:
        """torch's storages; also ("module", class, source file, source), whose class alone counts."""
        kind = pid[0] if isinstance(pid, tuple) and pid else None
        if kind == "module":
            return pid[1]
        if kind != "storage" or self._bytes_of is None:
            raise ValueError("it refers to something outside itself")
        _, storage, key, _, count, *view = pid
        dtype = _DTYPES.get(getattr(storage, "path", "").removeprefix("torch."))
        if type(count) is not int or count < 0 or not isinstance(key, str):
            raise ValueError("it holds tensor data that makes no sense")
        if dtype is None or (view and view[0]):
            return Foreign("tensor data of another kind")
        self._widths[key] = dtype.itemsize
        return _Storage(dtype, key, count)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
        if isinstance(storage, Foreign):
            return storage
        if not (
            isinstance(storage, _Storage)
            and isinstance(shape, tuple)
            and isinstance(stride, tuple)
            and len(shape) == len(stride) <= 8
            and all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride))
            and math.prod(filter(None, shape)) <= 2**48
        ):
            raise ValueError("it holds a tensor that makes no sense")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        empty = 0 in shape
        if not empty and (last >= storage.elements or math.prod(shape) > storage.elements):
            raise ValueError("it holds a tensor larger than its data")
        bytes_of = self._bytes_of

        def load() -> Tensor:
            if empty or bytes_of is None:
                return torch.zeros(shape, dtype=storage.dtype)
            data = bytearray(bytes_of(storage))
            if len(data) != storage.elements * storage.dtype.itemsize:
                raise FormatError("the file is truncated")
            return torch.frombuffer(data, dtype=storage.dtype).as_strided(shape, stride, offset).clone()

        return StoredTensor(storage.dtype, shape, load)


def _made(kind: Any) -> Foreign:
    if not isinstance(kind, _Kind):
        raise ValueError("it makes an object of something that is no class")
    return kind()


def _key(key: Any) -> Any:
    """A key of a dict or a set that can be hashed at once: text, an ordinary whole number, what is inert."""
    if (
        key is None
        or isinstance(key, str | bytes | Foreign | StoredTensor)
        or (isinstance(key, int) and -(2**53) < key < 2**53)
    ):
        return key
    raise ValueError(f"it has a {type(key).__name__} as a key, or a huge number")


def attributes(thing: Any) -> Mapping[Any, Any]:
    """What a `Foreign` object or a dict holds; nothing for anything else."""
    if isinstance(thing, Foreign):
        return thing.state
    return thing if isinstance(thing, dict) else {}
