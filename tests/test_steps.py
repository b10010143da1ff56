"""What a step can do beside the plain one: averaged weights, float16, fewer photos at a time, torch.compile."""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import subprocess
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.data import Augmentation, Augmented, Batch, Batches, ImageInputs, Record
from showtell.errors import ArgumentError, RunError
from showtell.protocols import Features
from showtell.testing import tiny_captioner
from showtell.training import CrossEntropy, ScheduledSampling, StepReport, Term, Trainer
from showtell.training.average import WeightAverage
from showtell.training.room import out_of_memory
from test_fine_tuning import Photos, normed_captioner

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


def photos_of(count: int, slots: int = 2, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch of the tiny captioner's photos, captions of different lengths, one slot empty."""
    draw = torch.Generator().manual_seed(5)
    tokens = torch.randint(4, 20, (count * slots, 6), generator=draw)
    weights = (torch.arange(6) < torch.randint(2, 7, (count * slots, 1), generator=draw)).to(dtype)
    weights[-1] = 0
    return Batch(torch.rand(count, 3, 32, 32, generator=draw).to(dtype), tokens, tokens.roll(-1, 1), weights, False)


class Same:
    def __init__(self, *batches: Batch) -> None:
        self.batches = batches

    def batch(self, number: int) -> Batch:
        return self.batches[number % len(self.batches)]


def trained(
    captioner: Captioner, source: Any, steps: int, **options: Any
) -> tuple[list[StepReport], Trainer, list[Tensor]]:
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2)
    trainer = Trainer(captioner, options.pop("objective", CrossEntropy()), optimizer, **options)
    reports = list(islice(trainer.steps(source), steps))
    return reports, trainer, [p.detach().clone() for p in captioner.parameters()]


# --- averaged weights -------------------------------------------------------------------------------------------------


def test_the_average_follows_its_formula_and_is_there_for_a_while_only() -> None:
    captioner = tiny_captioner()
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.5)
    trainer = Trainer(captioner, CrossEntropy(), optimizer, ema_decay=0.2)
    with trainer.averaged():
        before = [p.clone() for p in captioner.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))
    steps = trainer.steps(Same(photos_of(3)))
    seen = [[p.detach().double().clone() for p in captioner.parameters()] for _ in islice(steps, 4)]
    expected = seen[0]
    for kept, weights in zip((2 / 11, 0.2, 0.2), seen[1:], strict=True):  # (1 + 1) / (10 + 1); 3/12 and 4/13 are more
        expected = [kept * a + (1 - kept) * w for a, w in zip(expected, weights, strict=True)]
    addresses = [p.data_ptr() for p in captioner.parameters()]
    with trainer.averaged():
        for p, value in zip(captioner.parameters(), expected, strict=True):
            torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)
        assert [p.data_ptr() for p in captioner.parameters()] == addresses
    for p, value in zip(captioner.parameters(), seen[-1], strict=True):
        assert torch.equal(p.detach().double(), value)


def test_the_statistics_of_batch_norms_are_averaged_and_their_counters_are_not() -> None:
    captioner = normed_captioner()
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.0)
    trainer = Trainer(captioner, CrossEntropy(), optimizer, ema_decay=0.5)
    means = [captioner.encoder.low[1].running_mean.clone() for _ in islice(trainer.steps(Photos()), 2)]
    with trainer.averaged():
        norm = captioner.encoder.low[1]
        torch.testing.assert_close(norm.running_mean, 2 / 11 * means[0] + 9 / 11 * means[1])
        assert int(norm.num_batches_tracked) == 2
    assert torch.equal(captioner.encoder.low[1].running_mean, means[1])


def test_weights_come_back_when_using_their_average_fails() -> None:
    layer = nn.Linear(2, 2)
    average = WeightAverage(layer, layer.parameters(), 0.9)
    average.update()
    nn.init.ones_(layer.weight)
    seen = []
    with contextlib.suppress(ZeroDivisionError), average.applied():
        seen.append(layer.weight.detach().clone())
        1 / 0  # noqa: B018
    assert not torch.equal(seen[0], torch.ones(2, 2))
    assert torch.equal(layer.weight, torch.ones(2, 2))


