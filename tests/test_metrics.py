"""Scores against the official ones and against slow, plain implementations written here from the formulas."""

from __future__ import annotations

import json
import math
import pickle
import random
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from showtell.errors import ArgumentError, FormatError, NotFoundError, RunError
from showtell.metrics import (
    METRICS,
    Cider,
    CiderD,
    DocumentFrequencies,
    Scores,
    bleu_counts,
    bleu_of_counts,
    score_captions,
)
from showtell.metrics import coco as coco_module
from showtell.metrics.ngrams import KeyTable, TokenTable, encode
from showtell.metrics.overlap import _count_bits
from showtell.metrics.rouge import rouge_l

Tokens = Sequence[Hashable]

KIT_NAMES = {
    **{f"BLEU-{n}": f"Bleu_{n}" for n in range(1, 5)},
    "ROUGE-L": "ROUGE_L",
    "CIDEr-D": "CIDErD",
    "CIDEr": "CIDEr",
}


NOTHING = object()  # the one word that ROUGE-L takes an empty caption for

# Plain implementations: no arrays, no sharing, one formula each.


def grams(tokens: Tokens, n: int) -> Counter[tuple[Hashable, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def plain_df(references: Sequence[Sequence[Tokens]]) -> Counter[tuple[Hashable, ...]]:
    df: Counter[tuple[Hashable, ...]] = Counter()
    for captions in references:
        df.update({gram for tokens in captions for n in range(1, 5) for gram in grams(tokens, n)})
    return df


def plain_cider(
    candidate: Tokens,
    references: Sequence[Tokens],
    df: Counter[tuple[Hashable, ...]],
    images: int,
    *,
    clip: bool,
    sigma: float = 6.0,
) -> float:
    def vector(tokens: Tokens, n: int) -> dict[tuple[Hashable, ...], float]:
        return {w: c * (math.log(images) - math.log(max(1, df[w]))) for w, c in grams(tokens, n).items()}

    total = 0.0
    for reference in references:
        for n in range(1, 5):
            mine, theirs = vector(candidate, n), vector(reference, n)
            dot = sum((min(g, theirs[w]) if clip else g) * theirs[w] for w, g in mine.items() if w in theirs)
            norms = math.sqrt(sum(g * g for g in mine.values())) * math.sqrt(sum(g * g for g in theirs.values()))
            value = dot / norms if norms else dot
            if clip:
                apart = max(0, len(candidate) - 1) - max(0, len(reference) - 1)
                value *= math.exp(-(apart**2) / (2 * sigma**2))
            total += value
    return 10 * total / 4 / len(references)


def plain_bleu_counts(candidate: Tokens, references: Sequence[Tokens]) -> list[int]:
    correct = []
    for n in range(1, 5):
        most: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            most |= grams(reference, n)
        correct.append(sum((grams(candidate, n) & most).values()))
    guess = [max(0, len(candidate) - n) for n in range(4)]
    closest = min((len(r) for r in references), key=lambda length: (abs(length - len(candidate)), length))
    return [*correct, *guess, len(candidate), closest]


def plain_bleu(counts: Sequence[int]) -> list[float]:
    ratio = (counts[8] + 1e-15) / (counts[9] + 1e-9)
    values, product = [], 1.0
    for n in range(4):
        product *= (counts[n] + 1e-15) / (counts[4 + n] + 1e-9)
        values.append(product ** (1 / (n + 1)) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0))
    return values


def plain_rouge(candidate: Tokens, references: Sequence[Tokens]) -> float:
    candidate = list(candidate) or [NOTHING]
    precision = recall = 0.0
    for reference in references:
        reference = list(reference) or [NOTHING]
        before = [0] * (len(reference) + 1)
        for token in candidate:
            row = [0]
            for j, other in enumerate(reference):
                row.append(before[j] + 1 if token == other else max(before[j + 1], row[j]))
            before = row
        precision = max(precision, before[-1] / len(candidate))
        recall = max(recall, before[-1] / len(reference))
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision and recall else 0.0


def corpora(tokens: st.SearchStrategy[Any], longest: int = 9) -> st.SearchStrategy[Any]:
    """Photos, each with one to three candidates and one to four references."""
    caption = st.lists(tokens, max_size=longest)
    return st.integers(1, 3).flatmap(
        lambda k: st.lists(
            st.tuples(st.lists(caption, min_size=k, max_size=k), st.lists(caption, min_size=1, max_size=4)),
            min_size=1,
            max_size=4,
        )
    )


few_words = st.sampled_from(["a", "b", "c"])
odd_tokens = st.sampled_from([0, -3, 10**25, "0", "", None, ("x", 1), 2.5, "é"])


def check_everything(photos: Sequence[tuple[Sequence[Tokens], Sequence[Tokens]]]) -> None:
    """Every metric on every candidate equals the plain implementation, with frequencies of these and other photos."""
    references = [list(captions) for _, captions in photos]
    candidates = [candidate for some, _ in photos for candidate in some]
    owners = [captions for some, captions in photos for _ in some]
    for counted in (references, [*references[1:], [["a", "c"], ["b", 0]], [["z"]]]):
        frequencies, df = DocumentFrequencies.of(counted), plain_df(counted)
        for scorer, clip in ((CiderD(frequencies), True), (Cider(frequencies), False)):
            expected = [plain_cider(c, r, df, len(counted), clip=clip) for c, r in zip(candidates, owners, strict=True)]
            found = scorer(candidates, references)
            assert found.tolist() == pytest.approx(expected, abs=1e-12)
            assert np.isfinite(found).all()
            assert (found >= 0).all()
            assert (found <= 10 + 1e-9).all()
            assert scorer(candidates, scorer.prepare(references)).tolist() == found.tolist()
    first = [some[0] for some, _ in photos]
    counts = [plain_bleu_counts(c, r) for c, r in zip(first, references, strict=True)]
    assert bleu_counts(first, references).tolist() == counts
    assert bleu_of_counts(counts).tolist() == [pytest.approx(plain_bleu(c), abs=1e-12) for c in counts]
    rouge = [plain_rouge(c, r) for c, r in zip(first, references, strict=True)]
    assert rouge_l(first, references).tolist() == pytest.approx(rouge, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(corpora(few_words))
def test_random_corpora_of_three_words_score_as_the_plain_formulas_say(photos: Any) -> None:
    check_everything(photos)


@settings(max_examples=40, deadline=None)
@given(corpora(odd_tokens))
def test_tokens_may_be_anything_that_can_be_hashed(photos: Any) -> None:
    check_everything(photos)


@settings(max_examples=40, deadline=None)
@given(corpora(st.integers(0, 40), longest=20))
def test_ids_score_as_the_plain_formulas_say(photos: Any) -> None:
    check_everything(photos)


@pytest.mark.parametrize("length", [60, 61, 62, 63, 64, 65, 121, 122, 123, 125, 126, 300])
def test_captions_of_any_length_score_as_the_plain_formulas_say(length: int) -> None:
    # References are cut into windows of 61 places, machine words have 64 bits: mistakes would be at these lengths.
    rng = random.Random(length)

    def caption(n: int) -> list[str]:
        return [rng.choice("aabcd") for _ in range(n)]

    check_everything(
        [
            ([caption(length), caption(3)], [caption(length), caption(5), caption(length + rng.randint(0, 70))]),
            ([caption(4), caption(length + 1)], [caption(length - 1)]),
            ([caption(7), []], [caption(2), [], caption(6), caption(length)]),
        ]
    )


def test_a_repeated_long_reference_matches_itself_at_every_place() -> None:
    words = [f"w{i}" for i in range(500)]
    assert bleu_counts([words], [[words]]).tolist() == [[500, 499, 498, 497, 500, 499, 498, 497, 500, 500]]
    assert rouge_l([words], [[words]]).tolist() == [1.0]
    counts = bleu_counts([["a"] * 400], [[["a"] * 300]])
    assert counts.tolist() == [[300, 299, 298, 297, 400, 399, 398, 397, 400, 300]]


def test_a_vocabulary_larger_than_16_bits_is_counted_exactly() -> None:
    rng = random.Random(5)
    references = [[[rng.randrange(90_000) for _ in range(30)] for _ in range(3)] for _ in range(1500)]
    references[7][0][3:7] = references[9][1][2:6] = [89_999, 0, 89_999, 1]
    frequencies, df = DocumentFrequencies.of(references), plain_df(references)
    assert len({token for captions in references for tokens in captions for token in tokens}) > 65_536
    assert frequencies.get((89_999, 0, 89_999, 1)) == 2
    for gram in rng.sample(list(df), 300):
        assert frequencies.get(gram) == df[gram]
    candidates = [captions[0][3:9] for captions in references[:40]]
    expected = [plain_cider(c, r, df, 1500, clip=True) for c, r in zip(candidates, references, strict=False)]
    assert CiderD(frequencies)(candidates, references[:40]).tolist() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.lists(few_words, max_size=8), min_size=1, max_size=4), min_size=1, max_size=5))
