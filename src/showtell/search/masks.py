"""What a caption may not say, as functions on a step's log-probabilities; every search obeys them.

A mask takes the prefix (R, t) int64, the start token first, and the log-probabilities (R, V) of the next word, and
returns the latter with -inf where a word is forbidden. It may write into the log-probabilities, which no one else
holds. Nothing is rescaled, so that a caption's log-probability stays the model's own. Row r belongs to image r // K.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..checks import whole
from ..errors import ArgumentError
from ..rows import rows_per_image

__all__ = ["Forbidden", "Mask", "MinLength", "NoBadEnding", "NoRepeatedNgram", "NoRepeatedWord", "OnlyFor", "Prefix"]

Mask = Callable[[Tensor, Tensor], Tensor]
"""(prefix (R, t), log-probabilities (R, V)) -> log-probabilities with -inf where a word is forbidden."""

Ids = tuple[int, ...]
_MAX_ID = 2_000_000


@dataclass(frozen=True)
class MinLength:
    """No caption ends before it has `words` words.

    Example:
        >>> prefix, log_probs = torch.tensor([[1, 7]]), torch.zeros(1, 4)
        >>> MinLength(words=2, end=3)(prefix, log_probs).tolist()
        [[0.0, 0.0, 0.0, -inf]]

    `words`: at least this many tokens before the end token, 0..1000, or a tuple of such numbers, one an image; `end`:
    the id of the end token. Raises ArgumentError.
    """

    words: int | tuple[int, ...]
    end: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for words in self.words if isinstance(self.words, tuple) else (self.words,):
            whole("MinLength words", words, 0, 1000)
        whole("MinLength end", self.end, 0, _MAX_ID)

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid the end token while the prefix is short."""
        _check_vocabulary(self, (self.end,), log_probs)
        said = prefix.shape[1] - 1
        if isinstance(self.words, int):
            if said < self.words:
                log_probs[:, self.end] = -math.inf
            return log_probs
        if said < max(self.words, default=0):
            short = _by_row(_constant(self.words, prefix.device), prefix) > said
            log_probs[:, self.end] = log_probs[:, self.end].masked_fill(short, -math.inf)
        return log_probs


@dataclass(frozen=True)
class NoRepeatedNgram:
    """No run of `size` words stands in a caption twice.

    Example:
        >>> prefix, log_probs = torch.tensor([[1, 2, 3, 2]]), torch.zeros(1, 4)  # 1 starts; "2 3" has been said
        >>> NoRepeatedNgram(size=2)(prefix, log_probs).tolist()
        [[0.0, 0.0, 0.0, -inf]]

    `size`: 1..20; with 1 no word comes twice. Runs may overlap. Raises ArgumentError.
    """

    size: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        whole("NoRepeatedNgram size", self.size, 1, 20)

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid each word that followed the last size - 1 words before."""
        words, before = prefix[:, 1:], self.size - 1
        if words.shape[1] <= before:
            return log_probs
        followers = words[:, before:]
        if not before:
            return _forbid(log_probs, followers, torch.ones_like(followers, dtype=torch.bool))
        runs = words.unfold(1, before, 1)  # all runs of size - 1 words; the last is what is being continued
        same = (runs[:, :-1] == runs[:, -1:]).all(2)
        return _forbid(log_probs, followers, same)


@dataclass(frozen=True)
class NoRepeatedWord:
    """No word follows itself.

    Example:
        >>> prefix, log_probs = torch.tensor([[1, 2]]), torch.zeros(1, 4)
        >>> NoRepeatedWord()(prefix, log_probs).tolist()
        [[0.0, 0.0, -inf, 0.0]]
    """

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid the last word."""
        return log_probs if prefix.shape[1] < 2 else log_probs.scatter_(1, prefix[:, -1:], -math.inf)