def test_an_average_of_half_precision_weights_is_kept_in_float32() -> None:
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    average = WeightAverage(layer, layer.parameters(), 0.999999)
    values = [1.0, *[1.0 + 2**-7] * 40]
    expected = 1.0
    for count, value in enumerate(values):
        nn.init.constant_(layer.weight, value)
        average.update()
        kept = (1 + count) / (10 + count)
        expected = value if count == 0 else kept * expected + (1 - kept) * value
    assert average.state_dict()["average"]["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_an_average_of_another_model_is_refused() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 3)
    average = WeightAverage(first, first.parameters(), 0.9)
    average.update()
    with pytest.raises(ArgumentError, match="another model"):
        WeightAverage(second, second.parameters(), 0.9).load_state_dict(average.state_dict())
    with pytest.raises(ArgumentError, match="decay"):
        WeightAverage(first, first.parameters(), 1.0)
    plain = trained(tiny_captioner(), Same(photos_of(1)), 1)[1].state_dict()
    with pytest.raises(ArgumentError, match="step and optimizer and average, not"):
        trained(tiny_captioner(), Same(photos_of(1)), 1, ema_decay=0.9)[1].load_state_dict(plain)


# --- float16 ----------------------------------------------------------------------------------------------------------


class Overflowing(CrossEntropy):
    """Cross entropy whose gradient is infinite the first `times` times, or from a call number on."""

    def __init__(self, when: Callable[[int], bool]) -> None:
        super().__init__()
        self.when, self.calls = when, 0

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        self.calls += 1
        (name, term), = super().__call__(captioner, batch).items()  # fmt: skip
        if self.when(self.calls):
            bias = next(captioner.decoder.parameters()).flatten()[:1]
            term = term._replace(sum=term.sum + (bias - bias.detach()).sqrt().sum())
        return {name: term}


def test_float16_learns_what_float32_learns() -> None:
    plain, _, _ = trained(tiny_captioner(), Same(photos_of(4)), 15)
    half, trainer, weights = trained(tiny_captioner(), Same(photos_of(4)), 15, precision="fp16")
    assert half[0].loss == pytest.approx(plain[0].loss, rel=5e-3)
    assert half[-1].loss < 0.8 * half[0].loss
    assert half[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=0.02)  # the scale is taken out again
    assert {w.dtype for w in weights} == {torch.float32}
    assert trainer.skipped == 0


def test_a_step_that_overflows_is_skipped_counted_and_halves_the_scale() -> None:
    captioner = tiny_captioner()
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2)
    objective = Overflowing(lambda call: call in (2, 3))
    trainer = Trainer(captioner, objective, optimizer, precision="fp16", ema_decay=0.9)
    steps = trainer.steps(Same(photos_of(2)))
    next(steps)
    kept = [p.detach().clone() for p in captioner.parameters()]
    report = next(steps)
    assert (report.step, report.skipped) == (2, 1)
    assert not math.isfinite(report.grad_norm)
    assert next(steps).skipped == 2
    assert all(torch.equal(a, b) for a, b in zip(kept, captioner.parameters(), strict=True))
    state = trainer.state_dict()
    assert state["scale"]["scaler"]["scale"] == 65536 / 4
    assert state["scale"]["skipped"] == 2
    assert state["average"]["count"] == 1
    assert next(steps).skipped == 2
    assert not all(torch.equal(a, b) for a, b in zip(kept, captioner.parameters(), strict=True))
    again = Trainer(tiny_captioner(), objective, optimizer, precision="fp16", ema_decay=0.9)
    again.load_state_dict(state)
    assert (again.skipped, again.state_dict()["scale"]) == (2, state["scale"])


