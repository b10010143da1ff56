"""Captions as arrays of numbers: tokens to ids, n-grams to ids, and how often a caption has each of its n-grams.

Many captions lie in one flat array, a 0 after each. An n-gram is known by the number of its first n - 1 tokens and its
last token, so one 64-bit key is exact for any vocabulary that fits in memory; nothing is told apart by a hash alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any

import numpy as np

from ..errors import ArgumentError

__all__ = [
    "ORDERS",
    "Captions",
    "Distinct",
    "Encoded",
    "KeyTable",
    "References",
    "TokenTable",
    "distinct",
    "encode",
    "encode_references",
    "flatten",
    "own_counts",
    "row_starts",
]

ORDERS = (1, 2, 3, 4)

Captions = Sequence[Sequence[Hashable]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float64]]

_SPACE = 4  # slots a key, at least
_LIMIT = 500  # rounds of probing before another multiplier is tried; honest keys need about 30


@dataclass(frozen=True, eq=False)
class Encoded:
    """R captions as ids: `ids` (T + R,) holds every token as a number from 1, and a 0 after each caption.

    lengths: (R,) words of each. new: the tokens that no table had, to ids above all known ones. base: larger than
    every id, so that `a * base + b` is another number for every pair.
    """

    ids: Ints
    lengths: Ints
    new: Mapping[Hashable, int]
    base: int

    @cached_property
    def starts(self) -> Ints:
        """(R,) where each caption begins in `ids`."""
        return row_starts(self.lengths)

    @cached_property
    def rows(self) -> Ints:
        """(T + R,) the caption that each place belongs to."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths + 1)

    def places(self, rows: Ints) -> Ints:
        """Where the tokens of some captions, and the 0 after each, are in `ids`."""
        sizes = self.lengths[rows] + 1
        ends = np.cumsum(sizes)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.starts[rows] - ends + sizes, sizes)


@dataclass(frozen=True, eq=False)
class References:
    """The captions of N photos, one photo's after the other.

    sizes: (N,) captions of each photo. photos: (captions,) the photo of each. numbers: (captions,) which of its photo's
    captions each is, from 0.
    """

    encoded: Encoded
    sizes: Ints
    photos: Ints
    numbers: Ints


def row_starts(lengths: Ints) -> Ints:
    """Where each caption begins when captions of such lengths lie one after the other with a 0 after each."""
    return np.cumsum(lengths + 1) - lengths - 1


def flatten(references: Sequence[Captions]) -> tuple[list[Sequence[Hashable]], Ints]:
    """The references of all photos in one list, and how many each photo has, (N,).

    Raises ArgumentError for no photos, a photo without references and what is no list, naming the position.
    """
    if not _is_list(references):
        raise ArgumentError(f"references must be a list with one list of captions a photo, not {_named(references)}")
    if not len(references):
        raise ArgumentError("there are no photos; give references of at least one")
    for i, captions in enumerate(references):
        if not _is_list(captions):
            raise ArgumentError(f"photo {i} has no list of references but {_named(captions)}; give a list of captions")
        if not len(captions):
            raise ArgumentError(f"photo {i} has no references; each photo needs at least one")
    return list(chain.from_iterable(references)), np.fromiter(map(len, references), np.int64, len(references))


def encode_references(references: Sequence[Captions], known: Sequence[TokenTable] = ()) -> References:
    """The tokenised references of N photos as ids; the `known` tables are used as `encode` does.

    Raises ArgumentError as `flatten` and `encode` do.
    """
    captions, sizes = flatten(references)
    photos = np.repeat(np.arange(len(sizes)), sizes)
    numbers = np.arange(len(captions)) - (np.cumsum(sizes) - sizes)[photos]
    encoded = encode(captions, known, name=lambda i: f"reference {numbers[i]} of photo {photos[i]}")
    return References(encoded, sizes, photos, numbers)


