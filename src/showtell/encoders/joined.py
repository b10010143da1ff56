"""Several encoders as one: their features side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..checks import whole
from ..errors import ArgumentError
from ..protocols import Encoder, Features, SplitEncoder, as_features
from ..registry import component_name, find_component

__all__ = ["JoinedEncoder"]


class JoinedEncoder(nn.Module):
    """The encoder `joined.v1`: what several encoders see of a photo, number after number, cell by cell.

    Example:
        >>> import torch
        >>> from showtell.testing import TinyEncoder
        >>> encoder = JoinedEncoder([TinyEncoder(feature_dim=16), TinyEncoder(feature_dim=8)])
        >>> encoder(torch.rand(2, 3, 32, 32)).grid.shape
        torch.Size([2, 16, 24])

    All take the same photos (one `image_spec`) and have the same cells, or none has any. Heads stay heads, one each:
    what is cached are the features of all trunks.

    Args:
        parts: at least two encoders, or the names and configs that `config()` gave.
        trunk_dims: how many numbers each part gives before its head; measured on a black photo where left out.

    Raises:
        ArgumentError: fewer than two parts, photos of other sizes; when called: other cells.
    """

    def __init__(self, parts: Sequence[Encoder | Mapping[str, Any]], trunk_dims: Sequence[int] | None = None) -> None:
        """Check that the parts fit."""
        super().__init__()
        if not isinstance(parts, list | tuple) or len(parts) < 2:
            raise ArgumentError(f"a JoinedEncoder takes a list of at least two encoders, not {parts!r:.100}")
        made = [_part(part) for part in parts]
        self.parts = nn.ModuleList(cast(list[nn.Module], made))
        self.image_spec = made[0].image_spec
        for part in made[1:]:
            if part.image_spec != self.image_spec:
                raise ArgumentError(
                    f"joined encoders take the same photos: {type(made[0]).__name__} takes {self.image_spec} and "
                    f"{type(part).__name__} {part.image_spec}; build both with one size and one way to resize"
                )
        self.feature_dim = sum(part.feature_dim for part in made)
        dims = [_trunk_dim(part) for part in made] if trunk_dims is None else list(trunk_dims)
        self.trunk_dims = [whole("trunk_dims", dim, 1, 1_000_000) for dim in dims]
        if len(dims) != len(made):
            raise ArgumentError(f"trunk_dims has a number for each of {len(made)} parts, not {len(dims)} numbers")

    def config(self) -> dict[str, Any]:
        """The parts' registered names and configs."""
        parts = [{"name": component_name("encoder", type(part)), "config": part.config()} for part in self._encoders()]
        return {"parts": parts, "trunk_dims": self.trunk_dims}

    def forward(self, images: Tensor) -> Features:
        """Images (N, 3, H, W) in 0..1 -> Features of `feature_dim`."""
        return self.head(self.trunk(images))

    def trunk(self, images: Tensor) -> Features:
        """Images (N, 3, H, W) in 0..1 -> the features of all trunks, those of a part without a head whole."""
        return self._beside([_trunk(part, images) for part in self._encoders()])

    def head(self, features: Features) -> Features:
        """Each part's own features through its head."""
        if features.pooled.shape[-1] != sum(self.trunk_dims):
            raise ArgumentError(
                f"the heads take features of {sum(self.trunk_dims)} numbers, not {features.pooled.shape[-1]}; "
                "were they made by another encoder?"
            )
        pooled = torch.split(features.pooled, self.trunk_dims, dim=-1)
        grids = [None] * len(pooled) if features.grid is None else torch.split(features.grid, self.trunk_dims, dim=-1)
        own = [features._replace(pooled=a, grid=b) for a, b in zip(pooled, grids, strict=True)]
        return self._beside(
            [
                part.head(each) if isinstance(part, SplitEncoder) else each
                for part, each in zip(self._encoders(), own, strict=True)
            ]
        )

    def _encoders(self) -> list[Encoder]:
        return cast(list[Encoder], list(self.parts))

    def _beside(self, features: list[Features]) -> Features:
        first = features[0]
        grids = [each.grid for each in features if each.grid is not None]
        cells = [None if each.grid is None else each.grid.shape[1] for each in features]
        if len(set(cells)) != 1 or any(each.mask is not None for each in features):
            shown = ", ".join(
                f"{type(part).__name__} {'no' if count is None else count} cells"
                for part, count in zip(self.parts, cells, strict=True)
            )
            raise ArgumentError(f"joined encoders look at the same cells, without a mask: {shown}; set one grid_size")
        pooled = torch.cat([each.pooled for each in features], dim=-1)
        return first._replace(pooled=pooled, grid=torch.cat(grids, dim=-1) if grids else None)


def _part(given: Encoder | Mapping[str, Any]) -> Encoder:
    if isinstance(given, Mapping):
        name, config = given.get("name"), given.get("config")
        if not isinstance(name, str) or not isinstance(config, Mapping):
            raise ArgumentError(
                "a part of a JoinedEncoder is an encoder, or the name that its class is registered by "
                f"(register_encoder) and its config, not {given!r:.200}"
            )
        return cast(Encoder, find_component("encoder", name)(**config))
    if not isinstance(given, nn.Module) or not isinstance(given, Encoder):
        raise ArgumentError(
            f"a part of a JoinedEncoder is a torch.nn.Module that follows showtell.Encoder, not {given!r:.100}"
        )
    return given


def _trunk(part: Encoder, images: Tensor) -> Features:
    made = part.trunk(images) if isinstance(part, SplitEncoder) else part(images)
    return as_features(made, f"{type(part).__name__} must return")


def _trunk_dim(part: Encoder) -> int:
    spec, module = part.image_spec, cast(nn.Module, part)
    like = next(module.parameters(), torch.zeros(()))
    photo = torch.zeros(1, 3, spec.height, spec.width, dtype=like.dtype, device=like.device)
    training = module.training
    with torch.no_grad():
        found = _trunk(cast(Encoder, module.eval()), photo).pooled.shape[-1]
    module.train(training)
    return found
