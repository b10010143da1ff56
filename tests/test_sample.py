"""Samples: how often each caption is drawn, against exact probabilities, and that chance depends on nothing else."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from chains import END, START, Chains, as_list, every_caption, random_tables
from showtell.decoders import LSTMDecoder
from showtell.errors import ArgumentError, RunError
from showtell.generate import generate
from showtell.protocols import Features
from showtell.search import Greedy, Hypotheses, Mask, Sample, noise, parse_search, search_from_config, search_text
from showtell.search import search_to_config as to_config
from showtell.search.masks import Forbidden, MinLength, NoRepeatedWord

DRAWN = [
    (Sample(), ()),
    (Sample(temperature=0.6), ()),
    (Sample(temperature=2.5), ()),
    (Sample(top_k=3), ()),
    (Sample(top_k=1), ()),
    (Sample(top_p=0.7), ()),
    (Sample(min_p=0.2), ()),
    (Sample(temperature=1.4, top_k=4, top_p=0.85, min_p=0.15), ()),
    (Sample(temperature=0.8, top_p=0.9), (MinLength(2, END), Forbidden((3,)), NoRepeatedWord())),
]


def sharpened(log_probs: list[float], how: Sample) -> list[float]:
    """The probabilities that a word is drawn with, in plain Python."""
    ids = sorted((i for i, p in enumerate(log_probs) if p > -math.inf), key=lambda i: (-log_probs[i], i))
    ids = ids[: how.top_k or None]
    weights = {i: math.exp(log_probs[i] / how.temperature) for i in ids}
    total, before = sum(weights.values()), 0.0
    kept = {}
    for i in ids:
        if before / total < how.top_p:
            kept[i] = weights[i]
        before += weights[i]
    kept = {i: w for i, w in kept.items() if w >= how.min_p * max(kept.values())}
    return [kept.get(i, 0.0) / sum(kept.values()) for i in range(len(log_probs))]


def exact(table: torch.Tensor, how: Sample, masks: tuple[Mask, ...], max_length: int) -> dict[tuple[int, ...], float]:
    """The probability of each caption."""
    rows = table.tolist()
    found = {}
    for caption in every_caption(len(rows), max_length):
        chance, path = 1.0, (START, START, *caption)
        for i, word in enumerate(caption):
            log_probs = torch.tensor([rows[path[i]][path[i + 1]]], dtype=torch.float64)
            for mask in masks:
                log_probs = mask(torch.tensor([path[1 : i + 2]]), log_probs)
            chance *= sharpened(log_probs[0].tolist(), how)[word]
            if not chance:
                break
        if chance:
            found[caption] = chance
    return found


@pytest.mark.parametrize(("how", "masks"), DRAWN, ids=range(len(DRAWN)))
def test_captions_are_drawn_as_often_as_their_exact_probabilities_say(how: Sample, masks: tuple[Mask, ...]) -> None:
    table = random_tables(3, 1, 5)
    expected = exact(table[0], how, masks, 3)
    assert sum(expected.values()) == pytest.approx(1.0)
    images, count = 100, 200
    search = Sample(count, how.temperature, how.top_k, how.top_p, how.min_p, seed=11, max_length=3)
    found = Chains(table.expand(images, -1, -1, -1)).search(search, masks)
    drawn = Counter(caption for i in range(images) for _, _, caption in as_list(found, i))
    assert set(drawn) <= set(expected)
    total = images * count
    assert drawn.total() == total
    # Pearson's statistic; cells that expect fewer than 5 go together.
    cells = [(drawn[c], total * p) for c, p in expected.items() if total * p >= 5]
    rest = [(drawn[c], total * p) for c, p in expected.items() if total * p < 5]
    if rest:
        cells.append((sum(n for n, _ in rest), sum(e for _, e in rest)))
    statistic = sum((n - e) ** 2 / e for n, e in cells if e)
    freedom = len(cells) - 1
    assert statistic <= freedom + 3.5 * math.sqrt(2 * freedom)


def test_log_probs_are_the_models_own_and_captions_come_best_first() -> None:
    table = random_tables(4, 1, 5)
    rows = table[0].tolist()
    found = Chains(table.expand(20, -1, -1, -1)).search(Sample(30, 0.5, 4, 0.9, 0.1, seed=0, max_length=6))
    for image in range(20):
        captions = as_list(found, image)
        assert [c[1] for c in captions] == sorted((c[1] for c in captions), reverse=True)
        for score, total, caption in captions:
            path = (START, START, *caption)
            own = [rows[path[i]][path[i + 1]][path[i + 2]] for i in range(len(caption))]
            assert score == total == pytest.approx(sum(own))
    assert found.token_log_probs.sum(2) == pytest.approx(found.log_probs)


def test_a_seed_gives_the_same_captions_whatever_the_batch() -> None:
    tables = random_tables(5, 12, 6)
    search = Sample(4, 1.2, seed=3, max_length=7)
    together = Chains(tables).search(search)
    again = Chains(tables).search(search)
    for size in (1, 5):
        for at in range(0, 12, size):
            some = Chains(tables[at : at + size]).search(search, positions=range(12)[at : at + size])
            for many, few in zip(together, some, strict=True):
                assert torch.equal(many[at : at + size], few)
    assert all(torch.equal(a, b) for a, b in zip(together, again, strict=True))
    other = Chains(tables).search(Sample(4, 1.2, seed=4, max_length=7))
    assert not torch.equal(together.tokens, other.tokens)
    # More samples and more room: those that were there stay.
    more = Chains(tables).search(Sample(9, 1.2, seed=3, max_length=7))
    for image in range(12):
        assert Counter(c[2] for c in as_list(together, image)) <= Counter(c[2] for c in as_list(more, image))


def test_equal_images_and_samples_of_one_seed_are_not_drawn_alike() -> None:
    table = torch.full((1, 40, 40, 40), -math.log(40))
    found = Chains(table.expand(10, -1, -1, -1)).search(Sample(10, seed=0, max_length=8))
    assert len({tuple(t) for t in found.tokens.flatten(0, 1).tolist()}) > 95


def test_without_a_seed_each_call_draws_other_captions() -> None:
    chains = Chains(random_tables(6, 8, 6))
    search = Sample(3, max_length=8)
    assert not torch.equal(chains.search(search).tokens, chains.search(search).tokens)


def test_drawing_leaves_the_random_state_of_torch_alone() -> None:
    before = torch.random.get_rng_state()
    Chains(random_tables_of_ones()).search(Sample(3, max_length=4))
    assert torch.equal(before, torch.random.get_rng_state())


def random_tables_of_ones() -> torch.Tensor:
    return torch.full((2, 4, 4, 4), -math.log(4))


def test_the_noise_is_splitmix_in_64_bit_numbers() -> None:
    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    seed, positions = 2**63 - 5, [0, 7, 2**40]
    found = noise.uniforms(seed, torch.tensor(positions), 2, 3).tolist()
    for n, position in enumerate(positions):
        for k in range(2):
            for t in range(3):
                x = mix((seed + 0x9E3779B97F4A7C15) % 2**64)
                for coordinate in (position, k, t):
                    x = mix((x + (coordinate + 1) * 0x9E3779B97F4A7C15) % 2**64)
                assert found[n][k][t] == (x >> 11) * 2.0**-53 + 2.0**-54
                assert 0 < found[n][k][t] < 1


def test_distinct_samples_are_the_drawn_ones_without_repetitions() -> None:
    tables = random_tables(7, 6, 4)
    plain = Chains(tables).search(Sample(25, seed=1, max_length=3))
    distinct = Chains(tables).search(Sample(25, seed=1, max_length=3, distinct=True))
    fewer = 0
    for image in range(6):
        all_drawn = as_list(plain, image)
        once = as_list(distinct, image)
        assert {c[2] for c in once} == {c[2] for c in all_drawn}
        assert len(once) == len({c[2] for c in once})
        fewer += len(once) < len(all_drawn)
        gone = distinct.lengths[image] == 0
        assert (distinct.scores[image][gone] == -math.inf).all()
        assert (distinct.log_probs[image][gone] == -math.inf).all()
        assert (distinct.tokens[image][gone] == END).all()
        assert not gone[: len(once)].any()
    assert fewer == 6


def test_steps_stream_the_words_that_the_call_returns_one_at_a_time() -> None:
    chains = Chains(random_tables(8, 4, 5))
    search = Sample(seed=2, max_length=9)
    steps = list(search.steps(chains, chains.state(), images=4, start=START, end=END))
    found = chains.search(search)
    assert torch.equal(torch.stack([s.tokens for s in steps], 1), found.tokens[:, 0, : len(steps)])
    assert torch.equal(torch.stack([s.log_probs for s in steps], 1), found.token_log_probs[:, 0, : len(steps)])
    chains.calls = 0
    next(search.steps(chains, chains.state(), images=4, start=START, end=END))
    assert chains.calls == 1
    wide = next(Sample(3, seed=2).steps(chains, chains.state(), images=4, start=START, end=END))
    assert wide.tokens.shape == (12,)
    assert list(search.steps(chains, {}, images=0, start=START, end=END)) == []


def test_the_likeliest_word_alone_is_what_greedy_takes() -> None:
    chains = Chains(random_tables(9, 10, 6))
    greedy = chains.search(Greedy(8))
    for search in (Sample(top_k=1, max_length=8), Sample(top_p=1e-9, max_length=8), Sample(min_p=1.0, max_length=8)):
        assert_equal(chains.search(search), greedy)


def assert_equal(found: Hypotheses, expected: Hypotheses) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_a_word_without_chance_is_never_drawn_even_at_the_edges_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.full((1, 5, 5, 5), -math.inf)
    table[..., 2] = math.log(0.3)
    table[..., 3] = math.log(0.7)
    for edge in (0.0, 2.0**-54, 1 - 2.0**-53, 1.0):
        chances = torch.full((1, 1, 4), edge, dtype=torch.float64)
        with monkeypatch.context() as patch:
            patch.setattr("showtell.search.sample.uniforms", lambda *_: chances)  # noqa: B023
            for how in (Sample(max_length=4), Sample(top_k=4, max_length=4), Sample(top_p=0.99, max_length=4)):
                tokens = Chains(table).search(how).tokens
                assert torch.isin(tokens, torch.tensor([2, 3])).all()


def test_photos_in_batches_of_any_size_get_the_same_sampled_captions() -> None:
    torch.manual_seed(0)
    decoder = LSTMDecoder(30, 6, embed_dim=8, hidden_dim=8)
    pooled = torch.randn(9, 6)
    search = Sample(2, seed=5, max_length=9)
    together = generate(decoder, Features(pooled), search)
    for i in range(9):
        alone = generate(decoder, Features(pooled[i : i + 1]), search, positions=[i])
        assert torch.equal(alone.tokens[0], together.tokens[i])
        assert torch.allclose(alone.log_probs[0], together.log_probs[i], atol=1e-5)


def test_positions_must_fit_the_images() -> None:
    chains = Chains(random_tables(0, 2, 5))
    for positions in ([0], [0, -1], [0, 1.5], [0, 1, 2], [0, 2**63]):
        with pytest.raises(ArgumentError, match="position"):
            chains.search(Sample(), positions=positions)


@pytest.mark.parametrize(
    "options",
    [
        {"count": 0},
        {"count": 1001},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"temperature": 101},
        {"top_k": -1},
        {"top_k": 2.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": True},
        {"seed": "1"},
        {"distinct": 1},
        {"max_length": 0},
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="Sample"):
        Sample(**options)  # type: ignore[arg-type]


def test_a_sample_is_spelt_on_the_command_line_and_in_config_json() -> None:
    written = parse_search("sample:3,temperature=0.8,top_p=0.9,seed=1,distinct=true")
    assert written == Sample(3, 0.8, top_p=0.9, seed=1, distinct=True)
    assert parse_search("sample") == Sample()
    for search in (Sample(), written, Sample(seed=2**63 - 1)):
        assert search_from_config(to_config(search)) == search
        assert parse_search(search_text(search)) == search
    for wrong in ("sample:3,seed=none", "sample:3,distinct=1", "sample:true", "sample:seed=-1", "sample:top_k=x"):
        with pytest.raises(ArgumentError):
            parse_search(wrong)


def test_no_word_allowed_or_nan_end_in_a_clear_error() -> None:
    tables = random_tables(0, 3, 5)
    tables[2, :, 0] = -math.inf
    with pytest.raises(RunError, match="image 2: every next word"):
        Chains(tables).search(Sample(4, seed=0))
    tables[1, ..., 2] = math.nan
    with pytest.raises(RunError, match=r"image 1.*NaN"):
        Chains(tables).search(Sample(4, top_p=0.9, seed=0))
