"""Small Markov chains to search in, and slow searches in plain Python to compare with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from showtell.rows import Rows
from showtell.search import Hypotheses, Mask, Step

START, END = 0, 1


class Chains:
    """A second-order Markov chain for each image, as a step whose state must have followed the prefix."""

    def __init__(self, tables: Tensor) -> None:
        """Tables are (N, V, V, V) log-probabilities: image, last word but one, last word, next word."""
        self.tables = tables
        self.calls = 0

    def state(self) -> Rows:
        n = self.tables.shape[0]
        return {"image": torch.arange(n), "before": torch.full((n,), START), "seen": torch.zeros(n, dtype=torch.int64)}

    def __call__(self, prefix: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        self.calls += 1
        seen = torch.zeros_like(state["seen"])
        for column in range(prefix.shape[1] - 1):
            seen = seen * 31 + prefix[:, column]
        assert torch.equal(seen, state["seen"]), "the state didn't follow its prefix"
        last = prefix[:, -1]
        log_probs = self.tables[state["image"], state["before"], last]
        return log_probs, {"image": state["image"], "before": last, "seen": seen * 31 + last}

    def search(self, search: Any, masks: Sequence[Mask] = (), **options: Any) -> Hypotheses:
        step = masked(self, masks) if masks else self
        return search(step, self.state(), images=self.tables.shape[0], start=START, end=END, device="cpu", **options)


def masked(step: Step, masks: Sequence[Mask]) -> Step:
    """A step with its masks, as `generate` wraps it."""

    def wrapped(prefix: Tensor, state: Rows) -> tuple[Tensor, Rows]:
        log_probs, state = step(prefix, state)
        for mask in masks:
            log_probs = mask(prefix, log_probs)
        return log_probs, state

    return wrapped


def random_tables(
    seed: int, images: int, words: int, *, coarse: bool = False, dtype: torch.dtype = torch.float64
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if coarse:  # few different values: many exact ties, and forbidden words
        levels = torch.tensor([0.5, 0.25, 0.25, 0.125, 0.0], dtype=dtype).log()
        return levels[torch.randint(0, 5, (images, words, words, words), generator=generator)]
    return (2 * torch.randn(images, words, words, words, generator=generator, dtype=dtype)).log_softmax(-1)


Found = list[tuple[float, float, tuple[int, ...]]]  # score, log-probability, words


def as_list(found: Hypotheses, image: int) -> Found:
    return [
        (float(score), float(total), tuple(tokens[:length].tolist()))
        for score, total, tokens, length in zip(
            found.scores[image], found.log_probs[image], found.tokens[image], found.lengths[image].tolist(), strict=True
        )
        if length
    ]


def every_caption(words: int, max_length: int) -> Iterator[tuple[int, ...]]:
    """What a search may return at all: closed by the end token, or open and of full length."""
    for length in range(1, max_length + 1):
        for caption in itertools.product(range(words), repeat=length):
            if (caption[-1] == END or length == max_length) and END not in caption[:-1]:
                yield caption


def divisor(length: int, penalty: float, kind: str = "power") -> float:
    """What a log-probability is divided by."""
    return float(length**penalty if kind == "power" else ((5 + length) / 6) ** penalty)


def exhaustive(
    table: Tensor,
    max_length: int,
    penalty: float,
    kind: str = "power",
    allowed: Callable[[tuple[int, ...]], bool] = lambda caption: True,
) -> Found:
    """Every caption of a chain that is allowed, best first."""
    rows = table.tolist()
    everything: Found = []
    for caption in filter(allowed, every_caption(len(rows), max_length)):
        path = (START, START, *caption)
        total = sum(rows[path[i]][path[i + 1]][path[i + 2]] for i in range(len(caption)))
        if total > -math.inf:
            everything.append((total / divisor(len(caption), penalty, kind), total, caption))
    return sorted(everything, reverse=True)


def slow_beam(
    table: Tensor,
    size: int,
    max_length: int,
    penalty: float,
    kind: str = "power",
    may_follow: Callable[[tuple[int, ...], int], bool] = lambda caption, word: True,
) -> Found:
    """Beam search in plain Python, without early stop."""
    rows = table.tolist()
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: Found = []
    for length in range(1, max_length + 1):
        candidates = []
        for rank, (total, caption) in enumerate(live):
            path = (START, START, *caption)
            for word, log_prob in enumerate(rows[path[-2]][path[-1]]):
                if log_prob > -math.inf and may_follow(caption, word):
                    candidates.append((-(total + log_prob), rank, -log_prob, word, caption))
        candidates.sort()
        for minus, _, _, word, caption in candidates[:size]:
            if word == END or length == max_length:
                finished.append((-minus / divisor(length, penalty, kind), -minus, (*caption, word)))
        live = [(-minus, (*caption, word)) for minus, _, _, word, caption in candidates if word != END][:size]
    return sorted(finished, key=lambda one: -one[0])[:size]  # stable: the earlier one of equals


def assert_same(found: Found, expected: Found) -> None:
    assert [one[2] for one in found] == [one[2] for one in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[:2] == pytest.approx(theirs[:2], abs=1e-9)


class CountReads(TorchDispatchMode):
    """Counts operations that make the host wait for an accelerator."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal.default", "repeat_interleave.Tensor")

    reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = str(func).removeprefix("aten.")
        by_mask = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            for group in args[1:2]
            if isinstance(group, list | tuple)
            for index in group
        )
        self.reads += by_mask or name.startswith(self.WAIT)
        return func(*args, **(kwargs or {}))
