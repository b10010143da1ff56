"""Vocabularies as the tutorials keep them: word -> id, id -> word, or a pickled object that holds both."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, NotFoundError
from ..strict_json import parse_object
from ..tokenizer_json import SPECIALS, Hyphens, Punctuation, Shape, is_word
from ..vocabulary import MAX_JSON, Vocabulary
from .pickles import attributes, read_pickle

__all__ = ["Words", "read_words"]

_CALLED = {
    "<pad>": ("<pad>", "<PAD>", "<padding>"),
    "<start>": ("<start>", "<START>", "<sos>", "<SOS>", "<bos>", "<s>", "#START#", "startseq"),
    "<end>": ("<end>", "<END>", "<eos>", "<EOS>", "</s>", "<stop>", "endseq"),
    "<unk>": ("<unk>", "<UNK>", "UNK", "<unknown>"),
}


class Words:
    """The words of a checkpoint, each with its row there, and the vocabulary that showtell makes of them.

    Example:
        >>> words = Words({"<start>": 0, "a": 1, "<end>": 2, "<unk>": 3, "dog": 4}, "example")
        >>> words.vocabulary.words
        ('<pad>', '<start>', '<end>', '<unk>', 'a', 'dog')
        >>> words.rows
        [None, 0, 2, 3, 1, 4]

    `rows` says for each of showtell's ids which row of the checkpoint's matrices it is, None for a special word that
    the checkpoint hasn't. Raises FormatError for ids that aren't 0, 1, 2, ... or words that can't be entries.
    """

    def __init__(self, ids: Mapping[str, int], where: str) -> None:
        """Order them as showtell does: the four special ones, then the others by their ids."""
        if set(ids.values()) != set(range(len(ids))):
            given = set(ids.values())
            absent = next(number for number in range(len(ids)) if number not in given)
            raise FormatError(
                f"{where}: {len(ids):,} words must have the ids 0..{len(ids) - 1}, each once; no word has {absent}"
            )
        special: dict[str, int | None] = {}
        for name, spellings in _CALLED.items():
            special[name] = next((ids[spelling] for spelling in spellings if spelling in ids), None)
        for name in ("<start>", "<end>"):
            if special[name] is None:
                raise FormatError(f"{where} has no {name}; known spellings: {', '.join(_CALLED[name])}")
        taken = set(special.values())
        rest = [word for word, _ in sorted(ids.items(), key=lambda pair: pair[1]) if ids[word] not in taken]
        strange = next((word for word in rest if not is_word(word) or word in SPECIALS), None)
        if strange is not None:
            raise FormatError(f"{where}: {strange!r:.60} can't be a word of a captioner")
        self.count = len(ids)
        self.rows: list[int | None] = [*special.values(), *(ids[word] for word in rest)]
        self.vocabulary = Vocabulary(_shape(rest).document([*SPECIALS, *rest]))


def _shape(words: list[str]) -> Shape:
    """How a text has to be split to be made of these words again."""
    punctuation: Punctuation = "keep" if any(word in (".", ",", "!", "?") for word in words) else "drop"
    hyphens: Hyphens = "inside" if any("-" in word[1:-1] for word in words) else "apart"
    lowercase = not any(word != word.lower() for word in words)
    return Shape("word", None, lowercase, punctuation, hyphens)


def read_words(path: str | os.PathLike[str]) -> Words:
    """The words of a file: JSON {word: id}, {id: word} or {"ix_to_word": {id: word}}; or a pickled vocabulary.

    Raises NotFoundError, FormatError.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFoundError(f"{path} is a folder; give a file" if path.is_dir() else f"there is no file {path}")
    if path.stat().st_size > MAX_JSON:
        raise FormatError(f"{path} is longer than {MAX_JSON:,} bytes, which no vocabulary is")
    data = path.read_bytes()
    if data[:1] in (b"{", b"\xef", b" ", b"\n", b"\r", b"\t"):
        found = parse_object(data.removeprefix(b"\xef\xbb\xbf"), str(path), limit=MAX_JSON)
    else:
        content = dict(attributes(read_pickle(data, str(path))))
        found = next((content[key] for key in ("word2idx", "stoi", "word_to_ix", "wtoi") if key in content), content)
    return Words(_ids(found, str(path)), str(path))


def _ids(found: Any, where: str) -> dict[str, int]:
    """Word -> id, whichever way round the file has it."""
    found = attributes(found)
    for key in ("word2idx", "word_to_ix", "ix_to_word", "idx2word", "itow"):
        if isinstance(found.get(key), dict):
            found, neuraltalk = found[key], key == "ix_to_word"
            break
    else:
        neuraltalk = False
    if found and all(isinstance(key, str) and type(value) is int for key, value in found.items()):
        return dict(found)
    if found and all(isinstance(value, str) for value in found.values()):
        numbers: dict[int, str] = {}
        for number, word in found.items():
            if isinstance(number, str) and number.isdecimal() and len(number) < 10:
                numbers[int(number)] = word
            elif type(number) is int:
                numbers[number] = word
            else:
                raise FormatError(f"{where}: a table of words must have whole numbers on one side")
        ids = {word: number for number, word in numbers.items()}
        if len(ids) < len(found):
            raise FormatError(f"{where}: a word stands there twice")
        # NeuralTalk counts words from 1; 0 is both the start and the end of a caption.
        return {"<start>": 0, "<end>": len(ids) + 1, **ids} if neuraltalk and 0 not in numbers else ids
    raise FormatError(
        f"{where} holds no table of words: {{word: id}}, {{id: word}} or a pickled vocabulary with word2idx"
    )
