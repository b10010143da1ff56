from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from showtell import journal
from showtell.captioner import Captioner
from showtell.data import read_dataset
from showtell.decoders import LSTMDecoder
from showtell.errors import ArgumentError, DataError, RunError, ShowtellError
from showtell.image_spec import ImageSpec
from showtell.protocols import Features
from showtell.training import TrainResult, load_recipe, train, with_vocabulary
from showtell.training.assemble import least_count, make_optimizer, trunk_trains
from showtell.training.run_folder import RunFolder
from showtell.vocabulary import Vocabulary

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (230, 220, 40),
    "white": (250, 250, 250),
    "black": (10, 10, 10),
}
SETTINGS = {
    "epochs": 4,
    "min_steps": 8,
    "photos": 4,
    "captions": 2,
    "learning_rate": 2e-3,
    "carried_rate": 1.0,
    "warmup": 1,
    "patience": 0,
    "search": "beam:2",
    "save_every_steps": 1,
    "log_every_steps": 2,
}


class ColourEncoder(nn.Module):
    """A trunk of local colours and a trainable head; registered nowhere, as a user's own encoder."""

    image_spec = ImageSpec(8, 8)

    def __init__(self, feature_dim: int = 12) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.stem = nn.Conv2d(3, 16, 4, stride=4)
        self.project = nn.Linear(16, feature_dim)

    def trunk(self, images: Tensor) -> Features:
        return Features(torch.tanh(3 * self.stem(images - 0.5)).mean((2, 3)))

    def head(self, features: Features) -> Features:
        return Features(self.project(features.pooled))

    def forward(self, images: Tensor) -> Features:
        return self.head(self.trunk(images))

    def config(self) -> dict[str, Any]:
        return {"feature_dim": self.feature_dim}


def start_captioner() -> Captioner:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = Vocabulary.build(["a red wall", "a wall of stone"], min_count=1)
        encoder = ColourEncoder()
        decoder = LSTMDecoder(len(words), encoder.feature_dim, embed_dim=16, hidden_dim=24, dropout=0.3)
        return Captioner(encoder, decoder, words).eval()


def write_photos(folder: Path, repeats: int = 2) -> Path:
    """Twelve one-coloured photos of different shades with a CSV."""
    from PIL import Image

    folder.mkdir(parents=True)
    shades = random.Random(4)
    lines = ["image,caption"]
    for repeat in range(repeats):
        for name, colour in COLOURS.items():
            shade = tuple(min(255, max(0, c + shades.randint(-9, 9))) for c in colour)
            Image.new("RGB", (20, 14), shade).save(folder / f"{name}{repeat}.png")
            lines += [f"{name}{repeat}.png,a {name} wall", f"{name}{repeat}.png,a wall painted {name}"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def go(photos: Any, output: Path, heard: list[str] | None = None, **options: Any) -> TrainResult:
    said = [] if heard is None else heard
    settings = {**SETTINGS, **options.pop("overrides", {})}
    options = {"init": start_captioner(), **options}
    return train(photos, output, overrides=settings, threads=1, show=False, say=said.append, **options)


def captioner_bytes(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("config.json", "tokenizer.json", "model.safetensors")}


def run_bytes(folder: Path) -> dict[str, bytes]:
    """What a run leaves besides its checkpoints, and says the same whenever it was stopped."""
    others = {"README.md", "frequencies.bin"} | {path.name for path in folder.glob("reward-frequencies.bin")}
    kept = captioner_bytes(folder) | {name: (folder / name).read_bytes() for name in others}
    # Speed is measured; the rest of the card isn't.
    kept["README.md"], found = re.subn(rb"## Speed\n\n.*\n", b"", kept["README.md"])
    assert found == 1
    return kept


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def evaluations(folder: Path) -> list[dict[str, Any]]:
    return [row for row in metrics(folder) if row["kind"] == "evaluation"]


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("data_share", "tokens_per_second")} for row in rows]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult, list[str]]:
    output = tmp_path_factory.mktemp("runs") / "one"
    heard: list[str] = []
    return output, go(photos, output, heard), heard


