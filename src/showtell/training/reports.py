"""What goes into a trainer's step, and what it reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = ["BatchSource", "Pulled", "StepReport", "Sums", "added"]


class BatchSource(Protocol):
    """Micro-batches by number, endless: a pure function of the number, so that training can continue anywhere."""

    def batch(self, number: int, /) -> Any:
        """The micro-batch of that number, from 0, or this process's part of it; None where it has none."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    step: how many steps are done, from 1. loss: the sum of factor * term. terms: each term, divided by its total
    weight. grad_norm: before clipping. learning_rate: of the first parameter group. tokens: real words seen.
    seconds: of the whole step; data_share: the part of them, 0..1, spent waiting for data. notes: what the objective
    only notes, divided alike (the mean reward, say). skipped: steps so far that left the weights alone, as their
    float16 gradients weren't finite. photos_at_once: how many photos are computed at a time since memory ran out; None:
    whole micro-batches.
    """

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float
    data_share: float
    notes: Mapping[str, float] = field(default_factory=dict)
    skipped: int = 0
    photos_at_once: int | None = None


class Pulled(NamedTuple):
    """A step's micro-batches: this process's parts of them, and what all processes together have to share out."""

    micro: list[Any]
    waited: float
    totals: dict[str, float]
    tokens: int


class Sums(NamedTuple):
    """A step's terms and notes, each divided by its total weight."""

    terms: dict[str, float]
    notes: dict[str, float]

    @property
    def loss(self) -> float:
        """What is minimised."""
        return math.fsum(self.terms.values())


def added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Numbers by name, added up over parts that may lack some."""
    totals: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals
