"""A caption's words, as the official caption scorers see them."""

from __future__ import annotations

import re

from ..errors import ArgumentError
from .ptb_scanner import scan

__all__ = ["TOKENIZER", "ptb_tokenize", "scored_words"]

TOKENIZER = "ptb-1"
"""Which tokeniser scores come from; it changes when any caption's tokens do."""

_BREAKS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")


def ptb_tokenize(caption: str) -> list[str]:
    """Split a caption into words as Java's PTBTokenizer does in the official scorers: small letters, no punctuation.

    Example:
        >>> ptb_tokenize("A man's dog can't jump -- it's in Washington, D.C.!")
        ['a', 'man', "'s", 'dog', 'ca', "n't", 'jump', 'it', "'s", 'in', 'washington', 'd.c.']

    A token may hold a no-break space ("22 3/4" is one token), which BLEU and CIDEr split and ROUGE-L doesn't. Line
    breaks count as spaces. Brackets stay, as "-lrb-" and the like; emoji go. No text makes it fail.

    Raises ArgumentError for anything but a string.

    Source: the observed behaviour of Stanford CoreNLP 3.4.1's PTBTokenizer with -preserveLines and -lowerCase, one
    caption at a time, and the list of punctuation of pycocoevalcap 1.2. docs/scores.md says how it was compared.
    """
    if not isinstance(caption, str):
        raise ArgumentError(f"a caption to split into words is a string, not a {type(caption).__name__}")
    return scan(caption if caption.isprintable() else _BREAKS.sub(" ", caption))


def scored_words(caption: str) -> list[str]:
    """The words of a caption as BLEU and CIDEr count them.

    Example:
        >>> scored_words("A dog, 22 3/4 inches tall!")
        ['a', 'dog', '22', '3/4', 'inches', 'tall']

    The tokeniser makes one token of "22 3/4", with a space in it that doesn't break; BLEU and CIDEr take it for two
    words. Raises ArgumentError for anything but a string.
    """
    return " ".join(ptb_tokenize(caption)).split()
