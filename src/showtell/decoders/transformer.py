"""A pre-norm Transformer decoder with cross-attention to the grid (Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import choice, flag, number, whole
from ..errors import ArgumentError
from ..protocols import Features, Forced
from ..rows import Rows, rows_per_image
from .parts import Linear, Words, check_forced, check_step, read_grid

__all__ = ["TransformerDecoder"]


class TransformerDecoder(nn.Module):
    """The decoder `transformer.v1`: self-attention over the words so far, cross-attention to the grid.

    Example:
        >>> decoder = TransformerDecoder(vocab_size=20, feature_dim=8, hidden_dim=4, layers=2, heads=2)
        >>> memory = decoder.prepare(Features(pooled=torch.randn(2, 8), grid=torch.randn(2, 9, 8)))
        >>> forced = decoder(torch.tensor([[1, 5, 6], [1, 7, 2]]), memory, attention=True)
        >>> forced.logits.shape, forced.attention.shape
        (torch.Size([2, 3, 20]), torch.Size([2, 3, 9]))

    The source is Vaswani et al. 2017, "Attention Is All You Need" (arXiv:1706.03762), with the norms before each part
    (Xiong et al. 2020, arXiv:2002.04745) and GELU: with `norm_first=True` and `activation="gelu"` a layer computes
    what torch's `nn.TransformerDecoderLayer` does. The grid passes a linear layer and a norm, and each layer's keys and
    values of it are computed once an image. Needs `Features.grid`; masked regions are as if they weren't there.

    The attention maps are those of the last layer's cross-attention, averaged over its heads.

    State: kv (R, layers, 2, heads, capacity, hidden_dim / heads), the keys and values of the words so far, and t (R,)
    int64, how many they are. The shapes never change. `step` writes into kv, unless gradients are recorded
    (`consumes_state`). On a CPU it looks at the used part only; on an accelerator, where the host doesn't know how long
    that is, at all of it, masked. Rows may be at different t.

    Args:
        vocab_size: V, 4..2,000,000.
        feature_dim: D of `Features.grid`, 1..65536.
        hidden_dim: of words and layers, 1..65536, a multiple of heads.
        layers: 1..64.
        heads: 1..256.
        feedforward_dim: of the hidden layer of each feed-forward part, 1..262144.
        dropout: 0..0.95, on words and regions, in the feed-forward part and after each part; not on the attention,
            which stays one fused call.
        positions: "sinusoidal", or "learned", which begins as the former.
        max_positions: how many tokens it knows positions for, 1..4096; longer captions are refused.
        tied: the output layer uses the word embeddings.

    Raises:
        ArgumentError: an option out of range, features without a grid, a tensor of the wrong shape or type, or more
            tokens than max_positions.
    """

    has_attention = True
    consumes_state = True

    position: Tensor

    def __init__(
        self,
        vocab_size: int,
        feature_dim: int,
        hidden_dim: int = 512,
        layers: int = 3,
        heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        max_positions: int = 128,
        tied: bool = True,
    ) -> None:
        """Build with fresh weights; nothing is fetched."""
        super().__init__()
        self.vocab_size = whole("TransformerDecoder vocab_size", vocab_size, 4, 2_000_000)
        self.feature_dim = whole("TransformerDecoder feature_dim", feature_dim, 1, 65536)
        self.hidden_dim = whole("TransformerDecoder hidden_dim", hidden_dim, 1, 65536)
        whole("TransformerDecoder layers", layers, 1, 64)
        self.heads = whole("TransformerDecoder heads", heads, 1, 256)
        if hidden_dim % heads:
            raise ArgumentError(
                f"TransformerDecoder hidden_dim must be a multiple of heads; {hidden_dim} isn't one of {heads}"
            )
        self.feedforward_dim = whole("TransformerDecoder feedforward_dim", feedforward_dim, 1, 262_144)
        rate = number("TransformerDecoder dropout", dropout, 0.0, 0.95)
        self.positions = choice("TransformerDecoder positions", positions, ("sinusoidal", "learned"))
        self.max_positions = whole("TransformerDecoder max_positions", max_positions, 1, 4096)
        self.tied = flag("TransformerDecoder tied", tied)

        self.dropout = nn.Dropout(rate)
        self.words = Words(vocab_size, hidden_dim, hidden_dim, tied)
        table = _sinusoids(max_positions, hidden_dim)
        if positions == "learned":
            self.position = nn.Parameter(table)
        else:
            self.register_buffer("position", table, persistent=False)
        self.regions = nn.Linear(feature_dim, hidden_dim)
        self.regions_norm = nn.LayerNorm(hidden_dim)
        self.layers = nn.ModuleList(_Layer(hidden_dim, heads, feedforward_dim, rate) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden_dim)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {
            "vocab_size": self.vocab_size,
            "feature_dim": self.feature_dim,
            "hidden_dim": self.hidden_dim,
            "layers": len(self.layers),
            "heads": self.heads,
            "feedforward_dim": self.feedforward_dim,
            "dropout": self.dropout.p,
            "positions": self.positions,
            "max_positions": self.max_positions,
            "tied": self.tied,
        }

    def prepare(self, features: Features) -> Rows:
        """Once an image: memory cross (N, layers, 2, heads, L, hidden_dim / heads), a mask if given."""
        grid, mask = read_grid(features, self.feature_dim, self.regions.weight, "transformer.v1")
        regions = self.dropout(self.regions_norm(self.regions(grid)))
        cross = torch.stack([layer.cross_kv(regions) for layer in self._stack], dim=1)  # (N, layers, L, 2 * dim)
        cross = cross.view(*cross.shape[:3], 2, self.heads, -1).permute(0, 1, 3, 4, 2, 5).contiguous()
        return {"cross": cross} if mask is None else {"cross": cross, "mask": mask}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        """The state before the start token, with room for `max_length` tokens."""
        self._check_length(max_length)
        cross = memory["cross"]
        kv = cross.new_zeros(*cross.shape[:4], max_length, cross.shape[5])
        return {"kv": kv, "t": torch.zeros(cross.shape[0], dtype=torch.int64, device=cross.device)}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        """Tokens (R,) int64, state of R rows, memory of N rows -> logits (R, V) and the new state."""
        cross = memory["cross"]
        capacity = state["kv"].shape[4] if "kv" in state and state["kv"].ndim == 6 else 1
        check_step(tokens, state, {"t": (), "kv": (*cross.shape[1:4], capacity, cross.shape[5])})
        rows_per_image(tokens.shape[0], cross.shape[0])
        past = _Past(state["kv"], state["t"])
        x = self.dropout(self._scaled(tokens) + self.position[past.place]).unsqueeze(1)
        for index, layer in enumerate(self._stack):
            x = layer(x, cross[:, index], memory.get("mask"), past.of_layer(index)).x
        x = past.spoiled_if_full(self.norm(x.squeeze(1)))
        return self.words.logits(x), {"kv": past.kv(), "t": state["t"] + 1}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        """Teacher forcing: tokens (R, T) int64, start token first -> logits (R, T, V), attention (R, T, L) if asked."""
        check_forced(tokens)
        self._check_length(tokens.shape[1])
        cross = memory["cross"]
        rows_per_image(tokens.shape[0], cross.shape[0])
        x = self.dropout(self._scaled(tokens) + self.position[: tokens.shape[1]])
        maps = None
        for index, layer in enumerate(self._stack):
            asked = attention and index == len(self.layers) - 1
            x, maps = layer(x, cross[:, index], memory.get("mask"), maps=asked)
        return Forced(self.words.logits(self.norm(x)), maps)

    @property
    def _stack(self) -> list[_Layer]:
        return cast("list[_Layer]", list(self.layers))

    def _scaled(self, tokens: Tensor) -> Tensor:
        """The words' vectors, about as large as the positions'."""
        vectors: Tensor = self.words(tokens) * math.sqrt(self.hidden_dim)
        return vectors

    def _check_length(self, length: Any) -> None:
        if type(length) is not int or not 1 <= length <= self.max_positions:
            raise ArgumentError(
                f"this decoder knows positions for 1..{self.max_positions} tokens, not {length!r:.50}; make captions "
                "shorter (the search's max_length), or build it with more max_positions"
            )


class _Out(NamedTuple):
    """x (R, T, dim) after a layer and, where asked for, its attention to the regions (R, T, L)."""

    x: Tensor
    maps: Tensor | None = None


class _Layer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a norm and beside a shortcut."""

    def __init__(self, dim: int, heads: int, wide: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_norm = nn.LayerNorm(dim)
        self.self_qkv = Linear(dim, 3 * dim)
        self.self_out = Linear(dim, dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_q = Linear(dim, dim)
        self.cross_kv = nn.Linear(dim, 2 * dim)
        self.cross_out = Linear(dim, dim)
        self.wide_norm = nn.LayerNorm(dim)
        self.wide = Linear(dim, wide)
        self.narrow = Linear(wide, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, cross: Tensor, mask: Tensor | None, past: _LayerPast | None = None, maps: bool = False
    ) -> _Out:
        """x (R, T, dim), cross (N, 2, heads, L, w); without a past the T tokens are all there are."""
        q, k, v = self.self_qkv(self.self_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True) if past is None else past.attend(q, k, v)
        x = x + self.dropout(self.self_out(seen.transpose(1, 2).flatten(2)))

        # The K rows of an image ask the same keys: they become K * T questions of one batch row.
        images = cross.shape[0]
        q = self.cross_q(self.cross_norm(x)).view(images, -1, self.heads, cross.shape[4]).transpose(1, 2)
        keys, values = cross.unbind(1)
        real = None if mask is None else mask.view(images, 1, 1, -1)
        seen = F.scaled_dot_product_attention(q, keys, values, attn_mask=real)
        x = x + self.dropout(self.cross_out(seen.transpose(1, 2).reshape(x.shape)))

        x = x + self.dropout(self.narrow(self.dropout(F.gelu(self.wide(self.wide_norm(x))))))
        return _Out(x, _weights(q, keys, real).view(*x.shape[:2], -1) if maps else None)


def _weights(q: Tensor, keys: Tensor, real: Tensor | None) -> Tensor:
    """The mean over the heads of what fused attention weighs values with: (N, questions, L)."""
    scores = q @ keys.transpose(2, 3) / math.sqrt(q.shape[3])
    return (scores if real is None else scores.masked_fill(~real, -torch.inf)).softmax(3).mean(1)


class _LayerPast(NamedTuple):
    """One layer's keys and values of the words so far, and where the next ones go."""

    kv: Tensor  # (R, 2, heads, capacity, w), written to
    place: Tensor  # (R,)
    used: int  # how much of the capacity is looked at
    mask: Tensor | None  # (R, 1, 1, used), True where there is a word; None: everywhere

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Add k and v, each (R, heads, 1, w), to the past and answer q with it."""
        new = torch.stack([k, v], dim=1)
        if self.mask is None:
            self.kv[:, :, :, self.used - 1 : self.used] = new
        else:
            self.kv.scatter_(3, self.place.view(-1, 1, 1, 1, 1).expand_as(new), new)
        keys, values = self.kv[:, :, :, : self.used].unbind(1)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=self.mask)


class _Past:
    """The state of one step. Where gradients are recorded it is copied, else written to."""

    def __init__(self, kv: Tensor, t: Tensor) -> None:
        capacity = kv.shape[4]
        self._kv = kv
        self._written: list[Tensor] | None = [] if torch.is_grad_enabled() else None
        self._full: Tensor | None = None
        # Reading t makes nobody wait on a CPU. Elsewhere, and in a compiled graph, the shapes stay the same instead.
        if t.device.type == "cpu" and not torch.compiler.is_compiling():
            longest, level = int(t.max()), bool((t == t[0]).all())
            if longest >= capacity:
                raise ArgumentError(
                    f"the state has room for {capacity} tokens and is full; pass initial_state a larger max_length"
                )
            self.place, self._used = t, longest + 1
        else:
            level = False
            self._full = t >= capacity
            self.place, self._used = t.clamp(max=capacity - 1), capacity
        filled = torch.arange(self._used, device=t.device) <= self.place.unsqueeze(1)
        self._mask = None if level else filled.view(-1, 1, 1, self._used)

    def of_layer(self, index: int) -> _LayerPast:
        """The part of one layer; layers are asked for in order."""
        kv = self._kv[:, index]
        if self._written is not None:
            kv = kv.clone()
            self._written.append(kv)
        return _LayerPast(kv, self.place, self._used, self._mask)

    def kv(self) -> Tensor:
        """All layers', after the step."""
        return self._kv if self._written is None else torch.stack(self._written, dim=1)

    def spoiled_if_full(self, x: Tensor) -> Tensor:
        """x (R, dim), NaN in rows that had no room left, which on an accelerator nobody could refuse."""
        return x if self._full is None else x.masked_fill(self._full.unsqueeze(1), torch.nan)


def _sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): sine and cosine of the position at wavelengths from 2 pi to 10000 * 2 pi, in turns."""
    if torch.get_default_device().type == "meta":
        return torch.empty(length, dim)  # arithmetic on the meta device would import torch's compiler for seconds
    rates = torch.exp(torch.arange(0, dim, 2) * (-math.log(10000.0) / dim))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :dim].contiguous()
