"""Captions for many photos: decoding overlaps with the model, and a bad file costs its own row only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .captioner import Caption, Captioner
from .constraints import Constraints
from .errors import ShowtellError
from .images import load_image
from .search import Search

__all__ = ["Row", "caption_files"]


@dataclass(frozen=True)
class Row:
    """The outcome for one photo: its caption, or the error that stands in its place."""

    image: Path
    caption: Caption | None = None
    error: str | None = None


def caption_files(
    captioner: Captioner,
    paths: Sequence[Path],
    *,
    search: Search | str | None = None,
    batch_size: int = 16,
    start: int = 0,
    constraints: Constraints | None = None,
) -> Iterator[list[Row]]:
    """Caption files in order, a list of rows for each batch of `batch_size` paths.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> [[row]] = caption_files(tiny_captioner(), [Path("missing.jpg")])
        >>> row.caption is None
        True

    The batches are cut by position alone, so a run that starts later (`start`, a multiple of `batch_size`) gives
    the same rows to the bit; so does a `Sample` with a seed. Photos of the next batch are decoded while this one is
    captioned. `constraints` hold for every photo.
    """

    def load(path: Path) -> Tensor | ShowtellError:
        try:
            return load_image(path, captioner.encoder.image_spec)
        except ShowtellError as error:
            return error

    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="showtell-photos") as pool:

        def begin(at: int) -> list[Future[Tensor | ShowtellError]]:
            return [pool.submit(load, path) for path in paths[at : at + batch_size]]

        coming = begin(start)
        for at in range(start, len(paths), batch_size):
            loaded = [future.result() for future in coming]
            coming = begin(at + batch_size)
            good = [image for image in loaded if isinstance(image, Tensor)]
            places = [at + n for n, image in enumerate(loaded) if isinstance(image, Tensor)]
            captions: Iterator[Caption] = iter(())
            if good:
                features = captioner.encode_pixels(torch.stack(good))
                found = captioner.generate(
                    features, search=search, batch_size=batch_size, constraints=constraints, positions=places
                )
                captions = (best[0] for best in found)
            yield [
                Row(path, error=str(image)) if isinstance(image, ShowtellError) else Row(path, caption=next(captions))
                for path, image in zip(paths[at : at + batch_size], loaded, strict=True)
            ]
