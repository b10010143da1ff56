"""`train`: from a folder of photos and captions to a saved captioner, in one call that can be killed and repeated."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import storage
from ..checks import whole
from ..devices import usable_device
from ..errors import ArgumentError
from ..progress import bar
from ..version import __version__
from .assemble import Init, assemble, fingerprint, load_init, starts_anew
from .job import CHOSEN_BY, Job, Progress, Say, card, open_data, prepare, usable
from .recipe import Recipe
from .recipe_files import load_recipe
from .run_folder import RunFolder
from .trainer import StepReport
from .validation import Validation

__all__ = ["TrainResult", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a run came to.

    output: the folder, which is the best captioner. best_step: when it was best. best_score: its CIDEr-D on the
    validation photos, 0..10. steps: how many were done. seconds: spent training and evaluating, all sessions together.
    """

    output: Path
    best_step: int
    best_score: float
    steps: int
    seconds: float


def train(
    data: Any,
    output: str | os.PathLike[str],
    *,
    recipe: str | os.PathLike[str] | Recipe = "default",
    init: Init = "default",
    encoder: str | nn.Module | None = None,
    overrides: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    skip_bad: bool = False,
    restart: bool = False,
    threads: int | None = None,
    device: str | torch.device | None = None,
    show: bool | None = None,
    say: Say = print,
) -> TrainResult:
    """Train a captioner on photos with captions; the same call again continues where it stopped.

    Example:
        >>> import tempfile
        >>> from showtell import Dataset, Record
        >>> from showtell.testing import tiny_captioner
        >>> photos = [torch.full((3, 32, 32), i / 4) for i in range(5)]
        >>> records = tuple(
        ...     Record(f"{i}", photo, ("a wall",), "train" if i else "val", "made up") for i, photo in enumerate(photos)
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     settings = {"epochs": 1, "min_steps": 3}
        ...     train(Dataset(records), folder, init=tiny_captioner(), overrides=settings, say=lambda text: None).steps
        3

    The best captioner so far, by CIDEr-D of captions generated for the validation photos, is in `output`, ready for
    `Captioner.from_pretrained(output)`. Where CIDEr-D is equal to 0.001, the lower teacher-forced loss on these
    photos is better; with a single validation photo CIDEr-D is always 0. Beside it: metrics.jsonl (a line an
    evaluation), checkpoints/ (each a captioner too), features/ (the encoder's output for every photo, where the
    encoder isn't trained), frequencies.bin (what CIDEr-D weighs words by) and run.json.

    Few photos are enough when starting from a captioner: an epoch then goes through them several times
    (`min_steps`), and words count from their first use (one use per 2,000 captions, at most `min_count`).

    Args:
        data: a folder, a CSV, JSONL or JSON file, a `Dataset`, or a dataset object of Hugging Face.
        output: the folder of the run.
        recipe: a recipe's name, a TOML file or a `Recipe`.
        init: the captioner to start from: "default" (the bundled one), a folder, a Hub id or a `Captioner`; None:
            from scratch, on the bundled captioner's encoder unless `encoder` or the recipe names another. A recipe
            with another decoder than the bundled captioner's, or that names its encoder, makes None of "default".
        encoder: for init=None: "efficientnet-lite0", "torchvision:resnet50", "timm:NAME", or an encoder of your own.
        overrides: recipe settings to change, such as {"epochs": 3}.
        images, image_column, caption_column: as for `read_dataset`.
        skip_bad: leave bad rows out and say how many, instead of stopping.
        restart: throw away what an earlier run left in `output` (its own files only).
        threads: of torch on the CPU; default: as it is. A run continues exactly with the same number only.
        device: default: "cuda" where there is one, else "cpu".
        show: progress bars; default: where standard error is a terminal.
        say: called with each line of news.

    Raises:
        DataError: bad rows, or no photos to train or validate on.
        RunError: `output` belongs to another run or can't be written, another process trains there, or the loss
            isn't finite.
        ArgumentError: a setting makes no sense, or the captioner couldn't be saved.
    """
    plan = load_recipe(recipe).changed({} if overrides is None else overrides)
    _check_start(init, output)
    if isinstance(init, str) and init == "default" and (other := starts_anew(plan)):
        say(other)
        init = None
    where = _device(device)
    with _threads(threads), torch.random.fork_rng(devices=[]), ExitStack() as stack:
        dataset = open_data(data, images, image_column, caption_column)
        training, validating = usable(dataset, plan, skip_bad, say)
        start = load_init(init)
        identity = {
            "version": __version__,
            "data": dataset.fingerprint(),
            "skip_bad": skip_bad,
            "init": fingerprint(start),
            "encoder": fingerprint(encoder),
            "recipe": plan.values(),
            "chosen_by": CHOSEN_BY,
        }
        folder = RunFolder(output)
        stack.enter_context(folder.alone())
        settings = {"threads": torch.get_num_threads(), "device": where.type, "torch": torch.__version__}
        finished = folder.open(identity, settings, restart=restart)
        if finished is not None:
            say(f"{folder.path}: this run is finished; restart=True (--restart) does it again")
            return TrainResult(folder.path, **finished)
        storage.check_place(folder.path)
        changed = [f"{key} {old} -> {settings[key]}" for key, old in folder.settings.items() if settings[key] != old]
        if changed:
            say(f"this run began with other settings ({', '.join(changed)}): the last digits may differ")
        captioner = assemble(plan, start, encoder, [c for r in training for c in r.captions], say).to(where)
        captioner.save_pieces(weights_dtype=plan.weights_dtype)
        words = sum(len(record.captions) for record in training)
        story = f"Trained on {len(training):,} photos with {words:,} captions, starting {_origin(init, encoder, plan)}."
        job = prepare(
            plan,
            folder,
            captioner,
            training,
            validating,
            carried=start is not None,
            skip_bad=skip_bad,
            story=story,
            say=say,
            show=show,
        )
        return _run(job)


