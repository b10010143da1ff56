"""The feature cache: features of this encoder and these photos only, the same bytes however often it was killed."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from showtell.data import CachedInputs, FeatureCache, ImageInputs, Record
from showtell.data import cache as cache_module
from showtell.errors import ArgumentError, DataError, RunError
from showtell.image_spec import ImageSpec
from showtell.images import load_image
from showtell.protocols import Features


class Norm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images - self.mean


class Split(nn.Module):
    """A frozen trunk and a trainable head, with tensors in awkward places."""

    feature_dim = 4
    image_spec = ImageSpec(6, 6)

    def __init__(self, grid: bool = False, head: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.options: dict[str, Any] = {"grid": grid, "head": head}
        self.norm = Norm()
        self.conv = nn.Conv2d(3, 5, 3, stride=2)
        self.trunk_bn = nn.BatchNorm2d(5)
        self.shift = nn.Parameter(torch.randn(5))
        self.requires_grad_(False)
        self.linear = nn.Linear(5, head)
        self.head_bn = nn.BatchNorm1d(head)
        self.scale = nn.Parameter(torch.ones(head))
        self.calls: list[int] = []

    def config(self) -> dict[str, Any]:
        return dict(self.options)

    def trunk(self, images: Tensor) -> Features:
        self.calls.append(len(images))
        maps = self.trunk_bn(self.conv(self.norm(images))).flatten(2).transpose(1, 2) + self.shift
        if not self.options["grid"]:
            return Features(maps.mean(1))
        regions = maps.shape[1]
        mask = torch.arange(regions) < 1 + (images.mean((1, 2, 3)) * 3).long()[:, None]
        return Features(maps.mean(1), maps, mask, torch.full((len(images), regions, 4), 1 / 3))

    def head(self, features: Features) -> Features:
        return Features(self.head_bn(self.linear(features.pooled)) * self.scale)

    def forward(self, images: Tensor) -> Features:
        return self.head(self.trunk(images))


class Whole(nn.Module):
    feature_dim = 3
    image_spec = ImageSpec(5, 5)

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Features:
        return Features(images.mean((2, 3)) * self.factor)


def make_records(folder: Path, count: int) -> list[Record]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    records = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).save(path)
        records.append(Record(path.name, path, ("a photo",), "train", f"captions.csv:{i + 2}"))
    return records


class Place(NamedTuple):
    folder: Path
    records: list[Record]
    said: list[str]

    def build(self, encoder: Any, records: Sequence[Record] | None = None, **options: Any) -> FeatureCache:
        options = {"batch_size": 4, "show": False, "say": self.said.append, **options}
        return FeatureCache.build(self.folder, encoder, self.records if records is None else records, **options)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "features", make_records(tmp_path / "photos", 10), [])


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def direct(encoder: Any, records: Sequence[Record]) -> Features:
    with torch.inference_mode():
        run = getattr(encoder.eval(), "trunk", encoder)
        return run(torch.stack([load_image(record.image, encoder.image_spec) for record in records]))


# --- what is stored ---------------------------------------------------------------------------------------------


def test_the_features_are_the_trunks_in_half_precision_in_any_order(place: Place) -> None:
    encoder = Split(grid=True)
    cache = place.build(encoder)
    order = [7, 0, 9, 9]
    given, expected = cache.features(order), direct(encoder, [place.records[i] for i in order])
    assert given.grid is not None
    assert given.pooled.dtype == given.grid.dtype == torch.float32
    torch.testing.assert_close(given.pooled, expected.pooled.half().float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(given.grid, expected.grid.half().float(), rtol=0, atol=1e-3)
    assert given.mask is not None
    assert given.mask.dtype == torch.bool
    assert torch.equal(given.mask, expected.mask)
    assert torch.equal(given.boxes, expected.boxes)
    assert len(cache) == 10
    assert cache.split
    assert cache.bad == frozenset()
    assert cache.features([]).pooled.shape == (0, 5)
    assert (place.folder / "grid.f16").stat().st_size == 10 * 4 * 5 * 2


def test_an_encoder_without_a_head_is_cached_whole(place: Place) -> None:
    encoder = Whole()
    cache = place.build(encoder)
    assert not cache.split
    torch.testing.assert_close(
        cache.features([3]).pooled, direct(encoder, place.records[3:4]).pooled, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("positions", [[10], [-1], [[1]]])
def test_positions_beyond_the_records_are_refused(place: Place, positions: Any) -> None:
    with pytest.raises(ArgumentError, match=r"0\.\.9"):
        place.build(Whole()).features(positions)


def test_the_size_is_said_before_anything_is_written(place: Place) -> None:
    seen: list[bool] = []
    place.build(
        Split(), say=lambda text: (place.said.append(text), seen.append((place.folder / "pooled.f16").exists()))
    )  # type: ignore[func-returns-value]
    assert place.said == [f"10 photos: 430 B of features in {place.folder}"]
    assert seen == [False]


def test_a_full_disk_is_refused_before_anything_is_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100))  # type: ignore[attr-defined]
    with pytest.raises(RunError, match=r"430 B .* has 100 B left"):
        place.build(Split())
    assert list(place.folder.iterdir()) == []


def test_the_encoder_is_left_as_it_was_and_runs_in_evaluation_mode(place: Place) -> None:
    encoder = Split().train()
    encoder.trunk_bn.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    cache = place.build(encoder)
    assert encoder.training
    assert encoder.head_bn.training
    assert not encoder.trunk_bn.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert torch.equal(cache.features([0]).pooled, place.build(Split()).features([0]).pooled)


# --- whose features ---------------------------------------------------------------------------------------------


def test_a_trainable_trunk_is_refused_by_the_names_of_its_parameters(place: Place) -> None:
    encoder = Split()
    encoder.conv.requires_grad_(True)
    with pytest.raises(ArgumentError, match=r"2 of its parameters are trainable \(conv.weight, conv.bias\)"):
        place.build(encoder)
    whole = Whole().requires_grad_(True)
    with pytest.raises(ArgumentError, match="factor"):
        place.build(whole)
    assert not place.folder.exists()


def test_a_finished_cache_opens_without_encoding_though_the_head_was_trained_meanwhile(place: Place) -> None:
    encoder = Split()
    place.build(encoder)
    before = digests(place.folder)
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=1.0)
    encoder.head_bn.train()
    encoder.head(Features(torch.randn(4, 5))).pooled.square().sum().backward()
    optimizer.step()
    encoder.calls.clear()
    place.said.clear()
    place.build(encoder, batch_size=7)
    assert encoder.calls == [1], "the black photo that tells the shapes"
    assert place.said == []
    assert digests(place.folder) == before


@pytest.mark.parametrize("part", ["conv", "shift", "running_mean", "non-persistent", "spec", "config"])
def test_another_trunk_means_encoding_again_and_this_is_said(place: Place, part: str) -> None:
    place.build(Split())
    encoder = Split()
    if part == "conv":
        encoder.conv.weight[0, 0, 0, 0] += 1e-3
    elif part == "shift":
        encoder.shift[0] += 1
    elif part == "running_mean":
        encoder.trunk_bn.running_mean[0] += 1  # type: ignore[index]
    elif part == "non-persistent":
        encoder.norm.mean += 0.1
    elif part == "spec":
        encoder.image_spec = ImageSpec(6, 6, interpolation="bicubic")
    else:
        encoder.options["stride"] = 3
    place.said.clear()
    cache = place.build(encoder)
    assert "the encoder is another" in place.said[0]
    torch.testing.assert_close(
        cache.features(range(10)).pooled, direct(encoder, place.records).pooled, rtol=0, atol=2e-3
    )


def test_the_heads_own_options_do_not_matter(place: Place) -> None:
    place.build(Split(head=4))
    place.said.clear()
    place.build(Split(head=2))
    assert place.said == []


def test_other_photos_mean_encoding_again_and_foreign_files_stay(place: Place) -> None:
    place.build(Split())
    (place.folder / "diary.txt").write_text("mine")
    place.said.clear()
    cache = place.build(Split(), place.records[:-1])
    assert "the photos are others" in place.said[0]
    assert len(cache) == 9
    reordered = place.records[::-1]
    place.said.clear()
    cache = place.build(Split(), reordered)
    assert "the photos are others" in place.said[0]
    torch.testing.assert_close(cache.features(range(10)).pooled, direct(Split(), reordered).pooled, rtol=0, atol=2e-3)
    assert (place.folder / "diary.txt").read_text() == "mine"


def test_of_a_changed_photo_only_its_chunk_is_encoded_again(place: Place) -> None:
    place.build(Split())
    Image.new("RGB", (30, 30), "red").save(place.records[5].image, "PNG")
    encoder = Split()
    cache = place.build(encoder)
    assert encoder.calls == [1, 4]
    assert "1 photos have changed" in place.said[-2]
    torch.testing.assert_close(
        cache.features(range(10)).pooled, direct(encoder, place.records).pooled, rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("name", ["pooled.f16", "state.u8", "photos.u8", "meta.json"])
def test_damaged_files_are_not_used(place: Place, name: str) -> None:
    encoder = Split()
    place.build(encoder)
    good = digests(place.folder)
    path = place.folder / name
    for harm in (path.unlink, lambda: path.write_bytes(b"{"), lambda: path.write_bytes(b'{"chunk": 1}')):
        harm()
        place.build(encoder)
        assert digests(place.folder) == good


# --- photos that can't be read ----------------------------------------------------------------------------------


def test_bad_photos_are_all_named_after_all_others_were_encoded(place: Place) -> None:
    good = place.build(Split()).features(range(10)).pooled
    shutil.rmtree(place.folder)
    place.records[2].image.write_bytes(b"no photo")
    place.records[7].image.unlink()
    with pytest.raises(DataError, match=r"2 of 10 photos(?s:.*)2\.png.*\n.*7\.png"):
        place.build(Split())
    encoder = Split()
    with pytest.raises(DataError, match=r"2 of 10"):
        place.build(encoder)
    assert encoder.calls == [1, 4, 4], "the two chunks with bad photos are tried again, the third isn't"

    place.said.clear()
    cache = place.build(Split(), skip_bad=True)
    assert cache.bad == {2, 7}
    assert place.build(Split(), skip_bad=True).bad == {2, 7}
    rest = [i for i in range(10) if i not in cache.bad]
    assert torch.equal(cache.features(rest).pooled, good[rest])
    assert not cache.features([2, 7]).pooled.any()

    Image.new("RGB", (6, 6), "blue").save(place.records[2].image)
    Image.new("RGB", (6, 6), "blue").save(place.records[7].image)
    assert place.build(Split()).bad == frozenset()


def test_skipped_photos_are_said_with_their_reasons(place: Place) -> None:
    place.records[2].image.write_bytes(b"no photo")
    place.build(Split(), skip_bad=True)
    assert "1 photos can't be read and are left out" in place.said[-1]
    assert "2.png" in place.said[-1]


def test_features_too_large_for_half_precision_stop_the_run_by_name(place: Place) -> None:
    encoder = Whole()
    encoder.factor += 1e6
    with pytest.raises(RunError, match=r"pooled features of 0\.png.*half precision"):
        place.build(encoder)


def test_no_records_are_refused(place: Place) -> None:
    with pytest.raises(DataError, match="no photos"):
        place.build(Whole(), [])


# --- interruptions ----------------------------------------------------------------------------------------------


def test_a_run_that_dies_in_any_write_goes_on_to_the_same_bytes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.records[5].image.write_bytes(b"no photo")
    place.build(Split(grid=True), skip_bad=True)
    good = digests(place.folder)
    write = cache_module._write

    class Death(BaseException):
        pass

    # 1 write of the photos' hashes, then 4 arrays and the state for each of 3 chunks.
    for deadly in range(1, 1 + 1 + 3 * 5):
        shutil.rmtree(place.folder)
        left = deadly

        def dying(path: Path, at: int, data: bytes) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                write(path, at, data[: len(data) // 2])
                raise Death
            write(path, at, data)

        monkeypatch.setattr(cache_module, "_write", dying)
        with pytest.raises(Death):
            place.build(Split(grid=True), skip_bad=True)
        monkeypatch.setattr(cache_module, "_write", write)
        place.build(Split(grid=True), skip_bad=True, batch_size=4 if deadly < 2 else 3)
        assert digests(place.folder) == good, deadly


def test_an_unfinished_cache_keeps_the_chunks_it_began_with(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Split()
    store = cache_module._Work._store

    def dying(self: Any, start: int, *rest: Any) -> None:
        if start == 4:
            raise KeyboardInterrupt
        store(self, start, *rest)

    monkeypatch.setattr(cache_module._Work, "_store", dying)
    with pytest.raises(KeyboardInterrupt):
        place.build(encoder)
    monkeypatch.undo()
    encoder.calls.clear()
    place.said.clear()
    place.build(encoder, batch_size=3)
    assert encoder.calls == [1, 4, 2]
    assert place.said == [f"4 of 10 photos are encoded in {place.folder}"]


KILLED = """
import os, signal, sys, time, json
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
from test_cache import Split, make_records
from showtell.data import FeatureCache

