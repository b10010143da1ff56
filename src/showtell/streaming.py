"""A caption word by word, as the decoder says it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from .constraints import Constraints, bind
from .errors import ArgumentError
from .generate import Begun, Ready, begin, evaluating
from .images import ImageSource
from .photos import is_many
from .protocols import Decoder, Features, as_features
from .search import Greedy, Sample, Search, as_search
from .search.base import ROUNDING
from .vocabulary import Vocabulary

__all__ = ["Streaming", "stream"]

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what bytes of half a character read as


class Streaming(Protocol):
    """What is asked of a captioner here."""

    vocabulary: Vocabulary
    search: Search

    def ready(self, images: Sequence[Any] | Features, /) -> Ready:
        """Some photos or their features to what the decoder takes."""
        ...


def stream(
    captioner: Streaming,
    image: ImageSource | Features,
    *,
    search: Search | str | None = None,
    constraints: Constraints | None = None,
) -> Iterator[str]:
    """Yield the caption of one photo in pieces as the decoder says them; `Captioner.stream` is this.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> pieces = stream(tiny_captioner(), torch.rand(3, 32, 32), search=Sample(seed=1, max_length=3))
        >>> len(list(pieces)) <= 3
        True

    Joined they are the text of `caption(image, search=search, constraints=constraints)`. A piece is a word with the
    space before it; a clitic ("dog" and "'s") or a piece of a word ("bpe") has none. The photo is encoded and the
    arguments are checked at the call; each piece then takes one step of the decoder. A stream that is dropped before
    its end leaves nothing behind, and between two pieces the captioner is free for other work.

    Args:
        image: one photo, or Features of one.
        search: `Greedy(...)`, `Sample(...)` with count 1 or their short forms; a beam search can't say a word before
            its last step. None: the captioner's own, or `Greedy` where that is another one.
        constraints: what the caption must and must not say.

    Raises:
        ArgumentError: another search, several photos, constraints that no caption satisfies.
        NotFoundError, ImageError: the photo can't be read.
        RunError: the decoder returned NaN, or no word was allowed.
    """
    own = captioner.search
    if search is None:
        how = own if _streams(own) else Greedy(max_length=own.max_length)
    else:
        how = as_search(search)
        if not _streams(how):
            raise ArgumentError(
                f"words can be streamed by Greedy() and by Sample() of one caption, not by {how!r:.200}, which knows "
                "its caption at the end only; use caption()"
            )
    if is_many(image):
        raise ArgumentError("stream takes one photo; call it for each, or use caption() for a list")
    if isinstance(image, Features) and len(as_features(image, "stream takes").pooled) != 1:
        raise ArgumentError(f"stream takes the features of one photo, not of {len(image.pooled)}")
    if constraints is not None and not isinstance(constraints, Constraints):
        raise ArgumentError(f"constraints are Constraints(...), not {constraints!r:.100}")
    words = captioner.vocabulary
    bound = bind(constraints, 1, words, how)
    ready = captioner.ready(image if isinstance(image, Features) else [image])
    with torch.inference_mode(), evaluating(ready.decoder):
        begun = begin(
            ready.decoder,
            ready.features,
            how,
            start=words.start_id,
            end=words.end_id,
            forbid=(words.pad_id, words.start_id, words.unk_id),
            masks=bound.masks,
            force=bound.force,
            positions=None,
        )
    return _pieces(ready.decoder, begun, words)


def _streams(search: Search) -> bool:
    return isinstance(search, Greedy) or (isinstance(search, Sample) and search.count == 1)


def _pieces(decoder: Decoder, begun: Begun, vocabulary: Vocabulary) -> Iterator[str]:
    steps = begun.search.steps(begun.step, begun.state, **begun.options)
    ids: list[int] = []
    said = text = ""
    while True:
        # Inside a step only: what is done between two pieces, or after the last one, has its own modes.
        with torch.inference_mode(), evaluating(decoder):
            chosen = next(steps, None)
            if chosen is not None and not -math.inf < float(chosen.log_probs[0]) <= ROUNDING:
                # On an accelerator a search looks for what is wrong every few steps only; these raise the error.
                deque(steps, maxlen=0)
        if chosen is None or int(chosen.tokens[0]) == vocabulary.end_id:
            break
        ids.append(int(chosen.tokens[0]))
        text = vocabulary.decode(ids)
        if len(text) > len(said) and not text.endswith(_UNFINISHED):
            yield text[len(said) :]
            said = text
    if len(text) > len(said):
        yield text[len(said) :]
