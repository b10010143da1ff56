"""Photos of every kind come out upright, RGB, in 0..1 and of the size asked for; damaged ones are refused by name."""

from __future__ import annotations

import io
import pathlib
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from showtell.errors import ImageError, NotFoundError
from showtell.image_spec import ImageSpec
from showtell.images import IMAGE_SUFFIXES, PIXEL_LIMIT, describe, load_image, load_images, photo_size

SPEC = ImageSpec(12, 16)


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """A smooth picture whose four corners differ."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def as_bytes(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def expected(image: Image.Image, spec: ImageSpec = SPEC) -> torch.Tensor:
    """The plain way: resize the whole picture with Pillow, divide by 255."""
    small = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def png_with(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


# --- every kind of source says the same -----------------------------------------------------------------------------


def test_all_kinds_of_source_give_the_same_image(tmp_path: Path) -> None:
    image = picture()
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    path = tmp_path / "photo.png"
    path.write_bytes(as_bytes(image))
    want = expected(image)
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), io.BytesIO(path.read_bytes()),
                   image, array, np.asfortranarray(array), tensor):  # fmt: skip
        got = load_image(source, SPEC)  # type: ignore[arg-type]
        assert got.shape == (3, 12, 16)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        torch.testing.assert_close(got, want)
    with path.open("rb") as file:
        torch.testing.assert_close(load_image(file, SPEC), want)


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_floats_agree_with_the_same_photo_in_bytes(resize: Any, interpolation: Any) -> None:
    array = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    spec = ImageSpec(17, 20, resize=resize, interpolation=interpolation)
    want = load_image(array, spec)
    for dtype in (np.float32, np.float64):
        floats = array.astype(dtype) / 255
        assert (load_image(floats, spec) - want).abs().max() <= 1.5 / 255
        tensor = torch.from_numpy(floats).permute(2, 0, 1)
        torch.testing.assert_close(load_image(tensor, spec), load_image(floats, spec))
    sixteen = array.astype(np.uint16) * 257
    assert (load_image(sixteen, spec) - want).abs().max() <= 1.5 / 255


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_and_double_tensors_are_taken(dtype: torch.dtype) -> None:
    tensor = torch.rand(3, 20, 20, generator=torch.Generator().manual_seed(0))
    spec = ImageSpec(20, 20)
    torch.testing.assert_close(load_image(tensor.to(dtype), spec), tensor.to(dtype).float())


def test_a_tensor_that_needs_gradients_is_taken() -> None:
    assert not load_image(torch.full((3, 4, 4), 0.5, requires_grad=True), SPEC).requires_grad


def test_grey_of_every_layout_fills_three_equal_channels() -> None:
    grey = np.arange(0, 200, dtype=np.uint8).reshape(10, 20)
    spec = ImageSpec(10, 20)
    want = torch.from_numpy(grey).float() / 255
    for source in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None], Image.fromarray(grey),
                   as_bytes(Image.fromarray(grey)), grey.astype(np.float32) / 255):  # fmt: skip
        torch.testing.assert_close(load_image(source, spec), want.expand(3, -1, -1))  # type: ignore[arg-type]


def test_no_source_is_changed_or_closed() -> None:
    image, array = picture(), np.random.default_rng(0).random((9, 9, 3))
    tensor, before = torch.rand(3, 9, 9), array.copy()
    kept = tensor.clone()
    file = io.BytesIO(b"junk" + as_bytes(image, "JPEG"))
    file.seek(4)
    for source in (image, array, tensor, file):
        load_image(source, SPEC)  # type: ignore[arg-type]
        load_image(source, SPEC)  # type: ignore[arg-type]
        photo_size(source)  # type: ignore[arg-type]
    assert image.size == (40, 24)
    assert (array == before).all()
    assert torch.equal(tensor, kept)
    assert file.tell() == 4


def test_a_stream_that_cannot_seek_is_read() -> None:
    class Stream(io.RawIOBase):
        def __init__(self, data: bytes) -> None:
            self.data = io.BytesIO(data)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            return self.data.readinto(buffer)

    torch.testing.assert_close(load_image(Stream(as_bytes(picture())), SPEC), expected(picture()))  # type: ignore[arg-type]


def test_many_photos_keep_their_order(tmp_path: Path) -> None:
    sources: list[Any] = []
    for i in range(20):
        one = np.full((6, 6, 3), i * 10, np.uint8)
        path = tmp_path / f"{i}.png"
        path.write_bytes(as_bytes(Image.fromarray(one)))
        data = path.read_bytes()
        sources.append([path, one, data, Image.open(io.BytesIO(data)), io.BytesIO(data)][i % 5])
    got = load_images(sources, SPEC)
    assert got.shape == (20, 3, 12, 16)
    torch.testing.assert_close(got.mean((1, 2, 3)), torch.arange(20) * 10 / 255)
    assert load_images([], SPEC).shape == (0, 3, 12, 16)


def test_one_thing_twice_in_the_list_is_read_twice() -> None:
    file, image = io.BytesIO(as_bytes(picture())), Image.open(io.BytesIO(as_bytes(picture())))
    got = load_images([file, image] * 8, SPEC)
    torch.testing.assert_close(got, expected(picture()).expand(16, -1, -1, -1))


def test_the_bad_photo_of_a_list_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    good = as_bytes(picture())
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        load_images([good, good, bad, good], SPEC)
    with pytest.raises(ImageError, match="image 2"):
        load_images([good, good, b"not a photo", good], SPEC)
    with pytest.raises(NotFoundError, match="gone"):
        load_images([good, tmp_path / "gone.jpg"], SPEC)
    with pytest.raises(ImageError, match="load_image"):
        load_images("photo.jpg", SPEC)  # type: ignore[arg-type]


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    load_images([as_bytes(picture())] * 4, SPEC)
    assert threading.active_count() == before


# --- what files hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_each_format_is_read_whatever_the_file_is_called(tmp_path: Path, kind: str) -> None:
    image = picture()
    path = tmp_path / "photo.txt"
    image.save(path, kind)
    assert photo_size(path) == (40, 24)
    tolerance = 0.25 if kind == "GIF" else 0.05
    assert (load_image(path, SPEC) - expected(image)).abs().max() < tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    upright = picture()
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)  # fmt: skip
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = as_bytes(stored, kind, exif=exif.tobytes())
    assert photo_size(data) == (40, 24)
    assert (load_image(data, SPEC) - expected(upright)).abs().max() < 0.05
    opened = Image.open(io.BytesIO(data))
    assert photo_size(opened) == (40, 24)
    assert (load_image(opened, SPEC) - expected(upright)).abs().max() < 0.05
    assert (load_image(opened, SPEC) - expected(upright)).abs().max() < 0.05


def test_a_large_photo_lying_on_its_side_is_decoded_small_and_turned() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = picture(800, 480)
    data = as_bytes(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif.tobytes(), quality=95)
    assert (load_image(data, SPEC) - expected(upright)).abs().max() < 0.03


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"II*\0junk",
     b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",
     b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x1a\0\x05\0\0\0\x01\0\xff\xff\xff"],
)  # fmt: skip
def test_a_broken_exif_block_changes_nothing_and_warns_of_nothing(block: bytes) -> None:
    plain = as_bytes(picture(), "JPEG")
    # SOI, then the EXIF segment in place of JFIF's, so that the reader looks for a resolution there.
    rest = plain[2 + 2 + struct.unpack(">H", plain[4:6])[0] :]
    data = b"\xff\xd8\xff\xe1" + struct.pack(">H", len(block) + 2) + block + rest
    torch.testing.assert_close(load_image(data, SPEC), load_image(plain, SPEC))
    assert photo_size(data) == (40, 24)


def test_transparent_parts_become_white() -> None:
    red = np.zeros((8, 8, 4), np.uint8)
    red[..., 0] = 255
    red[:, :4, 3] = 255
    red[:, 4:, 3] = 0
    spec = ImageSpec(8, 8)
    want = torch.ones(3, 8, 8)
    want[1:, :, :4] = 0
    rgba = Image.fromarray(red)
    palette = rgba.convert("RGB").quantize(4)
    palette_bytes = Image.new("P", (8, 8))
    palette_bytes.putpalette([255, 0, 0, 0, 255, 0])
    palette_bytes.paste(1, (4, 0, 8, 8))
    sources: list[Any] = [
        rgba, as_bytes(rgba), as_bytes(rgba, "WEBP", lossless=True), red, torch.from_numpy(red).permute(2, 0, 1),
        red.astype(np.float32) / 255, as_bytes(rgba, "GIF"), as_bytes(rgba, "TIFF"),
        as_bytes(palette_bytes, transparency=b"\xff\x00"), as_bytes(palette_bytes, transparency=1),
    ]  # fmt: skip
    for source in sources:
        torch.testing.assert_close(load_image(source, spec), want)
    assert palette.mode == "P"


def test_half_transparent_grey_is_mixed_with_white() -> None:
    image = Image.new("LA", (4, 4), (0, 51))
    want = torch.full((3, 4, 4), 0.8)
    for source in (image, as_bytes(image)):
        torch.testing.assert_close(load_image(source, ImageSpec(4, 4)), want)
    floats = np.zeros((4, 4, 4), np.float32)
    floats[..., 3] = 0.2
    torch.testing.assert_close(load_image(floats, ImageSpec(4, 4)), want)


def test_no_colour_bleeds_out_of_transparent_parts() -> None:
    green = np.zeros((8, 8, 4), np.uint8)
    green[..., 1] = 255  # everywhere, but visible nowhere
    assert load_image(green, ImageSpec(3, 3)).min() == 1


def test_a_transparent_colour_of_an_rgb_or_grey_png_becomes_white() -> None:
    rgb, grey = Image.new("RGB", (4, 4), (9, 8, 7)), Image.new("L", (4, 4), 9)
    assert load_image(as_bytes(rgb, transparency=(9, 8, 7)), ImageSpec(2, 2)).min() == 1
    assert load_image(as_bytes(grey, transparency=9), ImageSpec(2, 2)).min() == 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind: str) -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    by_hand = b"P5 8 8 65535\n" + values.astype(">u2").tobytes()
    data = by_hand if kind == "PPM" else as_bytes(Image.fromarray(values), kind)
    want = torch.from_numpy(values.astype(np.float32) / 65535).expand(3, -1, -1)
    torch.testing.assert_close(load_image(data, ImageSpec(8, 8)), want, atol=1e-6, rtol=0)
    assert load_image(Image.fromarray(values), ImageSpec(8, 8)).max() == 1


def test_cmyk_bilevel_and_other_modes_come_out_as_rgb() -> None:
    rgba = picture().convert("RGBA")
    for mode in ("CMYK", "YCbCr", "HSV", "1", "P", "L", "LA", "PA", "RGBA", "RGBX", "RGBa"):
        image = rgba.convert("P").convert("PA") if mode == "PA" else rgba.convert(mode)
        want = expected(image.convert("RGBA").convert("RGB") if mode in ("RGBa", "PA") else image.convert("RGB"))
        assert (load_image(image, SPEC) - want).abs().max() < 0.02, mode
    cmyk = as_bytes(picture().convert("CMYK"), "JPEG", quality=95)
    assert (load_image(cmyk, SPEC) - expected(picture().convert("CMYK").convert("RGB"))).abs().max() < 0.05


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "JPEG"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    if kind == "JPEG":
        data = b"".join(as_bytes(frame, kind) for frame in frames)
    else:
        options = {"lossless": True} if kind == "WEBP" else {}
        data = as_bytes(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    got = load_image(data, ImageSpec(4, 4))
    torch.testing.assert_close(got.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.02, rtol=0)


# --- sizes ----------------------------------------------------------------------------------------------------------


def test_a_crop_equals_resizing_all_and_cutting_the_centre() -> None:
    image = picture(61, 37)
    spec = ImageSpec(10, 14, resize="crop", short_side=18)
    whole = image.resize(spec.resized(61, 37), Image.Resampling.BILINEAR)
    left, top = (whole.width - 14) // 2, (whole.height - 10) // 2
    want = np.asarray(whole.crop((left, top, left + 14, top + 10)), np.float32) / 255
    assert (load_image(image, spec) - torch.from_numpy(want).permute(2, 0, 1)).abs().max() <= 1.5 / 255


@pytest.mark.parametrize("size", [(30000, 1), (1, 30000), (1, 1), (3, 2)])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_extreme_shapes_are_fine(size: tuple[int, int], resize: Any) -> None:
    for data in (as_bytes(Image.new("RGB", size, "red")), as_bytes(Image.new("RGB", size, "red"), "JPEG")):
        got = load_image(data, ImageSpec(256, 256, resize=resize))
        torch.testing.assert_close(got.mean((1, 2)), torch.tensor([1.0, 0, 0]), atol=0.01, rtol=0)
        assert photo_size(data) == size


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((200, 200, 3), np.uint8)
    stripes[:, ::2] = 255
    for source in (stripes, stripes / 255.0, torch.from_numpy(stripes).permute(2, 0, 1)):
        assert (load_image(source, ImageSpec(20, 20)) - 0.5).abs().max() < 0.02


def test_a_photo_of_the_right_size_is_not_touched() -> None:
    array = np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        got = load_image(array, ImageSpec(12, 16, interpolation=interpolation))  # type: ignore[arg-type]
        assert torch.equal(got, torch.from_numpy(array).permute(2, 0, 1) / 255)


def test_bicubic_never_leaves_the_range() -> None:
    sharp = np.zeros((30, 30, 3), np.float32)
    sharp[10:20, 10:20] = 1
    got = load_image(sharp, ImageSpec(47, 47, interpolation="bicubic"))
    assert got.min() >= 0
    assert got.max() <= 1


def test_a_large_jpeg_is_decoded_small_and_no_smaller_than_twice_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    load = ImageFile.ImageFile.load

    def watched(self: ImageFile.ImageFile) -> Any:
        sizes.append(self.size)
        return load(self)

    photo = picture(1600, 1200)
    data = as_bytes(photo, "JPEG", quality=95)
    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)
    assert (load_image(data, ImageSpec(100, 100)) - expected(photo, ImageSpec(100, 100))).abs().max() < 0.02
    assert sizes[0] == (400, 300)
    sizes.clear()
    load_image(data, ImageSpec(224, 224))
    assert sizes[0] == (800, 600)
    sizes.clear()
    load_image(data, ImageSpec(700, 700))
    assert sizes[0] == (1600, 1200)


def test_decoding_small_hardly_changes_real_photographs(shared: Path) -> None:
    spec = ImageSpec(96, 96)
    for path in sorted((shared / "flickr8k" / "originals").glob("*.jpg"))[:8]:
        with Image.open(path) as image:
            want = expected(image.convert("RGB"), spec)
        assert (load_image(path, spec) - want).abs().mean() < 0.006


# --- refusals -------------------------------------------------------------------------------------------------------


def test_missing_empty_and_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"nowhere\.jpg"):
        load_image(tmp_path / "nowhere.jpg", SPEC)
    with pytest.raises(FileNotFoundError):
        photo_size(tmp_path / "nowhere.jpg")
    with pytest.raises(NotFoundError, match="download"):
        load_image("https://example.org/dog.jpg", SPEC)
    with pytest.raises(ImageError, match="folder"):
        load_image(tmp_path, SPEC)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ImageError, match="file: the file is empty"):
        load_image(tmp_path / "file", SPEC)
    with pytest.raises(ImageError, match="<bytes>: the file is empty"):
        load_image(b"", SPEC)
    with pytest.raises(ImageError):
        load_image("a\0b.jpg", SPEC)
    with pytest.raises((ImageError, NotFoundError)):
        load_image("", SPEC)
    with pytest.raises(ImageError, match="not a photo"):
        load_image(b"GIF88a or so", SPEC)
    with pytest.raises(ImageError, match="not a photo"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", SPEC)


def test_a_text_file_object_is_refused_with_the_mode_to_use(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("hello")
    with (tmp_path / "t").open() as file, pytest.raises(ImageError, match='mode "rb"'):
        load_image(file, SPEC)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="can't be read"):
        load_image(file, SPEC)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = as_bytes(noise, kind)
    path = tmp_path / "cut"
    for share in (0.99, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        if kind == "GIF" and share > 0.9:
            continue  # only the trailer is missing
        with pytest.raises(ImageError, match="cut"):
            load_image(path, SPEC)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    limit = Image.MAX_IMAGE_PIXELS
    bomb = png_with(60000, 60000)
    for source in (bomb, io.BytesIO(bomb)):
        for act in (lambda s: load_image(s, SPEC), photo_size):
            with pytest.raises(ImageError, match="60000 x 60000"):
                act(source)
    assert limit == Image.MAX_IMAGE_PIXELS
    assert photo_size(png_with(10000, PIXEL_LIMIT // 10000)) == (10000, 20000)  # Pillow itself would warn


def test_loading_changes_no_warning_filter_and_gives_no_warning() -> None:
    filters = list(warnings.filters)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x1a\0\x05\0\0\xff\xff\0\xff\xff\xff\0\0\0\0"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_images([as_bytes(picture(), "JPEG", exif=exif), png_with(10, 10, bytes(110))] * 8, SPEC)
    assert caught == []
    assert filters == list(warnings.filters)


@given(st.binary(max_size=80), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM"]), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_are_an_image_error_or_an_image(junk: bytes, kind: str, data: st.DataObject) -> None:
    good = as_bytes(picture(12, 9), kind)
    at = data.draw(st.integers(0, len(good)))
    bad = good[:at] + junk + good[at + len(junk) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = load_image(bad, SPEC)
        except ImageError:
            return
    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "NoneType"), (7, "int"), (["a.jpg"], "list"), ({}, "dict"), (object(), "object"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"), (torch.zeros(3, 4, 0), "no pixels"),
        (np.zeros((3, 20, 20)), "transpose"), (torch.zeros(20, 20, 3), "permute"),
        (np.zeros((2, 8, 8, 3), np.uint8), "load_images"), (torch.zeros(2, 3, 8, 8), "load_images"),
        (np.zeros((8, 8, 2), np.uint8), "shape"), (np.zeros(8), "shape"), (torch.zeros(()), "shape"),
        (np.zeros((8, 8), np.int64), "int64"), (np.zeros((8, 8), bool), "bool"), (torch.zeros(3, 8, 8).long(), "int64"),
        (np.zeros((8, 8), "datetime64[s]"), "datetime64"), (np.full((8, 8), "x"), "<U1"),
        (np.full((8, 8), object()), "object"), (np.zeros((8, 8), complex), "complex"),
        (np.full((8, 8), np.nan), "NaN"), (torch.full((3, 8, 8), float("inf")), "NaN or infinite"),
        (np.full((8, 8), 200.0), "divide by 255"), (torch.full((3, 8, 8), -1.5), "normalisation"),
        (np.full((8, 8), 1.5), "expected 0..1"), (torch.zeros(3, 8, 8, device="meta"), "meta"),
        (torch.zeros(3, 8, 8).to_sparse(), "sparse"), (torch.zeros(3, 8, 8, dtype=torch.complex64), "complex"),
        (Image.new("RGB", (0, 5)), "shows nothing"), (Image.new("I", (5, 5), 70000), "70000"),
        (Image.fromarray(np.full((5, 5), 9.0, np.float32)), "expected 0..1"),
    ],
)  # fmt: skip
def test_what_is_no_photo_is_refused_with_what_would_be(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source, SPEC)


def test_float_noise_just_outside_the_range_is_cut_off() -> None:
    got = load_image(np.array([[-1e-6, 1 + 1e-6]]), ImageSpec(1, 2))
    assert got[0].tolist() == [[0.0, 1.0]]


def test_a_file_that_cannot_be_opened_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", refuse)
    with pytest.raises(ImageError, match=r"secret\.jpg.*Permission denied"):
        load_image("secret.jpg", SPEC)


def test_things_are_described_by_their_name_their_place_or_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(as_bytes(picture()))
    assert describe(path) == describe(str(path), 5) == str(path)
    with path.open("rb") as file:
        assert describe(file, 2) == str(path)
    with Image.open(path) as image:
        assert describe(image, 2) == str(path)
    assert describe(b"", 0) == describe(torch.zeros(1), 0) == "image 0"
    assert describe(torch.zeros(1)) == "<tensor>"
    assert describe(np.zeros(1)) == "<array>"
    assert describe(picture()) == "<PIL image>"
    assert describe(io.BytesIO()) == "<BytesIO>"
    assert describe(None) == "<NoneType>"


def test_the_suffixes_are_lower_case_and_dotted() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"} <= IMAGE_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