def _run(job: Job) -> TrainResult:
    """Train from the newest checkpoint, or from the start, to the end."""
    progress = Progress()
    state = job.folder.newest()
    if state is not None:
        job.captioner.load_state_dict(state["model"], strict=False)
        job.trainer.load_state_dict(state["trainer"])
        progress = Progress(**state["progress"])
        job.say(f"continuing from step {job.trainer.step_count:,} of {job.total:,}")
        if progress.best_step is not None:
            job.folder.publish(progress.best_step, card(job, progress))
    elif job.carried:
        _measure_start(job, progress)
    job.folder.write_metrics(progress.rows)
    if not job.done(progress):
        _loop(job, progress)
    assert progress.best_step is not None
    job.folder.publish(progress.best_step, card(job, progress))
    result = TrainResult(
        job.folder.path, progress.best_step, progress.best_score, job.trainer.step_count, round(progress.seconds, 1)
    )
    values = asdict(result)
    del values["output"]
    job.folder.finish(values)
    stopped = job.trainer.step_count < job.total
    early = f" (stopped early: {progress.stale} evaluations without a better one)" if stopped else ""
    job.say(
        f"done after {job.trainer.step_count:,} steps{early}; {job.folder.path} is the captioner of step "
        f"{progress.best_step:,}, validation {CHOSEN_BY} {progress.best_score:.3f}"
    )
    return result


def _measure_start(job: Job, progress: Progress) -> None:
    """Evaluate the captioner as it came: a run never ends with one that is worse."""
    found = job.validation()
    progress.keep(0, found)
    progress.rows.append({"step": 0, "epoch": 0.0, **_row(found), "best": True})
    job.say(f"as it came: {_text(found)}")
    _save(job, progress, 0)
    job.folder.publish(0, card(job, progress))


