"""Self-critical training: the gradient is that of a plain loop, and nothing depends on how photos are spread."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.data import Batch, Batches, Record
from showtell.errors import ArgumentError, RunError
from showtell.generate import generate
from showtell.metrics import CiderD, DocumentFrequencies
from showtell.metrics.bleu import bleu_counts, bleu_of_counts
from showtell.protocols import Features
from showtell.search import Greedy
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.training import CrossEntropy, MixedReward, ScheduledSampling, SelfCritical, StepReport, Trainer
from showtell.training.drawing import without_dropout
from test_steps import compiler_works

CAPTIONS = (
    ("a dog runs on the grass", "a small dog on grass", "the dog runs"),
    ("two men ride a bike",),
    ("a girl in a blue shirt plays in the water", "a girl plays in water"),
    ("a red ball on the beach", "the red ball", "a ball", "a small red ball on the beach"),
    ("a dog and a red ball", "a small dog plays in the water"),
    ("two men on the beach", "men ride on a beach"),
    ("a blue bike", "the bike on the grass"),
    ("a girl and a dog", "the girl runs on the beach", "a girl"),
)
START, END, UNK = 1, 2, 3


class Inputs:
    """Pixels of photos by position, in any precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        self.pixels = torch.rand(len(CAPTIONS), 3, 32, 32, generator=generator).to(dtype)

    def __call__(self, positions: Sequence[int]) -> Tensor:
        return self.pixels[list(positions)]


def make_batches(captioner: Captioner, photos: int = 8, dtype: torch.dtype = torch.float32) -> Batches:
    records = [Record(f"{i}", None, each, "train", "made up") for i, each in enumerate(CAPTIONS)]
    return Batches(
        records, captioner.vocabulary, Inputs(dtype), photos=photos, captions=2, trunk=False
    ).with_references()


def cider(batches: Batches) -> CiderD:
    return CiderD(DocumentFrequencies.of(batches.references(range(len(CAPTIONS)))))


def picked(batches: Batches, captioner: Captioner, positions: Sequence[int], dtype: torch.dtype) -> Batch:
    """A batch of these photos in this order."""
    whole = batches.batch(0)
    rows = [whole.photos.index(position) for position in positions]
    slots = [2 * row + k for row in rows for k in range(2)]
    assert isinstance(whole.inputs, Tensor)
    return Batch(
        whole.inputs[rows],
        whole.tokens[slots],
        whole.targets[slots],
        whole.weights[slots],
        trunk=False,
        photos=tuple(positions),
        references=batches.references(positions),
    )


class Listed:
    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def batch(self, number: int) -> Batch:
        return self.batches[number % len(self.batches)]


def told(captioner: Captioner, captions: dict[int, Sequence[str]]) -> Any:
    """Injected captions: words of each photo by position; "!" at the end of a text: it isn't ended."""
    vocabulary = captioner.vocabulary

    def draw(_: Any, features: Features, photos: Sequence[int]) -> Tensor:
        size = max(len(text.split()) for texts in captions.values() for text in texts) + 1
        rows = []
        for photo in photos:
            for text in captions[photo]:
                ids = vocabulary.encode(text.removesuffix("!"))
                assert text == "" or UNK not in ids
                full = ids + [END] * (size - len(ids))
                if text.endswith("!"):
                    full = (ids * size)[:size]
                rows.append(full)
        return torch.tensor(rows).view(len(photos), -1, size)

    return draw


DRAWN: dict[int, Sequence[str]] = {
    0: ("a dog runs", "a dog on a", ""),
    1: ("two men ride a bike", "a ball", "two men on"),
    2: ("a girl plays in the water", "a girl", "girl girl girl!"),
    3: ("a red ball", "the beach", "a dog"),
    4: ("a dog", "a red ball", "a dog and a"),
    5: ("men", "two men on the beach", "a beach"),
    6: ("", "", "the blue bike"),
    7: ("a girl", "a dog", "the girl runs on the beach"),
}


