"""Photos of any kind to RGB float tensors in 0..1, sized as an encoder asks; the only importer of PIL."""

from __future__ import annotations

import importlib
import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .errors import ImageError, NotFoundError
from .image_spec import ImageSpec

__all__ = ["IMAGE_SUFFIXES", "PIXEL_LIMIT", "ImageSource", "describe", "load_image", "load_images", "photo_size"]

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | BinaryIO | Image.Image | np.ndarray[Any, np.dtype[Any]] | Tensor
)
"""A path, the bytes of a file, an open binary file, a PIL image, an array (H, W[, C]) or a tensor ([C,] H, W)."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
)
"""The file name endings, in lower case, by which a folder's photos are known."""

PIXEL_LIMIT = 200_000_000
"""A file with more pixels than this is refused before it is decoded."""

_ACCEPTED = "a path, bytes, a binary file, a PIL image, a numpy array (H, W, 3) or a tensor (3, H, W)"
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_UPRIGHT = {  # EXIF orientation -> what turns the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N")


def load_image(source: ImageSource, spec: ImageSpec) -> Tensor:
    """Read one photo: upright, RGB, resized as `spec` says.

    Example:
        >>> import numpy as np
        >>> grey = np.full((20, 30), 255, dtype=np.uint8)
        >>> image = load_image(grey, ImageSpec(8, 8))
        >>> tuple(image.shape), image.min().item()
        ((3, 8, 8), 1.0)

    Args:
        source: a path; the bytes of a file; an open binary file (its position is put back where it can be); a PIL
            image (left as it is; EXIF orientation still in it is applied); a numpy array (H, W), (H, W, 1), (H, W, 3)
            or (H, W, 4) of uint8, of uint16 or of floats in 0..1; a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W)
            of uint8 or of floats in 0..1. Files: JPEG, PNG, WebP, GIF, TIFF, BMP, PPM and, with a Pillow that has it,
            AVIF; of several frames the first is taken. Transparent parts become white.
        spec: the size and how to reach it; all but "nearest" are antialiased.

    Returns (3, height, width) float32 in 0..1 on the CPU.

    Raises:
        NotFoundError: no such file.
        ImageError: no photo, damaged, cut short, more than PIXEL_LIMIT pixels, or values out of range; it names
            the file.
    """
    out = torch.empty(3, spec.height, spec.width)
    _load_into(out, source, spec, describe(source))
    return out


def load_images(sources: Sequence[ImageSource], spec: ImageSpec) -> Tensor:
    """Read many photos, files in a pool of threads.

    Example:
        >>> import numpy as np
        >>> tuple(load_images([np.zeros((5, 5, 3), np.uint8)] * 2, ImageSpec(4, 4)).shape)
        (2, 3, 4, 4)

    Returns (N, 3, height, width) float32 in 0..1, in the order given. The first bad photo raises what `load_image`
    would; one without a name is called by its position, "image 0" being the first.
    """
    if isinstance(sources, str | bytes | os.PathLike | Image.Image):
        raise ImageError(f"load_images takes a list of photos, not one ({describe(sources)}); use load_image")
    out = torch.empty(len(sources), 3, spec.height, spec.width)
    names = [describe(source, i) for i, source in enumerate(sources)]
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="showtell-images")
    try:
        jobs: list[Callable[[], None]] = []
        for one, source, name in zip(out, sources, names, strict=True):
            # What the caller holds may stand in the list twice and isn't safe to read from two threads.
            if len(sources) > 1 and isinstance(source, str | os.PathLike | bytes):
                jobs.append(pool.submit(_load_into, one, source, spec, name).result)
            else:
                jobs.append(partial(_load_into, one, source, spec, name))
        for job in jobs:
            job()
    finally:
        pool.shutdown(cancel_futures=True)
    return out


