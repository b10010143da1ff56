"""Small copies of photos are upright, small, and what the photo shows."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from showtell import ArgumentError, ImageError, NotFoundError
from showtell.pictures import Picture, picture_of, small_picture


def opened(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(picture.jpeg))
    image.load()
    assert image.size == (picture.width, picture.height)
    assert (image.format, image.mode) == ("JPEG", "RGB")
    return image


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 500), (320, 160)), ((500, 1000), (160, 320)), ((320, 320), (320, 320)), ((30, 20), (30, 20)),
     ((1, 1), (1, 1)), ((5000, 3), (320, 1)), ((321, 320), (320, 319))],
)  # fmt: skip
def test_the_longer_side_has_at_most_320_pixels_and_a_smaller_photo_stays(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert opened(small_picture(Image.new("RGB", size))).size == expected


def test_a_photo_that_was_taken_sideways_stands_upright(tmp_path: Path) -> None:
    stored = Image.new("RGB", (80, 40), "blue")
    stored.paste("red", (0, 0, 40, 40))  # its left half; orientation 6 turns it to the right: to the top
    exif = Image.Exif()
    exif[274] = 6
    stored.save(tmp_path / "sideways.jpg", exif=exif, quality=95)
    shown = opened(small_picture(tmp_path / "sideways.jpg"))
    assert shown.size == (40, 80)
    top, bottom = shown.getpixel((20, 10)), shown.getpixel((20, 70))
    assert top[0] > 200 > 60 > top[2]
    assert bottom[2] > 200 > 60 > bottom[0]
    assert 274 not in shown.getexif()


def test_transparent_parts_are_white_and_deep_grey_is_grey() -> None:
    clear = Image.new("RGBA", (9, 9), (255, 0, 0, 0))
    assert min(opened(small_picture(clear)).getpixel((4, 4))) >= 253
    deep = np.full((9, 9), 32768, np.uint16)
    assert opened(small_picture(deep)).getpixel((4, 4)) == pytest.approx((128, 128, 128), abs=2)


def test_pixels_become_the_same_picture_with_what_lies_outside_cut_off() -> None:
    pixels = torch.tensor([-1.0, 0.5, 2.0]).reshape(3, 1, 1).expand(3, 16, 24)
    picture = picture_of(pixels, quality=95)
    assert (picture.width, picture.height) == (24, 16)
    assert opened(picture).getpixel((12, 8)) == pytest.approx((0, 128, 255), abs=6)
    assert picture_of(pixels.to(torch.bfloat16), quality=95).jpeg == picture.jpeg


def test_the_address_holds_the_whole_file() -> None:
    picture = picture_of(torch.rand(3, 8, 8))
    head, _, body = picture.uri.partition(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(body, validate=True) == picture.jpeg


def test_what_is_no_photo_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    with pytest.raises(ImageError, match=r"text\.jpg"):
        small_picture(tmp_path / "text.jpg")
    with pytest.raises(NotFoundError, match=r"absent\.jpg"):
        small_picture(tmp_path / "absent.jpg")
    for shape in ((1, 8, 8), (8, 8), (3, 0, 8), (1, 3, 8, 8)):
        with pytest.raises(ArgumentError, match="3, height, width"):
            picture_of(torch.zeros(shape))


@pytest.mark.parametrize("options", [{"longest": 0}, {"longest": 5000}, {"quality": 0}, {"quality": 100}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ArgumentError, match=name):
        small_picture(Image.new("RGB", (4, 4)), **options)
