"""The small trainable part between a backbone and a decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..checks import flag, number, whole
from ..errors import ArgumentError

__all__ = ["Head", "check_head"]

_DEFAULTS: dict[str, Any] = {"batch_norm": False, "relu": False, "dropout": 0.0}


def check_head(options: dict[str, Any] | None) -> dict[str, Any] | None:
    """The head's options, complete and checked; None for no head.

    Example:
        >>> check_head({"dim": 256, "relu": True})
        {'dim': 256, 'batch_norm': False, 'relu': True, 'dropout': 0.0}

    `dim` 1..65536 is needed; batch_norm and relu are true or false; dropout is in 0..0.99. Raises ArgumentError.
    """
    if options is None:
        return None
    if not isinstance(options, dict) or "dim" not in options or set(options) - {"dim", *_DEFAULTS}:
        keys = ", ".join(["dim", *_DEFAULTS])
        raise ArgumentError(f"head takes the keys {keys} (dim is needed), or None for no head, not {options!r:.200}")
    options = _DEFAULTS | options
    return {
        "dim": whole("head dim", options["dim"], 1, 65536),
        "batch_norm": flag("head batch_norm", options["batch_norm"]),
        "relu": flag("head relu", options["relu"]),
        "dropout": number("head dropout", options["dropout"], 0.0, 0.99),
    }


class Head(nn.Module):
    """Linear, then as asked for BatchNorm1d, ReLU and Dropout: the projection of the classic captioners.

    Example:
        >>> Head(512, dim=256, relu=True)(torch.zeros(2, 512)).shape
        torch.Size([2, 256])

    (N, in_dim) -> (N, dim), or (N, L, in_dim) -> (N, L, dim) without batch norm. A single photo has no statistics of
    its own, so in training too it is normalised by the running ones.
    """

    def __init__(
        self, in_dim: int, *, dim: int, batch_norm: bool = False, relu: bool = False, dropout: float = 0.0
    ) -> None:
        """Build; `check_head` says what each option may be."""
        super().__init__()
        self.linear = nn.Linear(in_dim, dim)
        self.norm = nn.BatchNorm1d(dim) if batch_norm else None
        self.relu, self.dropout = relu, dropout

    def forward(self, x: Tensor) -> Tensor:
        """Project."""
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x) if len(x) > 1 else self._by_running_statistics(self.norm, x)
        if self.relu:
            x = torch.relu(x)
        return nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x

    @staticmethod
    def _by_running_statistics(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
