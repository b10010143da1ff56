from __future__ import annotations

import io
import math
from itertools import islice, pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from showtell.errors import ArgumentError, RunError
from showtell.protocols import Features, Forced
from showtell.training import CrossEntropy, Term, Trainer, WarmupCosine
from showtell.training.precision import at_hand

V, D, T = 11, 6, 5


class Piece(NamedTuple):
    inputs: Features
    tokens: Tensor
    targets: Tensor
    weights: Tensor
    trunk: bool = False


class Model(nn.Module):
    """The smallest thing that trains like a captioner: features and a word in, scores of the next word out."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.image = nn.Linear(D, 8)
        self.words = nn.Embedding(V, 8)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(8, V)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)

    def forward(self, features: Features, tokens: Tensor, *, trunk: bool = False) -> Forced:
        image = self.image(features.pooled).repeat_interleave(tokens.shape[0] // features.pooled.shape[0], 0)
        return Forced(self.out(self.drop(torch.tanh(self.words(tokens) + image[:, None]))))

    def save_pieces(self) -> dict[str, Any]:
        return {}


def photos(count: int, dtype: torch.dtype = torch.float32) -> list[Piece]:
    """Single photos with 1 to 3 real captions in 3 slots, of different lengths."""
    generator = torch.Generator().manual_seed(7)
    pieces = []
    for i in range(count):
        weights = torch.zeros(3, T)
        for k in range(1 + i % 3):
            weights[k, : 2 + (i + k) % 4] = 1
        pieces.append(
            Piece(
                Features(torch.randn(1, D, generator=generator).to(dtype)),
                torch.randint(V, (3, T), generator=generator),
                torch.randint(V, (3, T), generator=generator),
                weights,
            )
        )
    return pieces


def joined(pieces: list[Piece]) -> Piece:
    return Piece(
        Features(torch.cat([p.inputs.pooled for p in pieces])),
        *(torch.cat([getattr(p, name) for p in pieces]) for name in ("tokens", "targets", "weights")),
    )


class Listed:
    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces

    def batch(self, number: int) -> Piece:
        return self.pieces[number % len(self.pieces)]


def weights_after(model: Model, pieces: list[Piece], *, accumulate: int, steps: int = 3) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = Trainer(model, CrossEntropy(0.1), optimizer, accumulate=accumulate, clip_norm=0.5)
    for _ in islice(trainer.steps(Listed(pieces)), steps):
        pass
    return [p.detach().clone() for p in model.parameters()]


def test_eight_photos_at_once_or_three_and_five_or_one_by_one_give_the_same_step() -> None:
    eight = photos(8, torch.float64)
    expected = weights_after(Model().double(), [joined(eight)], accumulate=1)
    for parts in ([joined(eight[:3]), joined(eight[3:])], eight):
        found = weights_after(Model().double(), parts, accumulate=len(parts))
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_the_first_step_equals_one_written_out_by_hand() -> None:
    pieces = photos(3, torch.float64)
    model, twin = Model().double(), Model().double()
    trainer = Trainer(
        model, CrossEntropy(0.1), torch.optim.SGD(model.parameters(), lr=0.5), lambda step: 0.25, accumulate=3
    )
    report = next(trainer.steps(Listed(pieces)))
    total, count = torch.zeros((), dtype=torch.float64), 0
    for piece in pieces:
        log_probs = twin(piece.inputs, piece.tokens).logits.log_softmax(-1)
        for row in range(3):
            for t in range(T):
                if piece.weights[row, t]:
                    real = log_probs[row, t, piece.targets[row, t]]
                    total = total - 0.9 * real - 0.1 * log_probs[row, t].mean()
                    count += 1
    loss = total / count
    loss.backward()
    assert report.loss == pytest.approx(loss.item(), rel=1e-12)
    assert report.tokens == count
    assert report.learning_rate == 0.125
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in twin.parameters() if p.grad is not None))
    assert report.grad_norm == pytest.approx(norm, rel=1e-10)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert q.grad is not None
        torch.testing.assert_close(p.detach(), q.detach() - 0.125 * q.grad, rtol=1e-10, atol=1e-14)


def test_ten_steps_equal_five_and_a_reload_and_five_to_the_bit() -> None:
    pieces = [joined(photos(6)[i : i + 2]) for i in (0, 2, 4)]

    def fresh() -> tuple[Model, Trainer]:
        model = Model(dropout=0.4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return model, Trainer(model, CrossEntropy(0.1), optimizer, WarmupCosine(3, 10), accumulate=2, seed=5)

    whole_model, whole = fresh()
    whole_losses = [r.loss for r in islice(whole.steps(Listed(pieces)), 10)]
    first_model, first = fresh()
    losses = [r.loss for r in islice(first.steps(Listed(pieces)), 5)]
    buffer = io.BytesIO()
    torch.save({"trainer": first.state_dict(), "model": first_model.state_dict()}, buffer)
    torch.rand(3)  # the caller's own random numbers don't matter
    second_model, second = fresh()
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    second_model.load_state_dict(state["model"])
    second.load_state_dict(state["trainer"])
    losses += [r.loss for r in islice(second.steps(Listed(pieces)), 5)]
    assert losses == whole_losses
    assert second.step_count == 10
    for a, b in zip(whole_model.parameters(), second_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_dropout_follows_seed_and_step_and_leaves_the_callers_random_numbers_alone() -> None:
    model = Model(dropout=0.5)

    def losses(seed: int) -> list[float]:
        trainer = Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.0), seed=seed)
        return [r.loss for r in islice(trainer.steps(Listed([joined(photos(4))])), 3)]

    torch.manual_seed(3)
    before = torch.get_rng_state()
    found = losses(0)
    assert torch.equal(before, torch.get_rng_state())
    assert len(set(found)) == 3
    assert found == losses(0) != losses(1)


def test_the_schedule_rises_and_falls() -> None:
    schedule = WarmupCosine(warmup=4, total=12, floor=0.2)
    factors = [schedule(step) for step in range(14)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.6)
    assert factors[12] == factors[13] == pytest.approx(0.2)
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert WarmupCosine(0, 1)(0) == 1.0
    for bad in ((5, 4, 0.0), (-1, 4, 0.0), (0, 0, 0.0), (0, 4, 2.0)):
        with pytest.raises(ArgumentError):
            WarmupCosine(*bad)
    with pytest.raises(ArgumentError):
        schedule(-1)


def test_a_loss_that_is_not_a_number_names_the_step_and_keeps_the_weights() -> None:
    good, bad = photos(2)
    bad.inputs.pooled[0, 0] = math.nan
    model = Model()
    trainer = Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1))
    steps = trainer.steps(Listed([good, bad]))
    next(steps)
    kept = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RunError, match="step 2: the loss is nan"):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    assert trainer.step_count == 1


def test_an_infinite_gradient_is_refused() -> None:
    class Steep:
        def weights(self, batch: Piece) -> dict[str, float]:
            return {"steep": 1.0}

        def __call__(self, model: Model, batch: Piece) -> dict[str, Term]:
            return {"steep": Term((model.out.bias - model.out.bias.detach()).sum().sqrt(), 1.0)}

    model = Model()
    trainer = Trainer(model, Steep(), torch.optim.SGD(model.parameters(), lr=0.1), clip_norm=1.0)
    with pytest.raises(RunError, match="step 1: the gradient is"):
        next(trainer.steps(Listed(photos(1))))
    assert all(p.isfinite().all() for p in model.parameters())


def test_terms_are_divided_by_their_own_totals_and_weighed_by_their_factors() -> None:
    class Two:
        def weights(self, batch: Piece) -> dict[str, float]:
            return {"a": float(batch.weights.sum()), "b": 1.0}

        def __call__(self, model: Model, batch: Piece) -> dict[str, Term]:
            zero = model.out.bias.sum() * 0
            return {"a": Term(zero + 6.0, self.weights(batch)["a"]), "b": Term(zero + 10.0, 1.0, 0.5)}

    model = Model()
    one, two = photos(2)
    total = float(one.weights.sum() + two.weights.sum())
    trainer = Trainer(model, Two(), torch.optim.SGD(model.parameters(), lr=0.1), accumulate=2)
    report = next(trainer.steps(Listed([one, two])))
    assert report.terms == pytest.approx({"a": 12.0 / total, "b": 0.5 * 20.0 / 2})
    assert report.loss == pytest.approx(12.0 / total + 5.0)


def test_frozen_parts_stay_in_eval_mode_and_the_rest_trains() -> None:
    class Mixed(Model):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D), nn.Dropout(0.5)).requires_grad_(False)

        def forward(self, features: Features, tokens: Tensor, *, trunk: bool = False) -> Forced:
            assert not any(m.training for m in self.trunk.modules())
            assert self.drop.training
            return super().forward(Features(self.trunk(features.pooled)), tokens)

    model = Mixed()
    model.eval()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in islice(Trainer(model, CrossEntropy(), optimizer).steps(Listed([joined(photos(2))])), 2):
        model.eval()
    assert int(model.trunk[1].num_batches_tracked) == 0


def test_it_is_checked_before_step_1_that_the_captioner_can_be_saved() -> None:
    class Unsaveable(Model):
        def save_pieces(self) -> dict[str, Any]:
            raise ArgumentError("config() holds a lambda")

    model = Unsaveable()
    with pytest.raises(ArgumentError, match="lambda"):
        next(Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1)).steps(Listed([])))


def test_bf16_trains_and_keeps_float32_weights() -> None:
    model = Model()
    trainer = Trainer(model, CrossEntropy(), torch.optim.AdamW(model.parameters(), lr=3e-2), precision="bf16")
    reports = list(islice(trainer.steps(Listed([joined(photos(4))])), 15))
    assert reports[-1].loss < reports[0].loss
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_bf16_stays_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for capability, name in (("AVX512", "bf16"), ("SVE256", "bf16"), ("AVX2", "fp32"), ("DEFAULT", "fp32")):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        assert (at_hand("bf16", cpu), at_hand("bf16", gpu), at_hand("fp16", cpu)) == (name, "bf16", "fp16")


def test_clumsy_options_are_refused() -> None:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for options in (
        {"precision": "fp64"},
        {"accumulate": 0},
        {"accumulate": True},
        {"clip_norm": 0},
        {"clip_norm": math.nan},
        {"seed": -1},
    ):
        with pytest.raises(ArgumentError):
            Trainer(model, CrossEntropy(), optimizer, **options)
    with pytest.raises(ArgumentError):
        CrossEntropy(1.0)
    trainer = Trainer(model, CrossEntropy(), optimizer)
    with pytest.raises(ArgumentError, match="step and optimizer"):
        trainer.load_state_dict({"step": 1})
    other = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1).state_dict()
    with pytest.raises(ArgumentError, match="another optimizer"):
        trainer.load_state_dict({"step": 1, "optimizer": other})
    with pytest.raises(ArgumentError, match="nothing to train"):
        Trainer(Model().requires_grad_(False), CrossEntropy(), optimizer)


def test_batches_without_a_single_word_are_refused() -> None:
    empty = photos(1)[0]._replace(weights=torch.zeros(3, T))
    model = Model()
    with pytest.raises(RunError, match="no word to learn from"):
        next(Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1)).steps(Listed([empty])))


def test_an_error_while_making_a_batch_reaches_the_caller() -> None:
    class Broken:
        def batch(self, number: int) -> Piece:
            raise OSError(f"disk gone at {number}")

    model = Model()
    with pytest.raises(OSError, match="disk gone at 0"):
        next(Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1)).steps(Broken()))


def test_micro_batches_are_asked_for_by_number_in_order_without_gaps() -> None:
    asked: list[int] = []
    pieces = photos(3)

    class Watching:
        def batch(self, number: int) -> Piece:
            asked.append(number)
            return pieces[number % 3]

    model = Model()
    trainer = Trainer(model, CrossEntropy(), torch.optim.SGD(model.parameters(), lr=0.1), accumulate=3)
    steps = trainer.steps(Watching())
    assert [next(steps).step for _ in range(4)] == [1, 2, 3, 4]
    steps.close()
    assert asked[:12] == list(range(12))
    assert asked == sorted(asked)
    trainer.load_state_dict({"step": 40, "optimizer": trainer.optimizer.state_dict()})
    asked.clear()
    steps = trainer.steps(Watching())
    assert next(steps).step == 41
    steps.close()
    assert asked[:3] == [120, 121, 122]
