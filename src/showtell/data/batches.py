"""Batches of N photos x c caption slots: endless, reachable by number, a pure function of (seed, number)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checks import flag, whole
from ..errors import ArgumentError, DataError
from ..garbage import uncollected
from ..protocols import Features, slice_features
from .augment import Augmented, refused
from .inputs import CachedViews
from .records import Record, listed

__all__ = ["Batch", "Batches", "Shard", "prefetched"]

_POOL = 16
_Ints = NDArray[np.int64]

References = tuple[tuple[tuple[int, ...], ...], ...]
"""Of each photo all captions, of each caption the ids of its words and the end token."""


class _Words(Protocol):
    """What is asked of a vocabulary."""

    @property
    def pad_id(self) -> int: ...
    @property
    def start_id(self) -> int: ...
    @property
    def end_id(self) -> int: ...
    def encode_batch(self, texts: Sequence[str], /) -> list[list[int]]: ...


class Batch(NamedTuple):
    """N photos with c caption slots each: rows R = N * c, row r belongs to photo r // c.

    inputs: images (N, 3, H, W) or Features of N photos. tokens (R, T) int64: the start token, then words. targets
    (R, T) int64: the token after each of them. weights (R, T) float32: 1 where there is a target, 0 on padding; a
    slot without a caption is padding altogether. trunk: the features are those of `encoder.trunk`. photos: their N
    positions among the records. references: where asked for, all captions of each photo, as `Batches.references`.
    captions (R,) int64: the number of each caption among those of all records, -1 in an empty slot.
    """

    inputs: Features | Tensor
    tokens: Tensor
    targets: Tensor
    weights: Tensor
    trunk: bool
    photos: tuple[int, ...] = ()
    references: References | None = None
    captions: Tensor | None = None

    @property
    def photo_count(self) -> int:
        """N."""
        return len(self.inputs if isinstance(self.inputs, Tensor) else self.inputs.pooled)

    def part(self, start: int, stop: int) -> Batch:
        """The photos start..stop-1 with their captions, as long as before: parts add up to the whole."""
        slots = len(self.tokens) // self.photo_count
        rows = slice(start * slots, stop * slots)
        inputs = self.inputs
        return Batch(
            inputs[start:stop] if isinstance(inputs, Tensor) else slice_features(inputs, start, stop),
            self.tokens[rows],
            self.targets[rows],
            self.weights[rows],
            self.trunk,
            self.photos[start:stop],
            None if self.references is None else self.references[start:stop],
            None if self.captions is None else self.captions[rows],
        )


class Batches:
    """Every photo once an epoch, with up to `captions` of its captions, photos of like length together.

    Example:
        >>> from types import SimpleNamespace
        >>> words = SimpleNamespace(
        ...     pad_id=0,
        ...     start_id=1,
        ...     end_id=2,
        ...     encode_batch=lambda texts: [[4 + len(word) for word in text.split()] for text in texts],
        ... )
        >>> record = Record("dog.jpg", None, ("a dog runs",), "train", "captions.csv:2")
        >>> batches = Batches([record], words, lambda positions: torch.zeros(len(positions), 3, 8, 8), trunk=False)
        >>> batch = batches.batch(0)
        >>> batch.tokens.tolist(), batch.targets.tolist()
        ([[1, 5, 7, 8]], [[5, 7, 8, 2]])

    A photo with fewer captions than slots leaves slots empty, none is repeated. One with n > captions shows
    `captions` of them a visit, going round and round an order of its own: any ceil(n / captions) epochs in a row show
    them all. No batch has more slots than the photo with most captions has captions. The last batch of an epoch holds
    what is left.

    A caption of more than max_length - 1 words is cut: its first max_length words are targets, the end token isn't,
    so that the model doesn't learn to stop there.

    Args:
        records: the photos and captions to learn from.
        vocabulary: gives `encode_batch` and the ids of the special tokens.
        inputs: positions in `records` -> Features or images of these photos: `CachedInputs`, `ImageInputs`; or
            `CachedViews`.
        photos: photos a batch, 1..65536.
        captions: caption slots a photo, 1..1000.
        max_length: tokens a caption, the end token included, 2..10000.
        seed: of the order and the choice of captions.
        trunk: handed on in each batch.
        augment: changes the photos that `inputs` gives, epoch by epoch; not with a cache's features.

    Raises:
        DataError: no records, or photos without a caption of at least one word.
        ArgumentError: a value out of range, or augmentation of features.
    """

    def __init__(
        self,
        records: Sequence[Record],
        vocabulary: _Words,
        inputs: Callable[[Sequence[int]], Features | Tensor],
        *,
        photos: int = 32,
        captions: int = 5,
        max_length: int = 20,
        seed: int = 0,
        trunk: bool,
        augment: Augmented | None = None,
    ) -> None:
        """Turn all captions into ids; no photo is read."""
        self.photos = whole("photos", photos, 1, 65536)
        self.max_length = whole("max_length", max_length, 2, 10_000)
        self.seed = whole("seed", seed, 0, 2**63 - 1)
        self.trunk = flag("trunk", trunk)
        self._with_references = False
        whole("captions", captions, 1, 1000)
        if not records:
            raise DataError("no photos to make batches of; pass at least one record")
        self.inputs = inputs
        self._augment = augment
        if augment is not None and trunk:
            raise refused(augment.augmentation)
        self._pad, self._start, self._end = vocabulary.pad_id, vocabulary.start_id, vocabulary.end_id
        self._encode(records, vocabulary)
        self.captions = min(captions, int(self._counts.max()))
        self.per_epoch = -(-len(records) // self.photos)
        # Each photo's own order of captions: sorted by photo, then by a random key.
        keys = np.random.default_rng([self.seed, 1]).random(int(self._counts.sum()))
        self._order = np.lexsort((keys, np.repeat(np.arange(len(records)), self._counts)))
        self._plan: tuple[int, list[_Ints], _Ints] | None = None

    @uncollected()
    def _encode(self, records: Sequence[Record], vocabulary: _Words) -> None:
        """All captions as one array of ids: `_begins` says where each begins, `_firsts` which is a photo's first."""
        parts: list[NDArray[np.int32]] = []
        lengths: list[_Ints] = []
        counts: list[_Ints] = []
        for begin in range(0, len(records), 4096):
            some = records[begin : begin + 4096]
            encoded = vocabulary.encode_batch([caption for record in some for caption in record.captions])
            sizes = np.fromiter(map(len, encoded), np.int64, len(encoded))
            parts.append(np.fromiter(chain.from_iterable(encoded), np.int32, int(sizes.sum())))
            owners = np.repeat(np.arange(len(some)), [len(record.captions) for record in some])[sizes > 0]
            counts.append(np.bincount(owners, minlength=len(some)).astype(np.int64))
            lengths.append(sizes[sizes > 0])
        self._counts = np.concatenate(counts)
        empty = [records[int(i)].id for i in np.flatnonzero(self._counts == 0)]
        if empty:
            raise DataError(f"{len(empty):,} photos have no caption of at least one word:{listed(empty)}")
        self._ids = np.concatenate(parts)
        self._lengths = np.concatenate(lengths)
        self._begins = np.cumsum(self._lengths) - self._lengths
        self._firsts = np.cumsum(self._counts) - self._counts

    @uncollected()
    def references(self, positions: Iterable[int]) -> References:
        """All captions of some photos, uncut: what a reward compares with.

        Example:
            >>> from types import SimpleNamespace
            >>> words = SimpleNamespace(pad_id=0, start_id=1, end_id=2, encode_batch=lambda texts: [[7, 8]] * 2)
            >>> record = Record("dog.jpg", None, ("a dog", "one dog"), "train", "captions.csv:2")
            >>> Batches([record], words, lambda positions: torch.zeros(1, 3, 8, 8), trunk=False).references([0])
            (((7, 8, 2), (7, 8, 2)),)
        """
        found = []
        for position in positions:
            first = int(self._firsts[position])
            captions = range(first, first + int(self._counts[position]))
            found.append(tuple(self._caption(number) for number in captions))
        return tuple(found)

    def _caption(self, number: int) -> tuple[int, ...]:
        begin = self._begins[number]
        return (*self._ids[begin : begin + self._lengths[number]].tolist(), self._end)

    def with_references(self) -> Self:
        """The same batches, each with the `references` of its photos: what `SelfCritical` learns from."""
        other = copy.copy(self)
        other._with_references = True
        return other

    def epoch_of(self, number: int) -> int:
        """The epoch, from 0, that the batch of this number belongs to."""
        return whole("number", number, 0, 2**62) // self.per_epoch

    def chosen(self, epoch: int) -> _Ints:
        """Numbers of the captions that an epoch shows, (photos, slots), -1 in an empty slot.

        Captions are numbered over all records, in order.
        """
        slots = np.arange(self.captions)
        counts, firsts = self._counts[:, None], self._firsts[:, None]
        turning = self._order[firsts + (epoch * self.captions + slots) % counts]
        return np.where(counts > self.captions, turning, np.where(slots < counts, firsts + slots, -1))

    def _planned(self, epoch: int) -> tuple[list[_Ints], _Ints]:
        """The photos of each batch of an epoch, and the captions chosen for each photo."""
        plan = self._plan
        if plan is None or plan[0] != epoch:
            rng = np.random.default_rng([self.seed, 0, epoch])
            chosen = self.chosen(epoch)
            longest = np.where(chosen < 0, 0, self._steps()[chosen]).max(axis=1)
            order = rng.permutation(len(chosen))
            # Photos are sorted by length inside pools only, and a small dataset has several pools: batches stay mixed.
            pool = self.photos * max(1, min(_POOL, len(order) // (4 * self.photos)))
            pools = [order[i : i + pool] for i in range(0, len(order), pool)]
            ordered = np.concatenate([p[np.argsort(longest[p], kind="stable")] for p in pools])
            cut = [ordered[i : i + self.photos] for i in range(0, len(ordered), self.photos)]
            full = len(ordered) // self.photos
            batches = [cut[i] for i in rng.permutation(full)] + cut[full:]
            plan = self._plan = (epoch, batches, chosen)
        return plan[1], plan[2]

    def _steps(self) -> _Ints:
        """Targets of each caption: its words and the end token, or max_length words."""
        return np.minimum(self._lengths + 1, self.max_length)

    def batch(self, number: int) -> Batch:
        """The batch of that number, from 0; epochs follow one another without end."""
        return self._batch(number, 0, 1)

    def part(self, number: int, rank: int, count: int) -> Batch | None:
        """One of `count` parts of a batch, as wide as the whole; None where it has too few photos for all parts.

        Parts are of photos that follow one another, the first ones a photo larger where that must be.
        """
        whole("rank", rank, 0, whole("count", count, 1, 2**31) - 1)
        return None if len(self._photos(number)) <= rank else self._batch(number, rank, count)

    def _photos(self, number: int) -> _Ints:
        epoch = self.epoch_of(number)
        return self._planned(epoch)[0][number - epoch * self.per_epoch]

    def _batch(self, number: int, rank: int, count: int) -> Batch:
        epoch = self.epoch_of(number)
        chosen, positions = self._planned(epoch)[1], self._photos(number)
        steps = np.where(chosen[positions] < 0, 0, self._steps()[chosen[positions]])
        width = int(steps.max())
        positions, steps = (np.array_split(each, count)[rank] for each in (positions, steps))
        captions, steps = chosen[positions].reshape(-1), steps.reshape(-1)
        lengths = np.minimum(self._lengths[captions], self.max_length)
        targets = np.full((len(captions), width), self._pad, np.int64)
        tokens = targets.copy()
        for row in np.flatnonzero(captions >= 0):
            begin, words, end = self._begins[captions[row]], lengths[row], steps[row]
            targets[row, :words] = self._ids[begin : begin + words]
            if words < end:
                targets[row, words] = self._end
            tokens[row, 0] = self._start
            tokens[row, 1:end] = targets[row, : end - 1]
        weights = np.arange(width) < steps[:, None]
        photos = tuple(positions.tolist())
        source = self.inputs.of(epoch) if isinstance(self.inputs, CachedViews) else self.inputs
        inputs = source(list(photos))
        if self._augment is not None:
            if not isinstance(inputs, Tensor):
                raise refused(self._augment.augmentation)
            inputs = self._augment(inputs, photos, epoch=epoch)
        return Batch(
            inputs,
            torch.from_numpy(tokens),
            torch.from_numpy(targets),
            torch.from_numpy(weights.astype(np.float32)),
            self.trunk,
            photos,
            self.references(photos) if self._with_references else None,
            torch.from_numpy(captions),
        )


class Shard:
    """One process's part of each batch, for a trainer that shares its steps with others.

    Example:
        >>> from types import SimpleNamespace
        >>> words = SimpleNamespace(pad_id=0, start_id=1, end_id=2, encode_batch=lambda texts: [[7, 8]] * len(texts))
        >>> records = [Record(f"{i}", None, ("a dog",), "train", "made up") for i in range(2)]
        >>> batches = Batches(records, words, lambda positions: torch.zeros(len(positions), 3, 8, 8), trunk=False)
        >>> [Shard(batches, rank, 3).batch(0) is None for rank in range(3)]
        [False, False, True]

    Its `batch` gives `Batches.part`. `rank` is which process, of `count`, from 0.
    """

    def __init__(self, batches: Batches, rank: int, count: int) -> None:
        """Keep the batches; nothing is read."""
        self.batches, self.rank, self.count = batches, rank, count

    def batch(self, number: int) -> Batch | None:
        """This process's part of the batch of that number; None where it has none."""
        return self.batches.part(number, self.rank, self.count)


class _Source(Protocol):
    def batch(self, number: int, /) -> Any: ...


def prefetched(batches: _Source, start: int = 0) -> Generator[tuple[Any, float], None, None]:
    """Batches from number `start` on, without end, the next one made in a thread while this one is used.

    Example:
        >>> class Numbers:
        ...     def batch(self, number):
        ...         return number * 10
        >>> stream = prefetched(Numbers(), 3)
        >>> [next(stream)[0] for _ in range(2)]
        [30, 40]
        >>> stream.close()

    Yields each batch with the seconds that it had to be waited for. What `batch` raises is raised here; closing the
    generator ends the thread.
    """
    if start < 0:
        raise ArgumentError(f"batches are numbered from 0, not {start}")
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="showtell-batches") as pool:
        coming = pool.submit(batches.batch, start)
        while True:
            before = time.perf_counter()
            batch = coming.result()
            waited = time.perf_counter() - before
            start += 1
            coming = pool.submit(batches.batch, start)
            yield batch, waited
