"""Whether two small pictures are one photo: moved and scaled onto each other as well as they go, then compared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["same_photo"]

_STEPS = 6  # a resolution; more change no score in the second digit
_REACH = 0.3  # a photo cut by 10 % on each side is 0.25 larger than its copy
_COVER = 0.6  # the share of the picture that must be seen in both

_DETAIL = 0.8
"""The least correlation of fine detail. Measured on Flickr8k, 400 photos each: copies that were stored again as JPEG of
quality 20, resized, brightened by 30 %, made grey, mirrored, or cut by 3 to 5 % on each side or by 10 % on one: at
least 0.84. Of the 2,585 pairs of different photos that look most alike the highest is 0.74 (two shots of one scene,
seconds apart), the next 0.48; of 2,100 drawn scenes with the same few shapes 0.70."""

_FAINT = 0.02  # of 1, about five levels of 255: weaker detail counts less, as storing a photo again changes it

_COLOUR = 0.7  # the least correlation of colours, where both have some
_FAINT_COLOUR = 0.02  # of 1: below, a picture counts as grey
_FAINT_DETAIL = 0.004  # of 1, about one level: below, there is nothing to know a photo by


def same_photo(first: Tensor, second: Tensor) -> Tensor:
    """P pairs of RGB pictures (P, 3, 32, 32) in 0..1 -> (P,) bool: one photo, perhaps cut, resized or brightened.

    Example:
        >>> photo = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> same_photo(torch.cat([photo, photo]), torch.cat([0.8 * photo, 1 - photo])).tolist()
        [True, False]

    The second picture is scaled and shifted by Gauss-Newton steps on the correlation of brightness (Lucas and Kanade
    1981), from coarse to fine. Then fine detail must agree where both pictures overlap, in quiet places as much as at
    strong edges (pictures of like shapes agree at the edges only), and colour. Flat pictures are never the same: there
    is nothing to tell."""
    grey_a, grey_b = first.mean(1), second.mean(1)
    place = torch.zeros(len(first), 4, dtype=first.dtype)
    for shrink in (4, 2, 1):
        small_a, small_b = (F.avg_pool2d(t[:, None], shrink)[:, 0] for t in (grey_a, grey_b))
        place = _align(small_a, small_b, place)
    moved, inside = _moved(second, place)
    detail_a, detail_b = _detail(grey_a), _detail(moved.mean(1))
    alike = (_normal(_evened(detail_a), inside) * _normal(_evened(detail_b), inside)).sum((1, 2))
    rough = torch.minimum(_rms(detail_a, inside), _rms(detail_b, inside)) > _FAINT_DETAIL
    colour_a, colour_b = first - grey_a[:, None], moved - moved.mean(1, keepdim=True)
    masks = inside[:, None].expand_as(colour_a).flatten(1, 2)
    coloured = torch.minimum(_rms(colour_a.flatten(1, 2), masks), _rms(colour_b.flatten(1, 2), masks)) > _FAINT_COLOUR
    product = (colour_a * colour_b * inside[:, None]).sum((1, 2, 3))
    sizes = ((t.square() * inside[:, None]).sum((1, 2, 3)) for t in (colour_a, colour_b))
    same_colour = product / torch.sqrt(next(sizes) * next(sizes) + 1e-12) > _COLOUR
    return (alike > _DETAIL) & rough & (same_colour | ~coloured) & (inside.mean((1, 2)) > _COVER)


def _align(first: Tensor, second: Tensor, place: Tensor) -> Tensor:
    """Better places (P, 4) of `second` (P, n, n) on `first`: scale less 1, and shift, in x and y; edges at -1, 1."""
    size = first.shape[-1]
    x, y = _coordinates(size)
    little = 1e-4 * torch.eye(4)
    for _ in range(_STEPS):
        moved, inside = _moved(second[:, None], place)
        moved = moved[:, 0]
        target, now = _normal(first, inside), _normal(moved, inside)
        padded = F.pad(moved[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        slope_x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) * (size / 4)
        slope_y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) * (size / 4)
        spread = _centred(moved, inside).square().sum((1, 2)).add(1e-8).sqrt()
        slopes = torch.stack([slope_x * x, slope_y * y, slope_x, slope_y], dim=1)
        slopes = slopes * (inside / spread[:, None, None])[:, None]
        # What only changes the contrast is no movement.
        slopes = slopes - (slopes * now[:, None]).sum((2, 3), keepdim=True) * now[:, None]
        flat = slopes.flatten(2)
        wanted = flat @ (target - now).flatten(1)[:, :, None]
        step = torch.linalg.solve(flat @ flat.transpose(1, 2) + little, wanted)[:, :, 0]
        place = (place + step.clamp(-0.1, 0.1)).clamp(-_REACH, _REACH)
    return place


def _coordinates(size: int) -> tuple[Tensor, Tensor]:
    centres = (torch.arange(size) + 0.5) * 2 / size - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x, y


def _moved(pictures: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (P, C, n, n) at their places, and (P, n, n) 1 where a pixel comes from inside the picture."""
    x, y = _coordinates(pictures.shape[-1])
    scale_x, scale_y, shift_x, shift_y = (column[:, None, None] for column in place.unbind(1))
    to_x, to_y = x * (1 + scale_x) + shift_x, y * (1 + scale_y) + shift_y
    moved = F.grid_sample(pictures, torch.stack([to_x, to_y], -1), padding_mode="border", align_corners=False)
    return moved, ((to_x.abs() <= 1) & (to_y.abs() <= 1)).to(pictures.dtype)


def _centred(values: Tensor, inside: Tensor) -> Tensor:
    mean = (values * inside).sum((1, 2), keepdim=True) / inside.sum((1, 2), keepdim=True).clamp_min(1)
    return (values - mean) * inside


def _normal(values: Tensor, inside: Tensor) -> Tensor:
    centred = _centred(values, inside)
    return centred / centred.square().sum((1, 2), keepdim=True).add(1e-8).sqrt()


def _rms(values: Tensor, inside: Tensor) -> Tensor:
    return ((values.square() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp_min(1)).sqrt()


def _detail(grey: Tensor) -> Tensor:
    """Each pixel less the mean of the 5 x 5 around it."""
    return grey - _around(grey, 2)


def _evened(detail: Tensor) -> Tensor:
    """Divided by its strength in the 7 x 7 around each pixel."""
    return detail / (_around(detail.square(), 3).clamp_min(0.0).sqrt() + _FAINT)


def _around(values: Tensor, reach: int) -> Tensor:
    padded = F.pad(values[:, None], (reach,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * reach + 1, 1)[:, 0]
