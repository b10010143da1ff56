"""A tiny captioner to test with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..captioner import Captioner
from ..checks import choice, flag, whole
from ..image_spec import ImageSpec
from ..protocols import Features
from ..registry import find_component, register_encoder
from ..vocabulary import Vocabulary

__all__ = ["TinyEncoder", "tiny_captioner"]


@register_encoder("tiny.v1")
class TinyEncoder(nn.Module):
    """A few hundred weights that turn 32 x 32 photos into features, for tests: a frozen trunk and a trainable head.

    Example:
        >>> import torch
        >>> TinyEncoder(feature_dim=16)(torch.rand(2, 3, 32, 32)).grid.shape
        torch.Size([2, 16, 16])

    `feature_dim` 1..4096; `trainable`: whether the trunk learns too. Raises ArgumentError.
    """

    def __init__(self, feature_dim: int = 16, trainable: bool = False) -> None:
        """Build with fresh weights."""
        super().__init__()
        self.feature_dim = whole("TinyEncoder feature_dim", feature_dim, 1, 4096)
        self.trainable = flag("TinyEncoder trainable", trainable)
        self.image_spec = ImageSpec(32, 32)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 2, stride=2), nn.ReLU())
        self.body.requires_grad_(trainable)
        self.mix = nn.Linear(8, feature_dim)

    @property
    def trunk_frozen(self) -> bool:
        """Whether the trunk's output may be cached."""
        return not self.trainable

    def trunk(self, images: Tensor) -> Features:
        """(N, 3, 32, 32) in 0..1 -> pooled (N, 8), a grid of 4 x 4 cells and their boxes."""
        grid = self.body(4 * images - 2).flatten(2).transpose(1, 2)
        corners = torch.arange(4, device=images.device, dtype=images.dtype) / 4
        y, x = (c.flatten() for c in torch.meshgrid(corners, corners, indexing="ij"))
        boxes = torch.stack([x, y, x + 0.25, y + 0.25], dim=1).expand(images.shape[0], -1, -1)
        return Features(pooled=grid.mean(1), grid=grid, boxes=boxes)

    def head(self, features: Features) -> Features:
        """The trunk's features, mixed to `feature_dim`."""
        grid = None if features.grid is None else self.mix(features.grid)
        return features._replace(pooled=self.mix(features.pooled), grid=grid)

    def forward(self, images: Tensor) -> Features:
        """(N, 3, 32, 32) in 0..1 -> Features."""
        return self.head(self.trunk(images))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {"feature_dim": self.feature_dim, "trainable": self.trainable}


_CAPTIONS = (
    "a dog runs on the grass",
    "a small dog and a red ball",
    "two men ride a bike on the beach",
    "a girl in a blue shirt plays in the water",
)


_DECODERS: dict[str, dict[str, Any]] = {
    "lstm.v1": {"embed_dim": 16, "hidden_dim": 16},
    "attention-lstm.v1": {"embed_dim": 16, "hidden_dim": 16, "attention_dim": 16},
    "adaptive-lstm.v1": {"embed_dim": 16, "hidden_dim": 16, "attention_dim": 16},
    "transformer.v1": {"hidden_dim": 16, "layers": 2, "heads": 2, "feedforward_dim": 32},
}


def tiny_captioner(
    *, seed: int = 0, captions: Sequence[str] = _CAPTIONS, dropout: float = 0.0, decoder: str = "lstm.v1"
) -> Captioner:
    """A complete captioner of a few thousand random weights, for tests: photos of any size in, nonsense out.

    Example:
        >>> tiny_captioner().decoder.vocab_size
        25

    `seed`: of the weights; torch's random state stays as it is. `captions`: texts whose words are the vocabulary.
    `dropout`: the decoder's, 0..0.95. `decoder`: "lstm.v1", or with attention "attention-lstm.v1", "adaptive-lstm.v1",
    "transformer.v1".
    """
    sizes = _DECODERS[choice("decoder", decoder, tuple(_DECODERS))]
    vocabulary = Vocabulary.build(captions, min_count=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TinyEncoder()
        kind: Any = find_component("decoder", decoder)
        made = kind(len(vocabulary), encoder.feature_dim, dropout=dropout, **sizes)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.mul_(3.0)  # fresh weights say nearly the same for every photo
    return Captioner(encoder, made, vocabulary)
