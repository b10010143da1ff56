"""Where a decoder looked: boxes of the original photo."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from showtell.attention import AttentionMaps, attend
from showtell.caption import Caption
from showtell.captioner import Captioner
from showtell.errors import ArgumentError, NotFoundError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features, Forced
from showtell.rows import Rows
from showtell.testing import TinyEncoder, tiny_captioner
from showtell.vocabulary import Vocabulary

WORDS = Vocabulary.build(["red green blue grey"], min_count=1)
COLOURS = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


class Cells(nn.Module):
    """An encoder whose grid is the mean colour of each cell, 2 rows of 4."""

    feature_dim = 3

    def __init__(self, spec: ImageSpec, masked: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.image_spec, self.masked = spec, masked

    def forward(self, images: Tensor) -> Features:
        cells = nn.functional.adaptive_avg_pool2d(images, (2, 4)).flatten(2).transpose(1, 2)
        boxes = torch.tensor([[x / 4, y / 2, (x + 1) / 4, (y + 1) / 2] for y in range(2) for x in range(4)])
        mask = torch.tensor([i not in self.masked for i in range(8)]) if self.masked else None
        count = len(images)
        return Features(
            cells.mean(1),
            cells,
            None if mask is None else mask.expand(count, -1),
            boxes.expand(count, -1, -1),
        )

    def config(self) -> dict[str, Any]:
        return {}


class Pointer(nn.Module):
    """A decoder that looks where the colour of the last word is, and says the colours in turn; grey: nowhere."""

    has_attention = True
    vocab_size = len(WORDS)

    def config(self) -> dict[str, Any]:
        return {}

    def prepare(self, features: Features) -> Rows:
        assert features.grid is not None
        return {"grid": features.grid}

    def initial_state(self, memory: Rows, max_length: int) -> Rows:
        return {"t": memory["grid"].new_zeros(len(memory["grid"]))}

    def step(self, tokens: Tensor, state: Rows, memory: Rows) -> tuple[Tensor, Rows]:
        return self(tokens.unsqueeze(1), memory).logits[:, 0], {"t": state["t"] + 1}

    def forward(self, tokens: Tensor, memory: Rows, *, attention: bool = False) -> Forced:
        wanted = torch.zeros(len(WORDS), 3)
        follow = torch.full((len(WORDS), len(WORDS)), -20.0)
        ids = [WORDS.start_id, *(WORDS.id_of(name) for name in COLOURS)]
        for place, (before, name) in enumerate(zip(ids, COLOURS, strict=False)):
            wanted[before] = torch.tensor(COLOURS[name])
            follow[before, ids[place + 1]] = 20.0
        follow[ids[-1], WORDS.end_id] = 20.0
        alike = wanted[tokens] @ memory["grid"].transpose(1, 2)
        maps = 0.75 * alike / alike.sum(2, keepdim=True).clamp(min=1e-9)
        return Forced(follow[tokens], maps if attention else None)


def captioner(spec: ImageSpec, **options: Any) -> Captioner:
    return Captioner(Cells(spec, **options), Pointer(), WORDS).eval()


def photo(width: int, height: int, **patches: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """Black, with patches x0 y0 x1 y1 of pure colours."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for name, (x0, y0, x1, y1) in patches.items():
        pixels[y0:y1, x0:x1] = [255 * int(v) for v in COLOURS[name]]
    return pixels


def looked_at(maps: AttentionMaps, place: int) -> list[float]:
    """The one region that a word looks at."""
    (region,) = maps.weights[place].nonzero().flatten().tolist()
    found: list[float] = maps.boxes[region].tolist()
    return found


def test_a_squashed_photo_gives_the_cells_where_the_colours_are() -> None:
    model = captioner(ImageSpec(16, 32, interpolation="nearest"))
    image = photo(800, 200, red=(0, 0, 200, 100), green=(600, 100, 800, 200), blue=(200, 0, 400, 100))
    found = model.caption(image)
    assert isinstance(found, Caption)
    assert found.tokens == ("red", "green", "blue", "<end>")
    maps = model.attend(image, found)
    assert isinstance(maps, AttentionMaps)
    assert maps.words == found.tokens
    assert looked_at(maps, 0) == [0.0, 0.0, 0.25, 0.5]
    assert looked_at(maps, 1) == [0.75, 0.5, 1.0, 1.0]
    assert looked_at(maps, 2) == [0.25, 0.0, 0.5, 0.5]
    assert maps.sentinel.tolist() == pytest.approx([0.25, 0.25, 0.25, 1.0])
    assert not maps.weights[3].any()
    assert {t.dtype for t in (maps.weights, maps.boxes, maps.sentinel)} == {torch.float32}


