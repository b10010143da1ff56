"""TensorBoard and Weights & Biases get the rows of metrics.jsonl, each once, however often a run was stopped."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from showtell import ArgumentError, MissingPackageError, RunError
from showtell.training import train
from showtell.training.log_writers import LoggedRun, open_writers
from test_run import SETTINGS, StopError, go, metrics, start_captioner, write_photos

VALIDATION = {
    "val_cider_d": "validation/CIDEr-D",
    "val_bleu4": "validation/BLEU-4",
    "val_teacher_forced_loss": "validation/loss",
    "val_words": "validation/words",
    "val_bad_endings": "validation/bad_endings",
}
STEPS = {
    "train_loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
    "data_share": "train/data_share",
    "epoch": "train/epoch",
}
EVALUATION = {
    "train_loss": "evaluation/train_loss",
    "learning_rate": "evaluation/learning_rate",
    "data_share": "evaluation/data_share",
    "epoch": "evaluation/epoch",
}


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "album")


def stopped(data: Path, output: Path, at: str, **options: Any) -> None:
    """A run that ends when it says a line that begins so."""

    def say(text: str) -> None:
        if text.startswith(at):
            raise StopError

    with pytest.raises(StopError):
        train(data, output, init=start_captioner(), overrides=SETTINGS, threads=1, show=False, say=say, **options)


def expected(folder: Path) -> Counter[tuple[str, int, float]]:
    """What metrics.jsonl holds, as (name, step, value)."""
    found: Counter[tuple[str, int, float]] = Counter()
    for row in metrics(folder):
        names = STEPS if row["kind"] == "steps" else EVALUATION | VALIDATION
        assert set(row) <= {*names, "kind", "step", "best", "objective"}
        found.update((names[key], row["step"], value) for key, value in row.items() if key in names)
    return found


# --- tensorboard ------------------------------------------------------------------------------------------------------


def scalars(folder: Path) -> Counter[tuple[str, int, float]]:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return Counter((tag, event.step, event.value) for tag in found.Tags()["scalars"] for event in found.Scalars(tag))


def rounded(counts: Counter[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    """Event files hold single precision."""
    return sorted((name, step, float(np.float32(value))) for name, step, value in counts.elements())


def test_tensorboard_shows_each_number_once_though_the_run_was_stopped_twice(
    album: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard", reason='needs pip install "showtell[tensorboard]"')
    stopped(album, tmp_path / "run", "step 3 ", log_to=["tensorboard"])
    stopped(album, tmp_path / "run", "step 9 ", log_to=["tensorboard"])
    (tmp_path / "run" / "tensorboard" / "notes.txt").write_text("mine")
    go(album, tmp_path / "run", log_to=["tensorboard"])
    assert rounded(scalars(tmp_path / "run")) == rounded(expected(tmp_path / "run"))
    assert (tmp_path / "run" / "tensorboard" / "notes.txt").read_text() == "mine"
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1


def test_a_place_that_tensorboard_cant_write_to_is_named(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs pip install "showtell[tensorboard]"')
    (tmp_path / "tensorboard").write_text("mine")
    (writer,) = open_writers(["tensorboard"])
    with pytest.raises(RunError, match=r"tensorboard can't be written: .*; choose another place"):
        writer.begin(LoggedRun(tmp_path, "token", {}), [])
    writer.close()
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_tensorboard_can_be_asked_for_later_and_has_the_run_from_its_start(
    album: Path,
    tmp_path: Path,
) -> None:
    pytest.importorskip("tensorboard", reason='needs pip install "showtell[tensorboard]"')
    stopped(album, tmp_path / "run", "step 6 ")
    go(album, tmp_path / "run", log_to=["tensorboard"])
    steps = {step for name, step, _ in scalars(tmp_path / "run") if name == "validation/CIDEr-D"}
    assert steps == {0, 3, 6, 9, 12}


# --- wandb ------------------------------------------------------------------------------------------------------------


class Service:
    """Stands in for the module wandb: remembers what was logged by run, as its server does."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.logged: dict[str, list[tuple[int, dict[str, float]]]] = {}
        self.finished = 0
        self.refuses = ""

    def init(self, **options: Any) -> Any:
        if self.refuses:
            raise self.Error(self.refuses)
        self.inits.append(options)
        history = self.logged.setdefault(options["id"], [])
        run = SimpleNamespace(step=history[-1][0] + 1 if history else 0)

        def log(values: dict[str, float], *, step: int) -> None:
            assert step >= run.step, "wandb warns and drops this"
            run.step = step
            history.append((step, dict(values)))

        def finish() -> None:
            self.finished += 1

        run.log, run.finish = log, finish
        return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service)  # type: ignore[arg-type]
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return service  # type: ignore[return-value]


