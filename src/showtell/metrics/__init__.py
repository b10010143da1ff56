"""Caption scores: strings in, numbers out, no torch."""

from __future__ import annotations

from .bleu import BleuScores, bleu

__all__ = ["BleuScores", "bleu"]
