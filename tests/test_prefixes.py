"""Prefix by prefix gives the loss and the gradient of teacher forcing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from showtell.captioner import Captioner
from showtell.decoders import LSTMDecoder
from showtell.encoders.head import Head
from showtell.errors import ArgumentError
from showtell.protocols import Features
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.training import CrossEntropy, DoublyStochastic, Prefixes, Trainer, load_recipe

DECODERS = ("lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1")


class Normed(TinyEncoder):
    """Photos through Linear, BatchNorm and ReLU, as show-tell-resnet50-300 has it."""

    def __init__(self) -> None:
        super().__init__(feature_dim=16)
        self.last = Head(16, dim=6, batch_norm=True, relu=True)
        self.feature_dim = 6

    def head(self, features: Features) -> Features:
        return Features(self.last(super().head(features).pooled))

    def config(self) -> dict[str, Any]:
        return {}


def normed() -> Captioner:
    torch.manual_seed(0)
    words = tiny_captioner().vocabulary
    decoder = LSTMDecoder(len(words), 6, embed_dim=6, hidden_dim=8, layers=2, dropout=0.0, project=False)
    captioner = Captioner(Normed(), decoder, words).double()
    norm: Any = captioner.encoder.last.norm  # type: ignore[attr-defined]
    norm.running_mean.copy_(torch.rand(6))
    norm.running_var.copy_(torch.rand(6) + 0.5)
    return captioner


def batch(photos: int = 3, captions: int = 2, steps: int = 5) -> Any:
    """Captions of different lengths, one slot empty."""
    generator = torch.Generator().manual_seed(3)
    rows = photos * captions
    targets = torch.randint(4, 20, (rows, steps), generator=generator)
    tokens = torch.cat([torch.ones(rows, 1, dtype=torch.int64), targets[:, :-1]], dim=1)
    lengths = torch.tensor([5, 3, 1, 4, 2, 0][:rows])
    weights = (torch.arange(steps) < lengths.unsqueeze(1)).float()
    images = torch.rand(photos, 3, 32, 32, generator=generator, dtype=torch.float64)
    return SimpleNamespace(inputs=images, tokens=tokens, targets=targets, weights=weights, trunk=False)


def gradient(captioner: Captioner, objective: Any, data: Any) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    captioner.zero_grad()
    terms = objective(captioner, data)
    torch.stack([term.factor * term.sum / term.weight for term in terms.values()]).sum().backward()
    grads = {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}
    return {name: term.sum.item() for name, term in terms.items()}, grads


def assert_equal(captioner: Captioner, base: Any) -> None:
    data = batch()
    assert Prefixes(base).weights(data) == base.weights(data)
    (once, plain), (each, by_prefix) = (gradient(captioner, o, data) for o in (base, Prefixes(base)))
    assert each == pytest.approx(once, rel=1e-12)
    assert set(plain) == set(by_prefix)
    for name, expected in plain.items():
        torch.testing.assert_close(by_prefix[name], expected, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in plain.values()) > 1e-3


@pytest.mark.parametrize("decoder", DECODERS)
def test_the_gradient_is_that_of_teacher_forcing(decoder: str) -> None:
    captioner = tiny_captioner(decoder=decoder).double()
    assert_equal(captioner, CrossEntropy(label_smoothing=0.1))
    if captioner.decoder.has_attention:
        assert_equal(captioner, DoublyStochastic(CrossEntropy(), 0.5))


@pytest.mark.parametrize("training", [False, True])
def test_with_batch_norm_too_as_a_photo_is_encoded_once(training: bool) -> None:
    assert_equal(normed().train(training), CrossEntropy())


def test_each_prediction_reads_its_own_prefix_and_nothing_after_it() -> None:
    seen: list[torch.Tensor] = []

    def model(inputs: Any, tokens: torch.Tensor, trunk: bool) -> Any:
        seen.append(tokens)
        rows, steps = tokens.shape
        return SimpleNamespace(logits=torch.arange(rows * steps * 4.0).view(rows, steps, 4), attention=None)

    data = SimpleNamespace(
        inputs=None, tokens=torch.tensor([[1, 5, 6], [1, 7, 8]]), targets=torch.zeros(2, 3, dtype=torch.int64),
        weights=torch.ones(2, 3), trunk=False,
    )  # fmt: skip
    kept: list[torch.Tensor] = []
    base = SimpleNamespace(terms=lambda forced, batch: kept.append(forced.logits) or {}, weights=lambda batch: {})
    Prefixes(base)(model, data)  # type: ignore[arg-type]
    expected = [[1, 1, 1], [1, 5, 5], [1, 5, 6], [1, 1, 1], [1, 7, 7], [1, 7, 8]]
    assert seen[0].tolist() == expected
    # Rows 0..2 are the prefixes of caption 0, and each is read at its own last place.
    first = [0 * 12 + 0 * 4, 1 * 12 + 1 * 4, 2 * 12 + 2 * 4]
    assert kept[0][:, :, 0].tolist() == [first, [value + 36 for value in first]]


def test_ten_steps_are_those_of_teacher_forcing() -> None:
    ends = []
    for objective in (CrossEntropy(), Prefixes(CrossEntropy())):
        captioner = normed()
        optimizer = torch.optim.Adam([p for p in captioner.parameters() if p.requires_grad], lr=1e-2)
        source: Any = SimpleNamespace(batch=lambda number: batch())
        for report in Trainer(captioner, objective, optimizer).steps(source):
            if report.step == 10:
                break
        ends.append(captioner.state_dict())
    for name, expected in ends[0].items():
        torch.testing.assert_close(ends[1][name], expected, rtol=1e-6, atol=1e-8)


def test_a_recipe_switches_it_on() -> None:
    assert load_recipe("default").prefixes is False
    assert load_recipe("default").changed({"prefixes": True}).prefixes is True
    with pytest.raises(ArgumentError, match="prefixes must be true or false"):
        load_recipe("default").changed({"prefixes": 1})
