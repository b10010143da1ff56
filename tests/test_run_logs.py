"""What a run writes beside its captioner: rows of numbers, a report for the browser, a model card."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from showtell import Captioner, Dataset, Record
from showtell.data import read_dataset
from showtell.encoders.licences import weights_licence
from showtell.errors import ArgumentError
from showtell.training import load_recipe, train
from showtell.training.about import about_run, environment
from showtell.training.log_writers import LoggedRun
from showtell.training.model_card import thinned
from test_report import Page, assert_it_is_safe, jpegs
from test_run import (
    SETTINGS,
    ColourEncoder,
    StopError,
    evaluations,
    go,
    metrics,
    start_captioner,
    untimed,
    write_photos,
)

SHORT = {"epochs": 1, "min_steps": 0}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "album")


@pytest.fixture(scope="module")
def run(album: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a row every step."""
    output = tmp_path_factory.mktemp("logs") / "holiday"
    go(album, output, overrides={"log_every_steps": 1}, data_license="CC BY 4.0")
    return output


# --- metrics.jsonl ----------------------------------------------------------------------------------------------------


def test_a_row_of_several_steps_is_the_mean_of_theirs(
    run: Path,
    album: Path,
    tmp_path: Path,
) -> None:
    each = {row["step"]: row for row in metrics(run) if row["kind"] == "steps"}
    assert list(each) == list(range(1, 13))
    go(album, tmp_path / "run", overrides={"log_every_steps": 5})
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "steps"]
    assert [row["step"] for row in rows] == [5, 10]
    for row in rows:
        steps = range(row["step"] - 4, row["step"] + 1)
        for key in ("train_loss", "grad_norm"):
            assert row[key] == pytest.approx(statistics.fmean(each[step][key] for step in steps), rel=1e-12)
        assert row["learning_rate"] == each[row["step"]]["learning_rate"]
        assert row["epoch"] == round(row["step"] / 3, 3)
        assert row["tokens_per_second"] > 0
        assert 0 <= row["data_share"] <= 1
    for row in evaluations(tmp_path / "run")[1:]:
        own = [each[step]["train_loss"] for step in range(row["step"] - 2, row["step"] + 1)]
        assert row["train_loss"] == pytest.approx(statistics.fmean(own), rel=1e-12)


def test_rows_of_steps_can_be_left_out(album: Path, tmp_path: Path) -> None:
    go(album, tmp_path / "run", overrides={**SHORT, "log_every_steps": 0})
    assert [row["kind"] for row in metrics(tmp_path / "run")] == ["evaluation"] * 2


@pytest.mark.parametrize("moment", ["step 3 ", "step 6 "])
def test_rows_beyond_the_checkpoint_are_cut_and_come_again(
    run: Path,
    album: Path,
    tmp_path: Path,
    moment: str,
) -> None:
    def say(text: str) -> None:
        if text.startswith(moment):
            raise StopError

    # Every second step is saved, so the killed run has rows that no checkpoint knows, the last one torn.
    settings = {**SETTINGS, "log_every_steps": 1, "save_every_steps": 2}
    with pytest.raises(StopError):
        train(album, tmp_path / "run", init=start_captioner(), overrides=settings, threads=1, show=False, say=say)
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(before.splitlines()[-1])["kind"] == "evaluation"  # each row is there at once
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "steps", "step": 7, "train_lo')
    go(album, tmp_path / "run", overrides={"log_every_steps": 1, "save_every_steps": 2})
    assert untimed(metrics(tmp_path / "run")) == untimed(metrics(run))


def test_a_row_that_two_sessions_made_is_that_of_one(run: Path, album: Path, tmp_path: Path) -> None:
    def say(text: str) -> None:
        if text.startswith("step 9 "):
            raise StopError

    settings = {**SETTINGS, "log_every_steps": 5}  # stopped in the middle of steps 6 to 10
    with pytest.raises(StopError):
        train(album, tmp_path / "run", init=start_captioner(), overrides=settings, threads=1, show=False, say=say)
    go(album, tmp_path / "run", overrides={"log_every_steps": 5})
    each = {row["step"]: row["train_loss"] for row in metrics(run) if row["kind"] == "steps"}
    found = {row["step"]: row["train_loss"] for row in metrics(tmp_path / "run") if row["kind"] == "steps"}
    means = {last: statistics.fmean(each[step] for step in range(last - 4, last + 1)) for last in (5, 10)}
    assert found == pytest.approx(means, rel=1e-12)


class FullError(Exception):
    pass


class Full:
    """A writer that fails at the first row that it is given."""

    def begin(self, run: Any, rows: Sequence[Any]) -> None:
        self.rows = list(rows)

    def write(self, row: Any) -> None:
        raise FullError

    def close(self) -> None:
        pass


