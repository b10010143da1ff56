"""Several processes do the work of one: the same steps, features, captions and files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import ranks_worker as worker
from showtell.data import Shard
from showtell.errors import ArgumentError, RunError
from showtell.ranks import ALONE, Place, Ranks, joined, local_device, place
from showtell.testing import tiny_captioner
from showtell.training.precision import Precision

HERE = Path(__file__).parent
PATIENCE = 1200  # seconds for children on a busy machine; none of them should ever need it


def environment() -> dict[str, str]:
    paths = [str(HERE.parent / "src"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on this machine."""
    options = ("--standalone", "--nproc-per-node=2")
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def close(found: Any, expected: Any, rel: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rel, atol=rel / 1000, check_dtype=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves behind, for two to go on with."""
    folder = tmp_path_factory.mktemp("ranks")
    worker.cached(ALONE, folder / "alone", worker.records())
    shutil.copytree(folder / "alone", folder / "begun")
    for name, size in (("state.u8", 1), ("pooled.f16", 16), ("grid.f16", 256), ("boxes.f32", 256)):
        with (folder / "begun" / name).open("r+b") as file:
            for start in (0, 4, 6):  # one photo of each chunk that a killed run has not marked as done
                file.seek(start * size)
                file.write(bytes(size))
    worker.run(folder / "alone-run")
    shutil.copytree(folder / "alone-run", folder / "alone-begun")
    state = json.loads((folder / "alone-begun" / "run.json").read_bytes())
    assert state["settings"]["processes"] == 1
    (folder / "alone-begun" / "run.json").write_text(json.dumps({**state, "finished": None}))
    shutil.rmtree(folder / "alone-begun" / "checkpoints" / "step-00000006")
    return folder


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found, before the second one failed on purpose."""
    done = torchrun(str(HERE / "ranks_worker.py"), "all", str(folder))
    assert (folder / "found-0.pt").exists(), done.stderr
    assert (folder / "found-1.pt").exists(), done.stderr
    assert done.returncode != 0
    assert "OSError: this process fails on purpose" in done.stderr
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]


def steps_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    close(found["weights"], expected["weights"])
    close(found["average"], expected["average"])
    for mine, alone in zip(found["reports"], expected["reports"], strict=True):
        for name in ("step", "tokens", "learning_rate", "skipped"):
            assert mine[name] == alone[name]
        for name in ("loss", "terms", "notes", "grad_norm"):
            close(mine[name], alone[name])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("name", worker.OBJECTIVES)
def test_two_processes_give_the_steps_of_one(both: list[dict[str, Any]], name: str, accumulate: int) -> None:
    expected = worker.trained(ALONE, name, accumulate)
    first = {k: v.clone() for k, v in tiny_captioner(decoder="attention-lstm.v1").double().state_dict().items()}
    assert any(not torch.equal(v, expected["weights"][k]) for k, v in first.items())
    for found in both:
        steps_equal(found[f"{name} {accumulate}"], expected)
    mine, other = (found[f"{name} {accumulate}"]["weights"] for found in both)
    assert all(torch.equal(value, other[key]) for key, value in mine.items())


def test_weights_without_a_gradient_anywhere_are_left_alone_by_weight_decay(both: list[dict[str, Any]]) -> None:
    expected = worker.trained(ALONE, "cross-entropy", 2, adam=True)
    for found in both:
        steps_equal(found["adam"], expected)
        assert found["adam"]["weights"]["decoder.idle"].tolist() == [1.0, 1.0]


def test_memory_that_runs_out_in_one_process_makes_both_take_fewer_photos(both: list[dict[str, Any]]) -> None:
    expected = worker.trained(ALONE, "cross-entropy", 1, loss=worker.CrossEntropy())
    for found in both:
        memory = found["memory"]
        close(memory["weights"], expected["weights"])
    assert {found["memory"]["reports"][-1]["photos_at_once"] for found in both} == {1}


def test_what_batch_norms_count_is_the_same_everywhere(both: list[dict[str, Any]]) -> None:
    mine, other = (found["norm"]["weights"] for found in both)
    assert any("running_mean" in name for name in mine)
    assert all(torch.equal(value, other[name]) for name, value in mine.items())
    # Means of (1, 2) with 3 rows and (2, 3) with one; the larger of the counts 3 and 4.
    assert [found["agreed"] for found in both] == [[[1.25, 2.25], [1.0, 1.0], 4]] * 2


def test_an_error_in_one_process_stops_both(both: list[dict[str, Any]]) -> None:
    assert both[1]["failed"] == "ValueError: no such thing"
    assert both[0]["failed"].startswith("RunError: process 2 of 2 can't go on")
    assert "no such thing" in both[0]["failed"]
    for found in both:
        assert found["same"] == "RunError: process 2 of 2 has another data than the first; start all alike"


def test_features_made_by_two_processes_are_those_of_one(both: list[dict[str, Any]], folder: Path) -> None:
    names = sorted(path.name for path in (folder / "alone").iterdir())
    for made in ("cache", "begun"):
        assert sorted(path.name for path in (folder / made).iterdir()) == names
        for name in names:
            assert (folder / made / name).read_bytes() == (folder / "alone" / name).read_bytes(), (made, name)
    for found in both:
        assert found["cached"] == found["continued"] == []
        assert found["bad"] == [3]
        assert found["refused"].startswith("DataError: 1 of 7 photos can't be read")