def test_a_run_leaves_a_captioner_its_checkpoints_and_its_metrics(run: Any, photos: Path) -> None:
    output, result, heard = run
    assert result.output == output
    assert result.steps == 12  # 9 to 11 photos in batches of 4, 4 epochs
    captioner = Captioner.from_pretrained(output, encoder=ColourEncoder)
    assert {"a", "red", "wall", "painted", "green"} <= set(captioner.vocabulary.words)
    assert isinstance(captioner.caption(photos / "red0.png").text, str)
    rows = evaluations(output)
    assert [row["step"] for row in rows] == [0, 3, 6, 9, 12]
    best = next(row for row in rows if row["step"] == result.best_step)
    assert best["val_cider_d"] == result.best_score
    assert best["best"]
    assert all(0 <= row["val_bleu4"] <= 1 and row["val_teacher_forced_loss"] > 0 for row in rows)
    steps = sorted(int(p.name.removeprefix("step-")) for p in (output / "checkpoints").iterdir())
    assert set(steps) == {11, 12, result.best_step}
    checkpoint = output / "checkpoints" / f"step-{result.best_step:08d}"
    assert captioner_bytes(checkpoint) == captioner_bytes(output)
    state = torch.load(checkpoint / "training.pt", weights_only=True)
    assert state["trainer"]["step"] == result.best_step
    assert (output / "README.md").is_file()
    assert any("new ones" in line for line in heard)


def test_a_finished_run_says_so_and_changes_nothing(run: Any, photos: Path) -> None:
    output, result, _ = run
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    heard: list[str] = []
    assert go(photos, output, heard) == result
    assert "finished" in heard[-1]
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


class StopError(Exception):
    pass


@pytest.mark.parametrize("moment", ["photos:", "step 3 ", "step 9 "])
def test_an_interrupted_run_continues_to_the_same_bytes(run: Any, photos: Path, tmp_path: Path, moment: str) -> None:
    def say(text: str) -> None:
        if moment in text:
            raise StopError

    with pytest.raises(StopError):
        train(photos, tmp_path / "run", init=start_captioner(), overrides=SETTINGS, threads=1, show=False, say=say)
    torch.rand(7)
    again = go(photos, tmp_path / "run")
    output, result, _ = run
    assert (again.best_step, again.best_score, again.steps) == (result.best_step, result.best_score, result.steps)
    assert run_bytes(tmp_path / "run") == run_bytes(output)
    assert untimed(metrics(tmp_path / "run")) == untimed(metrics(output))


def test_another_run_in_the_same_folder_is_refused_by_what_differs(run: Any, photos: Path, tmp_path: Path) -> None:
    output, _, _ = run
    with pytest.raises(RunError, match=r"recipe\.learning_rate: was 0\.002, is 0\.5[^$]*restart"):
        go(photos, output, overrides={"learning_rate": 0.5})
    with pytest.raises(RunError, match="data: was"):
        go(write_photos(tmp_path / "other", repeats=3), output)
    other = start_captioner()
    with torch.no_grad():
        next(other.parameters())[0] += 1
    with pytest.raises(RunError, match="init: was") as caught:
        go(photos, output, init=other)
    assert "data: was" not in str(caught.value)