def test_a_session_begins_by_cutting_the_file_to_its_checkpoint(album: Path, tmp_path: Path) -> None:
    def say(text: str) -> None:
        if text.startswith("step 6 "):
            raise StopError

    settings = {**SETTINGS, "log_every_steps": 1}
    file = tmp_path / "run" / "metrics.jsonl"
    with pytest.raises(StopError):
        train(album, tmp_path / "run", init=start_captioner(), overrides=settings, threads=1, show=False, say=say)
    with file.open("a") as opened:
        opened.write('{"kind": "steps", "step": 7, "train_lo')
    writer = Full()
    with pytest.raises(FullError):
        go(album, tmp_path / "run", overrides={"log_every_steps": 1}, log_to=[writer])
    rows = metrics(tmp_path / "run")
    assert rows[:-1] == writer.rows
    assert [(row["step"], row["kind"]) for row in rows[-3:]] == [(4, "steps"), (5, "steps"), (6, "steps")]


# --- report.html ------------------------------------------------------------------------------------------------------


def report(folder: Path) -> Page:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert_it_is_safe(page)
    return page


def test_the_report_has_the_curves_of_the_rows(run: Path) -> None:
    page = report(run)
    assert page.texts("h1") == ["holiday"]
    facts = page.texts("ul", "facts")[0]
    assert "finished" in facts
    assert "step 12 of 12" in facts
    titles = [text for text in page.texts("h3") if text]
    assert titles[:4] == ["Loss", "Validation CIDEr-D", "Validation BLEU-4", "Learning rate"]
    notes = dict(zip(titles, page.texts("p", "note"), strict=True))
    steps = [row for row in metrics(run) if row["kind"] == "steps"]
    first, last = steps[0]["train_loss"], steps[-1]["train_loss"]
    assert f"Training: from {first:.4g} at step 1 to {last:.4g} at step 12;" in notes["Loss"]
    scores = [row["val_cider_d"] for row in evaluations(run)]
    assert notes["Validation CIDEr-D"] == f"From {scores[0]:.3f} at step 0 to {scores[-1]:.3f} at step 12."
    lines = [e["@d"] for e in page.all("path", "outline") if "figcaption" not in e["inside"]]
    # Two lines of loss, then one each: as many corners as rows.
    assert titles[-2:] == ["Words a validation caption", "Validation captions that end badly"]
    assert [line.count("L") + 1 for line in lines] == [12, 5, 5, 5, *[12] * (len(lines) - 6), 5, 5]


def test_the_report_has_the_evaluations_and_marks_the_best(run: Path) -> None:
    rows = report(run).rows("evaluations")
    assert rows[0] == ["step", "epoch", "training loss", "validation loss", "CIDEr-D", "BLEU-4"]
    found = evaluations(run)
    best = json.loads((run / "run.json").read_text())["finished"]["best_step"]
    assert [row[0] for row in rows[1:]] == [f"{r['step']}{' best' * (r['step'] == best)}" for r in found]
    assert [row[4] for row in rows[1:]] == [f"{r['val_cider_d']:.3f}" for r in found]
    assert rows[1][2] == ""  # the start has no training loss


def test_the_report_shows_what_was_said_of_the_same_photos_over_time(
    run: Path,
    album: Path,
) -> None:
    page = report(run)
    records = read_dataset(album).split("val")[:6]
    assert page.texts("p", "id") == [record.id for record in records]
    assert [image.size for image in jpegs(page)] == [(20, 14)] * len(records)
    final = Captioner.from_pretrained(run / "checkpoints" / "step-00000012", encoder=ColourEncoder)
    cards = page.texts("ol", "said")
    assert len(cards) == len(records)
    for record, card in zip(records, cards, strict=True):
        assert card.startswith("step")
        assert card.endswith(final.caption(record.image).text)
    for record, references in zip(records, page.texts("ul", "references"), strict=True):
        assert references == "".join(record.captions)


def test_the_report_has_the_settings_as_a_recipe_and_no_path_of_this_machine(
    run: Path,
    album: Path,
    tmp_path: Path,
) -> None:
    page = report(run)
    (tmp_path / "again.toml").write_text(page.texts("pre")[0])
    assert load_recipe(tmp_path / "again.toml") == load_recipe("default").changed({**SETTINGS, "log_every_steps": 1})
    table = dict(row for row in page.rows("facts-table") if len(row) == 2)
    assert table["captions.csv"] == f"12 photos; SHA-256 {sha256(album / 'captions.csv')}"
    assert table["licence of the data"] == "CC BY 4.0"
    assert torch.__version__ in page.source
    for secret in (str(album), str(run), str(Path.home()), platform.node()):
        assert len(secret) < 3 or secret not in page.source, secret


