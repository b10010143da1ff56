"""For people who bring features of their own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..checks import flag, whole
from ..errors import ArgumentError
from ..image_spec import ImageSpec
from ..protocols import Features

__all__ = ["PrecomputedFeatures"]


class PrecomputedFeatures(nn.Module):
    """An encoder that computes nothing: its captioner takes Features, or a tensor (N, D), in place of photos.

    Example:
        >>> import torch
        >>> encoder = PrecomputedFeatures(2048)
        >>> encoder.head(torch.zeros(3, 2048)).pooled.shape
        torch.Size([3, 2048])

    Args:
        feature_dim: D, 1..65536.
        grid: whether the features must have a grid, for decoders with attention.

    `image_spec` is one pixel by one: no photo is ever asked for. Raises ArgumentError when called with photos.
    """

    def __init__(self, feature_dim: int, *, grid: bool = False) -> None:
        """Check the options."""
        super().__init__()
        self.feature_dim = whole("feature_dim", feature_dim, 1, 65536)
        self.grid = flag("grid", grid)
        self.image_spec = ImageSpec(1, 1)

    def config(self) -> dict[str, Any]:
        """Every option, as JSON."""
        return {"feature_dim": self.feature_dim, "grid": self.grid}

    def forward(self, images: Tensor | Features) -> Features:
        """Features -> the same, checked; photos are refused."""
        return self.head(self.trunk(images))

    def trunk(self, images: Tensor | Features) -> Features:
        """Features (N, D) pass; photos are refused."""
        if isinstance(images, Features):
            return images
        if images.ndim != 2:
            raise ArgumentError(
                "this captioner was made for precomputed features: pass Features(pooled=...) or a tensor "
                f"(N, {self.feature_dim}) in place of photos (given: a tensor {tuple(images.shape)})"
            )
        return Features(images)

    def head(self, features: Features | Tensor) -> Features:
        """Check the sizes; a tensor (N, D) becomes Features. A grid that wasn't asked for is left out."""
        if isinstance(features, Tensor):
            features = Features(features)
        shapes = {"pooled": (features.pooled, 2), "grid": (features.grid, 3)}
        for name, (tensor, dims) in shapes.items():
            if tensor is not None and (tensor.ndim != dims or tensor.shape[-1] != self.feature_dim):
                wanted = ("N", "L")[: dims - 1]
                raise ArgumentError(
                    f"{name} features are ({', '.join(wanted)}, {self.feature_dim}), not {tuple(tensor.shape)}"
                )
        if self.grid and features.grid is None:
            raise ArgumentError("these features need a grid (N, L, D); this encoder was built with grid=True")
        return features if self.grid else Features(features.pooled)
