"""Alarms of self-critical training: captions that shrink, and captions that please the score and nobody else."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Manner", "alarms"]

_SHORTER = 0.75  # of the start's mean length
_SHORT = 0.6  # of the references'; greedy and beam captions have about 0.85 of it
_MORE_BAD = 0.02  # more captions than at the start


@dataclass(frozen=True)
class Manner:
    """How a pile of captions looks: mean words a caption, and the share of them with a bad ending, 0..1."""

    words: float
    bad_endings: float


def alarms(what: str, now: Manner, start: Manner, reference_words: float) -> list[str]:
    """What is wrong with some captions, and what to do, one sentence each; mostly nothing.

    Example:
        >>> alarms("validation", Manner(9.0, 0.0), Manner(9.5, 0.001), reference_words=11.0)
        []
        >>> (found,) = alarms("validation", Manner(9.0, 0.2), Manner(9.5, 0.001), reference_words=11.0)
        >>> found[:44]
        'alarm, validation captions: 20.0% end badly:'

    what: which captions. start: of the captioner that self-critical training began with. reference_words: mean length
    of the references.
    """
    found = []
    # Those of a start that says little are short too, but haven't shrunk.
    if now.words < min(start.words, max(_SHORTER * start.words, _SHORT * reference_words)):
        found.append(
            f"alarm, {what} captions: too short, {now.words:.1f} words on average: at the start they had "
            f"{start.words:.1f}, the references have {reference_words:.1f}. Training towards the score makes captions "
            "shrink; lower self_critical_learning_rate, or put a price on it with self_critical_length = 0.1"
        )
    if now.bad_endings > start.bad_endings + _MORE_BAD:
        found.append(
            f'alarm, {what} captions: {now.bad_endings:.1%} end badly: in words such as "a", "of" or "and", at the '
            f"start {start.bad_endings:.1%} did. The reward is being outwitted; keep the end token in it (a reward of "
            "your own may leave it out), lower self_critical_learning_rate, or give self_critical_bleu a weight"
        )
    return found
