"""What the tests of decoders with attention share: features whose masked regions hold rubbish."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from showtell.protocols import Features

D = 6
REAL = (4, 2, 5)  # real regions of the three photos, of 5


def masked_features(dtype: torch.dtype = torch.float64) -> Features:
    """Three photos of 5 regions, some masked; what is masked is NaN or infinite."""
    source = torch.Generator().manual_seed(3)
    grid = torch.randn(3, 5, D, generator=source, dtype=torch.float64).to(dtype)
    mask = torch.tensor([[True, True, False, True, True], [False, True, False, False, True], [True] * 5])
    grid[0, 2], grid[1, 0], grid[1, 2] = torch.nan, torch.inf, -torch.inf
    assert mask.sum(1).tolist() == list(REAL)
    return Features(torch.randn(3, D, generator=source, dtype=torch.float64).to(dtype), grid, mask)


def real_regions(features: Features, photo: int) -> Tensor:
    """The regions of one photo that aren't masked: (L, D)."""
    assert features.grid is not None
    assert features.mask is not None
    return features.grid[photo, features.mask[photo]]


def shaken(module: nn.Module, seed: int = 0) -> Any:
    """The module in float64 and eval mode, no parameter zero."""
    source = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return module


def words(rows: int, steps: int, size: int = 11) -> Tensor:
    """Random tokens (rows, steps)."""
    return torch.randint(0, size, (rows, steps), generator=torch.Generator().manual_seed(5))
