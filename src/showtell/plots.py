"""Pictures of where a decoder looked: a panel for each word (extra `viz`)."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attention import AttentionMaps
from .caption import Caption
from .checks import whole
from .errors import ArgumentError, MissingPackageError
from .image_spec import ImageSpec
from .images import ImageSource, load_image, photo_size

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_attention"]

_LONGEST = 320  # pixels of a panel
_PANEL = 2.3  # inches
_LIGHT = (1.0, 0.62, 0.05)
_MOST_PANELS = 200
_TALLEST = 3.0  # a panel's height over its width; a photo that is narrower stands in its middle


def plot_attention(image: ImageSource, caption: str | Caption, maps: AttentionMaps, *, columns: int = 5) -> Figure:
    """Draw the photo once for each word of a caption, lit up where the decoder looked; returns matplotlib's Figure.

    Example:
        >>> maps = captioner.attend("dog.jpg", caption)  # doctest: +SKIP
        >>> plot_attention("dog.jpg", caption, maps).savefig("looked.png")  # doctest: +SKIP

    The first panel is the photo, upright. In each further one the regions glow by their weight a unit of area,
    softened by a quarter of a region's size; the brightest spot is as bright as the share of the word that went to
    regions. Where a sentinel got a percent or more, the panel's title says so. Grids and the boxes of a detector look
    alike.

    Args:
        image: the photo that `attend` was asked about.
        caption: its text, or the Caption; the title.
        maps: what `Captioner.attend` returned for it, at most 199 words.
        columns: panels in a row, 1..20.

    Raises:
        MissingPackageError: matplotlib isn't installed: pip install "showtell[viz]".
        ArgumentError: the maps are another caption's, or none.
        NotFoundError, ImageError: the photo can't be read.
    """
    try:
        figures: Any = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingPackageError('plot_attention needs matplotlib: pip install "showtell[viz]"') from error
    whole("columns", columns, 1, 20)
    if not isinstance(maps, AttentionMaps):
        raise ArgumentError(f"maps are what Captioner.attend returns for one photo, not {type(maps).__name__}")
    if not isinstance(caption, str | Caption):
        raise ArgumentError(f"a caption is a text or a Caption, not {type(caption).__name__}")
    if isinstance(caption, Caption) and len(caption.tokens) != len(maps.words):
        raise ArgumentError(
            f"the caption has {len(caption.tokens)} tokens and the maps are of {len(maps.words)}: "
            f"{' '.join(maps.words):.200}; pass the maps of this caption"
        )
    if len(maps.words) >= _MOST_PANELS:
        raise ArgumentError(f"a picture has room for {_MOST_PANELS - 1} words, not for {len(maps.words)}")
    pixels = _photo(image)
    height, width = pixels.shape[1:]
    panels = len(maps.words) + 1
    across = min(columns, panels)
    down = math.ceil(panels / across)
    tall = _PANEL * min(height / width, _TALLEST) + 0.35
    figure: Figure = figures.Figure(figsize=(_PANEL * across, tall * down + 0.4), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    grid.flat[0].imshow(_shown(pixels))
    lit = _lit(maps, width, height)
    sentinel = maps.sentinel.tolist()
    for place, word in enumerate(maps.words):
        axes = grid.flat[place + 1]
        axes.imshow(_shown(_glowing(pixels, lit[place])))
        rest = f" (sentinel {sentinel[place]:.0%})" if sentinel[place] >= 0.01 else ""
        axes.set_title(word + rest, fontsize=10, parse_math=False)
    figure.suptitle(str(caption), parse_math=False, wrap=True)
    return figure


def _photo(image: ImageSource) -> Tensor:
    """The upright photo, scaled down where it is large: (3, height, width) in 0..1."""
    width, height = photo_size(image)
    scale = min(1.0, _LONGEST / max(width, height))
    return load_image(image, ImageSpec(max(1, round(height * scale)), max(1, round(width * scale))))


def _lit(maps: AttentionMaps, width: int, height: int) -> Tensor:
    """How bright each pixel is at each word: (T, height, width) in 0..1."""
    if not maps.words or not len(maps.boxes):
        return torch.zeros(len(maps.words), height, width)
    heat = torch.stack([maps.heatmap(place, width=width, height=height) for place in range(len(maps.words))])
    sides = (maps.boxes[:, 2:] - maps.boxes[:, :2]).median(0).values
    across, down = (_blur(size, float(side) * size / 4) for size, side in zip((width, height), sides, strict=True))
    heat = down @ heat @ across.T
    brightest = heat.flatten(1).amax(1).clamp(min=1e-12).view(-1, 1, 1)
    return heat / brightest * maps.weights.sum(1).clamp(0, 1).view(-1, 1, 1)


def _blur(size: int, deviation: float) -> Tensor:
    """A matrix (size, size) whose product with a row of pixels is the row, softened by a bell curve."""
    place = torch.arange(size, dtype=torch.float32)
    bell: Tensor = (-((place.unsqueeze(1) - place) ** 2) / (2 * max(deviation, 0.5) ** 2)).exp()
    bell /= bell.sum(1, keepdim=True)
    return bell


def _glowing(pixels: Tensor, lit: Tensor) -> Tensor:
    """The photo, dark and nearly grey where `lit` is 0, in its colours and with a warm light where it is 1."""
    grey = pixels.mean(0, keepdim=True)
    dark = 0.35 * (0.7 * grey + 0.3 * pixels)
    light = 0.75 * pixels + 0.25 * torch.tensor(_LIGHT).view(3, 1, 1)
    return torch.lerp(dark, light, lit)


def _shown(pixels: Tensor) -> Any:
    return pixels.permute(1, 2, 0).clamp(0, 1).numpy()
