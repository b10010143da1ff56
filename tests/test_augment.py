from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from showtell.data import Augmentation, Augmented, Batches, Dataset, ImageInputs, Record
from showtell.errors import ArgumentError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features
from showtell.testing import tiny_captioner
from showtell.training import load_recipe, train

SPEC = ImageSpec(24, 32)
EVERYTHING = Augmentation(flip=0.5, crop_area=0.4, squash=1.5, brightness=0.3, contrast=0.4, saturation=0.5)


def records(count: int, caption: str = "a dog runs") -> list[Record]:
    draw = np.random.default_rng(3)
    return [
        Record(f"{i}", draw.integers(0, 256, (40, 50, 3), np.uint8), (caption, "a red ball"), "train", f"line {i}")
        for i in range(count)
    ]


def augmented(plan: Augmentation, some: list[Record], *, seed: int = 0, spec: ImageSpec = SPEC) -> Augmented:
    return Augmented(plan, some, spec, seed=seed)


def changed(plan: Augmentation, some: list[Record], epoch: int = 0, **options: Any) -> Tensor:
    work = augmented(plan, some, **options)
    return work(ImageInputs(some, work.spec)(range(len(some))), range(len(some)), epoch=epoch)


def test_nothing_is_changed_by_default() -> None:
    some = records(3)
    assert Augmentation().names() == ()
    assert augmented(Augmentation(), some).spec == SPEC
    assert torch.equal(changed(Augmentation(), some), ImageInputs(some, SPEC)([0, 1, 2]))
    assert load_recipe("default").augmentation() == Augmentation()


def test_a_photo_of_an_epoch_is_the_same_in_any_batch_order_and_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = records(5)
    work = augmented(EVERYTHING, some, seed=4)
    images = ImageInputs(some, work.spec)(range(5))
    before = images.clone()
    whole = work(images, range(5), epoch=7)
    assert torch.equal(images, before)
    again = augmented(EVERYTHING, some, seed=4)
    order = [3, 0, 4, 1, 2]
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(again(images[order], order, epoch=7), whole[order])
        one_by_one = [again(images[i : i + 1], [i], epoch=7) for i in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(one_by_one), whole)
    assert whole.min() >= 0
    assert whole.max() <= 1


def test_another_epoch_seed_or_photo_looks_another_way() -> None:
    some = [records(1)[0]] * 3
    first = changed(EVERYTHING, some)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, changed(EVERYTHING, some, epoch=1))
    assert not torch.equal(first, changed(EVERYTHING, some, seed=1))
    assert torch.equal(first, changed(EVERYTHING, some))


