"""Features on disk: every photo goes through the encoder's trunk once, and an interrupted run goes on where it was.

```
features/
  meta.json     format, key of the encoder, shapes, rows a chunk; written last: files without it are a mere start
  photos.u8     (rows, 32) a hash of each photo's id and size
  state.u8      (rows,) 0 = to do, 1 = done, 2 = the photo can't be read
  pooled.f16    (rows, D); grid.f16 (rows, L, D); mask.u8 (rows, L); boxes.f32 (rows, L, 4)
```

Chunks are cut by position. A chunk is computed as a whole, its features reach the disk before its state does, and one
that isn't marked is computed again: the bytes are those of a run that nothing disturbed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import whole
from ..errors import ArgumentError, DataError, RunError
from ..journal import said_plainly
from ..progress import bar
from ..protocols import Encoder, Features
from ..ranks import ALONE, Ranks
from ..storage import write_file
from .augment import View
from .inputs import load_records
from .records import Record, listed, photo_bytes
from .trunk import Trunk

__all__ = ["FeatureCache"]

_FORMAT = {"format": "showtell.features", "format_version": 1}
_DTYPES = {"pooled": "f16", "grid": "f16", "mask": "u8", "boxes": "f32"}
_NUMPY: dict[str, Any] = {"f16": np.float16, "f32": np.float32, "u8": np.uint8}
_TO_DO, _DONE, _BAD = 0, 1, 2


class FeatureCache:
    """What an encoder's trunk makes of each record, on disk in half precision.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from showtell.testing import tiny_captioner
        >>> photos = [np.full((40, 40, 3), shade, np.uint8) for shade in (0, 128, 255)]
        >>> records = [Record(f"{i}", photo, ("a grey wall",), "train", "") for i, photo in enumerate(photos)]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encoder = tiny_captioner().encoder.requires_grad_(False)
        ...     cache = FeatureCache.build(folder, encoder, records, say=lambda text: None)
        ...     len(cache), len(cache.features([2, 0]).pooled)
        (3, 2)

    Made by `FeatureCache.build`. bad: the positions of photos that can't be read; their features are zeros.
    split: the features are those of `encoder.trunk`, with `encoder.head` still to come.
    """

    def __init__(
        self, folder: Path, shapes: dict[str, tuple[int, ...]], split: bool, state: np.ndarray[Any, Any]
    ) -> None:
        """Wrap files that `build` has made."""
        self.folder = folder
        self.split = split
        self.bad = frozenset(np.flatnonzero(state == _BAD).tolist())
        self._shapes = shapes
        self._rows = len(state)

    def __len__(self) -> int:
        """The number of records."""
        return self._rows

    def features(self, positions: Sequence[int]) -> Features:
        """Features of the records at these positions: float32 (N, ...), on the CPU.

        The file is mapped for the time of the call, so that memory doesn't grow with the number of photos.
        Raises ArgumentError for a position beyond the records.
        """
        rows = np.asarray(positions, dtype=np.int64)
        if rows.ndim != 1 or ((rows < 0) | (rows >= len(self))).any():
            raise ArgumentError(f"positions are whole numbers in 0..{len(self) - 1}, not {positions!r:.100}")
        read: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            kind = _DTYPES[name]
            mapped = np.memmap(_path(self.folder, name), _NUMPY[kind], "r", shape=(len(self), *shape))
            tensor = torch.from_numpy(np.asarray(mapped[rows]))
            read[name] = tensor.bool() if kind == "u8" else tensor.float()
        return Features(**read)

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        encoder: Encoder,
        records: Sequence[Record],
        *,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        skip_bad: bool = False,
        show: bool | None = None,
        say: Callable[[str], None] = print,
        ranks: Ranks = ALONE,
        view: View | None = None,
    ) -> FeatureCache:
        """Open the features of these records, computing those that are missing.

        What is there is used where the trunk's weights, its config and image spec are the same and the records have
        the same ids in the same order; of photos whose size in bytes has changed the chunks are computed again. All
        else is thrown away and computed anew, and this is said. An edited photo of exactly the same size isn't
        noticed: delete the folder.

        Args:
            folder: made if absent; only the cache's own files in it are touched.
            encoder: its trunk must be frozen. It runs in evaluation mode and is left as it was.
            records: the photos, in order.
            batch_size: photos at a time, 1..4096; an unfinished cache goes on with the number it began with.
            device: where to compute; default: where the encoder is.
            skip_bad: photos that can't be read end up in `bad` instead of stopping the run.
            show: a progress bar; default: where standard error is a terminal.
            say: told how large the features are before they are written, what is thrown away, and every minute how far
                it is where there is no bar.
            ranks: the processes that share the work; all must see the same folder. The files are those of a single one,
                and what was begun with some number of processes goes on with any other.
            view: what to change in the photos first: `Augmented(...).view(0)` for these very records.

        Raises:
            ArgumentError: a parameter of the trunk is trainable.
            DataError: photos can't be read; all are named, after all others were encoded.
            RunError: the disk is too small, a feature is too large for half precision, or the processes have different
                photos or encoders.
        """
        whole("batch_size", batch_size, 1, 4096)
        if not records:
            raise DataError("no photos to encode; pass at least one record")
        trunk = Trunk(encoder, device)
        work = _Work(Path(folder), trunk, records, batch_size, view)
        ranks.same({"photos": hashlib.sha256(work.photos).hexdigest(), "encoder": work.key}, "give all the same")
        with said_plainly(work.folder):
            work.chunk, work.state = ranks.first_does(lambda: work.begin(skip_bad, say))
            reasons = work.encode(show, say, ranks)
        cache = cls(work.folder, work.shapes, trunk.split, work.state)
        if cache.bad and not skip_bad:
            lines = [reasons[position] for position in sorted(cache.bad)]
            raise DataError(
                f"{len(lines):,} of {len(records):,} photos can't be read; mend or remove them, or skip them "
                f"(--skip-bad):{listed(lines, len(lines))}"
            )
        if reasons:
            say(f"{len(reasons):,} photos can't be read and are left out:{listed(list(reasons.values()), 20)}")
        return cache


class _Work:
    """One run of `FeatureCache.build`."""

    def __init__(self, folder: Path, trunk: Trunk, records: Sequence[Record], chunk: int, view: View | None) -> None:
        self.folder = folder
        self.trunk = trunk
        self.records = records
        self.chunk = chunk
        self.view = view
        self.key = trunk.key() if view is None else hashlib.sha256((trunk.key() + view.key()).encode()).hexdigest()
        self.state = np.zeros(len(records), np.uint8)
        sample = {name: t for name, t in trunk.sample._asdict().items() if t is not None}
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(t.shape[1:]) for name, t in sample.items()}
        self.photos = b"".join(
            hashlib.sha256(f"{record.id}\0{photo_bytes(record.image)}".encode("utf-8", "surrogatepass")).digest()
            for record in records
        )

    def _meta(self, chunk: int) -> dict[str, Any]:
        ids = hashlib.sha256(json.dumps([record.id for record in self.records]).encode())
        return {
            **_FORMAT,
            "encoder": self.key,
            "records": ids.hexdigest(),
            "rows": len(self.records),
            "chunk": chunk,
            "arrays": {name: {"dtype": _DTYPES[name], "shape": list(shape)} for name, shape in self.shapes.items()},
        }

    def _sizes(self) -> dict[str, int]:
        rows = len(self.records)
        sizes = {"photos": rows * 32, "state": rows}
        for name, shape in self.shapes.items():
            sizes[name] = rows * int(np.prod(shape)) * np.dtype(_NUMPY[_DTYPES[name]]).itemsize
        return sizes

    def begin(self, skip_bad: bool, say: Callable[[str], None]) -> tuple[int, np.ndarray[Any, Any]]:
        """Take up what is there, or make the files anew: photos a chunk, and the state of each."""
        self._open_files(say)
        if not skip_bad:
            self._forget(self.state == _BAD)  # another chance
        return self.chunk, self.state

    def _open_files(self, say: Callable[[str], None]) -> None:
        there = self._read_meta()
        if there is not None:
            expected = self._meta(there.get("chunk", 0))
            reason = (
                "the photos are others" if there.get("encoder") == expected["encoder"] else "the encoder is another"
            )
            if there == expected and self._files_fit():
                self.chunk = there["chunk"]
                self.state = np.fromfile(_path(self.folder, "state"), np.uint8)
                self._forget_changed(say)
                missing = int((self.state == _TO_DO).sum())
                if missing:
                    say(f"{len(self.records) - missing:,} of {len(self.records):,} photos are encoded in {self.folder}")
                return
            reason = "they are damaged" if there == expected else reason
            say(f"the features in {self.folder} can't be used ({reason}): encoding all photos again")
        self._make_files(say)

    def _read_meta(self) -> dict[str, Any] | None:
        """What meta.json says: {} when it makes no sense, None when there is none."""
        path = self.folder / "meta.json"
        if not path.is_file():
            return None
        try:
            meta = json.loads(path.read_bytes())
        except ValueError:
            return {}
        known = isinstance(meta, dict) and type(meta.get("chunk")) is int and meta["chunk"] >= 1
        return meta if known else {}

    def _files_fit(self) -> bool:
        paths = {_path(self.folder, name): size for name, size in self._sizes().items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _make_files(self, say: Callable[[str], None]) -> None:
        sizes = self._sizes()
        total = sum(sizes.values())
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "meta.json").unlink(missing_ok=True)
        for name in {*_DTYPES, "state", "photos"}:
            _path(self.folder, name).unlink(missing_ok=True)
        say(f"{len(self.records):,} photos: {_human(total)} of features in {self.folder}")
        free = shutil.disk_usage(self.folder).free
        if total > free:
            raise RunError(
                f"the features take {_human(total)} and the disk of {self.folder} has {_human(free)} left; free some "
                "space, put the output elsewhere, or train without a grid"
            )
        for name, size in sizes.items():
            with _path(self.folder, name).open("wb") as file:
                file.truncate(size)
        _write(_path(self.folder, "photos"), 0, self.photos)
        write_file(self.folder / "meta.json", (json.dumps(self._meta(self.chunk), indent=2) + "\n").encode())

    def _forget_changed(self, say: Callable[[str], None]) -> None:
        """Put photos that changed on the list again: first their chunks' state, then what is known of them."""
        before = np.fromfile(_path(self.folder, "photos"), np.uint8).reshape(-1, 32)
        after = np.frombuffer(self.photos, np.uint8).reshape(-1, 32)
        changed = (before != after).any(axis=1)
        if changed.any():
            say(f"{int(changed.sum()):,} photos have changed: encoding them again")
            self._forget(changed)
            _write(_path(self.folder, "photos"), 0, self.photos)

    def _forget(self, rows: np.ndarray[Any, Any]) -> None:
        for start in self._starts():
            if rows[start : start + self.chunk].any():
                self.state[start : start + self.chunk] = _TO_DO
        if rows.any():
            _write(_path(self.folder, "state"), 0, self.state.tobytes())

    def _starts(self) -> range:
        return range(0, len(self.records), self.chunk)

    def encode(self, show: bool | None, say: Callable[[str], None], ranks: Ranks) -> dict[int, str]:
        """Encode every chunk that isn't done; the result says which photos can't be read, and why."""
        to_do = [start for start in self._starts() if not self.state[start : start + self.chunk].all()]
        own = self._encode(ranks.own(to_do), show, say)
        reasons: dict[int, str] = {}
        for state, bad in ranks.every(lambda: (self.state, own)):
            self.state = np.maximum(self.state, state)
            reasons |= bad
        return dict(sorted(reasons.items()))

    def _encode(self, to_do: Sequence[int], show: bool | None, say: Callable[[str], None]) -> dict[int, str]:
        if not to_do:
            return {}
        reasons: dict[int, str] = {}
        size = min(self.chunk, len(self.records))
        total = sum(min(size, len(self.records) - start) for start in to_do)
        with (
            bar(total, "encoding photos", unit="photo", show=show, say=say) as progress,
            ThreadPoolExecutor(max_workers=1, thread_name_prefix="showtell-chunk") as pool,
            self.trunk.running(),
        ):
            for start, (images, bad) in zip(to_do, _ahead(pool, self._load, iter(to_do)), strict=True):
                reasons |= {start + number: reason for number, reason in bad.items()}
                self._store(start, self.trunk(images), bad)
                progress.update(len(images))
        return reasons

    def _load(self, start: int) -> tuple[Tensor, dict[int, str]]:
        """The photos of one chunk, as the view has them, and why some are black."""
        records = self.records[start : start + self.chunk]
        if self.view is None:
            return load_records(records, self.trunk.encoder.image_spec)
        images, bad = load_records(records, self.view.spec)
        return self.view(images, range(start, start + len(images))), bad

    def _store(self, start: int, features: Features, bad: dict[int, str]) -> None:
        """Write one chunk: the features first, its state when they are on the disk."""
        rows = min(self.chunk, len(self.records) - start)
        given = {name: t for name, t in features._asdict().items() if t is not None}
        shapes = {name: tuple(t.shape) for name, t in given.items()}
        if shapes != {name: (rows, *shape) for name, shape in self.shapes.items()}:
            raise ArgumentError(f"the encoder's features change their shapes: {shapes}, after {self.shapes} a photo")
        state = np.full(rows, _DONE, np.uint8)
        state[list(bad)] = _BAD
        for name, tensor in given.items():
            kind = _NUMPY[_DTYPES[name]]
            with np.errstate(over="ignore"):
                values = tensor.float().numpy().astype(kind)
            values[state == _BAD] = 0
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values.reshape(rows, -1)).all(axis=1))[0])
                raise RunError(
                    f"the encoder's {name} features of {self.records[start + row].id} can't be kept in half "
                    "precision: a value is NaN or beyond 65504; check its weights, or train without the cache"
                )
            _write(_path(self.folder, name), start * values[0].nbytes, values.tobytes())
        _write(_path(self.folder, "state"), start, state.tobytes())
        self.state[start : start + rows] = state


def _ahead(pool: ThreadPoolExecutor, load: Callable[[int], Any], starts: Iterator[int]) -> Iterator[Any]:
    """Load in the pool, one chunk ahead of the one that is handed out."""
    coming = [pool.submit(load, next(starts))]
    for start in starts:
        result = coming.pop().result()
        coming.append(pool.submit(load, start))
        yield result
    yield coming.pop().result()


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.{_DTYPES.get(name, 'u8')}"


def _write(path: Path, at: int, data: bytes) -> None:
    """Write into a file that is there, and wait until the disk has it."""
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _human(size: float) -> str:
    units = ("B", "KB", "MB", "GB")
    for unit in units:
        if size < 999.5 or unit == units[-1]:
            break
        size /= 1000
    return f"{size:.1f} {unit}" if unit == "GB" else f"{size:.0f} {unit}"
