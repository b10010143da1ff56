"""Distillation: the teachers' distributions against plain loops, the file they are kept in, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from showtell.captioner import Captioner
from showtell.data import Batches, Record, read_dataset
from showtell.decoders import LSTMDecoder
from showtell.encoders import create_untrained
from showtell.errors import ArgumentError
from showtell.protocols import Forced
from showtell.testing import tiny_captioner
from showtell.training import CrossEntropy, Distillation, DoublyStochastic, SoftTargets, load_recipe, train
from test_run import write_photos

CAPTIONS = (
    ("a dog runs on the grass", "a small dog"),
    ("two men ride a bike on the beach",),
    ("a girl in a blue shirt plays in the water", "a girl plays", "the water"),
    ("a red ball",),
)
PIXELS = torch.rand(len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(3)).mul(255).floor() / 255


def records() -> list[Record]:
    photos = [(pixels * 255).byte().permute(1, 2, 0).numpy() for pixels in PIXELS]
    return [Record(f"{i}", photos[i], each, "train", "made up") for i, each in enumerate(CAPTIONS)]


def batches(captioner: Captioner, **options: Any) -> Batches:
    settings = {"photos": 4, "captions": 3, "max_length": 7, "trunk": False, **options}
    return Batches(records(), captioner.vocabulary, lambda positions: PIXELS[list(positions)], **settings)


def teachers() -> list[Captioner]:
    return [tiny_captioner(seed=1), tiny_captioner(seed=2, decoder="attention-lstm.v1")]


def asked_word_by_word(asked: list[Captioner], photo: Any, ids: list[int]) -> Tensor:
    """(T, V): the mean probabilities of each word of one caption, by single steps."""
    total = torch.zeros(())
    for one in asked:
        decoder: Any = one.decoder
        with torch.no_grad():
            memory = decoder.prepare(one.encode([photo]))
            state, said = decoder.initial_state(memory, 20), []
            for word in [one.vocabulary.start_id, *ids[:-1]]:
                logits, state = decoder.step(torch.tensor([word]), state, memory)
                said.append(logits[0].softmax(0))
        total = total + torch.stack(said)
    return total / len(asked)


def test_the_targets_are_the_mean_of_what_each_teacher_says_step_by_step() -> None:
    asked, own = teachers(), records()
    made = batches(asked[0])
    targets = SoftTargets.of(asked, own, made, show=False)
    number = 0
    for position, record in enumerate(own):
        for ids in made.references([position])[0]:
            wanted = asked_word_by_word(asked, record.image, list(ids)[:7])
            taught = targets.of_captions(torch.tensor([number]), 9)
            got = torch.zeros(9, len(asked[0].vocabulary))
            got.scatter_(1, taught.ids[0], taught.probabilities[0])
            kept = got[: len(wanted)] > 0
            assert int(kept.sum(1).min()) == min(32, got.shape[1])
            torch.testing.assert_close(got[: len(wanted)][kept], wanted[kept], atol=1e-4, rtol=2e-3)
            assert not got[len(wanted) :].any()
            number += 1
    assert number == len(targets.begins) - 1 == 7


def test_the_loss_is_that_of_plain_loops_with_the_rest_spread_evenly() -> None:
    draw = torch.Generator().manual_seed(0)
    captioner = tiny_captioner()
    made, size = batches(captioner, photos=3), 50
    batch = made.batch(0)
    assert batch.captions is not None
    steps = [min(len(ids), 7) for each in made.references(range(4)) for ids in each]
    begins = torch.tensor([0, *steps]).cumsum(0)
    ids = torch.stack([torch.randperm(size, generator=draw)[:5] for _ in range(sum(steps))])
    chances = torch.rand(sum(steps), 5, generator=draw, dtype=torch.float64) / 6
    logits = torch.randn(*batch.targets.shape, size, generator=draw, dtype=torch.float64, requires_grad=True)
    terms = Distillation(CrossEntropy(0.1), SoftTargets(begins, ids, chances), share=0.6).terms(Forced(logits), batch)

    said, wanted = logits.log_softmax(2), torch.zeros((), dtype=torch.float64)
    for row, number in enumerate(batch.captions.tolist()):
        for step in range(steps[number] if number >= 0 else 0):
            place = int(begins[number]) + step
            left = 1 - chances[place].sum()
            for word in range(size):
                kept = chances[place][ids[place] == word].sum()
                wanted = wanted - (kept + left / size) * said[row, step, word]
    # chances are read as float32
    assert terms["distillation"].sum.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert terms["distillation"].weight == terms["cross_entropy"].weight == float(batch.weights.sum())
    assert (terms["distillation"].factor, terms["cross_entropy"].factor) == (0.6, pytest.approx(0.4))
    plain = CrossEntropy(0.1).terms(Forced(logits), batch)["cross_entropy"]
    assert torch.equal(terms["cross_entropy"].sum, plain.sum)


def test_who_says_what_the_teacher_says_has_nothing_to_learn() -> None:
    captioner = tiny_captioner(seed=4).eval()
    made = batches(captioner)
    objective = Distillation(CrossEntropy(), SoftTargets.of([captioner], records(), made, show=False), share=1.0)
    lengths = []
    for model in (captioner, tiny_captioner(seed=5).eval()):
        term = objective(model, made.batch(0))["distillation"]
        grads = torch.autograd.grad(term.sum / term.weight, list(model.decoder.parameters()), allow_unused=True)
        lengths.append(sum(g.square().sum().item() for g in grads if g is not None) ** 0.5)
    assert lengths[0] < 0.01 * lengths[1]  # probabilities are kept in half precision


def test_parts_of_a_batch_add_up_to_the_whole_and_processes_get_their_own_captions() -> None:
    captioner = tiny_captioner().eval()
    made = batches(captioner)
    objective = DoublyStochastic(
        Distillation(CrossEntropy(), SoftTargets.of(teachers(), records(), made, show=False)), factor=0.5
    )
    model = tiny_captioner(seed=3, decoder="attention-lstm.v1").eval()
    batch = made.batch(0)
    whole = objective(model, batch)["distillation"].sum.item()
    for parts in (
        [batch.part(0, 1), batch.part(1, 4)],
        [part for rank in range(3) if (part := made.part(0, rank, 3)) is not None],
    ):
        assert sum(objective(model, part)["distillation"].sum.item() for part in parts) == pytest.approx(whole)


# --- the file and whole runs ------------------------------------------------------------------------------------------


def test_the_file_is_used_while_it_fits_and_replaced_where_it_does_not(tmp_path: Path) -> None:
    for number, one in enumerate(teachers()):
        one.save_pretrained(tmp_path / f"{number}", weights_dtype="float32")
    captioner = tiny_captioner()
    file = tmp_path / "soft-targets.npz"

    def cached(names: list[str], **options: Any) -> SoftTargets:
        return SoftTargets.cached(
            file, [tmp_path / name for name in names], records(), batches(captioner, **options),
            vocabulary=captioner.vocabulary, device=torch.device("cpu"), show=False,
        )  # fmt: skip

    both = cached(["0", "1"])
    fresh = SoftTargets.of(teachers(), records(), batches(captioner), show=False)
    torch.testing.assert_close(both.probabilities, fresh.probabilities)
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert torch.equal(cached(["0", "1"]).ids, both.ids)
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    assert not torch.equal(cached(["1"]).probabilities, both.probabilities)
    assert len(cached(["1"], max_length=3).ids) == 3 * 7
    file.write_bytes(b"damaged")
    assert torch.equal(cached(["0", "1"]).probabilities, both.probabilities)

    other = tiny_captioner()
    grown = other.vocabulary.grown(["a zebra"], min_count=1)
    with pytest.raises(ArgumentError, match="train both on the same data"):
        SoftTargets.cached(
            file, [tmp_path / "0"], records(), batches(other), vocabulary=grown, device=torch.device("cpu"), show=False
        )


def test_asking_for_long_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr("showtell.progress.SILENCE", 0.0)
    monkeypatch.setattr("showtell.training.soft_targets._AT_ONCE", 1)
    SoftTargets.of(teachers(), records(), batches(tiny_captioner()), show=False, say=heard.append)
    assert [line.partition(", ")[0] for line in heard] == [f"asking the teachers: {done} of 4" for done in (1, 2, 3)]


def test_a_teacher_may_have_trained_its_encoder(tmp_path: Path) -> None:
    words = tiny_captioner().vocabulary
    encoder = create_untrained("efficientnet-lite0", image_size=32, trainable=True)
    Captioner(encoder, LSTMDecoder(len(words), encoder.feature_dim), words).save_pretrained(tmp_path / "tuned")
    made = batches(tiny_captioner())
    found = SoftTargets.cached(
        tmp_path / "soft.npz", [tmp_path / "tuned"], records(), made,
        vocabulary=words, device=torch.device("cpu"), show=False, say=lambda text: None,
    )  # fmt: skip
    assert len(found.begins) == 8


def test_a_run_learns_from_runs_and_continues(tmp_path: Path) -> None:
    data = read_dataset(write_photos(tmp_path / "photos"))
    settings: dict[str, Any] = {"epochs": 2, "min_steps": 6, "photos": 4, "search": "greedy", "save_every_steps": 1}
    options: dict[str, Any] = {"init": None, "encoder": tiny_captioner().encoder, "show": False, "threads": 1}
    for seed in (1, 2):
        train(data, tmp_path / f"{seed}", overrides={**settings, "seed": seed}, say=lambda text: None, **options)
    taught = {
        **settings,
        "objective": "distillation",
        "teachers": [str(tmp_path / "1"), str(tmp_path / "2")],
        "distillation": 0.9,
    }
    made = train(data, tmp_path / "taught", overrides=taught, say=lambda text: None, **options)
    assert (tmp_path / "taught" / "soft-targets.npz").is_file()
    assert made.best_step is not None
    plain = train(data, tmp_path / "plain", overrides=settings, say=lambda text: None, **options)
    a, b = (Captioner.from_pretrained(found.output).state_dict() for found in (made, plain))
    assert any(not torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "distillation"}, "go together"),
        ({"teachers": ["runs/one"]}, "go together"),
        ({"objective": "distillation", "teachers": "runs/one"}, "list of folders"),
        ({"objective": "distillation", "teachers": [""]}, "list of folders"),
        ({"objective": "distillation", "teachers": ["a"], "distillation": 1.5}, "distillation"),
        ({"objective": "distillation", "teachers": ["a"], "prefixes": True}, "prefixes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        load_recipe("default").changed(settings)
