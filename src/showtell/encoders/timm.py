"""Any backbone of timm (the extra "timm"); the only importer of timm."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ArgumentError, HubError, MissingPackageError
from ..image_spec import ImageSpec
from .base import BackboneEncoder, Interpolation, Resize, build_shapes_or_real, fill, make_image_spec

__all__ = ["TimmEncoder"]


class TimmEncoder(BackboneEncoder):
    """A timm model without its classifier.

    Example:
        >>> encoder = TimmEncoder("mobilenetv3_small_050", height=64)
        >>> encoder.image_spec.interpolation, encoder.feature_dim
        ('bicubic', 1024)

    The constructor never fetches anything: weights are random until they are loaded; `pretrained` fetches them. Pooled
    is what timm's classifier would read. The grid is what `forward_features` gives, without class and register tokens.
    Where the two differ in width (MobileNetV3, VGG), pooled is the mean of the grid once a grid is asked for.

    Args:
        model: an architecture of `timm.list_models()`, without a tag: "resnet50".
        height, width: pixels, 16..2048; one alone stands for both. Transformers of fixed size are built for it.
        resize, short_side, interpolation, mean, std: left out: those of timm's default weights of that model.
        grid, grid_size, head, trainable: as in BackboneEncoder.

    Raises:
        MissingPackageError: timm isn't installed.
        ArgumentError: an unknown name, an option out of range, or a model that can't be built or used so.
    """

    def __init__(
        self,
        model: str,
        *,
        height: int | None = None,
        width: int | None = None,
        resize: Resize | None = None,
        short_side: int | None = None,
        interpolation: Interpolation | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        grid: bool = False,
        grid_size: int | None = None,
        head: dict[str, Any] | None = None,
        trainable: bool | Sequence[str] = False,
    ) -> None:
        """Build with random weights."""
        _check_name(model)
        facts = _facts(model)
        spec = make_image_spec(facts.spec, height, width, resize, short_side, interpolation)
        backbone = _build(model, spec, facts)
        cells_dim, pooled_dim = backbone.num_features, getattr(backbone, "head_hidden_size", backbone.num_features)
        if grid is True and trainable is True and cells_dim != pooled_dim:
            raise ArgumentError(
                f"{model} has layers after its pooling that a grid doesn't use, so trainable=True would train what "
                "nothing reads; name the parts to train, or leave the grid out"
            )
        super().__init__(
            backbone,
            image_spec=spec,
            mean=facts.mean if mean is None else mean,
            std=facts.std if std is None else std,
            trunk_dim=cells_dim if grid else pooled_dim,
            grid=grid,
            grid_size=grid_size,
            head=head,
            trainable=trainable,
            fixed_size=facts.fixed,
        )
        self.model = model
        self.pools_itself = cells_dim == pooled_dim or not grid
        self.prefix: int = getattr(backbone, "num_prefix_tokens", 0)
        self.channels_last = str(getattr(backbone, "output_fmt", "")).endswith("NHWC")

    @classmethod
    def pretrained(cls, model: str, **options: Any) -> TimmEncoder:
        """Build and fetch timm's weights; name them as timm does, with the tag: "resnet50.a1_in1k".

        Size, mean and std are those of these weights; `options` are the constructor's and go first. Raises
        ArgumentError for an unknown name or one that stands for several weights, HubError when the download fails.
        """
        timm = _timm()
        architecture = model.partition(".")[0] if isinstance(model, str) else model
        _check_name(architecture)
        known = timm.list_models(f"{architecture}.*", pretrained=True) or timm.list_models(
            architecture, pretrained=True
        )
        if model == architecture and len(known) == 1:
            model = known[0]
        if model not in known:
            what = "stands for several weights" if model == architecture and known else "has no weights in timm"
            raise ArgumentError(f"{model} {what}; choose one of {', '.join(known) or '(none)'}")
        facts = _facts(model)
        resizing = ("height", "width", "resize", "short_side", "interpolation")
        spec = make_image_spec(facts.spec, *(options.pop(key, None) for key in resizing))
        options = {key: getattr(spec, key) for key in resizing} | {"mean": facts.mean, "std": facts.std} | options
        encoder = cls(architecture, **options)
        try:
            found = _create(model, spec, _facts(architecture), pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise HubError(
                f"can't fetch the timm weights {model} ({error}); try again with a connection, or copy the "
                "Hugging Face cache of a computer that has them"
            ) from error
        fill(encoder.backbone, found.state_dict(), model)
        return encoder

    def config(self) -> dict[str, Any]:
        """Every option, as JSON."""
        return {"model": self.model, **super().config()}

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> pooled and map or tokens."""
        backbone: Any = self.backbone
        cells = backbone.forward_features(images)
        if not isinstance(cells, Tensor) or cells.ndim not in (3, 4):
            raise ArgumentError(f"showtell can't use {self.model}: it gives no single map of features; choose another")
        pooled = backbone.forward_head(cells, pre_logits=True) if self.pools_itself else None
        if self.channels_last:
            cells = cells.permute(0, 3, 1, 2)
        elif cells.ndim == 3:
            cells = cells[:, self.prefix :]
        if pooled is None:
            pooled = cells.mean((2, 3)) if cells.ndim == 4 else cells.mean(1)
        return pooled, cells


