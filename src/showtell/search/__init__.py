"""Turning next-word log-probabilities into captions. A search knows a step function and no model.

N images, K hypotheses an image, R = N * K rows (row r belongs to image r // K), T = `max_length`, V vocabulary.
"""

from __future__ import annotations

from .banks import MAX_DEMANDS, Force, check_force, fewest_words
from .base import Chosen, Hypotheses, Search, Step
from .beam import Beam, check_takes_force
from .config import as_search, parse_search, search_from_config, search_text, search_to_config
from .diverse import DiverseBeam
from .greedy import Greedy
from .masks import Mask
from .sample import Sample

__all__ = [
    "MAX_DEMANDS",
    "Beam",
    "Chosen",
    "DiverseBeam",
    "Force",
    "Greedy",
    "Hypotheses",
    "Mask",
    "Sample",
    "Search",
    "Step",
    "as_search",
    "check_force",
    "check_takes_force",
    "fewest_words",
    "parse_search",
    "search_from_config",
    "search_text",
    "search_to_config",
]