def test_the_report_of_a_run_that_was_stopped_is_of_its_last_evaluation(
    album: Path,
    tmp_path: Path,
) -> None:
    def say(text: str) -> None:
        if text.startswith("step 9 "):
            raise StopError

    with pytest.raises(StopError):
        train(album, tmp_path / "run", init=start_captioner(), overrides=SETTINGS, threads=1, show=False, say=say)
    page = report(tmp_path / "run")
    assert "running" in page.texts("ul", "facts")[0]
    assert len(page.rows("evaluations")) == 1 + 3  # 0, 3 and 6
    assert not list((tmp_path / "run").glob(".*tmp"))


HOSTILE = ("<script>alert(1)</script> a wall", '"><img src=x onerror="alert(1)"> wall', "a \u202ewall\x07", "w" * 3000)


def hostile_records() -> Sequence[Record]:
    return [
        Record(f"{text[:150]}{i}", torch.full((3, 16, 16), i / 9), (text, *HOSTILE), split, f"/home/jane/<b>{i}.txt:3")
        for i, (text, split) in enumerate(zip(HOSTILE * 2, ["train"] * 4 + ["val"] * 4, strict=True))
    ]


def test_hostile_names_and_captions_break_neither_report_nor_card(tmp_path: Path) -> None:
    go(Dataset(tuple(hostile_records())), tmp_path / "<b>run", overrides={**SHORT, "save_every_steps": 100})
    page = report(tmp_path / "<b>run")
    assert page.texts("h1") == ["<b>run"]
    assert any("<script>" in text for text in page.texts("p", "id"))
    card = (tmp_path / "<b>run" / "README.md").read_text()
    for text in (card, page.source):
        assert "jane" not in text
    assert "| `<b>7.txt` | 1 | not at hand |" in card


# --- the model card ---------------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_card_is_filled_in_from_the_run(run: Path, album: Path, tmp_path: Path) -> None:
    card = (run / "README.md").read_text()
    dataset = read_dataset(album)
    assert f"| `captions.csv` | 12 | `{sha256(album / 'captions.csv')}` |" in card
    assert dataset.fingerprint() in card
    for split in ("train", "val"):
        count = len(dataset.split(split))
        assert f"{split}: {count} photos, {2 * count} captions" in card
    (tmp_path / "again.toml").write_text(card.partition("```toml\n")[2].partition("```")[0])
    assert load_recipe(tmp_path / "again.toml").values()["photos"] == 4
    curve = [line.strip("| ").split(" | ") for line in section(card, "Curve").splitlines()[2:]]
    assert [(line[0], line[-2]) for line in curve] == [
        (str(row["step"]), f"{row['val_cider_d']:.3f}") for row in evaluations(run)
    ]
    captioner = Captioner.from_pretrained(run, encoder=ColourEncoder)
    parameters = sum(p.numel() for part in (captioner.encoder, captioner.decoder) for p in part.parameters())
    assert f"{parameters:,} parameters" in section(card, "Size")
    assert f"{(run / 'model.safetensors').stat().st_size / 1e6:,.2f} MB (float16)" in section(card, "Size")
    speed = re.search(r"captions ([\d.e+]+) photos a second.*measured on (\d+) photos", section(card, "Speed"))
    assert speed
    assert float(speed[1]) > 0
    assert int(speed[2]) == len(dataset.split("val"))
    assert "- data: CC BY 4.0" in section(card, "Licences")
    assert "- captioner it started from: not known; its model card names none" in section(card, "Licences")
    assert "seed 0" in card


def test_the_card_names_no_machine_and_nobody(run: Path, album: Path) -> None:
    card = (run / "README.md").read_text()
    for secret in (str(album), str(run), "/tmp", str(Path.home()), platform.node(), getpass.getuser()):
        assert len(secret) < 3 or not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", card), secret


def test_a_file_of_weights_is_named_without_the_folders_of_this_machine(album: Path, tmp_path: Path) -> None:
    class Noted:
        settings: Any = None

        def begin(self, run: LoggedRun, rows: Any) -> None:
            self.settings = run.settings

        def write(self, row: Any) -> None:
            pass

        def close(self) -> None:
            pass

    noted, output = Noted(), tmp_path / "run"
    encoder = f"inception-v3-tf:{tmp_path}/of-jane/weights.safetensors"
    layout = {"pretrained": False, "image_size": 75, "embed_dim": 8, "hidden_dim": 8}
    go(album, output, init=None, overrides={**SHORT, **layout, "encoder": encoder}, log_to=[noted])
    assert noted.settings["encoder"] == "inception-v3-tf:weights.safetensors"
    for name in ("README.md", "report.html"):
        assert "inception-v3-tf:weights.safetensors" in (output / name).read_text()
    for name in ("README.md", "report.html", "config.json", "tokenizer.json", "metrics.jsonl"):
        text = (output / name).read_text()
        assert "of-jane" not in text, name
        assert str(tmp_path) not in text, name