class _Facts(NamedTuple):
    spec: ImageSpec
    mean: list[float]
    std: list[float]
    fixed: bool


def _timm() -> ModuleType:
    try:
        with torch.device("cpu"):  # the first time may be while shapes are built on the meta device
            import timm
    except ModuleNotFoundError as error:
        raise MissingPackageError('encoders of timm need timm: pip install "showtell[timm]"') from error
    module: ModuleType = timm
    return module


def _check_name(model: str) -> None:
    known = _timm().list_models()
    if not isinstance(model, str) or model not in known:
        near = difflib.get_close_matches(str(model)[:100].partition(".")[0], known, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; timm.list_models() prints them"
        raise ArgumentError(f"timm has no model {model!r:.100} (an architecture's name, without a tag){hint}")


def _facts(model: str) -> _Facts:
    """How the photos were prepared that these weights, or the model's default ones, were trained with."""
    facts = _timm().get_pretrained_cfg(model)
    _, height, width = facts.input_size
    mean, std = list(facts.mean), list(facts.std)
    if facts.crop_mode == "center":
        short_side = max(height, width, math.floor(min(height, width) / facts.crop_pct))
        spec = ImageSpec(height, width, "crop", short_side, facts.interpolation)
    else:
        spec = ImageSpec(height, width, interpolation=facts.interpolation)
    return _Facts(spec, mean, std, bool(facts.fixed_input_size))


def stated_licence(model: str) -> str | None:
    """The licence that timm states for the weights of that name; None where it states none."""
    stated = getattr(_timm().get_pretrained_cfg(model, allow_unregistered=True), "license", None)
    return str(stated) if stated else None


def _build(model: str, spec: ImageSpec, facts: _Facts) -> Any:
    """The model without its classifier; refused, not guessed, where timm can't build it for that size."""
    try:
        return build_shapes_or_real(lambda: _create(model, spec, facts, pretrained=False))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if (spec.height, spec.width) == (facts.spec.height, facts.spec.width):
            raise
        raise ArgumentError(f"timm can't build {model} for {spec.height} x {spec.width} pixels: {error}") from error


def _create(model: str, spec: ImageSpec, facts: _Facts, *, pretrained: bool) -> nn.Module:
    other_size = facts.fixed and (spec.height, spec.width) != (facts.spec.height, facts.spec.width)
    options = {"img_size": (spec.height, spec.width)} if other_size else {}
    created: nn.Module = _timm().create_model(model, pretrained=pretrained, num_classes=0, **options)
    return created
