"""The document frequencies that CIDEr weighs by, counted once a vocabulary and a set of references, and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Sequence

from ..errors import ArgumentError, FormatError, NotFoundError
from ..metrics import TOKENIZER, DocumentFrequencies
from ..vocabulary import Vocabulary

__all__ = ["cached_frequencies"]


def cached_frequencies(
    path: str | os.PathLike[str], references: Sequence[Sequence[Sequence[Hashable]]], *, vocabulary: Vocabulary
) -> DocumentFrequencies:
    """The document frequencies of some references, from a file where it fits, else counted and written there.

    Example:
        >>> import tempfile
        >>> words = Vocabulary.build(["a dog", "a cat"], min_count=1)
        >>> references = [[words.encode("a dog")], [words.encode("a cat")]]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = cached_frequencies(f"{folder}/frequencies.bin", references, vocabulary=words)
        ...     again = cached_frequencies(f"{folder}/frequencies.bin", references, vocabulary=words)
        >>> found.images, again.get((words.id_of("a"),)), again.get((words.id_of("dog"),))
        (2, 2, 1)

    A file fits when it was counted with the same vocabulary (its tokenizer.json), the same references in the same
    order and the same version of the tokeniser. Anything else in its place, damaged files too, is counted anew and
    replaced atomically.

    Args:
        path: the file; its folder must exist.
        references: of N photos, each a list of captions, each a list of tokens: words (`scored_words`) for scores,
            ids for a reward, which ends its captions with the end token.
        vocabulary: whose ids, or whose model's captions, are scored.

    Raises:
        ArgumentError: tokens that are neither text nor whole numbers, or no references.
        RunError: the file can't be written.
    """
    digest = hashlib.sha256()
    for captions in references:
        for tokens in captions:
            if isinstance(tokens, str) or not all(type(token) in (str, int) for token in tokens):
                raise ArgumentError(
                    f"a reference is a list of words or of ids, not {tokens!r:.100}; split texts with scored_words"
                )
        digest.update(json.dumps([list(tokens) for tokens in captions]).encode() + b"\n")
    identity = {
        "vocabulary": vocabulary.fingerprint(),
        "references": digest.hexdigest(),
        "tokenizer": TOKENIZER,
    }
    try:
        return DocumentFrequencies.load(path, identity=identity)
    except (NotFoundError, FormatError):
        found = DocumentFrequencies.of(references)
        found.save(path, identity=identity)
        return found