def test_about_the_asked_for_share_is_mirrored_and_nothing_else_changes() -> None:
    some = records(4) * 50
    plain = ImageInputs(some, SPEC)(range(200))
    found = changed(Augmentation(flip=0.3), some)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(found, plain, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 60 - 26 <= sum(mirrored) <= 60 + 26  # four standard deviations of 200 draws at 0.3


@pytest.mark.parametrize(
    ("caption", "mirrored"),
    [
        ("a dog on the left", False),
        ("RIGHT of the house, a tree", False),
        ("his left-hand glove", False),
        ("the rightmost window", False),
        ("a bright leftover", True),
        ("copyright", True),
        ("", True),
    ],
)
def test_a_photo_whose_captions_name_a_side_is_never_mirrored(caption: str, mirrored: bool) -> None:
    some = records(2, caption)
    plain = ImageInputs(some, SPEC)([0, 1])
    for epoch in range(3):
        assert torch.equal(changed(Augmentation(flip=1.0), some, epoch), plain.flip(3) if mirrored else plain)


def test_the_guarded_words_may_be_those_of_another_language() -> None:
    german = Augmentation(flip=1.0, flip_guard=("links", "RECHTS"))
    assert not german.may_flip(["ein Hund rechts im Bild"])
    assert german.may_flip(["what is left of it", "Rechtschreibung"])
    assert not Augmentation(flip=1.0, flip_guard=("左",)).may_flip(["一只狗在左边"])
    # Words with marks of their own: Hindi and Thai for left, a French one with its accent set apart in the caption.
    hindi = Augmentation(flip=1.0, flip_guard=("बाएं",))
    assert not hindi.may_flip(["कुत्ता बाएं है।"])
    assert hindi.may_flip(["कुत्ता है।"])
    assert not Augmentation(flip=1.0, flip_guard=("ซ้าย",)).may_flip(["สุนัขอยู่ทางซ้ายมือ"])
    assert not Augmentation(flip=1.0, flip_guard=("côté",)).may_flip(["sur le co\u0302te\u0301."])
    assert Augmentation(flip=1.0, flip_guard=()).may_flip(["left"])


def test_cut_outs_have_the_asked_for_areas_and_shapes_and_lie_anywhere() -> None:
    # A photo that says where each pixel was: red grows to the right, green downwards.
    across, down = torch.meshgrid(torch.linspace(0, 1, 74), torch.linspace(0, 1, 74), indexing="xy")
    place = torch.stack([across, down, torch.zeros(74, 74)])
    some = records(300)
    plan = Augmentation(crop_area=0.25, squash=1.5)
    work = augmented(plan, some, spec=ImageSpec(30, 30))
    assert work.spec == ImageSpec(74, 74)  # 30 pixels are in the shortest side of any cut-out, sqrt(0.25 / 1.5)
    found = work(place.expand(300, -1, -1, -1), range(300), epoch=0)
    spans = found.amax((2, 3))[:, :2] - found.amin((2, 3))[:, :2]
    widths, heights = (spans * 73 + 1).T / 74
    areas, ratios = widths * heights, widths / heights
    assert areas.min() > 0.22
    assert 0.55 < areas.mean() < 0.66  # even in 0.25..1, a little less where stretching meets the edge
    assert ratios.min() > 1 / 1.56
    assert ratios.max() < 1.56
    assert min(ratios.min(), 1 / ratios.max()) < 0.72
    middles = found.mean((2, 3))[:, :2]
    assert middles.amin() < 0.3
    assert middles.amax() > 0.7


def test_cut_outs_are_as_torchvision_resizes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ImageInputs(records(1), ImageSpec(48, 64, interpolation="bicubic"))([0])
    work = augmented(Augmentation(crop_area=0.25), records(1), spec=ImageSpec(24, 32, interpolation="bicubic"))
    draws = np.random.default_rng([0, 2, 0, 0]).random(8)
    side = math.sqrt(1 - draws[0] * 0.75)
    height, width = round(48 * side), round(64 * side)
    top, left = math.floor(draws[3] * (48 - height + 1)), math.floor(draws[2] * (64 - width + 1))
    expected = TF.resized_crop(
        image, top, left, height, width, [24, 32], TF.InterpolationMode.BICUBIC, antialias=True
    ).clamp(0, 1)
    torch.testing.assert_close(work(image, [0], epoch=0), expected)


def test_colours_change_as_torchvision_changes_them() -> None:
    some = records(2)
    plain = ImageInputs(some, SPEC)([0, 1])
    for number in range(2):
        draws = np.random.default_rng([9, 2, 5, number]).random(8)[5:]
        factors = 1 + np.array([0.3, 0.4, 0.9]) * (2 * draws - 1)
        expected = TF.adjust_brightness(plain[number], factors[0])
        expected = TF.adjust_contrast(expected, factors[1])
        expected = TF.adjust_saturation(expected, factors[2])
        plan = Augmentation(brightness=0.3, contrast=0.4, saturation=0.9)
        found = changed(plan, some, epoch=5, seed=9)[number]
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # torchvision rounds its grey weights
        assert (found - plain[number]).abs().mean() > 0.005


def test_turning_colour_on_leaves_the_cut_outs_and_the_mirroring_alone() -> None:
    some = records(6)
    shapes = Augmentation(flip=0.5, crop_area=0.5)
    lit = Augmentation(flip=0.5, crop_area=0.5, brightness=0.2)
    for a, b in zip(changed(shapes, some), changed(lit, some), strict=True):
        brighter = b[(a > 0.1) & (b < 0.999)] / a[(a > 0.1) & (b < 0.999)]
        assert brighter.std() < 1e-4
        assert 0.8 <= brighter.mean() <= 1.2


def test_a_crop_spec_keeps_its_share_of_the_photo() -> None:
    work = augmented(Augmentation(crop_area=0.25), records(1), spec=ImageSpec(20, 20, "crop", 30))
    assert work.spec == ImageSpec(40, 40, "crop", 60)
    huge = augmented(Augmentation(crop_area=0.05), records(1), spec=ImageSpec(3000, 4096))
    assert huge.spec == ImageSpec(3000, 4096)
    assert augmented(Augmentation(crop_area=0.05), records(1), spec=ImageSpec(90, 2000, "crop")).spec.short_side == 4095


def test_batches_give_the_photos_of_their_epoch() -> None:
    some = records(3)
    words = tiny_captioner().vocabulary
    work = augmented(EVERYTHING, some, seed=2)
    options: Any = {"photos": 2, "captions": 1, "seed": 2, "trunk": False, "augment": work}
    batches = Batches(some, words, ImageInputs(some, work.spec), **options)
    images = ImageInputs(some, work.spec)(range(3))
    for epoch in (0, 3):
        expected = work(images, range(3), epoch=epoch)
        got = torch.cat([batches.batch(epoch * 2 + i).inputs for i in range(2)])  # type: ignore[misc]
        assert sorted(map(float, got.sum((1, 2, 3)))) == sorted(map(float, expected.sum((1, 2, 3))))
    first, again = batches.batch(5), Batches(some, words, ImageInputs(some, work.spec), **options).batch(5)
    assert torch.equal(first.inputs, again.inputs)  # type: ignore[arg-type]


def test_features_refuse_augmentation_by_name(tmp_path: Path) -> None:
    some = records(3)
    words = tiny_captioner().vocabulary
    work = augmented(Augmentation(flip=0.5, contrast=0.25), some)
    for trunk in (True, False):
        with pytest.raises(ArgumentError, match=r"flip = 0.5, contrast = 0.25.*flip = 0, contrast = 0"):
            Batches(
                some, words, lambda positions: Features(torch.zeros(len(positions), 4)), trunk=trunk, augment=work
            ).batch(0)
    data = Dataset((*some[:2], Record("v", some[2].image, ("a dog",), "val", "line 9")))
    with pytest.raises(ArgumentError, match=r"squash = 1\.5.*cache.*train_encoder"):
        train(data, tmp_path / "run", init=tiny_captioner(), overrides={"squash": 1.5}, say=lambda text: None)
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"flip": 1.5}, {"flip": True}, {"flip": math.nan}, {"crop_area": 0.0}, {"crop_area": 2}, {"squash": 0.5},
        {"brightness": -0.1}, {"contrast": "1"}, {"saturation": None}, {"flip_guard": "left"},
        {"flip_guard": ["left hand"]}, {"flip_guard": [""]}, {"flip_guard": [3]},
    ],
)  # fmt: skip
def test_clumsy_settings_are_refused_by_name(settings: dict[str, Any]) -> None:
    for make in (lambda: Augmentation(**settings), lambda: load_recipe("default").changed(settings)):
        with pytest.raises(ArgumentError, match=next(iter(settings))):
            make()


def test_a_recipe_file_has_a_section_for_it(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('[augmentation]\nflip = 1\nflip_guard = ["links"]\ncrop_area = 0.5\n')
    recipe = load_recipe(tmp_path / "mine.toml")
    assert recipe.augmentation() == Augmentation(flip=1.0, flip_guard=("links",), crop_area=0.5)
    assert recipe.values()["flip_guard"] == ["links"]
    assert load_recipe("default").changed(recipe.values()) == recipe
