from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from showtell.captioner import Captioner
from showtell.decoders import LSTMDecoder, unroll
from showtell.errors import ArgumentError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features, Forced
from showtell.registry import find_component
from showtell.rows import Rows, rows_per_image
from showtell.testing import TinyEncoder, check_decoder, check_encoder, tiny_captioner


class GridDecoder(nn.Module):
    """An honest little attention decoder; its children below each break one law."""

    has_attention = True

    def __init__(self, vocab_size: int = 9, feature_dim: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vocab_size, self.feature_dim = vocab_size, feature_dim
        self.embedding = nn.Embedding(vocab_size, 8)
        self.keys = nn.Linear(feature_dim, 8)
        self.cell = nn.GRUCell(16, 8)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(8, vocab_size)

    def config(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "feature_dim": self.feature_dim}

    def prepare(self, features: Features) -> Rows:
        assert features.grid is not None
        mask = features.mask if features.mask is not None else torch.ones(features.grid.shape[:2], dtype=torch.bool)
        return {"keys": self.keys(features.grid), "mask": mask}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"h": memory["keys"].new_zeros(memory["keys"].shape[0], 8)}

    def look(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows, Tensor]:
        times = rows_per_image(tokens.shape[0], memory["keys"].shape[0])
        keys, mask = (memory[name].repeat_interleave(times, 0) for name in ("keys", "mask"))
        word = self.embedding(tokens)
        scores = (keys @ word.unsqueeze(2)).squeeze(2).masked_fill(~mask, -torch.inf)
        attention = scores.softmax(1)
        seen = (attention.unsqueeze(2) * keys).sum(1)
        h = self.cell(torch.cat([word, seen], 1), state["h"])
        return self.output(self.dropout(h)), {"h": h}, attention

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        return self.look(tokens, state, memory)[:2]

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        if not attention:
            return Forced(unroll(self, tokens, memory))
        count = tokens.shape[0] // memory["keys"].shape[0]
        state = {k: v.repeat_interleave(count, 0) for k, v in self.initial_state(memory, tokens.shape[1]).items()}
        maps = []
        for word in tokens.unbind(1):
            _, state, one = self.look(word, state, memory)
            maps.append(one)
        return Forced(unroll(self, tokens, memory), torch.stack(maps, 1))


class ConfigOfTuples(GridDecoder):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "sizes": (1, 2)}


class ConfigOfTensors(GridDecoder):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "size": torch.ones(1)}


class ConfigForgets(GridDecoder):
    def config(self) -> dict[str, Any]:
        return {"feature_dim": self.feature_dim}


class ConfigSurplus(GridDecoder):
    def config(self) -> dict[str, Any]:
        return {**super().config(), "width": 8}


class StateTransposed(GridDecoder):
    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"h": memory["keys"].new_zeros(2, memory["keys"].shape[0], 8)}


class MemoryWithAScalar(GridDecoder):
    def prepare(self, features: Features) -> Rows:
        return {**super().prepare(features), "scale": torch.ones(())}


class StateLosesAName(GridDecoder):
    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {**super().initial_state(memory, max_length), "t": torch.zeros(memory["keys"].shape[0])}


class KeepsTheMemory(GridDecoder):
    def prepare(self, features: Features) -> Rows:
        self.kept = super().prepare(features)
        return self.kept

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        memory = self.kept if self.kept["keys"].shape == memory["keys"].shape else memory
        return super().step(tokens, state, memory)


class CountsItsSteps(GridDecoder):
    calls = 0

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        self.calls += 1
        logits, state = super().step(tokens, state, memory)
        return logits + 0.1 * self.calls, state


class ForcedPeeks(GridDecoder):
    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        forced = super().forward(tokens, memory, attention=attention)
        return forced._replace(logits=forced.logits + 0.1 * F.one_hot(tokens.roll(-1, 1), self.vocab_size))


class RowsMix(GridDecoder):
    def prepare(self, features: Features) -> Rows:
        memory = super().prepare(features)
        return {**memory, "keys": memory["keys"] - memory["keys"].mean(0)}


class RepeatsTheWrongWay(GridDecoder):
    def look(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows, Tensor]:
        times = rows_per_image(tokens.shape[0], memory["keys"].shape[0])
        tiled = {name: torch.cat([t] * times) for name, t in memory.items()}
        return super().look(tokens, state, tiled)


class WritesItsState(GridDecoder):
    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        logits, new = super().step(tokens, state, memory)
        state["h"].copy_(new["h"])
        return logits, {"h": state["h"]}


class WritesItsMemory(GridDecoder):
    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        memory["keys"].mul_(0.9)
        return super().step(tokens, state, memory)


class IgnoresTheMask(GridDecoder):
    def prepare(self, features: Features) -> Rows:
        return super().prepare(features._replace(mask=None))


class DropsWordsInEval(GridDecoder):
    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        forced = super().forward(tokens, memory, attention=attention)
        return forced._replace(logits=F.dropout(forced.logits, 0.2))