def photo_size(source: ImageSource) -> tuple[int, int]:
    """The (width, height) of a photo in pixels, upright, without decoding it.

    Example:
        >>> import numpy as np
        >>> photo_size(np.zeros((20, 30, 3), np.uint8))
        (30, 20)

    Raises NotFoundError and ImageError as `load_image` does, but for damage that only decoding would find.
    """
    name = describe(source)
    if isinstance(source, np.ndarray | Tensor):
        height, width = _as_hwc(source, name).shape[:2]
        return width, height
    with _opened(source, name) as image:
        return _upright_size(image)


def describe(source: object, position: int | None = None) -> str:
    """What an error or a result row calls a photo.

    Example:
        >>> describe("dog.jpg", 3), describe(b"...", 3), describe(b"...")
        ('dog.jpg', 'image 3', '<bytes>')

    A path or a file's own name, else "image 3" where a position is given, else what kind of thing it is.
    """
    if isinstance(source, str | os.PathLike):
        return os.fsdecode(source)
    for attribute in ("filename", "name"):
        name = getattr(source, attribute, None)
        if isinstance(name, str) and name:
            return name
    if position is not None:
        return f"image {position}"
    kinds = {"bytes": bytes | bytearray | memoryview, "PIL image": Image.Image, "array": np.ndarray, "tensor": Tensor}
    called = next((called for called, kind in kinds.items() if isinstance(source, kind)), type(source).__name__)
    return f"<{called}>"


def _load_into(out: Tensor, source: ImageSource, spec: ImageSpec, name: str) -> None:
    """Fill `out` (3, height, width)."""
    if isinstance(source, np.ndarray | Tensor):
        planes = _array_planes(_as_hwc(source, name), name)
    else:
        with _opened(source, name) as image:
            size = _upright_size(image)
            if not isinstance(source, Image.Image):
                _draft(image, spec, size)
            planes = _image_planes(image, name)
    # numpy: on arrays this small, starting torch's threads takes longer than the work.
    pixels, values = out.numpy(), [np.asarray(_resize(plane, spec)) for plane in planes]
    if values[0].ndim == 3:
        np.divide(values[0].transpose(2, 0, 1), np.float32(255), out=pixels)
    else:  # one grey plane fills all three channels
        np.clip(np.stack(values), 0, 1, out=pixels)


def _resize(plane: Image.Image, spec: ImageSpec) -> Image.Image:
    # The box picks the crop out of the photo: what lies outside it is never computed, however long the photo.
    box = spec.box_on_photo((0.0, 0.0, 1.0, 1.0), width=plane.width, height=plane.height)
    box = max(0.0, box[0]), max(0.0, box[1]), min(plane.width, box[2]), min(plane.height, box[3])
    return plane.resize((spec.width, spec.height), _FILTERS[spec.interpolation], box=box)


# --- files and PIL images -------------------------------------------------------------------------------------------


@contextmanager
def _opened(source: Any, name: str) -> Iterator[Image.Image]:
    """The PIL image of a source, its header read and its size checked; what goes wrong inside is an ImageError."""
    with _binary(source, name) as file:
        try:
            image: Image.Image = source if file is None else _read_header(file, name)
            width, height = image.size
            if file is not None and width * height > PIXEL_LIMIT:
                raise ImageError(f"{name}: {width} x {height} pixels are more than {PIXEL_LIMIT:,}; scale it down")
            if width < 1 or height < 1:
                raise ImageError(f"{name}: a photo of {width} x {height} pixels shows nothing")
            yield image
        except ImageError:
            raise
        except Exception as error:  # PIL's parsers raise whatever they stumble over
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ImageError(f"{name}: damaged or cut short, or not the photo it claims to be ({what:.300})") from error


