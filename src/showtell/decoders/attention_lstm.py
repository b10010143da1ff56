"""Show, Attend and Tell: an LSTM that looks at the grid before every word (Xu et al. 2015, arXiv:1502.03044)."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..checks import choice, flag, number, whole
from ..protocols import Features, Forced
from ..rows import Rows, repeat_rows, rows_per_image
from .parts import (
    Linear,
    Words,
    additive_scores,
    by_image,
    check_forced,
    check_step,
    lstm_cell,
    mean_region,
    open_forget_gate,
    read_grid,
)

__all__ = ["AttentionLSTMDecoder"]


class _Look(NamedTuple):
    """One step: h, c (R, hidden_dim), what was seen (R, D) and where, (N, K, L)."""

    h: Tensor
    c: Tensor
    seen: Tensor
    attention: Tensor


class AttentionLSTMDecoder(nn.Module):
    """The decoder `attention-lstm.v1`: an LSTM with soft attention over the grid.

    Example:
        >>> decoder = AttentionLSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4, attention_dim=4)
        >>> memory = decoder.prepare(Features(pooled=torch.randn(2, 8), grid=torch.randn(2, 9, 8)))
        >>> forced = decoder(torch.tensor([[1, 5, 6], [1, 7, 2]]), memory, attention=True)
        >>> forced.logits.shape, forced.attention.shape
        (torch.Size([2, 3, 20]), torch.Size([2, 3, 9]))

    The source is Xu et al. 2015, "Show, Attend and Tell" (arXiv:1502.03044), the deterministic kind. With regions a_i,
    the word y before and the LSTM's h and c before:

        e_i = v . tanh(W a_i + U h + b);  w = softmax(e);  z = gate(h) * sum of w_i a_i;  h, c = LSTM([y, z], h, c)
        logits = output(y + A h + B z)  with deep output,  output(h)  without

    h and c begin as tanh of a linear layer over the mean region. Needs `Features.grid`; masked regions are as if they
    weren't there. State: h and c, each (R, hidden_dim).

    Args:
        vocab_size: V, 4..2,000,000.
        feature_dim: D of `Features.grid`, 1..65536.
        embed_dim: of words, 1..65536.
        hidden_dim: of the LSTM, 1..65536.
        attention_dim: A, in which regions and h are compared, 1..65536.
        dropout: 0..0.95, on the words and before the output layer.
        gate: what z is multiplied with, sigmoid of a linear layer over h: "scalar", one number (the paper's beta);
            "vector", one for each feature; "none" leaves it out.
        deep_output: the word before and what was seen reach the output layer directly.
        tied: the output layer uses the word embeddings (without deep output through a linear layer if hidden_dim
            isn't embed_dim).
        scoring: "relu" in place of the tanh in e_i.
        start: "linear" leaves out the tanh of the first h and c.

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
        gate: Literal["scalar", "vector", "none"] = "scalar",
        deep_output: bool = True,
        tied: bool = False,
        scoring: Literal["tanh", "relu"] = "tanh",
        start: Literal["tanh", "linear"] = "tanh",
    ) -> None:
        """Build with fresh weights; nothing is fetched."""
        super().__init__()
        self.vocab_size = whole("AttentionLSTMDecoder vocab_size", vocab_size, 4, 2_000_000)
        self.feature_dim = whole("AttentionLSTMDecoder feature_dim", feature_dim, 1, 65536)
        self.embed_dim = whole("AttentionLSTMDecoder embed_dim", embed_dim, 1, 65536)
        self.hidden_dim = whole("AttentionLSTMDecoder hidden_dim", hidden_dim, 1, 65536)
        self.attention_dim = whole("AttentionLSTMDecoder attention_dim", attention_dim, 1, 65536)
        self.dropout = nn.Dropout(number("AttentionLSTMDecoder dropout", dropout, 0.0, 0.95))
        self.gate = choice("AttentionLSTMDecoder gate", gate, ("scalar", "vector", "none"))
        self.deep_output = flag("AttentionLSTMDecoder deep_output", deep_output)
        self.tied = flag("AttentionLSTMDecoder tied", tied)
        self.scoring = choice("AttentionLSTMDecoder scoring", scoring, ("tanh", "relu"))
        self.start_by = choice("AttentionLSTMDecoder start", start, ("tanh", "linear"))

        self.words = Words(vocab_size, embed_dim, embed_dim if deep_output else hidden_dim, tied)
        self.start = nn.Linear(feature_dim, 2 * hidden_dim)
        self.keys = nn.Linear(feature_dim, attention_dim)
        self.query = Linear(hidden_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)
        gates = {"scalar": 1, "vector": feature_dim}
        self.beta = None if gate == "none" else Linear(hidden_dim, gates[gate])
        # The LSTM's input layer, cut in three: what the words give is known beforehand in teacher forcing.
        self.from_words = Linear(embed_dim, 4 * hidden_dim)
        self.from_hidden = Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.from_seen = Linear(feature_dim, 4 * hidden_dim, bias=False)
        self.deep_hidden = Linear(hidden_dim, embed_dim) if deep_output else None
        self.deep_seen = Linear(feature_dim, embed_dim, bias=False) if deep_output else None
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
            "gate": self.gate,
            "deep_output": self.deep_output,
            "tied": self.tied,
            "scoring": self.scoring,
            "start": self.start_by,
        }

    def prepare(self, features: Features) -> Rows:
        """Once an image: memory grid (N, L, D), keys (N, L, A), the first h and c (N, hidden_dim), a mask if given."""
        weight = self.keys.weight
        grid, mask = read_grid(features, self.feature_dim, weight, "attention-lstm.v1")
        first = self.start(mean_region(grid, mask))
        h, c = (first.tanh() if self.start_by == "tanh" else first).to(weight.dtype).chunk(2, dim=1)
        memory = {"grid": grid, "keys": self.keys(grid), "h": h, "c": c}
        return memory if mask is None else {**memory, "mask": mask}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        """The state before the start token: h and c, each (N, hidden_dim); any `max_length` will do."""
        return {"h": memory["h"], "c": memory["c"]}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        """Tokens (R,) int64, state of R rows, memory of N rows -> logits (R, V) and the new state."""
        check_step(tokens, state, {"h": (self.hidden_dim,), "c": (self.hidden_dim,)})
        words = self.dropout(self.words(tokens))
        look = self._look(self.from_words(words), state["h"], state["c"], memory)
        return self._logits(words, look.h, look.seen), {"h": look.h, "c": look.c}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        """Teacher forcing: tokens (R, T) int64, start token first -> logits (R, T, V), attention (R, T, L) if asked.

        Words go in and out as one batch; only the looking and the LSTM go step by step.
        """
        check_forced(tokens)
        state = repeat_rows(self.initial_state(memory, tokens.shape[1]), self._share(tokens, memory))
        h, c = state["h"], state["c"]
        words = self.dropout(self.words(tokens))
        looks: list[_Look] = []
        for entering in self.from_words(words).unbind(1):
            looks.append(self._look(entering, h, c, memory))
            h, c = looks[-1].h, looks[-1].c
        hidden = torch.stack([look.h for look in looks], dim=1)
        seen = torch.stack([look.seen for look in looks], dim=1) if self.deep_output else hidden
        maps = torch.stack([look.attention.flatten(0, 1) for look in looks], dim=1) if attention else None
        return Forced(self._logits(words, hidden, seen), maps)

    def _share(self, tokens: Tensor, memory: Rows) -> int:
        return rows_per_image(tokens.shape[0], memory["keys"].shape[0])

    def _look(self, entering: Tensor, h: Tensor, c: Tensor, memory: Rows) -> _Look:
        """Look where h says, then run the LSTM; `entering` (R, 4 * hidden_dim) is what the word gives to its gates."""
        query = by_image(self.query(h), memory["keys"].shape[0])
        scores = additive_scores(memory["keys"], query, self.score.weight, memory.get("mask"), self.scoring == "relu")
        attention = scores.softmax(2)
        seen = torch.bmm(attention, memory["grid"]).flatten(0, 1)
        if self.beta is not None:
            seen = self.beta(h).sigmoid() * seen
        h, c = lstm_cell(entering + self.from_hidden(h) + self.from_seen(seen), c)
        return _Look(h, c, seen, attention)

    def _logits(self, words: Tensor, hidden: Tensor, seen: Tensor) -> Tensor:
        """Words (..., embed_dim), hidden (..., hidden_dim) and seen (..., D) -> (..., V)."""
        if self.deep_hidden is not None and self.deep_seen is not None:
            hidden = words + self.deep_hidden(hidden) + self.deep_seen(seen)
        return self.words.logits(self.dropout(hidden))