def test_frequencies_count_photos_not_captions(references: Any) -> None:
    frequencies, df = DocumentFrequencies.of(references), plain_df(references)
    assert frequencies.images == len(references)
    assert sum(map(len, frequencies.counts)) == len(df)
    for n in range(1, 5):
        for gram in grams(["a", "b", "c", "a", "a", "c", "b", "z"], n):
            assert frequencies.get(gram) == df[gram]


@pytest.mark.parametrize("suite", ["coco_fakecap", "coco_human_loo", "adversarial", "single_image"])
def test_the_kit_agrees_to_nine_digits_for_the_corpus_and_each_photo(shared: Path, suite: str) -> None:
    suites = json.loads((shared / "metrics" / "cases.json").read_text())["suites"]
    case = next(one for one in suites if one["name"] == suite)
    scores = score_captions([i["cand"] for i in case["images"]], [i["refs"] for i in case["images"]])
    assert tuple(scores.corpus) == tuple(scores.each) == METRICS
    for metric, name in KIT_NAMES.items():
        assert scores.corpus[metric] == pytest.approx(case["corpus"][name], abs=1e-12)
        expected = [image["scores"][name] for image in case["images"]]
        assert scores.each[metric] == pytest.approx(expected, abs=1e-12)


def test_the_kit_agrees_on_fixed_frequencies_with_and_without_end_token(shared: Path) -> None:
    kit = json.loads((shared / "metrics" / "cases.json").read_text())
    images = {image["id"]: image for suite in kit["suites"] for image in suite["images"]}
    suites = {suite["name"]: suite for suite in kit["suites"]}
    assert [case["eos_appended"] for case in kit["precomputed_df"]] == [False, True]
    for case in kit["precomputed_df"]:
        end = ["<eos>"] * case["eos_appended"]
        counted = [[r.split() + end for r in i["refs_tok"]] for i in suites[case["df_from_suite"]]["images"]]
        scorer = CiderD(DocumentFrequencies.of(counted))
        candidates = [images[i]["cand_tok"].split() + end for i in case["ids"]]
        references = [[r.split() + end for r in images[i]["refs_tok"]] for i in case["ids"]]
        scores = scorer(candidates, references)
        assert scores.tolist() == pytest.approx(case["scores"], abs=1e-12)
        assert scores.mean() == pytest.approx(case["mean"], abs=1e-12)
        # Ids in place of words, as a reward has them: the same numbers.
        ids: dict[str, int] = {}
        numbered = [[[[ids.setdefault(w, len(ids)) for w in r] for r in rs] for rs in x] for x in (counted, references)]
        again = CiderD(DocumentFrequencies.of(numbered[0]))
        mine = [[ids.setdefault(w, len(ids)) for w in c] for c in candidates]
        assert again(mine, again.prepare(numbered[1])).tolist() == scores.tolist()


