"""Captioners that caption together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import showtell.ensemble
from chains import assert_same, random_tables, slow_beam
from showtell.caption import Caption
from showtell.captioner import Captioner
from showtell.constraints import Constraints
from showtell.ensemble import Ensemble
from showtell.errors import ArgumentError, RunError
from showtell.image_spec import ImageSpec
from showtell.images import load_images
from showtell.protocols import Features, Forced
from showtell.rows import Rows
from showtell.search import Beam, DiverseBeam, Greedy, Sample, Search
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.vocabulary import Vocabulary

SEARCHES: list[Search] = [
    Greedy(9),
    Beam(4, 9),
    Beam(3, 9, 0.8, "gnmt"),
    DiverseBeam(4, 2, 0.5, 9),
    Sample(3, seed=4, max_length=9),
]
DECODERS = ["lstm.v1", "attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"]
WORDS = Vocabulary.build(["a b c"], min_count=1)  # 7 with the special ones


def photos(count: int) -> list[Any]:
    return list(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)))


def shown(found: list[list[Caption]]) -> list[list[tuple[str, ...]]]:
    return [[caption.tokens for caption in each] for each in found]


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_captioner_twice_says_what_it_says_alone(decoder: str) -> None:
    captioner = tiny_captioner(decoder=decoder)
    double = Ensemble([captioner, captioner])
    equal = Ensemble([captioner, tiny_captioner(decoder=decoder), captioner], weights=[1, 5.0, 0.1])
    images = photos(5)
    wish = Constraints(min_length=3, forbid=["dog"], prefix="a small")
    for search in SEARCHES:
        for constraints in (None, wish):
            options: Any = {"search": search, "constraints": constraints, "batch_size": 2}
            alone = captioner.generate(images, **options)
            for ensemble in (double, equal):
                together = ensemble.generate(images, **options)
                assert shown(together) == shown(alone)
                for ours, theirs in zip(together, alone, strict=True):
                    for one, two in zip(ours, theirs, strict=True):
                        assert one.token_log_probs == pytest.approx(two.token_log_probs, abs=1e-5)
                        assert one.score == pytest.approx(two.score, abs=1e-5)


class Table(nn.Module):
    """A decoder that is a second-order chain for each photo."""

    has_attention = False
    vocab_size = len(WORDS)

    def __init__(self, tables: Tensor) -> None:
        super().__init__()
        self.tables = tables
        self.scale = 1.0

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, features: Features) -> Rows:
        return {"image": (features.pooled[:, 0] * len(self.tables)).floor().long()}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"image": memory["image"], "before": torch.full_like(memory["image"], WORDS.start_id)}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        logits = self.tables[state["image"], state["before"], tokens] + 3.0  # not normalised
        return logits * self.scale, {"image": state["image"], "before": tokens}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        images = memory["image"].repeat_interleave(len(tokens) // len(memory["image"]))
        before = torch.cat([torch.full_like(tokens[:, :1], WORDS.start_id), tokens[:, :-1]], dim=1)
        return Forced(self.tables[images.unsqueeze(1), before, tokens])


class Number(nn.Module):
    """An encoder that reads a photo's number off its brightness, with a spec of its own."""

    feature_dim = 1

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_spec = ImageSpec(size, size)

    def forward(self, images: Tensor) -> Features:
        assert images.shape[2] == self.image_spec.height
        return Features(images.mean((1, 2, 3)).unsqueeze(1).double())

    def config(self) -> dict[str, Any]:
        return {}


def numbered(count: int) -> list[Tensor]:
    return [torch.full((3, 8, 8), (number + 0.5) / count) for number in range(count)]


@pytest.mark.parametrize("shares", [None, [3, 1]])
def test_the_mean_of_two_decoders_is_what_a_plain_computation_gives(shares: list[float] | None) -> None:
    tables = [random_tables(seed, 6, len(WORDS)) for seed in (1, 2)]
    ensemble = Ensemble(
        [Captioner(Number(8), Table(tables[0]), WORDS), Captioner(Number(4), Table(tables[1]), WORDS)], weights=shares
    )
    first, second = (0.5, 0.5) if shares is None else (0.75, 0.25)
    mean = (first * tables[0].exp() + second * tables[1].exp()).log()
    mean[..., [WORDS.pad_id, WORDS.start_id, WORDS.unk_id]] = -math.inf
    found = ensemble.generate(numbered(6), search=Beam(3, 5), batch_size=4)
    for image in range(6):
        # The chains' own start and end tokens are 0 and 1, a vocabulary's 1 and 2: the rows and columns change places.
        order = [1, 2, 0, 3, 4, 5, 6]
        table = mean[image][order][:, order][:, :, order]
        expected = slow_beam(table, 3, 5, 0.0)
        ours = [
            (c.score, c.log_prob, tuple(order.index(WORDS.id_of(token) or 0) for token in c.tokens))
            for c in found[image]
        ]
        assert_same(ours, expected)
        for caption in found[image]:
            scored = ensemble.score(numbered(6)[image], caption.tokens)
            assert isinstance(scored, Caption)
            assert scored.log_prob == pytest.approx(caption.log_prob, abs=1e-9)


