"""The few tokenizer.json shapes that showtell writes, and the strict reading of one before `tokenizers` sees it.

A huge padding value aborts the process inside `tokenizers`, and other mistakes raise panics that no `except Exception`
catches, so a tokenizer.json is either exactly one of these shapes or refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from .errors import FormatError

__all__ = [
    "BYTES",
    "MAX_WORDS",
    "SPECIALS",
    "Hyphens",
    "Kind",
    "Normalization",
    "Punctuation",
    "Shape",
    "check_tokenizer",
    "is_word",
]

Kind = Literal["word", "bpe"]
Normalization = Literal["NFKC", "NFC"] | None
Punctuation = Literal["drop", "keep"]
Hyphens = Literal["inside", "apart"]

SPECIALS = ("<pad>", "<start>", "<end>", "<unk>")
MAX_WORDS = 2_000_000
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# How byte-level BPE writes the 256 bytes: printable ones as themselves, the others from U+0100 on.
BYTES = tuple(map(chr, (*_PLAIN, *range(0x100, 0x200 - len(_PLAIN)))))
_WORD = re.compile(r"[^\s\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,200}")

# Changing a pattern changes ids: add a new shape beside the old one, never edit a shape that was released.
_L = r"[\p{L}\p{M}\p{N}]"
_END = rf"(?!{_L})"
_CLITIC = rf"'(?i:s|m|d|re|ve|ll){_END}"


def _token(joints: str) -> str:
    """The pattern of a word; `joints` are what may stand between its letters."""
    return "|".join(
        (
            rf"\p{{N}}+(?:[.,:/⁄]\p{{N}}+)+{_L}*",  # 3.5  1,000  10:30  1/2  2.5m
            rf"(?:\p{{L}}\.){{2,}}{_END}",  # u.s.  a.m.
            rf"{_L}+(?=(?i:n't){_END})",  # do | n't
            rf"(?i:n't){_END}",
            _CLITIC,  # dog | 's
            rf"{_L}+(?:{joints}{_L}+)*",  # dog  o'clock  t-shirt
            r"([^\p{L}\p{M}\p{N}\s])\1*\p{M}*",  # one punctuation mark or symbol, however often repeated
        )
    )


_APOSTROPHE = rf"(?!{_CLITIC})'"
_TOKENS: dict[Hyphens, str] = {"inside": _token(rf"(?:-|{_APOSTROPHE})"), "apart": _token(rf"(?:{_APOSTROPHE})")}
_ONLY_PUNCTUATION = r"^[\p{P}\p{Sk}<>|~&&[^%&@#]]+$"


class Shape(NamedTuple):
    """The options that a tokenizer.json expresses."""

    kind: Kind
    normalization: Normalization
    lowercase: bool
    punctuation: Punctuation
    hyphens: Hyphens = "inside"

    def parts(self) -> dict[str, Any]:
        """Normaliser, pre-tokenizer and decoder of the tokenizer.json."""
        unicode = [{"type": self.normalization}] if self.normalization else []
        normalizers = [
            *unicode,
            _replace(r"\p{Cf}+", ""),
            _replace("[‘’‛ʼ]", "'"),
            _replace("[“”‟]", '"'),
            *([{"type": "Lowercase"}] if self.lowercase else []),
            *unicode,  # lower-casing and removing characters can undo it
            _replace(r"[\s\p{Cc}]+", " "),
            {"type": "Strip", "strip_left": True, "strip_right": True},
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
        splits = [_split(r"\s+", "Removed"), _split(_TOKENS[self.hyphens], "Isolated")]
        if self.punctuation == "drop":
            splits.append(_split(_ONLY_PUNCTUATION, "Removed"))
        words = {"type": "Sequence", "pretokenizers": splits}
        return {
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": words if self.kind == "word" else byte_level,
            "decoder": None if self.kind == "word" else byte_level,
        }

    def document(self, words: Iterable[str], merges: Sequence[Sequence[str]] = ()) -> str:
        """The canonical tokenizer.json."""
        vocab = {word: number for number, word in enumerate(words)}
        if self.kind == "word":
            model: dict[str, Any] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        else:
            model = {**_BPE_FLAGS, "vocab": vocab, "merges": merges}
        head: dict[str, Any] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
        return _dump({**head, **self.parts(), "post_processor": None, "model": model})


_BPE_FLAGS = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def is_word(text: str) -> bool:
    """Whether a text can be an entry: 1 to 200 characters, no white space, control characters or lone surrogates."""
    return _WORD.fullmatch(text) is not None


def check_tokenizer(document: dict[str, Any]) -> tuple[Shape, tuple[str, ...], list[list[str]]]:
    """The options, the words in id order and the merges of a parsed tokenizer.json.

    Raises FormatError for anything but what `Shape.document` writes.
    """
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") not in ("WordLevel", "BPE"):
        raise _refuse("its model is neither WordLevel nor BPE")
    words = _read_words(model.get("vocab"))
    merges = _read_merges(model.get("merges"), words) if model["type"] == "BPE" else []
    given = _without_tables(document)
    for shape in _SHAPES:
        if _without_tables(json.loads(shape.document((), ()))) == given:
            return shape, words, merges
    raise _refuse("its normalizer, pre-tokenizer or another setting is strange")


def _without_tables(document: dict[str, Any]) -> str:
    model = {**document["model"], "vocab": {}, **({"merges": []} if "merges" in document["model"] else {})}
    return json.dumps({**document, "model": model}, sort_keys=True)


def _refuse(reason: str) -> FormatError:
    return FormatError(f"tokenizer.json isn't one that showtell writes: {reason}; make it with Vocabulary.build")


def _read_words(vocab: Any) -> tuple[str, ...]:
    if not isinstance(vocab, dict) or not len(SPECIALS) <= len(vocab) <= MAX_WORDS:
        raise _refuse(f"its vocabulary isn't a table of {len(SPECIALS)} to {MAX_WORDS:,} words")
    words: list[str | None] = [None] * len(vocab)
    for word, number in vocab.items():
        if type(number) is not int or not 0 <= number < len(vocab) or words[number] is not None:
            raise _refuse(f"its ids aren't 0 to {len(vocab) - 1}, each once (see {word!r:.60})")
        if not is_word(word):
            raise _refuse(f"the word {word!r:.60} is empty, too long, or holds spaces")
        words[number] = word
    if tuple(words[: len(SPECIALS)]) != SPECIALS:
        raise _refuse(f"its first words aren't {' '.join(SPECIALS)}")
    return tuple(word for word in words if word is not None)


def _read_merges(merges: Any, words: tuple[str, ...]) -> list[list[str]]:
    known = frozenset(words[len(SPECIALS) :])
    if not isinstance(merges, list) or not known >= set(BYTES):
        raise _refuse("its merges aren't a list, or a byte has no entry")
    for pair in merges:
        good = isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        if not good or pair[0] not in known or pair[1] not in known or "".join(pair) not in known:
            raise _refuse(f"the merge {pair!r:.60} isn't two entries that make a third")
    return merges


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _split(pattern: str, behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


_HYPHENS: tuple[Hyphens, ...] = ("inside", "apart")
_SHAPES = tuple(
    Shape(kind, normalization, lowercase, punctuation, hyphens)
    for kind in ("word", "bpe")
    for normalization in ("NFKC", "NFC", None)
    for lowercase in (True, False)
    for punctuation in (("drop", "keep") if kind == "word" else ("keep",))
    for hyphens in (_HYPHENS if kind == "word" else _HYPHENS[:1])
)
