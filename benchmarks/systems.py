"""The captioners that generation.py measures: an encoder and a decoder of random weights that say exactly 20 words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from showtell import Beam, Captioner, Features, Greedy, Vocabulary, generate
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder
from showtell.encoders.torchvision import TorchvisionEncoder

WORDS = 20
PAD, START, END, UNK = 0, 1, 2, 3
NO_END = (PAD, START, UNK, END)  # without an end every caption has exactly max_length words
VOCABULARY = 10_000
GREEDY, BEAM_3, BEAM_5 = Greedy(WORDS), Beam(3, WORDS), Beam(5, WORDS)


class System:
    """An encoder and a decoder on a device; `dtype` and `channels_last` are for GPUs."""

    def __init__(self, encoder: Any, decoder: Any, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.encoder, self.decoder = (part.eval().to(device, dtype) for part in (encoder, decoder))
        self.device, self.dtype = device, dtype
        if device.type == "cuda":
            self.encoder.to(memory_format=torch.channels_last)

    def encode(self, pixels: Tensor) -> Features:
        with torch.inference_mode():
            layout = torch.channels_last if self.device.type == "cuda" else torch.contiguous_format
            return self.encoder(pixels.contiguous(memory_format=layout))

    def search(self, features: Features, search: Any) -> Tensor:
        found = generate(self.decoder, features, search, start=START, end=END, forbid=NO_END)
        assert found.lengths[:, 0].eq(WORDS).all()
        return found.tokens

    def caption(self, pixels: Tensor, search: Any) -> Tensor:
        return self.search(self.encode(pixels), search)


def resnet(device: torch.device, decoder: str, dtype: torch.dtype = torch.float32) -> System:
    grid = decoder == "attention-lstm.v1"
    kind = AttentionLSTMDecoder if grid else LSTMDecoder
    return System(TorchvisionEncoder("resnet50", grid=grid), kind(VOCABULARY, 2048), device, dtype)


def bundled(device: torch.device) -> System:
    captioner = Captioner.default()
    return System(captioner.encoder, captioner.decoder, device)


def resnet_captioner() -> Captioner:
    words = Vocabulary.build([" ".join(f"w{n}" for n in range(VOCABULARY - 4))], min_count=1)
    return Captioner(TorchvisionEncoder("resnet50"), LSTMDecoder(len(words), 2048), words).eval()