def by_hand(
    captioner: Captioner, batch: Batch, captions: dict[int, Sequence[str]], reward: Any, temperature: float = 1.0
) -> Tensor:
    """The loss of one batch, by loops over photos, samples and steps."""
    vocabulary = captioner.vocabulary
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    for n, photo in enumerate(batch.photos):
        assert isinstance(batch.inputs, Tensor)
        assert batch.references is not None
        features = captioner.encoder(batch.inputs[n : n + 1])
        memory = captioner.decoder.prepare(features)
        drawn = told(captioner, captions)(None, features, [photo])[0].tolist()
        rewards, log_probs = [], []
        for row in drawn:
            row = row[: row.index(END) + 1] if END in row else row
            rewards.append(float(reward([row], [batch.references[n]])[0]))
            state = captioner.decoder.initial_state(memory, len(row))
            said, log_prob = START, torch.zeros((), dtype=torch.float64)
            for word in row:
                logits, state = captioner.decoder.step(torch.tensor([said]), state, memory)
                logits = logits / temperature
                allowed = [v for v in range(len(vocabulary)) if v not in (0, START, UNK)]
                log_prob = log_prob + logits[0, word] - logits[0, allowed].logsumexp(0)
                said = word
            log_probs.append(log_prob)
        for k in range(len(drawn)):
            others = [rewards[j] for j in range(len(drawn)) if j != k]
            total = total - (rewards[k] - sum(others) / len(others)) * log_probs[k]
            count += 1
    return total / count


@pytest.mark.parametrize("decoder", ["lstm.v1", "attention-lstm.v1", "transformer.v1"])
@pytest.mark.parametrize("trained", [True, False])
def test_the_gradient_is_that_of_plain_loops_over_photos_samples_and_steps(decoder: str, trained: bool) -> None:
    captioner = tiny_captioner(decoder=decoder, dropout=0.3).double().train()
    if not trained:
        cast(nn.Module, captioner.encoder).requires_grad_(False)
    batches = make_batches(captioner, dtype=torch.float64)
    batch, reward = batches.batch(0), cider(batches)
    objective = SelfCritical(reward, samples=3, temperature=0.7, draw=told(captioner, DRAWN))
    term = objective(captioner, batch)["self_critical"]
    assert term.weight == 24
    found = torch.autograd.grad(term.sum / term.weight, [p for p in captioner.parameters() if p.requires_grad])
    captioner.eval()
    expected = torch.autograd.grad(
        by_hand(captioner, batch, DRAWN, reward, 0.7), [p for p in captioner.parameters() if p.requires_grad]
    )
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_notes_are_worked_out_by_hand() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    batch = picked(batches, captioner, [0, 1], torch.float32)
    terms = SelfCritical(cider(batches), samples=3, draw=told(captioner, DRAWN))(captioner, batch)
    notes = {name: float(term.sum / term.weight) for name, term in terms.items() if term.factor is None}
    assert set(notes) == {"reward", "words", "bad_endings", "reference_words"}
    assert notes["words"] == pytest.approx((3 + 4 + 0 + 5 + 2 + 3) / 6)
    assert notes["bad_endings"] == pytest.approx(1 / 6)  # "a dog on a"; nothing ends in "on", which may be right
    assert notes["reference_words"] == pytest.approx(((6 + 5 + 3) / 3 + 5) / 2)


def test_the_end_token_is_part_of_the_reward() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    heard: list[Any] = []

    def reward(captions: Any, references: Any) -> list[float]:
        heard.append((captions, references))
        return [0.0] * len(captions)

    batch = picked(batches, captioner, [2], torch.float32)
    SelfCritical(reward, samples=3, draw=told(captioner, DRAWN))(captioner, batch)
    ids = captioner.vocabulary.encode
    (captions, references) = heard[0]
    assert captions == [
        [*ids("a girl plays in the water"), END],
        [*ids("a girl"), END],
        ids("girl") * 7,
    ]
    assert references == [tuple((*ids(text), END) for text in CAPTIONS[2])]
    score = cider(batches)
    ended, cut = [*ids("a girl plays in water"), END], ids("a girl plays in water")
    assert score([ended], references)[0] > score([cut], references)[0]


