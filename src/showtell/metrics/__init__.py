"""Caption scores: strings in, numbers out, no torch."""

from __future__ import annotations

from .bleu import bleu_counts, bleu_of_counts
from .cider import Cider, CiderD, PreparedReferences
from .coco import coco_problem, coco_scores
from .diversity import Health, caption_health, div_n, self_cider
from .frequencies import DocumentFrequencies
from .ptb import TOKENIZER, ptb_tokenize, scored_words
from .scores import METRICS, Scores, score_captions

__all__ = [
    "METRICS",
    "TOKENIZER",
    "Cider",
    "CiderD",
    "DocumentFrequencies",
    "Health",
    "PreparedReferences",
    "Scores",
    "bleu_counts",
    "bleu_of_counts",
    "caption_health",
    "coco_problem",
    "coco_scores",
    "div_n",
    "ptb_tokenize",
    "score_captions",
    "scored_words",
    "self_cider",
]
