"""The caption tokeniser proper: from left to right, at each place the rule that sees furthest."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from .ptb_characters import shape
from .ptb_words import CONTRACTIONS, abbreviation, keeps_stop_before_figure

if TYPE_CHECKING:
    from .ptb_rules import Rule

__all__ = ["scan"]

# Words of ASCII letters between spaces are tokens whatever comes next, so a run of them needs no rules; most captions
# are such a run, and one last word with a full stop.
_RUN = re.compile(
    r"(?:[A-Za-z]+(?:-[A-Za-z]+)*(?:(?<=[a-z][a-z])'s)?,?(?=[ \n]) *(?:[.,](?=\n| +[^ .]) *)*)+"
    r"(?:([A-Za-z]{2,})[.] *\n)?"
)
_SPACES = re.compile(" +")
_REACH = 2000  # characters that a rule which may run far sees at once: no caption makes the scan quadratic

_REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])

_SINGLE = {
    '"': "''", "\u201c": "``", "\u201d": "''", "\x93": "``", "\x94": "''", "\xab": "``", "\xbb": "''",
    "\u2018": "`", "\u2019": "'", "\x91": "`", "\x92": "'", "\u201b": "`", "\u2039": "`", "\u203a": "'",
    "\x96": "--", "\x97": "--", "\u2013": "--", "\u2014": "--", "\u2015": "--", "\x85": "...", "\u2026": "...",
    "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$", "\xa2": "cents", "\xa3": "#",
    "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3", "\xad": "-",
}  # fmt: skip
_ENTITIES = {
    "amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'", "nbsp": "", "mdash": "--", "ndash": "--", "md": "--"
}  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_APOSTROPHES = str.maketrans({"\u2019": "'", "\x92": "'", "\u2018": "`", "\x91": "`", "\u201b": "`"})
_APOSTROPHE = re.compile("&apos;", re.IGNORECASE)

# What a rule's text becomes, by the rule's `makes`.
_MAKE: dict[str, Callable[[str], str]] = {
    "word": lambda text: _SINGLE.get(text, text) if len(text) == 1 else text.replace("\xad", ""),
    "as-is": lambda text: text,
    "initials": lambda text: text.replace("&AMP;", "&").replace("&amp;", "&"),
    "clitic": lambda text: _APOSTROPHE.sub("'", text).translate(_APOSTROPHES),
    "spaced": lambda text: text.replace(" ", "\xa0").replace("(", "-lrb-").replace(")", "-rrb-"),
    "entity": lambda text: _ENTITIES[text[1:-1].lower()],
    "dash": lambda _: "--",
    "ellipsis": lambda _: "...",
    "quotes": lambda text: "".join(_SINGLE.get(char, char) for char in text),
    "bracket": lambda text: _BRACKETS[text],
}


class _Token(NamedTuple):
    end: int
    makes: str


@cache
def _rules_by_start() -> dict[str, list[Rule]]:
    """The rules that can match at a character, in their order; they are made at the first caption that needs them."""
    from .ptb_rules import RULES

    table: dict[str, list[Rule]] = defaultdict(list)
    every = {*map(chr, range(1, 0x7F)), *"".join(rule.starts for rule in RULES)} - {" ", "\t", "\n"}
    for rule in RULES:
        for char in set(rule.starts) or every:
            table[char].append(rule)
    return dict(table)


def scan(text: str) -> list[str]:
    """The tokens of one line, in small letters, without punctuation.

    Example:
        >>> scan("He can't. It's a St. Bernard, 5 ft. (1.5 m) tall!")[:8]
        ['he', 'ca', "n't", 'it', "'s", 'a', 'st.', 'bernard']

    `text` has no line breaks. Never raises. Takes time proportional to the length.
    """
    text = text.rstrip()  # the official scorers strip the line, even where a token would hold the space
    line = shape(text) + "\n"
    tokens: list[str] = []
    place, end = 0, len(line) - 1
    while place < end:
        if line[place] == " ":
            place = _SPACES.match(line, place).end()  # type: ignore[union-attr]
        run = _RUN.match(line, place)
        if run and (run[1] is None or abbreviation(run[1]) is None):
            tokens += _words(run[0])
            place = run.end()
            continue
        if run:
            tokens += _words(line[place : run.start(1)])
            place = run.start(1)
        found = _furthest(line, place)
        if found is None:
            place += 1
            continue
        token = _MAKE[found.makes](text[place : found.end]).lower()
        place = found.end
        if token not in _REMOVED:
            tokens.append(token)
    return tokens


def _words(run: str) -> list[str]:
    words = run.lower().replace(",", " ").replace(".", " ").split()
    if not CONTRACTIONS.keys().isdisjoint(words):
        halves = ((word[: CONTRACTIONS.get(word)], word[CONTRACTIONS.get(word, len(word)) :]) for word in words)
        words = [part for both in halves for part in both if part]
    return " ".join(words).replace("'s", " 's").split() if "'" in run else words


def _furthest(line: str, place: int) -> _Token | None:
    """The token that begins here, if one does."""
    furthest, token = 0, None
    for rule in _rules_by_start().get(line[place], ()):
        match = rule.pattern.match(line, place, place + _REACH) if rule.far else rule.pattern.match(line, place)
        if match is None:
            continue
        sees = match.end()
        if rule.makes == "abbreviation":
            kind = abbreviation(match[1][:-1])
            if kind is None:
                continue
            sees = min(match.end(1) + 2, len(line)) if kind == "closing" else match.end(1)
        elif rule.makes == "figure" and not keeps_stop_before_figure(match[1][:-1]):
            continue
        if sees > furthest:
            furthest, token = sees, _Token(match.end(1), rule.makes if rule.makes in _MAKE else "word")
    return token
