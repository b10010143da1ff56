"""Augmentation for a frozen encoder: features of several views of each photo, kept and taken in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from showtell.data import Augmentation, Augmented, Batch, CachedInputs, FeatureCache, ImageInputs, read_dataset
from showtell.data.inputs import CachedViews
from showtell.errors import ArgumentError
from showtell.protocols import Features
from showtell.ranks import ALONE
from showtell.testing import tiny_captioner
from showtell.training import TrainResult, load_recipe, train
from showtell.training.feeding import Fed, feed
from test_run import StopError, captioner_bytes, write_photos

PLAN = Augmentation(flip=0.5, crop_area=0.5, squash=1.2, brightness=0.3)
OVERRIDES: dict[str, Any] = {
    "views": 3, "flip": 0.5, "crop_area": 0.5, "squash": 1.2, "brightness": 0.3, "photos": 4, "seed": 7,
}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos")


def fed(photos: Path, folder: Path, said: list[str], **overrides: Any) -> Fed:
    captioner = tiny_captioner()
    captioner.encoder.requires_grad_(False)
    dataset = read_dataset(photos)
    plan = load_recipe("default").changed({**OVERRIDES, **overrides})
    return feed(
        plan, folder, captioner, dataset.split("train"), dataset.split("val"),
        skip_bad=False, say=said.append, show=False, ranks=ALONE,
    )  # fmt: skip


def pooled(batch: Batch) -> torch.Tensor:
    assert isinstance(batch.inputs, Features)
    assert batch.inputs.pooled is not None
    return batch.inputs.pooled


def test_each_epoch_sees_the_features_of_its_view_and_validation_those_of_the_photos(
    photos: Path, tmp_path: Path
) -> None:
    made = fed(photos, tmp_path / "features", [])
    encoder = tiny_captioner().encoder.eval()
    dataset = read_dataset(photos)
    records = list(dataset.split("train"))
    augmented = Augmented(PLAN, records, encoder.image_spec, seed=7)
    plain = ImageInputs(records, augmented.spec)
    per_epoch = made.train.per_epoch
    seen = set()
    for epoch in range(5):
        for number in range(epoch * per_epoch, (epoch + 1) * per_epoch):
            batch = made.train.batch(number)
            with torch.no_grad():
                wanted = encoder.trunk(augmented(plain(batch.photos), batch.photos, epoch=epoch % 3)).pooled
            torch.testing.assert_close(pooled(batch), wanted, atol=1e-3, rtol=1e-2)
            seen.add(batch.photos)
    assert len({photo for some in seen for photo in some}) == len(records)
    views = [made.train.batch(epoch * per_epoch) for epoch in (0, 1, 2)]
    assert len({pooled(view).sum().item() for view in views}) == 3

    val = made.val.batch(0)
    pixels = ImageInputs(made.judged, encoder.image_spec)(val.photos)
    with torch.no_grad():
        torch.testing.assert_close(pooled(val), encoder.trunk(pixels).pooled, atol=1e-3, rtol=1e-2)


def test_views_are_encoded_once_and_anew_where_they_would_look_otherwise(photos: Path, tmp_path: Path) -> None:
    def written(**overrides: Any) -> list[str]:
        said: list[str] = []
        fed(photos, tmp_path / "features", said, **overrides)
        return [text for text in said if "of features in" in text]

    assert len(written()) == 4
    assert written() == []
    assert written(views=2) == []
    assert len(written(views=4)) == 1
    assert len(written(seed=8)) == 3
    assert len(written(seed=8, flip=0.2)) == 3
    assert len(written(seed=8, flip=0.2, flip_guard=["left"])) == 3


def test_an_interrupted_run_with_views_continues_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    def go(folder: str, say: Callable[[str], None] = str) -> TrainResult:
        return train(
            read_dataset(photos), tmp_path / folder, overrides={**OVERRIDES, "min_steps": 4, "epochs": 2},
            init=None, encoder=tiny_captioner().encoder, show=False, threads=1, say=say,
        )  # fmt: skip

    def say(text: str) -> None:
        if "step 3 " in text:
            raise StopError

    whole = go("whole")
    with pytest.raises(StopError):
        go("stopped", say)
    assert (tmp_path / "stopped" / "features" / "view-2" / "meta.json").is_file()
    assert go("stopped").best_score == whole.best_score
    assert captioner_bytes(tmp_path / "stopped") == captioner_bytes(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"views": 0}, r"views = 4"),
        ({"flip": 0.0, "crop_area": 1.0, "squash": 1.0, "brightness": 0.0}, "equal copies"),
    ],
)
def test_settings_that_go_nowhere_are_refused(
    overrides: dict[str, Any], message: str, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=message):
        fed(photos, tmp_path / "features", [], **overrides)
    assert not (tmp_path / "features").exists()


def test_views_of_an_encoder_that_trains_are_refused(photos: Path, tmp_path: Path) -> None:
    dataset, trained = read_dataset(photos), tiny_captioner()
    trained.encoder.requires_grad_(True)
    with pytest.raises(ArgumentError, match="set views to 0"):
        feed(
            load_recipe("default").changed(OVERRIDES), tmp_path, trained, dataset.split("train"),
            dataset.split("val"), skip_bad=False, say=str, show=False, ranks=ALONE,
        )  # fmt: skip


@pytest.mark.parametrize("views", [-1, 1001, 1.5, True])
def test_a_number_of_views_that_is_none_is_refused(views: Any) -> None:
    with pytest.raises(ArgumentError, match="views"):
        load_recipe("default").changed({"views": views})


def test_a_view_is_of_the_records_it_was_made_for(photos: Path, tmp_path: Path) -> None:
    records = list(read_dataset(photos).split("train"))
    encoder = tiny_captioner().encoder.requires_grad_(False)
    one, other = (Augmented(PLAN, records, encoder.image_spec, seed=seed).view(0) for seed in (0, 1))
    assert one.key() == Augmented(PLAN, records, encoder.image_spec, seed=0).view(0).key()
    assert one.key() != other.key() != one._replace(epoch=1).key() != one.key()
    guarded = [replace(records[0], captions=("on the left",)), *records[1:]]
    assert Augmented(PLAN, guarded, encoder.image_spec, seed=0).view(0).key() != one.key()
    cache = FeatureCache.build(tmp_path / "c", encoder, records, view=one, say=lambda text: None)
    assert len(CachedViews([CachedInputs(cache, range(len(records)))])([0, 1]).pooled) == 2
