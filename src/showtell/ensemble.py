"""Several captioners that speak with one voice: their next-word probabilities are averaged at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .asking import Asking
from .captioner import Captioner
from .checks import number
from .errors import ArgumentError
from .generate import Ready
from .images import load_images
from .protocols import Decoder, Features, Forced
from .rows import Rows
from .search import Search, as_search

__all__ = ["Ensemble"]


class Ensemble(Asking, nn.Module):
    """Several captioners of one vocabulary that caption together.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> ensemble = Ensemble([tiny_captioner(seed=0), tiny_captioner(seed=1, decoder="transformer.v1")])
        >>> photo = torch.rand(3, 32, 32)
        >>> caption = ensemble.caption(photo, search="beam:3")
        >>> abs(ensemble.score(photo, caption.tokens).log_prob - caption.log_prob) < 1e-5
        True

    At every step each captioner gives its probabilities of the next word, from its own features of the photo and its
    own memory of the words so far; the ensemble's are their weighted mean, and any search and all constraints work on
    them. `caption`, `generate`, `score`, `rank` and `stream` are those of a captioner, of the mean. Captioners that
    share one encoder object encode a photo once; those of equal image specs read it once. Encoders and decoders may
    be of any kinds. An ensemble isn't saved as such: save its captioners.

    Args:
        captioners: at least one, with the same words in the same order.
        weights: 1e-6..1e6, one a captioner; only their proportions count. Default: equal ones.
        search: how to look for a caption when a call doesn't say; default: the first captioner's own.

    Raises:
        ArgumentError: not Captioners, different vocabularies, or weights that make no sense.
    """

    def __init__(
        self,
        captioners: Sequence[Captioner],
        *,
        weights: Sequence[float] | None = None,
        search: Search | str | None = None,
    ) -> None:
        """Check that the captioners speak the same words."""
        super().__init__()
        if not isinstance(captioners, list | tuple) or not captioners:
            raise ArgumentError(f"an ensemble takes a list of at least one Captioner, not {captioners!r:.100}")
        for one in captioners:
            if not isinstance(one, Captioner):
                raise ArgumentError(f"an ensemble takes Captioners, not {type(one).__name__}")
        for place, one in enumerate(captioners[1:], 1):
            _check_words(captioners[0], one, place)
        self.captioners = nn.ModuleList(captioners)
        self.weights = _shares(weights, len(captioners))
        self.vocabulary = captioners[0].vocabulary
        self.search = captioners[0].search if search is None else as_search(search)

    def ready(self, images: Sequence[Any] | Features) -> Ready:
        """Some photos to the captioners' decoders as one, and the features they take.

        Features are given to every captioner as they are, which is right for captioners of the same encoder weights.
        """
        members = cast("list[Captioner]", list(self.captioners))
        devices = sorted({str(one.device) for one in members})
        if len(devices) > 1:
            raise ArgumentError(
                f"the ensemble's captioners are on {', '.join(devices)}; move them: ensemble.to(device)"
            )
        each: list[Features] = []
        if isinstance(images, Features):
            each = [images] * len(members)
        else:
            photos = list(images)
            pixels = {spec: load_images(photos, spec) for spec in {one.encoder.image_spec for one in members}}
            encoded: dict[int, Features] = {}
            for one in members:
                if id(one.encoder) not in encoded:
                    encoded[id(one.encoder)] = one.encode_pixels(pixels[one.encoder.image_spec])
                each.append(encoded[id(one.encoder)])
        return Ready(_Voices([one.decoder for one in members], each, self.weights), each[0])


class _Voices(nn.Module):
    """Several decoders, and each one's features of the same photos, as one decoder.

    Memory and state hold those of all, their names numbered. What comes out as logits are the logarithms of the mean
    probabilities.
    """

    has_attention = False

    def __init__(self, decoders: Sequence[Decoder], features: Sequence[Features], weights: Sequence[float]) -> None:
        super().__init__()
        self.decoders = nn.ModuleList(cast("list[nn.Module]", list(decoders)))
        self.features = features
        self.shares = [math.log(weight) for weight in weights]
        self.vocab_size = decoders[0].vocab_size

    def config(self) -> dict[str, Any]:
        raise ArgumentError("an ensemble isn't saved as such; save its captioners")

    def prepare(self, features: Features) -> Rows:
        if features is not self.features[0]:
            raise ArgumentError("an ensemble's decoders take the features they were made ready with")
        return _joined(each.prepare(own) for each, own in zip(self._each(), self.features, strict=True))

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return _joined(each.initial_state(_own(memory, place), max_length) for place, each in enumerate(self._each()))

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        logits: list[Tensor] = []
        states: list[Rows] = []
        for place, each in enumerate(self._each()):
            scores, own = each.step(tokens, _own(state, place), _own(memory, place))
            logits.append(scores)
            states.append(own)
        return self._mean(logits), _joined(states)

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        return Forced(self._mean([each(tokens, _own(memory, place)).logits for place, each in enumerate(self._each())]))

    def _each(self) -> list[Decoder]:
        return cast("list[Decoder]", list(self.decoders))

    def _mean(self, logits: list[Tensor]) -> Tensor:
        dtype = torch.float64 if any(each.dtype == torch.float64 for each in logits) else torch.float32
        weighted = [
            each.log_softmax(dim=-1, dtype=dtype) + share for each, share in zip(logits, self.shares, strict=True)
        ]
        return torch.stack(weighted).logsumexp(0)


def _joined(bags: Any) -> Rows:
    """The rows of several decoders in one bag."""
    return {f"{number}.{name}": tensor for number, bag in enumerate(bags) for name, tensor in bag.items()}


def _own(rows: Rows, number: int) -> Rows:
    """The rows of one of them."""
    start = f"{number}."
    return {name.removeprefix(start): tensor for name, tensor in rows.items() if name.startswith(start)}


def _check_words(first: Captioner, other: Captioner, place: int) -> None:
    ours, theirs = first.vocabulary, other.vocabulary
    told = f"an ensemble's captioners share one vocabulary, the same words in the same order; number {place} has"
    if ours.kind != theirs.kind or len(ours) != len(theirs):
        raise ArgumentError(f"{told} {theirs!r} and the first {ours!r}: train them with the same vocabulary")
    for at, (one, two) in enumerate(zip(ours.words, theirs.words, strict=True)):
        if one != two:
            raise ArgumentError(
                f"{told} {two!r:.60} as word {at} and the first {one!r:.60}: train them with the same vocabulary"
            )


def _shares(weights: Any, count: int) -> tuple[float, ...]:
    """Weights as parts of 1."""
    if weights is None:
        return (1.0 / count,) * count
    if not isinstance(weights, list | tuple) or len(weights) != count:
        raise ArgumentError(f"weights are a list of {count} numbers, one a captioner, not {weights!r:.100}")
    numbers = [number("an ensemble's weight", weight, 1e-6, 1e6) for weight in weights]
    return tuple(each / sum(numbers) for each in numbers)