def test_pycocoevalcap_agrees_on_random_captions() -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    rng = random.Random(0)
    for _ in range(15):
        photos = rng.randint(1, 8)

        def caption() -> str:
            return " ".join(rng.choice("abcde") for _ in range(rng.randint(0, 12)))

        candidates = [caption() for _ in range(photos)]
        references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(photos)]
        theirs = dict(enumerate(references)), {i: [c] for i, c in enumerate(candidates)}
        ours = score_captions(candidates, references)
        corpus, each = bleu.Bleu(4).compute_score(*theirs, verbose=0)
        for n in range(4):
            assert ours.corpus[f"BLEU-{n + 1}"] == pytest.approx(corpus[n], abs=1e-12)
            assert ours.each[f"BLEU-{n + 1}"] == pytest.approx(each[n], abs=1e-12)
        for metric, scorer in (("ROUGE-L", rouge.Rouge()), ("CIDEr-D", cider.Cider())):
            value, values = scorer.compute_score(*theirs)
            assert ours.corpus[metric] == pytest.approx(value, abs=1e-12)
            assert ours.each[metric] == pytest.approx(list(values), abs=1e-12)


# BLEU and ROUGE-L, worked out by hand.


def one_bleu(candidate: str, *references: str) -> list[float]:
    values: list[float] = bleu_of_counts(bleu_counts([candidate.split()], [[r.split() for r in references]]))[
        0
    ].tolist()
    return values


def test_a_repeated_word_counts_only_as_often_as_one_reference_has_it() -> None:
    # Papineni's own example: seven times "the" against a reference with two.
    values = one_bleu("the " * 7, "the cat is on the mat", "there is a cat on the mat")
    assert values[0] == pytest.approx(2 / 7, abs=1e-9)  # 7 words against 7 and 6: no brevity penalty
    assert values[1] < 1e-6


def test_a_short_candidate_pays_the_brevity_penalty() -> None:
    assert one_bleu("a dog", "a dog runs on grass")[:2] == pytest.approx([math.exp(1 - 5 / 2)] * 2, abs=1e-8)


def test_of_two_equally_close_references_the_shorter_sets_the_length() -> None:
    # Three words; references of two and four. Taking two: no penalty.
    assert one_bleu("a b c", "a b c d", "a b")[0] == pytest.approx(1.0, abs=1e-8)


def test_a_one_word_match_has_the_values_of_the_official_guards() -> None:
    values = one_bleu("dog", "dog")
    assert values[0] == pytest.approx(0.999999998, abs=1e-9)
    assert values[3] == pytest.approx(3.16e-05, rel=1e-2)


def test_the_corpus_value_of_bleu_comes_from_sums_not_from_the_mean() -> None:
    scores = score_captions(["a", "x y z"], [["a"], ["q r s"]])
    assert scores.corpus["BLEU-1"] == pytest.approx(1 / 4, abs=1e-8)
    assert sum(scores.each["BLEU-1"]) / 2 == pytest.approx(1 / 2, abs=1e-8)


def test_precision_and_recall_of_rouge_may_come_from_two_references() -> None:
    # "a b c d": P = 2/4 from "a b x y z v", R = 1 from "a", whose P is 1/4.
    precision, recall = 2 / 4, 1.0
    expected = 2.44 * precision * recall / (recall + 1.44 * precision)
    assert rouge_l([list("abcd")], [[list("abxyzv"), ["a"]]])[0] == pytest.approx(expected, abs=1e-12)


# What the kit's README lists as pitfalls.


def test_an_identical_caption_scores_ten_where_its_words_are_rare() -> None:
    references = [["a dog runs on grass"], ["two cats sleep over there"]]
    scores = score_captions([r[0] for r in references], references)
    assert scores.each["CIDEr-D"] == pytest.approx([10, 10], abs=1e-12)
    assert scores.each["CIDEr"] == pytest.approx([10, 10], abs=1e-12)


def test_cider_of_one_photo_is_zero_and_an_ngram_in_every_photo_weighs_nothing() -> None:
    assert score_captions(["a dog"], [["a dog", "a wet dog"]]).corpus["CIDEr-D"] == 0.0
    scores = score_captions(["the the", "the end"], [["the"], ["the end"]], metrics=["CIDEr", "CIDEr-D"])
    assert scores.each["CIDEr"][0] == scores.each["CIDEr-D"][0] == 0.0
    # Unigrams ("end" alone weighs) and the bigram agree, n = 3 and 4 have nothing.
    assert scores.each["CIDEr-D"][1] == pytest.approx(10 * 2 / 4, abs=1e-12)


