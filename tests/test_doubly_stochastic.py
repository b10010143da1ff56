from __future__ import annotations

from itertools import islice
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from grids import D, masked_features
from showtell.captioner import Captioner
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder
from showtell.encoders.precomputed import PrecomputedFeatures
from showtell.errors import ArgumentError
from showtell.protocols import Features, Forced
from showtell.training import CrossEntropy, DoublyStochastic, Trainer
from showtell.vocabulary import Vocabulary

T, SLOTS = 5, 2
WORDS = Vocabulary.build(["a b c d e f"], min_count=1)


class Piece(NamedTuple):
    inputs: Any
    tokens: Tensor
    targets: Tensor
    weights: Tensor
    trunk: bool = False


def batch(photos: list[int]) -> Piece:
    """Photos of 2 caption slots of different lengths; the second slot of photo 1 is padding altogether."""
    source = torch.Generator().manual_seed(2)
    ids = torch.randint(0, len(WORDS), (2, 6, T), generator=source)
    lengths = torch.tensor([5, 3, 4, 0, 2, 1])
    weights = (torch.arange(T) < lengths.unsqueeze(1)).float()
    rows = [SLOTS * photo + slot for photo in photos for slot in range(SLOTS)]
    features = Features(*(None if t is None else t[photos] for t in masked_features()))  # type: ignore[arg-type]
    return Piece(features, ids[0, rows], ids[1, rows], weights[rows])


def captioner(decoder: Any = AttentionLSTMDecoder) -> Captioner:
    torch.manual_seed(0)
    options = {"attention_dim": 4} if decoder is AttentionLSTMDecoder else {}
    made = decoder(len(WORDS), D, embed_dim=5, hidden_dim=7, dropout=0.0, **options)
    return Captioner(PrecomputedFeatures(D, grid=True), made, WORDS).double()


def test_the_sum_is_the_one_of_equation_14_over_real_words_and_regions() -> None:
    model, piece = captioner(), batch([0, 1, 2])
    term = DoublyStochastic(CrossEntropy(0.1), 0.7)(model, piece)["doubly_stochastic"]
    maps = model(piece.inputs, piece.tokens, attention=True).attention
    assert maps is not None
    expected = 0.0
    for row in range(6):
        words = int(piece.weights[row].sum())
        for region in range(5):
            if words and piece.inputs.mask[row // SLOTS, region]:
                expected += (1 - sum(maps[row, t, region].item() for t in range(words))) ** 2
    assert term.sum.item() == pytest.approx(expected, rel=1e-12)
    assert (term.weight, term.factor) == (5, 0.7)  # six slots, one of them empty


def test_what_stands_in_padding_steps_and_padding_captions_changes_nothing() -> None:
    model, piece = captioner(), batch([0, 1, 2])
    objective = DoublyStochastic(CrossEntropy(), 1.0)
    other = piece._replace(tokens=torch.where(piece.weights > 0, piece.tokens, 3))
    assert not torch.equal(other.tokens, piece.tokens)
    for name, term in objective(model, piece).items():
        assert objective(model, other)[name].sum.item() == pytest.approx(term.sum.item(), rel=1e-12)


def test_the_words_term_is_the_bases_own_and_one_forced_pass_serves_both() -> None:
    model, piece = captioner(), batch([0, 1, 2])
    calls: list[bool] = []
    model.decoder.register_forward_hook(  # type: ignore[attr-defined]
        lambda module, args, kwargs, out: calls.append(kwargs["attention"]), with_kwargs=True
    )
    objective = DoublyStochastic(CrossEntropy(0.1))
    terms = objective(model, piece)
    assert calls == [True]
    alone = CrossEntropy(0.1)(model, piece)["cross_entropy"]
    assert calls == [True, False]
    assert torch.equal(terms["cross_entropy"].sum, alone.sum)
    assert {name: term.weight for name, term in terms.items()} == objective.weights(piece)


def test_three_photos_at_once_or_one_by_one_give_the_same_step() -> None:
    results = []
    for parts in ([[0, 1, 2]], [[0], [1, 2]], [[0], [1], [2]]):
        model = captioner()
        pieces = [batch(part) for part in parts]
        source: Any = type("Listed", (), {"batch": lambda self, n, p=pieces: p[n % len(p)]})()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, DoublyStochastic(CrossEntropy(), 2.0), optimizer, accumulate=len(pieces))
        reports = list(islice(trainer.steps(source), 3))
        results.append([*(r.loss for r in reports), *(p.detach().clone() for p in model.parameters())])
        assert set(reports[0].terms) == {"cross_entropy", "doubly_stochastic"}
        expected = reports[0].terms["cross_entropy"] + reports[0].terms["doubly_stochastic"]
        assert reports[0].loss == pytest.approx(expected)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-14)


def test_training_for_it_alone_spreads_the_attention() -> None:
    model, piece = captioner(), batch([2])
    objective = DoublyStochastic(CrossEntropy(), 1000.0)
    source: Any = type("One", (), {"batch": lambda self, n: piece})()
    with torch.no_grad():
        model.decoder.score.weight.mul_(20.0)  # type: ignore[attr-defined]
    trainer = Trainer(model, objective, torch.optim.Adam(model.parameters(), lr=0.01))
    terms = [report.terms["doubly_stochastic"] for report in islice(trainer.steps(source), 60)]
    # Captions of 2 words and of 1 over 5 regions: at best each region gets 2/5 and 1/5.
    best = 1000.0 * (5 * (1 - 2 / 5) ** 2 + 5 * (1 - 1 / 5) ** 2) / 2
    assert terms[0] > 1.3 * best
    assert best <= terms[-1] < 1.03 * best


def test_a_decoder_without_attention_is_refused() -> None:
    with pytest.raises(ArgumentError, match="attention"):
        DoublyStochastic(CrossEntropy())(captioner(LSTMDecoder), batch([0]))

    class Silent(nn.Module):
        def forward(self, inputs: Any, tokens: Tensor, **_: Any) -> Forced:
            return Forced(torch.zeros(*tokens.shape, 9))

    with pytest.raises(ArgumentError, match="needs a decoder that returns attention maps"):
        DoublyStochastic(CrossEntropy())(Silent(), batch([0]))


@pytest.mark.parametrize("factor", [-0.1, 1001.0, float("nan"), "1", True])
def test_a_factor_out_of_range_is_refused(factor: Any) -> None:
    with pytest.raises(ArgumentError, match="factor"):
        DoublyStochastic(CrossEntropy(), factor)
