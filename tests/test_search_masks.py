"""Masks: what they forbid, told by plain rules about whole captions."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from chains import END, Chains, CountReads, as_list, assert_same, every_caption, exhaustive, random_tables, slow_beam
from showtell.decoders import LSTMDecoder
from showtell.errors import ArgumentError, RunError
from showtell.generate import generate
from showtell.protocols import Features
from showtell.search import Beam, Greedy, Mask
from showtell.search.masks import (
    Forbidden,
    MinLength,
    NoBadEnding,
    NoRepeatedNgram,
    NoRepeatedWord,
    OnlyFor,
    Prefix,
)

Caption = tuple[int, ...]
Rule = Callable[[Caption], bool]


def words_of(caption: Caption) -> Caption:
    return caption[:-1] if caption[-1] == END else caption


def runs(words: Caption, size: int) -> list[Caption]:
    return [words[i : i + size] for i in range(len(words) - size + 1)]


def at_least(n: int) -> Rule:
    return lambda caption: len(words_of(caption)) >= n


def no_run_twice(n: int) -> Rule:
    return lambda caption: len(set(runs(words_of(caption), n))) == len(runs(words_of(caption), n))


def no_word_after_itself(caption: Caption) -> bool:
    return all(a != b for a, b in runs(words_of(caption), 2))  # type: ignore[misc]


def none_of(ids: Caption) -> Rule:
    return lambda caption: not set(caption) & set(ids)


def no_ending(endings: tuple[Caption, ...]) -> Rule:
    return lambda caption: not any(words_of(caption)[-len(e) :] == e for e in endings if len(e) <= len(caption))


def begins(prefix: Caption) -> Rule:
    return lambda caption: caption[: len(prefix)] == prefix


def some_masks(rng: random.Random, words: int, max_length: int, count: int) -> tuple[list[Mask], list[Rule]]:
    """Masks, and the same in plain rules, for chains of `words` words."""
    say = [w for w in range(words) if w != END]
    n, size = rng.randint(0, max_length), rng.randint(1, 3)
    forbidden = tuple(rng.sample(say, rng.randint(0, 1)))
    endings = tuple(tuple(rng.choices(say, k=rng.randint(1, 2))) for _ in range(rng.randint(0, 2)))
    prefix = tuple(rng.choices(say, k=rng.randint(0, min(2, max_length))))
    everything: list[tuple[Mask, Rule]] = [
        (MinLength(n, END), at_least(n)),
        (NoRepeatedNgram(size), no_run_twice(size)),
        (NoRepeatedWord(), no_word_after_itself),
        (Forbidden(forbidden), none_of(forbidden)),
        (NoBadEnding(endings, END, max_length), no_ending(endings)),
        (Prefix(prefix), begins(prefix)),
    ]
    chosen = rng.sample(everything, count)
    return [mask for mask, _ in chosen], [rule for _, rule in chosen]


def test_a_wide_beam_with_any_masks_and_penalty_finds_what_exhaustive_search_finds() -> None:
    rng = random.Random(0)
    full = empty = 0
    for seed in range(200):
        words, max_length = rng.choice([(3, 5), (4, 4), (5, 3), (4, 3)])
        penalty, kind = rng.choice([0.0, 0.6, 1.0, 2.5]), rng.choice(["power", "gnmt"])
        masks, rules = some_masks(rng, words, max_length, seed % 4)
        table = random_tables(seed, 1, words)
        expected = exhaustive(table[0], max_length, penalty, kind, lambda c: all(rule(c) for rule in rules))  # noqa: B023
        chains = Chains(table)
        search = Beam(words**max_length, max_length, penalty, kind)
        if not expected:
            with pytest.raises(RunError, match="forbidden"):
                chains.search(search, masks)
            empty += 1
            continue
        found = as_list(chains.search(search, masks), 0)
        by_caption = {caption: (score, total) for score, total, caption in expected}
        # Captions of the same transitions tie but for rounding, so compare the scores, then each with its own.
        assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-9)
        assert {caption for _, _, caption in found} == set(by_caption)
        for score, total, caption in found:
            assert (score, total) == pytest.approx(by_caption[caption], abs=1e-9)
        full += 1
    assert full > 150
    assert empty > 5


def test_a_narrow_beam_with_masks_equals_a_slow_one_in_plain_python() -> None:
    rng = random.Random(1)
    compared = 0
    for seed in range(80):
        words, max_length, size = rng.randint(4, 6), rng.randint(2, 4), rng.randint(1, 6)
        penalty, kind = rng.choice([0.0, 0.7, 1.0]), rng.choice(["power", "gnmt"])
        masks, rules = some_masks(rng, words, max_length, 2)
        # A word may follow where each mask's words, one by one, can: said here by what captions begin so.
        table = random_tables(seed, 1, words)
        may_follow = follows(masks)
        expected = slow_beam(table[0], size, max_length, penalty, kind, may_follow)
        if not expected:
            continue
        assert all(rule(caption) for _, _, caption in expected for rule in rules)
        assert_same(as_list(Chains(table).search(Beam(size, max_length, penalty, kind), masks), 0), expected)
        compared += 1
    assert compared > 50


def follows(masks: list[Mask]) -> Callable[[Caption, int], bool]:
    """Whether a word may follow, in plain Python, from the masks' fields."""

    def one(mask: Mask, caption: Caption, word: int) -> bool:
        if isinstance(mask, MinLength):
            return word != END or len(caption) >= mask.words
        if isinstance(mask, NoRepeatedNgram):
            return word == END or no_run_twice(mask.size)((*caption, word))
        if isinstance(mask, NoRepeatedWord):
            return caption[-1:] != (word,)
        if isinstance(mask, Forbidden):
            return word not in mask.ids
        if isinstance(mask, Prefix):
            return len(caption) >= len(mask.ids) or mask.ids[len(caption)] == word
        assert isinstance(mask, NoBadEnding)
        last = word == END or len(caption) == mask.max_length - 1
        return not last or no_ending(mask.endings)((*caption, word))

    return lambda caption, word: all(one(mask, caption, word) for mask in masks)


