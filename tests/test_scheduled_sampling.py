"""Scheduled sampling: which inputs are replaced, by what, and that nothing but the step decides."""

from __future__ import annotations

import io
import math
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.data import Batch, Batches, Record
from showtell.errors import ArgumentError
from showtell.protocols import Forced
from showtell.testing import tiny_captioner
from showtell.training import (
    CrossEntropy,
    DoublyStochastic,
    InverseSigmoidRise,
    LinearRise,
    ScheduledSampling,
    Trainer,
)

CAPTIONS = (
    ("a dog runs on the grass", "a small dog"),
    ("two men ride a bike on the beach",),
    ("a girl in a blue shirt plays in the water", "a girl plays"),
    ("a red ball", "a ball on the beach"),
)


def make_batches(captioner: Captioner, dtype: torch.dtype = torch.float32, photos: int = 4) -> Batches:
    pixels = torch.rand(len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    records = [Record(f"{i}", None, each, "train", "made up") for i, each in enumerate(CAPTIONS)]
    return Batches(
        records, captioner.vocabulary, lambda positions: pixels[list(positions)], photos=photos, captions=2, trunk=False
    )


class Reading(CrossEntropy):
    """Remembers what the forced pass read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[Tensor] = []

    def __call__(self, captioner: Any, batch: Any) -> Any:
        self.read.append(batch.tokens)
        return super().__call__(captioner, batch)


def read(captioner: Captioner, batch: Batch, chance: float, step: int = 0, seed: int = 0) -> Tensor:
    base = Reading()
    ScheduledSampling(base, lambda _: chance).at(step, seed)(captioner, batch)
    return base.read[0]


def test_with_probability_zero_the_captions_words_are_read_and_with_one_none_of_them_is_safe() -> None:
    captioner = tiny_captioner()
    batch = make_batches(captioner).batch(0)
    assert torch.equal(read(captioner, batch, 0.0), batch.tokens)
    mixed = read(captioner, batch, 1.0)
    fixed = (batch.tokens == captioner.vocabulary.start_id) | (batch.tokens == captioner.vocabulary.pad_id)
    assert torch.equal(mixed[fixed], batch.tokens[fixed])
    assert (mixed[~fixed] > captioner.vocabulary.unk_id).all()
    assert (mixed[~fixed] != batch.tokens[~fixed]).float().mean() > 0.5


def test_about_the_asked_share_of_words_is_replaced() -> None:
    captioner = tiny_captioner()
    batch = make_batches(captioner).batch(0)
    real = batch.tokens > captioner.vocabulary.unk_id

    def changed(chance: float) -> float:
        steps = [(read(captioner, batch, chance, step) != batch.tokens)[real] for step in range(60)]
        return float(torch.cat(steps).float().mean())

    # What is drawn is at times the very word that stands there, equally often for each chance.
    assert changed(0.25) / changed(1.0) == pytest.approx(0.25, abs=0.05)


def test_what_is_drawn_is_what_the_model_says_after_the_mixed_words() -> None:
    captioner = tiny_captioner(decoder="attention-lstm.v1")
    with torch.no_grad():  # so sure of itself that chance decides nothing
        for parameter in captioner.decoder.parameters():  # type: ignore[attr-defined]
            parameter.mul_(20)
    batch = make_batches(captioner).batch(0)
    mixed = read(captioner, batch, 0.5, step=3)
    with torch.no_grad():
        logits = captioner(batch.inputs, mixed).logits[:, :-1]
    logits[..., :4] = -math.inf
    changed = mixed[:, 1:] != batch.tokens[:, 1:]
    assert changed.sum() > 3
    assert (logits.argmax(2) == mixed[:, 1:])[changed].float().mean() > 0.9


def test_chance_follows_seed_step_and_photo_and_not_the_batch() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    batch = batches.batch(0)
    assert isinstance(batch.inputs, Tensor)
    mixed = read(captioner, batch, 0.5, 4, 2)
    torch.rand(5)
    assert torch.equal(mixed, read(captioner, batch, 0.5, 4, 2))
    assert not torch.equal(mixed, read(captioner, batch, 0.5, 5, 2))
    assert not torch.equal(mixed, read(captioner, batch, 0.5, 4, 3))
    last = batch._replace(
        inputs=batch.inputs[3:],
        tokens=batch.tokens[6:],
        targets=batch.targets[6:],
        weights=batch.weights[6:],
        photos=batch.photos[3:],
    )
    assert torch.equal(mixed[6:], read(captioner, last, 0.5, 4, 2))


def test_the_loss_is_that_of_the_forced_pass_over_the_mixed_words() -> None:
    captioner = tiny_captioner(decoder="attention-lstm.v1").double()
    batch = make_batches(captioner, torch.float64).batch(0)
    base = Reading()
    terms = ScheduledSampling(base, lambda _: 0.5).at(2, 0)(captioner, batch)
    log_probs = captioner(batch.inputs, base.read[0]).logits.log_softmax(-1)
    expected, count = 0.0, 0
    for row in range(len(batch.tokens)):
        for place in range(batch.tokens.shape[1]):
            if batch.weights[row, place]:
                expected -= float(log_probs[row, place, batch.targets[row, place]].detach())
                count += 1
    assert float(terms["cross_entropy"].sum.detach()) == pytest.approx(expected, rel=1e-9)
    assert terms["cross_entropy"].weight == terms["sampled"].weight == count
    assert float(terms["sampled"].sum) / count == 0.5


def test_it_goes_around_doubly_stochastic_attention() -> None:
    captioner = tiny_captioner(decoder="attention-lstm.v1")
    batch = make_batches(captioner).batch(0)
    objective = ScheduledSampling(DoublyStochastic(CrossEntropy()), LinearRise(0.5, 10)).at(10, 0)
    terms = objective(captioner, batch)
    assert list(terms) == list(objective.weights(batch)) == ["cross_entropy", "doubly_stochastic", "sampled"]
    assert {name: term.weight for name, term in terms.items()} == objective.weights(batch)


def test_ten_steps_equal_five_and_a_reload_and_five_to_the_bit() -> None:
    def fresh() -> tuple[Captioner, Trainer]:
        captioner = tiny_captioner(dropout=0.4)
        objective = ScheduledSampling(CrossEntropy(0.1), InverseSigmoidRise(1.0, 4))
        return captioner, Trainer(captioner, objective, torch.optim.AdamW(captioner.parameters(), lr=1e-2), seed=5)

    model, whole = fresh()
    batches = make_batches(model, photos=2)
    expected = [(r.loss, r.notes["sampled"]) for r in islice(whole.steps(batches), 10)]
    assert expected[0][1] < expected[4][1] < expected[9][1]
    first_model, first = fresh()
    found = [(r.loss, r.notes["sampled"]) for r in islice(first.steps(batches), 5)]
    buffer = io.BytesIO()
    torch.save({"trainer": first.state_dict(), "model": first_model.state_dict()}, buffer)
    second_model, second = fresh()
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    second_model.load_state_dict(state["model"])
    second.load_state_dict(state["trainer"])
    found += [(r.loss, r.notes["sampled"]) for r in islice(second.steps(batches), 5)]
    assert found == expected
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second_model.parameters(), strict=True))


def test_the_schedules_rise_as_their_formulas_say() -> None:
    assert [LinearRise(0.4, 8)(step) for step in (0, 2, 4, 8, 9)] == pytest.approx([0, 0.1, 0.2, 0.4, 0.4])
    for middle in (1, 10, 5_000, 10**8):
        rise = InverseSigmoidRise(0.6, middle)
        assert rise(middle) == pytest.approx(0.3, rel=1e-6)
        assert 0 <= rise(0) < rise(middle // 2 + 1) <= 0.6
        assert rise(10**9 + middle) <= 0.6
    k = 10.0  # k ln k = 23.03
    rise = InverseSigmoidRise(1.0, 23)
    for step in (0, 10, 40):
        assert rise(step) == pytest.approx(1 - k / (k + math.exp(step / k)), abs=2e-3)
    for bad in (lambda: LinearRise(1.5, 3), lambda: LinearRise(0.5, 0), lambda: InverseSigmoidRise(0.5, 0)):
        with pytest.raises(ArgumentError):
            bad()
    for schedule in (LinearRise(0.5, 3), InverseSigmoidRise(0.5, 3)):
        with pytest.raises(ArgumentError, match="from 0"):
            schedule(-1)


def test_clumsy_settings_are_refused() -> None:
    captioner = tiny_captioner()
    batch = make_batches(captioner).batch(0)
    with pytest.raises(ArgumentError, match="function of the step"):
        ScheduledSampling(CrossEntropy(), 0.25)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="probability of scheduled sampling"):
        ScheduledSampling(CrossEntropy(), lambda step: 1.5)(captioner, batch)
    with pytest.raises(ArgumentError, match=r"batch\.photos"):
        ScheduledSampling(CrossEntropy(), lambda step: 0.5)(captioner, batch._replace(photos=()))

    class Bare(nn.Module):
        def forward(self, *_: Any, **__: Any) -> Forced:
            raise AssertionError

    with pytest.raises(ArgumentError, match="takes a Captioner"):
        ScheduledSampling(CrossEntropy(), lambda step: 0.5)(Bare(), batch)
