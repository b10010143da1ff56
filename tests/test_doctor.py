"""The doctor names what was broken on purpose, and nothing else; a healthy captioner is clean."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn

import showtell
from picture_world import SmallEncoder, learned, scene, world
from showtell import Captioner, Dataset, Features, ImageSpec, Record
from showtell.cli import main
from showtell.decoders import AttentionLSTMDecoder, LSTMDecoder
from showtell.doctor import CODES, Diagnosis, diagnose
from showtell.doctor.alignment import same_photo
from showtell.doctor.copies import PRINT_SIZE, Copy, Prints, find_copies, groups_of
from showtell.doctor.intervals import difference, mean_interval
from showtell.doctor.losses import losses_of, words_of
from showtell.doctor.seeing import PROBES
from showtell.encoders.precomputed import PrecomputedFeatures
from showtell.evaluation import teacher_forced_loss
from showtell.images import load_images
from showtell.testing import tiny_captioner
from showtell.vocabulary import Vocabulary

Break = Callable[[Captioner], None]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return world(450, 100)


@pytest.fixture(scope="module")
def healthy(data: Dataset) -> Captioner:
    return learned(data, steps=180)


@pytest.fixture(scope="module")
def shown(data: Dataset) -> Dataset:
    """A part of it that is looked through in half a second."""
    return Dataset(data.split("train")[:100] + data.split("val"))


def codes(diagnosis: Diagnosis) -> list[str]:
    return [finding.code for finding in diagnosis.findings]


def check(diagnosis: Diagnosis, code: str) -> Any:
    return next(each for each in diagnosis.checks if each.code == code)


def value(diagnosis: Diagnosis, code: str, name: str) -> float:
    return float(next(m.value for m in check(diagnosis, code).measures if name in m.name))


# --- captioners -----------------------------------------------------------------------------------------------------


def test_a_healthy_captioner_is_clean_and_every_check_shows_its_numbers(healthy: Captioner, shown: Dataset) -> None:
    healthy.train()
    before = torch.random.get_rng_state()
    diagnosis = diagnose(healthy, shown)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(module.training for module in healthy.modules())
    healthy.eval()
    assert diagnosis.healthy
    assert [each.code for each in diagnosis.checks] == list(CODES)
    assert {each.outcome for each in diagnosis.checks} == {"clean"}
    assert all(any(c.isdigit() for c in each.result) and each.measures for each in diagnosis.checks)
    assert not any(measure.broken for each in diagnosis.checks for measure in each.measures)
    assert diagnose(healthy, shown).to_rows() == diagnosis.to_rows()


def rebuilt(captioner: Captioner, **options: Any) -> None:
    """The same weights behind another preprocessing."""
    encoder = SmallEncoder(**{**captioner.encoder.config(), **options})
    encoder.load_state_dict(captioner.encoder.state_dict())  # type: ignore[attr-defined]
    captioner.encoder = encoder.eval()


def blind(captioner: Captioner) -> None:
    captioner.decoder.projection.weight.zero_()  # type: ignore[attr-defined]


def other_weights(captioner: Captioner) -> None:
    """Random weights whose features vary as much as the right ones: captions differ and mean nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = SmallEncoder().train()
        pictures = load_images([record.image for record in world(60, 0, seed=9).records], encoder.image_spec)
        for _ in range(30):
            encoder(pictures)
    captioner.encoder = encoder.eval()


def never_ending(captioner: Captioner) -> None:
    captioner.decoder.output.bias[captioner.vocabulary.end_id] = -30  # type: ignore[attr-defined]


def ending_early(captioner: Captioner) -> None:
    captioner.decoder.output.bias[captioner.vocabulary.end_id] += 9  # type: ignore[attr-defined]


def saying_unknown(captioner: Captioner) -> None:
    captioner.decoder.output.bias[captioner.vocabulary.unk_id] += 30  # type: ignore[attr-defined]


def not_numbers(captioner: Captioner) -> None:
    captioner.decoder.output.weight[5, 0] = math.nan  # type: ignore[attr-defined]