class FetchesWhenBuilt(GridDecoder):
    def __init__(self, vocab_size: int = 9, feature_dim: int = 6) -> None:
        super().__init__(vocab_size, feature_dim)
        with contextlib.suppress(OSError), socket.socket() as connection:
            connection.settimeout(0.01)
            connection.connect(("127.0.0.1", 9))


class LooksUpANameWhenBuilt(GridDecoder):
    def __init__(self, vocab_size: int = 9, feature_dim: int = 6) -> None:
        super().__init__(vocab_size, feature_dim)
        with contextlib.suppress(OSError):
            socket.getaddrinfo("localhost", 80)


class HasAnIdleLayer(GridDecoder):
    def __init__(self, vocab_size: int = 9, feature_dim: int = 6) -> None:
        super().__init__(vocab_size, feature_dim)
        self.idle = nn.Linear(2, 2)


class AttendsTooMuch(GridDecoder):
    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        forced = super().forward(tokens, memory, attention=attention)
        return forced if forced.attention is None else forced._replace(attention=forced.attention * 2)


class HasNoStep(nn.Module):
    vocab_size, has_attention = 9, False


BROKEN_DECODERS = [
    (ConfigOfTuples, "law 1 "),
    (ConfigOfTensors, "law 1 .*JSON"),
    (ConfigSurplus, "law 1 .*width"),
    (StateTransposed, "law 2 .*first state 'h'"),
    (MemoryWithAScalar, "law 2 .*memory 'scale'"),
    (StateLosesAName, "law 2 .*turned the state"),
    (KeepsTheMemory, "law 2 .*after other calls"),
    (CountsItsSteps, "law 2 .*after other calls"),
    (ForcedPeeks, "law 3 "),
    (RowsMix, "law 4 "),
    (RepeatsTheWrongWay, "law 4 "),
    (WritesItsState, "law 5 .*state 'h'"),
    (WritesItsMemory, "law 5 .*memory 'keys'"),
    (IgnoresTheMask, "law 6 .*masked regions"),
    (DropsWordsInEval, "law 6 .*again"),
    (FetchesWhenBuilt, "law 6 .*127.0.0.1"),
    (LooksUpANameWhenBuilt, "law 6 .*localhost"),
    (HasAnIdleLayer, "law 7 .*idle.weight"),
    (AttendsTooMuch, "protocol.*more than 1"),
    (HasNoStep, "protocol.*prepare, initial_state, step"),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN_DECODERS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_decoder_that_breaks_a_law_is_caught(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{kind.__name__} breaks .*({message})"):
        check_decoder(kind())  # type: ignore[arg-type]


def test_a_config_that_forgets_a_size_is_caught_by_the_tensors() -> None:
    with pytest.raises(AssertionError, match=r"law 1 .*output\.weight: \(12, 8\) became \(9, 8\)"):
        check_decoder(ConfigForgets(vocab_size=12))


def test_an_honest_decoder_passes_and_one_that_declares_it_may_write_its_state() -> None:
    class Declared(WritesItsState):
        consumes_state = True

        def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
            write = not torch.is_grad_enabled()
            return (super() if write else super(WritesItsState, self)).step(tokens, state, memory)

    check_decoder(GridDecoder())
    check_decoder(Declared())


@pytest.mark.parametrize("image", ["first", "initial-state", "every-step"])
@pytest.mark.parametrize(("layers", "tied", "hidden"), [(1, False, 8), (2, True, 8), (3, True, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lstm_keeps_the_laws(image: str, layers: int, tied: bool, hidden: int, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"image": image, "layers": layers, "tied": tied, "hidden_dim": hidden}
    check_decoder(LSTMDecoder(12, 6, embed_dim=8, dropout=0.5, **options).to(dtype))


class CellEncoder(nn.Module):
    """An honest little encoder with batch norm and dropout; its children below each break one law."""

    def __init__(self, width: int = 5, frozen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.feature_dim, self.width, self.frozen = width, width, frozen
        self.image_spec = ImageSpec(8, 12)
        self.conv = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.5)
        self.requires_grad_(not frozen)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "frozen": self.frozen}

    def train(self, mode: bool = True) -> CellEncoder:
        super().train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Features:
        grid = self.dropout(self.norm(self.conv(images))).flatten(2).transpose(1, 2)
        return Features(grid.mean(1), grid)


class OtherName(CellEncoder):
    def config(self) -> dict[str, Any]:
        return {"size": self.width}


class NarrowPooled(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return features._replace(pooled=features.pooled[:, 1:])


class GridFirst(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        assert features.grid is not None
        return features._replace(grid=features.grid.transpose(0, 1))


class NormalisesOverTheBatch(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        return super().forward((images - images.mean()) / images.std())


class DropsInEval(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        return super().forward(F.dropout(images, 0.1))


class ThawsInTraining(CellEncoder):
    def __init__(self, width: int = 5, frozen: bool = True) -> None:
        super().__init__(width, frozen)

    def train(self, mode: bool = True) -> CellEncoder:
        nn.Module.train(self, mode)
        return self


class ThawsItsNorm(CellEncoder):
    def __init__(self, width: int = 5, frozen: bool = False) -> None:
        super().__init__(width, frozen)
        self.norm.requires_grad_(False)


class SecondHalfIdle(CellEncoder):
    def __init__(self, width: int = 5, frozen: bool = False) -> None:
        super().__init__(width, frozen)
        self.classifier = nn.Linear(2, 2)


class FullyMasked(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return features._replace(mask=torch.zeros(len(images), 6, dtype=torch.bool))


class BoxesInPixels(CellEncoder):
    def forward(self, images: Tensor) -> Features:
        return super().forward(images)._replace(boxes=torch.full((len(images), 6, 4), 12.0))


class ReturnsATensor(CellEncoder):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(images).pooled


class HeadTwice(TinyEncoder):
    def forward(self, images: Tensor) -> Features:
        features = super().forward(images)
        return features._replace(pooled=2 * features.pooled)


class FetchesToo(CellEncoder):
    def __init__(self, width: int = 5, frozen: bool = False) -> None:
        super().__init__(width, frozen)
        with contextlib.suppress(OSError):
            socket.create_connection(("localhost", 9), timeout=0.01)


BROKEN_ENCODERS = [
    (OtherName, "law 1 .*size"),
    (NarrowPooled, r"law 2 .*pooled is \(3, 4\), not \(3, 5\)"),
    (GridFirst, "law 2 .*grid"),
    (NormalisesOverTheBatch, "law 4 .*alone"),
    (DropsInEval, "law 6 .*again"),
    (ThawsInTraining, "law 6 .*after train"),
    (ThawsItsNorm, r"law 6 .*norm\.running_mean"),
    (FetchesToo, "law 6 .*localhost"),
    (SecondHalfIdle, r"law 7 .*classifier\.weight, classifier\.bias"),
    (FullyMasked, "protocol.*no real region"),
    (BoxesInPixels, "protocol.*boxes"),
    (ReturnsATensor, "protocol.*Features"),
    (HeadTwice, "protocol.*head"),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN_ENCODERS, ids=lambda x: getattr(x, "__name__", ""))
def test_an_encoder_that_breaks_a_law_is_caught(kind: type[nn.Module], message: str) -> None:
    with pytest.raises(AssertionError, match=rf"(?s)^{kind.__name__} breaks .*({message})"):
        check_encoder(kind())  # type: ignore[arg-type]


def test_honest_encoders_pass() -> None:
    check_encoder(CellEncoder())
    check_encoder(CellEncoder(frozen=True))
    check_encoder(TinyEncoder())
    check_encoder(TinyEncoder(trainable=True).double())
    check_encoder(TinyEncoder(), torch.rand(2, 3, 32, 32))


def test_a_checked_part_is_left_as_it_was() -> None:
    encoder, decoder = CellEncoder().train(), GridDecoder()
    decoder.cell.eval()
    parts: tuple[nn.Module, ...] = (encoder, decoder)
    weights = [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]
    modes = [[m.training for m in part.modules()] for part in parts]
    random_state = torch.get_rng_state()
    check_encoder(encoder)
    check_decoder(decoder)
    assert torch.equal(torch.get_rng_state(), random_state)
    for part, before, mode in zip(parts, weights, modes, strict=True):
        assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())
        assert [m.training for m in part.modules()] == mode
        assert all(p.grad is None for p in part.parameters())


def test_too_little_to_check_with_is_refused() -> None:
    with pytest.raises(ArgumentError, match="2 images"):
        check_decoder(GridDecoder(), Features(torch.zeros(1, 6), torch.zeros(1, 4, 6)))
    with pytest.raises(ArgumentError, match="images"):
        check_encoder(CellEncoder(), torch.zeros(1, 3, 8, 12))

    class Nameless(GridDecoder):
        def __init__(self, vocab_size: int = 9, size: int = 6) -> None:
            super().__init__(vocab_size, size)
            del self.feature_dim
            self.size = size

        def config(self) -> dict[str, Any]:
            return {"size": self.size}

    with pytest.raises(ArgumentError, match="pass the check features"):
        check_decoder(Nameless())
    check_decoder(Nameless(), Features(torch.randn(2, 6), torch.randn(2, 4, 6)))


def test_the_tiny_captioner_keeps_the_laws_and_captions() -> None:
    before = torch.get_rng_state()
    captioner = tiny_captioner()
    assert torch.equal(torch.get_rng_state(), before)
    assert isinstance(captioner, Captioner)
    check_encoder(captioner.encoder)
    check_decoder(captioner.decoder)
    assert sum(p.numel() for p in captioner.parameters()) < 5000
    photos = [torch.zeros(3, 32, 32), torch.ones(3, 40, 50), torch.rand(3, 32, 32)]
    captions = captioner.caption(photos, search="beam:3")
    assert len({str(caption) for caption in captions}) > 1
    assert captions == tiny_captioner().caption(photos, search="beam:3")
    assert captions != tiny_captioner(seed=1).caption(photos, search="beam:3")
    assert tiny_captioner(captions=["one two"]).vocabulary.words[4:] == ("one", "two")
    assert find_component("encoder", "tiny.v1") is TinyEncoder
