"""Folders that were saved once, a set for each format version: they open for ever and say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from make_golden import GOLDEN, said
from showtell import Captioner
from showtell.storage import FORMAT_VERSION

FOLDERS = sorted(folder for version in GOLDEN.parent.iterdir() for folder in version.iterdir())


def test_every_format_version_has_its_folders_one_for_each_decoder() -> None:
    assert {folder.parent.name for folder in FOLDERS} == {str(n + 1) for n in range(FORMAT_VERSION)}
    assert {folder.name for folder in FOLDERS} == {"adaptive", "attention", "lstm", "transformer"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_a_folder_of_an_older_showtell_says_what_it_said(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    assert config["format_version"] == int(folder.parent.name)
    captioner = Captioner.from_pretrained(folder)
    expected = json.loads((folder / "says.json").read_bytes())
    found = said(captioner)
    assert [each["text"] for each in found] == [each["text"] for each in expected]
    assert len({each["text"] for each in expected}) > 1
    assert [each["log_prob"] for each in found] == pytest.approx([each["log_prob"] for each in expected], abs=2e-3)

    captioner.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    again = json.loads((tmp_path / "again" / "config.json").read_bytes())
    assert again["weights_dtype"] == config["weights_dtype"]
    for part in ("encoder", "decoder"):  # a newer showtell may name options that were left out, with their defaults
        assert again[part]["config"].items() >= config[part]["config"].items()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_saving_over_such_a_folder_keeps_what_is_not_showtells(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    Captioner.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "copy", weights_dtype="float32")
    assert (tmp_path / "copy" / "says.json").read_bytes() == (folder / "says.json").read_bytes()
    assert [e["text"] for e in said(Captioner.from_pretrained(tmp_path / "copy"))] == [
        each["text"] for each in json.loads((folder / "says.json").read_bytes())
    ]
