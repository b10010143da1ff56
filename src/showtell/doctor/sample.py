"""Some photos of a split, and all that the captioner makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..caption import Caption
from ..captioner import Captioner
from ..data import Record
from ..data.inputs import load_records
from ..data.records import listed
from ..errors import ImageError, RunError
from ..progress import bar
from ..protocols import Features, join_features
from ..search import Search
from .losses import Losses, losses_of, words_of

__all__ = ["Sample", "choose", "look_at"]

_CHUNK = 32
_CAPTIONS = 5  # references a photo that losses are taken of


@dataclass(frozen=True)
class Sample:
    """N photos of a split: their features, the captions generated for them, and the loss of their references."""

    split: str
    records: tuple[Record, ...]
    features: Features
    captions: tuple[Caption, ...]
    losses: Losses

    @property
    def texts(self) -> list[str]:
        """The generated captions."""
        return [caption.text for caption in self.captions]

    @property
    def references(self) -> list[tuple[str, ...]]:
        """What people wrote."""
        return [record.captions for record in self.records]


def choose(records: Sequence[Record], count: int, seed: int) -> tuple[Record, ...]:
    """At most `count` records, chosen and ordered by the seed; the caller's random numbers are left alone."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(records[position] for position in torch.randperm(len(records), generator=generator)[:count].tolist())


def look_at(captioner: Captioner, split: str, records: tuple[Record, ...], search: Search, show: bool | None) -> Sample:
    """Encode and caption photos, all of them readable and with words.

    Raises RunError when what the captioner computes isn't finite, ImageError for a photo that vanished meanwhile.
    """
    parts: list[Features] = []
    captions: list[Caption] = []
    with bar(len(records), f"captioning {split}", unit="photo", show=show) as progress:
        for start in range(0, len(records), _CHUNK):
            images, bad = load_records(records[start : start + _CHUNK], captioner.encoder.image_spec)
            if bad:
                raise ImageError(f"photos that could be read a moment ago can't be now:{listed(list(bad.values()))}")
            features = captioner.encode_pixels(images)
            for name, tensor in features._asdict().items():
                if tensor is not None and not bool(torch.isfinite(tensor).all()):
                    raise RunError(f"the encoder's {name} features of photos of {split} hold NaN or infinity")
            places = range(start, start + len(images))
            found = captioner.generate(features, search=search, batch_size=_CHUNK, positions=places)
            captions += [best[0] for best in found]
            parts.append(features)
            progress.update(len(images))
    features = join_features(parts)
    words = words_of(captioner.vocabulary, records, captions=_CAPTIONS, max_length=search.max_length)
    losses = losses_of(captioner, features, words)
    if bool(torch.isnan(losses.totals).any()):
        raise RunError(f"the decoder's scores of references of {split} hold NaN")
    return Sample(split, records, features, tuple(captions), losses)