@pytest.mark.parametrize("search", [Greedy(5), Beam(2, 5), Beam(4, 5, 1.0, "gnmt")])
def test_masks_of_each_image_equal_the_images_one_by_one(search: Greedy | Beam) -> None:
    rng = random.Random(2)
    for seed in range(20):
        tables = random_tables(seed, 4, 6)
        say = (0, 2, 3, 4, 5)
        least = tuple(rng.randint(0, 5) for _ in range(4))
        forbidden = tuple(tuple(rng.sample(say, rng.randint(0, 2))) for _ in range(4))
        free = [[w for w in say if w not in some] for some in forbidden]
        prefix = tuple(tuple(rng.choices(f, k=rng.randint(0, 3))) for f in free)
        which = tuple(rng.random() < 0.5 for _ in range(4))
        masks = [MinLength(least, END), Forbidden(forbidden), Prefix(prefix), OnlyFor(NoRepeatedWord(), which)]
        try:
            together = Chains(tables).search(search, masks)
        except RunError:  # a prefix that repeats a word
            continue
        for i in range(4):
            own: list[Mask] = [MinLength(least[i], END), Forbidden(forbidden[i]), Prefix(prefix[i])]
            alone = Chains(tables[i : i + 1]).search(search, own + [NoRepeatedWord()] * which[i])
            for many, one in zip(together, alone, strict=True):
                assert torch.equal(many[i : i + 1], one)


def test_masks_never_make_the_host_wait_for_an_accelerator() -> None:
    which = (True, False, True)
    masks: list[Mask] = [
        MinLength(3, END),
        MinLength((0, 2, 5), END),
        NoRepeatedNgram(1),
        NoRepeatedNgram(2),
        NoRepeatedWord(),
        Forbidden((2,)),
        Forbidden(((2,), (), (3, 4))),
        NoBadEnding(((2,), (3, 4)), END, 4),
        Prefix((5,)),
        Prefix(((5,), (), (6, 7))),
        *(OnlyFor(NoRepeatedWord(), which), OnlyFor(Forbidden((5,)), which)),
    ]
    for prefix in (torch.tensor([[0]] * 6), torch.tensor([[0, 2, 3, 2]] * 6), torch.tensor([[0, 5, 6, 3]] * 6)):
        for mask in masks:
            with CountReads() as counted:
                mask(prefix, torch.zeros(6, 8))
            assert counted.reads == 0, mask


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t[0].item(),
        lambda t: bool(t.any()),
        lambda t: t.nonzero(),
        lambda t: t[t > 1],
        lambda t: t.masked_select(t > 1),
        lambda t: t.__setitem__(t > 1, torch.zeros(())),
        lambda t: torch.equal(t, t),
        lambda t: t.repeat_interleave(t.long()),
    ],
)
def test_what_makes_the_host_wait_is_counted(wait: Callable[[torch.Tensor], object]) -> None:
    with CountReads() as counted:
        wait(torch.arange(4.0))
    assert counted.reads


