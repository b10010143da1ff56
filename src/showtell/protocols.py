"""What showtell asks of an encoder and of a decoder; both are also `torch.nn.Module`s.

N images, R rows (R = N * K, row r belongs to image r // K), L regions, D features, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import ArgumentError
from .image_spec import ImageSpec
from .rows import Rows

__all__ = [
    "Decoder",
    "Encoder",
    "Features",
    "Forced",
    "SplitEncoder",
    "as_features",
    "join_features",
    "move",
    "slice_features",
]


class Features(NamedTuple):
    """What an encoder knows about N photos.

    Example:
        >>> import torch
        >>> Features(pooled=torch.zeros(2, 512)).grid is None
        True

    pooled (N, D) float; grid (N, L, D) float; mask (N, L) bool, True where a region is real, at least one a row;
    boxes (N, L, 4) x0 y0 x1 y1 in 0..1 of the encoder's input, for grid cells and detector regions alike.
    """

    pooled: Tensor
    grid: Tensor | None = None
    mask: Tensor | None = None
    boxes: Tensor | None = None


def as_features(value: Any, who: str) -> Features:
    """The value, if it is Features; else an ArgumentError that begins with `who`: "MyEncoder must return"."""
    if isinstance(value, Features) and isinstance(value.pooled, Tensor):
        return value
    kind = "Features without a pooled tensor" if isinstance(value, Features) else type(value).__name__
    raise ArgumentError(f"{who} Features, such as Features(pooled=a tensor (photos, dim)), not {kind}")


def slice_features(features: Features, start: int, stop: int) -> Features:
    """The features of photos start..stop-1."""
    return Features(*(None if t is None else t[start:stop] for t in features))  # type: ignore[arg-type]


def move(value: Any, device: torch.device | str) -> Any:
    """A tensor, Features, or a NamedTuple of these, on a device; anything else as it is.

    A copy from pinned memory to a GPU doesn't make the host wait.
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=torch.device(device).type != "cpu")
    if hasattr(value, "_fields"):
        return type(value)(*(move(each, device) for each in value))
    return value


def join_features(parts: Sequence[Features]) -> Features:
    """The features of several batches as one; all have the same regions."""
    columns = zip(*parts, strict=True)
    return Features(*(None if ts[0] is None else torch.cat(ts) for ts in columns))  # type: ignore[arg-type]


class Forced(NamedTuple):
    """What teacher forcing returns: logits (R, T, V) and, where asked for, attention (R, T, L).

    Attention rows sum to at most 1; what is missing belongs to a sentinel.
    """

    logits: Tensor
    attention: Tensor | None = None


@runtime_checkable
class Encoder(Protocol):
    """Photos to features. Normalisation happens inside: images are RGB in 0..1."""

    feature_dim: int
    image_spec: ImageSpec

    def __call__(self, images: Tensor, /) -> Features:
        """(N, 3, H, W) float in 0..1 -> Features."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON values; `type(self)(**config)` has the same tensor names and shapes."""
        ...


@runtime_checkable
class SplitEncoder(Encoder, Protocol):
    """An encoder of a costly trunk and a cheap, trainable head: `__call__` is `head(trunk(images))`."""

    def trunk(self, images: Tensor, /) -> Features:
        """(N, 3, H, W) float in 0..1 -> Features, what the feature cache stores."""
        ...

    def head(self, features: Features, /) -> Features:
        """The trunk's Features -> the decoder's Features."""
        ...


@runtime_checkable
class Decoder(Protocol):
    """Features and the words so far to scores for the next word. State is an argument and a result."""

    vocab_size: int
    has_attention: bool

    def prepare(self, features: Features, /) -> Rows:
        """Once an image: Features of N images -> memory, N rows."""
        ...

    def initial_state(self, memory: Rows, max_length: int, /) -> Rows:
        """Memory, N rows -> the state before the first token, N rows, good for `max_length` steps."""
        ...

    def step(self, tokens: Tensor, state: Rows, memory: Rows, /) -> tuple[Tensor, Rows]:
        """Tokens (R,) int64, state of R rows, memory of N rows -> logits (R, V) and the new state."""
        ...

    def __call__(self, tokens: Tensor, memory: Rows, /, *, attention: bool = False) -> Forced:
        """Teacher forcing: tokens (R, T) int64, start token first -> logits (R, T, V) of the tokens after them."""
        ...

    def config(self) -> dict[str, Any]:
        """JSON values; `type(self)(**config)` has the same tensor names and shapes."""
        ...