# What is named first, and what may follow from it.
BREAKS: dict[str, tuple[Break, str, set[str]]] = {
    "the decoder doesn't read the photo": (blind, "photo-ignored", {"same-caption"}),
    "the encoder has other weights": (other_weights, "photo-ignored", set()),
    "red and blue swapped": (lambda c: rebuilt(c, swapped=True), "wrong-preprocessing", set()),
    "not normalised": (lambda c: rebuilt(c, plain=True), "wrong-preprocessing", {"same-caption"}),
    "values 255 times too small": (
        lambda c: rebuilt(c, factor=1 / 255),
        "wrong-preprocessing",
        {"photo-ignored", "same-caption"},
    ),
    "it never ends": (never_ending, "bad-lengths", set()),
    "it ends too early": (ending_early, "bad-lengths", set()),
    "it wants to say <unk>": (saying_unknown, "unknown-words", set()),
    "a weight is NaN": (not_numbers, "broken-weights", set()),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_was_broken_is_named(name: str, healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        BREAKS[name][0](broken)
    diagnosis = diagnose(broken, shown)
    _, cause, effects = BREAKS[name]
    assert codes(diagnosis)[0] == cause, str(diagnosis)
    assert set(codes(diagnosis)[1:]) <= effects, str(diagnosis)
    for finding in diagnosis.findings:
        assert finding.title
        assert any(c.isdigit() for c in finding.numbers)
        assert finding.why
        assert finding.remedy
        assert check(diagnosis, finding.code).outcome == "found"
    assert all(f"mend {cause}" in finding.remedy for finding in diagnosis.findings[1:])
    probes = {
        "red and blue swapped": "red and blue swapped",
        "not normalised": "normalised once more with ImageNet's",
        "values 255 times too small": "values times 255",
    }
    if name in probes:
        assert probes[name] in diagnosis.findings[0].title


def test_six_broken_captioners_are_named_by_six_causes_and_the_healthy_one_is_clean(
    data: Dataset, healthy: Captioner, shown: Dataset
) -> None:
    few = Dataset(data.split("train")[:40] + data.split("val"))
    assert diagnose(healthy, shown).healthy
    named = [codes(diagnose(learned(few, steps=100), few))[0]]
    for name in ("the decoder doesn't read the photo", "red and blue swapped", "it wants to say <unk>", "it never ends",
                 "a weight is NaN"):  # fmt: skip
        broken = copy.deepcopy(healthy)
        with torch.no_grad():
            BREAKS[name][0](broken)
        named.append(codes(diagnose(broken, shown))[0])
    assert named == [
        "train-val-gap", "photo-ignored", "wrong-preprocessing", "unknown-words", "bad-lengths", "broken-weights",
    ]  # fmt: skip


def test_captions_vary_where_the_encoder_has_other_weights(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        other_weights(broken)
    diagnosis = diagnose(broken, shown)
    assert value(diagnosis, "same-caption", "same caption") < 0.2
    assert value(diagnosis, "photo-ignored", "right one beats") < 0.55


def test_with_broken_weights_nothing_else_is_tried(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        not_numbers(broken)
    diagnosis = diagnose(broken, shown)
    assert check(diagnosis, "broken-weights").finding.details == ("decoder.output.weight",)
    not_run = {each.code for each in diagnosis.checks if each.outcome == "not run"}
    assert not_run == set(CODES) - {"unreadable", "split-leak", "broken-weights"}


def test_finite_weights_that_compute_nan_are_broken_too(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        broken.encoder.norm.running_var.fill_(-1.0)  # type: ignore[attr-defined]
    assert codes(diagnose(broken, shown)) == ["broken-weights"]
    with torch.no_grad():
        broken = copy.deepcopy(healthy)
        broken.decoder.output.bias.fill_(1e38)  # type: ignore[attr-defined]
        broken.decoder.output.weight.fill_(3e38)  # type: ignore[attr-defined]
    assert codes(diagnose(broken, shown)) == ["broken-weights"]


class OthersPhotos(LSTMDecoder):
    """Reads the right photo in teacher forcing and the next one's when it writes."""

    def step(self, tokens: Tensor, state: Any, memory: Any) -> Any:
        return super().step(tokens, state, {name: tensor.roll(1, 0) for name, tensor in memory.items()})


def test_captions_that_go_to_the_wrong_photo_are_found_though_the_loss_is_right(
    healthy: Captioner, shown: Dataset
) -> None:
    broken = copy.deepcopy(healthy)
    decoder = OthersPhotos(**healthy.decoder.config())
    decoder.load_state_dict(healthy.decoder.state_dict())  # type: ignore[attr-defined]
    broken.decoder = decoder.eval()
    diagnosis = diagnose(broken, shown)
    assert codes(diagnosis) == ["photo-ignored"]
    assert "check_decoder" in diagnosis.findings[0].remedy
    assert value(diagnosis, "photo-ignored", "right one beats") > 0.9


def test_a_vocabulary_that_is_too_small_is_named_first(data: Dataset, shown: Dataset) -> None:
    captioner = learned(data, steps=60, max_size=14)
    diagnosis = diagnose(captioner, shown)
    assert codes(diagnosis)[0] == "unknown-words"
    texts = [caption for record in shown.split("val") for caption in record.captions]
    words = [word for text in texts for word in text.split()]
    missing = sum(word not in captioner.vocabulary.words for word in words) / len(words)
    assert value(diagnosis, "unknown-words", "unknown") == pytest.approx(missing)
    assert value(diagnosis, "unknown-words", "would say") > 0.05
    assert ": " in diagnosis.findings[0].details[0]


def test_photos_learned_by_heart_are_found(data: Dataset) -> None:
    few = Dataset(data.split("train")[:40] + data.split("val"))
    captioner = learned(few, steps=100)
    diagnosis = diagnose(captioner, few)
    assert codes(diagnosis) == ["train-val-gap"], str(diagnosis)
    # The photos of val alone show no other fault.
    assert codes(diagnose(captioner, Dataset(few.split("val")))) == []


# --- data -----------------------------------------------------------------------------------------------------------


def test_one_split_alone_is_enough_and_what_cant_be_checked_says_why(healthy: Captioner, shown: Dataset) -> None:
    for split in ("train", "val", "test"):
        records = tuple(replace(record, split=split) for record in shown.split("val")[:50])
        diagnosis = diagnose(healthy, Dataset(records))
        assert diagnosis.healthy
        not_run = {each.code: each.result for each in diagnosis.checks if each.outcome == "not run"}
        assert set(not_run) == {"split-leak", "train-val-gap"}
        assert "no other split" in not_run["split-leak"]
        assert "train" in not_run["train-val-gap"]


def test_a_broken_captioner_is_found_without_photos_of_train(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    rebuilt(broken, swapped=True)
    assert codes(diagnose(broken, Dataset(shown.split("val")))) == ["wrong-preprocessing"]


def test_a_handful_of_photos_is_never_judged(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        blind(broken)
    for count in (1, 2, 19):
        diagnosis = diagnose(broken, Dataset(shown.split("val")[:count]))
        assert diagnosis.healthy
        assert "at least 20" in check(diagnosis, "photo-ignored").result
        judged = {each.code for each in diagnosis.checks if each.outcome != "not run"}
        assert judged == {"unreadable", "broken-weights"}
    assert codes(diagnose(broken, shown, photos=20)) == ["photo-ignored", "same-caption"]


def test_people_who_write_the_same_caption_again_and_again_are_no_fault(healthy: Captioner, shown: Dataset) -> None:
    broken = copy.deepcopy(healthy)
    with torch.no_grad():
        blind(broken)
    said = str(broken.caption(shown.records[0].image))
    records = tuple(replace(record, captions=(said,)) for record in shown.split("val"))
    assert "same-caption" not in codes(diagnose(broken, Dataset(records)))


def test_the_sample_is_chosen_by_the_seed(healthy: Captioner, shown: Dataset) -> None:
    first, again, other = (diagnose(healthy, shown, photos=30, seed=seed).to_rows() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_files_that_cant_be_read_and_bad_rows_are_listed(healthy: Captioner, shown: Dataset, tmp_path: Path) -> None:
    records = []
    for number, record in enumerate(shown.split("val")):
        path = tmp_path / f"{number}.jpg"
        Image.fromarray(record.image).save(path, quality=95)
        records.append(replace(record, id=path.name, image=path, source=f"captions.csv:{number + 2}"))
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "3.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "5.jpg").write_text("<html>404</html>")
    (tmp_path / "7.jpg").unlink()
    records[9] = replace(records[9], captions=("!!!",))
    diagnosis = diagnose(healthy, Dataset(tuple(records), (showtell.Problem("captions.csv", 300, "the row is odd"),)))
    assert codes(diagnosis) == ["unreadable"]
    finding = diagnosis.findings[0]
    assert "3 photos and 2 rows" in finding.title
    assert [line.split(": ")[0] for line in finding.details] == [
        "captions.csv:5",
        "captions.csv:7",
        "captions.csv:9",
        "captions.csv:300",
        "captions.csv:11",
    ]


def test_a_dataset_of_which_no_photo_can_be_read_is_a_finding(healthy: Captioner) -> None:
    record = Record("a", b"no photo", ("a ball",), "val", "made up:1")
    diagnosis = diagnose(healthy, Dataset((record,)))
    assert codes(diagnosis) == ["unreadable"]
    assert {each.outcome for each in diagnosis.checks} == {"found", "not run"}


# --- the same photo twice -------------------------------------------------------------------------------------------


def textured(seed: int) -> Image.Image:
    """A photograph-like picture, 200 x 160: blurred noise of many sizes in three colours."""
    rng = np.random.default_rng(seed)
    total = np.zeros((160, 200, 3))
    for size in (3, 6, 12, 25, 50):
        layer = Image.fromarray(rng.integers(0, 255, (size, size, 3), dtype=np.uint8).astype(np.uint8))
        total += np.asarray(layer.resize((200, 160), Image.Resampling.BICUBIC), float) / 5
    return Image.fromarray(((total - total.min()) / (total.max() - total.min()) * 255).astype(np.uint8))


def stored(image: Image.Image, quality: int = 90) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def cut(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round(width * (1 - right)), round(height * (1 - bottom)))
    )


MIRROR = Image.Transpose.FLIP_LEFT_RIGHT
CHANGES: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "same file": (lambda im: stored(im, 95), "the same picture"),
    "stored again": (lambda im: stored(im, 30), "changed"),
    "smaller": (lambda im: stored(im.resize((100, 80))), "changed"),
    "squashed": (lambda im: stored(im.resize((128, 128))), "changed"),
    "brighter": (lambda im: stored(ImageEnhance.Brightness(im).enhance(1.2)), "changed"),
    "paler": (lambda im: stored(ImageEnhance.Contrast(im).enhance(0.7)), "changed"),
    "grey": (lambda im: stored(im.convert("L")), "changed"),
    "cut": (lambda im: stored(cut(im, 0.04, 0.05, 0.03, 0.05)), "changed"),
    "cut on one side": (lambda im: stored(cut(im, 0.08, 0, 0, 0)), "changed"),
    "mirrored": (lambda im: stored(im.transpose(MIRROR)), "mirrored"),
    "mirrored and cut": (lambda im: stored(cut(im.transpose(MIRROR), 0.04, 0.04, 0.04, 0.04), 80), "mirrored"),
}


def records_of(photos: list[tuple[str, Any]]) -> tuple[Record, ...]:
    return tuple(
        Record(f"{number}.jpg", photo, ("a ball on the grass",), split, f"captions.csv:{number + 2}")
        for number, (split, photo) in enumerate(photos)
    )


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_in_another_split_is_found_however_it_was_changed(name: str) -> None:
    change, how = CHANGES[name]
    photos = [("train", stored(textured(seed), 95)) for seed in range(12)]
    photos += [("val", stored(textured(seed), 95)) for seed in range(12, 20)]
    photos += [("val", change(textured(seed))) for seed in (2, 7, 11)]
    diagnosis = diagnose(tiny_captioner(), Dataset(records_of(photos)))
    assert codes(diagnosis)[0] == "split-leak"
    wanted = [(2, 20), (7, 21), (11, 22)]
    assert [line.rpartition(": ")[0] for line in diagnosis.findings[0].details] == [
        f"{a}.jpg (train) = {b}.jpg (val)" for a, b in wanted
    ]
    assert {line.rpartition(": ")[2] for line in diagnosis.findings[0].details} <= {how, "the same picture"}
    assert "3 of the 11 photos of val" in diagnosis.findings[0].numbers


def test_photos_that_only_look_alike_are_no_copies() -> None:
    # 300 scenes drawn of the same few shapes and colours; pictures of one colour; and the same light from above.
    rng = np.random.default_rng(3)
    photos: list[tuple[str, Any]] = [("train" if n % 2 else "val", scene(rng)[0]) for n in range(300)]
    flat = [np.full((40, 40, 3), shade, np.uint8) for shade in (0, 0, 128, 255, 255)]
    sky = np.linspace(255, 0, 64)[:, None, None] * np.ones((64, 64, 3))
    skies = [(sky + rng.normal(size=sky.shape) * 8).clip(0, 255).astype(np.uint8) for _ in range(10)]
    photos += [("val" if n % 2 else "train", photo) for n, photo in enumerate(flat + skies)]
    diagnosis = diagnose(tiny_captioner(), Dataset(records_of(photos)), photos=20)
    assert check(diagnosis, "split-leak").outcome == "clean", str(diagnosis)
    assert check(diagnosis, "split-leak").notes == ()


def test_the_same_photo_twice_in_one_split_is_a_note(healthy: Captioner, shown: Dataset) -> None:
    again = replace(shown.records[0], id="again")
    diagnosis = diagnose(healthy, Dataset((*shown.records, again)))
    assert diagnosis.healthy
    assert check(diagnosis, "split-leak").notes == ("train0 (train) = again (train): the same picture",)


def test_flat_pictures_count_as_one_only_where_the_files_bytes_are_the_same(tmp_path: Path) -> None:
    paths = []
    for name, shade in (("a.png", 200), ("b.png", 200), ("c.png", 201)):
        Image.new("RGB", (32, 32), (shade,) * 3).save(tmp_path / name)
        paths.append(tmp_path / name)
    photos = [("train", paths[0]), ("val", paths[1]), ("val", paths[2])]
    diagnosis = diagnose(tiny_captioner(), Dataset(records_of(photos)))
    assert check(diagnosis, "split-leak").finding.details == ("0.jpg (train) = 1.jpg (val): the same picture",)


def test_many_copies_of_one_photo_are_one_line() -> None:
    photo = stored(textured(1), 95)
    photos = [("train" if n % 3 else "val", photo) for n in range(60)]
    photos += [("train", stored(textured(1), 40)), ("test", stored(textured(1).transpose(MIRROR)))]
    diagnosis = diagnose(tiny_captioner(), Dataset(records_of(photos)))
    finding = check(diagnosis, "split-leak").finding
    assert len(finding.details) == 1
    assert finding.details[0].endswith("= 58 more: changed and mirrored")
    assert "20 of the 20 photos of val" in finding.numbers
    assert "1 of the 1 photos of test" in finding.numbers


def test_the_pairs_that_are_looked_at_are_those_that_every_pair_looked_at_would_find() -> None:
    pictures = [textured(seed) for seed in range(25)]
    pictures += [cut(textured(seed), 0.03, 0.02, 0.04, 0.03).transpose(MIRROR) for seed in (3, 9)]
    pictures += [ImageEnhance.Brightness(textured(seed)).enhance(0.8) for seed in (3, 4)]
    images = load_images(pictures, ImageSpec(PRINT_SIZE, PRINT_SIZE))
    small = torch.nn.functional.avg_pool2d(images, 2)
    pairs = [(a, b) for b in range(len(pictures)) for a in range(b)]
    first, second = (torch.stack([small[pair[k]] for pair in pairs]) for k in (0, 1))
    same = same_photo(first, second) | same_photo(first, second.flip(3))
    wanted = {pair for pair, yes in zip(pairs, same.tolist(), strict=True) if yes}
    found = find_copies(Prints.of(images), [None] * len(pictures))
    assert {(copy.first, copy.second) for copy in found} == wanted
    assert wanted >= {(3, 25), (9, 26), (3, 27), (4, 28)}


def test_groups_are_what_hangs_together() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pairs = {tuple(sorted(rng.choice(12, 2, replace=False).tolist())) for _ in range(int(rng.integers(0, 9)))}
        label = list(range(12))
        for _ in range(12):  # until nothing changes any more
            for a, b in pairs:
                label[a] = label[b] = min(label[a], label[b])
        wanted = [[n for n in range(12) if label[n] == each] for each in range(12)]
        found = groups_of(12, [Copy(a, b, "changed") for a, b in sorted(pairs)])
        assert sorted(found) == sorted(group for group in wanted if len(group) > 1)


# --- odd captioners and odd calls -----------------------------------------------------------------------------------


class Strict(SmallEncoder):
    """Refuses what lies outside 0..1."""

    def forward(self, images: Tensor) -> Features:
        if images.min() < 0 or images.max() > 1:
            raise showtell.ArgumentError("values outside 0..1")
        return super().forward(images)


def test_probes_that_the_encoder_refuses_are_left_out(healthy: Captioner, shown: Dataset) -> None:
    strict = copy.deepcopy(healthy)
    strict.encoder = Strict().eval()
    strict.encoder.load_state_dict(healthy.encoder.state_dict())  # type: ignore[attr-defined]
    assert diagnose(strict, shown).healthy
    strict.encoder.swapped = True
    assert codes(diagnose(strict, shown)) == ["wrong-preprocessing"]


class Wide(SmallEncoder):
    """Takes photos of 32 x 40 and sees a square of them."""

    def __init__(self) -> None:
        super().__init__()
        self.image_spec = ImageSpec(32, 40)

    def forward(self, images: Tensor) -> Features:
        assert images.shape[2:] == (32, 40)
        return super().forward(images[:, :, :, 4:36])


def test_photos_that_are_no_square_arent_turned(healthy: Captioner, shown: Dataset) -> None:
    wide = copy.deepcopy(healthy)
    wide.encoder = Wide().eval()
    # It refuses twice and half the size as well, by an error of its own.
    assert f"{len(PROBES) - 4} other ways" in check(diagnose(wide, shown), "wrong-preprocessing").result


class Stretching(SmallEncoder):
    """Takes photos of any size and is given small ones."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_spec = ImageSpec(size, size)

    def forward(self, images: Tensor) -> Features:
        return super().forward(nn.functional.interpolate(images, size=(32, 32), mode="bilinear"))


def test_photos_that_come_too_small_are_named(healthy: Captioner, shown: Dataset) -> None:
    for size, wanted in ((32, []), (4, ["wrong-preprocessing"])):
        small = copy.deepcopy(healthy)
        small.encoder = Stretching(size).eval()
        small.encoder.load_state_dict(healthy.encoder.state_dict())  # type: ignore[attr-defined]
        diagnosis = diagnose(small, shown)
        assert codes(diagnosis) == wanted, str(diagnosis)
        assert all("twice as large" in finding.title for finding in diagnosis.findings)


def test_photos_are_fetched_from_a_dataset_object(healthy: Captioner, shown: Dataset) -> None:
    rows = {
        split: [{"image": Image.fromarray(r.image), "caption": list(r.captions)} for r in shown.split(split)]
        for split in ("train", "val")
    }
    assert diagnose(healthy, showtell.from_objects(rows)).healthy


def test_a_captioner_for_precomputed_features_is_refused_in_words(shown: Dataset) -> None:
    vocabulary = Vocabulary.build(["a ball"], min_count=1)
    captioner = Captioner(PrecomputedFeatures(8), LSTMDecoder(len(vocabulary), 8), vocabulary)
    with pytest.raises(showtell.ArgumentError, match="takes precomputed features"):
        diagnose(captioner, shown)


def test_a_call_that_makes_no_sense_is_refused(healthy: Captioner, shown: Dataset) -> None:
    wrong: list[tuple[tuple[Any, Any], dict[str, Any], str]] = [
        (("model", shown), {}, "takes a showtell.Captioner"),
        ((healthy, [1]), {}, "takes a Dataset"),
        ((healthy, shown), {"split": "dev"}, "split must be one of"),
        ((healthy, shown), {"split": "test"}, "no photo of test; it has train and val"),
        ((healthy, shown), {"photos": 0}, "photos must be"),
        ((healthy, shown), {"seed": -1}, "seed must be"),
        ((healthy, shown), {"search": "best"}, "is no search"),
        ((healthy, Dataset(())), {}, "has no photo"),
    ]
    for given, options, message in wrong:
        with pytest.raises(showtell.ArgumentError, match=message):
            diagnose(*given, **options)


def test_the_bpe_vocabulary_knows_every_word(data: Dataset, shown: Dataset) -> None:
    captions = [caption for record in data.split("train") for caption in record.captions]
    vocabulary = Vocabulary.build(captions, kind="bpe", min_count=2, max_size=300)
    encoder = SmallEncoder().eval()
    decoder = LSTMDecoder(len(vocabulary), encoder.feature_dim, embed_dim=8, hidden_dim=8)
    diagnosis = diagnose(Captioner(encoder, decoder, vocabulary).eval(), shown)
    assert value(diagnosis, "unknown-words", "unknown") == 0


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """A saved captioner and a folder of 24 photos with captions, one of train being in val as well."""
    tiny_captioner().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    rows = ["image,caption,split"]
    for number in range(24):
        (data / f"{number}.jpg").write_bytes(stored(textured(number if number != 20 else 3), 90))
        rows.append(f"{number}.jpg,a dog runs on the grass,{'train' if number < 20 else 'val'}")
    (data / "captions.csv").write_text("\n".join(rows) + "\n")
    return str(tmp_path / "model"), str(data)


def test_the_command_prints_findings_then_checks_and_exits_1(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = folders
    assert main(["doctor", "--model", model, "--data", data, "--device", "cpu"]) == 1
    text = capsys.readouterr().out
    assert text.index("split-leak: 1 photo in more than one split") < text.index("clean   unreadable")
    assert "3.jpg (train) = 20.jpg (val): the same picture" in text
    assert "not run photo-ignored        val has 4 photos to look at; at least 20 are needed" in text
    assert text.endswith("1 finding\n")
    assert all(line.startswith(tuple("cfun ")) for line in text.split("\n\n")[-1].splitlines()[:-1])


def test_the_command_prints_json_lines(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    model, data = folders
    assert main(["doctor", "--model", model, "--data", data, "--format", "jsonl", "--search", "greedy"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["kind"] for row in rows] == ["finding"] + ["check"] * len(CODES)
    assert rows[0]["code"] == "split-leak"
    assert {row["outcome"] for row in rows[1:]} == {"found", "clean", "not run"}
    measure = next(row for row in rows if row["kind"] == "check" and row["code"] == "split-leak")["measures"][0]
    assert measure == {"name": "photos in two splits", "value": 1, "least": None, "most": 0}


def test_the_command_exits_0_when_nothing_is_wrong_and_2_when_it_cant_work(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = folders
    rows = [line for line in Path(data, "captions.csv").read_text().splitlines() if not line.startswith("20.")]
    Path(data, "captions.csv").write_text("\n".join(rows) + "\n")
    assert main(["doctor", "--model", model, "--data", data, "--split", "val"]) == 0
    assert "nothing wrong found" in capsys.readouterr().out
    for arguments in (["--split", "test"], ["--split", "dev"], ["--photos", "0"], ["--search", "x"]):
        assert main(["doctor", "--model", model, "--data", data, *arguments]) == 2
    assert main(["doctor", "--model", model, "--data", "nowhere"]) == 2
    assert capsys.readouterr().err.count("showtell: ") == 5


# --- numbers --------------------------------------------------------------------------------------------------------


def test_the_interval_is_students(healthy: Captioner) -> None:
    # Quantiles of t from a printed table: two-sided 99 % and 99.9 %.
    for freedom, confidence, quantile in (
        (19, 0.99, 2.861),
        (29, 0.99, 2.756),
        (120, 0.99, 2.617),
        (19, 0.999, 3.883),
        (40, 0.999, 3.551),
    ):
        values = torch.randn(freedom + 1, generator=torch.Generator().manual_seed(freedom), dtype=torch.float64)
        found = mean_interval(values, confidence)
        error = float(np.std(values.numpy(), ddof=1)) / math.sqrt(freedom + 1)
        assert found.mean == pytest.approx(float(values.mean()))
        assert (found.high - found.mean) / error == pytest.approx(quantile, abs=2e-3)
        assert found.high - found.mean == pytest.approx(found.mean - found.low)


def test_the_interval_of_a_difference_covers_the_truth_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = 0
    for _ in range(2000):
        first = torch.randn(30, generator=generator) * 2
        second = torch.randn(50, generator=generator) + 1
        found = difference(first, second)
        hits += found.low <= 1 <= found.high
    assert hits / 2000 == pytest.approx(0.99, abs=0.007)


def test_losses_photo_by_photo_add_up_to_the_teacher_forced_loss(healthy: Captioner, shown: Dataset) -> None:
    records = shown.split("val")[:37]
    words = words_of(healthy.vocabulary, records, captions=2, max_length=20)
    found = losses_of(healthy, healthy.encode([record.image for record in records]), words)
    two = [replace(record, captions=record.captions[:2]) for record in records]
    batches = showtell.Batches(
        two,
        healthy.vocabulary,
        lambda positions: load_images([two[i].image for i in positions], healthy.encoder.image_spec),
        photos=5,
        trunk=False,
    )
    assert found.mean == pytest.approx(
        teacher_forced_loss(healthy, [batches.batch(n) for n in range(batches.per_epoch)]), rel=1e-5
    )
    alone = [
        losses_of(
            healthy, healthy.encode([record.image]), words_of(healthy.vocabulary, [record], captions=2, max_length=20)
        )
        for record in records
    ]
    assert found.each.tolist() == pytest.approx([float(each.each) for each in alone], rel=1e-4)


# --- real photographs -----------------------------------------------------------------------------------------------


class Reshaped(nn.Module):
    """An encoder whose photos or features are changed on the way."""

    def __init__(self, inner: Any, photos: Callable[[Tensor], Tensor], pooled: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.photos, self.pooled = inner, photos, pooled
        self.image_spec, self.feature_dim = inner.image_spec, inner.feature_dim

    def config(self) -> dict[str, Any]:
        return {}

    def forward(self, images: Tensor) -> Features:
        found = self.inner(self.photos(images))
        grid = None if found.grid is None else self.pooled(found.grid)
        return found._replace(pooled=self.pooled(found.pooled), grid=grid)


def same(value: Tensor) -> Tensor:
    return value


ORDER = torch.randperm(288, generator=torch.Generator().manual_seed(0))


def unheard(captioner: Captioner) -> None:
    """The encoder's head says the same of every cell."""
    captioner.encoder.projection.linear.weight.zero_()  # type: ignore[attr-defined]


def few_words(captioner: Captioner) -> None:
    """Its 60 most frequent words only."""
    kept = captioner.vocabulary.words[4:64]
    vocabulary = Vocabulary.build(kept, min_count=1)
    ids = [captioner.vocabulary.id_of(word) for word in vocabulary.words]
    decoder = AttentionLSTMDecoder(**{**captioner.decoder.config(), "vocab_size": len(vocabulary)})
    state = captioner.decoder.state_dict()  # type: ignore[attr-defined]
    rows = {name: state[name][ids] for name in ("words.embedding.weight", "words.bias")}
    decoder.load_state_dict({**state, **rows})
    captioner.decoder, captioner.vocabulary = decoder.eval(), vocabulary


def without_end(captioner: Captioner) -> None:
    captioner.decoder.words.bias[2] = -30  # type: ignore[attr-defined]


def unnormalised(captioner: Captioner) -> None:
    captioner.encoder.mean.zero_()  # type: ignore[attr-defined]
    captioner.encoder.std.fill_(1.0)  # type: ignore[attr-defined]


def smaller(captioner: Captioner) -> None:
    captioner.encoder.image_spec = ImageSpec(96, 96)


def reshaped(photos: Callable[[Tensor], Tensor] = same, pooled: Callable[[Tensor], Tensor] = same) -> Break:
    def wrap(captioner: Captioner) -> None:
        captioner.encoder = Reshaped(captioner.encoder, photos, pooled).eval()

    return wrap


REAL: dict[str, tuple[Break, str, str]] = {
    "the decoder doesn't read the photo": (unheard, "same-caption", "get the caption"),
    "features in another order": (reshaped(pooled=lambda x: x[..., ORDER]), "photo-ignored", "doesn't matter"),
    "red and blue swapped": (reshaped(lambda x: x.flip(1)), "wrong-preprocessing", "red and blue swapped"),
    "not normalised": (unnormalised, "wrong-preprocessing", "normalised once more to -1..1"),
    "values 255 times too small": (reshaped(lambda x: x / 255), "wrong-preprocessing", "values times 255"),
    "inverted": (reshaped(lambda x: 1 - x), "wrong-preprocessing", "inverted"),
    "upside down": (reshaped(lambda x: x.flip(2)), "wrong-preprocessing", "upside down"),
    "photos of 96 pixels": (smaller, "wrong-preprocessing", "twice as large"),
    "sixty words": (few_words, "unknown-words", "unknown to it"),
    "it never ends": (without_end, "bad-lengths", "cut by the length limit"),
    "a weight is NaN": (lambda c: c.decoder.words.embedding.weight[9].fill_(math.nan), "broken-weights", "no numbers"),  # type: ignore[attr-defined]
}


@pytest.fixture(scope="module")
def flickr(shared: Path) -> Dataset:
    return showtell.read_dataset(shared / "flickr8k")


@pytest.mark.slow
def test_the_bundled_captioner_is_clean_on_all_of_flickr8k(flickr: Dataset) -> None:
    diagnosis = diagnose(Captioner.default(), flickr)
    assert diagnosis.healthy, str(diagnosis)
    assert {each.outcome for each in diagnosis.checks} == {"clean"}
    # Two photos of train are there twice: looked at by hand, they are.
    assert [line.rpartition(": ")[0] for line in check(diagnosis, "split-leak").notes] == [
        "1525153022_06c48dbe52.jpg (train) = 2637959357_dd64a03efa.jpg (train)",
        "2851198725_37b6027625.jpg (train) = 3050606344_af711c726c.jpg (train)",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_bundled_captioner_broken_on_purpose_is_named(name: str, flickr: Dataset) -> None:
    broken = Captioner.default()
    some = Dataset(flickr.split("train")[:150] + flickr.split("val")[:150])
    with torch.no_grad():
        REAL[name][0](broken)
    diagnosis = diagnose(broken, some, photos=120)
    _, code, title = REAL[name]
    assert code in codes(diagnosis), str(diagnosis)
    assert title in next(finding.title for finding in diagnosis.findings if finding.code == code)
    # What follows from the fault may be found too, and says what to mend first.
    causes = {finding.code for finding in diagnosis.findings if not finding.remedy.startswith("mend ")}
    assert causes <= {code, "photo-ignored"} if name == "the decoder doesn't read the photo" else causes == {code}


@pytest.mark.slow
def test_the_bundled_captioner_taught_a_hundred_photos_by_heart_is_named(flickr: Dataset) -> None:
    captioner = Captioner.default()
    some = Dataset(flickr.split("train")[:60] + flickr.split("val")[:100])
    features = captioner.encode([record.image for record in some.split("train")])
    words = words_of(captioner.vocabulary, some.split("train"), captions=5, max_length=20)
    optimizer = torch.optim.Adam(captioner.decoder.parameters(), lr=2e-3)  # type: ignore[attr-defined]
    assert features.grid is not None
    pooled, grid = features.pooled.clone(), features.grid.clone()
    for step in range(60):
        rows = slice(step % 2 * 30, step % 2 * 30 + 30)
        logits = captioner(Features(pooled[rows], grid[rows]), words.tokens[rows].flatten(0, 1)).logits
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), words.targets[rows].flatten(), reduction="none")
        loss = (losses * words.weights[rows].flatten()).sum() / words.weights[rows].sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    diagnosis = diagnose(captioner, some, photos=100)
    assert codes(diagnosis) == ["train-val-gap"], str(diagnosis)


@pytest.mark.slow
def test_photographs_stored_again_in_train_are_found_and_files_cut_short_too(
    shared: Path, flickr: Dataset, tmp_path: Path
) -> None:
    originals = sorted((shared / "flickr8k" / "originals").glob("*.jpg"))[:40]
    val = {record.id: record for record in flickr.split("val")}
    records = list(flickr.split("train")[:400] + tuple(val[path.name] for path in originals))
    wanted = set()
    for number, path in enumerate(originals[:20]):  # of full size, as they came from the camera; some mirrored
        picture = Image.open(path)
        place = tmp_path / f"copy{number}.jpg"
        (picture.transpose(MIRROR) if number % 4 == 0 else picture).save(place, quality=60 + number)
        records.append(replace(val[path.name], id=place.name, image=place, split="train"))
        wanted.add((path.name, place.name))
    for number, path in enumerate(originals[20:23]):
        place = tmp_path / f"short{number}.jpg"
        shutil.copy(path, place)
        place.write_bytes(place.read_bytes()[:5000])
        records.append(replace(val[path.name], id=place.name, image=place, split="train"))
    diagnosis = diagnose(Captioner.default(), Dataset(tuple(records)), photos=20)
    assert codes(diagnosis)[:2] == ["unreadable", "split-leak"]
    assert len(diagnosis.findings[0].details) == 3
    found = {tuple(part.partition(" (")[0] for part in line.split(" = ")) for line in diagnosis.findings[1].details}
    assert found == wanted