def test_empty_captions_score_zero_except_rouge_of_two_empty_ones() -> None:
    scores = score_captions(["", "", "a dog"], [["a dog"], ["", "a cat"], [""]])
    assert scores.each["ROUGE-L"] == (0.0, 1.0, 0.0)
    assert scores.each["CIDEr-D"] == scores.each["CIDEr"] == (0.0, 0.0, 0.0)
    for n in range(1, 5):
        assert all(0 <= value < 1e-5 for value in scores.each[f"BLEU-{n}"])


def test_a_candidate_that_misses_everything_has_a_bleu_just_above_zero() -> None:
    each = score_captions(["x y z q"], [["a b c d"]]).each
    assert all(0 < each[f"BLEU-{n}"][0] < 1e-9 for n in range(1, 5))


def test_a_reference_given_twice_weighs_in_cider_only() -> None:
    candidates = ["a dog runs", "a cat"]
    once = score_captions(candidates, [["a dog runs", "two men"], ["a cat sits"]])
    twice = score_captions(candidates, [["a dog runs", "a dog runs", "two men"], ["a cat sits"]])
    for metric in METRICS[:5]:
        assert twice.each[metric] == once.each[metric]
    assert twice.each["CIDEr-D"][0] == pytest.approx(once.each["CIDEr-D"][0] / (1 / 2) * (2 / 3), abs=1e-12)


def test_an_unbreakable_space_makes_two_words_for_bleu_and_cider_and_one_for_rouge() -> None:
    # "22 3/4" is one token with U+00A0 inside; "22" is a word of the reference.
    scores = score_captions(["22 3/4 inches", "a cat"], [["22 inches"], ["a dog"]])
    assert scores.each["BLEU-1"][0] == pytest.approx(2 / 3, abs=1e-8)
    assert scores.each["ROUGE-L"][0] == pytest.approx(0.5, abs=1e-12)
    df = plain_df([[["22", "inches"]], [["a", "dog"]]])
    expected = plain_cider(["22", "3/4", "inches"], [["22", "inches"]], df, 2, clip=True)
    assert scores.each["CIDEr-D"][0] == pytest.approx(expected, abs=1e-12)
    assert scores.each["CIDEr-D"][0] > 0


def test_the_end_token_changes_the_reward() -> None:
    plain = [[["a", "dog"], ["a", "dog", "runs"]], [["a", "cat"]]]
    ended = [[[*tokens, "<end>"] for tokens in captions] for captions in plain]
    without = CiderD(DocumentFrequencies.of(plain))([["a", "dog"], ["a", "cat"]], plain)
    with_end = CiderD(DocumentFrequencies.of(ended))([["a", "dog", "<end>"], ["a", "cat", "<end>"]], ended)
    assert abs(without[0] - with_end[0]) > 0.1


def test_scoring_unseen_words_does_not_grow_the_frequencies() -> None:
    references = [[["a", "dog"]], [["a", "cat"]]]
    frequencies = DocumentFrequencies.of(references)
    scorer = CiderD(frequencies)
    prepared = scorer.prepare([[["new", "words", "in", "references"]], [["a", "cat"]]])
    before = len(frequencies.vocabulary), len(pickle.dumps(frequencies.vocabulary)), len(pickle.dumps(prepared))
    for i in range(20):
        scorer([[f"unseen{i}", "dog"], ["a", f"unseen{i}"]], prepared)
        assert frequencies.get((f"unseen{i}",)) == 0
    sizes = len(frequencies.vocabulary), len(pickle.dumps(frequencies.vocabulary)), len(pickle.dumps(prepared))
    assert sizes == before


def test_rows_do_not_see_each_other() -> None:
    rng = random.Random(3)

    def caption() -> list[str]:
        return [rng.choice("abcdefgh") for _ in range(rng.choice([0, 3, 7, 12, 70]))]

    references = [[caption() for _ in range(rng.randint(1, 6))] for _ in range(12)]
    candidates = [caption() for _ in range(36)]
    scorer = CiderD(DocumentFrequencies.of(references))
    together = scorer(candidates, references)
    for photo in range(12):
        alone = scorer(candidates[3 * photo : 3 * photo + 3], [references[photo]])
        assert alone.tolist() == together[3 * photo : 3 * photo + 3].tolist()


def test_one_and_the_text_one_are_two_tokens_and_true_is_one() -> None:
    frequencies = DocumentFrequencies.of([[[1, "1"]], [["1"]], [[True]]])
    assert frequencies.get((1,)) == frequencies.get((True,)) == frequencies.get((1.0,)) == 2
    assert frequencies.get(("1",)) == 2
    assert frequencies.get((1, "1")) == 1
    assert frequencies.get(("1", 1)) == 0
    scorer = CiderD(frequencies)
    assert scorer([[1], ["1"], [True]], [[[1]]] * 3).tolist() == [pytest.approx(2.5), 0.0, pytest.approx(2.5)]


def test_arrays_of_ids_are_captions_too() -> None:
    references = [[[1, 2, 3], [2, 3]], [[4, 1]]]
    scorer = CiderD(DocumentFrequencies.of([[np.array(tokens) for tokens in captions] for captions in references]))
    lists = CiderD(DocumentFrequencies.of(references))([[1, 2], [4, 1]], references)
    assert scorer(np.array([[1, 2], [4, 1]]), references).tolist() == lists.tolist()
    assert scorer(((1, 2), (4, 1)), tuple(tuple(map(tuple, c)) for c in references)).tolist() == lists.tolist()


