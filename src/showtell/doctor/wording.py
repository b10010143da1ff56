"""What the captions themselves show: all the same, full of unknown words, too short, too long, badly ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..captioner import Captioner
from ..generate import generate
from ..metrics.diversity import caption_health
from ..protocols import slice_features
from ..search import Search
from ..vocabulary import Vocabulary
from .findings import Check, Finding, Measure
from .intervals import LEAST_PHOTOS
from .sample import Sample

__all__ = ["check_lengths", "check_sameness", "check_unknown", "too_few"]

SAMENESS = 0.2
"""How much more often two photos may share a caption than two people's captions of different photos are the same.
Reached by five captions taken in turn, or by one that 45 % of the photos get. The bundled captioner: 0.001 on
Flickr8k."""

UNKNOWN_REFERENCES = 0.1
"""The most unknown words among the references. The bundled captioner on Flickr8k's val, whose words occur 5 times:
0.03; the captioner of docs/train.md on photos of another kind is trained further for a reason."""

UNKNOWN_SAID = 0.05
"""The most `<unk>` among the words it would say, were it not forbidden. The bundled captioner: 0.005."""

SHORTEST, LONGEST = 0.6, 1.5
"""Mean length of the captions over that of the references. Searches prefer short captions: 0.8 to 1.1 is usual."""

CUT, EMPTY = 0.1, 0.02  # the most captions that the length limit cut; that have no word
MORE_BAD_ENDINGS, MORE_REPEATS = 0.1, 0.1  # more captions than references that end, or repeat a word, as none should

_CHUNK = 32


def too_few(code: str, photos: int, split: str) -> Check | None:
    """The check that isn't made because there are too few photos; None where there are enough."""
    if photos >= LEAST_PHOTOS:
        return None
    plural = "s" * (photos != 1)
    return Check(code, "not run", f"{split} has {photos} photo{plural} to look at; at least {LEAST_PHOTOS} are needed")


def check_sameness(sample: Sample, vocabulary: Vocabulary) -> Check:
    """The same caption for every photo, or a handful of captions for all."""
    texts = [text for text in sample.texts if text]  # empty ones are for `bad-lengths`
    few = too_few("same-caption", len(texts), f"{sample.split}, empty captions left out,")
    if few is not None:
        return few
    count = len(texts)
    shared = _collisions(vocabulary, texts)
    people = _collisions(vocabulary, [each[0] for each in sample.references])
    common, times = Counter(texts).most_common(1)[0]
    result = (
        f"two photos have the same caption in {shared:.1%} of cases, people's captions of two photos are the same in "
        f"{people:.1%} (at most {people + SAMENESS:.1%}); {len(set(texts)):,} different captions for {count:,} photos"
    )
    measures = (
        Measure("share of pairs of photos with the same caption", shared, most=people + SAMENESS),
        Measure("share of photos with the most common caption", times / count),
    )
    if not any(measure.broken for measure in measures):
        return Check("same-caption", "clean", result, measures)
    finding = Finding(
        "same-caption",
        f"{times:,} of {count:,} photos get the caption {common!r:.200}",
        result,
        "a caption that fits every photo says nothing about any of them",
        "train longer, with a lower learning rate, or with more varied captions",
    )
    return Check("same-caption", "found", result, measures, finding=finding)


def check_unknown(captioner: Captioner, sample: Sample, captions: Sequence[str], search: Search) -> Check:
    """Words of the references (`captions`: all of a split's) that the vocabulary lacks, and `<unk>` in what is said."""
    few = too_few("unknown-words", len(sample.records), sample.split)
    if few is not None:
        return few
    report = captioner.vocabulary.unknown(captions)
    said, words = _unknown_said(captioner, sample, search)
    rate = said / max(1, words)
    spoken = caption_health(sample.texts).unknown_ratio
    result = (
        f"the vocabulary lacks {report.rate:.1%} of {report.total:,} words of {sample.split}'s captions (at most "
        f"{UNKNOWN_REFERENCES:.0%}); {rate:.1%} of the words it would say are <unk> (at most {UNKNOWN_SAID:.0%})"
    )
    measures = (
        Measure("share of the references' words that are unknown", report.rate, most=UNKNOWN_REFERENCES),
        Measure("share of <unk> among the words it would say", rate, most=UNKNOWN_SAID),
        Measure("share of <unk> in its captions", spoken, most=UNKNOWN_SAID),
    )
    if not any(measure.broken for measure in measures):
        return Check("unknown-words", "clean", result, measures)
    finding = Finding(
        "unknown-words",
        f"{report.rate:.0%} of the words that people use are unknown to it, {rate:.0%} of what it would say is <unk>",
        result,
        "an unknown word can be neither learned nor said; <unk> itself is forbidden in captions, so a less fitting "
        "word "
        "takes its place",
        'train with a larger vocabulary (a lower min_count, no max_size, or vocabulary = "bpe"); `showtell train` on '
        "these "
        "photos adds their words to a captioner that is there",
        tuple(f"{word}: {times:,} times" for word, times in report.common[:10]),
    )
    return Check("unknown-words", "found", result, measures, finding=finding)


