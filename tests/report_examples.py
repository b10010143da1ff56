"""What the tests of the report share: results made of few words, photographs, and a decoder with attention."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from showtell import Captioner, Features, Forced, Rows, Vocabulary
from showtell.evaluation import Evaluation, ScoredPhoto, score_predictions
from showtell.rows import rows_per_image
from showtell.testing import TinyEncoder

WORDS = ("a dog runs on the grass", "two men ride a bike", "the girl holds a red ball", "a cat sleeps in the sun")


class Glance(nn.Module):
    """A decoder whose next word depends on the last one and on where in the photo that one makes it look."""

    has_attention = True

    def __init__(self, vocab_size: int, feature_dim: int) -> None:
        super().__init__()
        self.vocab_size, self.feature_dim = vocab_size, feature_dim
        self.embedding = nn.Embedding(vocab_size, feature_dim)
        self.output = nn.Linear(feature_dim, vocab_size)

    def config(self) -> dict[str, Any]:
        return {"vocab_size": self.vocab_size, "feature_dim": self.feature_dim}

    def prepare(self, features: Features) -> Rows:
        assert features.grid is not None
        real = torch.ones(features.grid.shape[:2], dtype=torch.bool) if features.mask is None else features.mask
        return {"grid": features.grid, "real": real}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"steps": memory["grid"].new_zeros(len(memory["grid"]), 1)}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        return self(tokens.unsqueeze(1), memory).logits[:, 0], {"steps": state["steps"] + 1}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        times = rows_per_image(len(tokens), len(memory["grid"]))
        grid, real = (memory[name].repeat_interleave(times, 0) for name in ("grid", "real"))
        words = self.embedding(tokens)
        likeness = (4 * words @ grid.transpose(1, 2)).masked_fill(~real.unsqueeze(1), -torch.inf)
        sentinel = likeness.new_zeros(*likeness.shape[:2], 1)
        maps = torch.cat([likeness, sentinel], dim=2).softmax(dim=2)[:, :, :-1]
        return Forced(self.output(words + maps @ grid), maps if attention else None)


def attending_captioner(captions: Sequence[str] = WORDS) -> Captioner:
    vocabulary = Vocabulary.build(captions, min_count=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        encoder = TinyEncoder()
        return Captioner(encoder, Glance(len(vocabulary), encoder.feature_dim), vocabulary).eval()


def photo_files(folder: Path, count: int) -> list[Path]:
    """Photos that differ: a gradient each, wide or high."""
    files = []
    for i in range(count):
        size = (400, 300) if i % 2 else (300, 400)
        left = Image.linear_gradient("L").resize(size)
        right = Image.radial_gradient("L").resize(size)
        flat = Image.new("L", size, 255 * i // max(1, count))
        files.append(folder / f"photo{i}.jpg")
        Image.merge("RGB", (left, right, flat)).save(files[-1])
    return files


def result(
    name: str = "one",
    count: int = 24,
    *,
    seed: int = 0,
    images: Sequence[Path | str | None] = (),
    search: str = "given",
) -> Evaluation:
    """Random sentences over the words above; the same photos and references whatever the name and the seed."""
    words = " ".join(WORDS).split()
    own, common = random.Random(name), random.Random("references")
    photos = []
    for i in range(count):
        references = tuple(" ".join(common.choices(words, k=common.randint(4, 9))) for _ in range(3))
        said = references[own.randrange(3)].split()
        for place in range(len(said)):
            if own.random() < 0.4:
                said[place] = own.choice(words)
        image = images[i] if i < len(images) else None
        photos.append(
            ScoredPhoto(
                f"{i:05}.jpg", " ".join(said), references, None if image is None else str(image), -1.5 * len(said)
            )
        )
    return score_predictions(name, photos, search=search)