# Clumsy callers.

GOOD = [["a dog runs"], ["a cat"]]


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ("a dog", GOOD, "candidates must be a list"),
        (["a dog"], GOOD, "1 candidates for 2 photos"),
        (["a dog", "a cat", "x"], GOOD, "3 candidates for 2 photos"),
        (["a dog", None], GOOD, "candidate 1 must be text, not None"),
        (["a dog", ["a", "cat"]], GOOD, "candidate 1 must be text"),
        (["a dog", b"a cat"], GOOD, "candidate 1 must be text"),
        (["a dog", "a cat"], [["a dog"], ["a cat", 3]], "reference 1 of photo 1 must be text, not 3"),
        (["a dog", "a cat"], [["a dog"], [["a", "cat"]]], "reference 0 of photo 1 must be text"),
        (["a dog", "a cat"], [["a dog"], []], "photo 1 has no references"),
        (["a dog", "a cat"], [["a dog"], "a cat"], "photo 1 has no list of references but the string 'a cat'"),
        (["a dog", "a cat"], [["a dog"], None], "photo 1 has no list of references but a NoneType"),
        (["a dog", "a cat"], [["a dog"], {"a cat"}], "photo 1 has no list of references but a set"),
        (["a dog"], "a dog", "references must be a list"),
        (["a dog"], None, "references must be a list"),
        ({"1": "a dog"}, {"1": ["a dog"]}, "must be a list"),
        ([], [], "no photos"),
        (None, GOOD, "candidates must be a list"),
    ],
)
def test_captions_that_make_no_sense_are_refused_with_their_place(
    candidates: Any, references: Any, message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        score_captions(candidates, references)


@pytest.mark.parametrize("metrics", ["CIDEr", [], ["BLEU"], ["cider"], [None], ["CIDEr-D", "BLEU-5"], None, 3])
def test_metrics_that_nobody_knows_are_refused(metrics: Any) -> None:
    with pytest.raises(ArgumentError, match="metrics"):
        score_captions(["a dog", "a cat"], GOOD, metrics=metrics)


def test_only_the_metrics_asked_for_are_given_in_the_order_asked() -> None:
    everything = score_captions(["a dog", "a cat"], GOOD)
    for some in (["CIDEr", "BLEU-2"], ["ROUGE-L"], ["BLEU-4", "BLEU-4", "CIDEr-D"]):
        scores = score_captions(["a dog", "a cat"], GOOD, metrics=some)
        assert list(scores.corpus) == list(scores.each) == list(dict.fromkeys(some))
        for metric in some:
            assert scores.corpus[metric] == everything.corpus[metric]
            assert scores.each[metric] == everything.each[metric]


def test_meteor_is_left_to_the_official_program(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stand_in(candidates: Any, references: Any, metrics: Any) -> Scores:
        asked.append((candidates, references, metrics))
        return Scores({"METEOR": 0.25}, {"METEOR": (0.5, 0.0)})

    monkeypatch.setattr(coco_module, "coco_scores", stand_in)
    scores = score_captions(["a dog", "a cat"], GOOD, metrics=["METEOR", "ROUGE-L"])
    assert list(scores.corpus) == ["METEOR", "ROUGE-L"]
    assert scores.corpus["METEOR"] == 0.25
    assert asked == [(["a dog", "a cat"], GOOD, ("METEOR",))]
    alone = score_captions(["a dog", "a cat"], GOOD, metrics=["METEOR"])
    assert alone == Scores({"METEOR": 0.25}, {"METEOR": (0.5, 0.0)})


def test_frequencies_of_other_photos_change_cider_alone() -> None:
    counted = [[r.split() for r in captions] for captions in [*GOOD, ["a dog sits", "a man"], ["two men"]]]
    scores = score_captions(["a dog", "a cat"], GOOD, frequencies=DocumentFrequencies.of(counted))
    default = score_captions(["a dog", "a cat"], GOOD)
    assert [m for m in METRICS if scores.each[m] != default.each[m]] == ["CIDEr-D", "CIDEr"]
    expected = plain_cider(["a", "dog"], [["a", "dog", "runs"]], plain_df(counted), 4, clip=True)
    assert scores.each["CIDEr-D"][0] == pytest.approx(expected, abs=1e-12)
    for wrong in ({}, Counter(), 3, "coco"):
        with pytest.raises(ArgumentError, match="DocumentFrequencies"):
            score_captions(["a dog", "a cat"], GOOD, frequencies=wrong)  # type: ignore[arg-type]


REFERENCES = [[["a", "dog"], ["a", "wet", "dog"]], [["a", "cat"]]]


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([["a"], ["b"], ["c"]], REFERENCES, "3 candidates for 2 photos"),
        ([], REFERENCES, "0 candidates for 2 photos"),
        ([["a"]], REFERENCES, "1 candidates for 2 photos"),
        (["a dog", ["b"]], REFERENCES, "candidate 0 must be a list of tokens, not the string 'a dog'"),
        ([["a"], None], REFERENCES, "candidate 1 must be a list of tokens"),
        ([["a"], 3], REFERENCES, "candidate 1 must be a list of tokens"),
        ([["a"], {"a", "b"}], REFERENCES, "candidate 1 must be a list of tokens"),
        ([["a"], {"a": 1}], REFERENCES, "candidate 1 must be a list of tokens"),
        ([["a"], iter(["b"])], REFERENCES, "candidate 1 must be a list of tokens"),
        ([["a"], [["b"]]], REFERENCES, "candidate 1 holds a token that can't be hashed"),
        (iter([["a"], ["b"]]), REFERENCES, "candidates must be a list"),
        ("ab", REFERENCES, "candidates must be a list"),
        ([["a"], torch.tensor([1])], REFERENCES, r"candidate 1 must be a list of tokens, not a Tensor; .*tolist"),
        (torch.tensor([[1], [2]]), REFERENCES, r"not a Tensor; .*tolist"),
        ([["a"], list(torch.tensor([1, 2]))], REFERENCES, r"tokens are of type Tensor; .*tolist"),
        (np.array(3), REFERENCES, "candidates must be a list"),
        (np.zeros((2, 2, 2)), REFERENCES, "candidate 0 holds a token that can't be hashed"),
        ([["a"], ["b"]], [], "no photos"),
        ([["a"], ["b"]], [[["a"]], []], "photo 1 has no references"),
        ([["a"], ["b"]], [[["a"]], ["b c"]], "reference 0 of photo 1 must be a list of tokens, not the string"),
        ([["a"], ["b"]], [[["a"]], [["b"], [["c"]]]], "reference 1 of photo 1 holds a token that can't be hashed"),
        ([["a"], ["b"]], [[["a"]], [["b"], 5]], "reference 1 of photo 1 must be a list of tokens"),
        ([["a"], ["b"]], {0: [["a"]], 1: [["b"]]}, "references must be a list"),
    ],
)
def test_token_lists_that_make_no_sense_are_refused_with_their_place(
    candidates: Any, references: Any, message: str
) -> None:
    scorer = CiderD(DocumentFrequencies.of(REFERENCES))
    calls: list[Callable[[Any, Any], Any]] = [scorer, Cider(scorer.frequencies), bleu_counts, rouge_l]
    for call in calls:
        with pytest.raises(ArgumentError, match=message):
            call(candidates, references)


