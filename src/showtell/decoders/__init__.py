"""Decoders: features and the words so far to scores for the next word."""

from __future__ import annotations

from .adaptive_lstm import AdaptiveLSTMDecoder
from .attention_lstm import AttentionLSTMDecoder
from .lstm import LSTMDecoder
from .transformer import TransformerDecoder
from .unroll import unroll

__all__ = ["AdaptiveLSTMDecoder", "AttentionLSTMDecoder", "LSTMDecoder", "TransformerDecoder", "unroll"]
