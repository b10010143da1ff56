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
        >>> head = Head(512, dim=256, batch_norm=True)
        >>> head(torch.zeros(2, 512)).shape
        torch.Size([2, 256])
        >>> pooled, grid = head.both(torch.zeros(2, 512), torch.zeros(2, 49, 512))
        >>> grid.shape
        torch.Size([2, 49, 256])

    Pooled features (N, in_dim) -> (N, dim); `both` takes a grid (N, L, in_dim) too. The batch norm takes its
    statistics from the cells where there is a grid, and normalises the pooled features by the same. A single photo
    has no statistics of its own, so in training too it is normalised by the running ones.
    """

    def __init__(
        self, in_dim: int, *, dim: int, batch_norm: bool = False, relu: bool = False, dropout: float = 0.0
    ) -> None:
        """Build; `check_head` says what each option may be."""
        super().__init__()
        self.linear = nn.Linear(in_dim, dim)
        self.norm = nn.BatchNorm1d(dim) if batch_norm else None
        self.relu, self.dropout = relu, dropout

    def forward(self, pooled: Tensor) -> Tensor:
        """Project pooled features."""
        return self.both(pooled, None)[0]

    def both(self, pooled: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Project pooled features and, where there is one, a grid."""
        pooled, grid = self.linear(pooled), None if grid is None else self.linear(grid)
        if self.norm is not None:
            pooled, grid = self._normalised(self.norm, pooled, grid)
        return self._ended(pooled), None if grid is None else self._ended(grid)

    @staticmethod
    def _normalised(norm: nn.BatchNorm1d, pooled: Tensor, grid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        by_itself = norm.training and len(pooled) > 1
        if by_itself and grid is None:
            return norm(pooled), None
        if by_itself and grid is not None:
            cells = grid.flatten(0, 1)
            variance, mean = torch.var_mean(cells.float(), 0, correction=0)
            pooled = (pooled - mean) * (variance + norm.eps).rsqrt() * norm.weight + norm.bias
            return pooled, norm(cells).view_as(grid)

        def running(x: Tensor) -> Tensor:
            flat = x.flatten(0, -2)
            flat = nn.functional.batch_norm(
                flat, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
            )
            return flat.view_as(x)

        return running(pooled), None if grid is None else running(grid)

    def _ended(self, x: Tensor) -> Tensor:
        if self.relu:
            x = torch.relu(x)
        return nn.functional.dropout(x, self.dropout, self.training) if self.dropout else x
