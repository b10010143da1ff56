"""Off the CPU no search, mask or decoder waits for a value, and nothing is made on another device.

Tensors on the meta device have no values: reading one raises, and so does an index whose size depends on values, or a
tensor that was made on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from showtell.decoders import AdaptiveLSTMDecoder, AttentionLSTMDecoder, LSTMDecoder, TransformerDecoder
from showtell.ensemble import _Voices
from showtell.generate import generate
from showtell.protocols import Features
from showtell.search import Beam, DiverseBeam, Greedy, Mask, Sample, Search, banks, beam, diverse, walk
from showtell.search.masks import (
    Forbidden,
    MinLength,
    NoBadEnding,
    NoRepeatedNgram,
    NoRepeatedWord,
    OnlyFor,
    Prefix,
)

END, LENGTH = 2, 4
SEARCHES: list[Search] = [
    Greedy(LENGTH),
    Beam(3, LENGTH, 0.7, "gnmt"),
    DiverseBeam(4, 2, 0.5, LENGTH),
    Sample(3, 0.7, 5, 0.9, 0.1, 1, max_length=LENGTH),
    Sample(2, top_p=0.9, distinct=True, max_length=LENGTH),
]
MASKS: list[Mask] = [
    MinLength(3, END),
    MinLength((0, 2, 1), END),
    NoRepeatedNgram(1),
    NoRepeatedNgram(2),
    NoRepeatedWord(),
    Forbidden((7,)),
    Forbidden(((7,), (), (3, 4))),
    NoBadEnding(((7,), (3, 4)), END, LENGTH),
    Prefix((5,)),
    Prefix(((5,), (), (6, 7))),
    OnlyFor(NoRepeatedWord(), (True, False, True)),
]


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the questions at the end of a search and every few steps, the only ones that may be asked."""
    for module in (beam, walk, banks, diverse):
        monkeypatch.setattr(module, "raise_for", lambda wrong, stuck: None)
        monkeypatch.setattr(module, "time_to_look", lambda length, device: False)
        monkeypatch.setattr(module, "bool", lambda tensor: False, raising=False)


DECODERS: list[Callable[[], nn.Module]] = [
    lambda: LSTMDecoder(20, 6, embed_dim=8, hidden_dim=8, layers=2, image="every-step"),
    lambda: AttentionLSTMDecoder(20, 6, 8, 8, 8),
    lambda: AdaptiveLSTMDecoder(20, 6, 8, 8, 8),
    lambda: TransformerDecoder(20, 6, 8, 1, 2, 16),
]


def nowhere(masked: bool = False) -> Features:
    mask = torch.ones(3, 5, dtype=torch.bool, device="meta") if masked else None
    return Features(torch.empty(3, 6, device="meta"), torch.empty(3, 5, 6, device="meta"), mask)


@pytest.mark.parametrize("masks", [[], MASKS], ids=["free", "masked"])
def test_searches_and_masks_never_wait_and_stay_on_their_device(masks: list[Mask]) -> None:
    decoder = LSTMDecoder(1100, 6, embed_dim=8, hidden_dim=8).to("meta")
    for search in SEARCHES:
        found = generate(decoder, nowhere(), search, masks=masks)
        assert all(t.is_meta for t in found)
        assert found.tokens.shape[::2] == (3, LENGTH)
    force = [[[5], [6, 7]], [], [[9]]]
    assert generate(decoder, nowhere(), Beam(2, LENGTH), masks=masks, force=force).tokens.is_meta


@pytest.mark.parametrize("make", DECODERS)
def test_decoders_alone_and_together_never_wait_in_any_precision(make: Callable[[], nn.Module]) -> None:
    for dtype, masked in ((torch.float32, False), (torch.bfloat16, True)):
        there: Any = make().to("meta", dtype).eval()
        features = nowhere(masked)
        assert generate(there, features, Beam(2, 3)).tokens.is_meta
        voices = _Voices([there, there], [features, features], [0.5, 0.5])
        assert generate(voices, features, Beam(2, 3)).tokens.is_meta


def test_a_search_that_reads_a_value_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beam, "time_to_look", lambda length, device: bool(torch.empty((), device=device)))
    decoder = LSTMDecoder(20, 6, embed_dim=8, hidden_dim=8).to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        generate(decoder, Features(torch.empty(3, 6, device="meta")), Beam(3, LENGTH))