def encode(
    captions: Captions, known: Sequence[TokenTable], *, name: Callable[[int], str] = "candidate {}".format
) -> Encoded:
    """Turn tokens into ids: those of the first of the `known` tables that has it, else new ones.

    Example:
        >>> encoded = encode([["a", "dog"], [], ["dog"]], [TokenTable({"dog": 1})])
        >>> encoded.ids.tolist(), encoded.lengths.tolist(), encoded.new
        ([2, 1, 0, 0, 1, 0], [2, 0, 1], {'a': 2})

    Known ids count from 1 without a gap over all the tables together. Two tokens are the same when a dict says
    so: 1 and "1" are two, 1 and True are one. `name` turns a caption's number into what an error calls it. Raises
    ArgumentError for captions that are no lists of hashable tokens.
    """
    if not _is_list(captions):
        raise ArgumentError(f"candidates must be a list of captions, not {_named(captions)}")
    for kind in set(map(type, captions)) - {list, tuple}:
        for i, caption in enumerate(captions):
            if type(caption) is kind and not _is_list(caption):
                raise ArgumentError(f"{name(i)} must be a list of tokens, not {_named(caption)}")
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    try:
        found, new = _numbers(captions, known)
    except TypeError as error:
        bad = next(_unhashable(captions), None)
        if bad is None:
            raise
        raise ArgumentError(f"{name(bad)} holds a token that can't be hashed; use words or numbers") from error
    for kind in set(map(type, new)):
        if hasattr(kind, "tolist") and not issubclass(kind, np.generic):
            raise ArgumentError(f"the tokens are of type {kind.__name__}; give words or numbers, as .tolist() does")
    ids = np.zeros(len(found) + len(captions), np.int64)
    words = np.ones(len(ids), bool)
    words[np.cumsum(lengths + 1) - 1] = False
    ids[words] = found
    return Encoded(ids, lengths, new, 1 + len(new) + sum(len(table.ids) for table in known))


def _numbers(captions: Captions, known: Sequence[TokenTable]) -> tuple[Ints, dict[Hashable, int]]:
    """The id of every token, and those of the new ones."""
    flat = list(chain.from_iterable(captions))
    places, ids = np.arange(len(flat)), np.zeros(len(flat), np.int64)
    first = 1
    for number, table in enumerate(known):
        ids[places] = table.find(flat if number == 0 else list(map(flat.__getitem__, places.tolist())))
        places = np.flatnonzero(ids == 0)
        first += len(table.ids)
    rest = flat if len(places) == len(flat) else list(map(flat.__getitem__, places.tolist()))
    new = dict(zip(dict.fromkeys(rest), range(first, first + len(rest)), strict=False))
    ids[places] = np.fromiter(map(new.__getitem__, rest), np.int64, len(rest))
    return ids, new


class TokenTable:
    """Token to id; ids count from 1.

    Example:
        >>> TokenTable({"a": 1, "dog": 2}).find(["dog", "cat"]).tolist()
        [2, 0]
    """

    def __init__(self, ids: Mapping[Hashable, int]) -> None:
        """Keep the ids; where all tokens are small whole numbers, also as an array, which is several times faster."""
        self.ids = ids
        self._direct: Ints | None = None
        if ids and set(map(type, ids)) == {int}:
            tokens: list[int] = list(ids)  # type: ignore[arg-type]
            if min(tokens) >= 0 and max(tokens) < 1000 + 8 * len(tokens):
                self._direct = np.zeros(max(tokens) + 2, np.int64)  # the last is for all larger numbers
                self._direct[tokens] = list(ids.values())

    def find(self, tokens: list[Hashable]) -> Ints:
        """The id of each token, 0 for others; raises TypeError for a token that can't be hashed."""
        if self._direct is not None:
            try:
                numbers = np.frombuffer(array("q", tokens), np.uint64)  # type: ignore[type-var]
            except (TypeError, OverflowError):
                pass  # other tokens than whole numbers below 2^63: none of ours, or one that equals ours
            else:
                return self._direct[np.minimum(numbers, np.uint64(len(self._direct) - 1))]  # -1 is large here
        return np.fromiter(map(self.ids.get, tokens, repeat(0)), np.int64, len(tokens))


def _unhashable(captions: Captions) -> Iterator[int]:
    """The numbers of the captions with a token that can't be hashed."""
    for i, caption in enumerate(captions):
        try:
            for token in caption:
                hash(token)
        except TypeError:
            yield i


