"""What is wrong with a captioner, or with its data: findings with numbers, reasons and remedies."""

from __future__ import annotations

from .diagnose import diagnose
from .findings import CODES, Check, Diagnosis, Finding, Measure

__all__ = ["CODES", "Check", "Diagnosis", "Finding", "Measure", "diagnose"]
