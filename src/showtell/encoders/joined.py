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
from .base import BackboneEncoder

__all__ = ["JoinedEncoder"]

_MOST = 8


class JoinedEncoder(nn.Module):
    """The encoder `joined.v1`: what several encoders see of a photo, number after number, cell by cell.

    Example:
        >>> import torch
        >>> from showtell.testing import TinyEncoder
        >>> encoder = JoinedEncoder([TinyEncoder(feature_dim=16), TinyEncoder(feature_dim=8)])
        >>> encoder(torch.rand(2, 3, 32, 32)).grid.shape
        torch.Size([2, 16, 24])

    All take the same photos (one `image_spec`) and have the same cells, or none has any. Heads stay heads, one each:
    what is cached are the features of all trunks. The parts of a part that is joined itself become its own.

    Args:
        parts: 2..8 encoders, or the names and configs that `config()` gave.
        trunk_dims: how many numbers each part gives before its head; of encoders it is measured on a black photo.

    Raises:
        ArgumentError: fewer than two parts or more than eight, photos of other sizes; when called: other cells.
    """

    def __init__(self, parts: Sequence[Encoder | Mapping[str, Any]], trunk_dims: Sequence[int] | None = None) -> None:
        """Check that the parts fit."""
        super().__init__()
        if not isinstance(parts, list | tuple):
            raise ArgumentError(f"a JoinedEncoder takes a list of at least two encoders, not {parts!r:.100}")
        given: list[Any] = []
        for part in parts:
            given += list(part._encoders()) if isinstance(part, JoinedEncoder) else [part]
        if not 2 <= len(given) <= _MOST:
            raise ArgumentError(
                f"a JoinedEncoder takes a list of at least two encoders and at most {_MOST}: {len(given)}"
            )
        if trunk_dims is None and any(isinstance(part, Mapping) for part in given):
            raise ArgumentError("trunk_dims goes with parts that are configs: how many numbers each gives to its head")
        if trunk_dims is not None and not isinstance(trunk_dims, list | tuple):
            raise ArgumentError(f"trunk_dims is a list of numbers, not {trunk_dims!r:.100}")
        made = [_part(part) for part in given]
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
        found = [_trunk(part, images) for part in self._encoders()]
        for part, features, dim in zip(self.parts, found, self.trunk_dims, strict=True):
            self._check(features, dim, f"{type(part).__name__} gives")
        return self._beside(found)

    def head(self, features: Features) -> Features:
        """Each part's own features through its head."""
        self._check(features, sum(self.trunk_dims), "these features have")
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

    def _check(self, features: Features, dim: int, what: str) -> None:
        for each in (features.pooled, features.grid):
            if each is not None and each.shape[-1] != dim:
                raise ArgumentError(
                    f"{what} {each.shape[-1]} numbers in place of the {dim} that trunk_dims says; were they made by "
                    "another encoder?"
                )

    def _beside(self, features: list[Features]) -> Features:
        grids = [each.grid for each in features if each.grid is not None]
        boxes = [each.boxes for each in features if each.boxes is not None]
        cells = [None if each.grid is None else each.grid.shape[1] for each in features]
        # Heads hand on the trunk's own boxes: comparing values waits for the device, and an export has none to compare.
        others = [] if torch.compiler.is_compiling() else [each for each in boxes[1:] if each is not boxes[0]]
        elsewhere = len(set(cells)) == 1 and any(not torch.equal(boxes[0], each) for each in others)
        if len(set(cells)) != 1 or elsewhere or any(each.mask is not None for each in features):
            shown = ", ".join(
                f"{type(part).__name__} {'no' if count is None else count} cells"
                for part, count in zip(self.parts, cells, strict=True)
            )
            raise ArgumentError(
                f"joined encoders look at the same cells, without a mask: {shown}{' elsewhere' * elsewhere}; set one "
                "grid_size"
            )
        pooled = torch.cat([each.pooled for each in features], dim=-1)
        return features[0]._replace(
            pooled=pooled, grid=torch.cat(grids, dim=-1) if grids else None, boxes=boxes[0] if boxes else None
        )


def _part(given: Encoder | Mapping[str, Any]) -> Encoder:
    if isinstance(given, Mapping):
        name, config = given.get("name"), given.get("config")
        if not isinstance(name, str) or not isinstance(config, Mapping):
            raise ArgumentError(
                "a part of a JoinedEncoder is an encoder, or the name that its class is registered by "
                f"(register_encoder) and its config, not {given!r:.200}"
            )
        if name == "joined.v1":
            raise ArgumentError(
                "the parts of a JoinedEncoder aren't joined themselves: name the parts of all in one list"
            )
        return cast(Encoder, find_component("encoder", name)(**config))
    if not isinstance(given, nn.Module) or not isinstance(given, Encoder):
        raise ArgumentError(
            f"a part of a JoinedEncoder is a torch.nn.Module that follows showtell.Encoder, not {given!r:.100}"
        )
    return given


def _trunk(part: Encoder, images: Tensor) -> Features:
    if not isinstance(part, BackboneEncoder):  # which casts by itself, once it has normalised in float32
        images = images.to(next((each.dtype for each in cast(nn.Module, part).parameters()), images.dtype))
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
