"""Caption health and diversity: hand-made captions with counted results, and brute force."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from showtell.errors import ArgumentError
from showtell.metrics import DocumentFrequencies
from showtell.metrics.diversity import BAD_ENDINGS, Health, caption_health, div_n, self_cider

WORD = st.sampled_from(["dog", "cat", "tree", "red", "runs", "up", "big", "man"])
CAPTION = st.lists(WORD, max_size=7).map(" ".join)


def test_the_numbers_of_a_small_pile_of_captions_are_those_counted_by_hand() -> None:
    health = caption_health(
        [
            "A dog runs on the grass.",  # 6 words
            "a dog runs on the grass",  # the same words
            "A dog is standing next to a",  # 7 words, a bad ending
            "a man and a man and a hat",  # 8 words, "a man and" twice in a row
            "two <unk> on a <UNK>",  # 5 words, 2 of them unknown
            "",
            "?!",  # a word of its own for the tokeniser
            "...",
        ],
        training=["The dog runs.", "A dog runs, on the grass!", "two dogs"],
    )
    assert health == Health(
        captions=8,
        unique_ratio=6 / 8,
        most_common="A dog runs on the grass.",
        most_common_ratio=2 / 8,
        vocabulary=15,  # a dog runs on the grass is standing next to man and hat two ?!
        mean_length=(6 + 6 + 7 + 8 + 5 + 0 + 1 + 0) / 8,
        min_length=0,
        max_length=8,
        repeated_word_ratio=1 / 8,
        bad_ending_ratio=1 / 8,
        unknown_ratio=2 / 33,
        empty_ratio=2 / 8,
        novelty=4 / 6,
    )


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a a dog", True),
        ("a dog dog", True),
        ("a dog a dog runs", True),
        ("in front of in front of a house", True),
        ("top of a hill top of a hill", True),
        ("one two three four five one two three four five", False),
        ("a dog and a dog", False),
        ("a dog a cat a dog", False),
        ("the dog sees the dog", False),
        ("Dog dog", True),
        ("a dog, a dog", True),
        ("<unk> <unk>", False),
        ("a <unk> a <unk>", False),
        ("dog", False),
        ("", False),
    ],
)
def test_a_repeat_is_one_to_four_words_followed_at_once_by_the_same(caption: str, repeats: bool) -> None:
    assert caption_health([caption]).repeated_word_ratio == repeats


@given(CAPTION)
@settings(max_examples=100, deadline=None)
def test_repeats_are_those_found_by_comparing_all_slices(caption: str) -> None:
    words = caption.split()
    slices = [(words[i : i + n], words[i + n : i + 2 * n]) for n in range(1, 5) for i in range(len(words) - 2 * n + 1)]
    assert caption_health([caption]).repeated_word_ratio == any(a == b for a, b in slices)


@pytest.mark.parametrize("caption", ["a man with a", "a man and.", "A dog next TO", "the sky is"])
def test_a_caption_that_stops_in_the_middle_ends_badly(caption: str) -> None:
    assert caption_health([caption]).bad_ending_ratio == 1.0


@pytest.mark.parametrize("caption", ["a man with a hat on", "a man waits for her", "a train passing by", "a", ""])
def test_only_a_bad_last_word_makes_a_bad_ending(caption: str) -> None:
    assert caption_health([caption]).bad_ending_ratio == (caption == "a")


def test_the_bad_endings_are_words_as_the_tokeniser_gives_them() -> None:
    assert all(caption_health([f"a dog {word}"]).bad_ending_ratio == 1.0 for word in BAD_ENDINGS)


@pytest.mark.parametrize(
    ("caption", "unknown", "ratio"),
    [
        ("a <unk> dog", "<unk>", 1 / 3),
        ("<unk><unk>", "<unk>", 1.0),
        ("A <UNK>, a dog", "<unk>", 1 / 4),
        ("an UNK in a trunk", "unk", 1 / 5),
        ("unk", "UNK", 1.0),
        ("a [UNK].", " [UNK] ", 1 / 2),
        ("what is unknown", "unk", 0.0),
        ("a dog", "<unk>", 0.0),
        ("", "<unk>", 0.0),
    ],
)
def test_the_unknown_word_is_found_in_the_text_as_it_was_written(caption: str, unknown: str, ratio: float) -> None:
    assert caption_health([caption], unknown=unknown).unknown_ratio == ratio


def test_where_an_unknown_word_stands_makes_another_caption() -> None:
    assert caption_health(["a <unk> dog", "<unk> a dog", "a <UNK> dog"]).unique_ratio == 2 / 3


def test_without_training_captions_there_is_no_novelty() -> None:
    assert caption_health(["a dog"]).novelty is None
    assert caption_health([""], training=["a dog"]).novelty is None
    assert caption_health(["a dog"], training=[]).novelty == 1.0
    assert caption_health(["a dog", "A dog!", "a cat"], training=iter(["a dog."])).novelty == 1 / 3


def test_health_can_be_saved_as_json() -> None:
    health = caption_health(["a dog", "😀"], training=["a cat"])
    assert Health(**json.loads(json.dumps(dataclasses.asdict(health), allow_nan=False))) == health


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: caption_health([]), "no caption"),
        (lambda: caption_health("a dog"), "captions must be a list"),
        (lambda: caption_health(["a", None]), "caption 1 is None"),  # type: ignore[list-item]
        (lambda: caption_health(None), "captions must be a list"),  # type: ignore[arg-type]
        (lambda: caption_health(["a"], training="a dog"), "training must be a list"),
        (lambda: caption_health(["a"], training=["a", b"b"]), "training: caption 1"),  # type: ignore[list-item]
        (lambda: caption_health(["a"], unknown=""), "unknown must be"),
        (lambda: caption_health(["a"], unknown=3), "unknown must be"),  # type: ignore[arg-type]
        (lambda: div_n([], 1), "no photo"),
        (lambda: div_n([["a"], []], 1), "photo 1 has 0 captions"),
        (lambda: div_n(["a dog"], 1), "photo 0 must be a list"),
        (lambda: div_n("a dog", 1), "sets must be a list"),
        (lambda: div_n([["a"]], 0), "n must be"),
        (lambda: div_n([["a"]], 5), "n must be"),
        (lambda: div_n([[1]], 1), "photo 0: caption 0 is 1"),  # type: ignore[list-item]
        (lambda: self_cider([["a", "b"], ["a"]]), "photo 1 has 1 captions"),
        (lambda: self_cider([["a", "b"]]), "one photo"),
        (lambda: self_cider(None), "sets must be a list"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(ArgumentError, match=says):
        call()


@given(st.lists(st.lists(CAPTION, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_div_n_is_what_counting_gives(sets: list[list[str]], n: int) -> None:
    expected = []
    for captions in sets:
        seen = []
        for words in map(str.split, captions):
            for i in range(len(words) - n + 1):
                if words[i : i + n] not in seen:
                    seen.append(words[i : i + n])
        total = len(" ".join(captions).split())
        expected.append(len(seen) / total if total else 0.0)
    assert div_n(sets, n) == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def brute_force(sets: list[list[str]], source: list[list[str]]) -> float:
    """Self-CIDEr from the paper's formulas: explicit TF-IDF vectors, cosines, eigenvalues of K as a power sum."""

    def ngrams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    def vector(text: str, n: int) -> dict[tuple[str, ...], float]:
        found = {}
        for gram, count in ngrams(text, n).items():
            documents = sum(any(gram in ngrams(t, n) for t in captions) for captions in source)
            found[gram] = count * math.log(len(source) / max(1, documents))
        return found

    def cosine(a: dict[tuple[str, ...], float], b: dict[tuple[str, ...], float]) -> float:
        size = math.sqrt(sum(v * v for v in a.values())) * math.sqrt(sum(v * v for v in b.values()))
        return sum(v * b.get(g, 0.0) for g, v in a.items()) / size if size else 0.0

    values = []
    for captions in sets:
        vectors = [[vector(text, n) for n in (1, 2, 3, 4)] for text in captions]
        kernel = [[sum(map(cosine, a, b)) / 4 for b in vectors] for a in vectors]
        # The singular values of any square root of K are the roots of its eigenvalues.
        roots = np.sqrt(np.linalg.svd(np.array(kernel), compute_uv=False))
        roots[roots < 1e-6] = 0.0
        total = roots.sum()
        values.append(-math.log(roots.max() / total) / math.log(len(captions)) if total else 0.0)
    return sum(values) / len(values)


