"""A result as a report shows it: its name and its colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..captioner import Captioner
from .report_html import Html, element, text
from .result import Evaluation

__all__ = ["Entry", "entries_of"]


@dataclass(frozen=True)
class Entry:
    """One result of a report.

    name: one line, not that of another entry. style: the page's colour for it. captioner: what made the captions,
    where it is at hand.
    """

    evaluation: Evaluation
    name: str
    style: Literal["a", "b"]
    captioner: Captioner | None = None

    def label(self, limit: int = 60) -> Html:
        """The name in its colour."""
        return element("bdi", text(self.name, limit), class_=f"name {self.style}")


def entries_of(evaluations: Sequence[Evaluation], captioner: Captioner | None) -> list[Entry]:
    """One or two results as entries; `captioner` made the captions of the last."""
    names = [text(evaluation.name, 120) or "no name" for evaluation in evaluations]
    if len(set(names)) < len(names):
        names = [f"{name} ({place})" for name, place in zip(names, ("first", "second"), strict=True)]
    styles: tuple[Literal["a", "b"], ...] = ("a", "b")
    makers = [None] * (len(names) - 1) + [captioner]
    return [Entry(*entry) for entry in zip(evaluations, names, styles, makers, strict=False)]