def test_references_prepared_with_other_frequencies_are_refused() -> None:
    prepared = CiderD(DocumentFrequencies.of(REFERENCES)).prepare(REFERENCES)
    with pytest.raises(ArgumentError, match="prepare them again"):
        CiderD(DocumentFrequencies.of(REFERENCES))([["a"], ["b"]], prepared)


@pytest.mark.parametrize("sigma", [0, -1, math.nan, math.inf, "6", None, True])
def test_a_sigma_that_makes_no_sense_is_refused(sigma: Any) -> None:
    with pytest.raises(ArgumentError, match="sigma"):
        CiderD(DocumentFrequencies.of(REFERENCES), sigma=sigma)


def test_sigma_is_the_width_of_the_length_penalty() -> None:
    frequencies, df = DocumentFrequencies.of(REFERENCES), plain_df(REFERENCES)
    for sigma in (0.001, 0.5, 100.0):
        found = CiderD(frequencies, sigma=sigma)([["a", "dog", "runs"], ["a"]], REFERENCES)
        expected = plain_cider(["a", "dog", "runs"], REFERENCES[0], df, 2, clip=True, sigma=sigma)
        assert found[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "counts",
    [[1] * 9, [], 3, None, "counts", [[1] * 10, [1]], [-1] * 10, [math.nan] * 10, [math.inf] * 10, [["a"] * 10]],
)
def test_counts_that_make_no_sense_are_refused(counts: Any) -> None:
    with pytest.raises(ArgumentError, match="counts"):
        bleu_of_counts(counts)


def test_summed_counts_keep_their_leading_shape() -> None:
    counts = bleu_counts([["a", "b"], ["c"], []], [[["a"]], [["c", "d"]], [["e"]]])
    sums = np.stack([counts.sum(axis=0), counts[:2].sum(axis=0)])[None]
    assert bleu_of_counts(sums).shape == (1, 2, 4)
    assert bleu_of_counts(sums)[0, 0].tolist() == pytest.approx(plain_bleu(counts.sum(axis=0).tolist()), abs=1e-15)
    assert bleu_of_counts(np.zeros((0, 10))).shape == (0, 4)


@pytest.mark.parametrize("ngram", [(), ("a",) * 5, "a", ["a"], None, (["a"],), ("a", {})])
def test_what_is_no_ngram_is_refused(ngram: Any) -> None:
    with pytest.raises(ArgumentError, match=r"n-gram|hashed"):
        DocumentFrequencies.of(REFERENCES).get(ngram)


# The table that n-grams are looked up in.


def test_keys_made_to_share_one_slot_are_found_all_the_same() -> None:
    # The inverse of the first multiplier gives keys that all hash to slot 1.
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    keys = [(((1 << 48) + i) * inverse) % 2**64 for i in range(20_000)]
    crowd = np.array([key for key in keys if 0 < key < 2**63], np.int64)
    assert len(crowd) > 5000
    table = KeyTable(crowd, np.arange(1, len(crowd) + 1), missing=0)
    assert table.values[table.find(crowd)].tolist() == list(range(1, len(crowd) + 1))
    assert table.values[table.find(crowd + 1)].tolist() == [0] * len(crowd)


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(1, 2**63 - 1), max_size=60), st.lists(st.integers(0, 2**63 - 1), max_size=30))
def test_a_table_finds_what_a_dict_finds(keys: set[int], wanted: list[int]) -> None:
    ordered = list(keys)
    table = KeyTable(np.array(ordered, np.int64), np.arange(1, len(keys) + 1), missing=0)
    places = {key: i for i, key in enumerate(ordered, 1)}
    wanted = [*wanted, *ordered]
    found = table.values[table.find(np.array(wanted, np.int64))].tolist()
    assert found == [places.get(key, 0) for key in wanted]


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_bits_are_counted_without_numpy_2(numbers: list[int]) -> None:
    assert _count_bits(np.array(numbers, np.uint64)).tolist() == [number.bit_count() for number in numbers]


