"""What a run's batches are made of: features from the cache, of one or several views of each photo, or photos."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

from torch import nn

from ..captioner import Captioner
from ..data import Augmented, Batches, CachedInputs, FeatureCache, ImageInputs, Record
from ..data.augment import View, refused
from ..data.inputs import CachedViews, unreadable
from ..data.records import stop_or_say, wordless
from ..errors import ArgumentError, DataError
from ..ranks import Ranks
from .assemble import trunk_trains
from .recipe import Recipe

__all__ = ["Fed", "encoder_parameters", "feed"]

Say = Callable[[str], None]


class Fed(NamedTuple):
    """train, val: batches. learnt, judged: the records of each. trained: the weights before the
    encoder's head that train.
    """

    train: Batches
    val: Batches
    learnt: list[Record]
    judged: list[Record]
    trained: frozenset[str]


def feed(
    plan: Recipe,
    features: Path,
    captioner: Captioner,
    training: Sequence[Record],
    validating: Sequence[Record],
    *,
    skip_bad: bool,
    say: Say,
    show: bool | None,
    ranks: Ranks,
) -> Fed:
    """Encode what can be encoded once, leave out what can't be read, and cut the rest into batches.

    features: the folder of the cache. Raises ArgumentError for augmentation that no setting makes possible, DataError
    for photos that can't be read or have no words.
    """
    records = [*training, *validating]
    bad = _wordless(records, captioner, skip_bad, say)
    trained = frozenset(trunk_trains(captioner.encoder))
    augmentation = plan.augmentation()
    if trained and plan.views:
        raise ArgumentError(
            f"views = {plan.views} keeps features of a frozen encoder, and train_encoder changes them with every step; "
            "set views to 0: photos are then changed anew in every epoch"
        )
    if plan.views and not augmentation.names():
        raise ArgumentError(
            f"views = {plan.views} would keep that many equal copies of each photo; say how they differ, with flip = "
            "0.5 or crop_area = 0.7 for instance, or set views to 0"
        )
    if augmentation.names() and not trained and not plan.views:
        raise refused(augmentation)

    def encoded(folder: Path, some: Sequence[Record], view: View | None = None) -> FeatureCache:
        return FeatureCache.build(
            folder,
            captioner.encoder,
            some,
            device=captioner.device,
            skip_bad=skip_bad,
            show=show,
            say=say,
            ranks=ranks,
            view=view,
        )

    cache = None
    if trained:
        unread = unreadable(records, show=show, ranks=ranks)
        stop_or_say(list(unread.values()), skip_bad, say)
        bad |= unread.keys()
        say(_without_cache(plan, captioner, trained))
    else:
        cache = encoded(features, records)
        bad |= cache.bad
    train_rows = [i for i in range(len(training)) if i not in bad]
    val_rows = [i for i in range(len(training), len(records)) if i not in bad]
    if not train_rows or not val_rows:
        raise DataError(f"{len(bad):,} photos are left out; too few are left to train and to validate on")

    def batches(rows: list[int], seed: int, augment: bool = False) -> Batches:
        kept = [records[i] for i in rows]
        spec = captioner.encoder.image_spec
        augmented = Augmented(augmentation, kept, spec, seed=seed) if augment else None
        inputs: ImageInputs | CachedInputs | CachedViews
        if cache is None:
            inputs = ImageInputs(kept, augmented.spec if augmented else spec)
        elif augmented is None:
            inputs = CachedInputs(cache, rows)
        else:
            every = range(len(kept))
            views = [encoded(features / f"view-{i}", kept, augmented.view(i)) for i in range(plan.views)]
            inputs = CachedViews([CachedInputs(view, every) for view in views])
        return Batches(
            kept,
            captioner.vocabulary,
            inputs,
            photos=plan.photos,
            captions=plan.captions,
            max_length=plan.max_length,
            seed=seed,
            trunk=cache is not None,
            augment=augmented if cache is None else None,
        )

    train = batches(train_rows, plan.seed, bool(augmentation.names()))
    learnt, judged = ([records[i] for i in rows] for rows in (train_rows, val_rows))
    return Fed(train, batches(val_rows, 0), learnt, judged, trained)


def encoder_parameters(captioner: Captioner) -> Iterator[tuple[str, nn.Parameter]]:
    """The encoder's weights by name."""
    return cast(nn.Module, captioner.encoder).named_parameters()


def _without_cache(plan: Recipe, captioner: Captioner, trained: Collection[str]) -> str:
    """Why photos are read anew for every batch, which costs many times what reading features does."""
    part = f"{sum(p.numel() for n, p in encoder_parameters(captioner) if n in trained):,} weights before its head"
    start = plan.encoder_start_epoch
    when = f" from epoch {start} on (they count from 0)" if start else ""
    also = ", before that too" if start else ""
    return (
        f"the encoder's trunk is trained ({part}){when}: its features change with every step, so there is no feature "
        f"cache and photos are read and encoded anew for every batch{also}"
    )


def _wordless(records: Sequence[Record], captioner: Captioner, skip_bad: bool, say: Say) -> frozenset[int]:
    """The positions of photos whose captions hold no word, such as "!!!"."""
    problems = wordless(records, captioner.vocabulary)
    stop_or_say(list(problems.values()), skip_bad, say)
    return frozenset(problems)
