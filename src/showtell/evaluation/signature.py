"""What a score depends on besides the captions: two scores are comparable where all of it is the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..errors import FormatError
from ..metrics import METRICS, TOKENIZER
from ..version import __version__

__all__ = ["Signature"]

_SHOWN = 200  # characters of a field in a message


@dataclass(frozen=True)
class Signature:
    """What a score depends on besides the captions.

    Example:
        >>> photos = [("dog.jpg", ("a dog", "a wet dog")), ("cat.jpg", ("a cat",))]
        >>> signature = Signature.of(photos, metrics=("BLEU-4", "CIDEr-D"), search="greedy:max_length=20")
        >>> signature.references, signature.images
        ('1-2', 2)
        >>> str(signature).split("|")[0]
        'metrics:BLEU-4+CIDEr-D'

    metrics: the set that was computed. tokenizer: its version. references: how many a photo, "5" or "3-6". images: how
    many. frequencies: what CIDEr weighed words by: "own", the references that were scored against, as tables have it,
    or 12 digits of others (`DocumentFrequencies.digest`). search: how captions were found, "given" for predictions of
    unknown origin. version: of showtell. data: 12 hexadecimal digits over the photos' ids and references, whatever
    their order.
    """

    metrics: tuple[str, ...]
    tokenizer: str
    references: str
    images: int
    frequencies: str
    search: str
    version: str
    data: str

    @classmethod
    def of(
        cls,
        photos: Iterable[tuple[str, Sequence[str]]],
        *,
        metrics: Sequence[str],
        search: str,
        frequencies: str = "own",
    ) -> Signature:
        """The signature of scores over (id, references) pairs, computed by this version of showtell."""
        pairs = sorted((identity, list(references)) for identity, references in photos)
        counts = {len(references) for _, references in pairs}
        low, high = min(counts, default=0), max(counts, default=0)
        digest = hashlib.sha256(json.dumps(pairs).encode())  # ASCII: escapes hold any string, lone surrogates too
        return cls(
            metrics=tuple(metrics),
            tokenizer=TOKENIZER,
            references=f"{low}" if low == high else f"{low}-{high}",
            images=len(pairs),
            frequencies=frequencies,
            search=search,
            version=__version__,
            data=digest.hexdigest()[:12],
        )

    def __str__(self) -> str:
        """One line, the parts apart by "|", frequencies "own" left out; it belongs beside every published number."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        parts["metrics"] = "+".join(self.metrics).replace("+".join(METRICS[:4]), "BLEU-1..4")
        return "|".join(f"{name}:{value}" for name, value in parts.items() if (name, value) != ("frequencies", "own"))

    def differences(self, other: Signature) -> tuple[str, ...]:
        """What isn't the same, such as "search: beam:3 against greedy"; empty where scores are comparable."""
        return tuple(
            f"{field.name}: {_text(getattr(self, field.name))} against {_text(getattr(other, field.name))}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `Signature.from_json` reads them back."""
        return {**asdict(self), "metrics": list(self.metrics)}

    @classmethod
    def from_json(cls, value: Any) -> Signature:
        """Read what `to_json` wrote; raises FormatError for anything else."""
        kinds: dict[str, type] = {field.name: int if field.name == "images" else str for field in fields(cls)}
        kinds["metrics"] = list
        if (
            not isinstance(value, dict)
            or set(value) != set(kinds)
            or any(type(value[name]) is not kind for name, kind in kinds.items())
            or not all(isinstance(metric, str) for metric in value["metrics"])
        ):
            raise FormatError(f"a signature has the fields {', '.join(kinds)}, not {value!r:.200}")
        return cls(**{**value, "metrics": tuple(value["metrics"])})


def _text(value: Any) -> str:
    """A field for a message: what a file says may be long, and mustn't command a terminal."""
    shown = "+".join(value) if isinstance(value, tuple) else str(value)
    return shown if shown.isprintable() and len(shown) <= _SHOWN else f"{shown!r:.{_SHOWN}}"
