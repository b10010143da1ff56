"""caption_iter: order, constant memory, bad photos in their place, and sources that misbehave."""

from __future__ import annotations

import gc
import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from PIL import Image

from showtell.captioner import Captioner
from showtell.constraints import Constraints
from showtell.errors import ArgumentError, ImageError, NotFoundError
from showtell.images import load_image
from showtell.protocols import Features
from showtell.testing import tiny_captioner


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return tiny_captioner()


def decoding_threads() -> int:
    return sum(thread.name.startswith("showtell-photos") for thread in threading.enumerate())


def noise(count: int) -> list[torch.Tensor]:
    return list(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(5)))


def jpegs(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{n:03}.jpg" for n in range(count)]
    for n, path in enumerate(paths):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
@pytest.mark.parametrize("search", ["greedy", "beam:3"])
def test_rows_are_what_caption_says_of_each_photo_in_their_order(
    captioner: Captioner, tmp_path: Path, batch_size: int, search: str
) -> None:
    paths = jpegs(tmp_path, 10)
    alone = [captioner.caption(path, search=search) for path in paths]
    rows = list(captioner.caption_iter(iter(paths), search=search, batch_size=batch_size))
    assert [row.image for row in rows] == paths
    assert [row.error for row in rows] == [None] * 10
    for row, caption in zip(rows, alone, strict=True):
        assert isinstance(row.caption, type(caption))
        assert row.caption.tokens == caption.tokens
        assert row.caption.log_prob == pytest.approx(caption.log_prob, abs=1e-4)
        assert len(row.caption.candidates) == len(caption.candidates)


def test_order_is_kept_when_the_first_photo_is_the_slowest(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = jpegs(tmp_path, 6)

    def slowly(photo: Any, spec: Any) -> torch.Tensor:
        time.sleep(0.05 if photo in (paths[0], paths[3]) else 0)
        return load_image(photo, spec)

    monkeypatch.setattr("showtell.bulk.load_image", slowly)
    rows = captioner.caption_iter(paths, batch_size=3, workers=3)
    assert [row.image for row in rows] == paths


def test_any_kind_of_photo_may_come_and_the_same_object_twice(captioner: Captioner, tmp_path: Path) -> None:
    path = jpegs(tmp_path, 1)[0]
    picture, file = Image.open(path), io.BytesIO(path.read_bytes())
    mixed: list[Any] = [path, str(path), path.read_bytes(), picture, picture, file, file, np.asarray(picture)]
    rows = list(captioner.caption_iter(mixed, batch_size=4, workers=4))
    assert [row.error for row in rows] == [None] * 8
    assert len({row.caption.text for row in rows if row.caption}) == 1
    assert all(row.image is photo for row, photo in zip(rows, mixed, strict=True))


def test_bad_photos_stand_in_their_place(captioner: Captioner, tmp_path: Path) -> None:
    good = jpegs(tmp_path, 3)
    broken, text, missing = tmp_path / "broken.jpg", tmp_path / "text.png", tmp_path / "missing.jpg"
    broken.write_bytes(good[0].read_bytes()[:300])
    text.write_text("no photo")
    photos: list[Any] = [
        missing,
        good[0],
        broken,
        text,
        good[1],
        tmp_path,
        17,
        torch.full((3, 9, 9), torch.nan),
        good[2],
    ]
    rows = list(captioner.caption_iter(photos, batch_size=4))
    assert [row.caption is None for row in rows] == [True, False, True, True, False, True, True, True, False]
    assert [(row.caption is None) != (row.error is None) for row in rows] == [True] * 9
    assert isinstance(rows[0].error, NotFoundError)
    assert isinstance(rows[2].error, ImageError)
    assert "broken.jpg" in str(rows[2].error)
    assert rows[2].error.__traceback__ is None  # it would hold the pixels
    assert rows[2].error.__context__ is None


def test_batches_of_bad_photos_alone_cost_no_more(captioner: Captioner) -> None:
    rows = list(captioner.caption_iter((f"missing{n}.jpg" for n in range(7)), batch_size=2))
    assert [type(row.error) for row in rows] == [NotFoundError] * 7


def test_a_bad_photo_is_raised_in_its_place_if_asked(captioner: Captioner) -> None:
    photos: list[Any] = [*noise(5), "missing.jpg", *noise(5)]
    rows = captioner.caption_iter(photos, batch_size=4, skip_bad=False)
    assert [next(rows).error for _ in range(5)] == [None] * 5
    with pytest.raises(NotFoundError, match=r"missing\.jpg"):
        next(rows)
    assert decoding_threads() == 0
    assert list(rows) == []


def test_no_photos_no_rows(captioner: Captioner) -> None:
    assert list(captioner.caption_iter([])) == []
    assert list(captioner.caption_iter(iter(()))) == []


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (3, 4), (4, 4), (5, 4), (8, 4)])
def test_every_photo_has_a_row_however_the_last_batch_ends(captioner: Captioner, count: int, batch_size: int) -> None:
    assert len(list(captioner.caption_iter(noise(count), batch_size=batch_size))) == count


