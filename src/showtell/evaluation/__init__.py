"""How good a captioner, or anybody's predictions, are on photos whose captions are known."""

from __future__ import annotations

from .compare import Comparison, Confidence, Difference, Interval, compare, confidence
from .report import write_report
from .result import Evaluation, ScoredPhoto, score_predictions
from .run import evaluate, teacher_forced_loss
from .signature import Signature

__all__ = [
    "Comparison",
    "Confidence",
    "Difference",
    "Evaluation",
    "Interval",
    "ScoredPhoto",
    "Signature",
    "compare",
    "confidence",
    "evaluate",
    "score_predictions",
    "teacher_forced_loss",
    "write_report",
]
