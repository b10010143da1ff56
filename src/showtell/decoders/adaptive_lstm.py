"""Knowing When to Look: an LSTM with a visual sentinel (Lu et al. 2017, arXiv:1612.01887)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import flag, number, whole
from ..protocols import Features, Forced
from ..rows import Rows, rows_per_image
from .parts import (
    Linear,
    Words,
    additive_scores,
    by_image,
    check_forced,
    check_step,
    energies,
    lstm_cell,
    mean_region,
    open_forget_gate,
    read_grid,
)

__all__ = ["AdaptiveLSTMDecoder"]


class _Cell(NamedTuple):
    """One step of the LSTM, each (R, hidden_dim)."""

    h: Tensor
    c: Tensor
    sentinel: Tensor


class AdaptiveLSTMDecoder(nn.Module):
    """The decoder `adaptive-lstm.v1`: after each step the LSTM looks at the grid, or at what it knows already.

    Example:
        >>> decoder = AdaptiveLSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4, attention_dim=4)
        >>> memory = decoder.prepare(Features(pooled=torch.randn(2, 8), grid=torch.randn(2, 9, 8)))
        >>> forced = decoder(torch.tensor([[1, 5, 6], [1, 7, 2]]), memory, attention=True)
        >>> forced.logits.shape, bool((forced.attention.sum(2) < 1).all())
        (torch.Size([2, 3, 20]), True)

    The source is Lu et al. 2017, "Knowing When to Look" (arXiv:1612.01887). With regions a_i and the word y:

        v_i = relu(V a_i);  x = [y, relu(M mean(a))];  h, c = LSTM(x, h', c');  s = sigmoid(X x + Y h') * tanh(c)
        e_i = w . tanh(K v_i + Q h);  e_s = w . tanh(S s + Q h);  a, b = softmax([e, e_s])
        logits = output(sum of a_i v_i + b s + h)

    The attention of a word sums to 1 - b; the rest, b, is the sentinel's. Needs `Features.grid`; masked regions are as
    if they weren't there. State: h and c, each (R, hidden_dim). What a step does doesn't depend on feature_dim.

    Args:
        vocab_size: V, 4..2,000,000.
        feature_dim: D of `Features.grid`, 1..65536.
        embed_dim: of words and of the mean region, 1..65536.
        hidden_dim: of the LSTM and the regions, 1..65536.
        attention_dim: in which regions, sentinel and h are compared, 1..65536 (the paper: the number of regions).
        dropout: 0..0.95, on the words, the regions and before the output layer.
        tied: the output layer uses the word embeddings (through a linear layer if hidden_dim isn't embed_dim).

    Raises:
        ArgumentError: an option out of range, features without a grid, or a tensor of the wrong shape or type.
    """

    has_attention = True

    def __init__(
        self,
        vocab_size: int,
        feature_dim: int,
        embed_dim: int = 512,
        hidden_dim: int = 512,
        attention_dim: int = 512,
        dropout: float = 0.5,
        tied: bool = False,
    ) -> None:
        """Build with fresh weights; nothing is fetched."""
        super().__init__()
        self.vocab_size = whole("AdaptiveLSTMDecoder vocab_size", vocab_size, 4, 2_000_000)
        self.feature_dim = whole("AdaptiveLSTMDecoder feature_dim", feature_dim, 1, 65536)
        self.embed_dim = whole("AdaptiveLSTMDecoder embed_dim", embed_dim, 1, 65536)
        self.hidden_dim = whole("AdaptiveLSTMDecoder hidden_dim", hidden_dim, 1, 65536)
        self.attention_dim = whole("AdaptiveLSTMDecoder attention_dim", attention_dim, 1, 65536)
        self.dropout = nn.Dropout(number("AdaptiveLSTMDecoder dropout", dropout, 0.0, 0.95))
        self.tied = flag("AdaptiveLSTMDecoder tied", tied)

        self.words = Words(vocab_size, embed_dim, hidden_dim, tied)
        self.regions = nn.Linear(feature_dim, hidden_dim)
        self.mean = nn.Linear(feature_dim, embed_dim)
        # Five gates: the LSTM's four, and the sentinel's, which reads the same inputs.
        self.from_words = Linear(embed_dim, 5 * hidden_dim)
        self.from_mean = nn.Linear(embed_dim, 5 * hidden_dim, bias=False)
        self.from_hidden = Linear(hidden_dim, 5 * hidden_dim, bias=False)
        self.keys = nn.Linear(hidden_dim, attention_dim)
        self.sentinel_key = nn.Linear(hidden_dim, attention_dim)
        self.query = Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        open_forget_gate(self.from_words.bias, hidden_dim)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {
            "vocab_size": self.vocab_size,
            "feature_dim": self.feature_dim,
            "embed_dim": self.embed_dim,
            "hidden_dim": self.hidden_dim,
            "attention_dim": self.attention_dim,
            "dropout": self.dropout.p,
            "tied": self.tied,
        }

    def prepare(self, features: Features) -> Rows:
        """Once an image: memory regions (N, L, H), keys (N, L, A), gates (N, 5 * H), a mask if given."""
        grid, mask = read_grid(features, self.feature_dim, self.regions.weight, "adaptive-lstm.v1")
        regions = self.dropout(self.regions(grid).relu())
        mean = self.dropout(self.mean(mean_region(grid, mask)).relu())
        memory = {"regions": regions, "keys": self.keys(regions), "gates": self.from_mean(mean)}
        return memory if mask is None else {**memory, "mask": mask}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        """Zeros: h and c, each (N, hidden_dim); any `max_length` will do."""
        images, weight = memory["keys"].shape[0], self.from_hidden.weight
        return {name: weight.new_zeros(images, self.hidden_dim) for name in ("h", "c")}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        """Tokens (R,) int64, state of R rows, memory of N rows -> logits (R, V) and the new state."""
        check_step(tokens, state, {"h": (self.hidden_dim,), "c": (self.hidden_dim,)})
        entering = self._entering(tokens, memory)
        cell = self._run(entering, state["h"], state["c"])
        seen, _ = self._look(cell.h.unsqueeze(1), cell.sentinel.unsqueeze(1), memory)
        return self._logits(seen.squeeze(1) + cell.h), {"h": cell.h, "c": cell.c}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        """Teacher forcing: tokens (R, T) int64, start token first -> logits (R, T, V), attention (R, T, L) if asked.

        Only the LSTM goes step by step; where it looks has no influence on it.
        """
        check_forced(tokens)
        entering = self._entering(tokens, memory)
        h = c = self.from_hidden.weight.new_zeros(tokens.shape[0], self.hidden_dim)
        cells: list[_Cell] = []
        for gates in entering.unbind(1):
            cells.append(self._run(gates, h, c))
            h, c = cells[-1].h, cells[-1].c
        hidden = torch.stack([cell.h for cell in cells], dim=1)
        seen, maps = self._look(hidden, torch.stack([cell.sentinel for cell in cells], dim=1), memory)
        return Forced(self._logits(seen + hidden), maps if attention else None)

    def _entering(self, tokens: Tensor, memory: Rows) -> Tensor:
        """What word and image give to the five gates: tokens (R, ...) -> (R, ..., 5 * H)."""
        images = memory["gates"].shape[0]
        rows_per_image(tokens.shape[0], images)
        words: Tensor = self.from_words(self.dropout(self.words(tokens)))
        gates = memory["gates"].view(images, *[1] * (words.ndim - 1), -1)
        return (by_image(words, images) + gates).flatten(0, 1)

    def _run(self, entering: Tensor, h: Tensor, c: Tensor) -> _Cell:
        """One step of the LSTM; `entering` (R, 5 * H) is what word and image give to the gates."""
        gates = entering + self.from_hidden(h)
        h, c = lstm_cell(gates[:, : 4 * self.hidden_dim], c)
        return _Cell(h, c, gates[:, 4 * self.hidden_dim :].sigmoid() * c.tanh())

    def _look(self, h: Tensor, sentinel: Tensor, memory: Rows) -> tuple[Tensor, Tensor]:
        """h and sentinel (R, T, H) -> what is seen, (R, T, H), and the attention, (R, T, L)."""
        images, steps = memory["keys"].shape[0], h.shape[1]
        query = self.query(h)
        own = energies(self.sentinel_key(sentinel) + query, self.score.weight)  # (R, T, 1)
        # A step at a time: all steps' comparisons at once would fall out of a CPU's caches.
        queries = by_image(query, images).unbind(2)
        scores = [additive_scores(memory["keys"], q, self.score.weight, memory.get("mask")) for q in queries]
        stacked = torch.stack(scores, dim=2).flatten(0, 1)  # (R, T, L)
        attention = torch.cat([stacked, own], dim=2).softmax(2)
        maps, beta = attention[:, :, :-1], attention[:, :, -1:]
        folded = maps.reshape(images, -1, maps.shape[2])  # (N, K * T, L)
        seen = torch.bmm(folded, memory["regions"]).view(-1, steps, self.hidden_dim)
        return seen + beta * sentinel, maps

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.words.logits(self.dropout(hidden))
