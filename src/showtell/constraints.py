"""What captions must and must not say, in words: turned into masks and forced words of a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .checks import flag, whole
from .errors import ArgumentError
from .metrics.diversity import BAD_ENDINGS as NEVER_LAST
from .search import MAX_DEMANDS, Force, Mask, Search, check_takes_force, fewest_words
from .search.masks import Forbidden, MinLength, NoBadEnding, NoRepeatedNgram, NoRepeatedWord, OnlyFor, Prefix
from .vocabulary import Vocabulary

__all__ = ["BAD_ENDINGS", "Bound", "Constraints", "bind"]

BAD_ENDINGS = (
    *sorted(NEVER_LAST),
    *("his", "another", "some", "several", "very", "being", "who", "where", "next", "between"),
    *("on", "without", "near", "over", "under", "through", "against", "beside", "toward", "towards"),
)
"""Words that `no_bad_endings` lets no caption end with.

All that `showtell.metrics.diversity.BAD_ENDINGS` counts as a flaw, and others that now and then do end a good sentence
("two dogs and a man looking on") but more often a broken one.
"""


@dataclass(frozen=True)
class Constraints:
    """What every caption must and must not say.

    Example:
        >>> from showtell.testing import tiny_captioner
        >>> import torch
        >>> wish = Constraints(min_length=5, prefix="a small dog", forbid=["red", "blue"], force=[("grass", "water")])
        >>> text = tiny_captioner().caption(torch.rand(3, 32, 32), search="beam:3", constraints=wish).text
        >>> text.startswith("a small dog"), "grass" in text or "water" in text
        (True, True)

    Words are written as in any text and looked up in the captioner's vocabulary. Every search obeys; forced words
    need `Beam`. Captions keep the model's own log-probability.

    Args:
        min_length: words a caption has at least, 0..1000; pieces of words for a "bpe" vocabulary.
        no_repeat_ngram: no run of that many words comes twice, 1..20; 0: they may.
        no_repeat_word: no word follows itself.
        forbid: words that never appear.
        no_bad_endings: captions end with none of `showtell.constraints.BAD_ENDINGS`, "the" for instance, not even where
            the length limit cuts them.
        prefix: how every caption begins, "a photo of" for instance.
        force: words that must appear, at most 6; in place of a word a tuple of words of which one must.

    Raises:
        ArgumentError: an option of the wrong kind; or, when captions are made, a word that the vocabulary doesn't
            know, or demands that contradict each other.
    """

    min_length: int = 0
    no_repeat_ngram: int = 0
    no_repeat_word: bool = False
    forbid: Sequence[str] = ()
    no_bad_endings: bool = False
    prefix: str = ""
    force: Sequence[str | Sequence[str]] = ()

    def __post_init__(self) -> None:
        """Refuse what makes no sense; lists become tuples."""
        whole("Constraints min_length", self.min_length, 0, 1000)
        whole("Constraints no_repeat_ngram", self.no_repeat_ngram, 0, 20)
        flag("Constraints no_repeat_word", self.no_repeat_word)
        flag("Constraints no_bad_endings", self.no_bad_endings)
        if not isinstance(self.prefix, str):
            raise ArgumentError(f"Constraints prefix must be text, not {self.prefix!r:.100}")
        object.__setattr__(self, "forbid", _words("forbid", self.forbid))
        if isinstance(self.force, str) or not isinstance(self.force, list | tuple):
            raise ArgumentError(
                f'Constraints force must be a list such as ["dog", ("ball", "frisbee")], not {self.force!r:.100}'
            )
        force = tuple(each if isinstance(each, str) else _words("force", each) for each in self.force)
        if len(force) > MAX_DEMANDS:
            raise ArgumentError(f"Constraints force takes at most {MAX_DEMANDS} words or tuples, not {len(force)}")
        if () in force:
            raise ArgumentError("Constraints force: an empty tuple names no word; leave it out")
        object.__setattr__(self, "force", force)


class Bound(NamedTuple):
    """Constraints of N images in the ids of a vocabulary, as `generate` takes them."""

    masks: list[Mask]
    force: Force | None


class _Ids(NamedTuple):
    """One image's constraints in ids."""

    forbid: tuple[int, ...]
    prefix: tuple[int, ...]
    force: tuple[tuple[int, ...], ...]


def bind(
    constraints: Constraints | Sequence[Constraints] | None, images: int, vocabulary: Vocabulary, search: Search
) -> Bound:
    """Constraints, the same for N images or a list of one for each, as masks and forced words.

    Example:
        >>> from showtell.search import Beam
        >>> vocabulary = Vocabulary.build(["a red dog"], min_count=1)
        >>> bind(Constraints(forbid=["red"], force=["dog"]), 2, vocabulary, Beam(5))
        Bound(masks=[Forbidden(ids=(6,))], force=[((5,),), ((5,),)])

    Raises ArgumentError for what no caption of this search can satisfy.
    """
    if constraints is None or images == 0:
        return Bound([], None)
    each = [constraints] * images if isinstance(constraints, Constraints) else check_constraints(constraints, images)
    max_length = search.max_length
    known = {one: _in_ids(one, vocabulary, max_length) for one in dict.fromkeys(each)}
    ids = [known[one] for one in each]
    if any(one.force for one in ids):
        check_takes_force(search)
    masks: list[Mask] = []
    if any(one.min_length for one in each):
        masks.append(MinLength(_shared(one.min_length for one in each), vocabulary.end_id))
    masks += [
        _only(NoRepeatedNgram(size), [one.no_repeat_ngram == size for one in each])
        for size in sorted({one.no_repeat_ngram for one in each} - {0})
    ]
    if any(one.no_repeat_word for one in each):
        masks.append(_only(NoRepeatedWord(), [one.no_repeat_word for one in each]))
    if any(one.forbid for one in ids):
        masks.append(Forbidden(_shared(one.forbid for one in ids)))
    if any(one.no_bad_endings for one in each):
        mask = NoBadEnding(_bad_endings(vocabulary), vocabulary.end_id, max_length)
        masks.append(_only(mask, [one.no_bad_endings for one in each]))
    if any(one.prefix for one in ids):
        masks.append(Prefix(_shared(one.prefix for one in ids)))
    return Bound(masks, [one.force for one in ids] if any(one.force for one in ids) else None)