def test_an_endless_source_is_read_four_batches_ahead_at_most(captioner: Captioner, tmp_path: Path) -> None:
    path = jpegs(tmp_path, 1)[0]
    given = 0

    def endless() -> Iterator[Path]:
        nonlocal given
        while True:
            given += 1
            yield path

    rows, furthest = captioner.caption_iter(endless(), batch_size=5), 0
    for taken in range(1, 101):
        next(rows)
        furthest = max(furthest, given - taken)
    assert furthest <= 4 * 5
    rows.close()  # type: ignore[attr-defined]
    assert decoding_threads() == 0


def test_few_photos_are_in_memory_however_many_come(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, alive, most, lock = jpegs(tmp_path, 1)[0], 0, 0, threading.Lock()

    class Pixels(torch.Tensor):
        """A photo that says when it is gone."""

        def __del__(self) -> None:
            nonlocal alive
            with lock:
                alive -= 1

    def counted(photo: Any, spec: Any) -> torch.Tensor:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return load_image(photo, spec).as_subclass(Pixels)  # type: ignore[no-any-return]

    monkeypatch.setattr("showtell.bulk.load_image", counted)
    monkeypatch.setattr("showtell.bulk._stacked", lambda batch, pinned: torch.rand(len(batch.photos), 3, 32, 32))
    kept = list(captioner.caption_iter((path for _ in range(200)), batch_size=4))
    assert len(kept) == 200
    assert most <= 4 * 4
    assert alive == 0


def test_dropping_the_iterator_half_way_stops_the_threads(captioner: Captioner, tmp_path: Path) -> None:
    paths = jpegs(tmp_path, 4) * 10
    rows = captioner.caption_iter(paths, batch_size=4, workers=3)
    next(rows)
    assert 1 <= decoding_threads() <= 3
    del rows
    gc.collect()
    assert decoding_threads() == 0


def test_an_iterator_that_nobody_uses_starts_no_thread(captioner: Captioner, tmp_path: Path) -> None:
    rows = captioner.caption_iter(jpegs(tmp_path, 2))
    assert decoding_threads() == 0
    del rows


def test_an_exception_in_the_source_comes_through_after_the_photos_before_it(captioner: Captioner) -> None:
    def failing() -> Iterator[torch.Tensor]:
        yield from noise(6)
        raise OSError("the disk is gone")

    rows = captioner.caption_iter(failing(), batch_size=4)
    assert [next(rows).error for _ in range(6)] == [None] * 6
    with pytest.raises(OSError, match="the disk is gone"):
        next(rows)
    assert decoding_threads() == 0


def test_a_source_that_fails_at_once_fails_at_once(captioner: Captioner) -> None:
    with pytest.raises(ZeroDivisionError):
        next(captioner.caption_iter(f"{1 // n}.jpg" for n in range(3)))


def test_what_is_no_photo_problem_comes_through_and_stops_the_threads(
    captioner: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hopeless(photo: Any, spec: Any) -> torch.Tensor:
        raise MemoryError("no room")

    monkeypatch.setattr("showtell.bulk.load_image", hopeless)
    with pytest.raises(MemoryError, match="no room") as caught:
        next(captioner.caption_iter(jpegs(tmp_path, 3), batch_size=2))
    assert decoding_threads() == 0, caught


def test_an_interrupt_stops_the_threads(captioner: Captioner, tmp_path: Path) -> None:
    def interrupted() -> Iterator[Path]:
        yield from jpegs(tmp_path, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(captioner.caption_iter(interrupted(), batch_size=2))
    assert decoding_threads() == 0


def test_the_source_is_read_in_the_thread_that_takes_the_rows(captioner: Captioner) -> None:
    readers = set()

    def source() -> Iterator[torch.Tensor]:
        for image in noise(9):
            readers.add(threading.get_ident())
            yield image

    assert len(list(captioner.caption_iter(source(), batch_size=2))) == 9
    assert readers == {threading.get_ident()}


def test_a_later_start_gives_the_same_rows_to_the_bit(captioner: Captioner) -> None:
    photos = noise(11)
    rows = list(captioner.caption_iter(photos, batch_size=4, search="beam:3"))
    later = list(captioner.caption_iter(photos[4:], batch_size=4, search="beam:3"))
    assert [row.caption for row in later] == [row.caption for row in rows[4:]]


@pytest.mark.parametrize(
    "one", ["dog.jpg", Path("dog.jpg"), b"jpeg", noise(1)[0], np.zeros((4, 4, 3)), io.BytesIO(), 3, None]
)
def test_one_photo_is_no_iterable_of_photos(captioner: Captioner, one: Any) -> None:
    with pytest.raises(ArgumentError, match="iterable of photos"):
        captioner.caption_iter(one)


def test_features_and_pictures_are_no_iterable_of_photos(captioner: Captioner) -> None:
    for one in (Features(torch.zeros(2, 16)), Image.new("RGB", (4, 4))):
        with pytest.raises(ArgumentError, match=r"pass \[photo\]"):
            captioner.caption_iter(one)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": True}, {"workers": 0}, {"workers": 1.5}, {"search": "fast"}, {"skip_bad": 1}],
)
def test_options_that_make_no_sense_are_refused_before_any_work(captioner: Captioner, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        captioner.caption_iter([], **options)


def test_constraints_hold_for_every_photo_and_are_refused_before_the_first(captioner: Captioner) -> None:
    rows = captioner.caption_iter(noise(5), batch_size=2, search="beam:3", constraints=Constraints(force=["dog"]))
    assert all("dog" in (row.caption.text.split() if row.caption else []) for row in rows)
    for wishes in (Constraints(force=["zebra"]), [Constraints()] * 5):
        with pytest.raises(ArgumentError):
            captioner.caption_iter(noise(5), search="beam:3", constraints=wishes)
    with pytest.raises(ArgumentError, match="start"):
        captioner.caption_iter(noise(5), start=-1)


def test_open_files_and_buffers_may_be_closed_and_used_again_by_the_iterable(
    captioner: Captioner, tmp_path: Path
) -> None:
    photos = [torch.full((3, 32, 32), level) for level in (0.0, 0.2, 0.4, 0.6, 0.8)]
    expected = [caption.log_prob for caption in captioner.caption(photos)]
    assert len(set(expected)) == 5

    def one_buffer() -> Iterator[torch.Tensor]:
        buffer = torch.empty(3, 32, 32)
        for photo in photos:
            yield buffer.copy_(photo)

    found = [row.caption.log_prob for row in captioner.caption_iter(one_buffer(), batch_size=2) if row.caption]
    assert found == pytest.approx(expected, abs=1e-5)

    def open_files() -> Iterator[BinaryIO]:
        for number in range(3):
            path = tmp_path / f"{number}.png"
            Image.new("RGB", (20, 20), (80 * number, 0, 0)).save(path)
            with path.open("rb") as file:
                yield file

    assert all(row.error is None for row in captioner.caption_iter(open_files()))


def test_a_batch_size_beyond_any_list_is_one_batch(captioner: Captioner) -> None:
    assert len(list(captioner.caption_iter([torch.rand(3, 32, 32)] * 3, batch_size=sys.maxsize + 1))) == 3
