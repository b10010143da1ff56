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
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from ..errors import FormatError, NotFoundError

__all__ = ["Foreign", "StoredTensor", "read_checkpoint", "read_pickle"]

_MOST = 256 * 2**20
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
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5  # magic number, version, machine, the object, the order of its storages


class Foreign:
    """An object of a class that isn't here: its attributes, if any, are in `state`.

    Example:
        >>> read_pickle(pickle.dumps(Path("a")), "example").path
        'pathlib.PosixPath'
    """

    path = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything, do nothing."""
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


class _Dict(dict[Any, Any]):
    """A dict of one of the library's kinds; attributes that were set on it are forgotten."""

    def __init__(self, *args: Any) -> None:
        super().__init__(args[0] if args and isinstance(args[0], list) else ())

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

    Raises FormatError for what is no pickle, is longer than 256 MiB, or claims more than it holds.
    """
    return _unpickle(io.BytesIO(data), what, None)


def read_checkpoint(path: Path) -> Any:
    """What `torch.save` wrote, of any torch since 0.4, inert: tensors are `StoredTensor`s, modules are `Foreign`.

    Raises NotFoundError when there is no such file, FormatError when torch didn't write it, it is damaged or claims
    more than it holds.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no file {path}")
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _read_zip(path)
    return _read_legacy(path)


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
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} is a damaged archive: {error!s:.200}") from error

    def bytes_of(storage: _Storage) -> bytes:
        info = entries.get(f"{folder}data/{storage.key}")
        if info is None or info.file_size != storage.elements * storage.dtype.itemsize:
            raise FormatError(f"{path} holds no tensor data {storage.key!r:.60} of the size that it claims")
        try:
            return archive.read(info)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, RuntimeError) as error:
            raise FormatError(f"{path} is damaged: {error!s:.200}") from error

    return _unpickle(io.BytesIO(content), str(path), bytes_of)


def _read_legacy(path: Path) -> Any:
    """Five pickles, then of each storage how many elements it has (8 bytes) and the elements."""
    with path.open("rb") as file:
        places: dict[str, tuple[int, int]] = {}

        def bytes_of(storage: _Storage) -> bytes:
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
            count, width = int.from_bytes(file.read(8), "little", signed=True), widths.get(key, 0)
            place = file.tell()
            if not isinstance(key, str) or not width or not 0 <= count <= (size - place) // width:
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
        for opcode, argument, _ in pickletools.genops(file):
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
    except Exception as error:  # a damaged pickle can make any operation of the reader fail, in any way
        raise FormatError(f"{what} is no pickle, or a damaged one: {type(error).__name__}: {error!s:.200}") from error


class _Inert(pickle._Unpickler):  # the one in Python: C's takes memory for any number that a file claims
    def __init__(
        self, file: BinaryIO, bytes_of: Callable[[_Storage], bytes] | None, widths: dict[str, int] | None
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._bytes_of = bytes_of
        self._widths = {} if widths is None else widths

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for whatever is asked for; those that hold data do so, nothing else is done."""
        path = f"{module}.{name}"
        if path in ("collections.OrderedDict", "collections.defaultdict"):
            return _Dict
        if path in ("copyreg._reconstructor", "copy_reg._reconstructor"):
            return lambda kind, *rest: kind() if isinstance(kind, type) and issubclass(kind, Foreign) else Foreign()
        if path in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
            return self._tensor
        if path in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"):
            return lambda tensor, *rest: tensor
        return type("Foreign", (Foreign,), {"path": path})

    def persistent_load(self, pid: Any) -> Any:
        """torch's storages; also ("module", class, source file, source), whose class alone counts."""
        kind = pid[0] if isinstance(pid, tuple) and pid else None
        if kind == "module":
            return pid[1]
        if kind != "storage" or self._bytes_of is None:
            raise ValueError("it refers to something outside itself")
        _, storage, key, _, count, *view = pid
        dtype = _DTYPES.get(getattr(storage, "path", "").removeprefix("torch."))
        if dtype is None or type(count) is not int or count < 0 or not isinstance(key, str) or (view and view[0]):
            raise ValueError("it holds tensor data of an unknown kind")
        self._widths[key] = dtype.itemsize
        return _Storage(dtype, key, count)

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
        numbers = [offset, *shape, *stride]
        if not isinstance(storage, _Storage) or len(shape) != len(stride) or len(shape) > 8:
            raise ValueError("it holds a tensor that makes no sense")
        if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers):
            raise ValueError("it holds a tensor that makes no sense")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        empty = 0 in shape
        if (not empty and last >= storage.elements) or math.prod(shape) > storage.elements:
            raise ValueError("it holds a tensor larger than its data")
        bytes_of = self._bytes_of

        def load() -> Tensor:
            if empty or bytes_of is None:
                return torch.zeros(shape, dtype=storage.dtype)
            data = bytearray(bytes_of(storage))
            if len(data) != storage.elements * storage.dtype.itemsize:
                raise FormatError("the file is truncated")
            flat = torch.frombuffer(data, dtype=storage.dtype)
            return flat.as_strided(shape, stride, offset).contiguous()

        return StoredTensor(storage.dtype, tuple(shape), load)


def attributes(thing: Any) -> Mapping[Any, Any]:
    """What a `Foreign` object or a dict holds; nothing for anything else."""
    if isinstance(thing, Foreign):
        return thing.state
    return thing if isinstance(thing, dict) else {}
