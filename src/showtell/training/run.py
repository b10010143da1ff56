"""`train`: from a folder of photos and captions to a saved captioner, in one call that can be killed and repeated."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import storage
from ..checks import whole
from ..data import Shard
from ..devices import usable_device
from ..errors import ArgumentError
from ..ranks import joined, local_device
from ..version import __version__
from .about import about_run, environment
from .assemble import Init, assemble, check_equal, fingerprint, load_init, starts_anew
from .job import CHOSEN_BY, Job, Progress, Say, open_data, prepare, usable
from .log_writers import LogWriter, open_writers
from .logbook import Logbook, logbook
from .model_card import card, measured_speed
from .recipe import Recipe
from .recipe_files import load_recipe
from .run_folder import RunFolder
from .trainer import BatchSource, StepReport

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
    beside: Init = None,
    encoder: str | nn.Module | None = None,
    overrides: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    skip_bad: bool = False,
    restart: bool = False,
    threads: int | None = None,
    device: str | torch.device | None = None,
    log_to: Sequence[str | LogWriter] = (),
    data_license: str | None = None,
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
    photos is better; with a single validation photo CIDEr-D is always 0. Beside it: report.html (the run for a
    browser, as of the last evaluation), metrics.jsonl (a line an evaluation and every `log_every_steps` steps),
    checkpoints/ (each a captioner too), features/ (the encoder's output for every photo, where the encoder isn't
    trained), frequencies.bin (what CIDEr-D weighs words by) and run.json.

    Started by torchrun, all its processes train the same captioner together; a recipe means the same however many there
    are, and only the first writes, says something or logs. `output` must be one folder that all of them see.

    Few photos are enough when starting from a captioner: an epoch then goes through them several times
    (`min_steps`), and words count from their first use (one use per 2,000 captions, at most `min_count`).

    Args:
        data: a folder, a CSV, JSONL or JSON file, a `Dataset`, or a dataset object of Hugging Face.
        output: the folder of the run.
        recipe: a recipe's name, a TOML file or a `Recipe`.
        init: the captioner to start from: "default" (the bundled one), a folder, a Hub id or a `Captioner`; None:
            from scratch, on the bundled captioner's encoder unless `encoder` or the recipe names another. A recipe
            with another decoder than the bundled captioner's, or that names its encoder, makes None of "default".
        beside: a captioner as for `init`, whose encoder is put beside that of `init`: it begins with the same captions
            and learns to look with both.
        encoder: for init=None: "efficientnet-lite0", "torchvision:resnet50", "timm:NAME", or an encoder of your own.
        overrides: recipe settings to change, such as {"epochs": 3}.
        images, image_column, caption_column: as for `read_dataset`.
        skip_bad: leave bad rows out and say how many, instead of stopping.
        restart: throw away what an earlier run left in `output` (its own files only).
        threads: of torch on the CPU; default: as it is. A run continues exactly with the same number only.
        device: default: "cuda" where there is one, else "cpu"; of several processes each takes a GPU of its own.
        log_to: where else the rows of metrics.jsonl go: "tensorboard", "wandb", or a `LogWriter` of your own.
        data_license: the licence of the photos and captions, for the model card.
        show: progress bars; default: where standard error is a terminal, and a line a minute elsewhere.
        say: called with each line of news.

    Raises:
        DataError: bad rows, or no photos to train or validate on.
        RunError: `output` belongs to another run or can't be written, another process trains there, the loss isn't
            finite, or the processes of a group don't fit together.
        ArgumentError: a setting makes no sense, or the captioner couldn't be saved.
        MissingPackageError: `log_to` needs a package that isn't installed.
    """
    plan = load_recipe(recipe).changed({} if overrides is None else overrides)
    _check_start(init, output)
    _check_start(beside, output)
    writers = open_writers(log_to)
    if data_license is not None and not (isinstance(data_license, str) and data_license.strip()):
        raise ArgumentError(f'data_license is a licence\'s name such as "CC BY 4.0", not {data_license!r:.100}')
    if isinstance(init, str) and init == "default" and (other := starts_anew(plan)):
        say(other)
        init = None
    where = _device(device)
    with _threads(threads), torch.random.fork_rng(devices=[]), joined(where) as ranks, ExitStack() as stack:
        if not ranks.first:
            say, show, writers = _say_nothing, False, []
        dataset = open_data(data, images, image_column, caption_column)
        training, validating = usable(dataset, plan, skip_bad, say)
        with ranks.turns(local=True):  # it may be downloaded
            start = load_init(init, beside)
        contents = dataset.fingerprint()
        identity = {
            "version": __version__,
            "data": contents,
            "skip_bad": skip_bad,
            "init": fingerprint(start),
            "encoder": fingerprint(encoder),
            "recipe": plan.values(),
            "chosen_by": CHOSEN_BY,
        }
        ranks.same(identity, "start all with the same command, data and version")
        folder = RunFolder(output)
        settings = {
            "threads": torch.get_num_threads(),
            "device": where.type,
            "torch": torch.__version__,
            "processes": ranks.count,
        }

        def opened() -> tuple[dict[str, Any] | None, str]:
            stack.enter_context(folder.alone())
            finished = folder.open(identity, settings, restart=restart)
            if finished is None:
                storage.check_place(folder.path)
            return finished, "" if finished is not None else folder.token

        finished, token = ranks.first_does(opened)
        if finished is not None:
            say(f"{folder.path}: this run is finished; restart=True (--restart) does it again")
            return TrainResult(folder.path, **finished)
        folder.follow(token, ranks)
        changed = [f"{key} {old} -> {settings[key]}" for key, old in folder.settings.items() if settings[key] != old]
        if changed:
            say(f"this run began with other settings ({', '.join(changed)}): the last digits may differ")
        with ranks.turns(local=True):
            captioner = assemble(plan, start, encoder, [c for r in training for c in r.captions], say).to(where)
        captioner.save_pieces(weights_dtype=plan.weights_dtype)
        check_equal(ranks, captioner)
        about = about_run(
            data,
            contents,
            training,
            validating,
            init=init,
            start=start,
            beside=beside is not None,
            encoder=encoder,
            plan=plan,
            data_license=data_license,
        )
        job = prepare(
            plan,
            folder,
            captioner,
            training,
            validating,
            carried=start is not None,
            skip_bad=skip_bad,
            about=about,
            say=say,
            show=show,
            ranks=ranks,
        )
        return _run(job, writers)


