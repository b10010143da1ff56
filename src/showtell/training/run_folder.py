"""The folder of a run: who it belongs to, its checkpoints, and the best captioner so far."""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from .. import journal, storage
from ..errors import RunError, ShowtellError
from ..ranks import Ranks

__all__ = ["RunFolder"]

_CAPTIONER_FILES = ("config.json", "tokenizer.json", "model.safetensors", "README.md")
_FREQUENCIES = "frequencies.bin"
_REWARDS = "reward-frequencies.bin"
_TAUGHT = "soft-targets.npz"
_LOGS = ("tensorboard", "wandb")
_OWN_FILES = ("metrics.jsonl", "report.html", _FREQUENCIES, _REWARDS, _TAUGHT, "run.json")
_OWN = (*_OWN_FILES, "checkpoints", "features", *_LOGS, *_CAPTIONER_FILES)
_STEP = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"\.(old-\d{8,}|step-\d{8,}\.showtell-new)")  # half deleted, half written
_KEEP = 2
_TRIES = 20
_FORMAT = "showtell.run"


class RunFolder:
    """One training run on disk: `run.json`, `checkpoints/step-00000123/`, `metrics.jsonl`, and the best captioner.

    Beside these, what a run would only compute again: `features/`, `frequencies.bin`, `reward-frequencies.bin`,
    `soft-targets.npz`; `report.html`; and what other programs were asked to log, `tensorboard/` and `wandb/`.

    A checkpoint is a saved captioner with a `training.pt` that holds everything else needed to continue to the bit.
    Everything is written beside and renamed, so a run that is killed at any moment leaves whole files only.

    Of several processes only the first writes; the others `follow` it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is made before `open`."""
        self.path = Path(path)
        self.features = self.path / "features"
        self.frequencies = self.path / _FREQUENCIES
        self.report = self.path / "report.html"
        self.reward_frequencies = self.path / _REWARDS
        self.soft_targets = self.path / _TAUGHT
        self._checkpoints = self.path / "checkpoints"
        self._run: dict[str, Any] = {}

    def alone(self) -> AbstractContextManager[None]:
        """Be the only process at work here, for a while; raises RunError when another one is."""
        with journal.said_plainly(self.path):
            if self.path.exists() and not self.path.is_dir():
                raise RunError(f"{self.path} is a file; choose a folder for the run")
        return journal.alone(self.path)

    def open(self, identity: Mapping[str, Any], settings: Mapping[str, Any], *, restart: bool) -> dict[str, Any] | None:
        """Take the folder for this run; returns the result if the run is finished already.

        identity: what must be equal for the run to continue, JSON values; settings: what is only noted down.
        A run that hasn't saved anything yet gives way to any other. Raises RunError when the folder belongs to
        another run, naming what differs, or holds files of somebody else.
        """
        run = self._read()
        if run is None:
            taken = [name for name in _OWN if (self.path / name).exists() and name != "features"]
            if taken:
                raise RunError(
                    f"{self.path} holds {', '.join(taken)}, and they are not of a training run; choose another output"
                )
        elif restart:
            self._run = {**run, "finished": None}
            self._clear()
        elif run["finished"] is not None or self._steps():
            self._check(run["identity"], identity)
            self._run = run
            finished: dict[str, Any] | None = run["finished"]
            whole = all((self.path / name).is_file() for name in _CAPTIONER_FILES[:3])
            if finished is not None and whole:
                return finished
            if not run.get("token"):  # begun by an earlier version
                run["token"] = secrets.token_hex(8)
                self._write_run()
            return None  # a captioner that was deleted is published again
        self.path.mkdir(parents=True, exist_ok=True)
        self._run = {
            "format": _FORMAT,
            "identity": dict(identity),
            "settings": dict(settings),
            "token": secrets.token_hex(8),
            "finished": None,
        }
        self._write_run()
        return None

    def follow(self, token: str, ranks: Ranks) -> None:
        """Read what the first process has opened; raises RunError when another one doesn't see the same folder."""
        ranks.every(lambda: None if ranks.first else self._look_for(token))

    def _look_for(self, token: str) -> None:
        for left in reversed(range(_TRIES)):  # a folder on a network may take a moment
            run = self._read()
            if run is not None and run.get("token") == token:
                self._run = run
                return
            if left:
                time.sleep(0.1)
        raise RunError(
            f"this process doesn't see in {self.path} what the first one has written there; all processes of a run "
            "need the same output folder, on storage that all machines share"
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What was noted down when the run began."""
        return dict(self._run["settings"])

    @property
    def token(self) -> str:
        """A name that no other run has, for programs that log many runs."""
        found: str = self._run["token"]
        return found

    def finish(self, result: Mapping[str, Any]) -> None:
        """Note that the run is done."""
        self._run["finished"] = dict(result)
        self._write_run()

    def save(self, step: int, pieces: Mapping[str, Any], state: Mapping[str, Any], *, best: int | None) -> None:
        """Write the checkpoint of a step (one that is there already is kept), then drop what isn't needed.

        The last two and the best one stay.
        """
        folder = self._at(step)
        if not folder.exists():
            buffer = io.BytesIO()
            torch.save(dict(state), buffer)
            with journal.said_plainly(self._checkpoints):
                self._checkpoints.mkdir(exist_ok=True)
            storage.create_folder(folder, **pieces, extra={"training.pt": buffer.getvalue()})
        steps = self._steps()
        for old in steps[:-_KEEP]:
            if old != best:
                self._remove(old)

    def newest(self) -> dict[str, Any] | None:
        """The state of the newest checkpoint, or None; what a killed run left half done is cleared away."""
        if self._checkpoints.is_dir():
            for entry in self._checkpoints.iterdir():
                if _UNFINISHED.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
        for step in reversed(self._steps()):
            state = self.state(step)
            best = state["progress"]["best_step"]
            if best is None or self._at(best).exists():
                return state
        return None

    def newest_for(self, ranks: Ranks) -> dict[str, Any] | None:
        """The same, to be called by all processes: the first looks, the others read what it found."""
        found: dict[str, Any] | None = None

        def look() -> int | None:
            nonlocal found
            found = self.newest()
            return None if found is None else int(found["progress"]["before"] + found["trainer"]["step"])

        step = ranks.first_does(look)
        return found if ranks.first or step is None else self.state(step)

    def state(self, step: int) -> dict[str, Any]:
        """What the checkpoint of a step holds to continue from; raises RunError when it is damaged."""
        file = self._at(step) / "training.pt"
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            state["progress"]["best_step"]
            state["model"]
            state["trainer"]
        except Exception as error:  # torch raises whatever it stumbles over
            raise RunError(
                f"{file} is damaged or missing ({error!s:.200}); delete {file.parent}, and the same command "
                "continues from the checkpoint before it"
            ) from error
        return state

    def publish(self, step: int, card: str) -> None:
        """Make the run's folder itself the captioner of that step's checkpoint."""
        try:
            saved = storage.read_folder(self._at(step))
            tensors = saved.load_tensors()
        except ShowtellError as error:
            raise RunError(
                f"the best checkpoint is damaged: {error}; delete {self._at(step)}, and the same command continues "
                "from one before it, or from the start"
            ) from error
        storage.write_folder(self.path, config=saved.config, tokenizer=saved.tokenizer, tensors=tensors, card=card)

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """One JSON line a row; the whole file at once, so that none is there twice."""
        text = "".join(map(_line, rows))
        storage.write_file(self.path / "metrics.jsonl", text.encode("utf-8"))

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """One more line, seen at once; a kill can cut it, `write_metrics` by the next session mends that."""
        with journal.said_plainly(self.path), (self.path / "metrics.jsonl").open("ab") as file:
            file.write(_line(row).encode("utf-8"))

    def weights_size(self, step: int) -> int:
        """The bytes of the weights' file of that step's checkpoint."""
        return (self._at(step) / "model.safetensors").stat().st_size

    def _at(self, step: int) -> Path:
        return self._checkpoints / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        if not self._checkpoints.is_dir():
            return []
        named = (_STEP.fullmatch(entry.name) for entry in self._checkpoints.iterdir())
        return sorted(int(match[1]) for match in named if match)

    def _remove(self, step: int) -> None:
        # Renamed first: a half-deleted folder must not look like a checkpoint.
        away = self._checkpoints / f".old-{step:08d}"
        self._at(step).rename(away)
        shutil.rmtree(away)

    def _read(self) -> dict[str, Any] | None:
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            run = json.loads(file.read_bytes())
        except (ValueError, RecursionError) as error:
            raise RunError(f"{file} can't be read ({error!s:.200}); choose another output") from error
        if (
            not isinstance(run, dict)
            or run.get("format") != _FORMAT
            or not isinstance(run.get("finished", ""), dict | None)
            or not isinstance(run.get("token", ""), str)
            or not all(isinstance(run.get(key), dict) for key in ("identity", "settings"))
        ):
            raise RunError(f"{file} is not of a training run of showtell; choose another output")
        return run

    def _write_run(self) -> None:
        storage.write_file(self.path / "run.json", (json.dumps(self._run, indent=1) + "\n").encode("utf-8"))

    def _check(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        flat_old, flat_new = _flat(old), _flat(new)
        names = [key for key in {**flat_old, **flat_new} if flat_old.get(key) != flat_new.get(key)]
        if not names:
            return
        lines = "".join(f"\n  {key}: was {_short(flat_old.get(key))}, is {_short(flat_new.get(key))}" for key in names)
        raise RunError(
            f"{self.path} belongs to another run:{lines}\nUse the same settings to continue it, choose another output, "
            "or start over with restart=True (--restart), which deletes what that run made there"
        )

    def _clear(self) -> None:
        """Delete what a run makes, and nothing else; run.json goes last, so that it can be done again.

        The features stay: they don't depend on how a run trains, and their own key tells whether they fit.
        """
        self._write_run()
        for step in reversed(self._steps()):
            self._remove(step)
        for unfinished in (journal.COMMIT, journal.NEW, journal.OLD):
            shutil.rmtree(self.path / unfinished, ignore_errors=True)
        for name in _LOGS:
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in (*_CAPTIONER_FILES, *_OWN_FILES):
            (self.path / name).unlink(missing_ok=True)


def _line(row: Mapping[str, Any]) -> str:
    return f"{json.dumps(row)}\n"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch(r"[0-9a-f]{64}", text) else f"{value!r:.100}"
