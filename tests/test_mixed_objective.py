"""Self-critical training with the words learnt beside: the sum of both, in one forced pass, with or without dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from showtell.captioner import Captioner
from showtell.errors import ArgumentError, RunError
from showtell.testing import tiny_captioner
from showtell.training import (
    CrossEntropy,
    Distillation,
    DoublyStochastic,
    SelfCritical,
    SoftTargets,
    Term,
    load_recipe,
    train,
)
from test_run import SETTINGS, StopError, go, metrics, run_bytes, write_photos
from test_self_critical import DRAWN, cider, make_batches, picked, told, weights_after

SHORT = {photo: tuple(text.split()[0] if text else "" for text in texts) for photo, texts in DRAWN.items()}


def loss(terms: dict[str, Term]) -> Tensor:
    found = [term.factor * term.sum / term.weight for term in terms.values() if term.factor is not None]
    return torch.stack([each.double() for each in found]).sum()


@pytest.mark.parametrize("decoder", ["lstm.v1", "attention-lstm.v1", "transformer.v1"])
@pytest.mark.parametrize("captions", [DRAWN, SHORT])  # longer than the photos' captions, and shorter
@pytest.mark.parametrize("trained", [True, False])
def test_the_gradient_is_that_of_the_score_plus_that_of_the_words(decoder: str, captions: Any, trained: bool) -> None:
    captioner = tiny_captioner(decoder=decoder).double().train()
    if not trained:
        cast(nn.Module, captioner.encoder).requires_grad_(False)
    batches = make_batches(captioner, dtype=torch.float64)
    batch = batches.batch(0)
    options: dict[str, Any] = {"samples": 3, "temperature": 0.7, "draw": told(captioner, captions)}
    words = CrossEntropy(0.1)
    both = SelfCritical(cider(batches), words=words, share=2.5, **options)(captioner, batch)
    learnt = [p for p in captioner.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss(both), learnt)
    score = loss(SelfCritical(cider(batches), **options)(captioner, batch))
    expected = torch.autograd.grad(score + 2.5 * loss(words(captioner, batch)), learnt)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


def test_teachers_may_say_what_the_words_are() -> None:
    captioner = tiny_captioner().double()
    batches = make_batches(captioner, dtype=torch.float64)
    batch = batches.batch(0)
    lengths = [len(ids) for each in batches.references(range(8)) for ids in each]
    begins = torch.tensor([0, *lengths]).cumsum(0)
    said = torch.rand(sum(lengths), len(captioner.vocabulary)).softmax(1).topk(4)
    words = Distillation(CrossEntropy(), SoftTargets(begins, said.indices, said.values), share=0.8)
    objective = SelfCritical(cider(batches), samples=2, words=words, share=3.0)
    terms = objective.at(4, 0)(captioner, batch)
    assert {name: terms[name].factor for name in ("self_critical", "cross_entropy", "distillation")} == {
        "self_critical": 1.0,
        "cross_entropy": pytest.approx(0.6),
        "distillation": pytest.approx(2.4),
    }
    assert {name: term.weight for name, term in terms.items()} == objective.weights(batch)
    for name, term in words(captioner, batch).items():
        torch.testing.assert_close(terms[name].sum, term.sum)


def test_photos_at_once_or_in_parts_give_the_same_step() -> None:
    captioner = tiny_captioner().double()
    batches = make_batches(captioner, dtype=torch.float64)

    def objective(_: Captioner) -> SelfCritical:
        return SelfCritical(cider(batches), samples=3, words=CrossEntropy(), share=2.0)

    order = [3, 1, 4, 0, 5, 2, 7, 6]
    expected = weights_after([picked(batches, captioner, order, torch.float64)], objective)
    for cuts in ([order[:3], order[3:]], [[one] for one in order]):
        parts = [picked(batches, captioner, cut, torch.float64) for cut in cuts]
        for a, b in zip(expected, weights_after(parts, objective), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("words", [None, CrossEntropy()])
def test_captions_are_drawn_without_dropout_and_learnt_with_it_where_asked(words: Any) -> None:
    captioner = tiny_captioner(dropout=0.5).train()
    batch = make_batches(captioner).batch(0)
    heard: list[list[list[int]]] = []

    def reward(captions: Any, references: Any) -> list[float]:
        heard.append(captions)
        return [float(len(caption)) for caption in captions]

    def terms(dropout: bool, seed: int) -> dict[str, float]:
        torch.manual_seed(seed)
        found = SelfCritical(reward, samples=3, dropout=dropout, words=words)(captioner, batch)
        return {name: float(term.sum.detach()) for name, term in found.items()}

    plain, other = terms(False, 0), terms(False, 1)
    dropped, repeated, different = terms(True, 0), terms(True, 0), terms(True, 1)
    assert all(each == heard[0] for each in heard)
    for name in ["self_critical"] if words is None else ["self_critical", "cross_entropy"]:
        assert plain[name] == other[name] != dropped[name]
        assert dropped[name] == repeated[name] != different[name]
    assert all(part.training for part in captioner.modules())


def test_clumsy_settings_are_refused() -> None:
    with pytest.raises(ArgumentError, match="the weight of the words"):
        SelfCritical(lambda captions, references: [0.0], words=CrossEntropy(), share=-1.0)
    for words in ("cross-entropy", DoublyStochastic(CrossEntropy())):
        with pytest.raises(ArgumentError, match="words is CrossEntropy"):
            SelfCritical(lambda captions, references: [0.0], words=words)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="dropout must be true or false"):
        SelfCritical(lambda captions, references: [0.0], dropout=1)  # type: ignore[arg-type]
    recipe = load_recipe("default")
    scored = {"objective": "self-critical", "teachers": ["runs/one"]}
    assert recipe.changed({**scored, "self_critical_words": 0.5}).teachers == ("runs/one",)
    for settings, message in (
        (scored, "where self_critical_words is not 0"),
        ({"self_critical_words": -1.0}, "self_critical_words must be"),
        ({"self_critical_dropout": "no"}, "self_critical_dropout must be"),
        ({"teachers": ["runs/one"], "self_critical_words": 0.5}, "go together"),
    ):
        with pytest.raises(ArgumentError, match=message):
            recipe.changed(settings)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def learnt(output: Path) -> list[set[str]]:
    rows = [row for row in metrics(output) if row["kind"] == "steps"]
    return [{name.removeprefix("term_") for name in row if name.startswith("term_")} for row in rows]


@pytest.mark.parametrize("parts", [1, 2])
def test_a_run_hears_teachers_beside_the_score_and_continues_to_the_same_bytes(
    photos: Path, tmp_path: Path, parts: int
) -> None:
    teacher = tmp_path / "teacher"
    go(photos, teacher, init=None, encoder=tiny_captioner().encoder)
    settings: dict[str, Any] = {
        "epochs": 2,
        "min_steps": 6,
        "log_every_steps": 1,
        "teachers": [str(teacher)],
        "self_critical_samples": 3,
        "self_critical_words": 2.0,
        "self_critical_dropout": True,
        **({"objective": "self-critical"} if parts == 1 else {"objective": "distillation", "self_critical_epochs": 2}),
    }
    go(photos, tmp_path / "run", overrides=settings, init=teacher)
    terms = learnt(tmp_path / "run")
    words = {"cross_entropy", "distillation"}
    assert terms == ([words] * 6 if parts == 2 else []) + [{"self_critical", *words}] * 6

    def say(text: str) -> None:
        if f"step {len(terms) - 3} of" in text:
            raise StopError

    with pytest.raises(StopError):
        train(
            photos, tmp_path / "again", overrides={**SETTINGS, **settings}, init=teacher, threads=1, show=False, say=say
        )
    go(photos, tmp_path / "again", overrides=settings, init=teacher)
    assert run_bytes(tmp_path / "again") == run_bytes(tmp_path / "run")
    with pytest.raises(RunError, match="self_critical_words: was 2"):
        go(photos, tmp_path / "run", overrides={**settings, "self_critical_words": 1.0}, init=teacher)
