"""Which words of the references each word of a candidate meets, one bit a place of the reference.

From the bits of single words follow those of n-grams: the n-gram at place p of a candidate is where the (n - 1)-gram
is and, n - 1 places further, its last word is. So the references are looked up once a word, not once an n-gram.
A reference longer than 61 words is cut into windows of 61 places, each seeing 3 more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError
from .ngrams import (
    ORDERS,
    Captions,
    Encoded,
    Ints,
    KeyTable,
    References,
    TokenTable,
    distinct,
    encode,
    encode_references,
)

__all__ = ["WINDOW", "Bits", "Match", "Overlap", "Part", "ReferenceIndex", "popcount"]

Bits = np.ndarray[Any, np.dtype[np.uint64]]

WINDOW = 61
_OWN = np.uint64(2**WINDOW - 1)


class Match(NamedTuple):
    """places: where n-grams begin. counts: how often the reference has each, small unsigned numbers."""

    places: Ints
    counts: Any


@dataclass(frozen=True, eq=False)
class Part:
    """Where each word of some candidates is in one window of their references.

    places: of these words, and of the 0 after each candidate, among all candidates' ids. bits: (len(places),).
    """

    places: Ints | slice
    bits: Bits

    def matches(self) -> Iterator[Match]:
        """For n = 1..4: the n-grams that begin in the window, at places among all candidates' ids."""
        for places, counts in _matches(self.bits):
            yield Match(places if isinstance(self.places, slice) else self.places[places], counts)


@dataclass(frozen=True, eq=False)
class Overlap:
    """Candidates against reference number `number` of their photos.

    rows: the candidates whose photo has such a reference. first: the window of its first 61 words. more: later ones,
    of the candidates whose reference is that long.
    """

    number: int
    rows: Ints
    first: Part
    more: tuple[Part, ...]

    def matches(self) -> Iterator[Match]:
        """For n = 1..4: where among all candidates' ids n-grams begin that the reference has, and how often it does."""
        if not self.more:
            yield from self.first.matches()
            return
        for found in zip(self.first.matches(), *(part.matches() for part in self.more), strict=True):
            total = np.zeros(1 + max(int(match.places.max(initial=0)) for match in found), np.int64)
            for places, counts in found:
                total[places] += counts
            yield Match(np.flatnonzero(total), total[total > 0])


def _matches(words: Bits) -> Iterator[Match]:
    """For n = 1..4, from where in a window single words are: where n-grams are; no place is followed past its caption.

    A 0, which is in no window, ends each caption, so what begins an n-gram here has a place after its n words.
    """
    places = np.flatnonzero(words != 0)
    found = words[places]
    for n in ORDERS:
        if n > 1:
            found &= words[places + (n - 1)] >> np.uint64(n - 1)
            there = np.flatnonzero(found != 0)
            places, found = places[there], found[there]
        yield Match(places, popcount(found & _OWN))


@dataclass(frozen=True, eq=False)
class _Window:
    """One window of reference number j of the photos that have it.

    photos: (N,) which have it; None: all. shift: (N,) from a word's number among all photos' to its place in `bits`.
    bits: where each word is in the window; `bits[0]` is 0, for words that aren't in the photo's references.
    """

    photos: Any | None
    shift: Ints | None
    bits: Bits

    def look_up(self, words: Ints, owners: Ints) -> Bits:
        """The bits of words, given by number, of photos that have this window; 0 is the number of all other words."""
        return self.bits[words if self.shift is None else np.where(words > 0, words + self.shift[owners], 0)]