def test_a_cropped_photo_gives_boxes_of_the_whole_photo() -> None:
    # 400 x 200 pixels; short side 20 -> 40 x 20; the centre 16 x 16 of it is 120..280 x 20..180 of the photo, in cells
    # of 40 x 80 pixels.
    model = captioner(ImageSpec(16, 16, "crop", 20))
    image = photo(400, 200, red=(120, 20, 160, 100), green=(200, 100, 240, 180))
    maps = model.attend(image, "red green")
    assert isinstance(maps, AttentionMaps)
    pixels = torch.tensor([400, 200, 400, 200])
    assert (maps.boxes * pixels)[0].tolist() == pytest.approx([120, 20, 160, 100], abs=1e-3)
    assert (maps.boxes * pixels)[6].tolist() == pytest.approx([200, 100, 240, 180], abs=1e-3)
    assert maps.weights[0].argmax() == 0
    assert maps.weights[1].argmax() == 6
    assert torch.stack([maps.boxes[:, :2].amin(0), maps.boxes[:, 2:].amax(0)]).flatten().tolist() == pytest.approx(
        [0.3, 0.1, 0.7, 0.9], abs=1e-6
    )


def test_a_photo_that_lies_on_its_side_gives_boxes_of_the_upright_one(tmp_path: Path) -> None:
    upright = photo(200, 400, red=(0, 0, 50, 200))
    exif = Image.Exif()
    exif[274] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    for spec in (ImageSpec(16, 32), ImageSpec(16, 16, "crop", 16)):
        model = captioner(spec)
        turned, plain = (model.attend(source, "red") for source in (tmp_path / "turned.png", upright))
        assert isinstance(turned, AttentionMaps)
        assert isinstance(plain, AttentionMaps)
        assert torch.equal(turned.boxes, plain.boxes)
        assert torch.equal(turned.weights, plain.weights)
    assert turned.boxes[:, 1].min() == 0.25  # of 400 rows the middle 200 are seen


@pytest.mark.parametrize("spec", [ImageSpec(16, 32), ImageSpec(16, 16, "crop", 16)], ids=["squash", "crop"])
def test_every_kind_of_photo_gives_the_same_boxes(spec: ImageSpec, tmp_path: Path) -> None:
    pixels = photo(90, 60, red=(30, 0, 45, 30))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    data = (tmp_path / "photo.png").read_bytes()
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds = [pixels, tmp_path / "photo.png", data, io.BytesIO(data), Image.fromarray(pixels), tensor]
    maps = captioner(spec).attend(kinds, ["red"] * len(kinds))
    assert isinstance(maps, list)
    left = 15 / 90 if spec.resize == "crop" else 0.0  # the middle 60 of 90 columns
    assert maps[0].boxes[4].tolist() == pytest.approx([left, 0.5, left + (1 - 2 * left) / 4, 1.0])
    for other in maps[1:]:
        assert torch.equal(other.boxes, maps[0].boxes)
        torch.testing.assert_close(other.weights, maps[0].weights)


def test_masked_regions_are_left_out() -> None:
    image = photo(80, 40, red=(0, 0, 80, 40))
    maps = captioner(ImageSpec(16, 32), masked=(0, 5)).attend(image, "red")
    assert isinstance(maps, AttentionMaps)
    assert maps.weights.shape == (1, 6)
    assert maps.weights[0].tolist() == pytest.approx([0.75 / 8] * 6)
    assert [0.0, 0.0, 0.25, 0.5] not in maps.boxes.tolist()


@pytest.mark.parametrize("decoder", ["attention-lstm.v1", "adaptive-lstm.v1", "transformer.v1"])
def test_photos_together_give_what_each_gives_alone_and_what_the_forced_pass_says(decoder: str) -> None:
    model = tiny_captioner(decoder=decoder).eval()
    photos = list(torch.rand(5, 3, 40, 30, generator=torch.Generator().manual_seed(0)))
    captions = model.caption(photos, search="beam:2")
    assert isinstance(captions, list)
    texts: list[str | Caption] = [captions[0], "a dog", "", captions[3].text, "a zebra on the grass"]
    together = model.attend(photos, texts, batch_size=2)
    assert isinstance(together, list)
    assert together[0].words == captions[0].tokens
    assert together[4].words == ("a", "<unk>", "on", "the", "grass")
    assert together[2].weights.shape == (0, 16)
    for image, caption, maps in zip(photos, texts, together, strict=True):
        alone = model.attend(image, caption)
        assert isinstance(alone, AttentionMaps)
        assert alone.words == maps.words
        torch.testing.assert_close(alone.weights, maps.weights)
        assert torch.equal(alone.boxes, maps.boxes)
    ids = [model.vocabulary.id_of(token) for token in captions[0].tokens]
    with torch.no_grad():
        given = torch.tensor([[model.vocabulary.start_id, *ids[:-1]]])
        expected = model(model.encode(photos[0]), given, attention=True).attention
    assert expected is not None
    torch.testing.assert_close(together[0].weights, expected[0])
    sums = together[0].weights.sum(1)
    if decoder == "adaptive-lstm.v1":
        assert bool((together[0].sentinel > 0).all())
    else:
        torch.testing.assert_close(sums, torch.ones_like(sums))
    torch.testing.assert_close(together[0].sentinel, 1 - sums, atol=1e-6, rtol=0)


