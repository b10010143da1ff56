"""What an encoder asks of its photos, and where its input came from on the original photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from .errors import ArgumentError

__all__ = ["ImageSpec"]

_RESIZES = ("squash", "crop")
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class ImageSpec:
    """The size and resizing that an encoder wants; it is saved with the model.

    Example:
        >>> spec = ImageSpec(224, 224, resize="crop", short_side=256)
        >>> spec.box_on_photo((0.0, 0.0, 1.0, 1.0), width=512, height=256)
        (144.0, 16.0, 368.0, 240.0)

    Args:
        height: pixels, 1..4096.
        width: pixels, 1..4096.
        resize: "squash" stretches the whole photo to height x width; "crop" scales the photo so that its short
            side becomes `short_side` and cuts height x width out of the centre.
        short_side: pixels; for "crop" only, at least max(height, width); default: max(height, width).
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos"; all but nearest are antialiased.

    Raises:
        ArgumentError: a value out of range, or short_side together with "squash".
    """

    height: int
    width: int
    resize: Literal["squash", "crop"] = "squash"
    short_side: int | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        for name in ("height", "width"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= 4096:
                raise ArgumentError(f"ImageSpec {name} must be a whole number in 1..4096, not {value!r}")
        if self.resize not in _RESIZES:
            raise ArgumentError(f"ImageSpec resize must be one of {', '.join(_RESIZES)}, not {self.resize!r}")
        if self.interpolation not in _INTERPOLATIONS:
            raise ArgumentError(
                f"ImageSpec interpolation must be one of {', '.join(_INTERPOLATIONS)}, not {self.interpolation!r}"
            )
        if self.resize == "squash":
            if self.short_side is not None:
                raise ArgumentError('ImageSpec short_side belongs to resize="crop"; leave it out for "squash"')
            return
        least = max(self.height, self.width)
        if self.short_side is None:
            object.__setattr__(self, "short_side", least)
        elif type(self.short_side) is not int or not least <= self.short_side <= 8192:
            raise ArgumentError(f"ImageSpec short_side must be in {least}..8192, not {self.short_side!r}")

    def to_config(self) -> dict[str, Any]:
        """The fields as JSON values; `ImageSpec.from_config` reads them back."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ImageSpec:
        """Read what `to_config` wrote; raises ArgumentError for anything else."""
        known = {"height", "width", "resize", "short_side", "interpolation"}
        if not isinstance(config, dict) or set(config) - known or not {"height", "width"} <= set(config):
            raise ArgumentError(f"an image spec has the keys {sorted(known)}, not {config!r:.200}")
        return cls(**config)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The (width, height) a photo of that size is scaled to before any crop."""
        if self.resize == "squash":
            return self.width, self.height
        assert self.short_side is not None
        scale = self.short_side / min(width, height)
        return max(self.short_side, round(width * scale)), max(self.short_side, round(height * scale))

    def box_on_photo(self, box: Sequence[float], *, width: int, height: int) -> tuple[float, float, float, float]:
        """Map a box of the encoder's input to pixels of the photo.

        `box` is x0 y0 x1 y1 in 0..1 of the encoder's input; `width` and `height` are the photo's, upright (EXIF
        applied). The result is x0 y0 x1 y1 in pixels, 0..width and 0..height.
        """
        if len(box) != 4 or width < 1 or height < 1:
            raise ArgumentError(f"a box has four numbers and a photo at least one pixel, not {box!r}, {width}x{height}")
        scaled_w, scaled_h = self.resized(width, height)
        left, top = (scaled_w - self.width) // 2, (scaled_h - self.height) // 2
        x0, x1 = ((left + x * self.width) * width / scaled_w for x in (box[0], box[2]))
        y0, y1 = ((top + y * self.height) * height / scaled_h for y in (box[1], box[3]))
        return x0, y0, x1, y1