torch.set_num_threads(1)
place, delays = Path(sys.argv[2]), json.loads(sys.argv[3])

class Slow(Split):
    def trunk(self, images):
        time.sleep(0.004)
        return super().trunk(images)

def build(folder):
    pid = os.fork()
    if pid == 0:
        try:
            FeatureCache.build(folder, Slow(grid=True), records, batch_size=3, show=False, say=lambda text: None)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return pid

records = make_records(place / "photos", 120)
assert os.waitpid(build(place / "undisturbed"), 0)[1] == 0
killed = 0
for delay in delays:
    pid = build(place / "disturbed")
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    killed += os.waitpid(pid, 0)[1] == signal.SIGKILL
assert os.waitpid(build(place / "disturbed"), 0)[1] == 0
print(killed)
"""


def kill_often(folder: Path, times: int, longest: float) -> None:
    seed = random.randrange(10**6)
    delays = [random.Random(seed + i).uniform(0, longest) for i in range(times)]
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", KILLED, here, str(folder), json.dumps(delays)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"seed {seed}: {done.stdout} {done.stderr}"
    assert digests(folder / "disturbed") == digests(folder / "undisturbed"), f"seed {seed}"


@pytest.mark.slow
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    kill_often(tmp_path, 3, 0.2)


@pytest.mark.slow
def test_a_run_killed_twenty_times_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    kill_often(tmp_path, 20, 0.1)


# --- inputs of batches ------------------------------------------------------------------------------------------


def test_cached_inputs_are_rows_of_the_cache(place: Place) -> None:
    cache = place.build(Split())
    inputs = CachedInputs(cache, [9, 3, 5])
    assert torch.equal(inputs([2, 0]).pooled, cache.features([5, 9]).pooled)


def test_image_inputs_are_the_photos_and_all_bad_ones_are_named(place: Place) -> None:
    inputs = ImageInputs(place.records, ImageSpec(6, 6))
    assert torch.equal(inputs([4, 1])[1], load_image(place.records[1].image, ImageSpec(6, 6)))
    place.records[1].image.write_bytes(b"no photo")
    place.records[4].image.unlink()
    with pytest.raises(DataError, match=r"4\.png.*\n.*1\.png"):
        inputs([4, 0, 1])