def test_features_give_boxes_of_what_the_encoder_saw() -> None:
    model = tiny_captioner(decoder="attention-lstm.v1").eval()
    photos = list(torch.rand(3, 3, 64, 32))
    features = model.encode(photos)
    from_features = model.attend(features, ["a dog"] * 3, batch_size=2)
    from_photos = model.attend(photos, ["a dog"] * 3)
    assert isinstance(from_features, list)
    assert isinstance(from_photos, list)
    for a, b in zip(from_features, from_photos, strict=True):
        assert torch.equal(a.boxes, b.boxes)
        torch.testing.assert_close(a.weights, b.weights)
    assert model.attend([], []) == []


def test_it_leaves_the_mode_and_the_random_state_alone() -> None:
    model = tiny_captioner(decoder="transformer.v1", dropout=0.5).train()
    state = torch.random.get_rng_state()
    first, second = (model.attend(torch.ones(3, 32, 32), "a dog") for _ in range(2))
    assert isinstance(first, AttentionMaps)
    assert isinstance(second, AttentionMaps)
    assert torch.equal(first.weights, second.weights)
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.weights.is_inference()
    assert not first.boxes.is_inference()


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    model, image = tiny_captioner(decoder="attention-lstm.v1"), torch.rand(3, 32, 32)
    with pytest.raises(ArgumentError, match="LSTMDecoder has no attention"):
        tiny_captioner().attend(image, "a dog")
    with pytest.raises(ArgumentError, match="one photo and one caption, or a list"):
        model.attend(image, ["a dog"])
    with pytest.raises(ArgumentError, match="one photo and one caption, or a list"):
        model.attend([image], "a dog")
    with pytest.raises(ArgumentError, match="2 photos and 1 captions"):
        model.attend([image, image], ["a dog"])
    with pytest.raises(ArgumentError, match="1 photos and 2 captions"):
        model.attend(model.encode(image), ["a dog", "a dog"])
    for several in (5, None, {"a dog"}):
        with pytest.raises(ArgumentError, match="have a list of captions, not"):
            model.attend([image], several)  # type: ignore[arg-type]
    for wrong in (5, None, ["a"]):
        with pytest.raises(ArgumentError, match="a caption is a text or a Caption"):
            model.attend([image], [wrong])  # type: ignore[list-item]
    foreign = replace(model.caption(image), tokens=("a", "zebra", "<end>"))  # type: ignore[type-var]
    with pytest.raises(ArgumentError, match=r"no 'zebra'; .*Pass its text"):
        model.attend(image, foreign)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        model.attend(tmp_path / "absent.jpg", "a dog")
    with pytest.raises(ArgumentError, match="batch_size"):
        model.attend(image, "a dog", batch_size=0)

    class Blind(TinyEncoder):
        def forward(self, images: Tensor) -> Features:
            return super().forward(images)._replace(boxes=None)

    model.encoder = Blind()
    with pytest.raises(ArgumentError, match="Blind doesn't say where its regions are"):
        attend(model, image, "a dog")


# --- heat maps --------------------------------------------------------------------------------------------------------


def slow_heat(maps: AttentionMaps, place: int, width: int, height: int) -> Tensor:
    """Each box's weight, spread over its part of the photo, by sampling 20 x 20 points a pixel."""
    fine = 20
    heat = torch.zeros(height * fine, width * fine, dtype=torch.float64)
    for weight, (x0, y0, x1, y1) in zip(maps.weights[place].tolist(), maps.boxes.tolist(), strict=True):
        rows = [r for r in range(height * fine) if y0 <= (r + 0.5) / (height * fine) < y1]
        columns = [c for c in range(width * fine) if x0 <= (c + 0.5) / (width * fine) < x1]
        for r in rows:
            heat[r, columns] += weight / (len(rows) * len(columns))
    return heat.view(height, fine, width, fine).sum((1, 3)).float()


def test_a_heat_map_spreads_each_weight_over_its_box() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.3, 0.8, 1.0], [0.1, 0.9, 0.15, 1.0]])
    maps = AttentionMaps(("a", "b"), torch.tensor([[0.5, 0.0, 0.0], [0.2, 0.5, 0.3]]), boxes)
    for place in range(2):
        heat = maps.heatmap(place, width=5, height=3)
        torch.testing.assert_close(heat, slow_heat(maps, place, 5, 3), atol=5e-3, rtol=0)
        assert heat.sum().item() == pytest.approx(maps.weights[place].sum().item(), rel=1e-5)
    empty = AttentionMaps(("a",), torch.tensor([[1.0]]), torch.tensor([[0.5, 0.5, 0.5, 0.9]]))
    assert not empty.heatmap(0, width=4, height=4).any()


def test_a_heat_map_of_no_word_or_no_size_is_refused() -> None:
    maps = AttentionMaps(("a",), torch.ones(1, 1), torch.tensor([[0.0, 0.0, 1.0, 1.0]]))
    for place in (-1, 1, True, 0.0):
        with pytest.raises(ArgumentError, match="place is one of the 1 words"):
            maps.heatmap(place, width=2, height=2)  # type: ignore[arg-type]
    for size in (0, 16385, math.nan, "2"):
        with pytest.raises(ArgumentError, match="width"):
            maps.heatmap(0, width=size, height=2)  # type: ignore[arg-type]
