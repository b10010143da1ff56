"""The laws of encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..image_spec import ImageSpec
from ..protocols import Encoder, Features, SplitEncoder
from .compare import check_config, check_gradients, check_protocol, expect, generator, left_as_it_was, like, pick, same

__all__ = ["check_encoder"]


def check_encoder(encoder: Encoder, images: Tensor | None = None) -> None:
    """Check the laws on an encoder; it is left as it was.

    Example:
        >>> from showtell.testing import TinyEncoder
        >>> check_encoder(TinyEncoder())

    `images` (N, 3, H, W) in 0..1, N at least 2; default: random ones of the size in `image_spec`. Raises
    AssertionError naming the law and what differed, ArgumentError for unusable `images`.
    """
    check_protocol(encoder, Encoder)
    expect(isinstance(encoder.image_spec, ImageSpec), 0, encoder, f"image_spec is {encoder.image_spec!r:.100}")
    if images is None:
        images = torch.rand(3, 3, encoder.image_spec.height, encoder.image_spec.width, generator=generator())
        images = images.to(like(encoder))
    if images.ndim != 4 or images.shape[0] < 2:
        raise ArgumentError(f"the check needs images (N, 3, H, W), N at least 2, not {tuple(images.shape)}")
    with left_as_it_was(encoder) as module:
        check_config(encoder)
        module.eval()
        with torch.no_grad():
            features = encoder(images)
            _check_features(encoder, features, images.shape[0])
            same(6, encoder, "the same images again", encoder(images), features)
            order = torch.arange(images.shape[0] - 1, -1, -1, device=images.device)
            same(4, encoder, "permuted images", encoder(images[order]), pick(features, order))
            for i in range(images.shape[0]):
                one = encoder(images[i : i + 1])
                same(4, encoder, f"image {i} alone", one, pick(features, slice(i, i + 1)))
            if isinstance(encoder, SplitEncoder):
                parts = encoder.head(encoder.trunk(images))
                same(0, encoder, "head(trunk(images))", parts, features)
        _check_frozen(encoder, images)
        module.train()
        check_gradients(encoder, encoder(images))


def _check_features(encoder: Encoder, features: Features, images: int) -> None:
    expect(isinstance(features, Features), 0, encoder, f"it returns {type(features).__name__}, not Features")
    expected = (images, encoder.feature_dim)
    found = tuple(features.pooled.shape)
    expect(found == expected, 2, encoder, f"pooled is {found}, not {expected}")
    if features.grid is not None:
        found = tuple(features.grid.shape)
        fits = len(found) == 3 and found[0] == images and found[2] == encoder.feature_dim
        expect(fits, 2, encoder, f"grid is {found}, not {(images, 'L', encoder.feature_dim)}")
    regions = None if features.grid is None else features.grid.shape[1]
    if features.mask is not None:
        found = tuple(features.mask.shape)
        fits = features.mask.dtype == torch.bool and found == (images, regions)
        expect(fits, 2, encoder, f"mask is {features.mask.dtype} {found}, not bool {(images, regions)}")
        expect(bool(features.mask.any(1).all()), 0, encoder, "a row of the mask has no real region")
    if features.boxes is not None:
        found = tuple(features.boxes.shape)
        expect(found == (images, regions, 4), 2, encoder, f"boxes is {found}, not {(images, regions, 4)}")
        inside = bool(((features.boxes >= 0) & (features.boxes <= 1)).all())
        expect(inside, 0, encoder, "boxes leave 0..1")


def _check_frozen(encoder: Any, images: Tensor) -> None:
    """Law 6: in train mode, what needs no gradient computes what it computes in eval mode."""
    frozen = encoder.trunk if isinstance(encoder, SplitEncoder) else encoder
    with torch.no_grad():
        encoder.eval()
        expected = frozen(images)
    encoder.train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    found = frozen(images)
    if not any(t is not None and t.requires_grad for t in found):
        same(6, encoder, "after train(), what the frozen part returns", found, expected)
    for name, module in encoder.named_modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            for key, buffer in module.named_buffers(prefix=name, recurse=False):
                expect(torch.equal(buffer, before[key]), 6, encoder, f"train mode changed {key} of a frozen module")