def _run(job: Job, writers: Sequence[LogWriter]) -> TrainResult:
    """Train from the newest checkpoint, or from the start, to the end."""
    progress = Progress()
    state = job.folder.newest_for(job.ranks)
    if state is not None:
        progress = Progress(**state["progress"])
        job = job if progress.part == 1 else job.second(progress.before)
        job.captioner.load_state_dict(state["model"], strict=False)
        job.trainer.load_state_dict(state["trainer"])
        job.say(f"continuing from step {job.step:,} of {job.total:,}")
        if progress.best_step is not None:
            _publish(job, progress)
    with logbook(job, progress, writers) as book:
        if state is None and job.carried:
            _measure_start(job, progress, book)
        if not job.done(progress):
            _loop(job, progress, book)
        if job.recipe.self_critical_epochs and progress.part == 1:
            job = _second(job, progress, book)
            _loop(job, progress, book)
        return _finish(job, progress, book)


def _finish(job: Job, progress: Progress, book: Logbook) -> TrainResult:
    """Publish the best captioner with all that is known now, and note that the run is done."""
    assert progress.best_step is not None
    values = job.ranks.first_does(lambda: _end(job, progress, book))
    return TrainResult(job.folder.path, **values)


def _end(job: Job, progress: Progress, book: Logbook) -> dict[str, Any]:
    assert progress.best_step is not None
    speed = measured_speed(job)
    job.folder.publish(progress.best_step, card(job, progress, environment(job.captioner.device), speed))
    stopped = job.step < job.total
    early = f" (stopped early: {progress.stale} evaluations without a better one)" if stopped else ""
    book.write("stopped early" if stopped else "finished")
    result = TrainResult(job.folder.path, progress.best_step, progress.best_score, job.step, round(progress.seconds, 1))
    values = asdict(result)
    del values["output"]
    job.folder.finish(values)
    job.say(
        f"done after {job.step:,} steps{early}; {job.folder.path} is the captioner of step "
        f"{progress.best_step:,}, validation {CHOSEN_BY} {progress.best_score:.3f}"
    )
    return values