def test_restart_deletes_the_runs_own_files_only(run: Any, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    go(photos, output)
    (output / "notes.txt").write_text("mine")
    (output / "frequencies.bin").write_text("of the run, though damaged")
    result = go(photos, output, restart=True, overrides={"epochs": 2, "min_steps": 0})
    assert (output / "frequencies.bin").read_bytes() == (run[0] / "frequencies.bin").read_bytes()
    assert result.steps == 6
    assert (output / "notes.txt").read_text() == "mine"
    assert max(p.name for p in (output / "checkpoints").iterdir()) == "step-00000006"
    assert len(evaluations(output)) == 3


def test_a_run_that_saved_nothing_yet_gives_way(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ShowtellError):
        go(photos, tmp_path / "run", overrides={"train_encoder": ["layer9"]})
    assert go(photos, tmp_path / "run", overrides={"epochs": 1, "min_steps": 0}).steps == 3


def test_a_folder_of_somebody_else_is_refused(photos: Path, tmp_path: Path) -> None:
    start_captioner().save_pretrained(tmp_path / "mine")
    before = captioner_bytes(tmp_path / "mine")
    with pytest.raises(RunError, match=r"config\.json.*not of a training run"):
        go(photos, tmp_path / "mine")
    with pytest.raises(RunError, match="not of a training run"):
        go(photos, tmp_path / "mine", restart=True)
    assert captioner_bytes(tmp_path / "mine") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match="is a file"):
        go(photos, tmp_path / "file")
    (tmp_path / "odd").mkdir()
    good = {"format": "showtell.run", "identity": {}, "settings": {}, "finished": None}
    for odd in ({"settings": [1]}, {"finished": True}, {"identity": "x"}):
        (tmp_path / "odd" / "run.json").write_text(json.dumps({**good, **odd}))
        with pytest.raises(RunError, match="not of a training run"):
            go(photos, tmp_path / "odd")
    (tmp_path / "odd" / "run.json").write_text("[" * 100_000)
    with pytest.raises(RunError, match="can't be read"):
        go(photos, tmp_path / "odd")
    (tmp_path / "odd" / "run.json").write_text('{"format": "other"}')
    with pytest.raises(RunError, match="not of a training run"):
        go(photos, tmp_path / "odd")


def test_a_checkpoint_that_holds_too_little_to_continue_is_said_to_be_damaged(tmp_path: Path) -> None:
    place = tmp_path / "checkpoints" / "step-00000003"
    place.mkdir(parents=True)
    whole = {"progress": {"best_step": 1}, "model": {}, "trainer": {}}
    torch.save(whole, place / "training.pt")
    assert RunFolder(tmp_path).state(3) == whole
    for missing in whole:
        torch.save({key: value for key, value in whole.items() if key != missing}, place / "training.pt")
        with pytest.raises(RunError, match=r"step-00000003, and the same command\s+continues"):
            RunFolder(tmp_path).state(3)


def test_a_damaged_best_checkpoint_is_named_with_the_way_on(photos: Path, tmp_path: Path) -> None:
    def say(text: str) -> None:
        if "step 3 of" in text:
            raise StopError

    output = tmp_path / "run"
    with pytest.raises(StopError):
        train(photos, output, init=start_captioner(), overrides=SETTINGS, threads=1, show=False, say=say)
    for checkpoint in (output / "checkpoints").iterdir():
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(RunError, match=r"best checkpoint is damaged: .* truncated one; delete .*step-0000000\d, and"):
        go(photos, output)
    shutil.rmtree(output / "checkpoints")
    (output / "checkpoints").write_text("mine")
    with pytest.raises(RunError, match="checkpoints can't be written"):
        go(photos, output)
    (output / "checkpoints").unlink()
    assert go(photos, output).steps == 12


def test_only_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    mine, *unfinished = (
        tmp_path / "checkpoints" / name
        for name in (".ipynb_checkpoints", ".old-00000002", ".step-00000003.showtell-new")
    )
    for folder in (mine, *unfinished):
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text("a")
    assert RunFolder(tmp_path).newest() is None
    assert (mine / "a.txt").is_file()
    assert not any(folder.exists() for folder in unfinished)


