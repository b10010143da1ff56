"""The laws every encoder and decoder keeps, as checks for your own parts, and a tiny captioner to test with."""

from __future__ import annotations

from .decoder import check_decoder
from .encoder import check_encoder
from .tiny import TinyEncoder, tiny_captioner

__all__ = ["TinyEncoder", "check_decoder", "check_encoder", "tiny_captioner"]
