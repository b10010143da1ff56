"""What objectives that draw captions share: one encoding, the mode to draw in, and numbers to draw by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import ArgumentError
from ..generate import evaluating
from ..protocols import Features, SplitEncoder, as_features
from .room import norm_statistics, put_back

__all__ = ["Encoded", "bare", "check_photos", "encode", "seed_of", "without_dropout"]


class Encoded(NamedTuple):
    """features: of N photos, without gradient, to draw by. batch: what the forced pass takes."""

    features: Features
    batch: Any


def bare(captioner: Any) -> Any:
    """The captioner itself, where something such as DistributedDataParallel or torch.compile is wrapped around it."""
    inner = captioner.module if isinstance(captioner, nn.parallel.DistributedDataParallel) else captioner
    inner = getattr(inner, "_orig_mod", inner)
    if not hasattr(inner, "vocabulary") or not hasattr(inner, "decoder"):
        raise ArgumentError(
            f"drawing captions takes a Captioner, not {type(inner).__name__}, which has no decoder and vocabulary"
        )
    return inner


def encode(captioner: Any, batch: Any) -> Encoded:
    """The photos of a batch, encoded once.

    A frozen encoder has said all there is to say: the forced pass gets its features. One that learns must take part
    in the forced pass, with a gradient, so it runs twice.
    """
    inputs, encoder = batch.inputs, cast(nn.Module, captioner.encoder)
    statistics = norm_statistics(
        encoder.modules()
    )  # the forced pass counts the photos, to draw isn't to see them again
    with torch.no_grad():
        if isinstance(inputs, Tensor):
            features = encoder(inputs)
        elif batch.trunk and isinstance(encoder, SplitEncoder):
            features = encoder.head(inputs)
        else:
            features = inputs
        features = as_features(features, f"{type(encoder).__name__} must return")
    put_back(statistics)
    if any(p.requires_grad for p in encoder.parameters()):
        return Encoded(features, batch)
    return Encoded(features, batch._replace(inputs=features, trunk=False))


def check_photos(batch: Any, images: int) -> tuple[int, ...]:
    """The photos' positions, which chance depends on."""
    photos: tuple[int, ...] = batch.photos
    if len(photos) != images:
        raise ArgumentError(
            f"a batch of {images} photos must name their {images} positions in batch.photos, not {len(photos)}; "
            "showtell.Batches does"
        )
    return photos


def seed_of(seed: int, step: int, purpose: str) -> int:
    """A number in 0..2**63 - 1 for each seed, step and purpose."""
    digest = hashlib.blake2b(f"showtell {purpose} {seed} {step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, of which gradients can still be taken.

    cuDNN goes backwards through a recurrent layer in training mode only, so that one stays in it, its dropout 0.
    """
    recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
    before = [(m.training, m.dropout) for m in recurrent]
    with evaluating(module):
        try:
            for each in recurrent:
                each.training, each.dropout = True, 0.0
            yield
        finally:
            for each, (training, dropout) in zip(recurrent, before, strict=True):
                each.training, each.dropout = training, dropout
