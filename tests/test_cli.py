"""The command line, called as a user calls it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from showtell.cli import build_parser, main
from showtell.cli.caption import find_photos
from showtell.errors import NotFoundError
from showtell.journal import claim
from showtell.testing import tiny_captioner
from showtell.training import TrainResult, list_recipes, load_recipe, recipe_text


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "model"
    tiny_captioner().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def album(tmp_path: Path, photos: list[Path]) -> Path:
    """Twelve good photos and a bad one, in two folders."""
    folder = tmp_path / "album"
    (folder / "inner").mkdir(parents=True)
    for number in range(12):
        shutil.copy(photos[number % len(photos)], folder / ("inner" if number % 3 else "") / f"{number:02}.jpg")
    (folder / "05bad.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "notes.txt").write_text("no photo")
    return folder


def rows(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_photo_becomes_a_line(model: str, photos: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--model", model, str(photos[0])]) == 0
    path, _, text = capsys.readouterr().out.rstrip("\n").partition("\t")
    assert path == str(photos[0])
    assert text


def test_a_bad_photo_costs_its_own_row_only(model: str, album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--model", model, str(album), "--format", "jsonl", "--search", "beam:3"]) == 1
    found = rows(capsys.readouterr().out)
    assert len(found) == 13
    assert [r["image"] for r in found if "error" in r] == [str(album / "05bad.jpg")]
    good = [r for r in found if "error" not in r]
    for row in good:
        assert list(row) == ["image", "caption", "log_prob", "candidates"]
        candidates = row["candidates"]
        assert isinstance(candidates, list)
        assert len(candidates) == 3
        assert candidates[0] == {"caption": row["caption"], "log_prob": row["log_prob"]}


def test_a_missing_photo_is_a_row_and_an_empty_folder_an_error(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["caption", "--model", model, "nowhere.jpg", "--format", "jsonl"]) == 1
    assert "nowhere.jpg" in str(rows(capsys.readouterr().out)[0]["error"])
    (tmp_path / "empty").mkdir()
    assert main(["caption", "--model", model, str(tmp_path / "empty")]) == 2
    assert "no photos" in capsys.readouterr().err


def test_folders_are_searched_in_order_and_globs_match(album: Path) -> None:
    found = find_photos([str(album)])
    assert found == sorted(found)
    assert len(found) == 13
    assert len(find_photos([str(album / "inner" / "*.jpg")])) == 8
    with pytest.raises(NotFoundError, match="pattern"):
        find_photos([str(album / "*.png")])


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_stands(tmp_path: Path, photos: list[Path]) -> None:
    odd = tmp_path / "photo[1].jpg"
    shutil.copy(photos[0], odd)
    assert find_photos([str(odd)]) == [odd]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search", "beam:0"], "Beam size"),
        (["--search", "magic"], "magic"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "toaster"], "toaster"),
        (["--device", "meta"], "meta"),
        (["--overwrite"], "--output"),
        (["--output", "/dev/null", "--overwrite"], "no ordinary file"),
        (["--output", "x" * 300], "can't be written"),
        (["--output", "no/such/folder/out.jsonl"], "make it first"),
        (["--model", "no/such/model"], "no/such/model"),
    ],
)
def test_a_call_that_cannot_work_says_why_and_exits_with_2(
    arguments: list[str], message: str, model: str, photos: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments if "--model" in arguments else ["--model", model, *arguments]
    assert main(["caption", str(photos[0]), *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_output_holds_a_row_a_photo_and_a_rerun_adds_nothing(model: str, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", "--model", model, str(album), "--output", str(out), "--batch-size", "4"]
    assert main(command) == 1
    first = out.read_bytes()
    assert len(rows(first.decode())) == 13
    assert main(command) == 1
    assert out.read_bytes() == first


@pytest.mark.parametrize("kept", [0, 1, 250, 2000])
def test_a_cut_output_file_is_completed_to_the_same_bytes(model: str, album: Path, tmp_path: Path, kept: int) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", "--model", model, str(album), "--output", str(out), "--batch-size", "4"]
    main(command)
    whole = out.read_bytes()
    out.write_bytes(whole[:kept])
    main(command)
    assert out.read_bytes() == whole


def test_another_commands_output_is_refused(
    model: str, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", "--model", model, str(album), "--output", str(out)]
    main(command)
    before = out.read_bytes()
    assert main([*command, "--search", "beam:2"]) == 2
    assert "search" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*command, "--search", "beam:2", "--overwrite"]) == 1
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("precious\n")
    assert main([*command[:-1], str(foreign)]) == 2
    assert foreign.read_text() == "precious\n"


@pytest.mark.parametrize("row", ["no JSON", "5", ""])
def test_a_row_that_someone_else_wrote_is_named(
    model: str, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str
) -> None:
    output = tmp_path / "rows.jsonl"
    command = ["caption", str(album), "--model", model, "--output", str(output)]
    main(command)
    first, _, *others = output.read_text().splitlines()
    output.write_text("\n".join([first, row, *others]) + "\n")
    assert main(command) == 2
    assert "rows.jsonl: row 2 is none that this command wrote" in capsys.readouterr().err


def test_a_file_name_that_is_not_utf_8_is_printed_and_makes_rows_of_plain_json(
    model: str, photos: list[Path], tmp_path: Path
) -> None:
    folder = tmp_path / "strange"
    folder.mkdir()
    name = os.fsencode(folder) + b"/bad\xff.jpg"
    try:
        Path(os.fsdecode(name)).write_bytes(photos[0].read_bytes())
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    script = "import showtell.testing, sys; from showtell.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "caption", "--model", model, str(folder)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout.startswith(name + b"\t")
    out = tmp_path / "out.jsonl"
    assert main(["caption", "--model", model, str(folder), "--output", str(out)]) == 0
    assert main(["caption", "--model", model, str(folder), "--output", str(out)]) == 0
    (row,) = rows(out.read_text(encoding="utf-8"))
    assert os.fsencode(str(row["image"])) == name


def test_a_path_that_no_file_can_have_is_a_row(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", "--model", model, "x" * 300]) == 1
    assert "can't be opened" in capsys.readouterr().err
    assert main(["caption", "--model", model, ""]) == 2
    assert "empty PATH" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no such locks")
def test_an_output_that_another_command_is_writing_is_left_alone(
    model: str, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", "--model", model, str(album), "--output", str(out)]
    with out.open("ab") as file:
        claim(file, out)
        assert main(command) == 2
        assert main([*command, "--overwrite"]) == 2
    assert "another command that still runs" in capsys.readouterr().err
    assert out.read_bytes() == b""
    assert main(command) == 1


def test_a_failing_disk_is_said_in_a_line(model: str, album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["caption", "--model", model, str(album), "--output", str(album / "out.jsonl")]) == 2
    monkeypatch.setattr("showtell.cli.info.load_model", full)
    assert main(["info"]) == 2


def test_a_closed_standard_output_is_no_error(model: str, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["caption", "--model", model, str(photos[0])]) == 0


def test_a_stopped_command_promises_to_continue_only_where_it_can(
    model: str, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("showtell.cli.caption.caption_iter", stop)
    command = ["caption", "--model", model, str(album)]
    assert main(command) == 130
    assert "continues" not in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 130
    assert "continues" in capsys.readouterr().err


def test_data_check_lists_captions_without_a_word_as_training_would(
    album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = album / "captions.csv"
    table.write_text("image,caption\n00.jpg,a dog\n03.jpg,a cat\n06.jpg,!!!\n00.jpg,...\n09.jpg,\U0001f415\n")
    assert main(["data", "check", str(table)]) == 1
    heard = capsys.readouterr()
    assert "captions.csv:4: the caption of '06.jpg' has no word: '!!!'" in heard.out
    assert "captions.csv:5: the caption of '00.jpg' has no word: '...'" in heard.out  # beside a good one
    assert "captions.csv:6" not in heard.out  # a dog, though in one character
    assert "2 problems" in heard.err


def test_info_says_what_a_captioner_is(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model]) == 0
    text = capsys.readouterr().out
    assert "lstm.v1" in text
    assert "float32" in text
    assert main(["info", model, "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["encoder"]["name"] == "tiny.v1"


def test_data_check_lists_every_problem(album: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = album / "captions.csv"
    table.write_text(
        "image,caption\n00.jpg,a dog\ninner/01.jpg,a cat\nmissing.jpg,a ghost\n03.jpg,\n05bad.jpg,a broken one\n"
    )
    assert main(["data", "check", str(table)]) == 1
    text = capsys.readouterr().out
    assert "captions.csv:4" in text
    assert "missing.jpg" in text
    assert "captions.csv:5" in text
    assert "05bad.jpg" in text
    table.write_text("image,caption\n00.jpg,a dog\ninner/01.jpg,a cat\n")
    assert main(["data", "check", str(table)]) == 0


def test_every_command_has_a_help_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["caption"], ["train"], ["evaluate"], ["doctor"], ["recipes"], ["info"], ["data"], ["data", "check"], [],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        if command != ["data"]:
            assert "example: showtell" in capsys.readouterr().out
    assert build_parser().prog == "showtell"


def test_recipes_are_listed_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert lines == list_recipes()
    assert main(["recipes", "--format", "jsonl"]) == 0
    assert {row["name"]: row["about"] for row in rows(capsys.readouterr().out)} == lines
    assert main(["recipes", "show-tell-256"]) == 0
    mine = tmp_path / "mine.toml"
    mine.write_text(capsys.readouterr().out)
    assert load_recipe(mine) == load_recipe("show-tell-256")
    assert main(["recipes", "tiny", "--format", "jsonl"]) == 0
    (row,) = rows(capsys.readouterr().out)
    assert row["settings"] == load_recipe("tiny").values()
    assert row["file"] == recipe_text("tiny")
    assert main(["recipes", "show-tell-265"]) == 2
    assert "did you mean 'show-tell-256'" in capsys.readouterr().err


def test_train_refuses_a_setting_without_a_value(
    tmp_path: Path, album: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(album), "--output", str(tmp_path / "o"), "--set", "epochs"]) == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def caption_album(album: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "showtell", "caption", str(album), "--output", str(out), "--batch-size", "1"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_captioning_killed_twenty_times_continues_to_the_same_bytes(album: Path, tmp_path: Path) -> None:
    for number in range(60):
        shutil.copy(album / "00.jpg", album / f"more{number:02}.jpg")
    calm, out = tmp_path / "calm.jsonl", tmp_path / "killed.jsonl"
    started = time.monotonic()
    assert caption_album(album, calm).wait(timeout=300) == 1  # one photo of the album is broken
    length = time.monotonic() - started
    dice = random.Random(7)
    kills = between = 0
    while kills < 20:
        process = caption_album(album, out)
        time.sleep(dice.uniform(0.2, 1.0) * length)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
            between += out.exists() and 0 < out.stat().st_size < calm.stat().st_size
        process.wait()
        if out.exists() and out.stat().st_size == calm.stat().st_size:
            assert out.read_bytes() == calm.read_bytes()
            out.unlink()  # finished before the 20th kill: once more from the start
    assert caption_album(album, out).wait(timeout=300) == 1
    assert out.read_bytes() == calm.read_bytes()
    assert between >= 3  # kills that landed among the rows


def test_train_hands_on_where_to_log_and_the_licence_of_the_data(
    album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[dict[str, Any]] = []

    def train(data: str, output: str, **options: Any) -> TrainResult:
        given.append(options)
        return TrainResult(Path(output), 0, 0.0, 0, 0.0)

    monkeypatch.setattr("showtell.cli.train.train", train)
    command = ["train", "--data", str(album), "--output", str(tmp_path / "o")]
    assert main(command) == 0
    assert main([*command, "--log-to", "tensorboard", "wandb", "--data-license", "CC BY 4.0"]) == 0
    assert [options["log_to"] for options in given] == [[], ["tensorboard", "wandb"]]
    assert [options["data_license"] for options in given] == [None, "CC BY 4.0"]
    with pytest.raises(SystemExit) as caught:
        main([*command, "--log-to", "paper"])
    assert caught.value.code == 2
    assert "'paper'" in capsys.readouterr().err


def test_train_prints_where_the_captioner_is_or_the_result_as_json(
    tmp_path: Path, album: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (album / "05bad.jpg").unlink()
    (album / "captions.csv").write_text(
        "image,caption\n" + "".join(f"{p.relative_to(album)},a dog\n" for p in sorted(album.rglob("*.jpg")))
    )
    settings = ["--set", "epochs=1", "--set", "min_steps=2"]
    command = ["train", "--data", str(album), "--output", str(tmp_path / "o"), "--init", model, *settings]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'o'}\n"
    assert main([*command, "--format", "jsonl"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result) == ["output", "best_step", "best_score", "steps", "seconds"]
    assert main(["caption", "--model", str(tmp_path / "o"), str(album / "00.jpg")]) == 0
