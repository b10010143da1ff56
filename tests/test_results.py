"""scripts/results on tiny data: it trains chains of runs, goes on where it was stopped, and says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from test_run import write_photos

ROWS = """
[run.words]
options = '''--init none --encoder efficientnet-lite0 --set pretrained=false --set image_size=32 --set embed_dim=8
--set hidden_dim=8 --set epochs=2 --set min_steps=2 --set search=greedy'''

[run.pupil]
options = '''--init none --encoder efficientnet-lite0 --set pretrained=false --set image_size=32 --set embed_dim=8
--set hidden_dim=8 --set epochs=1 --set min_steps=2 --set search=greedy'''
teachers = ["words", "words:1"]

[run.score]
after = "pupil"
search = "beam:2"
after_seed = 0
beside = "words:1"
options = "--set objective=self-critical --set epochs=1 --set min_steps=1"

[[row]]
title = "Words, tiny"
run = "words"
seeds = [0, 1]

[[row]]
title = "Words, then the score"
run = "score"
seeds = [3]
"""
PAGE = """# Results

<!-- table: scripts/results -->
<!-- end of table -->

Between.

<!-- commands: scripts/results -->
<!-- end of commands -->

After.
"""


@pytest.mark.slow
def test_rows_are_trained_resumed_and_marked_unfinished(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra viz")
    data = write_photos(tmp_path / "photos", repeats=4)
    (tmp_path / "rows.toml").write_text(ROWS)
    page, figures = tmp_path / "results.md", tmp_path / "figures.json"
    page.write_text(PAGE)
    (tmp_path / "images").mkdir()

    def go(*options: str) -> tuple[str, dict[str, Any]]:
        command = [
            sys.executable, str(ROOT / "scripts" / "results"), str(data), "--output", str(tmp_path / "runs"), "--rows",
            str(tmp_path / "rows.toml"), "--json", str(figures), "--page", str(page), "--own-scores", *options,
        ]  # fmt: skip
        path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        done = subprocess.run(command, capture_output=True, text=True, env=path, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, json.loads(figures.read_bytes())["runs"]

    said, runs = go("--only", "words", "--seeds", "0")
    assert said.count("$ showtell train") == 1
    assert list(runs["words"]) == ["0"]
    assert runs["score"] == {}
    text = page.read_text()
    assert "unfinished: 1 of 2" in text
    assert "| Words, then the score | unfinished |" in text

    said, runs = go()
    assert said.count("$ showtell train") == 3  # the other seed, and the chain of two; its teacher is there
    assert list(runs["words"]) == ["0", "1"]
    assert [training["name"] for training in runs["score"]["3"]["trainings"]] == ["pupil", "score"]
    assert "search:beam:size=2" in runs["score"]["3"]["signature"]
    result = json.loads((tmp_path / "runs" / "score-3.json").read_bytes())
    assert runs["score"]["3"]["scores"]["CIDEr-D"] == pytest.approx(result["scores"]["CIDEr-D"], abs=1e-4)
    text = page.read_text()
    assert "unfinished" not in text
    assert text.endswith("\nAfter.\n")
    assert "\nBetween.\n" in text
    assert (tmp_path / "images" / "results.svg").stat().st_size > 1000
    assert "--init " + str(tmp_path / "runs" / "pupil-0") in runs["score"]["3"]["commands"][1]
    assert "--beside " + str(tmp_path / "runs" / "words-1") in runs["score"]["3"]["commands"][1]
    for command in runs["score"]["3"]["commands"]:
        assert command in text

    said, again = go()
    assert "$ showtell" not in said
    assert again == runs
    assert page.read_text() == text

    (tmp_path / "runs").rename(tmp_path / "elsewhere")  # figures of runs that are gone stay
    assert go("--no-training")[1] == runs


def test_the_page_says_what_the_figures_say() -> None:
    """docs/results.md is what scripts/results made of benchmarks/results/flickr8k.json."""
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    runs = json.loads((ROOT / "benchmarks" / "results" / "flickr8k.json").read_bytes())["runs"]
    assert sum(map(len, runs.values())) >= 2
    for seeds in runs.values():
        for seed, run in seeds.items():
            assert f"- seed {seed}: " + ", ".join(f"{m} {v:.4f}" for m, v in run["pycocoevalcap"].items()) in text
            assert run["scores"] == pytest.approx(run["pycocoevalcap"], abs=1e-4)