def test_bad_rows_stop_the_run_or_are_skipped_and_counted(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    with (folder / "captions.csv").open("a") as file:
        file.write("gone.png,a wall that is gone\nred0.png,\nbroken.png,a broken wall\n")
        file.write("blank.png,!!!\n")
    (folder / "broken.png").write_bytes((folder / "red0.png").read_bytes()[:40])
    (folder / "blank.png").write_bytes((folder / "red0.png").read_bytes())
    with pytest.raises(DataError, match=r"3 bad rows[^$]*csv:26[^$]*csv:27[^$]*csv:29"):
        go(folder, tmp_path / "run")
    heard: list[str] = []
    short = {"epochs": 1, "min_steps": 0}
    assert go(folder, tmp_path / "run", heard, skip_bad=True, overrides=short).steps == 3
    text = "\n".join(heard)
    assert "left out: 3 bad rows" in text
    assert "blank.png" in text
    assert "broken.png" in text
    heard.clear()
    go(folder, tmp_path / "unfrozen", heard, skip_bad=True, overrides={**short, "train_encoder": True})
    assert "broken.png" in "\n".join(heard)
    (folder / "captions.csv").write_text("image,caption\nred0.png,a wall\nbroken.png,a wall\n")
    with pytest.raises(DataError, match=r"broken\.png"):
        go(folder, tmp_path / "third", overrides={"train_encoder": True})


def test_from_scratch_it_learns_what_the_photos_show(photos: Path, tmp_path: Path) -> None:
    encoder = start_captioner().encoder
    before = {name: t.clone() for name, t in encoder.state_dict().items()}
    result = go(
        photos,
        tmp_path / "run",
        init=None,
        encoder=encoder,
        overrides={
            "epochs": 1,
            "min_steps": 240,
            "learning_rate": 1e-2,
            "embed_dim": 24,
            "hidden_dim": 32,
            "dropout": 0.0,
            "tied": False,
            "label_smoothing": 0.0,
            "save_every_steps": 1000,
            "search": "greedy",
        },
    )
    assert result.steps == 240
    captioner = Captioner.from_pretrained(tmp_path / "run", encoder=ColourEncoder)
    training = read_dataset(photos).split("train")
    right = [record.id[:3] in captioner.caption(record.image).text for record in training]
    assert sum(right) >= 0.9 * len(right)
    after = captioner.encoder.state_dict()
    assert torch.allclose(after["stem.weight"], before["stem.weight"], atol=1e-3)  # saved as float16
    assert not torch.allclose(after["project.weight"], before["project.weight"], atol=1e-2)
    assert all(torch.equal(before[name], t) for name, t in encoder.state_dict().items())


def test_a_trained_trunk_reads_photos_and_keeps_no_features(photos: Path, tmp_path: Path) -> None:
    short = {"epochs": 1, "min_steps": 0, "encoder_learning_rate": 0.05, "weights_dtype": "float32"}
    go(photos, tmp_path / "run", overrides={**short, "train_encoder": ["stem"]})
    assert not (tmp_path / "run" / "features").exists()
    trained = Captioner.from_pretrained(tmp_path / "run", encoder=ColourEncoder).encoder.state_dict()
    assert not torch.equal(trained["stem.weight"], start_captioner().encoder.state_dict()["stem.weight"])
    with pytest.raises(ArgumentError, match=r"no part 'layer4'.*stem, project"):
        go(photos, tmp_path / "other", overrides={"train_encoder": ["layer4"]})


def test_the_trunk_has_a_learning_rate_of_its_own_and_vectors_no_decay() -> None:
    captioner = start_captioner()
    assert trunk_trains(captioner.encoder) == ["stem.weight", "stem.bias"]
    recipe = load_recipe("default").changed({"weight_decay": 0.1, "encoder_learning_rate": 1e-5})
    names = {id(p): name for name, p in captioner.named_parameters()}
    for group in make_optimizer(captioner, recipe).param_groups:
        for p in group["params"]:
            name = names.pop(id(p))
            assert group["lr"] == (1e-5 if name.startswith("encoder.stem") else recipe.learning_rate), name
            assert group["weight_decay"] == (0.1 if p.ndim > 1 else 0.0), name
    assert not names


def test_an_encoder_goes_with_scratch_only(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="init=None"):
        go(photos, tmp_path / "run", encoder=ColourEncoder())


def test_a_carried_over_decoder_is_kept_without_a_word_where_the_recipe_asks_for_nothing(run: Any) -> None:
    assert not any("its decoder" in line for line in run[2])


def test_the_caller_keeps_its_captioner_its_threads_and_its_random_numbers(photos: Path, tmp_path: Path) -> None:
    start = start_captioner()
    before = {name: t.clone() for name, t in start.state_dict().items()}
    threads, random_state = torch.get_num_threads(), torch.get_rng_state()
    go(photos, tmp_path / "run", init=start, overrides={"epochs": 1, "min_steps": 0})
    assert all(torch.equal(before[name], t) for name, t in start.state_dict().items())
    assert all(p.requires_grad for p in start.parameters())
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_run_never_ends_with_a_captioner_worse_than_its_start(photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = go(photos, output, overrides={"learning_rate": 10.0, "clip_norm": 0.0, "label_smoothing": 0.0})
    rows = evaluations(output)
    assert round(result.best_score, 3) == max(round(row["val_cider_d"], 3) for row in rows)
    assert result.best_score >= rows[0]["val_cider_d"]
    assert rows[0]["step"] == 0


def test_a_captioner_that_carries_over_learns_at_a_lower_rate(photos: Path, tmp_path: Path) -> None:
    settings = {"epochs": 1, "min_steps": 1, "warmup": 0, "learning_rate": 1e-3, "carried_rate": 0.25}
    go(photos, tmp_path / "run", overrides=settings)
    go(photos, tmp_path / "new", init=None, encoder=start_captioner().encoder, overrides=settings)
    carried, new = (metrics(tmp_path / name)[-1]["learning_rate"] for name in ("run", "new"))
    assert carried == pytest.approx(new / 4)


def test_training_stops_when_nothing_gets_better(photos: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    still = {"learning_rate": 0.0, "patience": 2, "epochs": 9}
    result = go(photos, tmp_path / "run", heard, overrides=still)
    assert (result.best_step, result.steps) == (0, 6)
    assert "stopped early" in heard[-1]


def test_a_start_that_is_not_finite_ends_the_run_at_once(photos: Path, tmp_path: Path) -> None:
    start = start_captioner()
    with torch.no_grad():
        start.decoder.embedding.weight[4] = float("nan")
    with pytest.raises(RunError, match="NaN"):
        go(photos, tmp_path / "run", init=start)


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_two_runs_in_one_folder_at_once_are_refused_and_the_first_goes_on(photos: Path, tmp_path: Path) -> None:
    errors: list[str] = []

    def say(text: str) -> None:
        if text.startswith("step") and not errors:
            with pytest.raises(RunError, match="another command that still runs") as caught:
                go(photos, tmp_path / "run")
            errors.append(str(caught.value))

    train(photos, tmp_path / "run", init=start_captioner(), overrides=SETTINGS, show=False, say=say)
    assert errors
    assert not (tmp_path / "run" / journal.LOCK).exists()
    assert Captioner.from_pretrained(tmp_path / "run", encoder=ColourEncoder)


def test_a_cpu_without_bfloat16_computes_in_float32_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, said = {}, {}
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for name, precision in (("plain", "fp32"), ("asked", "bf16")):
        said[name] = []
        go(photos, tmp_path / name, said[name], overrides={"precision": precision, "weights_dtype": "float32"})
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["asked"] == weights["plain"]
    assert [sum("computing in fp32" in line for line in lines) for lines in said.values()] == [0, 1]


def test_a_place_that_cannot_be_written_is_a_run_error(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(RunError, match="can't be written"):
            go(photos, place)


def test_a_damaged_checkpoint_is_named_and_deleting_it_continues(run: Any, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    state = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**state, "finished": None}))
    newest = max((folder / "checkpoints").iterdir())
    (newest / "training.pt").write_bytes(b"\x80\x02 garbage")
    with pytest.raises(RunError, match=newest.name):
        go(photos, folder)
    shutil.rmtree(newest)
    go(photos, folder)
    assert (folder / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()


def test_a_finished_run_whose_captioner_was_deleted_publishes_it_again(run: Any, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    (folder / "model.safetensors").unlink()
    go(photos, folder)
    assert (folder / "model.safetensors").read_bytes() == (run[0] / "model.safetensors").read_bytes()


def test_a_run_cannot_start_from_its_own_output(run: Any, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run[0], folder)
    before = captioner_bytes(folder)
    for start in (folder, max((folder / "checkpoints").iterdir())):
        with pytest.raises(ArgumentError, match="the output of this very run"):
            go(photos, folder, init=start, restart=True)
    assert captioner_bytes(folder) == before


class Unnamed(ColourEncoder):
    def config(self) -> dict[str, Any]:
        return {"dimension": self.feature_dim}


class Plain(ColourEncoder):
    def trunk(self, images: Tensor) -> Any:
        return super().trunk(images).pooled


class WithoutJson(ColourEncoder):
    def config(self) -> dict[str, Any]:
        return {"feature_dim": torch.tensor(12)}


def test_mistakes_in_an_encoder_of_ones_own_are_said_before_the_training(photos: Path, tmp_path: Path) -> None:
    for encoder, message in (
        (ColourEncoder, "not the class"),
        (nn.Linear(2, 3), "lacks feature_dim"),
        (5, "encoder must be"),
        (WithoutJson(), "isn't JSON"),
        (Plain(), r"Plain\.trunk must return Features"),
    ):
        with pytest.raises(ArgumentError, match=message):
            go(photos, tmp_path / "run", init=None, encoder=encoder)
    said: list[str] = []
    train(photos, tmp_path / "unnamed", init=None, encoder=Unnamed(), overrides=SETTINGS, show=False, say=said.append)
    assert any("Unnamed(**config())" in text and "won't load" in text for text in said)


def test_clumsy_arguments_are_refused_before_anything_is_written(photos: Path, tmp_path: Path) -> None:
    for options in (
        {"device": "gpu"},
        {"overrides": {"epoch": 1}},
        {"overrides": {"epochs": 0}},
        {"device": "meta"},
        {"recipe": 5},
    ):
        with pytest.raises(ArgumentError):
            go(photos, tmp_path / "run", **options)
    with pytest.raises(ArgumentError, match="threads"):
        train(photos, tmp_path / "run", init=start_captioner(), threads=0)
    assert not (tmp_path / "run").exists()


def test_small_data_keeps_its_rare_words() -> None:
    recipe = load_recipe("default").changed({"min_count": 5})
    assert [least_count(recipe, n) for n in (1, 3_999, 4_000, 9_999, 10_000, 10**6)] == [1, 1, 2, 4, 5, 5]


# --- another vocabulary for a decoder ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_words_keep_their_scores_in_a_grown_vocabulary_of_any_order(tied: bool) -> None:
    torch.manual_seed(1)
    old = Vocabulary.build(["a b c d e f g h"], min_count=1)
    new = Vocabulary.build(["h g x y h g x h h", "c a"], min_count=1)
    # As many words as the hidden size: shapes alone can't tell rows of words from rows of units.
    size = len(old)
    decoder = LSTMDecoder(size, feature_dim=size, embed_dim=size, hidden_dim=size, tied=tied).eval()
    other = with_vocabulary(decoder, old, new)
    assert not other.training
    memory = decoder.prepare(Features(torch.randn(2, size)))
    words = ["<start>", "a", "h", "c", "g"]
    before = decoder(torch.tensor([[old.id_of(w) for w in words]] * 2), memory).logits
    after = other(torch.tensor([[new.id_of(w) for w in words]] * 2), memory).logits
    for word in (*words, "<end>", "<unk>", "<pad>"):
        torch.testing.assert_close(before[..., old.id_of(word)], after[..., new.id_of(word)])
    assert after.shape[-1] == len(new)


def test_new_words_start_around_the_mean_of_the_old_ones_and_differ() -> None:
    torch.manual_seed(2)
    old = Vocabulary.build(["a b c"], min_count=1)
    new = old.grown(["x y"], min_count=1)
    decoder = LSTMDecoder(len(old), feature_dim=4, embed_dim=64, hidden_dim=8)
    with torch.no_grad():
        decoder.embedding.weight += 5
        decoder.output.bias.copy_(torch.arange(float(len(old))))
    grown = with_vocabulary(decoder, old, new)
    fresh = grown.embedding.weight[len(old) :]
    assert 4.5 < fresh.mean().item() < 5.5
    assert not torch.equal(fresh[0], fresh[1])
    assert grown.output.bias[len(old) :].tolist() == [3.0, 3.0]


def test_a_decoder_that_cannot_take_another_vocabulary_is_refused() -> None:
    old = Vocabulary.build(["a b c"], min_count=1)
    new = old.grown(["x y"], min_count=1)

    class Crossed(LSTMDecoder):
        def __init__(self, **config: Any) -> None:
            super().__init__(**config)
            self.pairs = nn.Parameter(torch.zeros(self.vocab_size, self.vocab_size))

    with pytest.raises(ArgumentError, match="'pairs'"):
        with_vocabulary(Crossed(vocab_size=len(old), feature_dim=4, embed_dim=4, hidden_dim=4), old, new)
    with pytest.raises(ArgumentError, match="vocab_size=7"):
        with_vocabulary(LSTMDecoder(9, feature_dim=4, embed_dim=4, hidden_dim=4), old, new)


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def serve(photos: str, folder: str, kills: int, seed: int, overrides: dict[str, Any]) -> None:
    """In a process of its own: one undisturbed run, then runs that are killed `kills` times in all."""

    def child(output: Path) -> int:
        number = os.fork()
        if number == 0:
            go(photos, output, overrides=overrides)
            os._exit(0)
        return number

    def wait(number: int) -> bool:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0

    # The first optimizer of a process imports a good part of torch: here, not in every child.
    torch.optim.AdamW(start_captioner().parameters())
    began = time.perf_counter()
    assert wait(child(Path(folder, "whole")))
    whole = time.perf_counter() - began
    moments = random.Random(seed)
    killed, number = 0, 0
    while killed < kills:
        output = Path(folder, f"killed-{number}")
        number += 1
        for _ in range(3):
            process = child(output)
            time.sleep(moments.uniform(0.05, whole))
            os.kill(process, signal.SIGKILL)
            killed += not wait(process)
        assert wait(child(output))
    print(killed)


BOTH_PARTS = {"epochs": 2, "min_steps": 6, "self_critical_epochs": 2, "self_critical_samples": 3}


def check_kills(photos: Path, tmp_path: Path, kills: int, seed: int, overrides: dict[str, Any]) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(photos), str(tmp_path), str(kills), str(seed), json.dumps(overrides)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= kills
    expected = run_bytes(tmp_path / "whole")
    folders = sorted(tmp_path.glob("killed-*"))
    assert folders
    for folder in folders:
        assert run_bytes(folder) == expected, folder
        assert json.loads((folder / "run.json").read_text())["finished"]["steps"] == 12
        assert untimed(metrics(folder)) == untimed(metrics(tmp_path / "whole"))
        assert not list(folder.rglob(".*")), folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("overrides", [{}, BOTH_PARTS])
def test_a_run_killed_at_any_moment_and_repeated_ends_in_the_same_bytes(
    photos: Path, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    check_kills(photos, tmp_path, kills=2, seed=time.time_ns(), overrides=overrides)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("overrides", [{}, BOTH_PARTS])
def test_a_run_killed_twenty_times_ends_in_the_same_bytes(
    photos: Path, tmp_path: Path, overrides: dict[str, Any]
) -> None:
    check_kills(photos, tmp_path, kills=20, seed=time.time_ns(), overrides=overrides)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5]))
