"""The benchmarks of training go through on tiny data; what they measure is of no interest here."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from showtell import read_dataset

BENCHMARKS = ROOT / "benchmarks"


def measured(script: str, *options: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / script), *options, "--device", "cpu", "--threads", "1"]
    path = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, env=path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(out.read_bytes())
    assert {"cpu", "cores", "threads", "commit"} <= set(found["machine"])
    assert {"showtell", "torch", "python"} <= set(found["versions"])
    return found


@pytest.fixture
def rehearsal(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rehearsal")


def test_the_made_up_coco_is_read_as_karpathys(rehearsal: Any, tmp_path: Path) -> None:
    assert rehearsal.make_data(tmp_path / "coco", 240) == 226
    dataset = read_dataset(tmp_path / "coco")
    assert dataset.problems == ()
    assert {name: len(dataset.split(name)) for name in ("train", "val", "test")} == {"train": 226, "val": 10, "test": 4}
    assert {len(record.captions) for record in dataset.records} == {5}
    assert all(8 <= len(caption.split()) <= 13 for record in dataset.records for caption in record.captions)


def test_the_made_up_words_are_ten_thousand_and_as_frequent_as_zipf_says(rehearsal: Any) -> None:
    words = rehearsal.words()
    assert len(set(words)) == len(words) == 10_000
    said = [word for sentence in rehearsal.sentences(20_000, rehearsal.np.random.default_rng(0)) for word in sentence]
    # 1 / 3 against 1 / 12 for the words of rank 1 and 10
    assert said.count(words[0]) / said.count(words[9]) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("train", "expected"), [(113_000, (113, 100)), (226, (1, 23)), (1000, (1, 100))])
def test_an_epoch_at_cocos_size_has_a_hundred_steps(rehearsal: Any, train: int, expected: tuple[int, int]) -> None:
    assert rehearsal.plan(train) == expected


@pytest.mark.slow
def test_training_is_measured(tmp_path: Path) -> None:
    tiny = ["--quick", "--encoder", "torchvision:resnet18", "--size", "32", "--count", "3", "--words", "200"]
    found = measured("training.py", *tiny, out=tmp_path / "out.json")
    assert found["quick"]
    assert found["words"] == 200
    for name in ("lstm.v1", "attention-lstm.v1"):
        epoch = found["a: an epoch"][name]
        assert epoch["photos"] == 3
        assert all(seconds > 0 for seconds in epoch["seconds for 1,000 photos"].values())
        assert found["b: trainer and bare loop"][name]["trainer over bare"] > 0
    assert found["c: default recipe"]["cross entropy"]["captions_per_s"] > 0


@pytest.mark.slow
def test_the_rehearsal_goes_through(tmp_path: Path) -> None:
    found = measured(
        "rehearsal.py", "--records", "240", "--encoder", "torchvision:shufflenet_v2_x0_5", out=tmp_path / "out.json"
    )
    marks = list(found["run"].values())
    assert [mark["at_s"] for mark in marks] == sorted(mark["at_s"] for mark in marks)
    assert [mark["peak_mb"] for mark in marks] == sorted(mark["peak_mb"] for mark in marks)
    assert found["start_up_s"] == found["run"]["first step done"]["at_s"]
    assert found["fill"]["photos"] == 236
    assert "step 23 done" in found["run"]
    assert found["pieces"]["opening the cache"]["seconds"] >= 0
