"""Show and Tell: an LSTM that is shown the photo once, then tells (Vinyals et al. 2015, arXiv:1411.4555)."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checks import choice, flag, number, whole
from ..errors import ArgumentError, DataError, NotFoundError
from ..protocols import Features, Forced
from ..rows import Rows, rows_per_image
from .parts import word_scores

__all__ = ["LSTMDecoder"]

_CELL = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class LSTMDecoder(nn.Module):
    """The decoder `lstm.v1`: a word-by-word LSTM over one vector a photo.

    Example:
        >>> import torch
        >>> decoder = LSTMDecoder(vocab_size=20, feature_dim=8, embed_dim=4, hidden_dim=4)
        >>> memory = decoder.prepare(Features(pooled=torch.randn(2, 8)))
        >>> decoder(torch.tensor([[1, 5, 6], [1, 7, 2]]), memory).logits.shape
        torch.Size([2, 3, 20])

    State: h and c, each (R, layers, hidden_dim). The source is Vinyals et al. 2015, "Show and Tell"
    (arXiv:1411.4555), for `image="first"`; "initial-state" and "every-step" are the two other usual ways to show a
    photo to an LSTM.

    Args:
        vocab_size: V, 4..2,000,000.
        feature_dim: D of `Features.pooled`, 1..65536.
        embed_dim: of words and of the photo as the LSTM's input, 1..65536.
        hidden_dim: of the LSTM, 1..65536.
        layers: 1..16.
        dropout: 0..0.95, on the LSTM's inputs, between its layers and before the output layer.
        image: "first" feeds the projected photo before the start token; "initial-state" makes h and c from it
            (linear, tanh); "every-step" sets it beside every word.
        tied: the output layer uses the word embeddings (through a linear layer if hidden_dim isn't embed_dim).
        project: a linear layer brings the photo to embed_dim. False takes it as the encoder's head gives it, so
            feature_dim must be embed_dim; "initial-state" can't do without.

    Raises:
        ArgumentError: an option out of range, or a tensor of the wrong shape or type.
    """

    has_attention = False

    def __init__(
        self,
        vocab_size: int,
        feature_dim: int,
        embed_dim: int = 512,
        hidden_dim: int = 512,
        layers: int = 1,
        dropout: float = 0.5,
        image: Literal["first", "initial-state", "every-step"] = "first",
        tied: bool = False,
        project: bool = True,
    ) -> None:
        """Build with fresh weights; nothing is fetched."""
        super().__init__()
        self.vocab_size = whole("LSTMDecoder vocab_size", vocab_size, 4, 2_000_000)
        self.feature_dim = whole("LSTMDecoder feature_dim", feature_dim, 1, 65536)
        self.embed_dim = whole("LSTMDecoder embed_dim", embed_dim, 1, 65536)
        self.hidden_dim = whole("LSTMDecoder hidden_dim", hidden_dim, 1, 65536)
        self.layers = whole("LSTMDecoder layers", layers, 1, 16)
        rate = number("LSTMDecoder dropout", dropout, 0.0, 0.95)
        self.image = choice("LSTMDecoder image", image, ("first", "initial-state", "every-step"))
        self.tied = flag("LSTMDecoder tied", tied)
        self.project = flag("LSTMDecoder project", project)
        if not project and (image == "initial-state" or feature_dim != embed_dim):
            raise ArgumentError(
                f'project=False feeds the photo to the LSTM as it comes: image must be "first" or "every-step" and '
                f"embed_dim what the encoder gives; they are {image!r} and {embed_dim}, and it gives {feature_dim}"
            )

        self.dropout = nn.Dropout(rate)
        self.embedding = nn.Embedding(vocab_size, embed_dim)
        as_state = image == "initial-state"
        wanted = 2 * layers * hidden_dim if as_state else embed_dim
        self.projection = nn.Linear(feature_dim, wanted) if project else nn.Identity()
        inputs = 2 * embed_dim if image == "every-step" else embed_dim
        self.lstm = nn.LSTM(inputs, hidden_dim, layers, batch_first=True, dropout=rate if layers > 1 else 0.0)
        self.bridge = nn.Linear(hidden_dim, embed_dim) if tied and hidden_dim != embed_dim else nn.Identity()
        self.output = None if tied else nn.Linear(hidden_dim, vocab_size)
        self.output_bias = nn.Parameter(torch.empty(vocab_size)) if tied else None
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Small words, LSTM biases 0 but 1 for the forget gate; the rest is torch's own."""
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            if name.startswith("bias_ih"):  # gates in torch's order: input, forget, cell, output
                parameter[self.hidden_dim : 2 * self.hidden_dim].fill_(1.0)
        if self.output is not None:
            nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self._output_bias)

    @property
    def _output_bias(self) -> Tensor:
        bias = self.output_bias if self.output is None else self.output.bias
        assert bias is not None
        return bias

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        return {
            "vocab_size": self.vocab_size,
            "feature_dim": self.feature_dim,
            "embed_dim": self.embed_dim,
            "hidden_dim": self.hidden_dim,
            "layers": self.layers,
            "dropout": self.dropout.p,
            "image": self.image,
            "tied": self.tied,
            "project": self.project,
        }

    def prepare(self, features: Features) -> Rows:
        """Project the photos once: memory "image" (N, embed_dim), or "h" and "c" (N, layers, hidden_dim)."""
        pooled = features.pooled
        if pooled.ndim != 2 or pooled.shape[1] != self.feature_dim or not pooled.is_floating_point():
            raise ArgumentError(
                f"this decoder takes pooled features (photos, {self.feature_dim}) of floating point, not "
                f"{pooled.dtype} {tuple(pooled.shape)}"
            )
        projected: Tensor = self.projection(pooled.to(self.embedding.weight.dtype))
        if self.image != "initial-state":
            return {"image": self.dropout(projected)}
        h, c = projected.tanh().view(-1, 2, self.layers, self.hidden_dim).unbind(dim=1)
        return {"h": h, "c": c}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        """The state before the start token: h and c, each (N, layers, hidden_dim); any `max_length` will do."""
        if self.image == "initial-state":
            return {"h": memory["h"], "c": memory["c"]}
        image = memory["image"]
        zeros = {name: image.new_zeros(image.shape[0], self.layers, self.hidden_dim) for name in ("h", "c")}
        return zeros if self.image == "every-step" else self._cells(image, zeros)

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        """Tokens (R,) int64, state of R rows, memory of N rows -> logits (R, V) and the new state."""
        if tokens.ndim != 1:
            raise ArgumentError(f"a step takes tokens (rows,), not {tuple(tokens.shape)}")
        shape = (tokens.shape[0], self.layers, self.hidden_dim)
        for name in ("h", "c"):
            if name not in state or tuple(state[name].shape) != shape:
                found = tuple(state[name].shape) if name in state else "none"
                raise ArgumentError(f"a step of {tokens.shape[0]} rows takes a state {name} {shape}, not {found}")
        after = self._cells(self._words(tokens.unsqueeze(1), memory).squeeze(1), state)
        return self._logits(after["h"][:, -1]), after

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        """Teacher forcing: tokens (R, T) int64, start token first -> logits (R, T, V), in one fused LSTM call."""
        if attention:
            raise ArgumentError("lstm.v1 has no attention; leave attention=False")
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise ArgumentError(
                f"teacher forcing takes tokens (rows, steps), at least 1 step, not {tuple(tokens.shape)}"
            )
        words = self._words(tokens, memory)
        if self.image == "first":
            hidden = self._run(torch.cat([_shared(memory["image"], tokens.shape[0]).unsqueeze(1), words], dim=1))[0][
                :, 1:
            ]
        elif self.image == "initial-state":
            hidden = self._run(words, {name: _shared(memory[name], tokens.shape[0]) for name in ("h", "c")})[0]
        else:
            hidden = self._run(words)[0]
        return Forced(self._logits(hidden))

    def _words(self, tokens: Tensor, memory: Rows) -> Tensor:
        """Tokens (R, T) -> the LSTM's inputs (R, T, ...)."""
        if tokens.dtype != torch.int64:
            raise ArgumentError(f"tokens are int64 ids, not {tokens.dtype}")
        words: Tensor = self.dropout(self.embedding(tokens))
        if self.image != "every-step":
            rows_per_image(tokens.shape[0], next(iter(memory.values())).shape[0])
            return words
        image = _shared(memory["image"], tokens.shape[0])
        return torch.cat([words, image.unsqueeze(1).expand(-1, tokens.shape[1], -1)], dim=2)

    def _run(self, inputs: Tensor, state: Rows | None = None) -> tuple[Tensor, Rows]:
        """The LSTM over inputs (R, T, ...) from a state (default: zeros) -> outputs (R, T, hidden_dim), new state."""
        before = None if state is None else tuple(state[name].transpose(0, 1).contiguous() for name in ("h", "c"))
        outputs, (h, c) = self.lstm(inputs, before)
        return outputs, {"h": h.transpose(0, 1), "c": c.transpose(0, 1)}

    def _cells(self, entering: Tensor, state: Rows) -> Rows:
        """One step over (R, ...), cell by cell, as nn.LSTM would want the state's layers in front -> new state."""
        after: list[tuple[Tensor, Tensor]] = []
        for layer in range(self.layers):
            weights = (getattr(self.lstm, f"{name}_l{layer}") for name in _CELL)
            before = state["h"][:, layer], state["c"][:, layer]
            after.append(torch.lstm_cell(self.dropout(after[-1][0]) if layer else entering, before, *weights))
        h, c = (torch.stack(each, dim=1) for each in zip(*after, strict=True))
        return {"h": h, "c": c}

    def _logits(self, hidden: Tensor) -> Tensor:
        hidden = self.bridge(self.dropout(hidden))
        layer = self.embedding if self.output is None else self.output
        return word_scores(hidden, layer.weight, self._output_bias)

    def load_word_vectors(self, path: str | os.PathLike[str], words: Sequence[str]) -> int:
        """Start from pretrained word vectors; returns how many words had one.

        Example:
            >>> import tempfile
            >>> file = Path(tempfile.mkdtemp(), "vectors.txt")
            >>> _ = file.write_text("dog 1.0 0.0\\ncat 0.0 1.0\\n")
            >>> decoder = LSTMDecoder(vocab_size=5, feature_dim=8, embed_dim=2)
            >>> decoder.load_word_vectors(file, ["<pad>", "<start>", "<end>", "<unk>", "dog"])
            1

        `path`: GloVe's or word2vec's text format, UTF-8: a word and embed_dim numbers a line, separated by spaces; a
        first line of two whole numbers (word2vec's count and size) is skipped. `words`: the vocabulary in id order.
        Rows of other words stay as they are; of a word listed twice the first vector counts. Raises ArgumentError
        when `words` hasn't `vocab_size` words, NotFoundError, and DataError naming the line; then nothing changed.
        """
        if len(words) != self.vocab_size:
            raise ArgumentError(
                f"this decoder has {self.vocab_size} words, the list {len(words)}; pass the vocabulary's"
            )
        if not Path(path).is_file():
            raise NotFoundError(f"no word-vector file at {os.fspath(path)}")
        vectors = _read_vectors(Path(path), {word: i for i, word in enumerate(words)}, self.embed_dim)
        if vectors:
            weight = self.embedding.weight
            rows = torch.tensor(list(vectors.values()), dtype=weight.dtype, device=weight.device)
            with torch.no_grad():
                weight[torch.tensor(list(vectors), device=weight.device)] = rows
        return len(vectors)