@given(st.lists(st.lists(CAPTION, min_size=2, max_size=5), min_size=2, max_size=4))
@settings(max_examples=60, deadline=None)
def test_self_cider_is_what_the_plain_formula_gives(sets: list[list[str]]) -> None:
    assert self_cider(sets) == pytest.approx(brute_force(sets, sets), abs=2e-6)


def test_self_cider_takes_frequencies_of_other_photos() -> None:
    source = [["a dog runs on grass", "the dog"], ["a cat on a red mat"], ["two men on horses", "a man rides"]]
    frequencies = DocumentFrequencies.of([[text.split() for text in texts] for texts in source])
    sets = [["a dog on a red mat", "two men on grass", "a dog runs on grass"]]
    value = self_cider(sets, frequencies=frequencies)
    assert value == pytest.approx(brute_force(sets, source), abs=1e-9)
    assert 0.5 < value < 1.0


def test_identical_captions_vary_by_nothing() -> None:
    other = ["a cat sleeps in a box", "an orange cat rests"]
    same = self_cider([["two men ride on horses"] * 5, other]) - self_cider([["two men ride on horses"] * 2, other])
    assert same == 0.0
    twice = [["two men ride on horses"] * 5, ["birds fly over the water"] * 3]
    assert self_cider(twice) == 0.0


def test_captions_without_a_common_ngram_vary_fully() -> None:
    sets = [
        ["two men ride horses", "birds fly over water", "a red bus stops"],
        ["cats sleep in boxes", "one big old dog"],
    ]
    assert self_cider(sets) == pytest.approx(1.0, abs=1e-12)


def test_between_them_lies_a_set_with_one_different_caption() -> None:
    other = ["cats sleep in boxes", "one big old dog"]
    values = [
        self_cider([["two men ride horses"] * same + ["birds fly over water"] * (4 - same), other])
        for same in (4, 3, 2)
    ]
    # One set of the two always has 1; of 4 captions, 3 + 1 and 2 + 2 have eigenvalues (3, 1) and (2, 2).
    roots = (math.sqrt(3), 1.0)
    assert values == pytest.approx(
        [0.5, (1 - math.log(roots[0] / sum(roots), 4)) / 2, (1 - math.log(1 / 2, 4)) / 2], abs=1e-12
    )


def test_captions_without_weight_vary_by_nothing() -> None:
    assert self_cider([["a dog", "a cat"], ["a dog", "a cat"]]) == 0.0
    assert self_cider([["", ""], ["", "..."]]) == 0.0
