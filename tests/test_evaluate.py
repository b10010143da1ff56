from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from showtell.captioner import Captioner
from showtell.data import Batch
from showtell.errors import ArgumentError
from showtell.evaluate import evaluate, score_words, teacher_forced_loss
from showtell.metrics.bleu import bleu
from showtell.protocols import Features
from showtell.testing import tiny_captioner

REFERENCES = [["a dog runs", "the dog"], ["a cat"], ["two birds, in a tree"], ["a dog"], ["a man's hat"]]


@pytest.fixture
def captioner() -> Captioner:
    return tiny_captioner()


@pytest.fixture
def photos() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, 32, 32, generator=generator) for _ in REFERENCES]


def test_words_lose_case_and_punctuation_only() -> None:
    assert score_words("  A Dog's ball - RED, no. 5!\n") == ["a", "dog's", "ball", "red", "no", "5"]
    assert score_words("L’été à Zürich") == ["l'été", "à", "zürich"]
    assert score_words("?!") == []


def test_the_score_is_bleu_of_the_captions_that_caption_gives(captioner: Captioner, photos: list[Tensor]) -> None:
    result = evaluate(captioner, photos, REFERENCES, search="beam:3", batch_size=2)
    expected = captioner.caption(photos, search="beam:3")
    assert [c.text for c in result.captions] == [c.text for c in expected]
    words = [c.text.split() for c in expected]
    plain = [[r.lower().replace(",", "").split() for r in references] for references in REFERENCES]
    assert result.bleu == bleu(words, plain)
    assert result.bleu4 == result.bleu.corpus[3]


def test_photos_features_and_functions_give_the_same(captioner: Captioner, photos: list[Tensor]) -> None:
    features = captioner.encode(photos)
    asked: list[int] = []

    def some(positions: Sequence[int]) -> Features:
        asked.extend(positions)
        return Features(features.pooled[list(positions)])

    def pixels(positions: Sequence[int]) -> Tensor:
        return torch.stack([photos[i] for i in positions])

    results = [evaluate(captioner, x, REFERENCES, batch_size=2) for x in (photos, features, some, pixels)]
    assert asked == list(range(5))
    for result in results[1:]:
        assert result.bleu == results[0].bleu
        assert [c.text for c in result.captions] == [c.text for c in results[0].captions]


def test_the_loss_is_the_mean_over_real_words_however_batched(captioner: Captioner, photos: list[Tensor]) -> None:
    generator = torch.Generator().manual_seed(5)
    size = len(captioner.vocabulary)
    tokens = torch.randint(size, (5, 6), generator=generator)
    targets = torch.randint(size, (5, 6), generator=generator)
    weights = (torch.arange(6) < torch.tensor([[1], [6], [3], [4], [2]])).float()
    images = torch.stack(photos)
    whole = Batch(images, tokens, targets, weights, False)
    parts = [Batch(*(t[i:j] for t in whole[:4]), False) for i, j in ((0, 1), (1, 4), (4, 5))]
    log_probs = captioner(images, tokens).logits.detach().double().log_softmax(-1)
    real = [-float(log_probs[r, t, targets[r, t]]) for r in range(5) for t in range(6) if weights[r, t]]
    assert len(real) == 16
    for batches in ([whole], parts):
        assert teacher_forced_loss(captioner, batches) == pytest.approx(sum(real) / 16, rel=1e-5)


def test_a_captioner_in_training_is_evaluated_without_dropout_and_trains_on(
    captioner: Captioner, photos: list[Tensor]
) -> None:
    expected = evaluate(captioner.eval(), photos, REFERENCES)
    captioner.train()
    captioner.encoder.eval()
    modes = [m.training for m in captioner.modules()]
    assert evaluate(captioner, photos, REFERENCES).bleu == expected.bleu
    words = torch.ones(5, 1, dtype=torch.int64)
    batch = Batch(torch.stack(photos), words, words + 1, torch.ones(5, 1), False)
    assert teacher_forced_loss(captioner, [batch]) == teacher_forced_loss(captioner, [batch])
    assert [m.training for m in captioner.modules()] == modes


def test_clumsy_input_is_refused(captioner: Captioner, photos: list[Tensor]) -> None:
    with pytest.raises(ArgumentError, match="at least one photo"):
        evaluate(captioner, [], [])
    with pytest.raises(ArgumentError, match="list of captions for each photo"):
        evaluate(captioner, photos, ["a dog"] * 5)
    with pytest.raises(ArgumentError, match="list of captions for each photo"):
        evaluate(captioner, photos, [[]] * 5)
    with pytest.raises(ArgumentError, match="5 photos but references for 4"):
        evaluate(captioner, photos, REFERENCES[:4])
    with pytest.raises(ArgumentError, match="batch_size"):
        evaluate(captioner, photos, REFERENCES, batch_size=0)
    with pytest.raises(ArgumentError, match="no word"):
        teacher_forced_loss(captioner, [])
