"""What chooses the best step of a run: CIDEr-D of captions it makes, its frequencies kept in a file."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from showtell import journal
from showtell.captioner import Captioner
from showtell.data import Batches, Dataset, ImageInputs, Record
from showtell.errors import ArgumentError, DataError, RunError
from showtell.evaluation import evaluate, teacher_forced_loss
from showtell.metrics import DocumentFrequencies, scored_words
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.training import TrainResult, train
from showtell.training.alarms import Manner
from showtell.training.frequencies import cached_frequencies
from showtell.training.job import Progress
from showtell.training.validation import Validation, validate
from showtell.vocabulary import Vocabulary

COLOURS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.8, 0.2), "blue": (0.1, 0.2, 0.9), "white": (0.9, 0.9, 0.9)}
SETTINGS = {"epochs": 6, "min_steps": 120, "photos": 4, "carried_rate": 1.0, "warmup": 1, "learning_rate": 3e-2}


def walls(validating: int = 4) -> Dataset:
    """Walls of four colours, eight to train on; each has captions of its own, so that scores aren't 0 or 1."""
    shades = np.random.default_rng(2)
    records = []
    for number in range(8 + validating):
        name = list(COLOURS)[number % 4]
        photo = torch.tensor(COLOURS[name])[:, None, None].expand(3, 32, 32) + float(shades.uniform(-0.05, 0.05))
        captions = (f"a {name} wall", f"The wall is painted {name}, isn't it?", f"wall number {number} 3/4")
        split = "train" if number < 8 else "val"
        records.append(Record(f"{number}.png", photo.clamp(0, 1), captions, split, "made up"))
    return Dataset(tuple(records))


def go(data: Dataset, output: Path, heard: list[str] | None = None, **overrides: Any) -> TrainResult:
    start = tiny_captioner(captions=["a red wall", "the wall is painted red, isn't it?"])
    said = [] if heard is None else heard
    settings = {**SETTINGS, **overrides}
    return train(data, output, init=start, overrides=settings, threads=1, show=False, say=said.append)


def metrics(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "evaluation"]


# --- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_best_score_is_what_evaluate_says_of_the_saved_captioner(tmp_path: Path, dtype: str) -> None:
    data = walls()
    result = go(data, tmp_path / "run", weights_dtype=dtype, search="beam:2,length_penalty=0.7")
    saved = Captioner.from_pretrained(tmp_path / "run", encoder=TinyEncoder)
    found = evaluate(saved, data.split("val"))
    assert 0 < result.best_score < 10
    assert result.best_score == found.scores.corpus["CIDEr-D"]
    best = next(row for row in metrics(tmp_path / "run") if row["step"] == result.best_step)
    assert (best["val_cider_d"], best["val_bleu4"]) == (result.best_score, found.scores.corpus["BLEU-4"])
    state = torch.load(
        tmp_path / "run" / "checkpoints" / f"step-{result.best_step:08d}" / "training.pt", weights_only=True
    )
    assert state["progress"]["best_scores"] == dict(found.scores.corpus)
    card = (tmp_path / "run" / "README.md").read_text()
    for metric in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        assert f"| {metric} | {found.scores.corpus[metric]:.3f} |" in card
    assert f"| teacher-forced loss, nats a word | {best['val_teacher_forced_loss']:.3f} |" in card
    assert f"`{found.signature}`" in card
    assert "which chose the best step by CIDEr-D" in card


