"""Diverse beam search against the same in plain Python, and against what it must be at its edges."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from chains import END, START, Chains, Found, as_list, assert_same, divisor, exhaustive, random_tables
from showtell.errors import ArgumentError
from showtell.search import Beam, DiverseBeam, parse_search, search_from_config, search_text, search_to_config


def slow_diverse_beam(table: torch.Tensor, how: DiverseBeam) -> Found:
    """Diverse beam search in plain Python: a step of every group, the groups in turn."""
    rows, width = table.tolist(), how.size // how.groups
    live: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())] for _ in range(how.groups)]
    finished: list[Found] = [[] for _ in range(how.groups)]
    for length in range(1, how.max_length + 1):
        said: Counter[int] = Counter()
        for group in range(how.groups):
            candidates = []
            for place, (total, caption) in enumerate(live[group]):
                path = (START, START, *caption)
                for word, log_prob in enumerate(rows[path[-2]][path[-1]]):
                    if log_prob > float("-inf"):
                        ranked = log_prob - how.diversity * said[word]
                        candidates.append((-(total + ranked), place, -ranked, word, total + log_prob, caption))
            candidates.sort()
            for *_, word, total, caption in candidates[:width]:
                if word == END or length == how.max_length:
                    score = total / divisor(length, how.length_penalty, how.penalty)
                    finished[group].append((score, total, (*caption, word)))
            finished[group] = sorted(finished[group], key=lambda one: -one[0])[:width]
            going = [(total, (*caption, word)) for *_, word, total, caption in candidates if word != END][:width]
            if length == how.max_length:
                going = [(total, (*caption, word)) for *_, word, total, caption in candidates[:width] if word != END]
            elif going and len(finished[group]) == width:
                reachable = max(total for total, _ in going) / divisor(how.max_length, how.length_penalty, how.penalty)
                if finished[group][-1][0] >= reachable:
                    going = []
            live[group] = going
            said.update(caption[-1] for _, caption in going)
    return sorted((one for each in finished for one in each), key=lambda one: -one[0])


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_it_equals_a_slow_one_in_plain_python(coarse: bool) -> None:
    rng = random.Random(3)
    compared = 0
    for seed in range(80):
        groups, width = rng.randint(1, 4), rng.randint(1, 3)
        penalty, kind = rng.choice([0.0, 0.7, 1.0]), rng.choice(["power", "gnmt"])
        diversity = rng.choice([0.25, 0.5, 2.0] if coarse else [0.0, 0.3, 1.0, 5.0])
        how = DiverseBeam(groups * width, groups, diversity, rng.randint(1, 8), penalty, kind)
        tables = random_tables(seed, 3, rng.randint(4, 8), coarse=coarse)
        expected = [slow_diverse_beam(tables[i], how) for i in range(3)]
        if not all(expected):
            continue
        found = Chains(tables).search(how)
        for image in range(3):
            assert_same(as_list(found, image), expected[image])
            compared += 1
    assert compared > 120


@pytest.mark.parametrize("size", [1, 3, 5])
def test_one_group_is_beam_search(size: int) -> None:
    tables = random_tables(1, 6, 6)
    for penalty in (0.0, 1.0):
        beam = Chains(tables).search(Beam(size, 7, penalty))
        for ours, theirs in zip(Chains(tables).search(DiverseBeam(size, 1, 0.7, 7, penalty)), beam, strict=True):
            assert torch.equal(ours, theirs)


def test_without_diversity_every_group_finds_what_a_beam_of_its_size_finds() -> None:
    tables = random_tables(2, 6, 6)
    beam = Chains(tables).search(Beam(2, 7))
    found = Chains(tables).search(DiverseBeam(6, 3, 0.0, 7))
    for image in range(6):
        assert [c[2] for c in as_list(found, image)] == [c[2] for c in as_list(beam, image) for _ in range(3)]


def test_groups_begin_with_different_words_where_diversity_is_strong() -> None:
    tables = random_tables(3, 20, 9)
    tables[:, START, START, END] = -50.0
    found = Chains(tables).search(DiverseBeam(4, 4, 100.0, 6))
    assert all(len(set(first)) == 4 for first in found.tokens[:, :, 0].tolist())
    beam = Chains(tables).search(Beam(4, 6))
    assert any(len(set(first)) < 4 for first in beam.tokens[:, :, 0].tolist())


def test_log_probs_and_scores_are_without_the_penalty() -> None:
    tables = random_tables(4, 5, 5)
    found = Chains(tables).search(DiverseBeam(6, 3, 1.5, 4, 0.7, "gnmt"))
    for image in range(5):
        everything = {caption: (s, t) for s, t, caption in exhaustive(tables[image], 4, 0.7, "gnmt")}
        captions = as_list(found, image)
        assert len(captions) == 6
        for score, total, caption in captions:
            assert (score, total) == pytest.approx(everything[caption], abs=1e-9)
        assert [c[0] for c in captions] == sorted((c[0] for c in captions), reverse=True)


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": 5, "groups": 2},
        {"groups": 0},
        {"groups": 7},
        {"groups": True},
        {"diversity": -0.1},
        {"diversity": float("nan")},
        {"max_length": 0},
        {"length_penalty": 6},
        {"penalty": "mean"},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="DiverseBeam"):
        DiverseBeam(**options)  # type: ignore[arg-type]


def test_it_is_spelt_on_the_command_line_and_in_config_json() -> None:
    assert parse_search("diverse:6,groups=3,diversity=0.5") == DiverseBeam()
    for search in (DiverseBeam(), DiverseBeam(8, 2, 1.5, 30, 0.7, "gnmt")):
        assert search_from_config(search_to_config(search)) == search
        assert parse_search(search_text(search)) == search
