"""A safetensors file: tensors to bytes and back; the only importer of safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from .errors import FormatError, NotFoundError
from .strict_json import parse_object
from .weights import TensorInfo, check_header

__all__ = ["load_tensors", "read_header", "read_tensors", "tensor_bytes"]

_HEADER_LIMIT = 16 * 2**20


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """The content of a file that holds these tensors; the same tensors give the same bytes."""
    return safetensors.torch.save(dict(tensors), metadata={"format": "pt"})


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of any safetensors file, by name.

    Example:
        >>> import tempfile, torch
        >>> file = Path(tempfile.mkdtemp(), "weights.safetensors")
        >>> _ = file.write_bytes(tensor_bytes({"w": torch.ones(2)}))
        >>> read_tensors(file)["w"].tolist()
        [1.0, 1.0]

    Raises NotFoundError when there is no such file, FormatError when it isn't a whole safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"no weights at {path}; give the path of a .safetensors file")
    with path.open("rb") as file:
        read_header(file, path)
        return load_tensors(file, path)


def load_tensors(file: BinaryIO, where: Path) -> dict[str, Tensor]:
    """Every tensor of an open file by name; raises FormatError, naming `where`, when it is damaged."""
    file.seek(0)
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(file.read())
    except safetensors.SafetensorError as error:
        raise FormatError(f"{where} is damaged: {error!s:.200}") from error
    return tensors


def read_header(file: BinaryIO, where: Path) -> dict[str, TensorInfo]:
    """What each tensor of a file is, after checking that the file holds them all and nothing else."""
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04")):
        raise FormatError(f"{where} is a pickle (torch.save) and is never opened; save it as safetensors")
    if start == b"version ":
        raise FormatError(f"{where} is a Git LFS pointer, not the weights; run: git lfs pull")
    if len(start) < 8 or length > min(_HEADER_LIMIT, size - 8):
        raise FormatError(f"{where} is no safetensors file, or a truncated one")
    header = parse_object(file.read(length), f"the header of {where}", limit=_HEADER_LIMIT, depth=3)
    return check_header(header, size - 8 - length, str(where))
