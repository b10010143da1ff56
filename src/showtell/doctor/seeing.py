"""Whether the photo matters, and whether it would matter more if it came differently."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..captioner import Captioner
from ..data import Record
from ..data.inputs import load_records
from ..image_spec import ImageSpec
from ..metrics import score_captions
from ..progress import bar
from ..protocols import Features, join_features
from ..search import Search
from .findings import Check, Finding, Measure, Outcome
from .intervals import Interval, mean_interval
from .losses import SHIFTS, Losses, Words, losses_of, wins_over_others, words_of
from .sample import Sample
from .wording import too_few

__all__ = ["PROBES", "Probe", "check_photo", "check_preprocessing"]

WINS = 0.6
"""The share of other photos that the right one must beat. A captioner that doesn't see has 0.5 whatever its losses; the
bundled one has 0.99 on Flickr8k's val; the one before it 0.97, and 0.88 with photos turned by 90 degrees."""

WORTH = 0.02
"""Nats a word that the right photo must be worth. The bundled captioner: 1.28 on Flickr8k's val."""

SCORE_WINS = 0.65
"""The share of other photos' references that a caption must fit less than its own photo's, by CIDEr-D. The bundled
captioner: 0.88; the one before it with its captions dealt to other photos: 0.52."""

BETTER = 0.02
"""Nats a word by which a probe must lower the loss, besides being significant. Broken on purpose, the bundled
captioner of then gains 0.034 (colours inverted, the least) to 1.0 (values 255 times too small) on photos it was
trained on; healthy, the best probe loses 0.019 (mirrored, which isn't tried), the next 0.034 (inverted). With photos
of 96 pixels in place of 224 twice the size gains 0.24, and 0.11 where the decoder was trained on such photos."""

_SURE = 0.999  # so that 15 probes on a healthy captioner rarely give one that seems to help by chance
_CAPTIONS = 2  # a photo; many photos tell more than many captions
_PROBED = 120  # photos
_SCREENED = 40  # photos that are enough to give up a probe that does harm
_ENCODED = 16
_LARGEST = 448  # pixels a side that photos are shown with


class Probe(NamedTuple):
    """A way that photos may come: its name, what it does to images (N, 3, H, W), what to change for it, and how much
    larger than the encoder asks they are loaded."""

    name: str
    apply: Callable[[Tensor], Tensor]
    remedy: str
    scale: float = 1.0


def _imagenet(images: Tensor) -> tuple[Tensor, Tensor]:
    numbers = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(each, device=images.device).view(3, 1, 1) for each in numbers)
    return mean, std


def _normalised(images: Tensor) -> Tensor:
    mean, std = _imagenet(images)
    return (images - mean) / std


def _denormalised(images: Tensor) -> Tensor:
    mean, std = _imagenet(images)
    return images * std + mean


_TURN = "photos reach the encoder turned: apply the EXIF orientation, and look for a swapped height and width"
_SIZE = "the captioner, or its backbone alone, learned from photos of another size: build the encoder with"

PROBES = (
    Probe(
        "red and blue swapped",
        lambda x: x.flip(1),
        "the encoder learned from blue-green-red photos (OpenCV's order) or they come so now: swap the channels "
        "inside the encoder",
    ),
    Probe(
        "values times 255",
        lambda x: x * 255,
        "the encoder learned from values in 0..255: multiply by 255 inside it, or leave out a division by 255",
    ),
    Probe("values divided by 255", lambda x: x / 255, "values are multiplied by 255 once too often inside the encoder"),
    Probe(
        "normalised once more with ImageNet's mean and deviation",
        _normalised,
        "the encoder doesn't normalise, or only in part: subtract the mean (0.485, 0.456, 0.406) and divide by the "
        "deviation "
        "(0.229, 0.224, 0.225) inside it",
    ),
    Probe(
        "normalised once less with ImageNet's mean and deviation",
        _denormalised,
        "photos are normalised twice: showtell gives encoders 0..1, so normalise inside the encoder only",
    ),
    Probe(
        "normalised once more to -1..1",
        lambda x: 2 * x - 1,
        "the encoder doesn't normalise, or only in part: subtract 0.5 and divide by 0.5 inside it",
    ),
    Probe(
        "normalised once less from -1..1",
        lambda x: x / 2 + 0.5,
        "photos are normalised twice: showtell gives encoders 0..1, so normalise inside the encoder only",
    ),
    Probe(
        "normalised with ImageNet's constants in place of 0.5 and 0.5",
        lambda x: _normalised(x) / 2 + 0.5,
        "the encoder normalises with mean and std 0.5 and learned with ImageNet's: use (0.485, 0.456, 0.406) and "
        "(0.229, 0.224, 0.225)",
    ),
    Probe(
        "normalised with 0.5 and 0.5 in place of ImageNet's constants",
        lambda x: _denormalised(2 * x - 1),
        "the encoder normalises with ImageNet's mean and std and learned with 0.5 and 0.5: use these",
    ),
    Probe(
        "inverted",
        lambda x: 1 - x,
        "light and dark are swapped on the way: look for `1 - x` or a negative of the photos",
    ),
    Probe("upside down", lambda x: x.flip(2), "photos reach the encoder upside down: apply the EXIF orientation"),
    Probe("turned by 90 degrees to the left", lambda x: x.transpose(2, 3).flip(2), _TURN),
    Probe("turned by 90 degrees to the right", lambda x: x.transpose(2, 3).flip(3), _TURN),
    Probe("twice as large", lambda x: x, f"{_SIZE} twice the size (image_size, or height and width)", 2.0),
    Probe("half as large", lambda x: x, f"{_SIZE} half the size (image_size, or height and width)", 0.5),
)
"""What is tried. Mirrored photos are left out: captions rarely say left or right, and many learn from both. So is the
whole photo in place of its centre: who sees more may do better and be no less healthy."""


