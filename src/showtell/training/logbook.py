"""What a run writes down beside its checkpoints: metrics.jsonl, TensorBoard and the like, the report, lines of news."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from .. import storage
from .about import without_folders
from .alarms import Manner, alarms
from .job import CHOSEN_BY, Job, Progress
from .log_writers import LoggedRun, LogWriter
from .meter import Meter
from .run_report import SamplePhoto, run_report, sample_photos
from .trainer import StepReport
from .validation import Validation

__all__ = ["Logbook", "logbook"]

_SAMPLES = 6


@contextmanager
def logbook(job: Job, progress: Progress, writers: Sequence[LogWriter]) -> Iterator[Logbook]:
    """A session's logbook: whatever was written beyond the checkpoint that the run continues from is cut off."""
    with ExitStack() as stack:
        book = Logbook(job, progress, writers)
        stack.callback(book.close)
        if job.ranks.first:
            job.folder.write_metrics(progress.rows)
        run = LoggedRun(job.folder.path, job.folder.token, without_folders(job.recipe).values())
        for writer in writers:
            stack.callback(writer.close)
            writer.begin(run, progress.rows)
        yield book


class Logbook:
    """Keeps the rows of a run's progress, and everything that shows them, in step."""

    def __init__(self, job: Job, progress: Progress, writers: Sequence[LogWriter]) -> None:
        """Open the progress bar; nothing is written yet."""
        self._job, self._progress, self._writers = job, progress, writers
        count = len(job.judged)
        self._shown = [i * count // min(_SAMPLES, count) for i in range(min(_SAMPLES, count))]
        self._photos: list[SamplePhoto] | None = None
        self._meter = self._open()

    def _open(self) -> Meter:
        job = self._job
        every = job.recipe.log_every_steps
        return Meter(job.total, self._progress.window, every=every, say=job.say, show=job.show, start=job.step)

    def turn(self, job: Job) -> None:
        """Go on with the second part of the run."""
        self._meter.close()
        self._job = job
        self._meter = self._open()

    def close(self) -> None:
        """Close the progress bar."""
        self._meter.close()

    def tell(self, text: str) -> None:
        """Say a line above the progress bar."""
        self._meter.tell(text)

    def step(self, report: StepReport) -> None:
        """Take in a step, counted over both parts."""
        self._progress.note(report)
        row = self._meter.step(report)
        if row is not None:
            self._add({**row, "epoch": self._epoch(report.step)})

    def start(self, found: Validation) -> None:
        """Note the evaluation of a captioner as it came."""
        self._evaluation({"step": 0, "epoch": 0.0}, found, {}, better=True)
        self.tell(f"as it came: {_text(found)}")

    def evaluation(self, report: StepReport, found: Validation, *, better: bool) -> None:
        """Note an evaluation, and say what is wrong with captions that are learnt by a score."""
        progress, job = self._progress, self._job
        means = progress.noted()
        warnings = _alarms(job, progress, found, means) if job.scores else []
        self._evaluation(
            {
                "step": report.step,
                "epoch": self._epoch(report.step),
                "objective": "self-critical" if job.scores else job.recipe.objective,
                **{f"train_{name}": mean for name, mean in means.items()},
            },
            found,
            {
                "learning_rate": report.learning_rate,
                "data_share": round(self._meter.data_share, 4),
                **({"alarms": warnings} if warnings else {}),
            },
            better=better,
        )
        learnt = f"reward {means['reward']:.3f}" if job.scores else f"train loss {means['loss']:.3f}"
        self.tell(
            f"step {report.step:,} of {job.total:,}: {learnt}, {_text(found)}"
            f"{' (best so far)' if better else ''}{self._meter.left()}"
        )
        for warning in warnings:
            self.tell(warning)

    def write(self, state: str) -> None:
        """Write metrics.jsonl as a whole, and the report; `state` says how far the run is."""
        job, progress = self._job, self._progress
        if not job.ranks.first:
            return
        job.folder.write_metrics(progress.rows)
        if self._photos is None:
            self._photos = sample_photos([job.judged[i] for i in self._shown])
        page = run_report(job, progress, self._photos, state)
        storage.write_file(job.folder.report, page.encode("utf-8"))

    def _epoch(self, step: int) -> float:
        return round(step / self._job.epoch, 3)

    def _evaluation(self, first: dict[str, Any], found: Validation, last: dict[str, Any], *, better: bool) -> None:
        self._add({"kind": "evaluation", **first, **_row(found), **last, "best": better})
        if found.captions:
            said = [found.captions[i] for i in self._shown]
            self._progress.samples.append({"step": first["step"], "captions": said})

    def _add(self, row: dict[str, Any]) -> None:
        self._progress.rows.append(row)
        if self._job.ranks.first:
            self._job.folder.add_metrics(row)
        for writer in self._writers:
            writer.write(row)


def _alarms(job: Job, progress: Progress, found: Validation, means: Mapping[str, float]) -> list[str]:
    """What is wrong with the captions of the validation photos and with those drawn since the last evaluation."""
    drawn = Manner(means["words"], means["bad_endings"])
    if not progress.drawn_start:
        progress.drawn_start = asdict(drawn)
    return [
        *alarms("validation", found.manner, Manner(**progress.start), job.reference_words),
        *alarms("drawn", drawn, Manner(**progress.drawn_start), means["reference_words"]),
    ]


def _row(found: Validation) -> dict[str, float]:
    """What metrics.jsonl keeps of it."""
    scores = found.scores
    return {
        "val_cider_d": scores[CHOSEN_BY],
        "val_bleu4": scores["BLEU-4"],
        "val_teacher_forced_loss": found.loss,
        "val_words": found.manner.words,
        "val_bad_endings": found.manner.bad_endings,
    }


def _text(found: Validation) -> str:
    scores = ", ".join(f"{metric} {found.scores[metric]:.3f}" for metric in (CHOSEN_BY, "BLEU-4"))
    return f"validation {scores}, teacher-forced loss {found.loss:.3f}"