def check_lengths(sample: Sample) -> Check:
    """Captions of odd length, cut ones, empty ones, bad endings and repeated words."""
    few = too_few("bad-lengths", len(sample.records), sample.split)
    if few is not None:
        return few
    ours = caption_health(sample.texts)
    people = caption_health([caption for each in sample.references for caption in each])
    cut = sum(caption.tokens[-1:] != ("<end>",) for caption in sample.captions) / len(sample.captions)
    length = Measure(
        "mean length over that of references", ours.mean_length / max(people.mean_length, 1e-9), SHORTEST, LONGEST
    )
    cut_off = Measure("captions that the length limit cut", cut, most=CUT)
    empty = Measure("captions without a word", ours.empty_ratio, most=EMPTY)
    endings = Measure(
        "captions that end in the middle", ours.bad_ending_ratio, most=people.bad_ending_ratio + MORE_BAD_ENDINGS
    )
    repeats = Measure(
        "captions that repeat a word", ours.repeated_word_ratio, most=people.repeated_word_ratio + MORE_REPEATS
    )
    said = {
        length: f"{ours.mean_length:.1f} words a caption, {people.mean_length:.1f} a reference: {length.value:.2f} of "
        f"it "
        f"({SHORTEST} to {LONGEST})",
        cut_off: f"{cut:.0%} cut by the length limit (at most {CUT:.0%})",
        empty: f"{empty.value:.0%} empty (at most {EMPTY:.0%})",
        endings: f"{endings.value:.0%} end like 'a dog on the' (at most {endings.most:.0%})",
        repeats: f"{repeats.value:.0%} repeat a word (at most {repeats.most:.0%})",
    }
    broken = [measure for measure in said if measure.broken]
    result = "; ".join(said.values())
    if not broken:
        return Check("bad-lengths", "clean", result, tuple(said))
    remedies = {
        length: "search with a length_penalty (beam:3,length_penalty=0.7) or train on captions of the length you want",
        cut_off: "train on whole captions, so that it learns to end, or raise max_length if the references are as long",
        empty: "look for empty captions in the training data",
        endings: "look for cut captions in the training data, and for a max_length in training below most captions' "
        "length",
        repeats: "search with a beam instead of greedy; train longer, or with more dropout",
    }
    finding = Finding(
        "bad-lengths",
        "; ".join(said[measure].partition(" (")[0] for measure in broken),
        "; ".join(said[measure] for measure in broken),
        "BLEU and CIDEr-D punish captions whose length or wording is off, and readers do",
        "; ".join(remedies[measure] for measure in broken),
        tuple(f"{record.id}: {text}" for record, text in list(zip(sample.records, sample.texts, strict=True))[:3]),
    )
    return Check("bad-lengths", "found", result, tuple(said), finding=finding)


def _collisions(vocabulary: Vocabulary, captions: Sequence[str]) -> float:
    """The share of pairs of captions that have the same words."""
    counts = Counter(tuple(vocabulary.split(caption)) for caption in captions)
    pairs = len(captions) * (len(captions) - 1)
    return sum(times * (times - 1) for times in counts.values()) / pairs


def _unknown_said(captioner: Captioner, sample: Sample, search: Search) -> tuple[int, int]:
    """`<unk>`s and words in captions made with `<unk>` allowed."""
    words = captioner.vocabulary
    unknown = total = 0
    for start in range(0, len(sample.records), _CHUNK):
        features = slice_features(sample.features, start, start + _CHUNK)
        forbid = (words.pad_id, words.start_id)
        found = generate(captioner.decoder, features, search, start=words.start_id, end=words.end_id, forbid=forbid)
        for ids, length in zip(found.tokens[:, 0].tolist(), found.lengths[:, 0].tolist(), strict=True):
            spoken = [number for number in ids[:length] if number != words.end_id]
            unknown += spoken.count(words.unk_id)
            total += len(spoken)
    return unknown, total
