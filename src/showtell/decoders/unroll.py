"""Teacher forcing for a decoder that only knows how to step."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ArgumentError
from ..protocols import Decoder
from ..rows import Rows, repeat_rows, rows_per_image

__all__ = ["unroll"]


def unroll(decoder: Decoder, tokens: Tensor, memory: Rows) -> Tensor:
    """Logits of teacher forcing by T calls of `step`, for recurrent decoders.

    Example:
        >>> import torch
        >>> from showtell import Features
        >>> from showtell.decoders import LSTMDecoder
        >>> decoder = LSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4)
        >>> memory = decoder.prepare(Features(pooled=torch.randn(2, 8)))
        >>> unroll(decoder, torch.tensor([[1, 5], [1, 6], [1, 7], [1, 8]]), memory).shape
        torch.Size([4, 2, 20])

    tokens (R, T) int64, start token first, T at least 1; memory of N rows with R = N * K, as `decoder.prepare`
    returns it. The result is (R, T, V): the logits after each token. Gradients flow. Raises ArgumentError when the
    shapes don't fit.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 1:
        raise ArgumentError(f"tokens are (rows, steps) with at least one step, not {tuple(tokens.shape)}")
    state = decoder.initial_state(memory, tokens.shape[1])
    images = next((t.shape[0] for t in (*state.values(), *memory.values())), tokens.shape[0])
    state = repeat_rows(state, rows_per_image(tokens.shape[0], images))
    steps: list[Tensor] = []
    for word in tokens.unbind(dim=1):
        logits, state = decoder.step(word, state, memory)
        steps.append(logits)
    return torch.stack(steps, dim=1)