def check_photo(captioner: Captioner, sample: Sample, search: Search, *, plausible: bool) -> Check:
    """Whether captions depend on what the photo shows: the photos shuffled among each other.

    Two tests, each over pairs of the same captions with the right and with other photos: the loss of the references,
    which has many words and sees little differences, decides; the generated captions' CIDEr-D finds captions that go to
    the wrong photo, where they look sound otherwise (`plausible`)."""
    few = too_few("photo-ignored", len(sample.records), sample.split)
    if few is not None:
        return few
    words = words_of(captioner.vocabulary, sample.records, captions=_CAPTIONS, max_length=search.max_length)
    right = losses_of(captioner, sample.features, words)
    each_win, each_gain = wins_over_others(captioner, sample.features, words, right)
    wins, gain = mean_interval(each_win), mean_interval(each_gain)
    score, others, each_fit = _scores(sample)
    better, fits = mean_interval(score - others), mean_interval(each_fit)
    result = (
        f"the right photo beats {wins.mean:.0%} of others ({wins.low:.0%} to {wins.high:.0%}; chance is 50 %, at least "
        f"{WINS:.0%}), {gain.mean:.3f} nats a word ({gain.low:.3f} to {gain.high:.3f}, at least {WORTH}); captions fit "
        f"their own photo better than {fits.mean:.0%} of others ({fits.low:.0%} to {fits.high:.0%}, at least "
        f"{SCORE_WINS:.0%}), CIDEr-D {float(score.mean()):.3f} against {float(others.mean()):.3f}"
    )
    measures = (
        Measure("share of other photos that the right one beats", wins.mean, least=WINS),
        Measure("nats a word that the right photo is worth", gain.mean, least=WORTH),
        Measure("share of other photos that a caption fits less than its own", fits.mean, least=SCORE_WINS),
        Measure("CIDEr-D against a photo's own references", float(score.mean())),
        Measure("CIDEr-D against other photos' references", float(others.mean())),
    )
    why = "captions that don't depend on the photo may read well and describe nothing; scores can't rise above those "
    "of luck"
    if wins.high < WINS or gain.high < WORTH:
        finding = Finding(
            "photo-ignored",
            "the photo doesn't matter: other photos do as well",
            result,
            why,
            "see that the encoder has its trained weights (a custom one must be saved with them, and not be rebuilt "
            "at random), that "
            "the decoder reads `memory`, and that captions in the data belong to their photos",
        )
        return Check("photo-ignored", "found", result, measures, finding=finding)
    if plausible and better.low <= 0 and fits.high < SCORE_WINS:
        finding = Finding(
            "photo-ignored",
            "the generated captions fit other photos as well as their own",
            result,
            why,
            "the decoder sees the photo when it reads a caption (its call) but not when it writes one (`prepare`, "
            "`initial_state`, `step`): run `showtell.testing.check_decoder` on it; look for captions that get to "
            "another photo's row",
        )
        return Check("photo-ignored", "found", result, measures, finding=finding)
    if wins.low < WINS or gain.low < WORTH:
        return Check("photo-ignored", "unclear", f"{result}; more photos would tell (--photos)", measures)
    return Check("photo-ignored", "clean", result, measures)


