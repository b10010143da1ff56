"""Batches: every photo once an epoch, every caption in its turn, nothing repeated, any batch by its number."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from showtell.data import Batches, Record, prefetched
from showtell.errors import ArgumentError, DataError

START, END = 1, 2
VOCABULARY = SimpleNamespace(
    pad_id=0, start_id=START, end_id=END, encode_batch=lambda texts: [[int(word) for word in t.split()] for t in texts]
)


def make_records(captions: list[list[list[int]]]) -> list[Record]:
    return [
        Record(f"{i}.jpg", None, tuple(" ".join(map(str, words)) for words in each), "train", "")
        for i, each in enumerate(captions)
    ]


def numbered(counts: list[int], length: int = 1) -> list[Record]:
    """Photo i has counts[i] captions; caption k is the word 10 + 100 * i + k, `length` + k times."""
    return make_records([[[10 + 100 * i + k] * (length + k % 4) for k in range(n)] for i, n in enumerate(counts)])


def positions_as_images(positions: Any) -> Tensor:
    return torch.tensor(positions)


def make(records: list[Record], **options: Any) -> Batches:
    return Batches(records, VOCABULARY, positions_as_images, **{"trunk": False, **options})


def seen(batches: Batches, epoch: int) -> dict[int, list[int]]:
    """{photo: the first words of the captions that an epoch shows}."""
    shown: dict[int, list[int]] = {}
    for number in range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
        batch = batches.batch(number)
        photos = batch.inputs.tolist()  # type: ignore[union-attr]
        for row, (target, weight) in enumerate(zip(batch.targets.tolist(), batch.weights.tolist(), strict=True)):
            words = shown.setdefault(photos[row // (len(batch.tokens) // len(photos))], [])
            if weight[0]:
                words.append(target[0])
    return shown


def test_tokens_begin_with_start_and_targets_end_with_end() -> None:
    batches = make(make_records([[[7, 8, 9], [5]]]))
    batch = batches.batch(0)
    assert batch.tokens.tolist() == [[START, 7, 8, 9], [START, 5, 0, 0]]
    assert batch.targets.tolist() == [[7, 8, 9, END], [5, END, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.weights.dtype == torch.float32
    assert batch.inputs.tolist() == [0]  # type: ignore[union-attr]
    assert batch.trunk is False
    assert make(make_records([[[7]]]), trunk=True).batch(0).trunk is True


@pytest.mark.parametrize(
    ("words", "targets"), [(2, [5, 6, END]), (3, [5, 6, 7, END]), (4, [5, 6, 7, 8]), (9, [5, 6, 7, 8])]
)
def test_a_caption_that_is_cut_teaches_no_end(words: int, targets: list[int]) -> None:
    batch = make(make_records([[list(range(5, 5 + words))]]), max_length=4).batch(0)
    assert batch.targets.tolist() == [targets]
    assert batch.tokens.tolist() == [[START, *targets[:-1]]]
    assert batch.weights.sum() == len(targets)


@pytest.mark.parametrize("counts", [[1] * 7, [2] * 5, [5] * 6, [7] * 4, [1, 2, 5, 7, 7, 1, 5, 2, 2]])
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
def test_slots_are_filled_once_and_all_captions_shown_in_as_few_epochs_as_they_need(
    counts: list[int], slots: int
) -> None:
    batches = make(numbered(counts), photos=4, captions=slots, seed=3)
    epochs = [seen(batches, epoch) for epoch in range(16)]
    for i, count in enumerate(counts):
        everything = {10 + 100 * i + k for k in range(count)}
        for shown in epochs:
            assert len(shown[i]) == min(slots, count)
            assert len(set(shown[i])) == len(shown[i]), "none twice in a visit"
        needed = -(-count // slots)
        for first in range(len(epochs) - needed + 1):
            assert {word for shown in epochs[first : first + needed] for word in shown[i]} == everything


def test_fewer_captions_than_slots_leave_rows_of_padding() -> None:
    batch = make(numbered([1, 3]), photos=2, captions=5).batch(0)
    photos = batch.inputs.tolist()  # type: ignore[union-attr]
    assert len(batch.tokens) == 6, "as many slots as the photo with most captions has captions"
    for slot in (1, 2):
        row = photos.index(0) * 3 + slot
        assert not batch.weights[row].any()
        assert not batch.tokens[row].any()


@settings(deadline=None, max_examples=80)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    photos=st.integers(1, 12),
    captions=st.integers(1, 6),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
)
def test_every_epoch_has_every_photo_once_and_all_weights_are_right(
    counts: list[int], photos: int, captions: int, seed: int, epoch: int
) -> None:
    records = numbered(counts)
    batches = make(records, photos=photos, captions=captions, seed=seed, max_length=4)
    numbers = range(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch)
    drawn = [batches.batch(number) for number in numbers]
    met = Counter(photo for batch in drawn for photo in batch.inputs.tolist())  # type: ignore[union-attr]
    assert met == dict.fromkeys(range(len(counts)), 1)
    sizes = [len(batch.inputs) for batch in drawn]
    assert sizes == [photos] * (len(counts) // photos) + [len(counts) % photos] * (len(counts) % photos > 0)
    assert {batches.epoch_of(number) for number in numbers} == {epoch}
    assert sum(int((batch.weights[:, 0] > 0).sum()) for batch in drawn) == sum(min(n, captions) for n in counts)
    for batch in drawn:
        assert len(batch.tokens) == len(batch.inputs) * batches.captions
        assert batch.weights.any(0).all(), "no column of padding only"
        assert torch.equal(batch.targets > 0, batch.weights > 0)
        assert torch.equal(batch.tokens > 0, batch.weights > 0)
        assert torch.equal(batch.tokens[:, 1:], torch.where(batch.weights[:, 1:] > 0, batch.targets[:, :-1], 0))
    again = make(records, photos=photos, captions=captions, seed=seed, max_length=4)
    for number in reversed(numbers):
        one, two = again.batch(number), drawn[number - numbers[0]]
        assert all(torch.equal(a, b) for a, b in zip(one[:4], two[:4], strict=True))  # type: ignore[arg-type]


def test_order_differs_between_epochs_and_seeds_and_not_between_equal_ones() -> None:
    records = numbered([3] * 40)

    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = make(records, photos=4, seed=seed)
        return [batches.batch(epoch * 10 + i).inputs.tolist() for i in range(10)]  # type: ignore[union-attr]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert {frozenset(b) for b in order(0, 0)} != {frozenset(b) for b in order(0, 1)}


def test_photos_of_like_length_share_a_batch_and_batches_come_in_mixed_order() -> None:
    lengths = [1 + (i * 7) % 15 for i in range(640)]
    batches = make(make_records([[[5] * n] for n in lengths]), photos=8)
    widths = []
    padding = 0.0
    for number in range(batches.per_epoch):
        batch = batches.batch(number)
        widths.append(batch.tokens.shape[1])
        padding += float((batch.weights == 0).sum())
    assert padding < 0.1 * (sum(lengths) + len(lengths))
    assert widths != sorted(widths)
    assert len(set(widths[:20])) > 4


def test_batches_of_one_pool_do_not_come_in_order_of_length() -> None:
    batches = make(make_records([[[5] * n] for n in range(1, 65)]), photos=4, max_length=100)
    widths = [batches.batch(number).tokens.shape[1] for number in range(16)]
    pools = [widths[i : i + 4] for i in range(0, 16, 4)]
    assert sum(pool == sorted(pool) for pool in pools) < 3


def test_photos_without_a_word_are_refused_by_name() -> None:
    records = [*make_records([[[5]], [[], []]]), Record("none.jpg", None, (), "train", "")]
    with pytest.raises(DataError, match=r"2 photos have no caption(?s:.*)1\.jpg\n.*none\.jpg"):
        make(records)
    with pytest.raises(DataError, match="no photos"):
        make([])


def test_captions_without_a_word_leave_the_others_of_their_photo() -> None:
    batches = make(make_records([[[], [5], []], [[6], [7]]]), photos=1)
    assert {i: sorted(words) for i, words in seen(batches, 0).items()} == {0: [5], 1: [6, 7]}


@pytest.mark.parametrize(
    "options", [{"photos": 0}, {"captions": 0}, {"max_length": 1}, {"seed": -1}, {"photos": 1.5}, {"trunk": None}]
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(options))):
        make(numbered([1]), **options)


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(ArgumentError, match="number"):
        make(numbered([1])).batch(-1)


# --- one ahead --------------------------------------------------------------------------------------------------


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("showtell-batches")]


class Numbers:
    def __init__(self, last: int = 10**9) -> None:
        self.last = last
        self.made: list[int] = []

    def batch(self, number: int) -> Any:
        if number > self.last:
            raise DataError(f"no batch {number}")
        self.made.append(number)
        return number


def test_prefetched_batches_come_in_order_with_the_seconds_waited() -> None:
    stream = prefetched(Numbers(), 5)
    drawn = [next(stream) for _ in range(20)]
    assert [number for number, _ in drawn] == list(range(5, 25))
    assert all(seconds >= 0 for _, seconds in drawn)
    stream.close()
    assert threads() == []


def test_closing_early_ends_the_thread_after_at_most_one_batch_too_many() -> None:
    source = Numbers()
    stream = prefetched(source)
    assert threads() == []
    next(stream)
    stream.close()
    assert threads() == []
    assert source.made in ([0], [0, 1])


def test_an_error_in_the_thread_is_raised_where_the_batch_was_due() -> None:
    stream = prefetched(Numbers(last=1))
    assert [next(stream)[0] for _ in range(2)] == [0, 1]
    with pytest.raises(DataError, match="no batch 2"):
        next(stream)
    assert threads() == []


def test_a_negative_start_is_refused() -> None:
    with pytest.raises(ArgumentError, match="from 0"):
        next(prefetched(Numbers(), -1))
