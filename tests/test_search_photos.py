"""Forced words and diverse beams with the bundled captioner on real photos."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from showtell import Captioner, Constraints, Features, read_dataset
from showtell.constraints import BAD_ENDINGS
from showtell.metrics.diversity import div_n
from showtell.vocabulary import Vocabulary

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.default()


@pytest.fixture(scope="module")
def encoded(captioner: Captioner, shared: Path) -> tuple[Features, list[list[str]]]:
    records = read_dataset(shared / "flickr8k").split("val")[:200]
    return captioner.encode([record.photo() for record in records]), [list(record.captions) for record in records]


def ids_of(words: Vocabulary, text: str) -> list[int]:
    return [*words.encode(text), words.end_id]


def log_prob(captioner: Captioner, features: Features, photo: int, ids: list[int]) -> float:
    """The model's log-probability of a caption, by teacher forcing."""
    one = Features(*(None if t is None else t[photo : photo + 1] for t in features))
    with torch.inference_mode():
        logits = captioner(one, torch.tensor([[captioner.vocabulary.start_id, *ids[:-1]]])).logits
    return float(logits.log_softmax(-1).gather(2, torch.tensor([ids]).unsqueeze(2)).sum())


def test_forced_words_always_appear_and_fit_better_than_appended_ones(
    captioner: Captioner, encoded: tuple[Features, list[list[str]]]
) -> None:
    features, references = encoded
    words = captioner.vocabulary
    counts = Counter(word for each in references for text in each for word in words.split(text))
    known = [w for w, n in counts.items() if n >= 3 and words.id_of(w) is not None and w not in BAD_ENDINGS]
    rng = random.Random(0)
    wishes = [rng.sample(known, rng.choice([1, 1, 2])) for _ in range(200)]
    search = "beam:5,length_penalty=0.7"
    forced = captioner.generate(features, search=search, constraints=[Constraints(force=force) for force in wishes])
    plain = captioner.generate(features, search=search)
    ours, appended = [], []
    for photo, force in enumerate(wishes):
        for caption in forced[photo]:
            assert set(force) <= set(caption.tokens), (force, caption.text)
        best = forced[photo][0]
        ours.append(best.log_prob / len(best.tokens))
        said = [words.id_of(token) or 0 for token in plain[photo][0].tokens if token != "<end>"]
        missing = [words.id_of(word) or 0 for word in force if words.id_of(word) not in said]
        ids = [*said, *missing, words.end_id]
        appended.append(log_prob(captioner, features, photo, ids) / len(ids))
    print(f"mean log-probability a word: forced {sum(ours) / 200:.3f}, appended {sum(appended) / 200:.3f}")
    assert sum(ours) / 200 > sum(appended) / 200 + 0.2


def test_diverse_beams_say_more_different_things_than_a_beam_of_the_same_size(
    captioner: Captioner, encoded: tuple[Features, list[list[str]]]
) -> None:
    features, _ = encoded
    found = {
        search: [[c.text for c in each] for each in captioner.generate(features, search=search)]
        for search in ("beam:6", "diverse:6,groups=3,diversity=1.0", "diverse:6,groups=6,diversity=0.5")
    }
    values = {search: [div_n(sets, n) for n in (1, 2)] for search, sets in found.items()}
    print(values)
    for search in list(found)[1:]:
        assert all(diverse > beam for diverse, beam in zip(values[search], values["beam:6"], strict=True))
