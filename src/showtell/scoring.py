"""How likely a captioner finds captions that are given: one forced pass, each photo encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, cast

import torch
from torch import Tensor

from .caption import Caption
from .errors import ArgumentError, RunError
from .generate import Ready, evaluating
from .photos import Photos, check_batch_size, is_many, part_of, photos_of
from .protocols import Decoder, Features
from .rows import Rows
from .vocabulary import Vocabulary

__all__ = [
    "Given",
    "Scoring",
    "Words",
    "batches",
    "check_numbers",
    "forced_log_probs",
    "score",
    "width",
    "words_in",
]

Given: TypeAlias = str | tuple[str, ...] | Caption
"""A caption to score: a text, the tokens of one (a tuple, as `Caption.tokens`), or a `Caption`."""

MOST_TOKENS = 1000
_MOST_SCORES = 2**24  # next-word scores computed at a time: 64 MB in float32


class Scoring(Protocol):
    """What is asked of a captioner here."""

    vocabulary: Vocabulary

    def ready(self, images: Sequence[Any] | Features, /) -> Ready:
        """Some photos or their features, at least one, to what the decoder takes."""
        ...


class Words(NamedTuple):
    """A caption as text and as ids, the end token included unless the length limit cut it."""

    text: str
    ids: list[int]


def score(
    captioner: Scoring, images: Photos, captions: Given | Sequence[Given | Sequence[Given]], *, batch_size: int = 32
) -> Caption | list[Caption] | list[Caption | list[Caption]]:
    """How likely the captioner finds given captions of photos; `Captioner.score` is this.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> captioner, photo = tiny_captioner(), torch.rand(3, 60, 80)
        >>> said = captioner.caption(photo, search="beam:3")
        >>> abs(score(captioner, photo, said.tokens).log_prob - said.log_prob) < 1e-5
        True
        >>> [scored.tokens for scored in score(captioner, photo, ["a dog", "a zebra"])]
        [('a', 'dog', '<end>'), ('a', '<unk>', '<end>')]

    A text is scored with its end; words that the vocabulary doesn't know are `<unk>`. A tuple holds the tokens of one
    caption, as `Caption.tokens` does: without "<end>" at its end, the end isn't scored, as where a search was cut by
    its length limit. What comes back are Captions: `token_log_probs` each token's, `log_prob` and `score` their sum.

    One photo and one caption give one Caption, one photo and a list of captions a list. Photos in a list, or
    Features, have a list of as many entries, each a caption or a list of captions, and give a list of the same form.

    Raises:
        ArgumentError: a caption without words or of more than 1000 tokens, a token that the vocabulary lacks, photos
            and captions that don't go together.
        NotFoundError, ImageError: a photo can't be read.
        RunError: the decoder returned NaN.
    """
    check_batch_size(batch_size)
    many = isinstance(images, Features) or is_many(images)
    entries: Sequence[Any] = cast(Any, captions) if many else [captions]
    photos, count = photos_of(images, "score takes")
    if not isinstance(entries, list | tuple):
        raise ArgumentError(
            f"photos in a list, or Features, are scored with a list of captions, not {type(captions).__name__}"
        )
    if len(entries) != count:
        raise ArgumentError(
            f"there are {count} photos and captions for {len(entries)}; each photo has a caption or a list of captions"
        )
    words = [
        [words_in(captioner.vocabulary, one) for one in (entry if isinstance(entry, list) else [entry])]
        for entry in entries
    ]
    longest = max((len(one.ids) for each in words for one in each), default=1)
    found: list[Any] = []
    for start, stop in batches(count, min(batch_size, width(captioner.vocabulary, longest))):
        here = words[start:stop]
        scored: list[list[Caption]] = [[] for _ in here]
        most = max(map(len, here))
        if most:
            ready = captioner.ready(part_of(photos, start, stop))
            with torch.inference_mode(), evaluating(ready.decoder):
                memory = ready.decoder.prepare(ready.features)
                at_once = max(1, width(captioner.vocabulary, longest) // len(here))
                for first in range(0, most, at_once):
                    some = [each[first : first + at_once] for each in here]
                    for each, more in zip(scored, _scored(captioner, ready, memory, some, start), strict=True):
                        each += more
        found += [
            each if isinstance(entry, list) else each[0]
            for entry, each in zip(entries[start:stop], scored, strict=True)
        ]
    return found if many else found[0]


def batches(count: int, size: int) -> list[tuple[int, int]]:
    """(start, stop) of each batch.

    Example:
        >>> batches(5, 2)
        [(0, 2), (2, 4), (4, 5)]
    """
    return [(start, min(count, start + size)) for start in range(0, count, size)]


def width(vocabulary: Vocabulary, longest: int) -> int:
    """How many captions of that many tokens are scored at a time, at least 1."""
    return max(1, _MOST_SCORES // (longest * len(vocabulary)))


def words_in(vocabulary: Vocabulary, caption: Given) -> Words:
    """A given caption's text and ids.

    Example:
        >>> vocabulary = Vocabulary.build(["a dog"], min_count=1)
        >>> words_in(vocabulary, "a cat"), words_in(vocabulary, ("a", "dog"))
        (Words(text='a cat', ids=[4, 3, 2]), Words(text='a dog', ids=[4, 5]))

    Raises ArgumentError as `score` does.
    """
    if isinstance(caption, str):
        ids = vocabulary.encode(caption)
        if not ids:
            raise ArgumentError(
                f"the caption {caption!r:.100} has no words; leave it out, or pass the tokens ('<end>',) for silence"
            )
        text, ids = caption, [*ids, vocabulary.end_id]
    elif isinstance(caption, Caption | tuple):
        tokens = caption.tokens if isinstance(caption, Caption) else caption
        ids = _known(vocabulary, tokens)
        text = caption.text if isinstance(caption, Caption) else vocabulary.decode(ids)
    else:
        raise ArgumentError(
            f"a caption is a text, a tuple of tokens such as Caption.tokens, or a Caption, not {caption!r:.100}"
        )
    if len(ids) > MOST_TOKENS:
        raise ArgumentError(f"a caption of {len(ids):,} tokens is too long to score; at most {MOST_TOKENS}")
    return Words(text, ids)


def forced_log_probs(decoder: Decoder, memory: Rows, ids: Tensor, start: int) -> Tensor:
    """The log-probability of each token after those before it: ids (N, K, T) of N images -> (N, K, T).

    In float32, or float64 for a float64 decoder, on the decoder's device. The decoder is in evaluation mode already.
    """
    images, captions, _ = ids.shape
    given = torch.cat([torch.full_like(ids[:, :, :1], start), ids[:, :, :-1]], dim=2)
    logits = decoder(given.flatten(0, 1), memory).logits
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_probs = logits.log_softmax(dim=-1, dtype=dtype)
    return log_probs.gather(2, ids.flatten(0, 1).unsqueeze(2)).view(images, captions, -1)


def check_numbers(values: Tensor, first: int) -> None:
    """Raise RunError for NaN; values (N, ...) on the CPU, those of photo `first` at the front."""
    wrong = values.isnan().flatten(1).any(1)
    if bool(wrong.any()):
        raise RunError(
            f"image {first + int(wrong.nonzero()[0, 0])}: the decoder returned NaN; check that the model's weights "
            "and the features are finite"
        )


def _scored(
    captioner: Scoring, ready: Ready, memory: Rows, words: list[list[Words]], first: int
) -> list[list[Caption]]:
    """Up to K captions of each of N images, in one pass; `first`: the number of the first image."""
    vocabulary = captioner.vocabulary
    most = max(map(len, words))
    longest = max(len(one.ids) for each in words for one in each)
    padding = [vocabulary.end_id] * longest
    ids = [[(one.ids + padding)[:longest] for one in each] + [padding] * (most - len(each)) for each in words]
    tensor = torch.tensor(ids, device=ready.features.pooled.device)
    values = forced_log_probs(ready.decoder, memory, tensor, vocabulary.start_id).cpu()
    real = torch.tensor([[len(one.ids) for one in each] + [0] * (most - len(each)) for each in words]).unsqueeze(2)
    check_numbers(values.where(torch.arange(longest) < real, 0.0), first)
    return [
        [_caption(vocabulary, one, row[: len(one.ids)]) for one, row in zip(each, rows, strict=False)]
        for each, rows in zip(words, values.tolist(), strict=True)
    ]


def _caption(vocabulary: Vocabulary, words: Words, log_probs: list[float]) -> Caption:
    total = sum(log_probs)
    return Caption(words.text, tuple(map(vocabulary.token_of, words.ids)), tuple(log_probs), total, total)


def _known(vocabulary: Vocabulary, tokens: tuple[str, ...]) -> list[int]:
    """The ids of a caption's tokens."""
    if not tokens:
        raise ArgumentError("a caption of no tokens can't be scored; leave it out, or pass ('<end>',) for silence")
    ids: list[int] = []
    for token in tokens:
        number = vocabulary.id_of(token) if isinstance(token, str) else None
        if number is None:
            raise ArgumentError(
                f"the vocabulary has no {token!r:.100}; a tuple holds the tokens of one caption: pass several captions "
                "as a list, and another captioner's as text"
            )
        ids.append(number)
    if {vocabulary.pad_id, vocabulary.start_id} & set(ids) or vocabulary.end_id in ids[:-1]:
        raise ArgumentError(
            f"the tokens {tokens!r:.200} aren't a caption's: <pad> and <start> are in none, and <end> is the last one"
        )
    return ids
