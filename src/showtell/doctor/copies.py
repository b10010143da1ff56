"""The same photo twice among many: likely pairs by a layout of 63 numbers, then a look at each pair."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .alignment import same_photo

__all__ = ["PRINT_SIZE", "Copy", "Prints", "find_copies", "groups_of"]

PRINT_SIZE = 64
"""Pixels a side of the pictures that prints are made of."""

_SMALL = 32
_WAVES = 8  # 8 x 8 cosine waves, the constant one left out
_EDGE = 5  # of 64 pixels: a second layout leaves out 8 % on each side, and meets copies that were cut there

_LIKELY = 0.6
"""The least cosine of two layouts that are looked at. Measured on Flickr8k: of the 50 million pairs of its 7,091
photos, each as it is and mirrored, 902 lie above; so do all copies that were stored again, resized, brightened or cut
by 3 % on each side, and 99 % of those cut by 5 %."""

_MOST_A_PHOTO = 8  # likely partners looked at, the likeliest: frames of one video would have thousands
_BLOCK = 16_000_000  # cosines at a time, 64 MB
_PAIRS = 512  # pairs looked at at a time


class Copy(NamedTuple):
    """Two positions, first < second, and how the photos differ: "the same picture", "mirrored" or "changed"."""

    first: int
    second: int
    how: str


@dataclass(frozen=True)
class Prints:
    """What is kept of N photos: pixels (N, 3, 32, 32) uint8; layouts of whole and centre, (N, 63) of length 1.

    Example:
        >>> prints = Prints.of(torch.rand(2, 3, PRINT_SIZE, PRINT_SIZE))
        >>> prints.pixels.shape, prints.whole.shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 63]))
    """

    pixels: Tensor
    whole: Tensor
    centre: Tensor

    @classmethod
    def of(cls, images: Tensor) -> Prints:
        """Of images (N, 3, 64, 64) in 0..1."""
        small = F.avg_pool2d(images, PRINT_SIZE // _SMALL)
        grey = images.mean(1)
        inner = grey[:, _EDGE:-_EDGE, _EDGE:-_EDGE]
        return cls((small * 255).round().to(torch.uint8), _layout(grey), _layout(inner))

    @classmethod
    def join(cls, parts: Sequence[Prints]) -> Prints:
        """Several as one; at least one."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("pixels", "whole", "centre")))

    def __getitem__(self, positions: Sequence[int]) -> Prints:
        """Those of some photos."""
        chosen = torch.tensor(list(positions), dtype=torch.int64)
        return Prints(self.pixels[chosen], self.whole[chosen], self.centre[chosen])


def find_copies(prints: Prints, keys: Sequence[str | None]) -> list[Copy]:
    """Every pair of photos that is one photo, perhaps stored again, resized, cut a little, brightened or mirrored.

    Example:
        >>> photos = torch.rand(3, 3, PRINT_SIZE, PRINT_SIZE, generator=torch.Generator().manual_seed(0))
        >>> photos = torch.cat([photos, 0.9 * photos[:1].flip(3)])
        >>> find_copies(Prints.of(photos), [None] * 4)
        [Copy(first=0, second=3, how='mirrored')]

    keys: what tells that two files have the same bytes, None where it isn't known; it counts for photos that are too
    flat to be known by their pixels. Of k equal photos k - 1 pairs are returned, each with the first. All layouts are
    compared with all others by matrix products, so the time grows with the square of N, slowly: a second for 8,000
    photos."""
    flat = (prints.whole.square().sum(1) < 0.5).tolist()
    first_of: dict[object, int] = {}
    found: list[Copy] = []
    unlike: list[int] = []
    for position, key in enumerate(keys):
        mark = key if flat[position] else prints.pixels[position].numpy().tobytes()
        before = position if mark is None else first_of.setdefault(mark, position)
        if before != position:
            found.append(Copy(before, position, "the same picture"))
        elif not flat[position]:
            unlike.append(position)
    if len(unlike) > 1:
        found += [Copy(unlike[a], unlike[b], how) for a, b, how in _near(prints[unlike])]
    return sorted(found)


