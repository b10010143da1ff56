from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from chains import END, START, Chains, CountReads, as_list, assert_same, divisor, exhaustive, random_tables, slow_beam
from showtell.errors import ArgumentError, RunError
from showtell.rows import Rows
from showtell.search import (
    Beam,
    DiverseBeam,
    Greedy,
    Mask,
    Sample,
    Search,
    base,
    frontier,
    parse_search,
    search_from_config,
    search_text,
    search_to_config,
)
from showtell.search.masks import MinLength, NoBadEnding, NoRepeatedNgram

ALL = [
    Greedy(20),
    Beam(3, 20),
    Beam(3, 20, 1.0),
    DiverseBeam(4, 2, 0.5, 20),
    Sample(3, top_k=5, top_p=0.9, seed=1, max_length=20),
]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.5, 5.0])
def test_a_wide_beam_finds_what_exhaustive_search_finds(penalty: float) -> None:
    for seed in range(16):
        words, max_length = ((3, 5), (4, 4), (5, 3), (4, 1))[seed % 4]
        size = words ** (max_length - seed % 2)  # of all captions, or the best of them: each prefix still fits
        tables = random_tables(seed, 3, words)
        chains = Chains(tables)
        found = chains.search(Beam(size, max_length, penalty))
        for image in range(3):
            everything = exhaustive(tables[image], max_length, penalty)
            by_caption = {caption: (score, total) for score, total, caption in everything}
            ours = as_list(found, image)
            assert len({caption for _, _, caption in ours}) == len(ours) == min(size, len(everything))
            # Captions of the same transitions tie but for rounding, so compare the scores, then each with its own.
            assert [one[0] for one in ours] == pytest.approx([one[0] for one in everything[:size]], abs=1e-9)
            for score, total, caption in ours:
                assert (score, total) == pytest.approx(by_caption[caption], abs=1e-9)


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_a_narrow_beam_equals_a_slow_one_in_plain_python(coarse: bool) -> None:
    rng = random.Random(1)
    compared = 0
    for seed in range(60):
        words, max_length, size = rng.randint(4, 9), rng.randint(1, 9), rng.randint(1, 6)
        penalty = rng.choice([0.0, 0.0, 0.5, 1.0, 3.0])
        tables = random_tables(seed, 4, words, coarse=coarse)
        expected = [slow_beam(tables[i], size, max_length, penalty) for i in range(4)]
        if not all(expected):
            continue  # every word forbidden; tested below
        found = Chains(tables).search(Beam(size, max_length, penalty))
        for image in range(4):
            assert_same(as_list(found, image), expected[image])
            compared += 1
    assert compared > 100


@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
def test_beam_1_equals_greedy(coarse: bool) -> None:
    compared = 0
    for seed in range(40):
        chains = Chains(random_tables(seed, 5, 6, coarse=coarse, dtype=torch.float32))
        max_length = 1 + seed % 9
        try:
            greedy = chains.search(Greedy(max_length))
        except RunError:
            with pytest.raises(RunError):
                chains.search(Beam(1, max_length))
            continue
        for ours, theirs in zip(chains.search(Beam(1, max_length)), greedy, strict=True):
            assert torch.equal(ours, theirs)
        compared += 1
    assert compared > 15


def test_greedy_takes_the_likeliest_word_and_of_equals_the_lowest() -> None:
    table = torch.full((1, 4, 4, 4), -9.0)
    table[:, :, 0, [2, 3]] = -1.0
    table[:, :, 2, 3] = -2.0
    table[:, :, 3, 1] = -0.5
    found = Chains(table).search(Greedy(max_length=6))
    assert found.tokens.tolist() == [[[2, 3, 1, 1, 1, 1]]]
    assert found.lengths.tolist() == [[3]]
    assert found.token_log_probs.tolist() == [[[-1.0, -2.0, -0.5, 0.0, 0.0, 0.0]]]
    assert found.log_probs.tolist() == found.scores.tolist() == [[-3.5]]


def test_greedy_steps_stream_the_words_that_the_call_returns() -> None:
    chains = Chains(random_tables(3, 4, 5))
    steps = list(Greedy(9).steps(chains, chains.state(), images=4, start=START, end=END))
    found = chains.search(Greedy(9))
    assert torch.equal(torch.stack([s.tokens for s in steps], 1), found.tokens[:, 0, : len(steps)])
    assert len(steps) == int(found.lengths.max())


def test_one_step_can_be_streamed_without_the_next_being_computed() -> None:
    chains = Chains(random_tables(3, 1, 5))
    next(Greedy(9).steps(chains, chains.state(), images=1, start=START, end=END))
    assert chains.calls == 1


