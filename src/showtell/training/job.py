"""What a run is made of: its data, features, batches and trainer, and how far it is."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

from ..captioner import Captioner
from ..data import Batches, Dataset, Record, from_objects, read_dataset
from ..data.records import stop_or_say
from ..errors import DataError
from ..metrics import DocumentFrequencies, scored_words
from ..ranks import ALONE, Ranks
from .about import About
from .assemble import make_optimizer, trunk_trains
from .feeding import encoder_parameters, feed
from .frequencies import cached_frequencies
from .objectives import Objective
from .phases import check_objective, of_scores, of_words
from .precision import at_hand
from .recipe import Recipe
from .run_folder import RunFolder
from .schedule import WarmupCosine
from .self_critical import SelfCritical
from .soft_targets import SoftTargets
from .stages import trunk_norms
from .trainer import StepReport, Trainer
from .validation import Validation, validate

__all__ = ["CHOSEN_BY", "Job", "Progress", "Say", "open_data", "prepare", "usable"]

CHOSEN_BY = "CIDEr-D"
"""The metric that says which step is the best."""

Say = Callable[[str], None]


@dataclass
class Progress:
    """Where a run stands, apart from the weights; a checkpoint holds it.

    best_score: CIDEr-D of the best step. best_scores: all its scores, and signature: what they depend on; best_manner:
    what its captions look like. part: 2 in the self-critical part that follows another one, which took `before` steps.
    notes: sums of the objective's, since the last evaluation. start, drawn_start: the manner of validation captions
    and of drawn ones where self-critical training began. rows: those of metrics.jsonl. window: sums since the last row
    of steps. samples: captions of a few photos at each evaluation.
    """

    best_step: int | None = None
    best_score: float = -1.0
    best_loss: float = math.inf
    best_scores: dict[str, float] = field(default_factory=dict)
    signature: str = ""
    best_manner: dict[str, float] = field(default_factory=dict)
    part: int = 1
    before: int = 0
    notes: dict[str, float] = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)
    drawn_start: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    window: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)

    def better(self, found: Validation) -> bool:
        """Whether CIDEr-D, rounded to 0.001, rose, or stayed equal while the loss fell."""
        return (round(found.scores[CHOSEN_BY], 3), -found.loss) > (round(self.best_score, 3), -self.best_loss)

    def keep(self, step: int, found: Validation) -> None:
        """Make that step the best one."""
        self.best_step, self.best_score, self.best_loss = step, found.scores[CHOSEN_BY], found.loss
        self.best_scores, self.signature, self.stale = dict(found.scores), found.signature, 0
        self.best_manner = asdict(found.manner)

    def note(self, report: StepReport) -> None:
        """Add up what a step reports."""
        self.loss_sum += report.loss
        self.loss_count += 1
        for name, value in report.notes.items():
            self.notes[name] = self.notes.get(name, 0.0) + value

    def begin_second(self, before: int) -> None:
        """The second part begins at the best step: patience begins anew, its captions are what to compare with."""
        self.part, self.before, self.stale = 2, before, 0
        self.start = dict(self.best_manner)
        self.window.clear()

    def noted(self) -> dict[str, float]:
        """The means since the last evaluation, the loss first; sums begin anew."""
        means = {name: total / self.loss_count for name, total in {"loss": self.loss_sum, **self.notes}.items()}
        self.loss_sum, self.loss_count, self.notes = 0.0, 0, {}
        return means


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    val: batches of the photos to choose by. judged: their records. frequencies: document frequencies of their captions.
    total: steps in all, up to the end of this part. epoch: steps an epoch. carried: it starts from a trained captioner.
    about: where it all came from, for the model card. reference_words: of the judged, on average. photos: to train on.
    trained: the encoder's weights before its head that are trained, now or later. before: steps that the part before
    this one took. scores: whether this part is self-critical. ranks: the processes that share the work.
    """

    recipe: Recipe
    folder: RunFolder
    captioner: Captioner
    trainer: Trainer
    train: Batches
    val: Batches
    judged: list[Record]
    frequencies: DocumentFrequencies
    total: int
    epoch: int
    carried: bool
    about: About
    say: Say
    show: bool | None
    reference_words: float
    photos: int
    trained: frozenset[str]
    taught: SoftTargets | None = None
    before: int = 0
    scores: bool = False
    ranks: Ranks = ALONE

    @property
    def step(self) -> int:
        """Steps done, over both parts."""
        return self.before + self.trainer.step_count

    def second(self, before: int) -> Job:
        """The self-critical part, which follows after `before` steps."""
        plan = self.recipe
        train = self.train.with_references()
        total = self.epoch * plan.self_critical_epochs
        with self.ranks.turns():
            objective = of_scores(plan, self.captioner, train, self.photos, self.folder.reward_frequencies, self.taught)
        for name, parameter in encoder_parameters(
            self.captioner
        ):  # some may still have been frozen: see encoder_start_epoch
            parameter.requires_grad_(parameter.requires_grad or name in self.trained)
        late = max(0, plan.encoder_start_epoch * self.epoch - before)
        room = self.trainer.photos_at_once
        trainer = _trainer(
            plan, self.captioner, objective, total, late=late, carried=False, room=room, ranks=self.ranks
        )
        return replace(self, trainer=trainer, train=train, total=before + total, before=before, scores=True)

    def done(self, progress: Progress) -> bool:
        """Whether all steps are done, or too many evaluations went by without a better one."""
        patience = self.recipe.patience
        return self.step >= self.total or (patience > 0 and progress.stale >= patience)

    def due(self, step: int) -> bool:
        """Whether that step ends with an evaluation."""
        return (step - self.before) % (self.epoch * self.recipe.evaluate_every_epochs) == 0 or step == self.total

    def validation(self) -> Validation:
        """How good the captioner is now, with averaged weights where the recipe asks for an average."""
        with self.trainer.averaged():
            return validate(
                self.captioner,
                self.val,
                self.judged,
                frequencies=self.frequencies,
                search=self.recipe.search,
                weights_dtype=self.recipe.weights_dtype,
                show=self.show,
                ranks=self.ranks,
            )