def _is_list(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def _named(value: Any) -> str:
    """What a wrong argument is, with advice where a usual slip explains it."""
    if isinstance(value, str):
        return f"the string {value!r:.60}"
    return f"a {type(value).__name__}" + ("; give lists, as .tolist() does" if hasattr(value, "tolist") else "")


def own_counts(encoded: Encoded) -> list[Ints]:
    """For n = 1..4, (T + R,): how often a caption has the n-gram that begins here, at its first place; else 0.

    Example:
        >>> [n.tolist() for n in own_counts(encode([["a", "b", "a", "b"]], []))][:2]
        [[2, 2, 0, 0, 0], [2, 1, 0, 0, 0]]

    An n-gram that occurs twice has an (n - 1)-gram that occurs twice and ends in a token that does, so each order
    looks at the few places only that the order below found repeated.
    """
    ids = encoded.ids
    fits = ids > 0
    places = np.flatnonzero(fits)
    counts = fits.astype(np.int64)
    tokens, places = _count_repeats(counts, encoded.rows[places] * encoded.base + ids[places], places)
    labels, every = tokens, [counts]
    for n in ORDERS[1:]:
        fits[: 1 - n] &= ids[n - 1 :] > 0
        fits[1 - n :] = False
        counts = fits.astype(np.int64)
        places = places[places < len(ids) - n + 1]
        places = places[tokens[places + n - 1] > 0]
        labels, places = _count_repeats(counts, labels[places] * (len(ids) + 1) + tokens[places + n - 1], places)
        every.append(counts)
    return every


def _count_repeats(counts: Ints, keys: Ints, places: Ints) -> tuple[Ints, Ints]:
    """Write into `counts`, ones so far, what is repeated: the number of equal keys at the first place, 0 at others.

    places: of the keys, ascending where keys are equal. Returns, for every place, a number from 1 that equal keys
    share, 0 where nothing is repeated; and the places that repeat, again ascending where keys are equal.
    """
    labels = np.zeros(len(counts), np.int64)
    if not len(keys):
        return labels, places
    order = np.argsort(keys, kind="stable")  # almost sorted already, which makes it fast
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    sizes = np.diff(first, append=len(keys))
    twice = np.flatnonzero(sizes > 1)
    first, sizes = first[twice], sizes[twice]
    ends = np.cumsum(sizes)
    repeated = places[order[np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - ends + sizes, sizes)]]
    labels[repeated] = np.repeat(np.arange(1, len(twice) + 1), sizes)
    counts[repeated] = 0
    counts[places[order[first]]] = sizes
    return labels, repeated


@dataclass(frozen=True, eq=False)
class Distinct:
    """keys: the distinct ones, ascending. numbers: of each key given, its place among them, from 1."""

    keys: Ints
    numbers: Ints
    order: Ints


def distinct(keys: Ints) -> Distinct:
    """Sort keys, each once."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    numbers = np.empty(len(keys), np.int64)
    numbers[order] = np.cumsum(new)
    return Distinct(ordered[new], numbers, order)


class KeyTable:
    """A value for each of many keys, by a hash table that compares the keys themselves.

    Example:
        >>> table = KeyTable(np.array([70, 20, 50]), np.array([0.7, 0.2, 0.5]), missing=-1.0)
        >>> table.values[table.find(np.array([50, 60, 70]))].tolist()
        [0.5, -1.0, 0.7]

    Keys are distinct and positive. `find` gives slots: 0 for a key that isn't there, and for the key 0, which every
    table has with the value `missing`. slots: of the keys, in the order they were given.
    """

    def __init__(self, keys: Ints, values: Any, missing: Any) -> None:
        """Put keys and values side by side, so that finding a value costs one access to far memory."""
        bits = max(4, (_SPACE * len(keys)).bit_length())
        self._mask = (1 << bits) - 1
        self._shift = np.uint64(64 - bits)
        table = np.full(1 << bits, -1, np.dtype([("key", np.int64), ("value", values.dtype)]))
        table[0] = 0, missing
        self._keys, self.values = table["key"], table["value"]
        multiplier = 0x9E3779B97F4A7C15
        while not self._place(keys, np.uint64(multiplier)):
            self._keys[1:] = -1
            multiplier = (multiplier * 0xD1342543DE82EF95 + 2) & 0xFFFFFFFFFFFFFFFF
        self.values[self.slots] = values

    def _place(self, keys: Ints, multiplier: np.uint64) -> bool:
        """Find a slot for every key; False when the keys crowd together under this multiplier."""
        self._multiplier = multiplier
        self.slots = self._first(keys)
        waiting = np.arange(len(keys))
        for _ in range(_LIMIT):
            slots, mine = self.slots[waiting], keys[waiting]
            free = self._keys[slots] < 0
            self._keys[slots[free]] = mine[free]  # of several for one slot the last stays
            waiting = waiting[self._keys[slots] != mine]
            if not len(waiting):
                return True
            self.slots[waiting] = (self.slots[waiting] + 1) & self._mask
        return False

    def _first(self, keys: Ints) -> Ints:
        return ((keys.view(np.uint64) * self._multiplier) >> self._shift).view(np.int64)

    def find(self, keys: Ints) -> Ints:
        """The slot of each key; 0 for what isn't there."""
        slots = self._first(keys)
        found = self._keys[slots]
        slots *= found >= 0
        waiting = np.flatnonzero((found != keys) & (found >= 0))
        here, keys = slots[waiting], keys[waiting]
        while len(waiting):
            here = (here + 1) & self._mask
            found = self._keys[here]
            slots[waiting] = here * (found >= 0)
            wrong = (found != keys) & (found >= 0)
            waiting, here, keys = waiting[wrong], here[wrong], keys[wrong]
        return slots
