"""Where else a run's numbers can go: TensorBoard and Weights & Biases, both optional and imported when asked for."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import ArgumentError, MissingPackageError, RunError
from ..journal import said_plainly

__all__ = ["LogWriter", "LoggedRun", "open_writers"]

Row = Mapping[str, Any]
_NAMES = {
    "val_cider_d": "validation/CIDEr-D",
    "val_bleu4": "validation/BLEU-4",
    "val_teacher_forced_loss": "validation/loss",
    "val_words": "validation/words",
    "val_bad_endings": "validation/bad_endings",
}
_NOT_SHOWN = ("kind", "step", "best")


@dataclass(frozen=True)
class LoggedRun:
    """The run that a writer logs.

    folder: its output. token: a name that no other run has, the same in all sessions. settings: the recipe's.
    """

    folder: Path
    token: str
    settings: Mapping[str, Any]


class LogWriter(Protocol):
    """Takes the rows of metrics.jsonl to somewhere else; `train(log_to=[...])` takes any object like this."""

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        """Start a session. `rows` are those before it, in order: whatever else an earlier session wrote is void."""
        ...

    def write(self, row: Row) -> None:
        """Take one more row; steps never fall."""
        ...

    def close(self) -> None:
        """End the session; also called when the training failed."""
        ...


def open_writers(names: Sequence[str | LogWriter]) -> list[LogWriter]:
    """Writers by name, "tensorboard" or "wandb", or objects of one's own.

    Example:
        >>> open_writers([])
        []

    Nothing is written before `begin`. Raises ArgumentError for an unknown name or one that is there twice,
    MissingPackageError, with what to install, when a package is absent.
    """
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ArgumentError(f'log_to is a list such as ["tensorboard"], not {names!r:.100}')
    made: list[LogWriter] = []
    for name in names:
        if isinstance(name, str):
            if name not in _WRITERS:
                raise ArgumentError(f"nothing to log to is called {name!r:.100}; known are {', '.join(_WRITERS)}")
            if list(names).count(name) > 1:
                raise ArgumentError(f"log_to names {name!r} twice")
            made.append(_WRITERS[name]())
        elif all(callable(getattr(name, method, None)) for method in ("begin", "write", "close")):
            made.append(name)
        else:
            raise ArgumentError(f"a writer has begin, write and close; {type(name).__name__} hasn't")
    return made


def _numbers(row: Row) -> dict[str, float]:
    """The numbers of a row under the names that both programs group by.

    Rows of steps and of evaluations have groups of their own: both have a training loss, over different steps.
    """
    group = "train" if row["kind"] == "steps" else "evaluation"
    return {
        _NAMES.get(key, f"{group}/{key if group == 'evaluation' else key.removeprefix('train_')}"): float(value)
        for key, value in row.items()
        if key not in _NOT_SHOWN and isinstance(value, int | float)
    }


class _TensorBoard:
    """Event files in the run's folder `tensorboard`, written anew by each session, so that no step is there twice."""

    def __init__(self) -> None:
        try:
            self._module: Any = importlib.import_module("torch.utils.tensorboard")
        except ImportError as error:
            raise MissingPackageError(
                'logging to tensorboard needs tensorboard: pip install "showtell[tensorboard]"'
            ) from error
        self._events: Any = None
        self._folder = Path()

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        self._folder = run.folder / "tensorboard"
        with said_plainly(self._folder):
            if self._folder.is_dir():
                for old in self._folder.glob("events.out.tfevents.*"):
                    old.unlink()
            # A TensorBoard that is open on the folder forgets what it has read: step 0 and all after it come again.
            self._events = self._module.SummaryWriter(str(self._folder), purge_step=0)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        with said_plainly(self._folder):
            for name, value in _numbers(row).items():
                self._events.add_scalar(name, value, row["step"])
            if row["kind"] == "evaluation":
                self._events.flush()

    def close(self) -> None:
        if self._events is not None:
            with said_plainly(self._folder):
                self._events.close()


class _Wandb:
    """One run of Weights & Biases; what it has already isn't sent again. `WANDB_MODE=offline` keeps it on this disk."""

    def __init__(self) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise MissingPackageError('logging to wandb needs wandb: pip install "showtell[wandb]"') from error
        self._run: Any = None

    def begin(self, run: LoggedRun, rows: Sequence[Row]) -> None:
        with self._said_plainly():
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "showtell",
                name=run.folder.resolve().name,
                id=run.token,
                resume="allow",
                dir=str(run.folder),
                config=dict(run.settings),
            )
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        # What lies before its present step was logged by an earlier session: the same numbers.
        if row["step"] >= self._run.step:
            with self._said_plainly():
                self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        if self._run is not None:
            with self._said_plainly():
                self._run.finish()

    @contextmanager
    def _said_plainly(self) -> Iterator[None]:
        try:
            yield
        except self._wandb.Error as error:
            raise RunError(
                f"Weights & Biases can't go on ({' '.join(str(error).split()):.300}); log in (wandb login), keep the "
                "run on this disk (WANDB_MODE=offline), or log without it: the same command then continues the run"
            ) from error


_WRITERS: dict[str, Any] = {"tensorboard": _TensorBoard, "wandb": _Wandb}