def open_data(data: Any, images: Any, image_column: str | None, caption_column: str | None) -> Dataset:
    """A path, a Dataset, or an object with rows, as a Dataset."""
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | os.PathLike):
        return read_dataset(data, images=images, image_column=image_column, caption_column=caption_column)
    return from_objects(data, image_column=image_column, caption_column=caption_column)


def usable(dataset: Dataset, plan: Recipe, skip_bad: bool, say: Say) -> tuple[list[Record], list[Record]]:
    """The photos to train on and those to choose by; bad rows stop the run, or are counted."""
    for note in dataset.notes:
        say(note)
    stop_or_say(dataset.problems, skip_bad, say)
    training = list(dataset.split("train"))
    validating = list(dataset.split("val"))[: plan.val_photos]
    if not training or not validating:
        raise DataError(
            f"{len(training)} photos to train on and {len(validating)} to validate on; each needs at least "
            "one. Name splits train and val, or give none and let showtell hold out a tenth"
        )
    twice = [record_id for record_id, times in Counter(record.id for record in validating).items() if times > 1]
    if twice:
        raise DataError(f"{twice[0]!r:.200} is the id of two validation photos; give each photo a name of its own")
    say(dataset.summary())
    return training, validating


def prepare(
    plan: Recipe,
    folder: RunFolder,
    captioner: Captioner,
    training: list[Record],
    validating: list[Record],
    *,
    carried: bool,
    skip_bad: bool,
    about: About,
    say: Say,
    show: bool | None,
    ranks: Ranks = ALONE,
) -> Job:
    """Features, batches and trainer."""
    check_objective(plan, captioner, carried=carried)
    fed = feed(
        plan, folder.features, captioner, training, validating, skip_bad=skip_bad, say=say, show=show, ranks=ranks
    )
    train, photos = fed.train, len(fed.learnt)
    precision = at_hand(plan.precision, captioner.device)
    if precision != plan.precision:
        say(f"{plan.precision} is slower than {precision} on this CPU, which lacks it: computing in {precision}")
    # Few photos: an epoch goes through them several times, so that all epochs together have min_steps.
    epoch = max(math.ceil(train.per_epoch / plan.accumulate), math.ceil(plan.min_steps / plan.epochs))
    total = epoch * plan.epochs
    objective: Objective
    taught = None
    if plan.teachers:
        with ranks.turns():
            taught = SoftTargets.cached(
                folder.soft_targets,
                plan.teachers,
                fed.learnt,
                train,
                vocabulary=captioner.vocabulary,
                device=captioner.device,
                bf16=precision == "bf16",
                show=show,
                say=say,
            )
    if plan.objective == "self-critical":
        train = train.with_references()
        with ranks.turns():
            objective = of_scores(plan, captioner, train, photos, folder.reward_frequencies, taught)
    else:
        objective = of_words(plan, total, taught)
    late = plan.encoder_start_epoch * epoch
    trainer = _trainer(plan, captioner, objective, total, late=late, carried=carried, ranks=ranks)
    judged = fed.judged
    if len(judged) == 1:
        say(f"one validation photo: its {CHOSEN_BY} is 0 whatever the caption, so the teacher-forced loss chooses")
    words = [[scored_words(caption) for caption in record.captions] for record in judged]
    with ranks.turns():
        frequencies = cached_frequencies(folder.frequencies, words, vocabulary=captioner.vocabulary)
    lengths = [len(caption) for captions in words for caption in captions]
    return Job(
        plan,
        folder,
        captioner,
        trainer,
        train,
        fed.val,
        judged,
        frequencies,
        total,
        epoch,
        carried,
        about,
        say,
        show,
        reference_words=sum(lengths) / len(lengths),
        photos=photos,
        trained=fed.trained,
        taught=taught if plan.self_critical_words else None,
        scores=plan.objective == "self-critical",
        ranks=ranks,
    )


def _trainer(
    plan: Recipe,
    captioner: Captioner,
    objective: Objective,
    total: int,
    *,
    late: int,
    carried: bool,
    ranks: Ranks,
    room: int | None = None,
) -> Trainer:
    """A part's trainer, of `total` steps; a self-critical one has a learning rate of its own.

    late: the step of this part that the encoder's trunk is trained from. room: how many photos the part before had to
    compute at a time.
    """
    trained = set(trunk_trains(captioner.encoder))
    if isinstance(objective, SelfCritical):
        plan, carried = plan.changed({"learning_rate": plan.self_critical_learning_rate}), False
    return Trainer(
        captioner,
        objective,
        make_optimizer(captioner, plan, carried=carried),
        WarmupCosine(min(plan.warmup, total // 10), total),
        precision=cast(Any, plan.precision),
        accumulate=plan.accumulate,
        clip_norm=plan.clip_norm or None,
        seed=plan.seed,
        late={late: [p for n, p in encoder_parameters(captioner) if n in trained]},
        keep_eval=trunk_norms(captioner.encoder) if plan.freeze_batch_norm and trained else (),
        ema_decay=plan.ema_decay or None,
        compiled=plan.compile,
        photos_at_once=room,
        ranks=ranks,
    )