@pytest.mark.parametrize(
    "search", [Greedy(7), Beam(3, 7), Beam(3, 7, 1.0), DiverseBeam(4, 2, 0.5, 7), Sample(3, max_length=7)]
)
def test_a_decoder_that_never_ends_is_cut_at_the_limit(search: Search) -> None:
    tables = random_tables(0, 2, 5)
    tables[..., END] = -math.inf
    found = Chains(tables).search(search)
    assert (found.lengths == 7).all()
    assert not (found.tokens == END).any()


@pytest.mark.parametrize(
    "search",
    [Greedy(7), Beam(3, 7), Beam(3, 7, 2.0), DiverseBeam(3, 1, 0.5, 7), Sample(3, distinct=True, max_length=7)],
)
def test_a_decoder_that_ends_at_once_gives_one_caption_of_the_end_token(search: Search) -> None:
    tables = torch.full((2, 5, 5, 5), -math.inf)
    tables[..., END] = 0.0
    chains = Chains(tables)
    found = chains.search(search)
    assert found.tokens[:, 0].tolist() == [[END] * 7] * 2
    assert found.lengths[:, 0].tolist() == [1, 1]
    assert (found.lengths[:, 1:] == 0).all()
    assert (found.scores[:, 1:] == -math.inf).all()
    assert (found.log_probs[:, 1:] == -math.inf).all()
    assert (found.tokens[:, 1:] == END).all()
    assert (found.token_log_probs == 0).all()
    assert chains.calls == 1


def test_a_beam_wider_than_the_vocabulary_finds_each_caption_once() -> None:
    tables = random_tables(0, 2, 4)
    found = Chains(tables).search(Beam(50, 2))
    for image in range(2):
        assert_same(as_list(found, image), exhaustive(tables[image], 2, 0.0))
    assert (found.lengths > 0).sum(1).tolist() == [13, 13]  # "end", and three words with four followers each


def test_a_vocabulary_of_the_end_token_alone_is_enough() -> None:
    for search in (Greedy(3), Beam(2, 3), DiverseBeam(2, 2, 0.5, 3), Sample(2, top_k=5, top_p=0.5, max_length=3)):
        found = search(lambda p, s: (torch.zeros(p.shape[0], 1), s), {}, images=2, start=0, end=0, device="cpu")
        assert found.lengths[:, 0].tolist() == [1, 1]


def test_a_long_caption_can_win_after_a_full_set_of_short_ones_where_length_is_rewarded() -> None:
    # Ends cost 1 at once; going on costs 0.1 a word, then the end is free.
    table = torch.full((1, 4, 4, 4), -math.inf)
    table[0, :, START, [END, 2]] = torch.tensor([-1.0, -1.1])
    table[0, :, 2, [END, 2]] = torch.tensor([-0.3, -0.01])
    best = Chains(table).search(Beam(1, 6, 1.0))
    assert best.tokens[0, 0].tolist() == [2, 2, 2, 2, 2, 2]
    assert best.scores[0, 0].item() == pytest.approx((-1.1 - 5 * 0.01) / 6)
    assert Chains(table).search(Beam(1, 6)).tokens[0, 0, 0] == END


