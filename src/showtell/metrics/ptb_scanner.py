"""The caption tokeniser proper: from left to right, at each place the rule that sees furthest."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable

from .ptb_characters import MARK, shape
from .ptb_rules import REACH, RULES
from .ptb_words import abbreviation, keeps_stop_before_figure

__all__ = ["scan"]

_SINGLE = {
    '"': "''", "\u201c": "``", "\u201d": "''", "\x93": "``", "\x94": "''", "\xab": "``", "\xbb": "''",
    "\u2018": "`", "\u2019": "'", "\x91": "`", "\x92": "'", "\u201b": "`", "\u2039": "`", "\u203a": "'",
    "\x96": "--", "\x97": "--", "\u2013": "--", "\u2014": "--", "\u2015": "--", "\x85": "...", "\u2026": "...",
    "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$", "\xa2": "cents", "\xa3": "#",
    "\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3", "\xad": "-",
}
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": "''", "apos": "'", "nbsp": "", "mdash": "--", "ndash": "--", "md": "--"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CLITIC = str.maketrans({"\u2019": "'", "\x92": "'", "\u2018": "`", "\x91": "`", "\u201b": "`"})
_APOS = re.compile("&apos;", re.I)


def _word(t):
    if len(t) == 1:
        return _SINGLE.get(t, t)
    t = t.replace("\xad", "")
    return t

def _spaced(t):
    return t.replace(" ", "\xa0").replace("(", "-LRB-").replace(")", "-RRB-")

_MAKE = {
    "word": _word,
    "figure": _word,
    "abbreviation": _word,
    "clitic": lambda t: _APOS.sub("'", t).translate(_CLITIC),
    "spaced": _spaced,
    "entity": lambda t: _ENTITIES[t[1:-1].lower()],
    "dash": lambda t: "--",
    "ellipsis": lambda t: "...",
    "quotes": lambda t: "".join(_SINGLE.get(c, c) for c in t),
    "bracket": lambda t: _BRACKETS[t],
}
_ANY = [r for r in RULES if not r.starts]
_BY_START = defaultdict(list)
for r in RULES:
    for c in r.starts or (set("".join(q.starts for q in RULES)) | set(map(chr,range(1,127)))):
        if c not in "\n \t":
            _BY_START[c].append((r.pattern.match, r.makes, r.far))

def scan(text: str) -> list[str]:
    line = shape(text) + "\n"
    out = []
    i, n = 0, len(line)-1
    while i < n:
        best = 0
        for match, makes, far in _BY_START.get(line[i], ()):
            m = match(line, i, i + REACH) if far else match(line, i)
            if m is None: continue
            sees = m.end() - i
            if makes == "abbreviation":
                k = abbreviation(m.group(1)[:-1])
                if k is None: continue
                e = m.end(1)
                sees = e - i
                if k == "closing": sees = min(sees + 2, n + 1 - i)
            elif makes == "figure":
                if not keeps_stop_before_figure(m.group(1)[:-1]): continue
            if sees > best:
                best, end, make = sees, m.end(1), makes
        if not best:
            i += 1; continue
        t = _MAKE[make](text[i:end]).lower()
        i = end
        if t: out.append(t)
    return out
