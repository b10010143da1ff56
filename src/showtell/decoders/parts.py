"""What decoders share: words in and out; for those that look at a grid, soft attention and its LSTM gates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ArgumentError
from ..protocols import Features
from ..rows import Rows, rows_per_image

__all__ = [
    "Linear",
    "Words",
    "additive_scores",
    "by_image",
    "check_forced",
    "check_step",
    "energies",
    "linear",
    "lstm_cell",
    "mean_region",
    "open_forget_gate",
    "read_grid",
    "word_scores",
]


def read_grid(features: Features, dim: int, like: Tensor, name: str) -> tuple[Tensor, Tensor | None]:
    """The grid (N, L, dim) in the type of `like`, zeros in masked regions, and the mask (N, L) bool if there is one.

    Raises ArgumentError, beginning with the decoder's name, for features without a grid or of other shapes.
    """
    grid, mask = features.grid, features.mask
    if grid is None:
        raise ArgumentError(
            f"{name} looks at a grid of regions and these features have none; build the encoder with grid=True, or "
            "use the decoder lstm.v1, which needs the pooled features only"
        )
    if grid.ndim != 3 or grid.shape[1] < 1 or grid.shape[2] != dim or not grid.is_floating_point():
        raise ArgumentError(
            f"{name} takes a grid (photos, regions, {dim}) of floating point, not {grid.dtype} {tuple(grid.shape)}"
        )
    grid = grid.to(like.dtype)
    if mask is None:
        return grid, None
    if mask.dtype != torch.bool or mask.shape != grid.shape[:2]:
        raise ArgumentError(
            f"the mask of a grid {tuple(grid.shape)} is bool {tuple(grid.shape[:2])}, True where a region is real, "
            f"not {mask.dtype} {tuple(mask.shape)}"
        )
    if mask.device.type == "cpu" and not bool(mask.any(1).all()):  # on an accelerator the host would wait
        raise ArgumentError(
            f"the mask hides every region of photo {int((~mask.any(1)).nonzero()[0, 0])}; at least one must be real"
        )
    return grid.masked_fill(~mask.unsqueeze(2), 0.0), mask


def mean_region(grid: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the real regions: grid (N, L, D) with zeros in masked regions -> (N, D)."""
    return grid.mean(1) if mask is None else grid.sum(1) / mask.sum(1, keepdim=True)


def by_image(rows: Tensor, images: int) -> Tensor:
    """(R, ...) as (N, K, ...), a view: row r belongs to image r // K."""
    return rows.view(images, rows_per_image(rows.shape[0], images), *rows.shape[1:])


def additive_scores(keys: Tensor, query: Tensor, score: Tensor, mask: Tensor | None, relu: bool = False) -> Tensor:
    """How well each region answers each row, minus infinity where masked; see `energies`.

    keys (N, L, A), query (N, K, A), score (1, A), mask (N, L) -> (N, K, L). The K rows share their image's keys.
    """
    mixed = keys.unsqueeze(1) + query.unsqueeze(2)
    scores = (F.linear(mixed.relu_(), score) if relu else energies(mixed, score)).squeeze(3)
    return scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -torch.inf)


def energies(mixed: Tensor, score: Tensor) -> Tensor:
    """score . tanh(mixed) plus sum(score), which no softmax notices: (..., A) and (1, A) -> (..., 1).

    tanh(x) is 2 sigmoid(2 x) - 1, and on a CPU torch's sigmoid takes a sixth of the time of its tanh, by far the
    largest part of soft attention. Overwrites `mixed`.
    """
    return F.linear(mixed.mul_(2).sigmoid_(), 2 * score)


def lstm_cell(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """New h and c (R, H) from the sums that enter the gates, (R, 4 * H) in torch's order: input, forget, cell, output.

    Under autocast c stays in its own, wider type.
    """
    enter, forget, new, leave = gates.chunk(4, dim=1)
    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


@torch.no_grad()
def open_forget_gate(bias: Tensor, hidden_dim: int) -> None:
    """Biases of gates: 0, but 1 for the forget gate."""
    nn.init.zeros_(bias)
    bias[hidden_dim : 2 * hidden_dim].fill_(1.0)


def check_step(tokens: Tensor, state: Rows, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse tokens that aren't (R,) int64, and a state that isn't R rows of these shapes."""
    if tokens.ndim != 1 or tokens.dtype != torch.int64:
        raise ArgumentError(f"a step takes tokens (rows,) of int64, not {tokens.dtype} {tuple(tokens.shape)}")
    for name, shape in shapes.items():
        expected = (tokens.shape[0], *shape)
        if name not in state or tuple(state[name].shape) != expected:
            found = tuple(state[name].shape) if name in state else "none"
            raise ArgumentError(f"a step of {tokens.shape[0]} rows takes a state {name} {expected}, not {found}")


def check_forced(tokens: Tensor) -> None:
    """Refuse tokens that aren't (R, T) int64 with at least one step."""
    if tokens.ndim != 2 or tokens.shape[1] < 1 or tokens.dtype != torch.int64:
        raise ArgumentError(
            f"teacher forcing takes tokens (rows, steps) of int64, at least 1 step, not {tokens.dtype} "
            f"{tuple(tokens.shape)}"
        )


_LARGE = 1 << 19  # weights; a CPU keeps smaller matrices at hand


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear layer, faster for the few rows of one photo: x (..., I), weight (O, I), bias (O,) -> (..., O).

    On a CPU the product of 2 to 5 rows with a large matrix fetches the matrix anew for each row or two; transposed it
    is fetched once, and the beams of one photo step 2 to 3 times as fast (benchmarks/pieces.py).
    """
    if torch.compiler.is_exporting():  # a program for any number of rows
        return F.linear(x, weight, bias)
    rows = x.numel() // max(1, x.shape[-1])
    few = 2 <= rows <= 5 and weight.numel() >= _LARGE
    if not few or x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    columns = x.reshape(rows, -1).T
    product = weight @ columns if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns)
    return product.T.contiguous().view(*x.shape[:-1], -1)


def word_scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The output layer, of half-precision weights in float32: hidden (..., H), weight (V, H), bias (V,) -> (..., V).

    Bfloat16 has three digits: likely words would be told apart by rounding.
    """
    if weight.dtype in (torch.bfloat16, torch.float16):
        hidden, weight, bias = hidden.float(), weight.float(), bias.float()
    return linear(hidden, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


class Words(nn.Module):
    """Words in and words out: the embedding and the output layer, of one matrix if `tied`.

    Example:
        >>> words = Words(vocab_size=10, embed_dim=4, width=6, tied=True)
        >>> words(torch.tensor([1, 2])).shape, words.logits(torch.zeros(2, 6)).shape
        (torch.Size([2, 4]), torch.Size([2, 10]))

    width: of what the output layer reads; where it isn't embed_dim, a tied one has a linear layer in between.
    """

    def __init__(self, vocab_size: int, embed_dim: int, width: int, tied: bool) -> None:
        """Build with small random weights and zero biases."""
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        self.bridge = nn.Linear(width, embed_dim) if tied and width != embed_dim else nn.Identity()
        self.output = None if tied else nn.Linear(width, vocab_size, bias=False)
        self.bias = nn.Parameter(torch.empty(vocab_size))
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if self.output is not None:
            nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids (...) -> vectors (..., embed_dim)."""
        vectors: Tensor = self.embedding(tokens)
        return vectors

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., width) -> scores (..., V)."""
        weight = self.embedding.weight if self.output is None else self.output.weight
        return word_scores(self.bridge(hidden), weight, self.bias)