def test_the_rules_of_the_tests_leave_something_and_take_something() -> None:
    captions = list(every_caption(4, 4))
    for rule in (
        at_least(3),
        no_run_twice(1),
        no_run_twice(2),
        no_word_after_itself,
        none_of((2,)),
        no_ending(((2,), (0, 3))),
        begins((2, 0)),
    ):
        assert 0 < sum(map(rule, captions)) < len(captions)


def test_generate_obeys_masks_and_keeps_the_models_own_log_probs() -> None:
    torch.manual_seed(0)
    decoder = LSTMDecoder(30, 6, embed_dim=8, hidden_dim=8).eval()
    features = Features(torch.randn(5, 6))
    masks = [MinLength(4, 2), NoRepeatedNgram(1), Prefix((9, 8)), lambda prefix, log_probs: log_probs]
    for search in (Greedy(7), Beam(3, 7)):
        found = generate(decoder, features, search, masks=masks)
        inputs = torch.cat([torch.ones_like(found.tokens[..., :1]), found.tokens[..., :-1]], 2).flatten(0, 1)
        logits = decoder(inputs, decoder.prepare(features)).logits
        forced = logits.log_softmax(-1).gather(2, found.tokens.flatten(0, 1).unsqueeze(2)).view(found.tokens.shape)
        real = torch.arange(7) < found.lengths.unsqueeze(2)
        assert torch.allclose(found.token_log_probs, forced.where(real, 0.0), atol=1e-5)
        assert (found.tokens[..., :2] == torch.tensor([9, 8])).all()
        for caption in found.tokens.flatten(0, 1).tolist():
            words = caption[: caption.index(2)] if 2 in caption else caption
            assert len(words) >= 4
            assert len(set(words)) == len(words)


def test_a_custom_mask_may_return_new_tensors() -> None:
    def only_even(prefix: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
        return log_probs.masked_fill(torch.arange(log_probs.shape[1]) % 2 == 1, float("-inf"))

    decoder = LSTMDecoder(30, 6, embed_dim=8, hidden_dim=8)
    assert (generate(decoder, Features(torch.randn(3, 6)), Beam(3, 7), masks=[only_even]).tokens % 2 == 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: MinLength(-1, 2),
        lambda: MinLength((3, True), 2),
        lambda: MinLength(3, -1),
        lambda: NoRepeatedNgram(0),
        lambda: NoRepeatedNgram(21),
        lambda: Forbidden([3]),  # type: ignore[arg-type]
        lambda: Forbidden((3, "a")),  # type: ignore[arg-type]
        lambda: Forbidden(((3,), 4)),  # type: ignore[arg-type]
        lambda: Forbidden((-1,)),
        lambda: Prefix("a photo"),  # type: ignore[arg-type]
        lambda: NoBadEnding(((),), 2, 9),
        lambda: NoBadEnding((3,), 2, 9),  # type: ignore[arg-type]
        lambda: NoBadEnding(((3,),), 2, 0),
        lambda: OnlyFor(NoRepeatedWord(), (1, 0)),  # type: ignore[arg-type]
    ],
)
def test_masks_that_make_no_sense_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ArgumentError):
        make()


@pytest.mark.parametrize(
    "mask",
    [
        Forbidden((30,)),
        Forbidden(((1,), (), (30,))),
        Prefix((4, 30)),
        MinLength(3, 30),
        NoBadEnding(((4, 30),), 2, 9),
        NoBadEnding(((4,),), 30, 9),
        Forbidden(((3,), (4,))),  # of two images, given three
        "MinLength",
    ],
)
def test_masks_that_do_not_fit_the_decoder_are_refused(mask: Mask) -> None:
    with pytest.raises(ArgumentError):
        generate(LSTMDecoder(30, 6, embed_dim=8, hidden_dim=8), Features(torch.randn(3, 6)), masks=[mask])
