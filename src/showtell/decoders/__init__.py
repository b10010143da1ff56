"""Decoders: features and the words so far to scores for the next word."""

from __future__ import annotations

from .lstm import LSTMDecoder
from .unroll import unroll

__all__ = ["LSTMDecoder", "unroll"]