def _shared(memory: Tensor, rows: int) -> Tensor:
    """Memory of N rows as R = N * K rows, each image's repeated."""
    times = rows_per_image(rows, memory.shape[0])
    return memory if times == 1 else memory.unsqueeze(1).expand(-1, times, *memory.shape[1:]).flatten(0, 1)


def _read_vectors(path: Path, ids: dict[str, int], size: int) -> dict[int, list[float]]:
    """The vectors of the known words, by id."""
    found: dict[int, list[float]] = {}
    with path.open("rb") as lines:
        for n, raw in enumerate(lines, start=1):
            where = f"{path}:{n}"
            try:
                line = raw.decode("utf-8").strip(" \t\r\n")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 text") from error
            fields = line.split(" ")
            if n == 1 and len(fields) == 2 and all(field.isdecimal() for field in fields):
                if int(fields[1]) != size:
                    raise DataError(f"{where}: vectors of {fields[1]} numbers; this decoder has embed_dim {size}")
                continue
            if not line:
                continue
            # Some words of GloVe's largest files hold spaces, so count from the right.
            if len(fields) <= size:
                raise DataError(f"{where}: a word and {size} numbers expected, {len(fields)} fields found")
            word = " ".join(fields[:-size])
            if word not in ids or ids[word] in found:
                continue
            try:
                vector = [float(field) for field in fields[-size:]]
            except ValueError as error:
                raise DataError(f"{where}: the vector of {word!r:.60} holds something that is no number") from error
            if not all(map(math.isfinite, vector)):
                raise DataError(f"{where}: the vector of {word!r:.60} holds a number that isn't finite")
            found[ids[word]] = vector
    return found
