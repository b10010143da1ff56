"""Runs of several processes from outside: the command line, kills, two machines' agents."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from showtell.cli import main
from test_ranks import HERE, PATIENCE, environment, files, rows, runs_equal, torchrun

TRAIN = [
    *("train", "--init", "none", "--threads", "1", "--device", "cpu"),
    *(part for pair in ("hidden_dim=16", "embed_dim=16", "dropout=0") for part in ("--set", pair)),
    *(part for pair in ("epochs=2", "min_steps=6", "photos=3", "search=greedy") for part in ("--set", pair)),
    *("--set", "log_every_steps=1"),
]
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "black": (9, 9, 9)}


def ours(out: str) -> str:
    """Without what Gloo says there with torch 2.8."""
    return "".join(line for line in out.splitlines(keepends=True) if not line.startswith("[Gloo] "))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos, two of them to validate on."""
    folder = tmp_path_factory.mktemp("walls")
    lines = ["image,caption,split"]
    for number in range(2):
        for name, colour in COLOURS.items():
            Image.new("RGB", (40, 30), colour).save(folder / f"{name}{number}.png")
            split = "val" if number and name in ("red", "blue") else "train"
            lines += [f"{name}{number}.png,a {name} wall,{split}", f"{name}{number}.png,a wall of {name},{split}"]
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process."""
    output = tmp_path_factory.mktemp("alone") / "run"
    assert main([*TRAIN, "--data", str(data), "--output", str(output)]) == 0
    return output


@pytest.mark.slow
def test_the_command_line_trains_and_evaluates_with_two_processes(
    data: Path, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    done = torchrun("-m", "showtell", *TRAIN, "--data", str(data), "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert ours(done.stdout) == f"{output}\n"
    assert done.stderr.count("done after 6 steps") == 1
    runs_equal(output, alone)
    evaluating = ["evaluate", "--data", str(data), "--split", "all", "--batch-size", "3", "--device", "cpu"]
    evaluating += ["--model", str(output)]
    capsys.readouterr()
    assert main([*evaluating, "--output", str(tmp_path / "one.json")]) == 0
    expected = capsys.readouterr().out
    done = torchrun("-m", "showtell", *evaluating, "--output", str(tmp_path / "two.json"))
    assert done.returncode == 0, done.stderr
    assert ours(done.stdout) == expected
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()


@pytest.mark.slow
def test_two_agents_as_on_two_machines_train_together(data: Path, alone: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}"),
                *("--master-addr=127.0.0.1", f"--master-port={port}", "--nproc-per-node=1"),
                *("-m", "showtell", *TRAIN, "--data", str(data), "--output", str(tmp_path / "run")),
            ],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [agent.communicate(timeout=PATIENCE) for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert [ours(out) for out, _ in said] == [f"{tmp_path / 'run'}\n", ""]
    runs_equal(tmp_path / "run", alone)


# --- kill -9 ----------------------------------------------------------------------------------------------------------

BASE = {"epochs": 5, "min_steps": 10, "photos": 3}
CHANGED = {"train_encoder": True, "encoder_learning_rate": 1e-3, "encoder_start_epoch": 1, "flip": 0.5, "contrast": 0.3}
PLANS: dict[str, dict[str, Any]] = {
    "words": {**BASE, **CHANGED},
    "scores": {**BASE, "objective": "self-critical", "self_critical_samples": 3},
    "both": {**BASE, **CHANGED, "epochs": 2, "min_steps": 4, "self_critical_epochs": 3, "self_critical_samples": 3},
    "sampling": {**BASE, "objective": "scheduled-sampling", "sampling": 0.5},
}


def two(folder: Path, store: str, output: str, plan: str) -> list[subprocess.Popen[bytes]]:
    """Two processes that meet at a file, so that each can be killed."""
    command = ["2", str(folder / store), str(folder / output), json.dumps(PLANS[plan])]
    with (folder / f"{store}.txt").open("wb") as log:
        return [
            subprocess.Popen(
                [sys.executable, str(HERE / "ranks_worker.py"), "one", str(rank), *command],
                env=environment(),
                stdout=log,
                stderr=log,
            )
            for rank in range(2)
        ]


def state(folder: Path) -> dict[str, Any]:
    """Everything in the last checkpoint that no clock says."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    held: dict[str, Any] = torch.load(last / "training.pt", weights_only=True)
    return {"name": last.name, "model": held["model"], "trainer": held["trainer"]}


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Names of what isn't equal to the bit."""
    if isinstance(expected, dict) and found.keys() == expected.keys():
        return [name for key in expected for name in differences(found[key], expected[key], f"{where}.{key}")]
    if isinstance(expected, list) and len(found) == len(expected):
        return [name for i, each in enumerate(expected) for name in differences(found[i], each, f"{where}[{i}]")]
    equal = torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected
    return [] if equal else [where]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills")
@pytest.mark.parametrize("plan", PLANS)
def test_two_processes_killed_and_started_again_end_in_the_same_bytes(plan: str, tmp_path: Path) -> None:
    for process in two(tmp_path, "whole-store", "whole", plan):
        assert process.wait(PATIENCE) == 0, (tmp_path / "whole-store.txt").read_text()
    killed = two(tmp_path, "first-store", "killed", plan)
    until = time.monotonic() + PATIENCE
    while not (tmp_path / "killed" / "checkpoints" / "step-00000005").exists():
        assert time.monotonic() < until
        assert all(process.poll() is None for process in killed), (tmp_path / "first-store.txt").read_text()
        time.sleep(0.005)
    for process in killed:
        os.kill(process.pid, signal.SIGKILL)
    assert [process.wait(PATIENCE) for process in killed] == [-signal.SIGKILL] * 2
    assert not json.loads((tmp_path / "killed" / "run.json").read_bytes())["finished"]
    for process in two(tmp_path, "second-store", "killed", plan):
        assert process.wait(PATIENCE) == 0, (tmp_path / "second-store.txt").read_text()
    assert "continuing from step" in "".join(path.read_text() for path in tmp_path.glob("second-store.txt"))
    whole, found = tmp_path / "whole", tmp_path / "killed"
    assert (found / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert differences(state(found), state(whole)) == []
    assert "optimizer" in state(whole)["trainer"]
    assert "average" in state(whole)["trainer"]
    assert files(found) == files(whole)
    timed = {"tokens_per_second", "data_share"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in rows(found)] == [
        {k: v for k, v in row.items() if k not in timed} for row in rows(whole)
    ]
