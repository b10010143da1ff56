"""Any classification backbone of torchvision; the only importer of torchvision."""

from __future__ import annotations

import http.client
import math
import pickle
import re
import struct
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from ..errors import ArgumentError, HubError
from ..image_spec import ImageSpec
from .base import BackboneEncoder, Interpolation, Resize, build_shapes_or_real, fill, make_image_spec

__all__ = ["TorchvisionEncoder"]


class TorchvisionEncoder(BackboneEncoder):
    """A torchvision classification backbone without its classifier.

    Example:
        >>> encoder = TorchvisionEncoder("resnet18", height=64, grid=True)
        >>> features = encoder.eval()(torch.rand(2, 3, 64, 64))
        >>> features.pooled.shape, features.grid.shape
        (torch.Size([2, 512]), torch.Size([2, 4, 512]))

    The constructor never fetches anything: weights are random until they are loaded; `pretrained` fetches them.
    The grid is the last map before the pooling (ViT: the patch tokens; ConvNeXt and MaxViT: each cell through the
    norm of the pooled features). Pooled is what the backbone pools: the mean of the map; ViT's class token.

    Args:
        backbone: a name of `torchvision.models.list_models(module=torchvision.models)`, such as "resnet50".
        height, width: pixels, 16..2048; one alone stands for both. ViT and MaxViT take no other size afterwards.
        resize, short_side, interpolation: as in ImageSpec. What is left out is what torchvision's default weights of
            that backbone were trained with.
        mean, std: three numbers each; left out: those of the default weights.
        grid, grid_size, head, trainable: as in BackboneEncoder.

    Raises:
        ArgumentError: an unknown name or an option out of range.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
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
        facts = _facts(backbone, "DEFAULT")
        spec = make_image_spec(facts.spec, height, width, resize, short_side, interpolation)
        body = build_shapes_or_real(lambda: _build(backbone, spec))
        super().__init__(
            body,
            image_spec=spec,
            mean=facts.mean if mean is None else mean,
            std=facts.std if std is None else std,
            trunk_dim=body.dim,
            grid=grid,
            grid_size=grid_size,
            head=head,
            trainable=trainable,
            fixed_size=backbone.startswith(_FIXED),
        )
        self.name = backbone

    @classmethod
    def pretrained(cls, backbone: str = "resnet50", *, weights: str = "DEFAULT", **options: Any) -> TorchvisionEncoder:
        """Build and fetch torchvision's ImageNet weights, once; they stay in torch.hub's folder.

        `weights` is a name such as "IMAGENET1K_V2"; size, mean and std are those that these weights were trained
        with; `options` are the constructor's and go first. Raises HubError when the download fails, ArgumentError
        for unknown names or a ViT of another size.
        """
        facts = _facts(backbone, weights)
        resizing = ("height", "width", "resize", "short_side", "interpolation")
        spec = make_image_spec(facts.spec, *(options.pop(key, None) for key in resizing))
        options = {key: getattr(spec, key) for key in resizing} | {"mean": facts.mean, "std": facts.std} | options
        encoder = cls(backbone, **options)
        found = _weights(backbone, weights)
        try:
            state = found.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        except _FAILURES as error:
            raise HubError(
                f"can't fetch the weights {weights} of {backbone} ({error}); download {found.url} with a browser, put "
                f"it into {torch.hub.get_dir()}/checkpoints, and call this again; or use the encoder that comes "
                "with showtell"
            ) from error
        # DenseNet's files are older than its present names.
        renamed = {re.sub(r"\.(norm|relu|conv)\.([12])\.", r".\1\2.", name): value for name, value in state.items()}
        fill(encoder.backbone, renamed if backbone.startswith("densenet") else state, f"{backbone} {weights}")
        return encoder

    def config(self) -> dict[str, Any]:
        """Every option, as JSON."""
        return {"backbone": self.name, **super().config()}

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images -> pooled and map (ViT: tokens)."""
        return cast("tuple[Tensor, Tensor]", self.backbone(images))


# Of the connection, then of a file that isn't what it should be.
_FAILURES = (OSError, http.client.HTTPException, RuntimeError, ValueError, LookupError, EOFError,
             pickle.PickleError, struct.error)  # fmt: skip


class _Facts(NamedTuple):
    spec: ImageSpec
    mean: list[float]
    std: list[float]


@cache
def _names() -> frozenset[str]:
    return frozenset(models.list_models(module=models))


def _weights(backbone: str, name: str) -> Any:
    if not isinstance(backbone, str) or backbone not in _names():
        raise ArgumentError(
            f"torchvision has no classification backbone {backbone!r:.100}; it has {', '.join(sorted(_names()))}"
        )
    known = models.get_model_weights(backbone).__members__
    if name not in known:
        raise ArgumentError(f"{backbone} has the weights {', '.join(known)}, not {name!r:.100}")
    return known[name]


def stated_licence(backbone: str, name: str) -> str | None:
    """The licence that torchvision states for those weights; None where it states none."""
    stated = _weights(backbone, name).meta.get("license")
    return str(stated) if stated else None