@contextmanager
def _binary(source: Any, name: str) -> Iterator[BinaryIO | None]:
    """A seekable binary file for the source; None for a PIL image."""
    if isinstance(source, Image.Image):
        yield None
    elif isinstance(source, str | os.PathLike):
        try:
            file = Path(source).open("rb")  # noqa: SIM115 - closed by the `with` below
        except FileNotFoundError as error:
            hint = "; download it first, showtell reads files" if "://" in name else ""
            raise NotFoundError(f"{name}: no such file{hint}") from error
        except IsADirectoryError as error:
            raise ImageError(f"{name}: a folder, not a photo; pass the files in it") from error
        except (OSError, ValueError, TypeError) as error:
            raise ImageError(f"{name!r:.300}: can't be opened ({error})") from error
        with file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        try:
            start = source.tell() if hasattr(source, "seekable") and source.seekable() else None
            data = source.read()
            if start is not None:
                source.seek(start)
        except (OSError, ValueError) as error:
            raise ImageError(f"{name}: can't be read ({error})") from error
        if not isinstance(data, bytes):
            raise ImageError(f'{name}: a file opened as text; open it with mode "rb"')
        yield io.BytesIO(data)
    else:
        raise ImageError(f"{name}: a photo is {_ACCEPTED}, not {type(source).__name__}")


def _read_header(file: BinaryIO, name: str) -> Image.Image:
    start = file.read(16)
    file.seek(0)
    if not start:
        raise ImageError(f"{name}: the file is empty")
    kind = next((kind for kind, (_, is_it) in _KINDS.items() if is_it(start)), None)
    if kind is None:
        raise ImageError(f"{name}: not a photo that showtell reads ({', '.join(_KINDS)}); save it as one of these")
    reader = _reader(kind)
    if reader is None:
        raise ImageError(f"{name}: {kind}, which the installed Pillow can't read; upgrade pillow or save it as JPEG")
    return reader(file)