def check_constraints(constraints: Any, images: int) -> list[Constraints]:
    """A list of constraints, one for each of N images."""
    if not isinstance(constraints, list | tuple) or not all(isinstance(one, Constraints) for one in constraints):
        raise ArgumentError(
            f"constraints are Constraints(...) or a list of them, one a photo, not {constraints!r:.100}"
        )
    if len(constraints) != images:
        raise ArgumentError(
            f"{len(constraints)} constraints for {images} photos; give one a photo, or Constraints(...) for all"
        )
    return list(constraints)


def _words(name: str, words: Any) -> tuple[str, ...]:
    if isinstance(words, str) or not isinstance(words, list | tuple) or not all(isinstance(w, str) for w in words):
        raise ArgumentError(f'Constraints {name} takes words as a list, such as ["red", "blue"], not {words!r:.100}')
    return tuple(words)


def _shared(values: Any) -> Any:
    """One value where it is the same for all images, else a tuple."""
    every = tuple(values)
    return every[0] if len(set(every)) == 1 else every


def _only(mask: Mask, which: list[bool]) -> Mask:
    return mask if all(which) else OnlyFor(mask, tuple(which))


def _in_ids(constraints: Constraints, vocabulary: Vocabulary, max_length: int) -> _Ids:
    unknown: list[str] = []

    def one(name: str, word: str) -> int:
        ids = vocabulary.encode(word)
        if len(ids) != 1:
            parts = "pieces" if vocabulary.kind == "bpe" else "words"
            raise ArgumentError(
                f"{name} takes one word at a time; {word!r:.60} is {len(ids)} {parts} in this captioner's vocabulary"
            )
        unknown.extend([word] * (ids[0] == vocabulary.unk_id))
        return ids[0]

    forbid = tuple(sorted({one("forbid", word) for word in constraints.forbid}))
    force = tuple(
        tuple(sorted({one("force", word) for word in ((demand,) if isinstance(demand, str) else demand)}))
        for demand in constraints.force
    )
    prefix = tuple(vocabulary.encode(constraints.prefix))
    if vocabulary.unk_id in prefix:
        unknown += [word for word in vocabulary.split(constraints.prefix) if vocabulary.id_of(word) is None]
    if unknown:
        raise ArgumentError(
            f"the captioner doesn't know {', '.join(map(repr, dict.fromkeys(unknown))):.500}; "
            "use words of captioner.vocabulary.words"
        )
    found = _Ids(forbid, prefix, force)
    _check_possible(constraints, found, vocabulary, max_length)
    return found


def _check_possible(constraints: Constraints, ids: _Ids, vocabulary: Vocabulary, max_length: int) -> None:
    """Refuse what contradicts itself, whatever the model says."""

    def spelt(some: Sequence[int]) -> str:
        return ", ".join(repr(vocabulary.token_of(one)) for one in some)

    if constraints.min_length > max_length:
        raise ArgumentError(
            f"min_length {constraints.min_length} is more than the search's max_length {max_length}; "
            "raise max_length, as in Beam(max_length=30)"
        )
    if len(ids.prefix) > max_length:
        raise ArgumentError(
            f"the prefix has {len(ids.prefix)} words and captions have at most {max_length}; raise the search's "
            "max_length"
        )
    both = [one for one in ids.prefix if one in ids.forbid]
    if both:
        raise ArgumentError(f"the prefix says {spelt(both)}, which forbid forbids")
    for demand in ids.force:
        if set(demand) <= set(ids.forbid):
            raise ArgumentError(f"{spelt(demand)} can't be forced and forbidden at once")
    size = constraints.no_repeat_ngram
    runs = [ids.prefix[i : i + size] for i in range(len(ids.prefix) - size + 1)] if size else []
    if len(set(runs)) < len(runs):
        raise ArgumentError(f"the prefix repeats {size} of its words, which no_repeat_ngram forbids")
    if constraints.no_repeat_word and any(a == b for a, b in zip(ids.prefix, ids.prefix[1:], strict=False)):
        raise ArgumentError("the prefix repeats a word, which no_repeat_word forbids")
    open_demands = [demand for demand in ids.force if not set(demand) & set(ids.prefix)]
    needed = fewest_words(open_demands) + len(ids.prefix)
    if needed > max_length:
        raise ArgumentError(
            f"prefix and forced words take {needed} words at least and captions have at most {max_length}; "
            "raise the search's max_length or force fewer"
        )


def _bad_endings(vocabulary: Vocabulary) -> tuple[tuple[int, ...], ...]:
    encoded = map(tuple, vocabulary.encode_batch(BAD_ENDINGS))
    return tuple(ids for ids in encoded if ids and vocabulary.unk_id not in ids and len(ids) <= 20)
