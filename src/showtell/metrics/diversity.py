"""What captions look like without looking at references: their health, and how a set of captions for a photo varies."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from ..checks import whole
from ..errors import ArgumentError
from .cider import Cider
from .frequencies import DocumentFrequencies
from .ptb import ptb_tokenize

__all__ = ["BAD_ENDINGS", "Health", "caption_health", "div_n", "self_cider"]

BAD_ENDINGS = frozenset(
    {"a", "an", "the", "my", "your", "our", "their", "its", "every"}
    | {"of", "in", "at", "with", "from", "into", "onto", "for", "to", "than", "as"}
    | {"and", "or", "but", "nor", "because", "while", "which", "whose"}
    | {"is", "are", "was", "were", "be", "am", "has", "have"}
)
"""Words no finished English caption ends with, list 1; 0.1 % of people's captions in Flickr8k do."""

_LONGEST_REPEAT = 4  # words
_RANK = 1e-12  # an eigenvalue this small beside the largest is rounding

Words = tuple[str | None, ...]  # None: a word the captioner marked as unknown


@dataclass(frozen=True)
class Health:
    """What a pile of captions looks like; numbers and one text, so it can be saved as JSON.

    Example:
        >>> health = caption_health(["a dog", "a dog", "a cat", ""])
        >>> health.most_common, health.most_common_ratio, health.empty_ratio
        ('a dog', 0.5, 0.25)

    Words are those of `ptb_tokenize`. Two captions are the same when their words are.

    captions: how many, at least 1.
    unique_ratio: different captions / captions, above 0, at most 1.
    most_common, most_common_ratio: the caption that occurs most often as it was first written (of several, the first
        given), and its share of the captions.
    vocabulary: different words used, the unknown word not counted.
    mean_length, min_length, max_length: in words, the unknown word counted.
    repeated_word_ratio: share of the captions in which one to four words are followed at once by the same words:
        "a a dog", "a dog a dog". 0.03 % of people's captions in Flickr8k.
    bad_ending_ratio: share of the captions whose last word is in `BAD_ENDINGS`, such as "a", "of", "and", "is".
    unknown_ratio: share of the words that are the unknown word; 0 where there is no word.
    empty_ratio: share of the captions without a word.
    novelty: share of the captions with words that are not among the training captions; None where the training
        captions aren't given or no caption has words.
    """

    captions: int
    unique_ratio: float
    most_common: str
    most_common_ratio: float
    vocabulary: int
    mean_length: float
    min_length: int
    max_length: int
    repeated_word_ratio: float
    bad_ending_ratio: float
    unknown_ratio: float
    empty_ratio: float
    novelty: float | None


def caption_health(captions: Sequence[str], *, training: Iterable[str] | None = None, unknown: str = "<unk>") -> Health:
    """Count what is visibly wrong or dull in a captioner's captions.

    Example:
        >>> health = caption_health(["a dog on a", "A dog on a", "a <unk> cat"], training=["A dog on a"])
        >>> health.most_common, round(health.unique_ratio, 2), round(health.bad_ending_ratio, 2), health.vocabulary
        ('a dog on a', 0.67, 0.67, 4)
        >>> round(health.unknown_ratio, 2), round(health.novelty, 2)
        (0.09, 0.33)

    Args:
        captions: at least one; usually one a photo.
        training: the captions the captioner was trained on, for `novelty`.
        unknown: how the captioner writes a word it doesn't know, in any case.

    Raises:
        ArgumentError: no captions, one that is no text, or an empty `unknown`.
    """
    if not isinstance(unknown, str) or not unknown.strip():
        raise ArgumentError(f"unknown must be the text that stands for an unknown word, not {unknown!r:.60}")
    pattern = _whole_word(unknown.strip())
    texts = _texts("captions", captions)
    if not texts:
        raise ArgumentError("there is no caption to look at; give at least one")
    words = [_words(text, pattern) for text in texts]
    kinds = Counter(words)
    common, times = kinds.most_common(1)[0]
    lengths = [len(each) for each in words]
    spoken = [each for each in words if each]
    novelty = None
    if training is not None:
        known = {_words(text, pattern) for text in _texts("training", training)}
        novelty = sum(each not in known for each in spoken) / len(spoken) if spoken else None
    return Health(
        captions=len(texts),
        unique_ratio=len(kinds) / len(texts),
        most_common=texts[words.index(common)],
        most_common_ratio=times / len(texts),
        vocabulary=len({word for each in words for word in each if word is not None}),
        mean_length=sum(lengths) / len(texts),
        min_length=min(lengths),
        max_length=max(lengths),
        repeated_word_ratio=sum(map(_repeats, words)) / len(texts),
        bad_ending_ratio=sum(each[-1] in BAD_ENDINGS for each in spoken) / len(texts),
        unknown_ratio=sum(each.count(None) for each in words) / max(1, sum(lengths)),
        empty_ratio=lengths.count(0) / len(texts),
        novelty=novelty,
    )


