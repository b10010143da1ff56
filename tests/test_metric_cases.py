"""Our own texts, scored once by the official tools (scripts/score-metric-cases): tokens and scores must be theirs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from showtell.metrics import Cider, CiderD, DocumentFrequencies, ptb_tokenize, score_captions
from showtell.metrics.coco import coco_problem, coco_scores

CASES = json.loads((Path(__file__).parent / "metric_cases.json").read_text(encoding="utf-8"))
SUITES = {suite["name"]: suite for suite in CASES["suites"]}
EXACT = 1e-9


def texts(name: str) -> tuple[list[str], list[list[str]]]:
    images = SUITES[name]["images"]
    return [image["candidate"] for image in images], [image["references"] for image in images]


def differences(got: Sequence[float], expected: Sequence[float], where: str) -> list[str]:
    assert len(got) == len(expected)
    pairs = enumerate(zip(got, expected, strict=True))
    return [f"{where} {i}: {g!r} is not {e!r}" for i, (g, e) in pairs if not abs(g - e) <= EXACT]


def test_there_are_enough_cases() -> None:
    assert sum(len(suite["images"]) for suite in SUITES.values()) >= 150
    assert len(CASES["fixed_frequencies"]) >= 4
    assert {len(image["references"]) for suite in SUITES.values() for image in suite["images"]} == {1, 2, 3, 4, 5, 6}


def test_no_text_was_changed_after_it_was_scored() -> None:
    inputs = [
        [[s["name"], [[i["candidate"], *i["references"]] for i in s["images"]]] for s in CASES["suites"]],
        [[c["frequencies_of"], c["candidates_of"], c["end"]] for c in CASES["fixed_frequencies"]],
    ]
    assert hashlib.sha256(json.dumps(inputs).encode()).hexdigest() == CASES["inputs_sha256"]


@pytest.mark.parametrize("name", SUITES)
def test_the_tokens_are_those_of_the_official_tokeniser(name: str) -> None:
    wrong = []
    for image in SUITES[name]["images"]:
        given = [image["candidate"], *image["references"]]
        for text, expected in zip(given, [image["candidate_tokens"], *image["references_tokens"]], strict=True):
            if " ".join(ptb_tokenize(text)) != expected:
                wrong.append(f"{text!r}: {' '.join(ptb_tokenize(text))!r} is not {expected!r}")
    assert wrong == []


@pytest.mark.parametrize("name", SUITES)
def test_the_scores_are_those_of_the_official_scorers(name: str) -> None:
    scores = score_captions(*texts(name))
    expected = {metric for metric in SUITES[name]["corpus"] if metric != "METEOR"}
    assert set(scores.corpus) == set(scores.each) == expected
    wrong = []
    for metric in sorted(expected):
        each = [image["scores"][metric] for image in SUITES[name]["images"]]
        wrong += differences([scores.corpus[metric]], [SUITES[name]["corpus"][metric]], f"{metric} corpus")
        wrong += differences(scores.each[metric], each, metric)
    assert wrong == []


@pytest.mark.parametrize("case", CASES["fixed_frequencies"], ids=lambda case: case["name"])
def test_the_rewards_with_frequencies_of_other_photos_are_those_of_the_plain_formula(case: dict[str, Any]) -> None:
    end = [case["end"]] if case["end"] else []

    def words(text: str) -> list[str]:
        return text.split() + end  # the file's own tokens, so that the tokeniser's tests are not repeated here

    source = [[words(t) for t in image["references_tokens"]] for image in SUITES[case["frequencies_of"]]["images"]]
    images = SUITES[case["candidates_of"]]["images"]
    candidates = [words(image["candidate_tokens"]) for image in images]
    references = [[words(text) for text in image["references_tokens"]] for image in images]
    frequencies = DocumentFrequencies.of(source)
    wrong = []
    for metric, scorer in (("CIDEr-D", CiderD(frequencies)), ("CIDEr", Cider(frequencies))):
        wrong += differences(scorer(candidates, references).tolist(), case[metric], metric)
        wrong += differences(
            scorer(candidates, scorer.prepare(references)).tolist(), case[metric], f"{metric}, prepared"
        )
    assert wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if suite["meteor"]])
def test_meteor_is_that_of_the_official_wrapper(name: str) -> None:
    problem = coco_problem("METEOR")
    if problem:
        pytest.skip(problem)
    scores = coco_scores(*texts(name))
    each = [image["scores"]["METEOR"] for image in SUITES[name]["images"]]
    assert differences([scores.corpus["METEOR"]], [SUITES[name]["corpus"]["METEOR"]], "METEOR corpus") == []
    assert differences(scores.each["METEOR"], each, "METEOR") == []