def test_new_tokens_get_ids_above_the_known_ones() -> None:
    encoded = encode([["x", "a", "y"], [], ["x", "b"]], [TokenTable({"a": 1}), TokenTable({"b": 2})])
    assert encoded.ids.tolist() == [3, 1, 4, 0, 0, 3, 2, 0]
    assert encoded.new == {"x": 3, "y": 4}
    assert encoded.base == 5


# Files.


def saved(tmp_path: Path, references: Any = REFERENCES, **options: Any) -> Path:
    path = tmp_path / "frequencies"
    DocumentFrequencies.of(references).save(path, **options)
    return path


@pytest.mark.parametrize(
    "references",
    [
        REFERENCES,
        [[[5, 7, 0], [7, -2]], [[10**30]]],
        [[np.array([5, 7])], [[5]]],
        [[["\n", "\ud800", 'q"', "é", "\0", ""]], [["\n", "\ud800"]]],
        [[[]]],
        [[["a"]]],
    ],
)
def test_saved_frequencies_come_back_the_same(tmp_path: Path, references: Any) -> None:
    before, path = DocumentFrequencies.of(references), saved(tmp_path, references)
    after = DocumentFrequencies.load(path)
    assert after.images == before.images
    assert list(after.vocabulary) == list(before.vocabulary)
    for gram in plain_df(references):
        assert after.get(gram) == before.get(gram) > 0
    candidates = [captions[0] for captions in references]
    assert CiderD(after)(candidates, references).tolist() == CiderD(before)(candidates, references).tolist()
    again = tmp_path / "again"
    after.save(again)
    assert again.read_bytes() == path.read_bytes()


def test_the_identity_must_be_the_one_that_was_saved(tmp_path: Path) -> None:
    path = saved(tmp_path, identity={"vocabulary": "0f3c"})
    assert DocumentFrequencies.load(path, identity={"vocabulary": "0f3c"}).images == 2
    assert DocumentFrequencies.load(path).images == 2
    for other in ({"vocabulary": "0f3d"}, {}, {"vocabulary": "0f3c", "end": "yes"}):
        with pytest.raises(FormatError, match="counted from other data"):
            DocumentFrequencies.load(path, identity=other)
    for wrong in ({"vocabulary": 3}, 5, ["ab"], "text"):
        with pytest.raises(ArgumentError, match="identity must be a dict"):
            saved(tmp_path, identity=wrong)
        with pytest.raises(ArgumentError, match="identity must be a dict"):
            DocumentFrequencies.load(path, identity=wrong)  # type: ignore[arg-type]


def test_the_digest_is_the_same_where_every_count_is_and_nowhere_else(tmp_path: Path) -> None:
    generator = random.Random(4)
    digests: dict[Any, str] = {}
    for _ in range(400):
        words = generator.choice([["a", "b"], ["a", "b", "c"], [1, 2], ["1", 1]])
        photos = [
            [generator.choices(words, k=generator.randint(0, 4)) for _ in range(generator.randint(1, 2))]
            for _ in range(generator.randint(1, 3))
        ]
        seen = Counter(
            ngram
            for captions in photos
            for ngram in {tuple(c[i : i + n]) for c in captions for n in (1, 2, 3, 4) for i in range(len(c) - n + 1)}
        )
        digest = DocumentFrequencies.of(photos).digest
        assert digests.setdefault((len(photos), frozenset(seen.items())), digest) == digest
        assert DocumentFrequencies.of(photos[::-1]).digest == digest
    assert len(set(digests.values())) == len(digests) > 300
    assert DocumentFrequencies.load(saved(tmp_path)).digest == DocumentFrequencies.of(REFERENCES).digest
    assert DocumentFrequencies.of([[[np.int64(3)]]]).digest == DocumentFrequencies.of([[[3]]]).digest


def test_frequencies_of_ids_are_refused_for_text_which_they_would_not_weigh() -> None:
    of_ids = DocumentFrequencies.of([[[4, 7]], [[4]]])
    with pytest.raises(ArgumentError, match="those of words"):
        score_captions(["a dog"], [["a dog"]], frequencies=of_ids)


@pytest.mark.parametrize(
    "tokens",
    [[True], [1, "1"], [1.5], [None], [("a",)], [b"a"]],
    ids=["bool", "mixed", "float", "None", "tuple", "bytes"],
)
def test_tokens_that_have_no_place_in_a_file_are_refused(tmp_path: Path, tokens: list[Any]) -> None:
    with pytest.raises(ArgumentError, match="words or of whole numbers"):
        saved(tmp_path, [[tokens]])
    assert not list(tmp_path.iterdir())