_KINDS: dict[str, tuple[str, Callable[[bytes], bool]]] = {  # kind -> Pillow's plugin, how a file of it starts
    "JPEG": ("Jpeg", lambda b: b.startswith(b"\xff\xd8\xff")),
    "PNG": ("Png", lambda b: b.startswith(b"\x89PNG\r\n\x1a\n")),
    "WebP": ("WebP", lambda b: b[:4] == b"RIFF" and b[8:12] == b"WEBP"),
    "GIF": ("Gif", lambda b: b[:6] in (b"GIF87a", b"GIF89a")),
    "TIFF": ("Tiff", lambda b: b[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    "BMP": ("Bmp", lambda b: b.startswith(b"BM")),
    "PPM": ("Ppm", lambda b: b[:1] == b"P" and b[1:2] in b"123456" and b[2:3].isspace()),
    "AVIF": ("Avif", lambda b: b[4:8] == b"ftyp" and b[8:12] in (b"avif", b"avis")),
}


@cache
def _reader(kind: str) -> Callable[[BinaryIO], Image.Image] | None:
    """Pillow's reader, called directly; None where this Pillow has none.

    `Image.open` would do the same, but also warn of large photos and of EXIF blocks it can't parse; a library can't
    silence warnings without changing the filters of the whole process. PIXEL_LIMIT and `_orientation` do that work.
    """
    plugin = _KINDS[kind][0]
    try:
        module = importlib.import_module(f"PIL.{plugin}ImagePlugin")
    except ModuleNotFoundError:  # AVIF came with Pillow 11.3
        return None
    reader: Any = getattr(module, f"{plugin}ImageFile")
    if kind == "JPEG":  # this reader parses EXIF for the resolution, which nobody here needs
        reader = type("QuietJpeg", (reader,), {"getexif": lambda self: Image.Exif()})
    return reader if getattr(module, "SUPPORTED", True) else None


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1..8, read from the block itself; 1 where there is none or it is damaged."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        value = tags.get(274, 1)
        return value if value in _UPRIGHT else 1
    data = image.info.get("exif")
    data = data.removeprefix(b"Exif\0\0") if isinstance(data, bytes) else b""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", data, entry)
            if tag == 274 and kind == 3:
                return int(value) if value in _UPRIGHT else 1
    except struct.error:  # the block ends early
        pass
    return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    tags = getattr(image, "tag_v2", None)  # newer versions of Pillow give a TIFF's size as it will be after turning
    turned = tags is not None and (tags.get(256), tags.get(257)) != image.size
    return image.size[::-1] if _orientation(image) > 4 and not turned else image.size


def _draft(image: Image.Image, spec: ImageSpec, size: tuple[int, int]) -> None:
    """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, never below twice the size that is wanted."""
    width, height = spec.resized(*size)
    wanted = (2 * width, 2 * height) if size == image.size else (2 * height, 2 * width)
    image.draft(None, wanted)  # None: the colours stay as they are


def _image_planes(image: Image.Image, name: str) -> list[Image.Image]:
    """Decode: one upright RGB image on white, or one of grey floats in 0..1 for what has more than 8 bits."""
    image.load()
    # Some versions of Pillow turn a TIFF while loading; only its EXIF block then tells.
    turned = getattr(image, "tag_v2", None) is not None and 274 not in image.getexif()
    turn = None if turned else _UPRIGHT.get(_orientation(image))
    plane = _deep_grey(image, name) if image.mode in ("I", "F", *_SIXTEEN_BIT) else _on_white(image)
    return [plane if turn is None else plane.transpose(turn)]


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    full = 1 if image.mode == "F" else 65535
    _check_range(values, full, name)
    grey = (values / full).astype(np.float32)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 1.0
    return Image.fromarray(grey)


def _on_white(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "a" not in image.getbands() and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


# --- arrays and tensors ---------------------------------------------------------------------------------------------


def _as_hwc(source: np.ndarray[Any, Any] | Tensor, name: str) -> np.ndarray[Any, Any]:
    """(H, W, C) with C of 1, 3 or 4, at least one pixel; the values are not looked at."""
    if isinstance(source, Tensor):
        if source.is_meta or source.layout is not torch.strided or source.is_complex():
            raise ImageError(
                f"{name}: a photo is an ordinary tensor, not {source.layout}, {source.dtype}, on {source.device}"
            )
        channels, layout, likely = 0, "(3, H, W)", source.ndim == 3 and source.shape[-1] in (1, 3, 4)
        hint = "; did you mean tensor.permute(2, 0, 1)?" if likely else ""
    else:
        channels, layout, likely = -1, "(H, W, 3)", source.ndim == 3 and source.shape[0] in (1, 3, 4)
        hint = "; did you mean array.transpose(1, 2, 0)?" if likely else ""
    if source.ndim == 4:
        hint = "; for a batch, pass list(...) of it to load_images"
    if source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[channels] not in (1, 3, 4)):
        raise ImageError(f"{name}: a photo has the shape {layout} or (H, W), not {tuple(source.shape)}{hint}")
    if 0 in source.shape:
        raise ImageError(f"{name}: a photo of shape {tuple(source.shape)} has no pixels")
    if isinstance(source, Tensor):
        source = (source.float() if source.dtype == torch.bfloat16 else source).detach().cpu().numpy()
    if source.ndim == 2:
        return source[:, :, None]
    return source if channels == -1 else source.transpose(1, 2, 0)


def _array_planes(array: np.ndarray[Any, Any], name: str) -> list[Image.Image]:
    """One RGB image for uint8; one or three of floats in 0..1 for the rest."""
    if array.dtype == np.uint8:
        return [_on_white(Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array)))]
    if array.dtype != np.uint16 and array.dtype.kind != "f":
        raise ImageError(f"{name}: values are uint8 in 0..255 or floats in 0..1, not {array.dtype}")
    full = 65535 if array.dtype == np.uint16 else 1
    _check_range(array, full, name)
    values = (array / full).astype(np.float32)
    if array.shape[2] == 4:
        values = values[:, :, :3] * values[:, :, 3:] + (1 - values[:, :, 3:])
    return [Image.fromarray(np.ascontiguousarray(values[:, :, c])) for c in range(values.shape[2])]


def _check_range(values: np.ndarray[Any, Any], full: int, name: str) -> None:
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{name}: some values are NaN or infinite; a photo's lie in 0..{full}")
    slack = 1e-3 if full == 1 else 0  # what resizing and arithmetic leave behind
    if low < -slack or high > full + slack:
        hint = "; divide by 255" if full == 1 and low >= 0 and 2 < high <= 255 else ""
        hint = "; undo the normalisation, encoders do it themselves" if full == 1 and low < 0 else hint
        raise ImageError(f"{name}: values in {low:g}..{high:g}, expected 0..{full}{hint}")
