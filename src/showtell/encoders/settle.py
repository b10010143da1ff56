"""Random weights that give features of an ordinary size."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from .base import BackboneEncoder

__all__ = ["settle"]

_PHOTOS = 4
_CELLS = (3, 7, 15, 31)  # from large blots to small ones


@torch.no_grad()
def settle(encoder: BackboneEncoder) -> None:
    """Give the batch norms of a backbone with fresh weights the statistics of a few blurred random images.

    Example:
        >>> from showtell.encoders.efficientnet_lite import EfficientNetLite
        >>> encoder, photos = EfficientNetLite(image_size=64).eval(), torch.rand(4, 3, 64, 64)
        >>> before = encoder(photos).pooled.abs().max()
        >>> settle(encoder)
        >>> bool(before < 1e-5), bool(encoder(photos).pooled.abs().max() > 1e-2)
        (True, True)

    A frozen batch norm that has never seen a photo doesn't normalise, and what leaves 50 or 150 layers of random
    weights is then 1e-7 or 1e8. Draws from torch's global generator. On the meta device nothing happens.
    """
    norms = [module for module in encoder.backbone.modules() if isinstance(module, _BatchNorm)]
    weight = next(encoder.backbone.parameters())
    if not norms or weight.is_meta:
        return
    momenta = [norm.momentum for norm in norms]
    was_training = {module: module.training for module in encoder.modules()}
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches seen, which will be one
        norm.train()
    spec = encoder.image_spec
    size = spec.height, spec.width
    images = torch.cat([F.interpolate(torch.rand(_PHOTOS, 3, n, n), size=size, mode="bilinear") for n in _CELLS])
    mean, std = encoder.mean.float(), encoder.std.float()
    encoder.extract(((images.to(mean.device) - mean) / std).to(weight.dtype))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, training in was_training.items():
        module.training = training
