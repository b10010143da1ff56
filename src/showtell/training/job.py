"""What a run is made of: its data, features, batches and trainer, and how far it is."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from .. import hub
from ..captioner import Captioner
from ..data import Batches, CachedInputs, Dataset, FeatureCache, ImageInputs, Record, from_objects, read_dataset
from ..data.inputs import load_records
from ..data.records import listed, wordless
from ..errors import ArgumentError, DataError
from ..image_spec import ImageSpec
from ..metrics import DocumentFrequencies, scored_words
from ..progress import bar
from ..version import __version__
from .assemble import make_optimizer, trunk_trains
from .frequencies import cached_frequencies
from .objectives import CrossEntropy, DoublyStochastic, ForcedObjective, Objective
from .prefixes import Prefixes
from .recipe import Recipe
from .run_folder import RunFolder
from .schedule import WarmupCosine
from .trainer import Trainer
from .validation import Validation, validate

__all__ = ["CHOSEN_BY", "Job", "Progress", "Say", "card", "open_data", "prepare", "usable"]

CHOSEN_BY = "CIDEr-D"
"""The metric that says which step is the best."""

Say = Callable[[str], None]


@dataclass
class Progress:
    """Where a run stands, apart from the weights; a checkpoint holds it.

    best_score: CIDEr-D of the best step. best_scores: all its scores, and signature: what they depend on.
    """

    best_step: int | None = None
    best_score: float = -1.0
    best_loss: float = math.inf
    best_scores: dict[str, float] = field(default_factory=dict)
    signature: str = ""
    stale: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def better(self, found: Validation) -> bool:
        """Whether CIDEr-D, rounded to 0.001, rose, or stayed equal while the loss fell."""
        return (round(found.scores[CHOSEN_BY], 3), -found.loss) > (round(self.best_score, 3), -self.best_loss)

    def keep(self, step: int, found: Validation) -> None:
        """Make that step the best one."""
        self.best_step, self.best_score, self.best_loss = step, found.scores[CHOSEN_BY], found.loss
        self.best_scores, self.signature, self.stale = dict(found.scores), found.signature, 0


@dataclass(frozen=True)
class Job:
    """The parts of a run.

    val: batches of the photos to choose by. judged: their records. frequencies: document frequencies of their captions.
    total: steps in all. epoch: steps an epoch. carried: it starts from a trained captioner. story: where it all came
    from, for the model card.
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
    story: str
    say: Say
    show: bool | None

    def done(self, progress: Progress) -> bool:
        """Whether all steps are done, or too many evaluations went by without a better one."""
        patience = self.recipe.patience
        return self.trainer.step_count >= self.total or (patience > 0 and progress.stale >= patience)

    def due(self, step: int) -> bool:
        """Whether that step ends with an evaluation."""
        return step % (self.epoch * self.recipe.evaluate_every_epochs) == 0 or step == self.total

    def validation(self) -> Validation:
        """How good the captioner is now."""
        return validate(
            self.captioner,
            self.val,
            self.judged,
            frequencies=self.frequencies,
            search=self.recipe.search,
            weights_dtype=self.recipe.weights_dtype,
            show=self.show,
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
    _stop_or_say(dataset.problems, skip_bad, say)
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


def _stop_or_say(problems: Sequence[object], skip_bad: bool, say: Say) -> None:
    if not problems:
        return
    count = f"{len(problems):,} bad row{'s' * (len(problems) != 1)}"
    if not skip_bad:
        raise DataError(f"{count}; mend them, or leave them out with skip_bad=True (--skip-bad){listed(problems)}")
    say(f"skipping {count}:{listed(problems)}")


def prepare(
    plan: Recipe,
    folder: RunFolder,
    captioner: Captioner,
    training: list[Record],
    validating: list[Record],
    *,
    carried: bool,
    skip_bad: bool,
    story: str,
    say: Say,
    show: bool | None,
) -> Job:
    """Features, batches and trainer."""
    objective = _objective(plan, captioner)
    records = [*training, *validating]
    bad = _wordless(records, captioner, skip_bad, say)
    if trunk_trains(captioner.encoder):
        cache = None
        bad |= _unreadable(records, skip_bad, say, show)
        say("the encoder's trunk is trained: photos are read anew for every batch")
    else:
        cache = FeatureCache.build(
            folder.features,
            captioner.encoder,
            records,
            device=captioner.device,
            skip_bad=skip_bad,
            show=show,
            say=say,
        )
        bad |= cache.bad

    def batches(rows: list[int], seed: int) -> Batches:
        if not rows:
            raise DataError(f"{len(bad):,} photos are left out; too few are left to train and to validate on")
        kept = [records[i] for i in rows]
        return Batches(
            kept,
            captioner.vocabulary,
            ImageInputs(kept, captioner.encoder.image_spec) if cache is None else CachedInputs(cache, rows),
            photos=plan.photos,
            captions=plan.captions,
            max_length=plan.max_length,
            seed=seed,
            trunk=cache is not None,
        )

    train = batches([i for i in range(len(training)) if i not in bad], plan.seed)
    val_rows = [i for i in range(len(training), len(records)) if i not in bad]
    val = batches(val_rows, 0)
    # Few photos: an epoch goes through them several times, so that all epochs together have min_steps.
    epoch = max(math.ceil(train.per_epoch / plan.accumulate), math.ceil(plan.min_steps / plan.epochs))
    total = epoch * plan.epochs
    trainer = Trainer(
        captioner,
        objective,
        make_optimizer(captioner, plan, carried=carried),
        WarmupCosine(min(plan.warmup, total // 10), total),
        precision=cast(Any, plan.precision),
        accumulate=plan.accumulate,
        clip_norm=plan.clip_norm or None,
        seed=plan.seed,
    )
    judged = [records[i] for i in val_rows]
    if len(judged) == 1:
        say(f"one validation photo: its {CHOSEN_BY} is 0 whatever the caption, so the teacher-forced loss chooses")
    words = [[scored_words(caption) for caption in record.captions] for record in judged]
    frequencies = cached_frequencies(folder.frequencies, words, vocabulary=captioner.vocabulary)
    return Job(
        plan, folder, captioner, trainer, train, val, judged, frequencies, total, epoch, carried, story, say, show
    )


def _objective(plan: Recipe, captioner: Captioner) -> Objective:
    words: ForcedObjective = CrossEntropy(plan.label_smoothing)
    if not plan.doubly_stochastic:
        return Prefixes(words) if plan.prefixes else words
    if not captioner.decoder.has_attention:
        raise ArgumentError(
            f"doubly_stochastic = {plan.doubly_stochastic:g} needs a decoder with attention and "
            f"{type(captioner.decoder).__name__} has none; set it to 0, or train attention-lstm.v1 (init none)"
        )
    words = DoublyStochastic(words, plan.doubly_stochastic)
    return Prefixes(words) if plan.prefixes else words


def _wordless(records: Sequence[Record], captioner: Captioner, skip_bad: bool, say: Say) -> frozenset[int]:
    """The positions of photos whose captions hold no word, such as "!!!"."""
    problems = wordless(records, captioner.vocabulary)
    _stop_or_say(list(problems.values()), skip_bad, say)
    return frozenset(problems)


def _unreadable(records: Sequence[Record], skip_bad: bool, say: Say, show: bool | None) -> frozenset[int]:
    """The positions of photos that can't be read: looked for now rather than in the middle of the training."""
    tiny = ImageSpec(32, 32)
    bad: dict[int, str] = {}
    with bar(len(records), "opening photos", unit="photo", show=show) as progress:
        for start in range(0, len(records), 64):
            found = load_records(records[start : start + 64], tiny)[1]
            bad.update({start + number: reason for number, reason in found.items()})
            progress.update(len(records[start : start + 64]))
    _stop_or_say(list(bad.values()), skip_bad, say)
    return frozenset(bad)


def card(job: Job, progress: Progress) -> str:
    """The model card of the best captioner so far."""
    photos, captions = len(job.judged), sum(len(record.captions) for record in job.judged)
    scores = {metric: progress.best_scores[metric] for metric in (CHOSEN_BY, "BLEU-4", "ROUGE-L")}
    scores["teacher-forced loss, nats a word"] = progress.best_loss
    settings = "\n".join(f"{key} = {json.dumps(value)}" for key, value in job.recipe.values().items())
    text = hub.model_card(
        title="A captioner trained with showtell",
        data=f"{job.story} Scores are of the {photos:,} validation photos ({captions:,} captions), which chose the "
        f"best step by {CHOSEN_BY}.",
        scores=scores,
        search=job.recipe.search,
        signature=progress.signature,
    )
    best = f"showtell {__version__}, best after {progress.best_step:,} of at most {job.total:,} steps, with"
    return f"{text}\n## Training\n\n{best}\n\n```toml\n{settings}\n```\n"