def test_gradients_that_no_scale_can_mend_end_the_run() -> None:
    captioner = tiny_captioner()
    before = [p.detach().clone() for p in captioner.parameters()]
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2)
    trainer = Trainer(captioner, Overflowing(lambda call: True), optimizer, precision="fp16")
    steps = trainer.steps(Same(photos_of(1)))
    assert [next(steps).skipped for _ in range(16)] == [*range(1, 17)]  # 65536 is 2 to the 16th
    with pytest.raises(RunError, match="step 17: the gradient is"):
        next(steps)
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))


def test_float16_wants_float32_weights() -> None:
    captioner = tiny_captioner().double()
    with pytest.raises(ArgumentError, match=r"float32 weights, not torch.float64"):
        Trainer(captioner, CrossEntropy(), torch.optim.SGD(captioner.parameters(), lr=0.1), precision="fp16")


# --- memory -----------------------------------------------------------------------------------------------------------


class Cramped(CrossEntropy):
    """Cross entropy in a memory that holds `room` photos."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        super().__init__()
        self.room, self.error, self.sizes = room, error or torch.OutOfMemoryError(FULL), list[int]()

    def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
        count = len(batch.inputs) if isinstance(batch.inputs, Tensor) else len(batch.inputs.pooled)
        self.sizes.append(count)
        terms = super().__call__(captioner, batch)
        if count > self.room:
            raise self.error
        return terms


def test_eight_photos_are_four_and_four_or_smaller_and_the_step_is_the_same() -> None:
    source = Same(photos_of(8, dtype=torch.float64), photos_of(5, dtype=torch.float64))
    _, _, expected = trained(tiny_captioner().double(), source, 3, accumulate=2, clip_norm=0.5)
    for room, at_once, sizes in (
        (8, None, [8, 5]),
        (4, 4, [8, 4, 4, 4, 1]),
        (3, 2, [8, 4, 2, 2, 2, 2, 2, 2, 1]),
        (1, 1, [8, 4, 2] + [1] * 13),
    ):
        objective = Cramped(room)
        reports, trainer, found = trained(
            tiny_captioner().double(), source, 3, accumulate=2, clip_norm=0.5, objective=objective
        )
        assert objective.sizes[: len(sizes)] == sizes
        assert [r.photos_at_once for r in reports] == [at_once] * 3  # tried once, remembered
        assert trainer.photos_at_once == at_once
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_features_of_a_cache_are_cut_with_their_masks_and_captions() -> None:
    grid = torch.randn(5, 4, 8)
    mask = torch.arange(4) < torch.tensor([[4], [1], [2], [3], [4]])
    features = Features(torch.randn(5, 8), grid, mask, torch.rand(5, 4, 4))
    batch = photos_of(5)._replace(inputs=features, trunk=True)
    part = batch.part(1, 3)
    assert part.photo_count == 2
    assert torch.equal(part.tokens, batch.tokens[2:6])
    assert torch.equal(part.inputs.mask, mask[1:3])
    assert part.trunk
    captioner = tiny_captioner(decoder="attention-lstm.v1").double()
    wide = Features(features.pooled.double(), grid.double(), mask, features.boxes)
    whole = Same(batch._replace(inputs=wide, weights=batch.weights.double()))
    _, _, expected = trained(captioner, whole, 2)
    other = tiny_captioner(decoder="attention-lstm.v1").double()
    for a, b in zip(expected, trained(other, whole, 2, objective=Cramped(2))[2], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_a_step_begun_again_counts_its_batch_norms_once() -> None:
    one, two = Photos().batch(1).part(0, 2), Photos().batch(2)
    four = two._replace(
        inputs=torch.cat([two.inputs, one.inputs[:1]]),  # type: ignore[list-item, index]
        tokens=torch.cat([two.tokens, one.tokens[:2]]),
        targets=torch.cat([two.targets, one.targets[:2]]),
        weights=torch.ones(8, 5),
    )
    # The two photos fit and are counted, the four don't: the step begins again with 2, 2 and 2.
    cramped, plain = normed_captioner(), normed_captioner()
    objective = Cramped(3)
    reports, _, found = trained(cramped, Same(one, four), 1, accumulate=2, objective=objective)
    assert (objective.sizes, reports[0].photos_at_once) == ([2, 4, 2, 2, 2], 2)
    _, _, expected = trained(plain, Same(one, four.part(0, 2), four.part(2, 4)), 1, accumulate=3)
    assert int(plain.encoder.low[1].num_batches_tracked) == 3
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(cramped.state_dict()[name], tensor)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


def test_photos_that_are_drawn_for_are_counted_once_by_batch_norms() -> None:
    batch = Photos().batch(0)._replace(photos=(0, 1, 2))
    objective = ScheduledSampling(CrossEntropy(), lambda step: 0.5)
    plain, drawn = normed_captioner(), normed_captioner()
    trained(plain, Same(batch), 1)
    trained(drawn, Same(batch), 1, objective=objective)
    for found, expected in zip(drawn.encoder.low[1].buffers(), plain.encoder.low[1].buffers(), strict=True):
        assert torch.equal(found, expected)
    counts = [t for name, t in drawn.encoder.state_dict().items() if name.endswith("num_batches_tracked")]
    assert list(map(int, counts)) == [1, 1, 1]


def test_when_one_photo_is_too_much_three_fixes_are_named() -> None:
    captioner = tiny_captioner()
    optimizer = torch.optim.SGD(captioner.parameters(), lr=0.1)
    before = [p.detach().clone() for p in captioner.parameters()]
    objective = Cramped(0)
    with pytest.raises(RunError, match="even with one photo at a time") as caught:
        next(Trainer(captioner, objective, optimizer).steps(Same(photos_of(4))))
    text = str(caught.value)
    assert all(
        fix in text for fix in ("(1)", 'precision = "bf16"', "(2)", "max_length", "(3)", "train_encoder = false")
    )
    assert FULL in text
    assert objective.sizes == [4, 2, 1]
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))


def test_a_batch_of_ones_own_that_cannot_be_cut_is_said_to_be_so() -> None:
    class Plain(tuple):
        inputs, tokens, targets, weights, trunk = photos_of(2)[:5]

    captioner = tiny_captioner()
    trainer = Trainer(captioner, Cramped(1), torch.optim.SGD(captioner.parameters(), lr=0.1))
    with pytest.raises(RunError, match=r"can't be cut \(it has no `photo_count`"):
        next(trainer.steps(Same(Plain())))  # type: ignore[arg-type]


def test_only_a_lack_of_memory_counts_as_one() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError(FULL))
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    for other in (RuntimeError("out of memory, said a poem"), ValueError(FULL), RunError("CUDA error: out of memory")):
        assert not out_of_memory(other)
    captioner = tiny_captioner()
    objective = Cramped(1, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        next(Trainer(captioner, objective, torch.optim.SGD(captioner.parameters(), lr=0.1)).steps(Same(photos_of(2))))
    assert objective.sizes == [2]


def test_a_lack_of_memory_for_the_optimizer_is_said_to_be_that() -> None:
    class Large(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise torch.OutOfMemoryError(FULL)

    captioner = tiny_captioner()
    with pytest.raises(RunError, match="optimizer's own numbers"):
        next(Trainer(captioner, CrossEntropy(), Large(captioner.parameters(), lr=0.1)).steps(Same(photos_of(2))))


# --- all at once ------------------------------------------------------------------------------------------------------


def all_on(stop: int | None, cramped_from: int = 99) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Weights, averaged weights and losses of ten steps with augmentation, dropout, averages and a late trunk; after
    `stop` steps everything is saved and made anew."""
    draw = torch.Generator().manual_seed(8)
    records = [
        Record(f"{i}", torch.rand(3, 40, 50, generator=draw), ("a dog runs", "a red ball"), "train", "")
        for i in range(5)
    ]
    plan = Augmentation(flip=0.5, crop_area=0.5, squash=1.3, brightness=0.3, contrast=0.3, saturation=0.3)

    class FromSome(CrossEntropy):
        def __call__(self, captioner: Any, batch: Any) -> dict[str, Term]:
            if trainer.step_count >= cramped_from and len(batch.inputs) > 1:
                raise torch.OutOfMemoryError(FULL)
            return super().__call__(captioner, batch)

    def fresh() -> tuple[Captioner, Trainer, Batches]:
        captioner = tiny_captioner(dropout=0.5)
        captioner.encoder.requires_grad_(True)
        augmented = Augmented(plan, records, captioner.encoder.image_spec, seed=6)
        batches = Batches(
            records, captioner.vocabulary, ImageInputs(records, augmented.spec), photos=2, captions=1, seed=6,
            trunk=False, augment=augmented,
        )  # fmt: skip
        return captioner, Trainer(
            captioner, FromSome(0.1), torch.optim.AdamW(captioner.parameters(), lr=1e-2), accumulate=2, seed=6,
            ema_decay=0.9, late={4: list(captioner.encoder.body.parameters())},
        ), batches  # fmt: skip

    captioner, trainer, batches = fresh()
    losses = []
    for number in range(1, 11):
        losses.append(next(trainer.steps(batches)).loss)
        if number == stop:
            buffer = io.BytesIO()
            torch.save([captioner.state_dict(), trainer.state_dict()], buffer)
            torch.rand(3)
            captioner, trainer, batches = fresh()
            weights, state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
            captioner.load_state_dict(weights)
            trainer.load_state_dict(state)
    raw = [p.detach().clone() for p in captioner.parameters()]
    with trainer.averaged():
        return raw, [p.detach().clone() for p in captioner.parameters()], losses


