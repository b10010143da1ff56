"""Bags of tensors whose dimension 0 is the row: what a decoder remembers and what it changes."""

from __future__ import annotations

from torch import Tensor

from .errors import ArgumentError

__all__ = ["Rows", "repeat_rows", "rows_per_image", "select_rows"]

Rows = dict[str, Tensor]
"""Named tensors that all share dimension 0, the row."""


def repeat_rows(rows: Rows, times: int) -> Rows:
    """Repeat each row `times` times, image-major: row r of the result comes from row r // times.

    Example:
        >>> import torch
        >>> repeat_rows({"h": torch.tensor([[1.0], [2.0]])}, 2)["h"].flatten().tolist()
        [1.0, 1.0, 2.0, 2.0]

    Each tensor (N, ...) becomes (N * times, ...), a copy. Raises ArgumentError when `times` is below 1.
    """
    if times < 1:
        raise ArgumentError(f"rows can be repeated 1 or more times, not {times}")
    return dict(rows) if times == 1 else {name: t.repeat_interleave(times, dim=0) for name, t in rows.items()}


def select_rows(rows: Rows, index: Tensor) -> Rows:
    """Pick rows by number.

    Example:
        >>> import torch
        >>> select_rows({"h": torch.tensor([[1.0], [2.0]])}, torch.tensor([1, 1]))["h"].flatten().tolist()
        [2.0, 2.0]

    `index` is (M,) int64 in 0..R-1; each tensor (R, ...) becomes (M, ...).
    """
    return {name: t.index_select(0, index) for name, t in rows.items()}


def rows_per_image(rows: int, images: int) -> int:
    """How many rows each image owns: K in R = N * K, row r belonging to image r // K.

    Example:
        >>> rows_per_image(15, 5)
        3

    Raises ArgumentError when R is not a multiple of N.
    """
    if images < 1 or rows % images:
        raise ArgumentError(
            f"{rows} rows can't be shared out evenly among {images} images; "
            "pass N * K rows, K for each image, those of image 0 first"
        )
    return rows // images