def test_the_search_stops_when_no_prefix_can_still_win() -> None:
    tables = random_tables(0, 2, 5)
    tables[..., END] = 0.0  # every prefix can end for nothing, all else costs
    chains = Chains(tables)
    chains.search(Beam(2, 50))
    assert chains.calls <= 4


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 5),
    words=st.integers(4, 8),
    size=st.integers(1, 9),
    max_length=st.integers(1, 7),
    penalty=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    coarse=st.booleans(),
)
def test_what_is_true_of_every_search(
    seed: int, images: int, words: int, size: int, max_length: int, penalty: float, coarse: bool
) -> None:
    tables = random_tables(seed, images, words, coarse=coarse, dtype=torch.float32)
    tables[:, :, 2:, END] = tables[:, :, 2:, END].clamp(min=-3.0)  # something can always end
    tables[:, :, START, 2] = -1.0
    tables[:, :, START, END] = -2.0
    searches: list[Any] = [
        Greedy(max_length),
        Beam(size, max_length, penalty),
        Beam(size, max_length, penalty, "gnmt"),
        DiverseBeam(2 * size, 2, 0.5, max_length, penalty),
        Sample(size, 1.3, 4, 0.9, 0.05, seed, max_length=max_length),
        Sample(size, seed=seed, distinct=True, max_length=max_length),
    ]
    for search in searches:
        found = Chains(tables).search(search)
        k = found.tokens.shape[1]
        assert found.tokens.shape == found.token_log_probs.shape == (images, k, max_length)
        assert found.lengths.shape == found.log_probs.shape == found.scores.shape == (images, k)
        assert (found.scores[:, 0] > -math.inf).all()
        assert (found.scores[:, 1:] <= found.scores[:, :-1]).all()
        for image in range(images):
            captions = as_list(found, image)
            if isinstance(search, Beam) or (isinstance(search, Sample) and search.distinct):
                assert len({c[2] for c in captions}) == len(captions)
            for rank, (score, total, caption) in enumerate(captions):
                assert END not in caption[:-1]
                assert caption[-1] == END or len(caption) == max_length
                assert (found.tokens[image, rank, len(caption) :] == END).all()
                path = (START, START, *caption)
                steps = [tables[image, path[i], path[i + 1], path[i + 2]].item() for i in range(len(caption))]
                padded = steps + [0.0] * (max_length - len(caption))
                assert found.token_log_probs[image, rank].tolist() == padded
                assert total == pytest.approx(sum(steps), abs=1e-4)
                cost = 1.0
                if isinstance(search, Beam | DiverseBeam):
                    cost = divisor(len(caption), penalty, search.penalty)
                assert score == pytest.approx(total / cost, abs=1e-4)
            own = {"positions": [image]} if isinstance(search, Sample) else {}
            alone = Chains(tables[image : image + 1]).search(search, **own)
            for batched, single in zip(found, alone, strict=True):
                assert torch.equal(batched[image : image + 1], single)


@pytest.mark.parametrize("search", [Greedy(8), Beam(3, 8), DiverseBeam(4, 2, 0.5, 8), Sample(3, seed=1, max_length=8)])
def test_a_thousand_images_at_once_equal_a_few_at_a_time(search: Search) -> None:
    tables = random_tables(5, 1000, 5, dtype=torch.float32)
    found = Chains(tables).search(search)
    own = {"positions": range(500, 510)} if isinstance(search, Sample) else {}
    some = Chains(tables[500:510]).search(search, **own)
    for many, few in zip(found, some, strict=True):
        assert torch.equal(many[500:510], few)


@pytest.mark.parametrize("search", [Greedy(5), Beam(3, 5), DiverseBeam(3, max_length=5), Sample(3, max_length=5)])
def test_no_images_give_no_captions_and_no_call(search: Search) -> None:
    chains = Chains(random_tables(0, 1, 5)[:0])
    found = chains.search(search)
    k = 1 if isinstance(search, Greedy) else 3
    assert found.tokens.shape == (0, k, 5)
    assert found.scores.shape == (0, k)
    assert chains.calls == 0


@pytest.mark.parametrize("search", ALL)
def test_an_accelerator_is_asked_every_few_steps_and_gives_the_same(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(Chains):
        def __call__(self, prefix: Tensor, state: Rows) -> tuple[Tensor, Rows]:
            last = prefix[:, -1]
            return self.tables[state["image"], state["before"], last], {"image": state["image"], "before": last}

        def state(self) -> Rows:
            return {k: v for k, v in super().state().items() if k != "seen"}

    for coarse in (False, True):
        tables = random_tables(7, 6, 6, coarse=coarse)
        tables[..., END] = tables[..., END].clamp(min=-4.0)
        rules: tuple[list[Mask], ...] = ([], [MinLength(3, END), NoRepeatedNgram(2), NoBadEnding(((2,),), END, 20)])
        masks = rules[not coarse]
        own = {"force": [[[2], [3, 4]]] * 6} if search == Beam(3, 20) else {}
        expected = Quiet(tables).search(search, masks, **own)
        with monkeypatch.context() as patch:
            patch.setattr(base, "looking_is_free", lambda device: False)
            patch.setattr(frontier, "looking_is_free", lambda device: False)
            with CountReads() as counted:
                found = Quiet(tables).search(search, masks, **own)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours, theirs)
        assert counted.reads <= 3 * 3  # at most three questions at steps 8, 16 and 20


@pytest.mark.parametrize("search", [Greedy(5), Beam(1, 5), Beam(3, 5), DiverseBeam(4, 2), Sample(3)])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.7])
def test_nan_and_values_above_zero_are_refused_by_image(search: Search, value: float) -> None:
    tables = random_tables(0, 3, 5)
    tables[1, ..., 2] = value
    with pytest.raises(RunError, match="image 1"):
        Chains(tables).search(search)


