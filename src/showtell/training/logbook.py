"""What a run writes down beside its checkpoints: metrics.jsonl, TensorBoard and the like, the report, lines of news."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .. import storage
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
        stack.callback(book.meter.close)
        job.folder.write_metrics(progress.rows)
        run = LoggedRun(job.folder.path, job.folder.token, job.recipe.values())
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
        self.meter = Meter(
            job.total,
            progress.window,
            every=job.recipe.log_every_steps,
            say=job.say,
            show=job.show,
            start=job.trainer.step_count,
        )

    def step(self, report: StepReport) -> None:
        """Take in a step."""
        progress = self._progress
        progress.loss_sum += report.loss
        progress.loss_count += 1
        row = self.meter.step(report)
        if row is not None:
            self._add({**row, "epoch": self._epoch(report.step)})

    def start(self, found: Validation) -> None:
        """Note the evaluation of a captioner as it came."""
        self._evaluation({"step": 0, "epoch": 0.0}, found, {}, better=True)
        self.meter.tell(f"as it came: {_text(found)}")

    def evaluation(self, report: StepReport, found: Validation, *, better: bool) -> None:
        """Note an evaluation."""
        progress, job = self._progress, self._job
        train_loss = progress.loss_sum / progress.loss_count
        progress.loss_sum, progress.loss_count = 0.0, 0
        self._evaluation(
            {"step": report.step, "epoch": self._epoch(report.step), "train_loss": train_loss},
            found,
            {"learning_rate": report.learning_rate, "data_share": round(self.meter.data_share, 4)},
            better=better,
        )
        self.meter.tell(
            f"step {report.step:,} of {job.total:,}: train loss {train_loss:.3f}, {_text(found)}"
            f"{' (best so far)' if better else ''}{self.meter.left()}"
        )

    def write(self, state: str) -> None:
        """Write metrics.jsonl as a whole, and the report; `state` says how far the run is."""
        job, progress = self._job, self._progress
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
        self._job.folder.add_metrics(row)
        for writer in self._writers:
            writer.write(row)


def _row(found: Validation) -> dict[str, float]:
    """What metrics.jsonl keeps of it."""
    scores = found.scores
    return {"val_cider_d": scores[CHOSEN_BY], "val_bleu4": scores["BLEU-4"], "val_teacher_forced_loss": found.loss}


def _text(found: Validation) -> str:
    scores = ", ".join(f"{metric} {found.scores[metric]:.3f}" for metric in (CHOSEN_BY, "BLEU-4"))
    return f"validation {scores}, teacher-forced loss {found.loss:.3f}"
