"""A world of small pictures with captions, and a captioner that learns it in seconds: what the doctor's tests break."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from showtell import Beam, Captioner, Dataset, Features, ImageSpec, Record, Vocabulary
from showtell.decoders import LSTMDecoder
from showtell.images import load_images

COLOURS = {
    "red": (205, 40, 35),
    "blue": (40, 60, 200),
    "yellow": (230, 210, 50),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
GROUNDS = {"grass": (70, 140, 50), "sand": (215, 190, 130), "snow": (225, 230, 240), "road": (110, 110, 115)}
SKIES = {"day": (130, 180, 235), "night": (20, 20, 60), "evening": (240, 150, 90)}
THINGS = ("ball", "box", "tent")
SIZE = 48


def scene(rng: np.random.Generator) -> tuple[np.ndarray[Any, Any], tuple[str, ...]]:
    """A thing on the ground under the sky, (48, 48, 3) uint8, and three captions in words of their own."""
    thing, colour, ground, sky = (str(rng.choice(list(kinds))) for kinds in (THINGS, COLOURS, GROUNDS, SKIES))
    radius, left = float(rng.uniform(6, 13)), bool(rng.random() < 0.5)
    x, y = rng.uniform(9, 19) + (0 if left else 20), rng.uniform(26, 34)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    horizon = rng.uniform(14, 24) + rng.normal() * np.sin(columns / SIZE * 6 + rng.uniform(0, 6))
    picture = np.where((rows < horizon)[..., None], SKIES[sky], GROUNDS[ground]).astype(np.float64)
    # No two photos have the same clouds and stones.
    for cells, strength in ((6, 16.0), (16, 14.0)):
        noise = torch.from_numpy(rng.normal(size=(1, 1, cells, cells)))
        picture += strength * F.interpolate(noise, size=(SIZE, SIZE), mode="bicubic")[0, 0].numpy()[..., None]
    across, down = np.abs(columns - x), rows - y
    inside = {
        "ball": across**2 + down**2 < radius**2,
        "box": (across < radius * 0.85) & (np.abs(down) < radius * 0.85),
        "tent": (np.abs(down) < radius) & (across < (down + radius) / 2),
    }[thing]
    picture[inside] = COLOURS[colour]
    picture += rng.normal(size=picture.shape) * 4
    size = "big" if radius > 9.5 else "small"
    side = "left" if left else "right"
    verb = str(rng.choice(["lies", "stands", "rests"]))
    captions = [
        f"a {size} {colour} {thing} {verb} on the {ground}",
        f"there is a {colour} {thing} on the {side} of the {ground}",
        f"{colour} {thing} in the {sky}" if sky != "night" else f"at night a {thing} {verb} on the {ground}",
        f"the {size} {thing} on the {side} is {colour}",
    ]
    chosen = rng.permutation(4)[:3]
    return picture.clip(0, 255).astype(np.uint8), tuple(captions[i] for i in chosen)


def world(train: int, val: int, seed: int = 0) -> Dataset:
    """Photos in memory; each of the captions fits its own."""
    rng = np.random.default_rng(seed)
    records = []
    for number in range(train + val):
        picture, captions = scene(rng)
        split = "train" if number < train else "val"
        records.append(Record(f"{split}{number}", picture, captions, split, f"made up:{number + 1}"))
    return Dataset(tuple(records))


class SmallEncoder(nn.Module):
    """Three convolutions on photos normalised as ImageNet's; positions stay apart. The last three options break it."""

    def __init__(self, feature_dim: int = 64, swapped: bool = False, plain: bool = False, factor: float = 1.0) -> None:
        super().__init__()
        self.feature_dim, self.swapped, self.plain, self.factor = feature_dim, swapped, plain, factor
        self.image_spec = ImageSpec(32, 32)
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.mix = nn.Linear(32 * 16, feature_dim)
        self.norm = nn.BatchNorm1d(feature_dim)

    def config(self) -> dict[str, Any]:
        return {
            "feature_dim": self.feature_dim,
            "swapped": self.swapped,
            "plain": self.plain,
            "factor": self.factor,
        }

    def forward(self, images: Tensor) -> Features:
        images = self.factor * (images.flip(1) if self.swapped else images)
        if not self.plain:
            mean, std = (torch.tensor(t).view(3, 1, 1) for t in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
            images = (images - mean) / std
        return Features(self.norm(self.mix(self.body(images).flatten(1))))


def learned(dataset: Dataset, *, steps: int, seed: int = 0, max_size: int | None = None, size: int = 64) -> Captioner:
    """A captioner trained from scratch on the photos of train."""
    records = dataset.split("train")
    vocabulary = Vocabulary.build([c for r in records for c in r.captions], min_count=1, max_size=max_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = SmallEncoder()
        decoder = LSTMDecoder(
            len(vocabulary), encoder.feature_dim, embed_dim=48, hidden_dim=size, dropout=0.0, image="every-step"
        )
        captioner = Captioner(encoder, decoder, vocabulary, search=Beam(size=2, length_penalty=0.7))
        train(captioner, records, steps)
    return captioner.eval()


def train(captioner: Captioner, records: tuple[Record, ...], steps: int) -> None:
    images = load_images([record.image for record in records], captioner.encoder.image_spec)
    words = captioner.vocabulary
    ids = [[words.encode(caption) for caption in record.captions] for record in records]
    width = 1 + max(len(each) for rows in ids for each in rows)
    targets = torch.full((len(records), len(ids[0]), width), words.pad_id)
    for photo, rows in enumerate(ids):
        for k, each in enumerate(rows):
            targets[photo, k, : len(each) + 1] = torch.tensor([*each, words.end_id])
    tokens = torch.cat([torch.full((*targets.shape[:2], 1), words.start_id), targets[:, :, :-1]], dim=2)
    optimizer = torch.optim.Adam(captioner.parameters(), lr=8e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 8e-3 * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        chosen = torch.randperm(len(records))[:48]
        logits = captioner(images[chosen], tokens[chosen].flatten(0, 1)).logits
        loss = F.cross_entropy(logits.flatten(0, 1), targets[chosen].flatten(), ignore_index=words.pad_id)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(captioner.parameters(), 1.0)
        optimizer.step()