def groups_of(count: int, copies: Sequence[Copy]) -> list[list[int]]:
    """Positions 0..count-1 that hang together by copies, each group in order, single ones left out.

    Example:
        >>> groups_of(5, [Copy(0, 3, "mirrored"), Copy(3, 4, "changed")])
        [[0, 3, 4]]
    """
    parent = list(range(count))

    def root(position: int) -> int:
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return position

    for copy in copies:
        a, b = sorted((root(copy.first), root(copy.second)))
        parent[b] = a
    groups: dict[int, list[int]] = {}
    for position in sorted({p for copy in copies for p in copy[:2]}):
        groups.setdefault(root(position), []).append(position)
    return list(groups.values())


def _layout(grey: Tensor) -> Tensor:
    """(N, n, n) -> (N, 63): strengths of cosine waves, finer ones weighted up as photos have less of them, square roots
    taken so that no single one decides; zeros for a flat picture."""
    size = grey.shape[-1]
    at = torch.arange(size) + 0.5
    waves = torch.cos(math.pi / size * torch.arange(_WAVES)[:, None] * at) * (2 / size)
    strengths = (waves @ grey @ waves.T).flatten(1)[:, 1:]
    strengths = torch.where(strengths.abs() > 1e-3, strengths, 0.0)  # a quarter of a level: rounding
    squares = torch.arange(_WAVES).square()
    frequency = (squares[:, None] + squares).flatten()[1:].float().sqrt()
    rooted = strengths.sign() * (strengths.abs() * frequency).sqrt()
    return F.normalize(rooted, dim=1)


def _near(prints: Prints) -> Iterator[Copy]:
    """Copies among photos that aren't equal."""
    mirror = torch.ones(_WAVES, _WAVES)
    mirror[:, 1::2] = -1  # mirroring turns every odd wave over
    likely: dict[tuple[int, int, bool], None] = {}
    for mirrored in (False, True):
        others = prints.whole * mirror.flatten()[1:] if mirrored else prints.whole
        for queries in (prints.whole, prints.centre):
            for a, b in _likely_pairs(queries, others):
                likely[(min(a, b), max(a, b), mirrored)] = None
    pairs = list(likely)
    seen: set[tuple[int, int]] = set()
    for start in range(0, len(pairs), _PAIRS):
        some = pairs[start : start + _PAIRS]
        first, second = (prints.pixels[[pair[k] for pair in some]].float() / 255 for k in (0, 1))
        turned = torch.tensor([pair[2] for pair in some])[:, None, None, None]
        same = same_photo(first, torch.where(turned, second.flip(3), second)).tolist()
        for (a, b, mirrored), yes in zip(some, same, strict=True):
            if yes and (a, b) not in seen:
                seen.add((a, b))
                yield Copy(a, b, "mirrored" if mirrored else "changed")


def _likely_pairs(queries: Tensor, others: Tensor) -> Iterator[tuple[int, int]]:
    """Pairs of different positions whose layouts are close, at most `_MOST_A_PHOTO` for each query."""
    count = len(others)
    rows = max(1, _BLOCK // count)
    for start in range(0, count, rows):
        cosines = queries[start : start + rows] @ others.T
        here = torch.arange(len(cosines))
        cosines[here, here + start] = -1.0
        crowded = ((cosines > _LIKELY).sum(1) > _MOST_A_PHOTO).nonzero()[:, 0]
        if len(crowded):
            best = cosines[crowded].topk(_MOST_A_PHOTO, dim=1)
            cosines[crowded] = -1.0
            cosines[crowded[:, None], best.indices] = best.values
        for a, b in (cosines > _LIKELY).nonzero().tolist():
            yield a + start, b
