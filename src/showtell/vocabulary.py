"""Text <-> ids on the `tokenizers` package: word level by default, byte-level BPE as the alternative.

Everything that decides an id stands in one tokenizer.json, so the `tokenizers` package alone gives the same ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, ClassVar

from tokenizers import Tokenizer, models, trainers

from .checks import choice, flag, whole
from .errors import ArgumentError, FormatError
from .memo import Memo
from .strict_json import parse_object
from .tokenizer_json import (
    BYTES,
    MAX_WORDS,
    SPECIALS,
    Hyphens,
    Kind,
    Normalization,
    Punctuation,
    Shape,
    check_tokenizer,
    is_word,
)

__all__ = ["UnknownReport", "Vocabulary"]

MAX_JSON = 64 * 2**20
MAX_TEXT = 100_000
_BPE_SIZE = 8_000


@dataclass(frozen=True)
class UnknownReport:
    """How much of some captions a vocabulary doesn't know.

    rate: count / total, 0 where there are no words; count: unknown words; total: all words; common: the 20 most
    frequent unknown words with their counts.
    """

    rate: float
    count: int
    total: int
    common: tuple[tuple[str, int], ...]


class Vocabulary:
    """The words a captioner can say, each with its id.

    Example:
        >>> vocabulary = Vocabulary.build(["A dog's red ball.", "A red dog."], min_count=1)
        >>> vocabulary.words
        ('<pad>', '<start>', '<end>', '<unk>', 'a', 'dog', 'red', "'s", 'ball')
        >>> vocabulary.encode("A dog's cat!")
        [4, 5, 7, 3]
        >>> vocabulary.decode([1, 4, 5, 7, 8, 2])
        "a dog's ball"

    English is split much as spaCy does: punctuation comes off each side and clitics become words ("do n't", "dog 's");
    numbers ("3.5", "1,000") and abbreviations ("u.s.") stay whole, and so do hyphenated words unless asked otherwise.
    Special tokens typed by a user
    ("<end>") are ordinary text. `Vocabulary.build` makes one from captions, `Vocabulary.from_json` reads one; the
    constructor takes the text of a tokenizer.json as well. Two vocabularies of the same content are equal.
    """

    pad_id: ClassVar[int] = 0
    start_id: ClassVar[int] = 1
    end_id: ClassVar[int] = 2
    unk_id: ClassVar[int] = 3

    def __init__(self, tokenizer_json: str) -> None:
        """Read the text of a tokenizer.json; see `from_json`."""
        if not isinstance(tokenizer_json, str):
            raise ArgumentError(f"tokenizer.json must be given as text, not {type(tokenizer_json).__name__}")
        document = parse_object(tokenizer_json, "tokenizer.json", limit=MAX_JSON)
        self._shape, self.words, merges = check_tokenizer(document)
        self._json = self._shape.document(self.words, merges)
        self._ids = {word: number for number, word in enumerate(self.words)}
        self._tokenizer = _open(self._json)
        self._pieces = lru_cache(maxsize=4096)(self.split)
        # Captions have the same few chunks again and again.
        self._cuts = Memo(self._cut)
        self._looks = Memo(self._look)

    @classmethod
    def build(
        cls,
        captions: Iterable[str],
        *,
        kind: Kind = "word",
        min_count: int = 5,
        max_size: int | None = None,
        lowercase: bool = True,
        normalization: Normalization = "NFKC",
        punctuation: Punctuation | None = None,
        hyphens: Hyphens = "inside",
        extra: Iterable[str] = (),
    ) -> Vocabulary:
        """Make a vocabulary of the words in some captions, the most frequent first.

        Args:
            captions: texts; the same captions in any order give the same vocabulary.
            kind: "word", or "bpe" for byte-level pieces of words, which knows every text.
            min_count: rarer words become `<unk>`; for "bpe": rarer pairs aren't merged.
            max_size: most entries, the four special ones included; default: no limit, for "bpe" 8,000.
            lowercase: "Dog" and "dog" are one word.
            normalization: the Unicode form, "NFKC", "NFC" or None to leave characters as they are.
            punctuation: "drop" leaves out words that are punctuation only (but % & @ #), "keep" keeps them; default:
                "drop" for words; "bpe" always keeps.
            hyphens: "inside" keeps "t-shirt" one word; "apart" makes it "t", "-" and "shirt", as spaCy does, or without
                punctuation "t" and "shirt" ("word" only).
            extra: words kept whatever their count ("word" only).

        Raises:
            ArgumentError: no captions, no word that is frequent enough, or an option that makes no sense.
        """
        choice("kind", kind, ("word", "bpe"))
        choice("normalization", normalization, ("NFKC", "NFC", None))
        flag("lowercase", lowercase)
        punctuation = punctuation or ("drop" if kind == "word" else "keep")
        choice("punctuation", punctuation, ("drop", "keep") if kind == "word" else ("keep",))
        choice("hyphens", hyphens, ("inside", "apart") if kind == "word" else ("inside",))
        whole("min_count", min_count, 1, 2**31)
        least = len(SPECIALS) + (1 if kind == "word" else 256)
        size = MAX_WORDS if max_size is None else whole("max_size", max_size, least, MAX_WORDS)
        texts = _texts("captions", captions)
        if not texts:
            raise ArgumentError("a vocabulary is built from captions; there were none")
        shape = Shape(kind, normalization, lowercase, punctuation, hyphens)
        kept = _texts("extra", extra)
        if kind == "bpe":
            if kept:
                raise ArgumentError('extra words belong to kind="word"; "bpe" can spell every word already')
            return _build_bpe(shape, texts, min_count, size if max_size is not None else _BPE_SIZE)
        empty = cls(shape.document(SPECIALS))
        for word in kept:
            if empty.split(word) != [word] or not is_word(word):
                raise ArgumentError(f"the extra word {word!r:.100} isn't one word; it splits into {empty.split(word)}")
        return empty._with(empty._count(texts), min_count, size, kept)

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read the text of a tokenizer.json that `to_json` wrote.

        Example:
            >>> vocabulary = Vocabulary.build(["a dog"], min_count=1)
            >>> Vocabulary.from_json(vocabulary.to_json()) == vocabulary
            True

        Raises FormatError for anything but the few shapes that showtell writes, before `tokenizers` sees it.
        """
        return cls(text)

    def to_json(self) -> str:
        """The text of a tokenizer.json, which `tokenizers.Tokenizer.from_str` opens too; equal content, equal text."""
        return self._json

    def fingerprint(self) -> str:
        """The SHA-256 of the content, 64 hexadecimal digits."""
        return hashlib.sha256(self._json.encode("utf-8")).hexdigest()

    @property
    def kind(self) -> Kind:
        """ "word" or "bpe"."""
        return self._shape.kind

    def __len__(self) -> int:
        """How many entries, the special ones included."""
        return len(self.words)

    def __repr__(self) -> str:
        """A short description."""
        return f"<Vocabulary: {len(self):,} entries, {self.kind}>"

    def __eq__(self, other: object) -> bool:
        """Equal content."""
        return isinstance(other, Vocabulary) and self._json == other._json

    def __hash__(self) -> int:
        """By content."""
        return hash(self._json)

    def __reduce__(self) -> tuple[type[Vocabulary], tuple[str]]:
        """Pickled and copied as its text."""
        return Vocabulary, (self._json,)

    def id_of(self, token: str) -> int | None:
        """The id of an entry, spelt exactly as in `words`, or None."""
        return self._ids.get(token)

    def token_of(self, number: int) -> str:
        """The entry with that id; raises ArgumentError when there is none."""
        if not isinstance(number, int) or not 0 <= number < len(self.words):
            raise ArgumentError(f"a token id of this vocabulary is in 0..{len(self) - 1}, not {number!r}")
        return self.words[number]

    def split(self, text: str) -> list[str]:
        """The words of a text, normalised, before any of them is looked up.

        Example:
            >>> Vocabulary.build(["a"], min_count=1).split("Don’t  TOUCH the t-shirt!")
            ['do', "n't", 'touch', 'the', 't-shirt']

        For "bpe" these are the pieces between spaces.
        """
        chunks = self._chunks(_text("a caption", text))
        if self.kind == "bpe":
            return chunks
        return list(chain.from_iterable(map(self._cuts.__getitem__, chunks)))

    def _chunks(self, text: str) -> list[str]:
        """What stands between the spaces of a text, normalised; no word reaches beyond a space."""
        if text.isascii() and text.isprintable():  # the normaliser changes nothing else in such a text
            return (text.lower() if self._shape.lowercase else text).split()
        normal: str = self._tokenizer.normalizer.normalize_str(text)
        return normal.split()

    def _cut(self, chunk: str) -> tuple[str, ...]:
        """The words in what stands between two spaces."""
        return tuple(piece for piece, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(chunk))

    def _look(self, chunk: str) -> tuple[int, ...]:
        """Their ids."""
        return tuple(self._ids.get(word, self.unk_id) for word in self._cut(chunk))

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end; unknown words are `unk_id`."""
        text = _text("a caption", text)
        if self.kind == "bpe":
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
            return ids
        return list(chain.from_iterable(map(self._looks.__getitem__, self._chunks(text))))

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of many texts, in their order."""
        # tokenizers' own encode_batch is no faster on captions, and its threads make a later fork() complain.
        return [self.encode(text) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids: stops at `<end>`, leaves out `<pad>` and `<start>`, keeps `<unk>`.

        Clitics and punctuation are attached where splitting the text again gives the same words, so
        `encode(decode(encode(text))) == encode(text)` whenever no word is unknown. Raises ArgumentError for an id
        out of range.
        """
        kept: list[int] = []
        try:
            numbers = [int(number) for number in ids]
        except (TypeError, ValueError) as error:
            raise ArgumentError(f"decode takes the ids of one text, not {ids!r:.100}") from error
        for number in numbers:
            if number == self.end_id:
                break
            if number not in (self.pad_id, self.start_id):
                kept.append(number)
        words = [self.token_of(number) for number in kept]
        if self.kind == "word":
            return self._join(words)
        text: str = self._tokenizer.decode(kept, skip_special_tokens=False)
        return text.removeprefix(" ")

    def _join(self, words: Sequence[str]) -> str:
        chunks: list[list[str]] = []
        open_quote = False
        hyphen = ("-",) if self._shape.hyphens == "apart" else ()
        joined, opening = _CLOSING.union(hyphen), _OPENING.union(hyphen)
        for word in words:
            left = word in joined or word[0] == "'" or word.lower() == "n't"
            if word == '"':
                left, open_quote = open_quote, not open_quote
            before = chunks[-1] if chunks else None
            right = before is not None and (before[-1] in opening or (before[-1] == '"' and open_quote))
            if before is not None and (left or right) and self._stays_apart([*before, word]):
                before.append(word)
            else:
                chunks.append([word])
        return " ".join("".join(chunk) for chunk in chunks)

    def _stays_apart(self, words: list[str]) -> bool:
        """Whether words written without spaces are found again."""
        spelt = ["x" if word == "<unk>" else word for word in words]
        return self._pieces("".join(spelt)) == spelt

    def unknown(self, captions: Iterable[str]) -> UnknownReport:
        """How many words of some captions this vocabulary doesn't know, and the most frequent of them.

        Example:
            >>> Vocabulary.build(["a dog"], min_count=1).unknown(["a cat", "a dog"])
            UnknownReport(rate=0.25, count=1, total=4, common=(('cat', 1),))
        """
        counts = self._count(_texts("captions", captions))
        strange = {} if self.kind == "bpe" else {word: n for word, n in counts.items() if word not in self._ids}
        count, total = sum(strange.values()), sum(counts.values())
        return UnknownReport(count / total if total else 0.0, count, total, tuple(_ranked(strange)[:20]))

    def grown(self, captions: Iterable[str], *, min_count: int = 5, max_size: int | None = None) -> Vocabulary:
        """The same words with the same ids, then the new words of some captions, the most frequent first.

        Example:
            >>> old = Vocabulary.build(["a dog"], min_count=1)
            >>> old.grown(["a small dog"], min_count=1).words[len(old):]
            ('small',)

        Options as for `build`. Raises ArgumentError for a "bpe" vocabulary, which knows every text already.
        """
        if self.kind == "bpe":
            raise ArgumentError('a "bpe" vocabulary knows every text already and does not grow; use it as it is')
        whole("min_count", min_count, 1, 2**31)
        size = MAX_WORDS if max_size is None else whole("max_size", max_size, len(self), MAX_WORDS)
        return self._with(self._count(_texts("captions", captions)), min_count, size, ())

    def _count(self, texts: Iterable[str]) -> Counter[str]:
        chunks = Counter(chain.from_iterable(map(self._chunks, texts)))
        if self.kind == "bpe":
            return chunks
        words: Counter[str] = Counter()
        for chunk, times in chunks.items():
            for word in self._cut(chunk):
                words[word] += times
        return words

    def _with(self, counts: Counter[str], min_count: int, size: int, extra: Sequence[str]) -> Vocabulary:
        wanted = {word: counts[word] for word in extra}
        room = size - len(self) - len(wanted.keys() - self._ids.keys())
        if room < 0:
            raise ArgumentError(f"max_size={size} is too small for the special and the extra words")
        frequent = {word: n for word, n in counts.items() if n >= min_count and is_word(word)}
        new = _ranked({word: n for word, n in frequent.items() if word not in self._ids and word not in wanted})[:room]
        chosen = {word: n for word, n in (*new, *wanted.items()) if word not in self._ids}
        if not chosen and len(self) == len(SPECIALS):
            raise ArgumentError(
                f"no word occurs min_count={min_count} times among {counts.total():,} words; lower min_count"
            )
        return Vocabulary(self._shape.document((*self.words, *(word for word, _ in _ranked(chosen)))))


_CLOSING = frozenset((".", ",", "!", "?", ";", ":", ")", "]", "}", "%", "..."))
_OPENING = frozenset(("(", "[", "{", "$", "£", "€", "¥", "#"))


def _text(what: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ArgumentError(f"{what} must be text, not {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise ArgumentError(f"{what} is {len(text):,} characters long; at most {MAX_TEXT:,} are read")
    # A lone surrogate has no UTF-8 form, which `tokenizers` needs.
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _texts(what: str, texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        one = "one text: " if isinstance(texts, str) else ""
        raise ArgumentError(f"{what} must be a list of texts, not {one}{texts!r:.100}")
    return [
        text if isinstance(text, str) and text.isascii() and len(text) <= MAX_TEXT else _text(f"{what}[{number}]", text)
        for number, text in enumerate(texts)
    ]


def _ranked(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _build_bpe(shape: Shape, texts: list[str], min_count: int, size: int) -> Vocabulary:
    tokenizer = _open(shape.document([*SPECIALS, *BYTES]))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        special_tokens=list(SPECIALS),
        initial_alphabet=list(BYTES),
        show_progress=False,
    )
    tokenizer.model = models.BPE()
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    words = sorted(model["vocab"], key=model["vocab"].__getitem__)
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    return Vocabulary(shape.document(words, merges))


def _open(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # `tokenizers` panics with a child of BaseException
        raise FormatError(f"tokenizer.json can't be opened by the tokenizers package: {error!s:.200}") from error
