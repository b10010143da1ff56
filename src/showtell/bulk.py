"""Captions for any number of photos: decoding overlaps with the model, and a bad file costs its own row only."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .caption import Caption
from .checks import flag, whole
from .constraints import Constraints, bind
from .errors import ArgumentError, ShowtellError
from .images import ImageSource, load_image
from .photos import Photos, check_batch_size
from .protocols import Encoder, Features, move
from .search import Search, as_search
from .vocabulary import Vocabulary

__all__ = ["Row", "caption_iter"]

_AHEAD = 2  # batches of photos that are decoded beyond the one that is captioned


class _Bulk(Protocol):
    """What is asked of a captioner here."""

    encoder: Encoder
    search: Search
    vocabulary: Vocabulary

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        ...

    def encode_pixels(self, pixels: Tensor) -> Features:
        """Resized images (N, 3, H, W) in 0..1 to features."""
        ...

    def generate(
        self,
        images: Photos,
        *,
        search: Search | str | None = None,
        batch_size: int = 32,
        constraints: Constraints | None = None,
        positions: Sequence[int] | None = None,
    ) -> list[list[Caption]]:
        """The n-best captions of each photo."""
        ...


@dataclass(frozen=True)
class Row:
    """The outcome for one photo: its caption, or the error that stands in its place.

    Example:
        >>> row = Row("dog.jpg", error=ShowtellError("dog.jpg: damaged"))
        >>> row.caption is None, str(row.error)
        (True, 'dog.jpg: damaged')

    image: the photo as it was given. caption: with its n-best list in `candidates`. One of caption and error is None.
    """

    image: Any
    caption: Caption | None = None
    error: ShowtellError | None = None


class _Batch(NamedTuple):
    """Photos and what became of each: pixels (3, H, W) or the error."""

    photos: list[ImageSource]
    loaded: list[Tensor | ShowtellError]


def caption_iter(
    captioner: _Bulk,
    photos: Iterable[ImageSource],
    *,
    search: Search | str | None = None,
    batch_size: int = 32,
    constraints: Constraints | None = None,
    workers: int | None = None,
    skip_bad: bool = True,
    start: int = 0,
) -> Iterator[Row]:
    """Caption any number of photos, a row for each as soon as it is known; `Captioner.caption_iter` calls it.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> [row] = caption_iter(tiny_captioner(), ["missing.jpg"])
        >>> row.caption is None, type(row.error).__name__
        (True, 'NotFoundError')

    Rows come in the order of the photos. Photos are decoded in threads while others are captioned; on a GPU they get
    there through pinned memory, and a batch is encoded while the one before it is searched. Four batches at most are
    in flight, however many photos there are, and the iterable is read no further ahead. Batches are cut by position
    alone: the rows from any multiple of `batch_size` on are the same to the bit in a run that starts there.

    Args:
        captioner: the captioner; leave it alone while rows come.
        photos: any iterable of what `Captioner.caption` takes as one photo, a generator of a million paths for
            instance; read in the thread that takes the rows.
        search: instead of the captioner's own.
        batch_size: photos at a time, at least 1.
        constraints: what captions must and must not say, for every photo.
        workers: threads that decode, 1..256; by default one a core, 8 at most.
        skip_bad: a photo that can't be read becomes a row with the error in its place; False: the error is raised
            there.
        start: the number of the first photo among all, where a run continues: a `Sample` with a seed draws by it.

    Dropping or closing the iterator stops the threads. An exception in the iterable comes through, after the rows of
    the photos before it. Raises ArgumentError at once for an option that makes no sense.
    """
    check_batch_size(batch_size)
    how = None if search is None else as_search(search)
    threads = min(8, os.cpu_count() or 1) if workers is None else whole("workers", workers, 1, 256)
    flag("skip_bad", skip_bad)
    whole("start", start, 0, 2**62)
    if constraints is not None and not isinstance(constraints, Constraints):
        raise ArgumentError(
            f"caption_iter takes one Constraints for all photos, not {constraints!r:.100}; for one a photo, use caption"
        )
    bind(constraints, 1, captioner.vocabulary, captioner.search if how is None else how)  # what can't be, said at once
    one = isinstance(photos, str | bytes | bytearray | os.PathLike | Features) or hasattr(photos, "read")
    if one or hasattr(photos, "__array__") or not hasattr(photos, "__iter__"):
        raise ArgumentError(
            f"caption_iter takes an iterable of photos, not one {type(photos).__name__}; pass [photo], or use caption"
        )

    def captions(features: Features, positions: Sequence[int]) -> Iterator[Caption]:
        found = captioner.generate(
            features, search=how, batch_size=batch_size, constraints=constraints, positions=positions
        )
        return (best[0] for best in found)

    return _rows(captioner, iter(photos), captions, batch_size, threads, skip_bad, start)


def _rows(
    captioner: _Bulk,
    photos: Iterator[ImageSource],
    captions: Callable[[Features, Sequence[int]], Iterator[Caption]],
    size: int,
    workers: int,
    skip_bad: bool,
    start: int,
) -> Iterator[Row]:
    # Closed by name: the traceback of an exception that leaves here would keep the threads waiting.
    with (
        closing(_decoded(photos, captioner.encoder, size, workers)) as batches,
        closing(_encoded(captioner, batches)) as encoded,
    ):
        for batch, features in encoded:
            positions = [start + n for n, outcome in enumerate(batch.loaded) if isinstance(outcome, Tensor)]
            found = iter(()) if features is None else captions(features, positions)
            start += len(batch.loaded)
            for photo, outcome in zip(batch.photos, batch.loaded, strict=True):
                if isinstance(outcome, Tensor):
                    yield Row(photo, caption=next(found))
                elif skip_bad:
                    yield Row(photo, error=outcome)
                else:
                    raise outcome


def _decoded(photos: Iterator[ImageSource], encoder: Encoder, size: int, workers: int) -> Generator[_Batch, None, None]:
    """Batches in order; the photos of the next ones are being decoded meanwhile."""
    spec = encoder.image_spec

    def load(photo: ImageSource) -> Tensor | ShowtellError:
        try:
            return load_image(photo, spec)
        except ShowtellError as error:
            error.__cause__ = error.__context__ = None  # they hold frames, and these the pixels
            return error.with_traceback(None)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="showtell-photos")
    coming: deque[tuple[list[ImageSource], list[Callable[[], Tensor | ShowtellError]]]] = deque()
    failure: Exception | None = None
    more = True
    try:
        while more or coming:
            while more and len(coming) <= _AHEAD:
                batch: list[ImageSource] = []
                loads: list[Callable[[], Tensor | ShowtellError]] = []
                try:
                    for photo in islice(photos, min(size, sys.maxsize)):  # what came before an exception stays
                        # What the caller holds isn't safe to read from two threads, and the iterable may close or
                        # overwrite it when it is asked for the next one.
                        apart = isinstance(photo, str | os.PathLike | bytes)
                        loads.append(pool.submit(load, photo).result if apart else partial(_itself, load(photo)))
                        batch.append(photo)
                except Exception as error:
                    failure = error
                more = len(batch) == size and failure is None
                if batch:
                    coming.append((batch, loads))
            if coming:
                batch, loads = coming.popleft()
                yield _Batch(batch, [result() for result in loads])
                del batch, loads
    finally:
        pool.shutdown(cancel_futures=True)
    if failure is not None:
        raise failure


def _itself(outcome: Tensor | ShowtellError) -> Tensor | ShowtellError:
    return outcome


def _encoded(captioner: _Bulk, batches: Iterator[_Batch]) -> Generator[tuple[_Batch, Features | None], None, None]:
    """Each batch with its good photos' features; on a GPU the encoder is a batch ahead, on a stream of its own."""
    device = captioner.device
    if device.type != "cuda":
        for batch in batches:
            pixels = _stacked(batch, pinned=False)
            yield batch, None if pixels is None else captioner.encode_pixels(pixels)
        return
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    side.wait_stream(main)  # the weights may be on their way still
    before: tuple[_Batch, Features | None, torch.cuda.Event] | None = None
    for batch in batches:
        pixels = _stacked(batch, pinned=True)
        with torch.cuda.stream(side):
            features = None if pixels is None else captioner.encode_pixels(move(pixels, device))
            ready = side.record_event()
        if before is not None:
            yield _handed_over(*before, main)
        before = batch, features, ready
    if before is not None:
        yield _handed_over(*before, main)


def _handed_over(
    batch: _Batch, features: Features | None, ready: torch.cuda.Event, main: torch.cuda.Stream
) -> tuple[_Batch, Features | None]:
    """Let the search's stream wait for the features, and their memory live until it is done with them."""
    main.wait_event(ready)
    for tensor in features or ():
        if tensor is not None and tensor.is_cuda:  # an encoder's boxes may have stayed on the CPU
            tensor.record_stream(main)
    return batch, features


def _stacked(batch: _Batch, *, pinned: bool) -> Tensor | None:
    """The good photos as one tensor (N, 3, H, W)."""
    good = [outcome for outcome in batch.loaded if isinstance(outcome, Tensor)]
    if not good:
        return None
    return torch.stack(good, out=torch.empty(len(good), *good[0].shape, pin_memory=pinned))