def _scores(sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """Of each photo (N,): its caption's CIDEr-D, its mean against other photos' references, and the share of these that
    are lower, equal ones counting half."""
    references = sample.references
    own, *others = (
        torch.tensor(
            score_captions(sample.texts, references[shift:] + references[:shift], metrics=("CIDEr-D",)).each["CIDEr-D"]
        )
        for shift in (0, *SHIFTS)
    )
    other = torch.stack(others)
    return own, other.mean(0), ((own > other).double() + 0.5 * (own == other).double()).mean(0)


@dataclass(frozen=True)
class _Tried:
    probe: Probe
    features: Features
    before: Losses
    after: Losses
    gain: Interval


def check_preprocessing(
    captioner: Captioner, split: str, records: Sequence[Record], search: Search, show: bool | None
) -> Check:
    """Whether the captioner would do clearly better if photos came differently: `PROBES`, on the same photos.

    records: photos of `split` in random order, best of train: what a captioner was trained on tells it most.
    """
    few = too_few("wrong-preprocessing", len(records), split)
    if few is not None:
        return few
    some = tuple(records[:_PROBED])
    spec = captioner.encoder.image_spec
    images, _ = load_records(some, spec)
    words = words_of(captioner.vocabulary, some, captions=_CAPTIONS, max_length=search.max_length)
    features = _encoded(captioner, images)
    now = losses_of(captioner, features, words)
    square, side = spec.height == spec.width, max(spec.height, spec.width)
    probes = [each for each in PROBES if square or not each.name.startswith("turned")]
    probes = [each for each in probes if each.scale * side <= max(side, _LARGEST)]
    with bar(len(probes), "trying other preprocessing", unit="probe", show=show) as progress:
        tried = []
        for probe in probes:
            tried += _try(captioner, some, images, words, now, probe)
            progress.update()
    best = max(tried, key=lambda each: each.gain.mean, default=None)
    worth = [float(wins_over_others(captioner, features, words, now)[1].mean())] if best and _helps(best) else []
    if best and worth:
        # Photos that are made featureless may lower the loss of a captioner that they only confuse: they must tell
        # more, too.
        wins, gains = wins_over_others(captioner, best.features, words, best.after)
        worth += [float(gains.mean())] * (mean_interval(wins).low > WINS)
    return _judged(split, len(some), len(tried), best, worth)


def _judged(split: str, photos: int, count: int, best: _Tried | None, worth: Sequence[float]) -> Check:
    """worth: nats a word that the right photo is worth as photos come now and, where it matters then, with `best`."""
    looked = f"{photos} photos of {split}, {count} other ways to prepare them"
    if best is None:
        return Check("wrong-preprocessing", "not run", f"{looked}: the encoder refuses all of them")
    result = (
        f"{looked}: the best, {best.probe.name}, changes the loss from {best.before.mean:.3f} to "
        f"{best.after.mean:.3f} nats a word, "
        f"{best.gain.mean:+.3f} better ({best.gain.low:+.3f} to {best.gain.high:+.3f}, at most {BETTER})"
    )
    measures = (Measure("nats a word that the best probe gains", best.gain.mean, most=BETTER),)
    if not _helps(best):
        outcome: Outcome = "unclear" if best.gain.high > BETTER and best.gain.mean > BETTER else "clean"
        return Check("wrong-preprocessing", outcome, result, measures)
    if len(worth) < 2 or worth[1] <= worth[0]:
        return Check("wrong-preprocessing", "clean", f"{result}, but the photo tells no more then", measures)
    finding = Finding(
        "wrong-preprocessing",
        f"the captioner does better with photos {best.probe.name}",
        f"{result}; the right photo is worth {worth[1]:.3f} nats a word instead of {worth[0]:.3f}",
        "an encoder that gets photos unlike those it learned from sees less than it could, and nothing says so",
        best.probe.remedy,
    )
    return Check("wrong-preprocessing", "found", result, measures, finding=finding)


def _helps(tried: _Tried) -> bool:
    return tried.gain.low > 0 and tried.gain.mean > BETTER


def _try(
    captioner: Captioner, records: Sequence[Record], images: Tensor, words: Words, now: Losses, probe: Probe
) -> list[_Tried]:
    """A probe on some of the photos and, unless it does harm there, on all; nothing where the encoder refuses."""
    spec = captioner.encoder.image_spec
    found: list[_Tried] = []
    for count in dict.fromkeys((min(_SCREENED, len(images)), len(images))):
        some = Words(*(t[:count] for t in words))
        before = Losses(now.totals[:count], now.counts[:count])
        try:
            shown = images[:count]
            if probe.scale != 1:
                shown, _ = load_records(records[:count], _scaled(spec, probe.scale))
            features = _encoded(captioner, probe.apply(shown))
            after = losses_of(captioner, features, some)
        except Exception:  # somebody else's encoder, which may take no values out of range and no other size
            return []
        gains = before.each - after.each
        if bool(torch.isnan(gains).any()):  # values beyond what the encoder's numbers can hold
            return []
        found = [_Tried(probe, features, before, after, mean_interval(gains, _SURE))]
        if found[0].gain.high < BETTER:
            break
    return found


def _scaled(spec: ImageSpec, scale: float) -> ImageSpec:
    """The same photo with more or fewer pixels."""
    sizes = {name: getattr(spec, name) for name in ("height", "width", "short_side")}
    return replace(spec, **{name: max(1, round(scale * size)) for name, size in sizes.items() if size})


def _encoded(captioner: Captioner, images: Tensor) -> Features:
    return join_features(
        [captioner.encode_pixels(images[start : start + _ENCODED]) for start in range(0, len(images), _ENCODED)]
    )
