"""One sentence, and how sure the model is of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .search import Hypotheses
from .vocabulary import Vocabulary

__all__ = ["Caption", "captions_of"]


@dataclass(frozen=True)
class Caption:
    """One sentence and how sure the model is of it; `str(caption)` is the sentence.

    Example:
        >>> caption = Caption("a dog", ("a", "dog", "<end>"), (-0.5, -1.0, -0.1), -1.6, -1.6)
        >>> print(caption)
        a dog

    text: the sentence. tokens: its words, the last one "<end>" unless the length limit cut it.
    token_log_probs: natural logarithm of each token's probability, the model's own. log_prob: their sum.
    score: what the search ranked by. candidates: the n-best list, best first, this caption included.
    """

    text: str
    tokens: tuple[str, ...]
    token_log_probs: tuple[float, ...]
    log_prob: float
    score: float
    candidates: tuple[Caption, ...] = ()

    def __str__(self) -> str:
        """The sentence."""
        return self.text


def captions_of(found: Hypotheses, vocabulary: Vocabulary) -> list[list[Caption]]:
    """The n-best list of each image, best first, as captions; hypotheses that don't exist are left out."""
    columns = (t.tolist() for t in (found.tokens, found.lengths, found.token_log_probs, found.scores))
    results = []
    for tokens, lengths, log_probs, scores in zip(*columns, strict=True):
        best = []
        for ids, length, each, score in zip(tokens, lengths, log_probs, scores, strict=True):
            if length:
                words = tuple(map(vocabulary.token_of, ids[:length]))
                given = tuple(each[:length])
                best.append(Caption(vocabulary.decode(ids[:length]), words, given, sum(given), score))
        results.append([replace(best[0], candidates=tuple(best)), *best[1:]])
    return results