@pytest.mark.parametrize("cramped_from", [99, 2, 7])
def test_ten_steps_are_five_and_a_restart_and_five_to_the_bit_with_everything_on(cramped_from: int) -> None:
    raw, averaged, losses = all_on(None, cramped_from)
    again, averaged_again, losses_again = all_on(5, cramped_from)
    assert losses == losses_again
    assert all(torch.equal(a, b) for a, b in zip(raw, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(averaged, averaged_again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(raw, averaged, strict=True))
    assert len(set(losses)) == 10


# --- torch.compile ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
def test_a_compiled_model_keeps_the_captioner_and_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []
    real = torch.compile

    def eager(model: nn.Module) -> Any:
        asked.append(model)
        return real(model, backend="eager")

    monkeypatch.setattr(torch, "compile", eager)
    captioner, plain = tiny_captioner(), tiny_captioner()
    names = list(captioner.state_dict())
    reports, _, found = trained(captioner, Same(photos_of(2), photos_of(3)), 3, compiled=True)
    assert asked == [captioner]
    assert list(captioner.state_dict()) == names == list(captioner.save_pieces(weights_dtype="float32")["tensors"])
    expected_reports, _, expected = trained(plain, Same(photos_of(2), photos_of(3)), 3)
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected_reports], rel=1e-5)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def compiler_works() -> bool:
    if shutil.which("g++") is None:
        return False
    return subprocess.run(["g++", "--version"], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not compiler_works(), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.filterwarnings("ignore")  # what the compiler says to itself
def test_training_with_the_real_compiler_gives_the_same_losses() -> None:
    reports, _, _ = trained(tiny_captioner(), Same(photos_of(2), photos_of(3)), 4, compiled=True)
    expected, _, _ = trained(tiny_captioner(), Same(photos_of(2), photos_of(3)), 4)
    assert [r.loss for r in reports] == pytest.approx([r.loss for r in expected], rel=1e-4)
    torch.compiler.reset()