def div_n(sets: Sequence[Sequence[str]], n: int) -> float:
    """Div-n: different n-grams in the captions of one photo, divided by their words; the mean over photos, 0..1.

    Example:
        >>> div_n([["a dog", "a cat"]], 1), div_n([["a dog", "a cat"]], 2)
        (0.75, 0.5)

    `sets` has the captions of each photo, at least one photo and one caption each; n is 1..4. An n-gram doesn't reach
    from one caption into the next. A photo whose captions have no word counts 0. More captions a photo mean a lower
    value, so compare sets of one size only. Raises ArgumentError for anything else. Source: Shetty et al. 2017,
    "Speaking the Same Language" (Div-1, Div-2).
    """
    whole("n", n, 1, 4)
    ratios = []
    for words in _sets(sets, least=1):
        grams = {tuple(each[i : i + n]) for each in words for i in range(len(each) - n + 1)}
        ratios.append(len(grams) / max(1, sum(map(len, words))))
    return math.fsum(ratios) / len(ratios)


def self_cider(sets: Sequence[Sequence[str]], *, frequencies: DocumentFrequencies | None = None) -> float:
    """Self-CIDEr: how different the captions of one photo are; the mean over photos, 0..1.

    Example:
        >>> self_cider([["a dog on a rug", "a dog on a rug"], ["two men ride horses", "birds fly over water"]])
        0.5

    Of the m captions of a photo, K[i, j] is the plain CIDEr of caption i with caption j as its only reference. With
    K's eigenvalues e the photo has -log_m(sqrt(max e) / sum sqrt(e)): 0 when all captions are the same, 1 when no two
    share an n-gram that carries weight and each has four words or more.

    Args:
        sets: the captions of each photo, at least one photo, at least two captions each.
        frequencies: of the n-grams of `ptb_tokenize` words; pass those of the references when numbers are to be
            compared between captioners. Default: those of `sets`, which needs at least two photos, because with one
            every weight is 0.

    A photo whose captions hold no n-gram that carries weight counts 0. Raises ArgumentError for sets too small.
    Source: Wang and Chan 2019, "Describing Like Humans: On Diversity in Image Captioning".
    """
    # As CIDEr takes them: the few tokens that hold a space that doesn't break are two words.
    words = [[" ".join(tokens).split() for tokens in captions] for captions in _sets(sets, least=2)]
    if frequencies is None:
        if len(words) < 2:
            raise ArgumentError("with one photo all its n-grams weigh 0; give more photos, or frequencies")
        frequencies = DocumentFrequencies.of(words)
    scorer = Cider(frequencies)
    values = []
    for captions in words:
        size = len(captions)
        kernel = scorer(captions * size, [[caption] for caption in captions]).reshape(size, size)
        values.append(_spread((kernel + kernel.T) / 2))
    return math.fsum(values) / len(values)


def _spread(kernel: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> float:
    """How evenly a kernel's eigenvalues share its weight: 0 when one has all, 1 when all are equal."""
    values = np.linalg.eigvalsh(kernel)
    roots = np.sqrt(values[values > _RANK * max(values[-1], _RANK)])
    if not len(roots):
        return 0.0
    return max(0.0, -math.log(roots[-1] / roots.sum(), len(kernel)))


def _texts(name: str, captions: Iterable[str]) -> list[str]:
    if isinstance(captions, str) or not isinstance(captions, Iterable):
        raise ArgumentError(f"{name} must be a list of captions, not {captions!r:.60}")
    texts = list(captions)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ArgumentError(f"{name}: caption {i} is {text!r:.60}; it must be text")
    return texts


def _sets(sets: Sequence[Sequence[str]], *, least: int) -> Iterator[list[list[str]]]:
    """The words of each photo's captions."""
    if isinstance(sets, str) or not isinstance(sets, Iterable):
        raise ArgumentError(f"sets must be a list with the captions of each photo, not {sets!r:.60}")
    photos = [_texts(f"photo {i}", captions) for i, captions in enumerate(sets)]
    if not photos:
        raise ArgumentError("there is no photo; give the captions of at least one")
    for i, texts in enumerate(photos):
        if len(texts) < least:
            raise ArgumentError(f"photo {i} has {len(texts)} captions; at least {least} are needed")
        yield [ptb_tokenize(text) for text in texts]


def _whole_word(text: str) -> re.Pattern[str]:
    """The text where it stands for itself: "unk" isn't found in "trunk"."""
    before = r"(?<!\w)" if re.match(r"\w", text) else ""
    after = r"(?!\w)" if re.search(r"\w\Z", text) else ""
    return re.compile(before + re.escape(text) + after, re.IGNORECASE)


def _words(text: str, unknown: re.Pattern[str]) -> Words:
    """The words of a caption; the unknown word is found in the raw text, the tokeniser would take it for markup."""
    first, *others = unknown.split(text)
    words: list[str | None] = list(ptb_tokenize(first))
    for piece in others:
        words += [None, *ptb_tokenize(piece)]
    return tuple(words)


def _repeats(words: Words) -> bool:
    """Whether one to four words are followed at once by the same words; two unknown words may be different ones."""
    for n in range(1, _LONGEST_REPEAT + 1):
        same = (a == b and a is not None for a, b in zip(words, words[n:], strict=False))
        if any(hit and sum(1 for _ in run) >= n for hit, run in groupby(same)):
            return True
    return False
