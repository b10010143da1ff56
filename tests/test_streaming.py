"""Captions word by word."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from showtell.caption import Caption
from showtell.captioner import Captioner
from showtell.constraints import Constraints
from showtell.decoders import LSTMDecoder
from showtell.errors import ArgumentError, NotFoundError, RunError
from showtell.protocols import Features, Forced
from showtell.rows import Rows
from showtell.search import Beam, DiverseBeam, Greedy, Sample, Search
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.vocabulary import Vocabulary

PHOTO = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
DECODERS = ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"]


def text_of(captioner: Captioner, **options: Any) -> str:
    found = captioner.caption(PHOTO, **options)
    assert isinstance(found, Caption)
    return found.text


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(
    "search",
    [Greedy(12), Sample(seed=3, max_length=12), Sample(temperature=2.0, top_k=9, min_p=0.01, seed=5, max_length=7)],
)
def test_the_pieces_joined_are_the_caption_of_the_same_search(decoder: str, search: Search) -> None:
    captioner = tiny_captioner(decoder=decoder)
    wish = Constraints(min_length=3, forbid=["dog"], prefix="a small red", no_repeat_word=True)
    for constraints in (None, wish):
        pieces = list(captioner.stream(PHOTO, search=search, constraints=constraints))
        expected = text_of(captioner, search=search, constraints=constraints)
        assert "".join(pieces) == expected
        assert [piece.strip() for piece in pieces] == expected.split()
        assert list(captioner.stream(captioner.encode(PHOTO), search=search, constraints=constraints)) == pieces
    assert pieces[:3] == ["a", " small", " red"]
    assert " dog" not in pieces


def test_without_a_search_the_captioners_own_streams_or_else_greedy_of_its_length() -> None:
    captioner = tiny_captioner()
    for own, used in ((Greedy(4), Greedy(4)), (Sample(seed=2), Sample(seed=2)), (Beam(3, 5), Greedy(5))):
        captioner.search = own
        assert "".join(captioner.stream(PHOTO)) == text_of(captioner, search=used)
    assert "".join(captioner.stream(PHOTO, search="sample:seed=7")) == text_of(captioner, search="sample:seed=7")


class Script(nn.Module):
    """A decoder that says the ids it was given, one a step, and counts its steps."""

    has_attention = False

    def __init__(self, vocabulary: Vocabulary, ids: list[int], bad: int = -1) -> None:
        super().__init__()
        self.vocab_size, self.ids, self.bad, self.calls = len(vocabulary), ids, bad, 0
        self.inside: list[tuple[bool, bool]] = []

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, features: Features) -> Rows:
        return {"rows": features.pooled}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"t": torch.zeros(len(memory["rows"]), dtype=torch.int64)}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        self.inside.append((self.training, torch.is_inference_mode_enabled()))
        logits = torch.full((len(tokens), self.vocab_size), -9.0)
        logits[:, [*self.ids, Vocabulary.end_id][self.calls]] = math.nan if self.calls == self.bad else 9.0
        self.calls += 1
        return logits, {"t": state["t"] + 1}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        raise AssertionError("not used here")


def scripted(vocabulary: Vocabulary, ids: list[int], bad: int = -1) -> tuple[Captioner, Script]:
    decoder = Script(vocabulary, ids, bad)
    return Captioner(TinyEncoder(), decoder, vocabulary), decoder


def test_each_word_comes_before_the_next_step_is_taken() -> None:
    vocabulary = Vocabulary.build(["a dog's ball"], min_count=1)
    captioner, decoder = scripted(vocabulary, vocabulary.encode("a dog's ball"))
    pieces = captioner.stream(PHOTO)
    assert decoder.calls == 0
    seen = []
    for number, piece in enumerate(pieces, 1):
        seen.append(piece)
        assert decoder.calls == number
    assert seen == ["a", " dog", "'s", " ball"]
    assert decoder.calls == 5


def test_between_two_words_the_caller_is_in_its_own_mode_and_may_drop_the_rest() -> None:
    vocabulary = Vocabulary.build(["a b c d"], min_count=1)
    captioner, decoder = scripted(vocabulary, vocabulary.encode("a b c d"))
    captioner.train()
    pieces = captioner.stream(PHOTO)
    assert next(pieces) == "a"
    assert captioner.training
    assert decoder.training
    assert not torch.is_inference_mode_enabled()
    weight = nn.Parameter(torch.ones(2))
    (weight * 2).sum().backward()
    assert text_of(tiny_captioner())  # other captions meanwhile
    assert next(pieces) == " b"
    assert isinstance(pieces, Iterator)
    pieces.close()  # type: ignore[attr-defined]
    del pieces
    assert decoder.training
    assert not torch.is_inference_mode_enabled()
    assert decoder.inside == [(False, True), (False, True)]


def test_two_streams_of_one_captioner_dont_disturb_each_other() -> None:
    captioner = tiny_captioner(decoder="transformer.v1")
    searches = [Sample(seed=1, max_length=9), Greedy(9), Sample(seed=2, max_length=9)]
    alone = [list(captioner.stream(PHOTO, search=search)) for search in searches]
    streams = [captioner.stream(PHOTO, search=search) for search in searches]
    mixed: list[list[str]] = [[], [], []]
    for _ in range(10):
        for pieces, found in zip(streams, mixed, strict=True):
            found += [piece for piece in [next(pieces, None)] if piece is not None]
    assert mixed == alone


WORDS = Vocabulary.build(["a dog's 5 % of \"it\" ( b ) n't can . , £"], min_count=1, punctuation="keep")
PIECES = Vocabulary.build(["a dog", "café 漢字"], kind="bpe", min_count=1)


@pytest.mark.parametrize("vocabulary", [WORDS, PIECES], ids=["words", "bpe"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_words_joined_are_what_the_vocabulary_makes_of_them(vocabulary: Vocabulary, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(4, len(vocabulary) - 1), max_size=12))
    captioner, _ = scripted(vocabulary, ids)
    pieces = list(captioner.stream(PHOTO))
    assert "".join(pieces) == vocabulary.decode(ids)
    assert all(pieces)


def test_half_a_character_waits_for_its_other_half() -> None:
    ids = PIECES.encode("a né")
    captioner, _ = scripted(PIECES, ids)
    pieces = list(captioner.stream(PHOTO))
    assert "".join(pieces) == "a né"
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_what_cant_be_streamed_is_refused_at_the_call(tmp_path: Path) -> None:
    captioner = tiny_captioner()
    for search in ("beam:3", Beam(1), DiverseBeam(), Sample(count=2)):
        with pytest.raises(ArgumentError, match="knows its caption at the end only"):
            captioner.stream(PHOTO, search=search)
    with pytest.raises(ArgumentError, match="stream takes one photo"):
        captioner.stream([PHOTO])  # type: ignore[arg-type]
    for count in (0, 2):
        with pytest.raises(ArgumentError, match=f"the features of one photo, not of {count}"):
            captioner.stream(Features(torch.zeros(count, 16)))
    with pytest.raises(ArgumentError, match="doesn't know 'zebra'"):
        captioner.stream(PHOTO, constraints=Constraints(forbid=["zebra"]))
    with pytest.raises(ArgumentError, match="Beam"):
        captioner.stream(PHOTO, constraints=Constraints(force=["dog"]))
    with pytest.raises(ArgumentError, match="constraints are Constraints"):
        captioner.stream(PHOTO, constraints=[Constraints()])  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        captioner.stream(tmp_path / "absent.jpg")


def test_nan_and_words_that_are_all_forbidden_are_errors_when_they_come() -> None:
    vocabulary = Vocabulary.build(["a b c"], min_count=1)
    captioner, _ = scripted(vocabulary, vocabulary.encode("a b c"), bad=2)
    pieces = captioner.stream(PHOTO)
    assert [next(pieces), next(pieces)] == ["a", " b"]
    with pytest.raises(RunError, match="NaN"):
        next(pieces)
    silent = tiny_captioner()
    wish = Constraints(forbid=list(silent.vocabulary.words[4:]), min_length=2)
    with pytest.raises(RunError, match="every next word was forbidden"):
        list(silent.stream(PHOTO, constraints=wish))
    assert isinstance(silent.decoder, LSTMDecoder)