@dataclass(frozen=True)
class Forbidden:
    """Some words never appear.

    Example:
        >>> Forbidden((0, 2))(torch.tensor([[1]]), torch.zeros(1, 4)).tolist()
        [[-inf, 0.0, -inf, 0.0]]

    `ids`: the words, the same for all images, or a tuple of such tuples, one an image. Raises ArgumentError.
    """

    ids: Ids | tuple[Ids, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_ids("Forbidden", self.ids)

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid the words."""
        _check_vocabulary(self, self.ids, log_probs)
        if not self.ids:
            return log_probs
        if isinstance(self.ids[0], int):
            return log_probs.index_fill_(1, _constant(self.ids, prefix.device), -math.inf)
        ids = _by_row(_constant(_padded(self.ids), prefix.device), prefix)
        return _forbid(log_probs, ids.clamp(min=0), ids >= 0) if ids.shape[1] else log_probs


@dataclass(frozen=True)
class NoBadEnding:
    """No caption ends with one of these runs of words, "with a" for instance.

    Example:
        >>> prefix, log_probs = torch.tensor([[1, 2]]), torch.zeros(1, 4)
        >>> NoBadEnding(((2,),), end=3, max_length=9)(prefix, log_probs).tolist()
        [[0.0, 0.0, 0.0, -inf]]

    `endings`: runs of 1 to 20 ids; `end`: the id of the end token; `max_length`: the search's, so that a caption cut
    there ends well too, 1..1000. Raises ArgumentError.
    """

    endings: tuple[Ids, ...]
    end: int
    max_length: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_ids("NoBadEnding", self.endings)
        for ending in self.endings:
            if not isinstance(ending, tuple) or not 1 <= len(ending) <= 20:
                raise ArgumentError(f"NoBadEnding takes runs of 1 to 20 ids, not {ending!r:.100}")
        whole("NoBadEnding end", self.end, 0, _MAX_ID)
        whole("NoBadEnding max_length", self.max_length, 1, 1000)

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid the end after a bad ending, and the word that completes one as the very last."""
        _check_vocabulary(self, (self.end, *self.endings), log_probs)
        words = prefix[:, 1:]
        for size in sorted({len(ending) for ending in self.endings}):
            runs = _constant(tuple(e for e in self.endings if len(e) == size), prefix.device)
            if size <= words.shape[1]:
                bad = _ends_with(words, runs).any(1)
                log_probs[:, self.end] = log_probs[:, self.end].masked_fill(bad, -math.inf)
            if prefix.shape[1] == self.max_length and size - 1 <= words.shape[1]:
                started = _ends_with(words, runs[:, :-1])
                log_probs = _forbid(log_probs, runs[:, -1].expand(started.shape), started)
        return log_probs


@dataclass(frozen=True)
class Prefix:
    """Every caption begins with these words.

    Example:
        >>> Prefix((3, 2))(torch.tensor([[1], [1]]), torch.zeros(2, 4)).tolist()
        [[-inf, -inf, -inf, 0.0], [-inf, -inf, -inf, 0.0]]

    `ids`: the words, the same for all images, or a tuple of such tuples, one an image; an empty one asks for nothing.
    Raises ArgumentError.
    """

    ids: Ids | tuple[Ids, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        _check_ids("Prefix", self.ids)

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Forbid all words but the one whose turn it is."""
        _check_vocabulary(self, self.ids, log_probs)
        said = prefix.shape[1] - 1
        if not self.ids:
            return log_probs
        if isinstance(self.ids[0], int):
            if said >= len(self.ids):
                return log_probs
            word = _constant(self.ids, prefix.device)[said].expand(prefix.shape[0])
        else:
            table = _constant(_padded(self.ids), prefix.device)
            if said >= table.shape[1]:
                return log_probs
            word = _by_row(table[:, said], prefix)
        asked, word = (word >= 0).unsqueeze(1), word.clamp(min=0).unsqueeze(1)
        only = torch.full_like(log_probs, -math.inf).scatter_(1, word, log_probs.gather(1, word))
        return only.where(asked, log_probs)


@dataclass(frozen=True)
class OnlyFor:
    """Another mask, for some images only.

    Example:
        >>> mask = OnlyFor(Forbidden((0,)), (False, True))
        >>> mask(torch.tensor([[1], [1]]), torch.zeros(2, 3)).tolist()
        [[0.0, 0.0, 0.0], [-inf, 0.0, 0.0]]

    `images`: a bool for each image. Raises ArgumentError.
    """

    mask: Mask
    images: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not isinstance(self.images, tuple) or not all(type(one) is bool for one in self.images):
            raise ArgumentError(f"OnlyFor takes a tuple of True and False, one an image, not {self.images!r:.100}")

    def __call__(self, prefix: Tensor, log_probs: Tensor) -> Tensor:
        """Leave the other images' words as they are."""
        asked = _by_row(_constant(self.images, prefix.device, torch.bool), prefix).unsqueeze(1)
        return self.mask(prefix, log_probs.clone()).where(asked, log_probs)


def _check_ids(name: str, ids: Any) -> None:
    nested = isinstance(ids, tuple) and ids and all(isinstance(each, tuple) for each in ids)
    for one in ids if nested else (ids,):
        if not isinstance(one, tuple):
            raise ArgumentError(f"{name} takes a tuple of ids, or a tuple of such tuples, not {ids!r:.100}")
        for each in one:
            whole(f"{name}: an id", each, 0, _MAX_ID)


@lru_cache(maxsize=64)
def _constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Python numbers on a device, sent there once and not at every step."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=64)
def _padded(rows: tuple[Ids, ...]) -> tuple[Ids, ...]:
    """Rows of equal length, filled up with -1."""
    width = max(map(len, rows))
    return tuple(row + (-1,) * (width - len(row)) for row in rows)


def _check_vocabulary(mask: Mask, ids: tuple[Any, ...], log_probs: Tensor) -> None:
    if _largest(ids) >= log_probs.shape[1]:
        raise ArgumentError(f"{mask!r:.100} names an id outside the vocabulary of {log_probs.shape[1]} words")


@lru_cache(maxsize=64)
def _largest(ids: tuple[Any, ...]) -> int:
    return max((_largest(each) if isinstance(each, tuple) else each for each in ids), default=-1)


def _by_row(values: Tensor, prefix: Tensor) -> Tensor:
    """Values of N images, one for each of R rows."""
    return values.repeat_interleave(rows_per_image(prefix.shape[0], values.shape[0]), dim=0)


def _ends_with(words: Tensor, runs: Tensor) -> Tensor:
    """(R, t) and (E, n) -> (R, E) bool: which rows end with which runs; all where n is 0."""
    last = words[:, words.shape[1] - runs.shape[1] :]
    return (last.unsqueeze(1) == runs).all(2)


def _forbid(log_probs: Tensor, ids: Tensor, where: Tensor) -> Tensor:
    """-inf at ids (R, n) of each row where `where` (R, n) says so; an id may come several times."""
    limits = torch.zeros(ids.shape, dtype=log_probs.dtype, device=log_probs.device)
    limits = limits.masked_fill(where, -math.inf).masked_fill(~where, math.inf)
    return log_probs.scatter_reduce_(1, ids, limits, "amin")