def test_evaluation_by_two_processes_is_that_of_one(both: list[dict[str, Any]]) -> None:
    scored, loss = worker.validated(ALONE)
    first, second = (found["validated"] for found in both)
    assert first == second
    found, found_loss = first
    assert [caption for caption, _ in found[:-1]] == [caption for caption, _ in scored[:-1]]
    # A test may run with more threads than its processes have, which round float32 otherwise.
    assert [log_prob for _, log_prob in found[:-1]] == pytest.approx([each for _, each in scored[:-1]], rel=1e-6)
    assert (found[-1], found_loss) == (scored[-1], pytest.approx(loss, rel=1e-6))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def runs_equal(found: Path, alone: Path) -> None:
    """Float32 sums in another order: close, not equal."""
    assert files(found) == files(alone)
    assert len(rows(found)) == len(rows(alone)) > 6
    for mine, other in zip(rows(found), rows(alone), strict=True):
        assert mine.keys() == other.keys()
        for name in mine.keys() & {"step", "epoch", "kind", "learning_rate", "best"}:
            assert mine[name] == other[name]
        for name in mine.keys() & {"train_loss", "val_teacher_forced_loss", "grad_norm"}:
            assert mine[name] == pytest.approx(other[name], rel=1e-4)
    close(load_file(found / "model.safetensors"), load_file(alone / "model.safetensors"), 2e-3)


def test_a_run_of_two_processes_is_that_of_one(both: list[dict[str, Any]], folder: Path) -> None:
    runs_equal(folder / "run", folder / "alone-run")
    ours, others = both[0]["run"], both[1]["run"]
    assert ours["steps"] == 6
    assert ours["heard"][-1].startswith("done after 6 steps")
    assert ours["written"] == [row["step"] for row in rows(folder / "run")] + [-1]
    assert others["heard"] == others["written"] == []
    assert {**ours, "heard": [], "written": []} == others
    assert both[0]["again"]["heard"][-1].endswith("does it again")
    assert json.loads((folder / "run" / "run.json").read_bytes())["settings"]["processes"] == 2


def test_a_script_that_torchrun_started_may_train_more_than_once(both: list[dict[str, Any]], folder: Path) -> None:
    for name in ("joined", "joined again"):
        assert both[0][name]["steps"] == both[1][name]["steps"] == 6
        model = (folder / name / "model.safetensors").read_bytes()
        assert model == (folder / "run" / "model.safetensors").read_bytes()


def test_a_run_begun_by_one_process_is_continued_by_two(both: list[dict[str, Any]], folder: Path) -> None:
    heard = both[0]["begun with one"]["heard"]
    assert any("processes 1 -> 2" in line for line in heard)
    assert "continuing from step 5 of 6" in heard
    runs_equal(folder / "alone-begun", folder / "alone-run")


def test_processes_that_do_not_fit_together_are_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert "process 2 of 2 has another data than the first" in found["other data"]
    assert "process 2 of 2 can't go on" in both[0]["other folder"]
    assert "this process doesn't see in" in both[1]["other folder"]


def test_a_process_without_photos_scales_back_the_float16_gradients_of_others() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    precision = Precision("fp16", [weight])
    weight.grad = torch.tensor([65536.0, 3 * 65536.0])
    precision.unscale(torch.optim.SGD([weight]))
    assert weight.grad.tolist() == [1.0, 3.0]
    precision.passed()


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    batches = worker.parts(tiny_captioner())
    for number in range(6):
        whole = batches.batch(number)
        for count in (1, 2, 3, 5):
            made = [Shard(batches, rank, count).batch(number) for rank in range(count)]
            some = [part for part in made if part is not None]
            assert made[len(some) :] == [None] * (count - len(some))
            sizes = [part.photo_count for part in some]
            assert sum(sizes) == whole.photo_count
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[0] - sizes[-1] < 2
            for name in ("inputs", "tokens", "targets", "weights"):
                assert torch.equal(torch.cat([getattr(part, name) for part in some]), getattr(whole, name))
            assert sum((part.photos for part in some), ()) == whole.photos
            assert sum((part.references for part in some), ()) == whole.references
    with pytest.raises(ArgumentError, match="rank"):
        batches.part(0, 2, 2)


def test_shares_are_woven_back_in_order() -> None:
    items = list(range(7))
    shares = [Ranks(Place(rank, 3, rank)).own(items) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]

    class Told(Ranks):
        def _gather(self, value: Any) -> list[Any]:
            return shares

    assert Told(Place(1, 3, 1)).woven([1, 4]) == items


def test_the_place_is_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() == (0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert place() == (0, 1, 0)  # not all of torchrun's names: somebody else's
    for name, value in (("RANK", "3"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert place() == (3, 4, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert local_device("device", "cuda") == "cuda:1"
    assert local_device("device", "cpu") == "cpu"
    with pytest.raises(ArgumentError, match="say cuda"):
        local_device("device", "cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ArgumentError, match="--nproc-per-node=2"):
        local_device("device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert local_device("device", "cuda") == "cuda:0"
    monkeypatch.setenv("RANK", "4")
    with pytest.raises(RunError, match="RANK=4"):
        place()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(RunError, match="no number"):
        place()


def test_a_single_process_of_torchrun_joins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "nowhere.invalid"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with joined(torch.device("cpu")) as ranks:
        assert ranks is ALONE
    assert not torch.distributed.is_initialized()
