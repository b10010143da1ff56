"""Forced words: the best captions that satisfy each image's demands, against exhaustive search and plain Python."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from chains import END, START, Chains, Found, as_list, assert_same, divisor, exhaustive, random_tables
from showtell.errors import ArgumentError, RunError
from showtell.search import Beam, Mask
from showtell.search.masks import Forbidden, MinLength, NoRepeatedNgram, NoRepeatedWord, Prefix

Demands = list[list[int]]
MASKS: list[list[Mask]] = [[], [MinLength(3, END)], [NoRepeatedWord()], [NoRepeatedNgram(1)], [Forbidden((0,))]]


def satisfies(caption: tuple[int, ...], demands: Demands) -> bool:
    return all(set(caption) & set(demand) for demand in demands)


def some_demands(rng: random.Random, words: int, most: int) -> Demands:
    say = [w for w in range(words) if w != END]
    return [rng.sample(say, rng.randint(1, 2)) for _ in range(rng.randint(0, most))]


def test_a_wide_beam_finds_the_best_captions_that_say_what_they_must() -> None:
    rng = random.Random(4)
    compared = 0
    for seed in range(120):
        words, max_length = rng.choice([(4, 4), (5, 3), (3, 5), (6, 3)])
        penalty, kind = rng.choice([0.0, 0.7, 1.0]), rng.choice(["power", "gnmt"])
        tables = random_tables(seed, 3, words)
        demands = [some_demands(rng, words, min(3, max_length)) for _ in range(3)]
        expected = [
            exhaustive(tables[i], max_length, penalty, kind, lambda c: satisfies(c, demands[i]))  # noqa: B023
            for i in range(3)
        ]
        size = words ** (max_length - 1)
        found = Chains(tables).search(Beam(size, max_length, penalty, kind), force=demands)
        for image in range(3):
            ours, best = as_list(found, image), expected[image][:size]
            assert all(satisfies(caption, demands[image]) for _, _, caption in ours)
            assert [one[0] for one in ours] == pytest.approx([one[0] for one in best], abs=1e-9)
            assert len({caption for _, _, caption in ours}) == len(ours)
            compared += len(ours)
    assert compared > 1000


def test_a_wide_beam_with_demands_and_masks_finds_the_best_captions_that_obey_both() -> None:
    rng = random.Random(5)
    for seed in range(60):
        masks = [MASKS[seed % len(MASKS)], [Prefix((2,))]][seed % 7 == 0]
        demands = [[2, 3], [3, 4]][: rng.randint(1, 2)]
        table = random_tables(seed, 1, 5)

        def allowed(caption: tuple[int, ...]) -> bool:
            words = caption[:-1] if caption[-1] == END else caption
            for mask in masks:  # noqa: B023
                if isinstance(mask, MinLength) and len(words) < 3:
                    return False
                if isinstance(mask, NoRepeatedWord) and any(a == b for a, b in itertools.pairwise(words)):
                    return False
                if isinstance(mask, NoRepeatedNgram) and len(set(words)) < len(words):
                    return False
                if isinstance(mask, Forbidden) and 0 in words:
                    return False
                if isinstance(mask, Prefix) and words[:1] != (2,):
                    return False
            return satisfies(caption, demands)  # noqa: B023

        expected = exhaustive(table[0], 4, 0.7, "power", allowed)
        found = as_list(Chains(table).search(Beam(600, 4, 0.7), masks, force=[demands]), 0)
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-9)
        assert {one[2] for one in found} == {one[2] for one in expected}


def slow_banks(table: torch.Tensor, how: Beam, demands: Demands) -> Found:
    """Banked beam search in plain Python, without early stop."""
    rows = table.tolist()
    full = frozenset(range(len(demands)))
    banks: dict[frozenset[int], list[tuple[float, tuple[int, ...]]]] = {frozenset(): [(0.0, ())]}
    finished: Found = []
    for length in range(1, how.max_length + 1):
        going: dict[frozenset[int], list[tuple[float, tuple[int, ...]]]] = {}
        for satisfied, live in banks.items():
            for total, caption in live:
                path = (START, START, *caption)
                for word, log_prob in enumerate(rows[path[-2]][path[-1]]):
                    now = satisfied | {i for i, demand in enumerate(demands) if word in demand}
                    if log_prob > float("-inf") and (word != END or now == full):
                        going.setdefault(now, []).append((total + log_prob, (*caption, word)))
        for total, caption in sorted(going.get(full, []), reverse=True)[: how.size]:
            if caption[-1] == END or length == how.max_length:
                finished.append((total / divisor(length, how.length_penalty, how.penalty), total, caption))
        banks = {
            bank: [one for one in sorted(found, reverse=True) if one[1][-1] != END][: how.size]
            for bank, found in going.items()
        }
    return sorted(finished, key=lambda one: -one[0])[: how.size]


def test_a_narrow_beam_equals_slow_banks_in_plain_python() -> None:
    rng = random.Random(6)
    for seed in range(60):
        words, max_length = rng.randint(4, 9), rng.randint(4, 8)
        how = Beam(rng.randint(1, 4), max_length, rng.choice([0.0, 0.7, 1.0]), rng.choice(["power", "gnmt"]))
        tables = random_tables(seed, 4, words)
        demands = [some_demands(rng, words, 4) for _ in range(4)]
        found = Chains(tables).search(how, force=demands)
        for image in range(4):
            assert_same(as_list(found, image), slow_banks(tables[image], how, demands[image]))


def test_an_image_without_demands_is_searched_as_if_alone_without_any() -> None:
    tables = random_tables(7, 3, 6)
    plain = Chains(tables).search(Beam(3, 6, 0.7))
    for force in ([[], [], []], [[], [[2], [3, 4]], []]):
        found = Chains(tables).search(Beam(3, 6, 0.7), force=force)
        for ours, theirs in zip(found, plain, strict=True):
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[2], theirs[2])


def test_a_batch_equals_its_images_one_by_one() -> None:
    rng = random.Random(8)
    tables = random_tables(8, 6, 7)
    demands = [some_demands(rng, 7, 3) for _ in range(6)]
    together = Chains(tables).search(Beam(3, 7), force=demands)
    for i in range(6):
        alone = Chains(tables[i : i + 1]).search(Beam(3, 7), force=demands[i : i + 1])
        assert [c[1:] for c in as_list(alone, 0)] == [c[1:] for c in as_list(together, i)]


def test_words_that_the_model_hardly_ever_says_appear_all_the_same() -> None:
    tables = random_tables(9, 5, 30)
    tables[..., 20:] = -60.0
    demands = [[[20], [21], [22, 23], [24], [25], [26, 27]]] * 5
    found = Chains(tables).search(Beam(1, 7), force=demands)
    assert (found.lengths == 7).all()
    for image in range(5):
        assert all(satisfies(caption, demands[image]) for _, _, caption in as_list(found, image))


def test_one_word_may_satisfy_several_demands() -> None:
    table = random_tables(10, 1, 5)
    found = Chains(table).search(Beam(2, 1), force=[[[2, 3], [3, 4], [0, 3]]])
    assert [c[2] for c in as_list(found, 0)] == [(3,)]
    with pytest.raises(ArgumentError, match="take 2 words at least and captions have at most 1"):
        Chains(table).search(Beam(2, 1), force=[[[2, 3], [4]]])


@pytest.mark.parametrize(
    ("force", "message"),
    [
        ([[[2]]], "for each of 2 images, not 1 lists"),
        ("ab", "for each of 2 images"),
        ([[[2]], [3]], "image 1: a demand is a list"),
        ([[[2]], 3], "image 1: a demand is a list"),
        ([[[2]], [[]]], "image 1: a demand without words"),
        ([[[2]], [[3, END]]], "image 1: the end token 1"),
        ([[[2]], [[-3]]], "a forced word"),
        ([[[2]], [["dog"]]], "a forced word"),
        ([[[2]], [[2], [3], [4], [5], [6], [7], [8]]], "image 1: 7 demands"),
        ([[[2]], [[2], [3], [4], [5], [6]]], "image 1: its demands take 5 words"),
    ],
)
def test_impossible_demands_end_in_a_clear_error(force: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Chains(random_tables(0, 2, 9)).search(Beam(2, 4), force=force)


def test_a_forced_word_that_the_model_never_says_ends_in_a_clear_error() -> None:
    tables = random_tables(0, 2, 5)
    tables[1, ..., 3] = float("-inf")
    with pytest.raises(RunError, match="image 1: no caption of at most 4 tokens says every forced word"):
        Chains(tables).search(Beam(2, 4), force=[[[3]], [[3]]])
    tables[1, ..., 3] = float("nan")
    with pytest.raises(RunError, match=r"image 1: the step returned NaN"):
        Chains(tables).search(Beam(2, 4), force=[[[3]], [[3]]])


def test_no_images_have_no_demands() -> None:
    assert Chains(random_tables(0, 1, 5)[:0]).search(Beam(2, 4), force=[]).tokens.shape == (0, 2, 4)