def test_places_without_a_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        DocumentFrequencies.load(tmp_path / "nothing")
    with pytest.raises(NotFoundError):
        DocumentFrequencies.load(tmp_path / "no" / "folder")
    with pytest.raises(FormatError, match="regular file"):
        DocumentFrequencies.load(tmp_path)
    with pytest.raises(RunError, match="can't be written"):
        DocumentFrequencies.of(REFERENCES).save(tmp_path / "no" / "folder")


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any], arrays: Callable[[bytes], bytes] = bytes) -> None:
    """Change the header, the arrays, or both, of a saved file."""
    data = path.read_bytes()
    end = 16 + int.from_bytes(data[8:16], "little")
    header = json.loads(data[16:end])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(data[:8] + len(text).to_bytes(8, "little") + text + arrays(data[end:]))


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.update(images=0),
        lambda h: h.update(images=-2),
        lambda h: h.update(images=2**70),
        lambda h: h.update(images=1),
        lambda h: h.update(images="2"),
        lambda h: h.update(images=True),
        lambda h: h.update(images=2.0),
        lambda h: h.update(identity=[]),
        lambda h: h.update(tokens={}),
        lambda h: h.update(tokens=[]),
        lambda h: h.update(tokens=["a", "dog", "wet", 3]),
        lambda h: h.update(tokens=["a", "dog", "wet", "a"]),
        lambda h: h.update(tokens=[["a"], "dog", "wet", "cat"]),
        lambda h: h.update(tokens=[True, False, 2, 3]),
        lambda h: h.update(tokens=["a", "dog", "wet", "cat", "more"]),
        lambda h: h.update(ngrams=[4, 4, 1]),
        lambda h: h.update(ngrams=[4, -4, 1, 0]),
        lambda h: h.update(ngrams=[4, 2**40, 1, 0]),
        lambda h: h.update(ngrams=[4, 10**4000, 1, 0]),
        lambda h: h.update(ngrams=[4, 4.0, 1, 0]),
        lambda h: h.update(ngrams=[4, 1, 4, 0]),
        lambda h: h.update(ngrams=4),
        lambda h: h.update(more=1),
        lambda h: h.pop("images"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = saved(tmp_path)
    rewritten(path, change)
    with pytest.raises(FormatError, match="damaged"):
        DocumentFrequencies.load(path)


def test_arrays_that_lie_are_refused(tmp_path: Path) -> None:
    # 4 tokens, 4 bigrams, 1 trigram, no 4-gram: keys of 4 and 1 int64, then counts of 4, 4 and 1 int32.
    good = saved(tmp_path).read_bytes()
    keys = np.frombuffer(good, "<i8", 5, len(good) - 36 - 40)
    assert keys.tolist() == [1 * 5 + 2, 1 * 5 + 3, 1 * 5 + 4, 3 * 5 + 2, 2 * 5 + 2]
    lies: list[tuple[str, Any]] = [("count", c) for c in (0, -1, 3, 2**31 - 1)]
    lies += [("key", k) for k in (0, -7, 1, 7, 5, 2**62, -(2**63))]
    for kind, value in lies:
        data = bytearray(good)
        if kind == "count":
            data[-4:] = int(value).to_bytes(4, "little", signed=True)
        else:
            data[-36 - 32 : -36 - 24] = int(value).to_bytes(8, "little", signed=True)
        (tmp_path / "lie").write_bytes(data)
        with pytest.raises(FormatError, match="damaged"):
            DocumentFrequencies.load(tmp_path / "lie")
    data = bytearray(good)
    data[-4:] = (2).to_bytes(4, "little")  # "a wet dog" in two photos, "a wet" in one
    (tmp_path / "lie").write_bytes(data)
    with pytest.raises(FormatError, match="more often than its beginning"):
        DocumentFrequencies.load(tmp_path / "lie")


def test_files_of_other_kinds_are_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "df"
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> Any:
            return ran.touch, ()

    np.savez(tmp_path / "arrays.npz", keys=np.arange(4))
    np.save(tmp_path / "objects.npy", np.array([Trap(), {}], object), allow_pickle=True)
    others = [b"", b"stdfreq", b"{}", b"\0" * 100, pickle.dumps(Trap()), (tmp_path / "arrays.npz").read_bytes()]
    for data in [*others, (tmp_path / "objects.npy").read_bytes(), b"version https://git-lfs.github.com/spec/v1\n"]:
        path.write_bytes(data)
        with pytest.raises(FormatError, match="holds no document frequencies"):
            DocumentFrequencies.load(path)
    assert not ran.exists()


def test_cut_and_lengthened_files_are_refused(tmp_path: Path) -> None:
    good = saved(tmp_path).read_bytes()
    path = tmp_path / "cut"
    for size in range(len(good)):
        path.write_bytes(good[:size])
        with pytest.raises(FormatError):
            DocumentFrequencies.load(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(FormatError, match="damaged"):
        DocumentFrequencies.load(path)
    for claimed in (2**63, 2**64 - 1, len(good)):
        path.write_bytes(good[:8] + claimed.to_bytes(8, "little") + good[16:])
        with pytest.raises(FormatError, match="ends within its header"):
            DocumentFrequencies.load(path)


def test_a_flipped_bit_is_refused_or_gives_finite_scores(tmp_path: Path) -> None:
    good = saved(tmp_path).read_bytes()
    path, rng = tmp_path / "flipped", random.Random(8)
    loaded = 0
    for place in range(len(good)):
        data = bytearray(good)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        try:
            frequencies = DocumentFrequencies.load(path)
        except FormatError:
            continue
        loaded += 1
        assert np.isfinite(CiderD(frequencies)([["a", "dog"], ["a", "wet"]], REFERENCES)).all()
    assert loaded < len(good) / 2