def _facts(backbone: str, name: str) -> _Facts:
    """How the photos were prepared that these weights were trained with."""
    preset = _weights(backbone, name).transforms()
    size, short_side = preset.crop_size[0], preset.resize_size[0]
    spec = ImageSpec(size, size, "crop", max(size, short_side), preset.interpolation.value)
    if backbone in ("inception_v3", "googlenet"):  # their own `transform_input` turns ImageNet's numbers into these
        return _Facts(spec, [0.5] * 3, [0.5] * 3)
    return _Facts(spec, list(preset.mean), list(preset.std))


# --- the cut ----------------------------------------------------------------------------------------------------------

_FIXED = ("vit_", "maxvit_")
_LEAST = {"inception_v3": 75, "alexnet": 63}  # pixels below which some map has no cell
_AFTER_THE_MAP = ("avgpool", "classifier", "fc", "head")
_FAMILIES = (
    models.AlexNet, models.ConvNeXt, models.DenseNet, models.EfficientNet, models.GoogLeNet, models.Inception3,
    models.MaxVit, models.MNASNet, models.MobileNetV2, models.MobileNetV3, models.RegNet, models.ResNet,
    models.ShuffleNetV2, models.SqueezeNet, models.SwinTransformer, models.VGG,
)  # fmt: skip


def _build(name: str, spec: ImageSpec) -> _Body | _VisionTransformer:
    """The backbone up to its last map, under torchvision's own parameter names."""
    least = _LEAST.get(name, 32)
    if min(spec.height, spec.width) < least:
        raise ArgumentError(f"{name} needs images of at least {least} x {least}, not {spec.height} x {spec.width}")
    options: dict[str, Any] = {"weights": None}
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        patch = int(name.rsplit("_", 1)[1])
        if spec.height != spec.width or spec.height % patch:
            raise ArgumentError(
                f"{name} needs square images of a multiple of {patch} pixels, not {spec.height} x {spec.width}"
            )
        return _VisionTransformer(models.get_model(name, image_size=spec.height, **options))
    if name.startswith("maxvit_"):
        if spec.height % 224 or spec.width % 224:
            raise ArgumentError(f"{name} needs multiples of 224 pixels, not {spec.height} x {spec.width}")
        options["input_size"] = (spec.height, spec.width)
    model = models.get_model(name, **options)
    if not isinstance(model, _FAMILIES):
        raise ArgumentError(f"showtell doesn't know where the last map of {name} is; please open an issue")
    return _Body(model)


class _Body(nn.Module):
    """The parts of a model before its pooling, one after the other, as they stand in the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = dict(model.named_children())
        cut = next(i for i, name in enumerate(parts) if name in _AFTER_THE_MAP)
        self.order = tuple(parts)[:cut]
        for name in self.order:
            part = parts[name]
            self.add_module(name, nn.Sequential(*part) if isinstance(part, nn.ModuleList) else part)
        rest = nn.ModuleList(list(parts.values())[cut:])
        first = next(m for m in rest.modules() if isinstance(m, nn.Linear | nn.Conv2d))
        inputs = first.in_features if isinstance(first, nn.Linear) else first.in_channels
        self.dim: int = inputs // _cells_seen(rest)
        self.ends_in_relu = isinstance(model, models.DenseNet)
        if isinstance(model, models.ConvNeXt | models.MaxVit):  # these normalise what they have pooled
            norm = next(i for i, m in enumerate(cast("nn.Sequential", model.classifier)) if isinstance(m, nn.LayerNorm))
            self.classifier = nn.Sequential()
            self.classifier.add_module(str(norm), cast("nn.Sequential", model.classifier)[norm])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for name in self.order:
            x = getattr(self, name)(x)
        x = torch.relu(x) if self.ends_in_relu else x
        return self._normalised(x.mean((2, 3), keepdim=True)).flatten(1), self._normalised(x)

    def _normalised(self, x: Tensor) -> Tensor:
        if not hasattr(self, "classifier"):
            return x
        norm = cast("nn.LayerNorm", self.classifier[0])
        x = F.layer_norm(x.permute(0, 2, 3, 1), norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return x.permute(0, 3, 1, 2)


def _cells_seen(rest: nn.Module) -> int:
    """How many cells of the map the classifier reads at once: VGG 7 x 7, AlexNet 6 x 6, the others their mean."""
    for module in rest.modules():
        if isinstance(module, nn.AdaptiveAvgPool2d):
            size = module.output_size
            return size**2 if isinstance(size, int) else math.prod(n or 1 for n in size or ())
    return 1


class _VisionTransformer(nn.Module):
    """torchvision's ViT without its heads."""

    def __init__(self, model: models.VisionTransformer) -> None:
        super().__init__()
        self.class_token = model.class_token
        self.conv_proj = model.conv_proj
        self.encoder = model.encoder
        self.dim: int = model.hidden_dim

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = self.encoder(torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1))
        return tokens[:, 0], tokens[:, 1:]
