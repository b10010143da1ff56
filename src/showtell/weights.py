"""The tensors of a saved captioner: which ones there must be, of which dtypes, and what a header may claim."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import ArgumentError, FormatError

__all__ = ["DTYPES", "WEIGHTS_DTYPES", "TensorInfo", "check_header", "expected_tensors", "match", "saved_tensors"]

WEIGHTS_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}


class TensorInfo(NamedTuple):
    """What a tensor of a file is: dtype "F32", "F16", "BF16" or "I64", and its shape."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        """As errors show it: F32 [2, 3]."""
        return f"{self.dtype} {list(self.shape)}"


def expected_tensors(modules: Mapping[str, nn.Module], weights_dtype: str) -> dict[str, TensorInfo]:
    """What model.safetensors must hold for these modules, which may be on the meta device.

    Example:
        >>> expected_tensors({"decoder": nn.Linear(2, 3)}, "float16")["decoder.weight"]
        TensorInfo(dtype='F16', shape=(3, 2))

    Names are the key of the module, a dot, and the name in its state dict. Parameters have `weights_dtype` ("float32",
    "float16", "bfloat16"), floating buffers float32, other buffers int64. Raises ArgumentError for what can't be saved.
    """
    if weights_dtype not in WEIGHTS_DTYPES:
        raise ArgumentError(f"weights_dtype must be one of {', '.join(WEIGHTS_DTYPES)}, not {weights_dtype!r:.60}")
    code = WEIGHTS_DTYPES[weights_dtype]
    return {
        name: TensorInfo(_code(name, tensor, code), tuple(tensor.shape)) for name, tensor in _states(modules).items()
    }


def saved_tensors(modules: Mapping[str, nn.Module], weights_dtype: str) -> dict[str, Tensor]:
    """Copies of all tensors of some modules, on the CPU, in the dtypes that `expected_tensors` says.

    Example:
        >>> saved_tensors({"decoder": nn.Linear(2, 3)}, "bfloat16")["decoder.bias"].dtype
        torch.bfloat16

    Raises ArgumentError for a weight too large for float16.
    """
    expected = expected_tensors(modules, weights_dtype)
    saved = {}
    for name, tensor in _states(modules).items():
        if tensor.is_meta:
            raise ArgumentError(f"{name} is on the meta device and has no values to save; load or initialise it first")
        dtype = DTYPES[expected[name].dtype]
        saved[name] = tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        if dtype == torch.float16 and bool((saved[name].isinf() & ~tensor.detach().cpu().isinf()).any()):
            raise ArgumentError(f'{name} holds a value too large for float16; save with weights_dtype="bfloat16"')
    return saved


def _states(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": tensor
        for part, module in modules.items()
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


def _code(name: str, tensor: Any, weights_code: str) -> str:
    if not isinstance(tensor, Tensor) or nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:
        raise ArgumentError(f"{name} can't be saved: it isn't an ordinary tensor with a shape")
    if tensor.is_complex() or tensor.is_quantized:
        raise ArgumentError(f"{name} can't be saved: {tensor.dtype} isn't among float, integer and bool")
    if not tensor.is_floating_point():
        return "I64"
    return weights_code if isinstance(tensor, nn.Parameter) else "F32"


def match(expected: Mapping[str, TensorInfo], found: Mapping[str, TensorInfo], where: str) -> None:
    """Compare what a captioner needs with what a file holds.

    Example:
        >>> match({"w": TensorInfo("F32", (2,))}, {"w": TensorInfo("F32", (3,))}, "my-captioner")
        Traceback (most recent call last):
        showtell.errors.FormatError: my-captioner: weights and config don't fit: w is F32 [3], not F32 [2]

    Raises FormatError that names missing, surplus, misshapen and mistyped tensors, the first five of each.
    """
    wrong = [
        f"{n} is {found[n]}, not {expected[n]}" for n in sorted(expected) if n in found and found[n] != expected[n]
    ]
    kinds = (
        ("missing: ", sorted(expected.keys() - found.keys())),
        ("surplus: ", sorted(found.keys() - expected.keys())),
        ("", wrong),
    )
    problems = [title + _few(names) for title, names in kinds if names]
    if problems:
        raise FormatError(f"{where}: weights and config don't fit: {'; '.join(problems)}")


def _few(names: list[str]) -> str:
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"{name:.200}" for name in names[:5]) + rest


def check_header(header: dict[str, Any], size: int, where: str) -> dict[str, TensorInfo]:
    """What each tensor of a safetensors file is, by its parsed header; `size` is how many bytes follow the header.

    Raises FormatError unless the tensors, of a known dtype each, fill those bytes without overlap or gap.
    """
    found: dict[str, TensorInfo] = {}
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise FormatError(f"{where}: {name!r:.200} must have dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in tuple(DTYPES):
            raise FormatError(f"{where}: {name!r:.200} has the dtype {dtype!r:.20}, not one of {', '.join(DTYPES)}")
        if not (_are_sizes(shape) and len(shape) <= 8 and _are_sizes(offsets) and len(offsets) == 2):
            raise FormatError(f"{where}: {name!r:.200} has a shape or offsets that make no sense")
        if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
            raise FormatError(f"{where}: {name!r:.200} takes {offsets[1] - offsets[0]} bytes, which isn't its shape")
        found[name] = TensorInfo(dtype, tuple(shape))
        spans.append(tuple(offsets))
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise FormatError(f"{where}: its tensors overlap or leave a gap")
        end = last
    if end != size:
        raise FormatError(f"{where} is damaged: its tensors need {end:,} bytes and it holds {size:,}")
    return found


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)