@pytest.mark.parametrize("search", [Greedy(5), Beam(1, 5), Beam(3, 5), DiverseBeam(4, 2), Sample(3)])
@pytest.mark.parametrize("from_word", [slice(None), slice(2, None)], ids=["at-once", "later"])
def test_an_image_with_every_word_forbidden_is_refused(search: Search, from_word: slice) -> None:
    tables = random_tables(0, 3, 5)
    tables[..., END] = -math.inf
    tables[2, :, from_word] = -math.inf
    tables[2, :, 0, [0, 1]] = -math.inf
    with pytest.raises(RunError, match="image 2: every next word was forbidden"):
        Chains(tables).search(search)


def test_a_prefix_in_a_blind_alley_does_not_stop_the_others() -> None:
    table = torch.full((1, 4, 4, 4), -math.inf)
    table[0, :, START, [2, 3]] = torch.tensor([-0.1, -3.0])  # 2 is likely and leads nowhere
    table[0, :, 3, END] = -0.2
    found = Chains(table).search(Beam(2, 5))
    assert as_list(found, 0) == [(pytest.approx(-3.2), pytest.approx(-3.2), (3, END))]
    with pytest.raises(RunError):
        Chains(table).search(Greedy(5))


@pytest.mark.parametrize("after_end", [math.nan, -math.inf])
def test_what_follows_a_finished_caption_or_a_dead_prefix_is_nobodys_business(after_end: float) -> None:
    tables = torch.full((2, 4, 4, 4), -math.inf)
    tables[0, :, START, END] = 0.0
    tables[0, :, END] = after_end
    tables[1, :, START, 2] = -1.0
    tables[1, :, 2, 2] = -1.0
    tables[1, :, [0, 1, 3], 3] = -1.0
    for search in (Greedy(5), Beam(3, 5), DiverseBeam(3, 3, 0.5, 5), Sample(3, max_length=5)):
        found = Chains(tables).search(search)
        assert found.lengths[:, 0].tolist() == [1, 5]


@pytest.mark.parametrize("search", [Greedy(5), Beam(2, 5), DiverseBeam(2, 2, 0.5, 5), Sample(2, max_length=5)])
def test_half_precision_is_summed_in_float32(search: Search) -> None:
    found = Chains(random_tables(0, 2, 5).bfloat16()).search(search)
    assert found.log_probs.dtype == found.token_log_probs.dtype == torch.float32


@pytest.mark.parametrize("search", [Greedy(5), Beam(2, 5), DiverseBeam(2, 2, 0.5, 5), Sample(2, max_length=5)])
def test_steps_and_states_of_the_wrong_shape_are_refused(search: Search) -> None:
    def run(log_probs: Tensor, state: Rows | None = None, end: int = 1, images: int = 1) -> None:
        search(lambda p, s: (log_probs, s), state or {}, images=images, start=0, end=end, device="cpu")

    for bad in (torch.zeros(5), torch.zeros(7, 4), torch.zeros(1, 1, 4), torch.zeros(search.max_length, 4).long()):
        with pytest.raises(ArgumentError, match="a step of"):
            run(bad)
    rows = 1 if isinstance(search, Greedy) else 2
    with pytest.raises(ArgumentError, match="end token 4"):
        run(torch.zeros(rows, 4), end=4)
    with pytest.raises(ArgumentError, match="'h'"):
        run(torch.zeros(rows, 4), state={"h": torch.zeros(2, 3)})
    with pytest.raises(ArgumentError, match="images"):
        run(torch.zeros(rows, 4), images=-1)


@pytest.mark.parametrize("tied", [0.0, 1.0, -math.inf])
def test_the_best_of_a_row_are_sorted_and_equal_ones_in_index_order(tied: float) -> None:
    rng = random.Random(0)
    for width, count in ((1, 1), (1, 4), (5, 2), (5, 5), (40, 6), (3000, 9)):
        rows = [[rng.choice([tied, 2.0, 3.0, rng.random()]) for _ in range(width)] for _ in range(4)]
        values, index = frontier.best(torch.tensor(rows), count)
        for row, top, places in zip(torch.tensor(rows).tolist(), values.tolist(), index.tolist(), strict=True):
            expected = sorted(range(width), key=lambda i: (-row[i], i))[:count]
            assert top == [row[i] for i in expected]
            assert [p for p, v in zip(places, top, strict=True) if v > -math.inf] == [
                i for i in expected if row[i] > -math.inf
            ]
            assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Greedy(0),
        lambda: Greedy(1001),
        lambda: Greedy(True),
        lambda: Greedy(2.0),  # type: ignore[arg-type]
        lambda: Beam(0),
        lambda: Beam(1001),
        lambda: Beam(3, max_length=0),
        lambda: Beam(3, length_penalty=-0.1),
        lambda: Beam(3, length_penalty=5.1),
        lambda: Beam(3, length_penalty=math.nan),
        lambda: Beam(3, length_penalty="1"),  # type: ignore[arg-type]
        lambda: Beam(3, penalty="average"),  # type: ignore[arg-type]
    ],
)
def test_options_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(ArgumentError):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("search", [Greedy(), Greedy(max_length=7), Beam(), Beam(5, 30, 0.7), Beam(penalty="gnmt")])
def test_a_search_survives_its_config(search: Greedy | Beam) -> None:
    assert search_from_config(search_to_config(search)) == search


