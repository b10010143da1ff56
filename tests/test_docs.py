"""Every code block of README and docs runs; what shows a file is parsed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import showtell
from conftest import ROOT
from showtell import errors, hub

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> list[tuple[str, str]]:
    return [(m[1].strip(), m[2]) for m in FENCE.finditer(page.read_text(encoding="utf-8"))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks as a new user's does: the example photos, and a few own ones with captions."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    rows = ["image,caption"]
    for number, photo in enumerate(sorted((ROOT / "examples" / "images").glob("*.jpg")) * 3):
        shutil.copy(photo, holiday / f"{number}.jpg")
        rows.append(f"{number}.jpg,a picture of a {photo.stem}")
    shutil.copy(ROOT / "examples" / "images" / "cat.jpg", holiday / "beach.jpg")
    rows.append("beach.jpg,a cat looks into the camera")
    (holiday / "captions.csv").write_text("\n".join(rows) + "\n")
    scripts = tmp_path / "bin"
    scripts.mkdir()
    for name, module in (("showtell", "showtell"), ("torchrun", "torch.distributed.run")):
        (scripts / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (scripts / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_page_and_every_kind_of_block_is_known() -> None:
    known = {"python", "python hub", "bash", "text", "json", "toml", "bibtex"}
    assert {(page.name, kind) for page in PAGES for kind, _ in blocks(page) if kind not in known} == set()
    assert sum(kind == "python" for page in PAGES for kind, _ in blocks(page)) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_python_blocks_of_a_page_run_one_after_the_other(
    page: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(folder: Path, repo_id: str, **_: object) -> str:
        shutil.copytree(folder, workplace / "hub" / repo_id)
        return f"https://huggingface.co/{repo_id}"

    real = hub.resolve
    stand_in = workplace / "hub"
    monkeypatch.setattr(hub, "push", push)
    monkeypatch.setattr(
        hub, "resolve", lambda source, **k: stand_in / source if (stand_in / source).is_dir() else real(source, **k)
    )
    names: dict[str, object] = {"__name__": "docs"}
    for number, (kind, code) in enumerate(blocks(page)):
        if kind in ("python", "python hub"):
            exec(compile(code, f"{page.name}, block {number}", "exec"), names)
        elif kind == "json":
            for line in [code] if code.startswith("{\n") else code.splitlines():
                json.loads(line)
        elif kind == "toml":
            tomllib.loads(code)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_commands_of_a_page_run(page: Path, workplace: Path) -> None:
    for kind, code in blocks(page):
        # .ci/run gives the README's installing commands itself; data of shared/ is used by the results' own script.
        if kind == "bash" and "pip install" not in code and "flickr8k" not in code:
            done = subprocess.run(["bash", "-euc", code], capture_output=True, text=True, cwd=workplace, timeout=900)
            assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"


def test_the_api_reference_names_everything_public() -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    shown = {line.rsplit(".", 1)[-1] for line in text.splitlines() if line.startswith("::: ")} | set(errors.__all__)
    assert set(showtell.__all__) - shown == {"__version__"}


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    found = re.search(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found[1] == showtell.__version__
    assert f"version: {showtell.__version__}" in (ROOT / "CITATION.cff").read_text()