def test_the_step_with_the_best_cider_d_is_kept_and_the_loss_decides_between_equals(tmp_path: Path) -> None:
    result = go(walls(8), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert len({row["val_cider_d"] for row in rows}) > 2
    best = max(rows, key=lambda row: (round(row["val_cider_d"], 3), -row["val_teacher_forced_loss"]))
    assert result.best_step == best["step"]
    high = (-1.0, math.inf)
    for row in rows:
        here = (round(row["val_cider_d"], 3), -row["val_teacher_forced_loss"])
        assert row["best"] == (here > (high[0], -high[1]))
        if row["best"]:
            high = (here[0], -here[1])


def test_bleu_does_not_choose_and_ties_are_of_a_thousandth() -> None:
    def found(cider_d: float, loss: float, bleu: float = 0.0) -> Validation:
        return Validation({"CIDEr-D": cider_d, "BLEU-4": bleu}, "signature", loss, Manner(3.0, 0.0))

    progress = Progress()
    assert progress.better(found(0.0, 9.0))
    progress.keep(3, found(0.5, 2.0, bleu=0.9))
    assert (progress.best_step, progress.best_score, progress.best_loss) == (3, 0.5, 2.0)
    assert progress.best_scores == {"CIDEr-D": 0.5, "BLEU-4": 0.9}
    assert progress.better(found(0.5011, 5.0, bleu=0.1))
    assert not progress.better(found(0.4989, 1.0, bleu=1.0))
    assert progress.better(found(0.5004, 1.9))
    assert progress.better(found(0.4996, 1.9))
    assert not progress.better(found(0.5004, 2.1))
    assert not progress.better(found(0.5, 2.0))


def test_with_one_validation_photo_the_loss_decides_and_the_run_says_so(tmp_path: Path) -> None:
    heard: list[str] = []
    result = go(walls(1), tmp_path / "run", heard)
    rows = metrics(tmp_path / "run")
    assert {row["val_cider_d"] for row in rows} == {0.0}
    assert result.best_score == 0.0
    assert result.best_step == min(rows, key=lambda row: row["val_teacher_forced_loss"])["step"] != 0
    assert any("one validation photo" in line and "loss chooses" in line for line in heard)
    go(walls(2), tmp_path / "other", heard := [])
    assert not any("one validation photo" in line for line in heard)


def test_a_run_of_a_showtell_that_chose_by_bleu_is_not_continued(tmp_path: Path) -> None:
    data = walls()
    go(data, tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["identity"].pop("chosen_by") == "CIDEr-D"
    (tmp_path / "run" / "run.json").write_text(json.dumps(run))
    with pytest.raises(RunError, match="chosen_by: was None, is 'CIDEr-D'"):
        go(data, tmp_path / "run")


def test_two_validation_photos_of_one_name_are_refused_before_the_training(tmp_path: Path) -> None:
    data = walls()
    twice = Dataset((*data.records, data.records[-1]))
    with pytest.raises(DataError, match=r"'11\.png'.*two validation photos"):
        train(twice, tmp_path / "run", init=None, encoder=TinyEncoder(), overrides=SETTINGS, say=lambda text: None)
    assert not (tmp_path / "run").exists()


# --- validate ---------------------------------------------------------------------------------------------------------


def test_validation_sees_rounded_weights_and_leaves_the_exact_ones(tmp_path: Path) -> None:
    captioner = tiny_captioner().train()
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter += 3e-5  # below what bfloat16 can hold
    records = list(walls().split("val"))
    inputs = ImageInputs(records, captioner.encoder.image_spec)
    batches = Batches(records, captioner.vocabulary, inputs, photos=2, trunk=False)
    words = [[scored_words(caption) for caption in record.captions] for record in records]
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    held = dict(captioner.named_parameters())
    found = validate(
        captioner,
        batches,
        records,
        frequencies=DocumentFrequencies.of(words),
        search="beam:2",
        weights_dtype="bfloat16",
        show=False,
    )
    after = captioner.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter is held[name] for name, parameter in captioner.named_parameters())
    assert captioner.training
    captioner.save_pretrained(tmp_path / "saved", weights_dtype="bfloat16")
    saved = Captioner.from_pretrained(tmp_path / "saved", encoder=TinyEncoder)
    assert not torch.equal(saved.decoder.embedding.weight, captioner.decoder.embedding.weight)
    expected = evaluate(saved, records, search="beam:2")
    assert (found.scores, found.signature) == (dict(expected.scores.corpus), str(expected.signature))
    assert found.loss == pytest.approx(teacher_forced_loss(saved, map(batches.batch, range(2))), rel=1e-6)
    assert found.loss != pytest.approx(teacher_forced_loss(captioner, map(batches.batch, range(2))), rel=1e-6)


def test_weights_come_back_when_the_validation_fails() -> None:
    captioner = tiny_captioner()
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    records = list(walls().split("val"))

    def broken(positions: Any) -> Any:
        raise RunError("the disk is gone")

    batches = Batches(records, captioner.vocabulary, broken, photos=2, trunk=False)
    with pytest.raises(RunError, match="the disk is gone"):
        validate(
            captioner,
            batches,
            records,
            frequencies=DocumentFrequencies.of([[["a"]]]),
            search="greedy",
            weights_dtype="bfloat16",
            show=False,
        )
    assert all(torch.equal(tensor, captioner.state_dict()[name]) for name, tensor in before.items())


# --- document frequencies ---------------------------------------------------------------------------------------------

REFERENCES = [["a dog runs", "the dog"], ["a cat"], ["a dog, a cat and a dog", "a Dog"]]
WORDS = [[scored_words(caption) for caption in captions] for captions in REFERENCES]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.build([caption for captions in REFERENCES for caption in captions], min_count=1)


def counted(references: list[list[list[Any]]]) -> Counter[tuple[Any, ...]]:
    """Photos with each n-gram, by hand."""
    total: Counter[tuple[Any, ...]] = Counter()
    for captions in references:
        total.update(
            {tuple(c[i : i + n]) for c in captions for n in range(1, 5) for i in range(len(c) - n + 1)},
        )
    return total


def test_frequencies_are_counted_once_and_read_afterwards(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "frequencies.bin"
    first = cached_frequencies(path, WORDS, vocabulary=vocabulary)
    data = path.read_bytes()

    def of(references: Any) -> Any:
        raise AssertionError("counted again")

    monkeypatch.setattr(DocumentFrequencies, "of", of)
    second = cached_frequencies(path, WORDS, vocabulary=vocabulary)
    expected = counted(WORDS)
    assert expected[("a", "dog")] == 2
    for found in (first, second):
        assert found.images == 3
        assert {ngram: found.get(ngram) for ngram in expected} == expected
        assert found.get(("bird",)) == 0
    assert path.read_bytes() == data


def test_ids_with_an_end_token_are_counted_as_well_as_words(tmp_path: Path, vocabulary: Vocabulary) -> None:
    ids = [[[*vocabulary.encode(c), vocabulary.end_id] for c in captions] for captions in REFERENCES]
    for _ in range(2):
        found = cached_frequencies(tmp_path / "frequencies.bin", ids, vocabulary=vocabulary)
        expected = counted(ids)
        assert {ngram: found.get(ngram) for ngram in expected} == expected
        assert found.get((vocabulary.end_id,)) == 3
    # The same captions as words are other references.
    words = cached_frequencies(tmp_path / "frequencies.bin", WORDS, vocabulary=vocabulary)
    assert words.get((vocabulary.end_id,)) == 0
    assert words.get(("dog",)) == 2


def test_another_vocabulary_other_references_and_another_tokeniser_are_counted_anew(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "frequencies.bin"
    seen = []

    def check(references: list[list[list[str]]], words: Vocabulary) -> None:
        found = cached_frequencies(path, references, vocabulary=words)
        assert found.images == len(references)
        assert found.get(("dog",)) == counted(references)[("dog",)]
        seen.append(path.read_bytes())

    check(WORDS, vocabulary)
    check(WORDS, vocabulary.grown(["a bird"], min_count=1))
    check(WORDS, vocabulary)
    check(WORDS[:2], vocabulary)
    check([WORDS[0], [["a", "dog"]], WORDS[2]], vocabulary)
    # The same n-grams in the same photos, divided otherwise among captions, are other references.
    check([[["a"], ["dog"]]], vocabulary)
    check([[["a", "dog"]]], vocabulary)
    check([[["a", "dog"]], [["a", "dog"]]], vocabulary)
    monkeypatch.setattr("showtell.training.frequencies.TOKENIZER", "ptb-2")
    check(WORDS, vocabulary)
    assert seen[2] == seen[0]
    assert len(set(seen)) == len(seen) - 1


def test_a_damaged_file_is_replaced_whole(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "frequencies.bin"
    cached_frequencies(path, WORDS, vocabulary=vocabulary)
    good = path.read_bytes()
    for bad in (b"", b"PK\x03\x04", b"hello" * 99, good[:-1], good[: len(good) // 2], good + b"\0", good[:16]):
        path.write_bytes(bad)
        assert cached_frequencies(path, WORDS, vocabulary=vocabulary).get(("dog",)) == 2
        assert path.read_bytes() == good
    assert [file.name for file in tmp_path.iterdir()] == ["frequencies.bin"]


def test_a_killed_writer_leaves_no_half_file(
    tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "frequencies.bin"
    cached_frequencies(path, WORDS[:2], vocabulary=vocabulary)
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_write_synced", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            cached_frequencies(path, WORDS, vocabulary=vocabulary)
    assert path.read_bytes() == before
    assert cached_frequencies(path, WORDS, vocabulary=vocabulary).images == 3


def test_what_cannot_be_counted_or_written_is_said_plainly(tmp_path: Path, vocabulary: Vocabulary) -> None:
    path = tmp_path / "frequencies.bin"
    for bad in ([["a dog"]], [[[1.5]]], [[[None]]], [[[("a", "dog")]]], [[[True]]], [], [[]]):
        with pytest.raises(ArgumentError):
            cached_frequencies(path, bad, vocabulary=vocabulary)
    assert not path.exists()
    with pytest.raises(RunError, match="can't be written"):
        cached_frequencies(tmp_path / "gone" / "frequencies.bin", WORDS, vocabulary=vocabulary)
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="can't be written"):
        cached_frequencies(tmp_path / "folder", WORDS, vocabulary=vocabulary)


def test_scores_with_the_kept_frequencies_are_those_without(tmp_path: Path) -> None:
    captioner = tiny_captioner()
    records = walls(8).split("val")
    words = [[scored_words(caption) for caption in record.captions] for record in records]
    plain = evaluate(captioner, records)
    for _ in range(2):
        kept = cached_frequencies(tmp_path / "frequencies.bin", words, vocabulary=captioner.vocabulary)
        assert evaluate(captioner, records, frequencies=kept) == plain