def test_configs_and_texts_of_before_the_gnmt_penalty_stay_as_they_were() -> None:
    assert search_to_config(Beam()) == {"name": "beam", "size": 3, "max_length": 20, "length_penalty": 0.0}
    assert search_text(Beam()) == "beam:size=3,max_length=20,length_penalty=0.0"
    assert search_text(Beam(penalty="gnmt")) == "beam:size=3,max_length=20,length_penalty=0.0,penalty=gnmt"


@pytest.mark.parametrize("number", [1e-05, 0.1 + 0.2, 1 / 3, 0.012345678901234567, 5e-10, 1.0])
def test_every_number_survives_the_command_lines_spelling(number: float) -> None:
    for search in (Beam(length_penalty=number), DiverseBeam(diversity=number), Sample(top_p=number)):
        assert parse_search(search_text(search)) == search


def test_configs_of_something_else_are_refused() -> None:
    bad: Sequence[object] = (
        None,
        [],
        "beam",
        {},
        {"name": "best"},
        {"name": ["beam"]},
        {"name": "beam", "width": 3},
        {"name": "greedy", "size": 3},
        {"name": "beam", "size": "3"},
        {"name": "beam", "size": True},
        {"name": "beam", 3: 3},
    )
    for config in bad:
        with pytest.raises(ArgumentError):
            search_from_config(config)  # type: ignore[arg-type]

    class Mine(Greedy):
        pass

    with pytest.raises(ArgumentError, match="one of greedy, beam"):
        search_to_config(Mine())


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("greedy", Greedy()),
        ("greedy:max_length=30", Greedy(30)),
        ("beam", Beam()),
        ("beam:5", Beam(5)),
        ("beam:size=5", Beam(5)),
        ("beam:5,max_length=30,length_penalty=0.7", Beam(5, 30, 0.7)),
        ("beam:max_length=30,length_penalty=1", Beam(3, 30, 1.0)),
        ("beam:5,length_penalty=0.7,penalty=gnmt", Beam(5, length_penalty=0.7, penalty="gnmt")),
    ],
)
def test_a_search_is_read_from_the_command_line(text: str, search: Greedy | Beam) -> None:
    assert parse_search(text) == search


@pytest.mark.parametrize(
    "text",
    [
        "",
        "best",
        "Beam",
        "beam:",
        "beam:x",
        "beam:5,",
        "beam:5,size=3",
        "beam:0",
        "beam:-1",
        "beam:5.5",
        "greedy:5",
        "beam:max_length=3,5",
        "beam:5,width=2",
        "beam:true",
        "beam:5,penalty=average",
        "beam:5,length_penalty=high",
        "beam:5 ,max_length=3",
        "beam:٣",
        "greedy:max_length=nan",
        "beam:1e2",
        "beam:5,max_length=3,max_length=4",
        "beam:name=greedy",
        "beam:" + "9" * 5000,
        None,
    ],
)
def test_what_is_no_search_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError):
        parse_search(text)


@pytest.mark.parametrize(
    "search",
    [
        Beam(length_penalty=0.1 + 0.2),
        Beam(length_penalty=1e-5),
        DiverseBeam(diversity=1 / 30000),
        Sample(top_p=1e-12, min_p=5e-324, seed=2**63 - 1),
    ],
)
def test_any_number_that_a_search_takes_can_be_spelt(search: Search) -> None:
    assert parse_search(search_text(search)) == search


@pytest.mark.parametrize("text", ["sample:1,seed=-1", "beam:3,length_penalty=-0.5", "sample:temperature=1e3"])
def test_a_number_out_of_range_is_told_its_range(text: str) -> None:
    with pytest.raises(ArgumentError, match=r"must be a .*number in"):
        parse_search(text)