class ReferenceIndex:
    """The references of N photos, ready to be met by candidates.

    sizes: (N,) how many references each photo has. first: (N,) the first one's number among all. encoded: all of them.
    """

    def __init__(self, references: Sequence[Captions], known: Sequence[TokenTable] = ()) -> None:
        """Index tokenised references; tokens get the ids of the `known` tables, else new ones.

        Raises ArgumentError for no photos, a photo without references, and captions that are no lists of tokens.
        """
        found = encode_references(references, known)
        self.sizes, self.encoded = found.sizes, found.encoded
        self.first = np.cumsum(self.sizes) - self.sizes
        self._known = (*known, TokenTable(self.encoded.new))
        self._base = self.encoded.base
        self._build(found)

    def _build(self, references: References) -> None:
        places = np.flatnonzero(self.encoded.ids)
        rows = self.encoded.rows[places]
        within = places - self.encoded.starts[rows]
        owners, numbers = references.photos[rows], references.numbers[rows]
        found = distinct(owners * self._base + self.encoded.ids[places])
        self._words = KeyTable(found.keys, np.arange(1, len(found.keys) + 1), missing=0)
        sizes = np.bincount(found.keys // self._base, minlength=len(self.sizes))
        order = np.argsort(numbers, kind="stable")
        cuts = np.searchsorted(numbers[order], np.arange(int(self.sizes.max()) + 1))
        self._windows: list[list[_Window]] = []
        for j in range(len(cuts) - 1):
            some = order[cuts[j] : cuts[j + 1]]
            have = self.sizes > j
            self._windows.append([])
            while have.any():
                at = within[some] - WINDOW * len(self._windows[j])
                seen, bit = some[at < 64], at[at < 64]
                self._windows[j].append(_window(have, sizes, found.numbers[seen], owners[seen], bit))
                some = some[at >= WINDOW]
                have = np.zeros(len(have), bool)
                have[owners[some]] = True

    def encode(self, candidates: Captions) -> Encoded:
        """Candidates as ids that the references share; raises ArgumentError for what are no lists of tokens."""
        return encode(candidates, self._known)

    def encode_each(self, candidates: Captions) -> Encoded:
        """One candidate a photo as ids that the references share; raises ArgumentError for another number of them."""
        encoded = self.encode(candidates)
        if len(encoded.lengths) != len(self.sizes):
            raise ArgumentError(f"{len(encoded.lengths)} candidates for {len(self.sizes)} photos; give one for each")
        return encoded

    def overlaps(self, candidates: Encoded, photos: Ints) -> Iterator[Overlap]:
        """Candidates and the first reference of their photos, then the second, and so on; photos: (R,), of each."""
        owners = photos[candidates.rows]
        ids = candidates.ids
        if len(candidates.new):
            ids = np.where(ids < self._base, ids, 0)
        words = self._words.values[self._words.find(owners * self._base + ids)]
        for j, windows in enumerate(self._windows):
            parts = []
            for window in windows:
                places: Ints | slice = slice(None)
                if window.photos is not None:
                    places = candidates.places(np.flatnonzero(window.photos[photos]))
                parts.append(Part(places, window.look_up(words[places], owners[places])))
            yield Overlap(j, np.flatnonzero(self.sizes[photos] > j), parts[0], tuple(parts[1:]))


def _window(have: Any, sizes: Ints, words: Ints, owners: Ints, bit: Ints) -> _Window:
    """The window of photos that `have` it; `sizes`: distinct words of each photo; the rest: one entry a token in it."""
    bits = np.zeros(1 + int(sizes[have].sum()), np.uint64)
    shift = None
    if not have.all():
        inside = np.where(have, sizes, 0)
        shift = (np.cumsum(inside) - inside) - (np.cumsum(sizes) - sizes)
        words = words + shift[owners]
    np.add.at(bits, words, np.uint64(1) << bit.astype(np.uint64))  # no bit twice, so adding sets it
    return _Window(None if shift is None else have, shift, bits)


def _count_bits(bits: Bits) -> Any:
    """How many bits are set, for numpy before 2.0: sums of neighbours, two by two, four by four, ..."""
    one, two, four = (np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F))
    pairs = bits - ((bits >> np.uint64(1)) & one)
    nibbles = (pairs & two) + ((pairs >> np.uint64(2)) & two)
    octets = (nibbles + (nibbles >> np.uint64(4))) & four
    return ((octets * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.uint8)


popcount = getattr(np, "bitwise_count", _count_bits)
"""How many bits of each number are set."""