def _second(job: Job, progress: Progress, book: Logbook) -> Job:
    """The self-critical part: from the best step so far, as it was validated, with a trainer of its own.

    A function of what the checkpoints hold, so that a run that is killed here comes here again.
    """
    assert progress.best_step is not None
    job.ranks.meet()  # the first process may still be writing it
    best = job.folder.state(progress.best_step)
    average = best["trainer"].get("average", {}).get("average", {})
    job.captioner.load_state_dict({**best["model"], **average}, strict=False)
    progress.begin_second(job.step)
    second = job.second(job.step)
    book.turn(second)
    book.tell(
        f"after {job.step:,} steps self-critical training begins, from step {progress.best_step:,}, validation "
        f"{CHOSEN_BY} {progress.best_score:.3f}"
    )
    return second


def _measure_start(job: Job, progress: Progress, book: Logbook) -> None:
    """Evaluate the captioner as it came: a run never ends with one that is worse."""
    found = job.validation()
    progress.keep(0, found)
    progress.start = dict(progress.best_manner)
    book.start(found)
    _save(job, progress, 0)
    _publish(job, progress)
    book.write("running")


def _loop(job: Job, progress: Progress, book: Logbook) -> None:
    clock = time.perf_counter()
    told = job.trainer.skipped, job.trainer.photos_at_once
    with closing(job.trainer.steps(_own(job))) as steps:
        for each in steps:
            report = replace(each, step=job.step)
            book.step(report)
            told = _tell(book, report, told)
            evaluated = job.due(report.step)
            better = evaluated and _assess(job, progress, report, book)
            if evaluated or report.step % job.recipe.save_every_steps == 0:
                now = time.perf_counter()
                progress.seconds, clock = progress.seconds + now - clock, now
                _save(job, progress, report.step)
            if better:
                _publish(job, progress)
            if evaluated:
                book.write("running")
            if job.done(progress):
                return


def _tell(book: Logbook, report: StepReport, told: tuple[int, int | None]) -> tuple[int, int | None]:
    """Say what is new: steps that were skipped, and a smaller number of photos at a time."""
    skipped, at_once = told
    if report.skipped > skipped:
        book.tell(
            f"step {report.step:,}: skipped, as a float16 gradient isn't finite; the loss is scaled by half as much "
            f"from here on ({report.skipped:,} skipped so far; a few are usual)"
        )
    if report.photos_at_once != at_once:
        book.tell(
            f"step {report.step:,}: memory ran out; the same steps from here on, {report.photos_at_once} photos at "
            "a time"
        )
    return report.skipped, report.photos_at_once


def _assess(job: Job, progress: Progress, report: StepReport, book: Logbook) -> bool:
    """Evaluate, note it down, and say whether this is the best so far."""
    found = job.validation()
    better = progress.better(found)
    if better:
        progress.keep(report.step, found)
    else:
        progress.stale += 1
    book.evaluation(report, found, better=better)
    return better


def _publish(job: Job, progress: Progress) -> None:
    """Make the folder the best captioner so far."""
    if job.ranks.first:
        assert progress.best_step is not None
        job.folder.publish(progress.best_step, card(job, progress))


def _own(job: Job) -> BatchSource:
    """What this process computes of each batch."""
    return job.train if job.ranks.count == 1 else Shard(job.train, job.ranks.rank, job.ranks.count)


def _save(job: Job, progress: Progress, step: int) -> None:
    check_equal(job.ranks, job.captioner)
    if not job.ranks.first:
        return
    later = {f"encoder.{name}" for name in job.trained}  # trained from another epoch on, or in the second part
    frozen = {name for name, p in job.captioner.named_parameters() if not p.requires_grad} - later
    # Copies, as the captioner holds other values for a while: its file gets the average, training.pt the weights.
    model = {name: tensor.clone() for name, tensor in job.captioner.state_dict().items() if name not in frozen}
    state = {"model": model, "trainer": job.trainer.state_dict(), "progress": asdict(progress)}
    with job.trainer.averaged():
        pieces = job.captioner.save_pieces(weights_dtype=job.recipe.weights_dtype)
        job.folder.save(step, pieces, state, best=progress.best_step)


def _check_start(init: Init, output: str | os.PathLike[str]) -> None:
    """A run that started from its own output would overwrite its start, and could neither continue nor be repeated."""
    if isinstance(init, str | os.PathLike) and init != "default" and os.path.isdir(init):  # noqa: PTH112 - any name
        start, here = Path(init).resolve(), Path(output).resolve()
        if start == here or start.parent == here / "checkpoints":
            raise ArgumentError(f"{init} is the output of this very run; start from a copy, or choose another output")


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return usable_device("device", local_device("device", device))


def _say_nothing(text: str) -> None:
    """What the processes other than the first say."""


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