def test_rewards_equal_cider_d_worked_out_by_its_formula() -> None:
    references = [[[5, 6, END], [5, 7, END]], [[8, END]], [[5, END]]]
    reward = CiderD(DocumentFrequencies.of(references))
    n, photos = 4, 3
    df: dict[tuple[int, ...], int] = {(5,): 2, (6,): 1, (7,): 1, (8,): 1, (END,): 3}

    def grams(words: list[int], size: int) -> list[tuple[int, ...]]:
        return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]

    def vector(words: list[int], size: int) -> dict[tuple[int, ...], float]:
        found: dict[tuple[int, ...], float] = {}
        for gram in grams(words, size):
            seen = df.get(gram, 1)
            if size > 1:
                seen = max(1, sum(any(gram in grams(c, size) for c in photo) for photo in references))
            found[gram] = found.get(gram, 0.0) + math.log(photos) - math.log(seen)
        return found

    def similarity(one: list[int], two: list[int]) -> float:
        total = 0.0
        for size in range(1, n + 1):
            a, b = vector(one, size), vector(two, size)
            norms = math.sqrt(sum(v * v for v in a.values()) * sum(v * v for v in b.values()))
            if norms:
                total += sum(min(a[g], b[g]) * b[g] for g in a.keys() & b.keys()) / norms
        return total / n * math.exp(-((len(one) - len(two)) ** 2) / 72)

    for candidate in ([5, 6, END], [5, 7], [END], [5, 5, 7, END]):
        expected = 10 * sum(similarity(candidate, each) for each in references[0]) / 2
        found = reward([candidate, [8, END], [5, END]], references)[0]
        assert found == pytest.approx(expected, rel=1e-12)


