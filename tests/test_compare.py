"""Intervals and differences are those of the bootstrap done by hand, and mean what they say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from report_examples import WORDS, result
from showtell import ArgumentError
from showtell.evaluation import Evaluation, ScoredPhoto, score_predictions
from showtell.evaluation.compare import Interval, compare, confidence
from showtell.metrics import METRICS, DocumentFrequencies, Scores, ptb_tokenize, score_captions


def by_hand(evaluations: Sequence[Evaluation], samples: int, seed: int) -> list[dict[str, list[float]]]:
    """The scores of each resampled set: the captions are drawn, put together and scored from scratch."""
    photos = [evaluation.photos for evaluation in evaluations]
    count = len(photos[0])
    references = [[ptb_tokenize(text) for text in photo.references] for photo in photos[0]]
    frequencies = DocumentFrequencies.of(references)
    generator = np.random.default_rng(seed)
    found: list[dict[str, list[float]]] = [{metric: [] for metric in METRICS} for _ in evaluations]
    for _ in range(samples):
        drawn = generator.integers(count, size=count)
        for own, values in zip(photos, found, strict=True):
            scores = score_captions(
                [own[i].caption for i in drawn], [own[i].references for i in drawn], frequencies=frequencies
            )
            for metric in METRICS:
                values[metric].append(scores.corpus[metric])
    return found


def middle(values: Sequence[float]) -> tuple[float, float]:
    """Where the middle 95 % of sorted values begin and end, between two of them by their distance."""
    ordered, ends = sorted(values), []
    for share in (0.025, 0.975):
        place = share * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        ends.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return ends[0], ends[1]


def ends(interval: Interval | None) -> tuple[float, float]:
    assert interval is not None
    return interval.low, interval.high


def with_values(name: str, values: Sequence[float], metric: str = "ROUGE-L") -> Evaluation:
    """A result whose photos have these values of one metric, as if a scorer had said so."""
    photos = [ScoredPhoto(f"{i}", "a dog", ("a dog runs",)) for i in range(len(values))]
    scored = score_predictions(name, photos, metrics=["ROUGE-L"])
    scores = Scores({metric: float(np.mean(values))}, {metric: tuple(map(float, values))})
    return replace(scored, scores=scores, signature=replace(scored.signature, metrics=(metric,)))


# --- against the bootstrap by hand ------------------------------------------------------------------------------------


def test_the_interval_of_a_score_is_that_of_the_bootstrap_by_hand() -> None:
    evaluation = result(count=17)
    found = confidence(evaluation, samples=150, seed=5)
    assert (found.samples, found.seed) == (150, 5)
    (expected,) = by_hand([evaluation], 150, 5)
    assert tuple(found.intervals) == METRICS
    for metric in METRICS:
        assert ends(found.intervals[metric]) == pytest.approx(middle(expected[metric]), abs=1e-9), metric


def test_the_interval_of_a_difference_is_that_of_the_paired_bootstrap_by_hand() -> None:
    a, b = result("a", 17), result("b", 17)
    found = compare(a, b, samples=150, seed=9)
    of_a, of_b = by_hand([a, b], 150, 9)
    assert [one.metric for one in found.differences] == list(METRICS)
    for one in found.differences:
        assert (one.a, one.b) == (a.scores.corpus[one.metric], b.scores.corpus[one.metric])
        assert one.difference == pytest.approx(one.b - one.a, abs=1e-12)
        moved = [y - x for x, y in zip(of_a[one.metric], of_b[one.metric], strict=True)]
        assert ends(one.interval) == pytest.approx(middle(moved), abs=1e-9), one.metric
        assert one.better == pytest.approx(sum(x > 0 for x in moved) / 150, abs=0.02)


def test_more_photos_than_fit_into_one_piece_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = result("a", 20), result("b", 20)
    whole = compare(a, b, samples=130)
    module = import_module("showtell.evaluation.compare")  # the package's attribute of that name is the function
    monkeypatch.setattr(module, "_FEW", 700)
    in_pieces = compare(a, b, samples=130)
    for one, other in zip(whole.differences, in_pieces.differences, strict=True):
        assert ends(one.interval) == pytest.approx(ends(other.interval), abs=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_one_another() -> None:
    evaluation = result()
    assert confidence(evaluation, seed=1) == confidence(evaluation, seed=1)
    assert confidence(evaluation, seed=1).intervals != confidence(evaluation, seed=2).intervals


# --- cases with a known answer ----------------------------------------------------------------------------------------


def test_identical_results_differ_by_nothing_and_nothing_is_marked() -> None:
    a = result("a", 30)
    b = replace(a, name="b")
    for one in compare(a, b).differences:
        assert (one.difference, ends(one.interval), one.better, one.significant) == (0, (0, 0), 0.5, False)


def test_swapped_results_have_the_difference_with_the_other_sign() -> None:
    a, b = result("a", 25), result("b", 25)
    for one, other in zip(compare(a, b).differences, compare(b, a).differences, strict=True):
        assert other.difference == -one.difference
        low, high = ends(one.interval)
        assert ends(other.interval) == pytest.approx((-high, -low), abs=1e-12)
        assert other.better == pytest.approx(1 - (one.better or 0))


def test_a_result_that_is_better_on_every_photo_is_marked_and_leads_always() -> None:
    a, b = with_values("a", [0.1, 0.2, 0.3, 0.4]), with_values("b", [0.2, 0.4, 0.4, 0.6])
    (one,) = compare(a, b).differences
    assert one.significant
    assert one.better == 1.0
    low, high = ends(one.interval)
    assert 0.1 <= low < one.difference < high <= 0.2
    assert not replace(one, interval=Interval(-0.01, 0.2)).significant
    assert not replace(one, interval=Interval(0.0, 0.2)).significant
    assert replace(one, interval=Interval(-0.2, -0.1)).significant


def test_one_photo_has_no_interval() -> None:
    one = result(count=1)
    assert set(confidence(one).intervals.values()) == {None}
    found = compare(one, replace(result("other", 1), signature=one.signature))
    assert {(d.interval, d.better, d.significant) for d in found.differences} == {(None, None, False)}


def test_a_result_without_photos_has_no_interval_and_compares_with_nothing() -> None:
    nobody = replace(result(), photos=(), scores=Scores({"ROUGE-L": 0.0}, {"ROUGE-L": ()}))
    assert confidence(nobody).intervals == {"ROUGE-L": None}
    with pytest.raises(ArgumentError, match="no photo"):
        compare(nobody, nobody)


def test_meteor_has_no_interval_because_its_corpus_value_is_no_mean_but_spice_has_one() -> None:
    values = [0.1, 0.4, 0.2, 0.6]
    meteor, spice = with_values("m", values, "METEOR"), with_values("s", values, "SPICE")
    assert confidence(meteor).intervals == {"METEOR": None}
    (one,) = compare(meteor, meteor).differences
    assert (one.difference, one.interval, one.better) == (0.0, None, None)
    low, high = ends(confidence(spice).intervals["SPICE"])
    assert 0.1 <= low < np.mean(values) < high <= 0.6


def test_bleu_of_another_tokeniser_has_no_interval_because_its_counts_are_unknown() -> None:
    evaluation = result()
    old = replace(evaluation, signature=replace(evaluation.signature, tokenizer="ptb-0"))
    intervals = confidence(old).intervals
    assert intervals["BLEU-4"] is None
    assert intervals["CIDEr-D"] == confidence(evaluation).intervals["CIDEr-D"]


def test_one_metric_alone_is_resampled() -> None:
    photos = result().photos
    for metric in ("BLEU-3", "CIDEr-D"):
        alone = score_predictions("one", photos, metrics=[metric])
        (found,) = confidence(alone).intervals.items()
        assert found[0] == metric
        assert ends(found[1]) == pytest.approx(ends(confidence(result()).intervals[metric]), abs=1e-12)


# --- signatures -------------------------------------------------------------------------------------------------------


def test_results_with_different_signatures_are_refused_and_every_difference_is_named() -> None:
    a = result("mine", 12, search="greedy")
    b = result("theirs", 11, search="beam:3")
    with pytest.raises(ArgumentError) as caught:
        compare(a, b)
    message = str(caught.value)
    assert all(part in message for part in ("mine", "theirs", "--force", "force=True"))
    assert "search: greedy against beam:3" in message
    assert "images: 12 against 11" in message
    assert "data: " in message
    assert not any(field in message for field in ("tokenizer:", "version:", "metrics:", "references:"))


def test_forced_results_that_differ_in_their_search_keep_their_scores() -> None:
    a, b = result("a", 12, search="greedy"), result("b", 12, search="beam:3")
    found = compare(a, b, force=True)
    assert (found.a, found.b) == (a, b)
    assert found.unlike == ("search: greedy against beam:3",)


def test_forced_results_are_scored_again_over_the_photos_that_both_have() -> None:
    a, b = result("a", 12), result("b", 15)
    found = compare(replace(a, photos=a.photos[2:]), b, force=True)
    ids = [photo.id for photo in found.a.photos]
    assert ids == [photo.id for photo in found.b.photos] == [f"{i:05}.jpg" for i in range(2, 12)]
    for mine, theirs in ((found.a, a), (found.b, b)):
        expected = score_captions([p.caption for p in theirs.photos[2:12]], [p.references for p in theirs.photos[2:12]])
        assert mine.scores == expected
        assert mine.signature.images == 10
        assert mine.name == theirs.name
    assert any("10 are in both (10 and 15)" in what for what in found.unlike)
    assert any("scored again" in what for what in found.unlike)


def test_photos_are_paired_by_their_ids_whatever_their_order() -> None:
    a, b = result("a", 12), result("b", 12)
    turned = score_predictions("b", b.photos[::-1])
    assert a.signature == turned.signature
    found = compare(a, turned)
    assert [p.id for p in found.b.photos] == [p.id for p in a.photos]
    for one, other in zip(found.differences, compare(a, b).differences, strict=True):
        assert other.difference == pytest.approx(one.difference, abs=1e-12)
        assert ends(other.interval) == pytest.approx(ends(one.interval), abs=1e-12)


def test_photos_in_both_with_other_references_are_scored_against_those_of_the_first() -> None:
    a, b = result("a", 6), result("b", 6)
    fewer = score_predictions("b", [replace(p, references=p.references[:1]) for p in b.photos])
    found = compare(a, fewer, force=True)
    assert [p.references for p in found.b.photos] == [p.references for p in a.photos]
    assert found.b.scores.corpus == b.scores.corpus
    assert any("those of 6 photos differ" in what and "those of a" in what for what in found.unlike)


def test_results_with_different_metrics_are_compared_on_those_that_both_have() -> None:
    photos = result("a", 9).photos
    a = score_predictions("a", photos, metrics=["BLEU-4", "ROUGE-L", "CIDEr-D"])
    b = score_predictions("b", photos, metrics=["CIDEr-D", "BLEU-1", "BLEU-4"])
    assert [d.metric for d in compare(a, b, force=True).differences] == ["BLEU-4", "CIDEr-D"]
    c = score_predictions("c", photos, metrics=["BLEU-2"])
    with pytest.raises(ArgumentError, match="no metric in common"):
        compare(a, c, force=True)


def test_results_without_a_common_photo_are_refused_even_when_forced() -> None:
    a = result("a", 6)
    b = score_predictions("b", [replace(p, id="other " + p.id) for p in a.photos])
    with pytest.raises(ArgumentError, match="no photo"):
        compare(a, b, force=True)


def test_novelty_is_kept_where_the_same_captions_are_scored_again() -> None:
    photos = result("a", 8).photos
    a = score_predictions("a", photos, training=["a dog"])
    old = replace(a, name="b", signature=replace(a.signature, version="0.0.1"))
    found = compare(a, old, force=True)
    assert found.b.health == a.health
    assert found.b.health.novelty == 1.0
    assert [d.difference for d in found.differences] == [0.0] * len(METRICS)


def test_a_result_with_an_id_twice_is_refused() -> None:
    a = result("a", 4)
    twice = replace(a, photos=(*a.photos[:3], a.photos[0]))
    for pair in ((a, twice), (twice, a)):
        with pytest.raises(ArgumentError, match="twice"):
            compare(*pair)


@pytest.mark.parametrize("wrong", [None, "result.json", {"scores": {}}])
def test_what_is_no_evaluation_is_refused(wrong: object) -> None:
    with pytest.raises(ArgumentError, match=r"Evaluation\.load"):
        confidence(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"Evaluation\.load"):
        compare(result(), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"samples": 0}, {"samples": 10**9}, {"samples": 1e3}, {"seed": -1}, {"seed": None}]
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ArgumentError, match=name):
        confidence(result(), **options)
    with pytest.raises(ArgumentError, match=name):
        compare(result(), result(), **options)


# --- what the intervals promise ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_intervals_hold_the_true_difference_of_means_19_times_in_20() -> None:
    generator = np.random.default_rng(0)
    held = false_alarms = 0
    trials, count = 400, 80
    for trial in range(trials):
        hard = generator.beta(2, 5, count)  # shared: what is hard for one is hard for the other
        a = np.clip(hard + generator.normal(0, 0.05, count), -1, 2)
        b = np.clip(hard + 0.02 + generator.normal(0, 0.05, count), -1, 2)
        c = np.clip(hard + generator.normal(0, 0.05, count), -1, 2)
        (one,) = compare(with_values("a", a), with_values("b", b), samples=400, seed=trial).differences
        low, high = ends(one.interval)
        held += low <= 0.02 <= high
        false_alarms += (
            compare(with_values("a", a), with_values("c", c), samples=400, seed=trial).differences[0].significant
        )
    # Of 400 trials at 95 %, 99.9 % of binomial draws lie in 0.91..0.98; the percentile interval is a little short.
    assert 0.90 <= held / trials <= 0.985
    assert 0.015 <= false_alarms / trials <= 0.10


@pytest.mark.slow
def test_intervals_of_bleu_hold_the_score_of_the_population() -> None:
    words = " ".join(WORDS).split()
    source = random.Random(4)

    def pair() -> tuple[str, tuple[str, ...]]:
        reference = source.choices(words, k=source.randint(5, 10))
        return " ".join(w if source.random() < 0.7 else source.choice(words) for w in reference), (" ".join(reference),)

    everything = [pair() for _ in range(20_000)]
    truth = score_captions([c for c, _ in everything], [r for _, r in everything], metrics=["BLEU-4"]).corpus["BLEU-4"]
    held, trials = 0, 200
    for trial in range(trials):
        drawn = source.sample(everything, 100)
        photos = [ScoredPhoto(str(i), c, r) for i, (c, r) in enumerate(drawn)]
        found = confidence(score_predictions("x", photos, metrics=["BLEU-4"]), samples=300, seed=trial)
        low, high = ends(found.intervals["BLEU-4"])
        held += low <= truth <= high
    assert 0.87 <= held / trials <= 0.99