def section(card: str, title: str) -> str:
    return card.partition(f"## {title}\n\n")[2].partition("\n\n## ")[0]


def test_a_licence_that_is_not_known_is_said_to_be_missing(album: Path, tmp_path: Path) -> None:
    go(album, tmp_path / "run", init=None, encoder=start_captioner().encoder, overrides=SHORT)
    licences = section((tmp_path / "run" / "README.md").read_text(), "Licences")
    assert "- data: not known; whoever publishes this captioner has to say it (--data-license)" in licences
    assert "- encoder weights: not known" in licences
    for wrong in ("", "  ", 5):
        with pytest.raises(ArgumentError, match="data_license"):
            go(album, tmp_path / "other", data_license=wrong)


def test_a_licence_shows_as_it_is_written(album: Path, tmp_path: Path) -> None:
    odd = "CC BY_4.0\n# mine <script>x</script> ![a](http://b.c)"
    go(album, tmp_path / "run", overrides=SHORT, data_license=odd)
    card = (tmp_path / "run" / "README.md").read_text()
    shown = r"- data: CC BY_4.0 # mine \<script\>x\</script\> !\[a\](http://b.c)"
    assert section(card, "Licences").splitlines()[0] == shown
    report = (tmp_path / "run" / "report.html").read_text()
    assert "# mine &lt;script&gt;x&lt;/script&gt; ![a](http://b.c)" in report


def test_a_start_hands_its_licence_on(album: Path) -> None:
    dataset = read_dataset(album)
    start = Captioner.default()
    about = about_run(
        str(album),
        dataset.fingerprint(),
        dataset.split("train"),
        dataset.split("val"),
        init="default",
        start=start,
        encoder=None,
        plan=load_recipe("default"),
        data_license=None,
    )
    assert about.license == "other"
    assert about.licences["captioner it started from"] == "research-and-non-commercial"
    assert about.licences["encoder weights"].startswith("research and non-commercial")


def test_licences_of_pretrained_weights_are_what_their_makers_state() -> None:
    assert weights_licence("efficientnet-lite2") == weights_licence("efficientnet-lite0")
    assert "Flickr8k" in (weights_licence("default") or "")  # the bundled encoder was fine-tuned there
    swag = weights_licence("torchvision:regnet_y_16gf:IMAGENET1K_SWAG_E2E_V1") or ""
    assert "SWAG" in swag
    assert "BSD-3-Clause" in (weights_licence("torchvision:resnet18") or "")
    assert weights_licence("timm:wide_resnet50_2.tv_in1k") == "bsd-3-clause, as timm says"
    assert weights_licence("timm:no_such_model") is None
    assert (weights_licence("inception-v3-tf:weights.safetensors") or "").startswith("Apache-2.0 (TensorFlow")
    assert weights_licence("inception-v3-tf") is None
    assert weights_licence("somebody's own") is None


def test_photos_that_cannot_be_read_at_the_end_cost_the_speed_only(tmp_path: Path) -> None:
    files = []
    for i in range(6):
        files.append(tmp_path / f"{i}.png")
        from PIL import Image

        Image.new("RGB", (20, 14), (40 * i, 90, 20)).save(files[-1])
    records = [Record(f.name, f, ("a wall",), "val" if i > 3 else "train", "a.csv:1") for i, f in enumerate(files)]

    def say(text: str) -> None:
        if text.startswith("step 3 "):
            for file in files:
                file.unlink()

    settings = {**SETTINGS, **SHORT, "min_steps": 3}
    output = tmp_path / "run"
    train(Dataset(tuple(records)), output, init=start_captioner(), overrides=settings, show=False, say=say)
    assert "wasn't measured" in section((output / "README.md").read_text(), "Speed")


def test_thinned_rows_keep_ends_and_best_in_order() -> None:
    for count in (1, 9, 10, 11, 57, 1000):
        rows = [{"step": 10 * i} for i in range(count)]
        for best in (0, 10 * (count // 2), 10 * (count - 1), None):
            kept = [row["step"] for row in thinned(rows, 10, best)]
            assert len(kept) <= 10
            assert kept == sorted(set(kept))
            assert {0, rows[-1]["step"]} <= set(kept)
            assert best is None or best in kept


def test_the_environment_names_versions_and_device_only() -> None:
    found = environment(torch.device("cpu"))
    assert found["PyTorch"] == torch.__version__
    assert found["device"] == f"CPU ({platform.machine()}), {torch.get_num_threads()} thread" + "s" * (
        torch.get_num_threads() != 1
    )
    assert platform.node() not in found.values()


def test_every_number_of_a_row_is_finite_json(run: Path) -> None:
    def refuse(text: str) -> Any:
        raise AssertionError(text)

    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line, parse_constant=refuse)
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