def test_bleu_and_length_are_added_to_cider_d() -> None:
    references = [[[5, 6, 7, 8, END], [5, 7, END]], [[8, 9, END]]]
    score = CiderD(DocumentFrequencies.of(references))
    captions = [[5, 6, 7, 8, END], [END], [8, 9, 9, 9, 9, END], [8, 9, END]]
    plain = score(captions, references)
    bleu = [
        float(bleu_of_counts(bleu_counts([caption], [references[i // 2]]))[0, 3]) for i, caption in enumerate(captions)
    ]
    found = MixedReward(score, bleu=2.0, length=0.25)(captions, references)
    odd = [0, 2, 3, 0]  # END alone: 1 token, the shortest has 3
    for row in range(4):
        assert found[row] == pytest.approx(plain[row] + 2 * bleu[row] - 0.25 * odd[row])
    assert (MixedReward(score)(captions, references) == plain).all()
    with pytest.raises(ArgumentError, match="bleu"):
        MixedReward(score, bleu=-1.0)
    with pytest.raises(ArgumentError, match="CiderD"):
        MixedReward("cider")  # type: ignore[arg-type]


def test_the_greedy_baseline_is_the_reward_of_the_greedy_caption() -> None:
    captioner = tiny_captioner(dropout=0.4).train()
    batches = make_batches(captioner)
    batch, score = batches.batch(0), cider(batches)
    objective = SelfCritical(score, samples=1, baseline="greedy", max_length=9)
    terms = objective(captioner, batch)
    assert cast(nn.Module, captioner.decoder).training
    captioner.eval()
    assert isinstance(batch.inputs, Tensor)
    expected = 0.0
    for n in range(8):
        features = captioner.encoder(batch.inputs[n : n + 1])
        found = generate(captioner.decoder, features, Greedy(max_length=9))
        assert batch.references is not None
        expected += float(score([found.tokens[0, 0, : found.lengths[0, 0]].tolist()], [batch.references[n]])[0])
    assert terms["baseline"].weight == 8
    assert float(terms["baseline"].sum) == pytest.approx(expected, rel=1e-6)
    assert set(terms) == set(objective.weights(batch))


def weights_after(parts: list[Batch], objective: Any, *, steps: int = 2) -> list[Tensor]:
    captioner = tiny_captioner(decoder="attention-lstm.v1").double()
    trainer = Trainer(
        captioner,
        objective(captioner),
        torch.optim.AdamW(captioner.parameters(), lr=1e-2),
        accumulate=len(parts),
        clip_norm=0.5,
    )
    for _ in islice(trainer.steps(Listed(parts)), steps):
        pass
    return [p.detach().clone() for p in captioner.parameters()]


@pytest.mark.parametrize("injected", [True, False])
def test_eight_photos_at_once_or_three_and_five_or_one_by_one_give_the_same_step(injected: bool) -> None:
    captioner = tiny_captioner().double()
    batches = make_batches(captioner, dtype=torch.float64)
    score = cider(batches)

    def objective(model: Captioner) -> SelfCritical:
        return SelfCritical(score, samples=3, draw=told(model, DRAWN) if injected else None)

    order = [3, 1, 4, 0, 5, 2, 7, 6]
    whole = [picked(batches, captioner, order, torch.float64)]
    expected = weights_after(whole, objective)
    assert any(not torch.equal(a, b) for a, b in zip(expected, tiny_captioner().double().parameters(), strict=False))
    for cuts in ([order[:3], order[3:]], [[one] for one in order]):
        parts = [picked(batches, captioner, cut, torch.float64) for cut in cuts]
        for a, b in zip(expected, weights_after(parts, objective), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_what_is_drawn_follows_seed_step_and_photo_and_not_the_batch() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    heard: list[list[list[int]]] = []

    def reward(captions: Any, references: Any) -> list[float]:
        heard.append(captions)
        return [0.0] * len(captions)

    objective = SelfCritical(reward, samples=2)

    def drawn(positions: list[int], step: int, seed: int) -> list[list[int]]:
        objective.at(step, seed)(captioner, picked(batches, captioner, positions, torch.float32))
        return heard[-1]

    both = drawn([4, 6], 7, 1)
    assert drawn([6, 4], 7, 1) == both[2:] + both[:2]
    assert drawn([6], 7, 1) == both[2:]
    torch.rand(3)
    assert drawn([4, 6], 7, 1) == both
    assert drawn([4, 6], 8, 1) != both
    assert drawn([4, 6], 7, 2) != both
    assert all(UNK not in caption for caption in both)


def test_a_low_temperature_draws_what_greedy_search_finds() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    heard: list[list[list[int]]] = []

    def reward(captions: Any, references: Any) -> list[float]:
        heard.append(captions)
        return [0.0] * len(captions)

    with torch.no_grad():
        for parameter in captioner.decoder.parameters():  # random weights are as flat as can be
            parameter.mul_(10.0)
    for temperature in (0.01, 1.0):
        objective = SelfCritical(reward, samples=3, baseline="greedy", temperature=temperature, max_length=6)
        objective(captioner, batches.batch(0))
    (cold, greedy), (warm, _) = heard[:2], heard[2:]
    assert cold == [caption for caption in greedy for _ in range(3)]
    assert warm != cold


def test_ten_steps_equal_five_and_a_reload_and_five_to_the_bit() -> None:
    def fresh() -> tuple[Captioner, Trainer, Batches]:
        captioner = tiny_captioner(dropout=0.4)
        batches = make_batches(captioner, photos=3)
        objective = SelfCritical(cider(batches), samples=3, baseline="greedy")
        optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-2)
        return captioner, Trainer(captioner, objective, optimizer, accumulate=2, seed=5), batches

    def run(trainer: Trainer, batches: Batches, count: int) -> list[Any]:
        return [(r.loss, dict(r.notes), r.grad_norm) for r in islice(trainer.steps(batches), count)]

    whole_model, whole, batches = fresh()
    expected = run(whole, batches, 10)
    first_model, first, batches = fresh()
    found = run(first, batches, 5)
    buffer = io.BytesIO()
    torch.save({"trainer": first.state_dict(), "model": first_model.state_dict()}, buffer)
    torch.rand(3)
    second_model, second, batches = fresh()
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    second_model.load_state_dict(state["model"])
    second.load_state_dict(state["trainer"])
    found += run(second, batches, 5)
    assert found == expected
    for a, b in zip(whole_model.parameters(), second_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_without_dropout_the_mode_of_every_part_is_put_back_and_nothing_is_dropped() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, 2, dropout=0.5)
            self.drop = nn.Dropout(0.5)
            self.still = nn.Dropout(0.5).eval()

    stack = Stack()
    x = torch.ones(3, 2, 4)
    with without_dropout(stack):
        assert torch.equal(stack.lstm(x)[0], stack.lstm(x)[0])
        assert torch.equal(stack.drop(x), x)
        assert stack.lstm.training
    assert not torch.equal(stack.lstm(x)[0], stack.lstm(x)[0])
    assert stack.lstm.dropout == 0.5
    assert [m.training for m in stack.modules()] == [True, True, True, False]


def test_a_frozen_encoder_encodes_each_photo_once_and_takes_part_in_no_gradient() -> None:
    class Counting(TinyEncoder):
        seen = 0

        def forward(self, images: Tensor) -> Features:
            Counting.seen += len(images)
            return super().forward(images)

    plain = tiny_captioner()
    encoder = Counting().requires_grad_(False)
    captioner = Captioner(encoder, plain.decoder, plain.vocabulary)
    batches = make_batches(captioner)
    SelfCritical(cider(batches), samples=5, baseline="greedy")(captioner, batches.batch(0))
    assert Counting.seen == 8


def test_the_mean_reward_of_a_toy_rises_in_thirty_steps() -> None:
    captioner = tiny_captioner()
    cast(nn.Module, captioner.encoder).requires_grad_(True)
    batches = make_batches(captioner)
    words = Trainer(captioner, CrossEntropy(), torch.optim.Adam(captioner.parameters(), lr=2e-2))
    for _ in islice(words.steps(batches), 40):
        pass
    objective = SelfCritical(cider(batches), samples=16, max_length=10)
    trainer = Trainer(captioner, objective, torch.optim.Adam(captioner.parameters(), lr=1e-2))
    reports: list[StepReport] = list(islice(trainer.steps(batches), 30))
    rewards = [report.notes["reward"] for report in reports]
    assert sum(rewards[-5:]) > 1.3 * sum(rewards[:5])
    assert set(reports[0].terms) == {"self_critical"}


@pytest.mark.parametrize("low", ["bf16", "fp16"])
@pytest.mark.parametrize("drawn", [True, False])
def test_every_weight_has_its_gradient_under_autocast_too(drawn: bool, low: str) -> None:
    def gradients(precision: Any) -> Tensor:
        captioner = tiny_captioner(decoder="attention-lstm.v1")
        batches = make_batches(captioner)
        objective = (
            SelfCritical(cider(batches), samples=3, baseline="greedy", draw=told(captioner, DRAWN))
            if drawn
            else ScheduledSampling(CrossEntropy(), lambda step: 1e-9)
        )
        optimizer = torch.optim.SGD(captioner.parameters(), lr=0.0)
        steps = Trainer(captioner, objective, optimizer, precision=precision).steps(batches)
        next(report for number, report in enumerate(steps) if report.skipped <= number)  # a lower scale may be needed
        found = [p.grad for p in captioner.parameters() if p.requires_grad]
        assert all(grad is not None and bool(grad.any()) for grad in found)
        return torch.cat([grad.flatten() for grad in found if grad is not None])

    exact, rough = gradients("fp32"), gradients(low)
    assert torch.nn.functional.cosine_similarity(exact, rough, dim=0) > 0.98
    torch.testing.assert_close(exact.norm(), rough.norm(), rtol=0.05, atol=0.0)


@pytest.mark.parametrize("decoder", ["lstm.v1", "attention-lstm.v1", "transformer.v1"])
def test_in_float16_steps_are_taken_and_the_reward_is_of_captions_that_it_drew(decoder: str) -> None:
    captioner = tiny_captioner(decoder=decoder)
    batches = make_batches(captioner)
    before = [p.detach().clone() for p in captioner.parameters()]
    objective = SelfCritical(cider(batches), samples=3, baseline="greedy", max_length=8)
    optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-3)
    reports = list(islice(Trainer(captioner, objective, optimizer, precision="fp16").steps(batches), 4))
    assert all(math.isfinite(report.loss) and math.isfinite(report.notes["reward"]) for report in reports)
    assert reports[-1].skipped < 4
    assert {p.dtype for p in captioner.parameters()} == {torch.float32}
    assert any(not torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not compiler_works(), reason="torch.compile needs a C++ compiler on the CPU"),
            ],
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # what the compiler says to itself
def test_a_compiled_model_draws_and_learns_what_a_plain_one_does(
    monkeypatch: pytest.MonkeyPatch, backend: str, precision: Any
) -> None:
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend=backend))

    def steps(compiled: bool) -> list[StepReport]:
        captioner = tiny_captioner(dropout=0.3)
        batches = make_batches(captioner)
        objective = SelfCritical(cider(batches), samples=3, max_length=8)
        optimizer = torch.optim.AdamW(captioner.parameters(), lr=1e-3)
        trainer = Trainer(captioner, objective, optimizer, precision=precision, compiled=compiled)
        return list(islice(trainer.steps(batches), 4))

    plain, found = steps(False), steps(True)
    assert found[0].notes == plain[0].notes  # the same weights draw the same captions
    assert found[0].grad_norm == pytest.approx(plain[0].grad_norm, rel=1e-3 if precision == "fp32" else 0.05)
    if precision == "fp32":
        assert [r.loss for r in found] == pytest.approx([r.loss for r in plain], rel=1e-3, abs=1e-5)
    assert all(math.isfinite(r.loss) for r in found)
    torch.compiler.reset()


def test_photos_without_references_count_for_nothing() -> None:
    captioner = tiny_captioner().double()
    batches = make_batches(captioner, dtype=torch.float64)
    score = cider(batches)
    both = picked(batches, captioner, [0, 3], torch.float64)
    assert both.references is not None
    half = both._replace(references=((), both.references[1]))
    alone = picked(batches, captioner, [3], torch.float64)
    objective = SelfCritical(score, samples=3, draw=told(captioner, DRAWN))
    found, expected = objective(captioner, half), objective(captioner, alone)
    for name, term in expected.items():
        assert found[name].weight == 3
        torch.testing.assert_close(found[name].sum, term.sum)
    nobody = objective(captioner, both._replace(references=((), ())))
    assert nobody["self_critical"].weight == 0
    assert float(nobody["self_critical"].sum.detach()) == 0
    model = tiny_captioner()
    trainer = Trainer(model, SelfCritical(score), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(RunError, match="weight 0"):
        next(trainer.steps(Listed([both._replace(references=((), ()))])))


def test_captions_of_the_end_token_alone_train_without_trouble() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    empty: dict[int, Sequence[str]] = dict.fromkeys(range(8), ("", "", ""))
    terms = SelfCritical(cider(batches), samples=3, draw=told(captioner, empty))(captioner, batches.batch(0))
    assert float(terms["words"].sum) == 0
    assert float(terms["bad_endings"].sum) == 0
    assert float(terms["self_critical"].sum.detach()) == 0  # three times the same: none beats the others
    (gradient,) = torch.autograd.grad(
        terms["self_critical"].sum, [cast(nn.Module, captioner.decoder).get_parameter("output.weight")]
    )
    assert not gradient.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_reward_that_is_not_finite_names_the_step_and_keeps_the_weights(value: float) -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)

    def reward(captions: Any, references: Any) -> list[float]:
        return [0.0] * (len(captions) - 1) + [value]

    trainer = Trainer(captioner, SelfCritical(reward), torch.optim.SGD(captioner.parameters(), lr=0.1))
    before = [p.detach().clone() for p in captioner.parameters()]
    with pytest.raises(RunError, match=r"step 1: the reward of the caption \[.*is (nan|inf)"):
        next(trainer.steps(batches))
    assert all(torch.equal(a, b) for a, b in zip(before, captioner.parameters(), strict=True))


def test_clumsy_settings_are_refused() -> None:
    captioner = tiny_captioner()
    batches = make_batches(captioner)
    score = cider(batches)
    with pytest.raises(ArgumentError, match="at least 2"):
        SelfCritical(score, samples=1)
    with pytest.raises(ArgumentError, match="baseline"):
        SelfCritical(score, baseline="mean")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="CiderD"):
        SelfCritical("cider")  # type: ignore[arg-type]
    batch = batches.batch(0)
    with pytest.raises(ArgumentError, match="with_references"):
        SelfCritical(score)(captioner, batch._replace(references=None))
    with pytest.raises(ArgumentError, match=r"batch\.photos"):
        SelfCritical(score)(captioner, batch._replace(photos=()))
    with pytest.raises(ArgumentError, match=r"40 captions is 40 numbers"):
        SelfCritical(lambda captions, references: [1.0])(captioner, batch)
    with pytest.raises(ArgumentError, match=r"need captions \(8, 5, length\)"):
        SelfCritical(score, draw=told(captioner, DRAWN))(captioner, batch)
    with pytest.raises(ArgumentError, match="8 lists of references"):
        SelfCritical(score)(captioner, batch._replace(references=batches.references([0])))
    with pytest.raises(ArgumentError, match="takes a Captioner"):
        SelfCritical(score)(nn.Linear(2, 2), batch)


