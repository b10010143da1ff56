"""What every encoder with a backbone shares: normalising, freezing, grid and boxes, the head."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..checks import flag, number, whole
from ..errors import ArgumentError
from ..image_spec import ImageSpec
from ..protocols import Features
from .head import Head, check_head

__all__ = ["BackboneEncoder", "build_shapes_or_real", "fill", "make_image_spec"]

M = TypeVar("M", bound=nn.Module)
Resize = Literal["squash", "crop"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]


_CPU_PHOTOS = 4


class BackboneEncoder(nn.Module, ABC):
    """A backbone for photos, frozen or not, and a head: `forward` is `head(trunk(images))`.

    A subclass builds the backbone, passes it here, and says in `extract` how the backbone answers and in `config`
    how to build it again.

    Args:
        backbone: any module; its parameter names are what `trainable` speaks of.
        image_spec: the size of the photos.
        mean, std: three numbers each; (image - mean) / std is what the backbone sees.
        trunk_dim: D of the backbone's features.
        grid: whether to return the cells of the map too, with their boxes.
        grid_size: average the map to so many rows and columns (adaptive pooling); None leaves it as it is.
        head: {"dim": 256, "batch_norm": False, "relu": False, "dropout": 0.0} or None. It is applied to the pooled
            features and to the grid.
        trainable: False, True, or a list of the backbone's modules and parameters by name ("layer4"); what isn't
            trainable stays in eval mode.
        fixed_size: the backbone takes no other size than image_spec's.

    Raises:
        ArgumentError: an option out of range, options that contradict each other, or a name in `trainable` that
            the backbone doesn't have.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        image_spec: ImageSpec,
        mean: Sequence[float],
        std: Sequence[float],
        trunk_dim: int,
        grid: bool = False,
        grid_size: int | None = None,
        head: dict[str, Any] | None = None,
        trainable: bool | Sequence[str] = False,
        fixed_size: bool = False,
    ) -> None:
        """Check the options and freeze."""
        super().__init__()
        self.backbone = backbone
        self.image_spec = image_spec
        self.fixed_size = fixed_size
        self.trunk_dim = trunk_dim
        self.grid = flag("grid", grid)
        self.grid_size = grid_size if grid_size is None else whole("grid_size", grid_size, 1, 64)
        if grid_size is not None and not grid:
            raise ArgumentError("grid_size belongs to grid=True")
        self._mean, self._std = _three("mean", mean, -10.0, 10.0), _three("std", std, 1e-3, 10.0)
        self.register_buffer("mean", torch.tensor(self._mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self._std).view(3, 1, 1), persistent=False)
        self._head = check_head(head)
        self.projection = None if self._head is None else Head(trunk_dim, **self._head)
        self.feature_dim: int = trunk_dim if self._head is None else self._head["dim"]
        self._freeze(trainable)

    @abstractmethod
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) -> pooled (N, D) and the map (N, D, h, w), or tokens (N, L, D)."""

    def config(self) -> dict[str, Any]:
        """The options that all such encoders share; a subclass adds its own."""
        spec = self.image_spec
        return {
            "height": spec.height,
            "width": spec.width,
            "resize": spec.resize,
            "short_side": spec.short_side,
            "interpolation": spec.interpolation,
            "mean": list(self._mean),
            "std": list(self._std),
            "grid": self.grid,
            "grid_size": self.grid_size,
            "head": None if self._head is None else dict(self._head),
            "trainable": list(self._trainable) if isinstance(self._trainable, tuple) else self._trainable,
        }

    def forward(self, images: Tensor) -> Features:
        """Images (N, 3, H, W) in 0..1 -> Features of `feature_dim`."""
        return self.head(self.trunk(images))

    def trunk(self, images: Tensor) -> Features:
        """Images (N, 3, H, W) float in 0..1 -> Features of `trunk_dim`; no gradient where all of it is frozen.

        Computed in the backbone's own dtype. Raises ArgumentError for another shape.
        """
        self._check(images)
        frozen = self.trunk_frozen
        with torch.no_grad() if frozen else contextlib.nullcontext():
            # Float32 here even in a bf16 model: the photo's 256 levels don't fit into bf16.
            images = (images.float() - self.mean.float()) / self.std.float()
            weight = next(self.backbone.parameters(), None)
            pooled, cells = self._extracted(images if weight is None else images.to(weight.dtype))
            if not self.grid:
                return Features(pooled)
            shape = _grid_shape(cells, images.shape[2], images.shape[3])
            if self.grid_size is not None:
                if shape is None:
                    raise ArgumentError("grid_size needs a backbone whose regions form a grid; leave it out")
                cells = cells if cells.ndim == 4 else cells.transpose(1, 2).reshape(cells.shape[0], -1, *shape)
                cells = F.adaptive_avg_pool2d(cells, self.grid_size)
                shape = self.grid_size, self.grid_size
            grid = cells if cells.ndim == 3 else cells.flatten(2).transpose(1, 2)
            boxes = None if shape is None else _boxes(shape, grid.device).expand(grid.shape[0], -1, -1)
            return Features(pooled, grid, boxes=boxes)

    def _extracted(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`extract`, on a CPU a few photos at a time, as the maps of many fall out of its caches: 1.5 to 4.7 times as
        fast for 32 photos (benchmarks/encoder_batches.py)."""
        whole_batch = images.device.type != "cpu" or torch.is_grad_enabled() or self.backbone.training
        whole_batch = whole_batch or torch.compiler.is_exporting()
        if whole_batch or len(images) <= _CPU_PHOTOS:
            return self.extract(images)
        pooled, cells = zip(
            *(self.extract(images[i : i + _CPU_PHOTOS]) for i in range(0, len(images), _CPU_PHOTOS)), strict=True
        )
        return torch.cat(pooled), torch.cat(cells)

    def head(self, features: Features) -> Features:
        """The trunk's Features -> the decoder's; without a head they stay as they are."""
        grid = features.grid if self.grid else None
        if self.grid and grid is None:
            raise ArgumentError("this encoder returns a grid, but the features have none; were they made by another?")
        if features.pooled.shape[-1] != self.trunk_dim or (grid is not None and grid.shape[-1] != self.trunk_dim):
            raise ArgumentError(
                f"the head takes features of {self.trunk_dim} numbers, not {features.pooled.shape[-1]}; "
                "were they made by another encoder?"
            )
        if not self.grid:
            features = Features(features.pooled)
        if self.projection is None:
            return features
        dtype = self.projection.linear.weight.dtype
        pooled, grid = self.projection.both(features.pooled.to(dtype), None if grid is None else grid.to(dtype))
        return features._replace(pooled=pooled, grid=grid)

    @property
    def trunk_frozen(self) -> bool:
        """Whether no parameter of the trunk is trained, so that its features can be computed once and kept."""
        return not any(parameter.requires_grad for parameter in self.backbone.parameters())

    def train(self, mode: bool = True) -> BackboneEncoder:
        """Switch the trainable parts; what is frozen stays in eval mode."""
        super().train(mode)
        if self._trainable is not True:
            self.backbone.eval()
            for name, module in self.backbone.named_modules():
                if isinstance(self._trainable, tuple) and name in self._trainable:
                    module.train(mode)
        return self

    def _freeze(self, trainable: bool | Sequence[str]) -> None:
        names = [name for name, _ in self.backbone.named_modules() if name]
        names += [name for name, _ in self.backbone.named_parameters()]
        if isinstance(trainable, bool):
            self._trainable: bool | tuple[str, ...] = trainable
        elif isinstance(trainable, list | tuple) and trainable and set(map(type, trainable)) == {str}:
            unknown = [name for name in trainable if name not in names]
            if unknown:
                known = ", ".join(name for name in names if name.count(".") < 2)
                raise ArgumentError(f"the backbone has no {unknown[0]!r:.100} to train; it has {known:.1500}")
            self._trainable = tuple(trainable)
        else:
            raise ArgumentError(f"trainable is true, false or a list of names, not {trainable!r:.200}")
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(
                self._trainable
                if isinstance(self._trainable, bool)
                else any(name == part or name.startswith(part + ".") for part in self._trainable)
            )
        self.train(self.training)

    def _check(self, images: Tensor) -> None:
        spec = self.image_spec
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ArgumentError(
                f"an encoder takes images (N, 3, H, W) of floats in 0..1, not {tuple(images.shape)} of {images.dtype}; "
                "load_images makes them"
            )
        if self.fixed_size and images.shape[2:] != (spec.height, spec.width):
            height, width = images.shape[2:]
            raise ArgumentError(
                f"this encoder takes images of {spec.height} x {spec.width}, not {height} x {width}; "
                "build it with another height and width, or load the photos with its image_spec"
            )