def test_it_scores_ranks_and_streams_by_the_mean() -> None:
    members = [tiny_captioner(seed=1).double(), tiny_captioner(seed=2, decoder="transformer.v1").double()]
    ensemble = Ensemble(members, weights=[1, 3])
    images = photos(3)
    texts = ["a dog runs", "a girl", "two men on the beach"]
    for image in images:
        for search in SEARCHES:
            [found] = ensemble.generate(image, search=search)
            for caption in found:
                scored = ensemble.score(image, caption.tokens)
                assert isinstance(scored, Caption)
                assert scored.log_prob == pytest.approx(caption.log_prob, abs=1e-9)
        greedy = ensemble.caption(image, search="greedy")
        assert "".join(ensemble.stream(image, search="greedy")) == str(greedy)
    matrix = ensemble.rank(images, texts, batch_size=2).log_probs
    for row, image in enumerate(images):
        for column, text in enumerate(texts):
            each = [one.score(image, text) for one in members]
            chances = [torch.tensor(one.token_log_probs, dtype=torch.float64).exp() for one in each]  # type: ignore[union-attr]
            expected = (0.25 * chances[0] + 0.75 * chances[1]).log().sum()
            assert float(matrix[row, column]) == pytest.approx(float(expected), abs=1e-9)


def test_each_captioner_sees_the_photo_with_its_own_encoder_and_a_shared_one_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[ImageSpec] = []
    encoded: list[int] = []

    def counted(images: Any, spec: ImageSpec) -> Tensor:
        read.append(spec)
        return load_images(images, spec)

    def forward(self: TinyEncoder, images: Tensor) -> Features:
        encoded.append(id(self))
        return self.head(self.trunk(images))

    monkeypatch.setattr(showtell.ensemble, "load_images", counted)
    monkeypatch.setattr(TinyEncoder, "forward", forward)
    one, two = tiny_captioner(seed=0), tiny_captioner(seed=1)
    shared = Captioner(one.encoder, tiny_captioner(seed=2).decoder, one.vocabulary)
    Ensemble([one, two, shared]).caption(photos(3), batch_size=2)
    assert read == [one.encoder.image_spec] * 2
    assert encoded == [id(one.encoder), id(two.encoder)] * 2


def test_features_go_to_every_captioner() -> None:
    one = tiny_captioner(seed=0)
    two = Captioner(one.encoder, tiny_captioner(seed=1).decoder, one.vocabulary)
    ensemble, images = Ensemble([one, two], search="beam:2"), photos(5)
    features = one.encode(images)
    assert shown(ensemble.generate(features, batch_size=2)) == shown(ensemble.generate(images))
    assert ensemble.search == Beam(2)
    assert Ensemble([one, two]).search == one.search
    assert ensemble.caption([]) == []
    assert isinstance(ensemble.caption(features), list)


def test_it_is_a_module_whose_parts_keep_their_modes() -> None:
    members = [tiny_captioner(seed=0, dropout=0.5), tiny_captioner(seed=1, dropout=0.5).eval()]
    members[0].train()
    ensemble = Ensemble(members)
    first, second = (ensemble.caption(photos(2), search="beam:3") for _ in range(2))
    assert first == second
    assert members[0].decoder.training  # type: ignore[attr-defined]
    assert not members[1].decoder.training  # type: ignore[attr-defined]
    assert len(list(ensemble.parameters())) == sum(len(list(one.parameters())) for one in members)
    assert next(ensemble.double().parameters()).dtype == torch.float64
    assert isinstance(ensemble.caption(photos(1)[0]), Caption)


def test_captioners_that_dont_belong_together_are_refused() -> None:
    captioner = tiny_captioner()
    for wrong in ([], captioner, None):
        with pytest.raises(ArgumentError, match="a list of at least one Captioner"):
            Ensemble(wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="takes Captioners, not str"):
        Ensemble([captioner, "default"])  # type: ignore[list-item]
    with pytest.raises(
        ArgumentError, match=r"share one vocabulary.* number 1 has .*6 entries.* the first .*25 entries"
    ):
        Ensemble([captioner, tiny_captioner(captions=["a dog"])])
    with pytest.raises(ArgumentError, match="number 2 has 'b' as word 4 and the first 'a'"):
        Ensemble([tiny_captioner(captions=[text]) for text in ("a a b", "a a b", "a b b")])
    for weights in (
        [1],
        [1, 0],
        [1, -1],
        [1, math.nan],
        [1, math.inf],
        [True, 1],
        ["1", 1],
        5,
        [1e308, 1e308],
        [1, 1e-320],
    ):
        with pytest.raises(ArgumentError, match="weight"):
            Ensemble([captioner, captioner], weights=weights)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="search"):
        Ensemble([captioner], search="luck")
    decoder, features = Ensemble([captioner]).ready(photos(1))
    with pytest.raises(ArgumentError, match="made ready with"):
        decoder.prepare(features._replace(pooled=features.pooled + 1))
    with pytest.raises(ArgumentError, match="save its captioners"):
        decoder.config()


def test_a_captioner_of_nan_is_an_error() -> None:
    broken = Captioner(Number(8), Table(random_tables(1, 1, len(WORDS))), WORDS)
    broken.decoder.scale = math.nan  # type: ignore[attr-defined]
    sound = Captioner(Number(8), Table(random_tables(2, 1, len(WORDS))), WORDS)
    with pytest.raises(RunError, match="NaN"):
        Ensemble([sound, broken]).caption(numbered(1))