def _loop(job: Job, progress: Progress) -> None:
    clock = time.perf_counter()
    waited = worked = 0.0
    with (
        bar(job.total, "training", unit="step", initial=job.trainer.step_count, show=job.show) as shown,
        closing(job.trainer.steps(job.train)) as steps,
    ):
        for report in steps:
            progress.loss_sum += report.loss
            progress.loss_count += 1
            waited += report.seconds * report.data_share
            worked += report.seconds
            shown.update()
            shown.set_postfix_str(f"loss {report.loss:.3f}, data {waited / worked:.0%}")
            evaluated = job.due(report.step)
            better = evaluated and _assess(job, progress, report, waited / worked, shown)
            if evaluated or report.step % job.recipe.save_every_steps == 0:
                now = time.perf_counter()
                progress.seconds, clock = progress.seconds + now - clock, now
                _save(job, progress, report.step)
            if evaluated:
                job.folder.write_metrics(progress.rows)
            if better:
                job.folder.publish(report.step, card(job, progress))
            if job.done(progress):
                return


def _assess(job: Job, progress: Progress, report: StepReport, data_share: float, shown: Any) -> bool:
    """Evaluate, note it down, and say whether this is the best so far."""
    found = job.validation()
    better = progress.better(found)
    if better:
        progress.keep(report.step, found)
    else:
        progress.stale += 1
    train_loss = progress.loss_sum / progress.loss_count
    progress.loss_sum, progress.loss_count = 0.0, 0
    progress.rows.append(
        {
            "step": report.step,
            "epoch": round(report.step / job.epoch, 3),
            "train_loss": train_loss,
            **_row(found),
            "learning_rate": report.learning_rate,
            "data_share": round(data_share, 4),
            "best": better,
        }
    )
    shown.clear()
    job.say(
        f"step {report.step:,} of {job.total:,}: train loss {train_loss:.3f}, {_text(found)}"
        f"{' (best so far)' if better else ''}"
    )
    shown.refresh()
    return better


def _row(found: Validation) -> dict[str, float]:
    """What metrics.jsonl keeps of it."""
    scores = found.scores
    return {"val_cider_d": scores[CHOSEN_BY], "val_bleu4": scores["BLEU-4"], "val_teacher_forced_loss": found.loss}


def _text(found: Validation) -> str:
    scores = ", ".join(f"{metric} {found.scores[metric]:.3f}" for metric in (CHOSEN_BY, "BLEU-4"))
    return f"validation {scores}, teacher-forced loss {found.loss:.3f}"


def _save(job: Job, progress: Progress, step: int) -> None:
    frozen = {name for name, p in job.captioner.named_parameters() if not p.requires_grad}
    model = {name: tensor for name, tensor in job.captioner.state_dict().items() if name not in frozen}
    state = {"model": model, "trainer": job.trainer.state_dict(), "progress": asdict(progress)}
    pieces = job.captioner.save_pieces(weights_dtype=job.recipe.weights_dtype)
    job.folder.save(step, pieces, state, best=progress.best_step)


def _check_start(init: Init, output: str | os.PathLike[str]) -> None:
    """A run that started from its own output would overwrite its start, and could neither continue nor be repeated."""
    if isinstance(init, str | os.PathLike) and init != "default" and os.path.isdir(init):  # noqa: PTH112 - any name
        start, here = Path(init).resolve(), Path(output).resolve()
        if start == here or start.parent == here / "checkpoints":
            raise ArgumentError(f"{init} is the output of this very run; start from a copy, or choose another output")


def _origin(init: Init, encoder: str | nn.Module | None, plan: Recipe) -> str:
    if init is None:
        part = plan.encoder if encoder is None else encoder if isinstance(encoder, str) else type(encoder).__name__
        weights = "" if plan.pretrained or isinstance(encoder, nn.Module) else " with random weights"
        return f"from scratch on the encoder {part}{weights}"
    return "from the captioner that comes with showtell" if init == "default" else "from another captioner"


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device("device", device)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Torch's CPU threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(whole("threads", count, 1, 1024))
    try:
        yield
    finally:
        torch.set_num_threads(before)