def _three(name: str, values: Any, low: float, high: float) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ArgumentError(f"{name} is three numbers, for red, green and blue, not {values!r:.100}")
    a, b, c = (number(name, value, low, high) for value in values)
    return a, b, c


def _grid_shape(cells: Tensor, height: int, width: int) -> tuple[int, int] | None:
    """(rows, columns) of the map (N, D, h, w), or of tokens (N, L, D) that stand for square patches of the image."""
    if cells.ndim == 4:
        return cells.shape[2], cells.shape[3]
    rows = round((cells.shape[1] * height / width) ** 0.5)
    columns = cells.shape[1] // max(rows, 1)
    return (rows, columns) if rows * columns == cells.shape[1] and rows * width == columns * height else None


def _boxes(shape: tuple[int, int], device: torch.device) -> Tensor:
    """(1, h * w, 4): each cell's x0 y0 x1 y1 in 0..1, row by row."""
    rows, columns = shape
    y, x = torch.meshgrid(
        torch.arange(rows, device=device) / rows, torch.arange(columns, device=device) / columns, indexing="ij"
    )
    return torch.stack([x, y, x + 1 / columns, y + 1 / rows], dim=-1).view(1, -1, 4)


# --- building -------------------------------------------------------------------------------------------------------


class _OnlyShapes(TorchFunctionMode):
    """Parameters on meta, index arithmetic on the CPU."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return func(*args, **(kwargs | {"device": "meta"} if func in (torch.empty, torch.zeros) else kwargs))


def build_shapes_or_real(build: Callable[[], M]) -> M:
    """Call `build`, also where `torch.device("meta")` is the default and the builder computes with tensor values.

    Example:
        >>> with torch.device("meta"):
        ...     layer = build_shapes_or_real(lambda: nn.Linear(3, torch.arange(5).sum().item()))
        >>> layer.weight.device.type, layer.out_features
        ('meta', 10)

    RegNet, MaxViT and many of timm's models read block sizes or drop rates off tensors, which meta tensors can't give.
    """
    if torch.get_default_device().type != "meta":
        return build()
    try:
        return build()
    except RuntimeError:  # "Cannot copy out of meta tensor", "Tensor.item() cannot be called on meta tensors"
        with torch.device("cpu"), _OnlyShapes():
            return build().to("meta")


def make_image_spec(
    facts: ImageSpec,
    height: int | None,
    width: int | None,
    resize: Resize | None,
    short_side: int | None,
    interpolation: Interpolation | None,
) -> ImageSpec:
    """What the weights were trained with, and in its place whatever the caller asks for.

    Example:
        >>> make_image_spec(ImageSpec(224, 224, "crop", 256), 112, 112, None, None, None).short_side
        128

    One of height and width alone stands for both. The crop keeps its share of the photo when the size changes.
    """
    height, width = (width if height is None else height), (height if width is None else width)
    height = whole("height", facts.height if height is None else height, 16, 2048)
    width = whole("width", facts.width if width is None else width, 16, 2048)
    resize = facts.resize if resize is None else resize
    if resize == "crop" and short_side is None:
        share = facts.short_side / min(facts.height, facts.width) if facts.short_side else 1.0
        short_side = max(height, width, round(min(height, width) * share))
    return ImageSpec(height, width, resize, short_side, facts.interpolation if interpolation is None else interpolation)


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load weights into a module; what it has no name for, such as a classifier, is left out.

    Raises ArgumentError where a tensor that it needs is missing or has another shape.
    """
    try:
        missing = module.load_state_dict(weights, strict=False).missing_keys
    except RuntimeError as error:
        what = " ".join(str(error).split())
        raise ArgumentError(f"{where} doesn't fit this backbone (a ViT can't change its size): {what:.500}") from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]  # old files have none
    if missing:
        raise ArgumentError(f"{where} lacks {len(missing)} tensors that the backbone needs, the first is {missing[0]}")
