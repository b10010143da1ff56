"""In how many photos' references each n-gram is: what CIDEr weighs n-grams by, and a file to keep it in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import journal
from ..errors import ArgumentError, FormatError, NotFoundError
from ..strict_json import parse_object
from .ngrams import ORDERS, Captions, Floats, Ints, KeyTable, TokenTable, distinct, encode_references

__all__ = ["DocumentFrequencies"]

_MAGIC = b"stdfreq1"  # then 8 bytes: the length of the JSON header; the header; keys of n = 2..4; counts of n = 1..4
_HEADER_LIMIT = 512 * 2**20
_KEYS = {"images", "identity", "tokens", "ngrams"}


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """Of every n-gram, n = 1..4: how many of N photos have it in at least one reference.

    Example:
        >>> frequencies = DocumentFrequencies.of([[["a", "dog"], ["a", "wet", "dog"]], [["a", "cat"]]])
        >>> frequencies.images, frequencies.get(("a",)), frequencies.get(("a", "dog")), frequencies.get(("dog", "a"))
        (2, 2, 1, 0)

    Tokens are words or ids, whatever can be hashed. Two are the same when a dict says so: 1 and "1" are two tokens, 1
    and True are one. Made by `of` or `load`.
    """

    images: int
    vocabulary: Mapping[Hashable, int] = field(repr=False)
    """Token to number, from 1."""
    keys: tuple[Ints, ...] = field(repr=False)
    """For n = 2..4, ascending: (number of the first n - 1 tokens) * (vocabulary size + 1) + number of the last one."""
    counts: tuple[Ints, ...] = field(repr=False)
    """For n = 1..4: photos with each n-gram, by its number less 1; its number is its place in the keys, from 1."""

    @classmethod
    def of(cls, references: Sequence[Captions]) -> Self:
        """Count the n-grams of N photos' tokenised references, at least one a photo.

        Raises ArgumentError for no photos, a photo without references, and captions that are no lists of tokens.
        """
        found = encode_references(references)
        owners = found.photos[found.encoded.rows]
        ids, base = found.encoded.ids, found.encoded.base
        numbers = np.zeros(len(ids), np.int64)
        keys, counts = [], []
        for n in ORDERS:
            places = np.flatnonzero((numbers if n > 1 else ids)[: len(ids) - n + 1])
            last = ids[places + n - 1]
            places, last = places[last > 0], last[last > 0]
            ngrams = distinct(numbers[places] * base + last)
            keys.append(ngrams.keys)
            counts.append(_photos_each(ngrams.numbers[ngrams.order], owners[places[ngrams.order]]))
            numbers[:] = 0
            numbers[places] = ngrams.numbers
        return cls(len(found.sizes), found.encoded.new, tuple(keys[1:]), tuple(counts))

    def get(self, ngram: tuple[Hashable, ...]) -> int:
        """In how many photos' references an n-gram of 1 to 4 tokens is; 0 when in none.

        Raises ArgumentError for what is no tuple of 1 to 4 hashable tokens.
        """
        if not isinstance(ngram, tuple) or not 1 <= len(ngram) <= len(ORDERS):
            raise ArgumentError(f"an n-gram is a tuple of 1 to 4 tokens, not {ngram!r:.100}")
        number = 0
        try:
            for n, token in enumerate(ngram):
                last = self.vocabulary.get(token, 0)
                key = number * self._base + last
                number = last if n == 0 else int(np.searchsorted(self.keys[n - 1], key)) + 1
                if not last or (n and (number > len(self.keys[n - 1]) or self.keys[n - 1][number - 1] != key)):
                    return 0
        except TypeError as error:
            raise ArgumentError(f"{ngram!r:.100} holds a token that can't be hashed; use words or numbers") from error
        return int(self.counts[len(ngram) - 1][number - 1])

    @cached_property
    def digest(self) -> str:
        """12 hexadecimal digits that other n-grams, other counts or another number of photos change, and order doesn't.

        Example:
            >>> one, two = [["a", "dog"]], [["a", "cat"]]
            >>> DocumentFrequencies.of([one, two]).digest == DocumentFrequencies.of([two, one]).digest
            True
        """
        tokens = [int(t) if isinstance(t, np.integer) else t for t in self.vocabulary]
        names = [f"{type(token).__name__} {token!r}" for token in tokens]
        order = np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)
        found = hashlib.sha256(json.dumps([self.images, sorted(names)]).encode())
        words = numbers = _ranks(order)
        found.update(self.counts[0][order].tobytes())
        for keys, counts in zip(self.keys, self.counts[1:], strict=True):
            before, last = np.divmod(keys, self._base)
            keys = numbers[before - 1] * self._base + words[last - 1]
            order = np.argsort(keys)
            found.update(keys[order].tobytes() + counts[order].tobytes())
            numbers = _ranks(order)
        return found.hexdigest()[:12]

    def squared_weights(self, ids: Ints) -> Iterator[Floats]:
        """For n = 1..4, (P,): (ln N - ln max(1, df))^2 of the n-gram that begins at each place of `Encoded.ids`.

        The ids must come from `encode` with `tokens` as the first table. Where no n-gram begins, the value means
        nothing.
        """
        slots = np.where(ids < self._base, ids, 0)
        ids = slots
        yield self._squares(0)[slots]
        for n, table in enumerate(self._tables, 1):
            found = np.zeros(len(ids), np.int64)
            before = slots[:-n]
            keys = before * self._base + ids[n:]
            keys *= before > 0
            found[:-n] = table.find(keys)
            slots = found
            yield table.values[slots]

    @cached_property
    def tokens(self) -> TokenTable:
        """The vocabulary, as `encode` takes it."""
        return TokenTable(self.vocabulary)

    @cached_property
    def _tables(self) -> tuple[KeyTable, ...]:
        """For n = 2..4: the squared weight of each n-gram, by the slot of its beginning and its last token."""
        tables: list[KeyTable] = []
        for n, keys in enumerate(self.keys, 1):
            if tables:
                before, last = np.divmod(keys, self._base)
                keys = tables[-1].slots[before - 1] * self._base + last
            squares = self._squares(n)
            tables.append(KeyTable(keys, squares[1:], missing=squares[0]))
        return tuple(tables)

    def _squares(self, n: int) -> Floats:
        """The squared weight of every (n + 1)-gram by its number, and at 0 that of one not counted."""
        return np.asarray(np.square(np.log(self.images) - np.log(np.concatenate([[1], self.counts[n]]))))

    @property
    def _base(self) -> int:
        return len(self.vocabulary) + 1

    def save(self, path: str | os.PathLike[str], identity: Mapping[str, str] | None = None) -> None:
        """Write a file, atomically; tokens must be all words or all whole numbers.

        Example:
            >>> import tempfile
            >>> frequencies = DocumentFrequencies.of([[["a", "dog"]], [["a", "cat"]]])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     frequencies.save(Path(folder) / "df", identity={"vocabulary": "0f3c"})
            ...     DocumentFrequencies.load(Path(folder) / "df", identity={"vocabulary": "0f3c"}).get(("a",))
            2

        identity: text that says what the frequencies were counted from, compared by `load`. Raises ArgumentError for
        tokens or an identity that can't be written, RunError when the file can't be.
        """
        identity = {} if identity is None else _check_identity(identity)
        tokens = [int(t) if isinstance(t, np.integer) else t for t in self.vocabulary]
        kinds = set(map(type, tokens))
        if len(kinds) > 1 or not kinds <= {str, int}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ArgumentError(f"frequencies of words or of whole numbers can be saved, not of {names}")
        header = {
            "images": self.images,
            "identity": identity,
            "tokens": tokens,
            "ngrams": [len(counts) for counts in self.counts],
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        arrays = [a.astype("<i8").tobytes() for a in self.keys] + [a.astype("<i4").tobytes() for a in self.counts]
        journal.write_file(path, b"".join([_MAGIC, len(text).to_bytes(8, "little"), text, *arrays]))

    @classmethod
    def load(cls, path: str | os.PathLike[str], identity: Mapping[str, str] | None = None) -> Self:
        """Read what `save` wrote, checking all of it; nothing in the file is executed.

        identity: what the file's must equal; None takes any. Raises NotFoundError when there is no such file,
        FormatError when it is another kind of file, damaged, or of another identity, ArgumentError for an identity
        that isn't text for text.
        """
        identity = None if identity is None else _check_identity(identity)
        path = Path(path)
        _, files = journal.open_set(path.parent, [path.name])
        if path.name not in files:
            raise NotFoundError(f"there is no file {path}; DocumentFrequencies.save writes one")
        with files[path.name] as file:
            data = file.read()
        if data[:8] != _MAGIC:
            raise FormatError(f"{path} holds no document frequencies; DocumentFrequencies.save writes such a file")
        start = 16 + int.from_bytes(data[8:16], "little")
        if start > len(data):
            raise FormatError(f"{path} is damaged: it ends within its header; count the frequencies again")
        header = parse_object(data[16:start], f"the header of {path}", limit=_HEADER_LIMIT, depth=3)
        problem = _header_problem(header, len(data) - start)
        if not problem:
            found = cls(int(header["images"]), *_arrays(header, data, start))
            problem = found._problem()
        if problem:
            raise FormatError(f"{path} is damaged: {problem}; count the frequencies again")
        if identity is not None and identity != header["identity"]:
            raise FormatError(
                f"{path} was counted from other data: {header['identity']!r:.200} instead of {identity!r:.200}; "
                "count the frequencies again"
            )
        return found

    def _problem(self) -> str | None:
        """What makes arrays from a file impossible as frequencies."""
        if any(len(c) and not 1 <= c.min() <= c.max() <= self.images for c in self.counts):
            return f"a count isn't in 1..{self.images}"
        for keys, counts, shorter in zip(self.keys, self.counts[1:], self.counts, strict=False):
            prefix, last = np.divmod(keys, self._base)
            if (np.diff(keys) <= 0).any() or (last == 0).any() or (prefix < 1).any() or (prefix > len(shorter)).any():
                return "its n-grams are out of order"
            if (counts > shorter[prefix - 1]).any():
                return "an n-gram is counted more often than its beginning"
        return None


def _check_identity(identity: Any) -> dict[str, str]:
    good = isinstance(identity, Mapping) and all(isinstance(text, str) for pair in identity.items() for text in pair)
    if not good:
        raise ArgumentError(f"identity must be a dict of text for text, not {identity!r:.100}")
    return dict(identity)


def _ranks(order: Ints) -> Ints:
    """The place of each in an order, from 1."""
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def _photos_each(numbers: Ints, owners: Ints) -> Ints:
    """How many owners each number has; both ordered by number, then by owner."""
    new = np.ones(len(numbers), bool)
    new[1:] = (numbers[1:] != numbers[:-1]) | (owners[1:] != owners[:-1])
    return np.bincount(numbers[new], minlength=1)[1:]


def _header_problem(header: dict[str, Any], size: int) -> str | None:
    """What is wrong with a header that `size` bytes follow."""
    if set(header) != _KEYS:
        return f"its header has the keys {sorted(header)!s:.200}"
    images, tokens, ngrams = header["images"], header["tokens"], header["ngrams"]
    if type(images) is not int or not 1 <= images < 2**31:
        return f"it says {images!r:.50} images"
    if not isinstance(header["identity"], dict):
        return "its identity is no object"
    if not isinstance(tokens, list) or set(map(type, tokens)) not in ({str}, {int}, set()):
        return "its tokens aren't all words or all whole numbers"
    if len(set(tokens)) < len(tokens):
        return "a token is given twice"
    if not isinstance(ngrams, list) or len(ngrams) != len(ORDERS):
        return "it doesn't say how many n-grams there are"
    if not all(type(n) is int and 0 <= n < 2**31 for n in ngrams) or ngrams[0] != len(tokens):
        return f"it says {ngrams!r:.100} n-grams of {len(tokens):,} tokens"
    if size != 4 * sum(ngrams) + 8 * sum(ngrams[1:]):
        return f"{size:,} bytes follow its header, not {4 * sum(ngrams) + 8 * sum(ngrams[1:]):,}"
    return None


def _arrays(
    header: dict[str, Any], data: bytes, start: int
) -> tuple[Mapping[Hashable, int], tuple[Ints, ...], tuple[Ints, ...]]:
    """The vocabulary, the keys and the counts of a file whose header is in order."""
    arrays = []
    for kind, n in [("<i8", n) for n in header["ngrams"][1:]] + [("<i4", n) for n in header["ngrams"]]:
        arrays.append(np.frombuffer(data, kind, n, start).astype(np.int64))
        start += arrays[-1].itemsize * n if kind == "<i8" else 4 * n
    return {token: i for i, token in enumerate(header["tokens"], 1)}, tuple(arrays[:3]), tuple(arrays[3:])
