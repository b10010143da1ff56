from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from showtell.errors import ArgumentError
from showtell.metrics import bleu


def test_a_repeated_word_counts_only_as_often_as_one_reference_has_it() -> None:
    # Papineni's own example: seven times "the" against a reference with two.
    candidate = ["the"] * 7
    references = [["the", "cat", "is", "on", "the", "mat"], ["there", "is", "a", "cat", "on", "the", "mat"]]
    scores = bleu([candidate], [references])
    assert scores.corpus[0] == pytest.approx(2 / 7, abs=1e-9)  # 7 words against 7 and 6: no brevity penalty
    assert scores.corpus[1] < 1e-6


def test_a_short_candidate_pays_the_brevity_penalty() -> None:
    scores = bleu([["a", "dog"]], [[["a", "dog", "runs", "on", "grass"]]])
    assert scores.corpus[0] == pytest.approx(math.exp(1 - 5 / 2), abs=1e-8)
    assert scores.corpus[1] == pytest.approx(math.exp(1 - 5 / 2), abs=1e-8)


def test_of_two_equally_close_references_the_shorter_sets_the_length() -> None:
    # Three words; references of two and four. Taking two: no penalty.
    scores = bleu([["a", "b", "c"]], [[["a", "b", "c", "d"], ["a", "b"]]])
    assert scores.corpus[0] == pytest.approx(1.0, abs=1e-8)


def test_a_one_word_match_has_the_values_of_the_official_guards() -> None:
    scores = bleu([["dog"]], [[["dog"]]])
    assert scores.each[0][0] == pytest.approx(0.999999998, abs=1e-9)
    assert scores.each[0][3] == pytest.approx(3.16e-05, rel=1e-2)


def test_the_corpus_value_comes_from_sums_not_from_the_mean() -> None:
    scores = bleu([["a"], ["x", "y", "z"]], [[["a"]], [["q", "r", "s"]]])
    assert scores.corpus[0] == pytest.approx(1 / 4, abs=1e-8)
    assert sum(each[0] for each in scores.each) / 2 == pytest.approx(1 / 2, abs=1e-8)


def test_empty_candidates_and_references_score_about_zero() -> None:
    scores = bleu([[], []], [[["a", "b"]], [[]]])
    assert all(value < 1e-5 for value in scores.corpus)
    assert all(0 <= value < 1e-5 for each in scores.each for value in each)


def test_a_string_instead_of_tokens_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"photo 0.*tokens"):
        bleu(["a dog"], [[["a", "dog"]]])
    with pytest.raises(ArgumentError, match="tokens"):
        bleu([["a", "dog"]], [["a dog"]])
    with pytest.raises(ArgumentError, match="no list of references"):
        bleu([["a", "dog"]], ["a dog"])


@pytest.mark.parametrize(("candidates", "references"), [([], []), ([["a"]], []), ([["a"]], [[]])])
def test_lists_that_do_not_match_are_refused(candidates: list[list[str]], references: list[list[list[str]]]) -> None:
    with pytest.raises(ArgumentError):
        bleu(candidates, references)


def test_the_conformance_kit_agrees_to_nine_digits(shared: Path) -> None:
    suites = json.loads((shared / "metrics" / "cases.json").read_text())["suites"]
    for suite in suites:
        images = suite["images"]
        scores = bleu([i["cand_tok"].split() for i in images], [[r.split() for r in i["refs_tok"]] for i in images])
        for n in range(4):
            key = f"Bleu_{n + 1}"
            assert scores.corpus[n] == pytest.approx(suite["corpus"][key], abs=1e-9), suite["name"]
            for each, image in zip(scores.each, images, strict=True):
                assert each[n] == pytest.approx(image["scores"][key], abs=1e-9), (suite["name"], image["id"])


def test_pycocoevalcap_agrees_on_random_captions() -> None:
    official = pytest.importorskip("pycocoevalcap.bleu.bleu")
    rng = random.Random(0)
    for _ in range(20):
        photos = rng.randint(1, 8)

        def caption() -> list[str]:
            return [rng.choice("abcde") for _ in range(rng.randint(1, 12))]

        candidates = [caption() for _ in range(photos)]
        references = [[caption() for _ in range(rng.randint(1, 5))] for _ in range(photos)]
        corpus, each = official.Bleu(4).compute_score(
            {i: [" ".join(r) for r in rs] for i, rs in enumerate(references)},
            {i: [" ".join(c)] for i, c in enumerate(candidates)},
            verbose=0,
        )
        ours = bleu(candidates, references)
        assert ours.corpus == pytest.approx(corpus, abs=1e-9)
        for n in range(4):
            assert [one[n] for one in ours.each] == pytest.approx(each[n], abs=1e-9)
