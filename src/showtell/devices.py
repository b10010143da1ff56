"""What people call a device, checked before anything is put there."""

from __future__ import annotations

from typing import Any

import torch

from .errors import ArgumentError

__all__ = ["usable_device"]


def usable_device(name: str, value: Any) -> torch.device:
    """The device of that spelling.

    Example:
        >>> usable_device("device", "cpu")
        device(type='cpu')

    `name` is what errors call the option. Raises ArgumentError for a device that torch doesn't know or that this
    machine doesn't have.
    """
    try:
        where = torch.device(value)
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(f"{name} {value!r:.100} is no device; use cpu, cuda or cuda:1") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ArgumentError(f"{name} {value}: this machine has no usable GPU; use cpu")
    try:
        torch.zeros(1, device=where).item()
    except Exception as error:  # each backend has its own way to say that it isn't there
        raise ArgumentError(f"{name} {value}: this machine or this torch has no such device; use cpu") from error
    return where