def test_references_are_all_captions_uncut_and_cross_entropy_gets_none() -> None:
    captioner = tiny_captioner()
    records = [Record("0", None, ("a dog runs on the grass", "a dog", "dog"), "train", "made up")]
    batches = Batches(
        records, captioner.vocabulary, lambda positions: torch.zeros(1, 3, 8, 8), captions=1, max_length=3, trunk=False
    )
    assert batches.batch(0).references is None
    batch = batches.with_references().batch(0)
    ids = captioner.vocabulary.encode
    assert batch.references == (tuple((*ids(text), END) for text in records[0].captions),)
    assert batch.photos == (0,)
    assert batches.batch(0).references is None
    assert CrossEntropy().weights(batch) == CrossEntropy().weights(batches.batch(0))


def test_a_batch_that_is_cut_keeps_the_photos_positions_and_references() -> None:
    batch = make_batches(tiny_captioner()).batch(0)
    part = batch.part(2, 5)
    assert (part.photo_count, part.photos) == (3, batch.photos[2:5])
    assert batch.references is not None
    assert part.references == batch.references[2:5]
    assert torch.equal(part.tokens, batch.tokens[4:10])


def test_when_memory_runs_out_half_as_many_photos_at_a_time_are_the_same_step() -> None:
    class Cramped(SelfCritical):
        room = 8

        def __call__(self, captioner: Any, batch: Any) -> Any:
            terms = super().__call__(captioner, batch)
            sizes.append(len(batch.inputs))
            if len(batch.inputs) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return terms

    def after(room: int) -> tuple[list[StepReport], list[Tensor]]:
        captioner = tiny_captioner().double()
        batches = make_batches(captioner, dtype=torch.float64)
        objective = Cramped(cider(batches), samples=3, max_length=8)
        objective.room = room
        trainer = Trainer(captioner, objective, torch.optim.SGD(captioner.parameters(), lr=0.1))
        return list(islice(trainer.steps(batches), 2)), [p.detach().clone() for p in captioner.parameters()]

    sizes: list[int] = []
    whole, expected = after(8)
    assert sizes == [8, 8]
    sizes.clear()
    cut, found = after(3)
    assert sizes == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    for a, b in zip(whole, cut, strict=True):
        assert b.notes == pytest.approx(a.notes, rel=1e-9)
        assert b.loss == pytest.approx(a.loss, abs=1e-9)
    for p, q in zip(expected, found, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-12)