def test_wandb_gets_each_row_once_under_one_name_though_the_run_was_stopped(
    album: Path,
    tmp_path: Path,
    wandb: Service,
) -> None:
    stopped(album, tmp_path / "run", "step 6 ", log_to=["wandb"])
    assert wandb.finished == 1  # closed though the training failed
    go(album, tmp_path / "run", log_to=["wandb"])
    (token,) = wandb.logged
    sent = [(name, step, value) for step, values in wandb.logged[token] for name, value in values.items()]
    steps = Counter((name, step) for name, step, _ in sent)
    assert steps == Counter((name, step) for name, step, _ in expected(tmp_path / "run").elements())
    losses = {(step, value) for name, step, value in sent if name == "train/loss"}
    rows = [row for row in metrics(tmp_path / "run") if row["kind"] == "steps"]
    assert losses == {(row["step"], row["train_loss"]) for row in rows}
    for options in wandb.inits:
        assert (options["project"], options["name"], options["resume"]) == ("showtell", "run", "allow")
        assert options["config"]["photos"] == 4
        assert options["dir"] == str(tmp_path / "run")
    go(album, tmp_path / "run", log_to=["wandb"], restart=True, overrides={"epochs": 1, "min_steps": 0})
    assert len(wandb.logged) == 2  # another run has another name


def test_wandb_that_refuses_says_what_to_do_and_the_run_can_go_on(
    album: Path,
    tmp_path: Path,
    wandb: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wandb.refuses = "api_key not configured (no-tty)"
    short = {"epochs": 1, "min_steps": 0}
    with pytest.raises(RunError, match=r"api_key not configured.*WANDB_MODE=offline"):
        go(album, tmp_path / "run", log_to=["wandb"], overrides=short)
    wandb.refuses = ""
    monkeypatch.setenv("WANDB_PROJECT", "walls")
    assert go(album, tmp_path / "run", log_to=["wandb"], overrides=short).steps == 3
    assert wandb.inits[0]["project"] == "walls"


def test_a_session_writes_again_what_the_one_before_lost(tmp_path: Path, wandb: Service) -> None:
    rows = [{"kind": "steps", "step": step, "train_loss": 1.0 / step, "best": True} for step in (2, 4, 6, 8)]
    wandb.logged["abc"] = [(2, {"train/loss": 0.5})]  # killed before 4 and 6 were sent
    (writer,) = open_writers(["wandb"])
    writer.begin(LoggedRun(tmp_path, "abc", {}), rows[:3])
    writer.write(rows[3])
    assert wandb.logged["abc"] == [(step, {"train/loss": 1.0 / step}) for step in (2, 4, 6, 8)]


# --- which ones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_an_absent_package_is_named_before_anything_is_written(
    album: Path,
    tmp_path: Path,
    name: str,
    module: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=rf'pip install "showtell\[{name}\]"'):
        go(album, tmp_path / "run", log_to=[name])
    assert not (tmp_path / "run").exists()


def test_clumsy_names_are_refused() -> None:
    for names in (["tensorbord"], "tensorboard", ["wandb", "wandb"], [5], 5):
        with pytest.raises(ArgumentError):
            open_writers(names)  # type: ignore[arg-type]


class Notes:
    """A writer of one's own."""

    def __init__(self) -> None:
        self.sessions: list[list[Any]] = []
        self.closed = 0

    def begin(self, run: LoggedRun, rows: Sequence[Mapping[str, Any]]) -> None:
        self.sessions.append([dict(row) for row in rows])

    def write(self, row: Mapping[str, Any]) -> None:
        self.sessions[-1].append(dict(row))

    def close(self) -> None:
        self.closed += 1


def test_a_writer_of_ones_own_is_told_every_row(album: Path, tmp_path: Path) -> None:
    notes = Notes()
    stopped(album, tmp_path / "run", "step 6 ", log_to=[notes])
    go(album, tmp_path / "run", log_to=[notes])
    assert notes.sessions[-1] == metrics(tmp_path / "run")
    assert len(notes.sessions) == notes.closed == 2
