"""The patterns of the caption tokeniser, found by showing captions to the official one and looking at what came out.

Each pattern reads shapes (`ptb_characters.shape`), not text. Its first group is the token; what it matches after the
group is only looked at. Of all patterns that match at a place the one that sees furthest wins, looking ahead included,
and of equals the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .ptb_characters import DIGIT, LETTER, MARK, SPACE, SUBSCRIPT, SUPERSCRIPT, SYMBOL
from .ptb_words import CONTRACTIONS, STARTERS

__all__ = ["RULES", "Rule"]

_SOFT = "\xad"  # the soft hyphen, at home in any word
_ASCII = "A-Za-z"
_L = _ASCII + LETTER
_LM = _L + MARK + _SOFT
_D = "0-9" + DIGIT
_LD = _L + _D
_APOS = "(?:['\u2019\x92]|&apos;)"
_CURLY = "(?:[\u2019\x92]|&apos;)"
_QUOTE = "(?:['\u2019\x92`\u2018\u201b\x91]|&apos;)"
_GAP = f"[ \\t\xa0\x85{SPACE}]"  # \x85 is a line's end to the official tokeniser
_END = f"[ \\t\\n\xa0\x85{SPACE}]"
_HYPHEN = "[-\u058a\u2010\u2011]"


class Rule(NamedTuple):
    """One pattern: what its match may start with, how its text becomes a token, whether it may run far."""

    starts: str
    pattern: re.Pattern[str]
    makes: str = "word"
    far: bool = False


def _rule(starts: str, pattern: str, makes: str = "word", *, cased: bool = True, far: bool = False) -> Rule:
    return Rule(starts, re.compile(pattern, 0 if cased else re.IGNORECASE), makes, far)


def _either(words: Iterable[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIGURES = "0123456789"
_NAMES = _LETTERS + LETTER + MARK + _SOFT
_THINGS = _LETTERS + LETTER + _FIGURES + DIGIT
_CURLIES = "\u2019\x92&"
_APOSES = "'" + _CURLIES

# Words ---------------------------------------------------------------------------------------------------------------

_WORD = f"[{_LM}][{_LM}{_D}]*"
_DOTTED = f"{_WORD}(?:[.!?]{_WORD})+"
_PART = f"(?:[dDoOlL]{_QUOTE}[{_LD}])?[{_LD}]+"
_THING = f"{_PART}(?:_{_PART})*"
_PLAIN = f"[A-Za-z0-9{_SOFT}]+"
_SOLID = "[A-Za-z0-9]+"
_INITIALS = "[A-Za-z](?:[.][A-Za-z])+[.]"
_COMPOUND = f"[A-Za-z0-9][A-Za-z0-9.,{_SOFT}]*(?:{_HYPHEN}(?:{_INITIALS}|{_PLAIN}))+"
_SLASHED = f"{_SOLID}(?:-[A-Za-z]+){{0,2}}"
_INITIALS_AND = "[A-Z]+(?:(?:&(?i:amp);|[+&])[A-Z]+)+"

_WORDS = [
    *(_rule(word[0] + word[0].upper(), f"({word[:n]}){word[n:]}", cased=False) for word, n in CONTRACTIONS.items()),
    _rule(_NAMES, f"({_WORD})"),
    _rule(_THINGS, f"([{_LD}]+)"),
    _rule(_THINGS, f"({_PART}(?:_{_PART})+)"),
    _rule(_THINGS, f"({_THING}(?:{_HYPHEN}{_THING})+)"),
    _rule(_LETTERS + _FIGURES, f"({_COMPOUND})", far=True),
    _rule("pPaA", "((?:pro|anti)-)", cased=False),
    _rule(_LETTERS + _FIGURES, f"({_SLASHED}(?:\\\\?/{_SLASHED}){{1,2}})"),
    _rule(_LETTERS, f"({_INITIALS_AND})", "initials"),
    _rule(_LETTERS, f"({_INITIALS_AND}[.])[,:;\u3001]", "initials"),
    _rule("cCfF", r"([CcFf]#|[Cc]\+\+)"),
]

# Apostrophes ---------------------------------------------------------------------------------------------------------

_APOSTROPHES = [
    _rule(_NAMES, f"([A-Za-z{_SOFT}]*?[A-MO-Za-mo-z])[nN]{_QUOTE}[tT]"),
    _rule("nN", f"(n{_QUOTE}t)", "clitic", cased=False),
    _rule("'", "('(?:[smd]|ll|re|ve))[^A-Za-z]", "clitic", cased=False),
    _rule(_CURLIES, f"({_CURLY}(?:[smd]|ll|re|ve))", "clitic", cased=False),
    _rule(_CURLIES, f"({_CURLY}n)", cased=False),
    _rule("'", f"('n){_END}", cased=False),
    _rule(_APOSES, f"({_APOS}(?:em|till?|cause|n{_APOS}|[2-9]0s))", cased=False),
    _rule(_APOSES, f"({_APOS}[0-9][0-9]){_END}"),
    _rule("'", "('t)(?:is|was)", cased=False),
    _rule(_NAMES, f"({_WORD}(?:[.!?]{_WORD})*){_APOS}(?:[sdm]|ll|re|ve)", cased=False),
    _rule("dDlLoO", f"([dDlLoO]{_QUOTE}[{_LD}][{_LD}]+)"),
    _rule(_LETTERS, f"((?:[dDlLnNoO]|[A-HJ-XZ]){_QUOTE}[{_L}][{_L}]+)"),
    _rule(_NAMES, f"([{_L}]+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z][{_L}]*)"),
    _rule("eEcClLnNsSoO", f"(e'er|c'est|c'mon|li'l|ev'ry|cap{_APOS}n|nat'l|s'mores|o{_QUOTE}o)", cased=False),
    _rule("dDlLjJoO", f"([dlj]{_APOS}|ol{_APOS})", cased=False),
    _rule("yY", f"([yY]{_APOS})[{_LM}]"),
]

# Markup --------------------------------------------------------------------------------------------------------------

_TAG = "[A-Za-z][A-Za-z0-9_:.-]*"
_BLANK = "[ \\t\\n]"
_MARKUP = (
    f"<{_TAG}(?:{_BLANK}+{_TAG}(?:{_BLANK}*={_BLANK}*(?:'[^']*'|\"[^\"]*\"))?)*{_BLANK}*/?{_BLANK}*>",
    f"</{_TAG}{_BLANK}*>",
    "<[!?][A-Za-z-][^>]*>",
)

# Full stops ----------------------------------------------------------------------------------------------------------

_STARTER = _either(f"{word[0]}(?i:{re.escape(word[1:])})" for word in STARTERS)
_STOPS = [
    _rule(_NAMES, f"({_DOTTED})"),
    _rule(_LETTERS, "([A-Za-z](?:[.][A-Za-z])+[.]?)"),
    _rule(_LETTERS, "([A-Za-z][.])"),
    _rule(_LETTERS, f"([A-Za-z])[.]{_GAP}+(?:{_STARTER}|{'|'.join(_MARKUP)}){_END}", far=True),
    _rule("pPeE", "(ph[.]d[.]|ed[.]d[.])(?:[^.][^.])?", cased=False),
    _rule(_LETTERS, "([A-Za-z]+[.])[^.]?", "abbreviation"),
    _rule(_LETTERS, f"([A-Za-z]+[.]){_GAP}?[0-9]", "figure"),
    _rule(_THINGS, f"({_THING}(?:{_HYPHEN}{_THING})*[.])[,:;\u3001]"),
    _rule(_LETTERS + _FIGURES, f"({_COMPOUND}[.])[,:;\u3001]", far=True),
    _rule(_NAMES, f"({_DOTTED}[.])[,:;\u3001]"),
    _rule(
        _THINGS + _SOFT,
        f"([{_LD}{_SOFT}]+(?:[.][{_LD}{_SOFT}]+)*[.](?:bat|bmp|c|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf|php"
        f"|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip))(?:{_END}|[.?!,])",
        "as-is",
        cased=False,
    ),
]

# Figures -------------------------------------------------------------------------------------------------------------

_NUMBER = f"[-+]?[.,:{_SOFT}\u066b\u066c]?[{_D}]+(?:[.,:{_SOFT}\u066b\u066c][{_D}]+)*"
_NUMBERS = [
    _rule(_FIGURES + DIGIT + f"-+.,:{_SOFT}\u066b\u066c", f"({_NUMBER})"),
    _rule(_FIGURES, r"((?:[0-9]{1,4}[- \xa0])?[0-9]{1,4}(?:\\?/|" + "\u2044)[0-9]{1,4})", "spaced"),
    _rule(
        _FIGURES + "+(",
        r"((?:\([0-9]{2,3}\)[ \xa0]?|(?:\+\+?)?(?:[0-9]{2,4}[- \xa0])?[0-9]{2,4}[- \xa0])"
        r"[0-9]{3,4}[- \xa0]?[0-9]{3,5})",
        "spaced",
    ),
    _rule(_FIGURES, r"([0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4})"),
    _rule(_FIGURES + "+", r"((?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})"),
    _rule(_LETTERS, r"([A-Z]+\$)"),
]

# Addresses and markup ------------------------------------------------------------------------------------------------

_PATH = '[^\\t\\n "<>|()]'
_PATH_END = '[^\\t\\n "<>|().!?,{}-]'
_HOST = '[^\\t\\n "<>|(){}]'
_MAIL = '[^\\t\\n \xa0"<>|(){}]'
_MAIL_PART = '[^\\t\\n \xa0"<>|(){}.]'
_LABEL = "[^\\t\\n !\"$'(),-`{|}]"
_ADDRESSES = [
    _rule("hH", f"(https?://{_HOST}+{_PATH_END})", "as-is", cased=False, far=True),
    _rule(
        "wW",
        f'(www[.](?:[^\\t\\n "<>|(){{}},.]+[.])+[a-z]{{2,4}}(?:/{_HOST}+{_PATH_END})?)',
        "as-is",
        cased=False,
        far=True,
    ),
    _rule("", f"((?:{_LABEL}+[.])+(?i:com|net|org|edu)(?:/{_PATH}+{_PATH_END})?)", "as-is", far=True),
    _rule(
        _LETTERS + _FIGURES + "<&",
        f"((?:<|&lt;)?[A-Za-z0-9]{_MAIL}*@(?:{_MAIL_PART}+[.])*{_MAIL_PART}+(?:>|&gt;)?)",
        "as-is",
        cased=False,
        far=True,
    ),
    _rule("@", "(@[A-Za-z_][A-Za-z0-9_]*)"),
    _rule("#", f"(#[{_LM}]+)", "as-is"),
    *(_rule("<", f"({tag})", "spaced", far=True) for tag in _MARKUP),
    _rule("&", "(&(?:amp|lt|gt|quot|apos|nbsp|mdash|ndash|md);)", "entity", cased=False),
    _rule("&", "(&(?:HT|LR|QC|QL|QR|TL|UR|cdq|odq|[aeiou]uml);)", cased=False),
    _rule("&", "(&#[0-9]+;)"),
]

# Faces and punctuation -----------------------------------------------------------------------------------------------

_MARKS = [
    _rule("<>:;=", r"([<>]?[:;=][-o*']?[()@OPDpd\[\]{|\\])[^A-Za-z0-9]", "spaced"),
    _rule("'<=>^x~-", "(['<=>^x~-]_['<=>^x~-])"),
    _rule("(", r"(\([-'<=>^x~][_.]?[-'<=>^x~]\))", "spaced"),
    _rule("-", "(--{1,3})(?!-)", "dash"),
    _rule("-", "(-{5,})"),
    _rule(".", "([.]{3,5}|[.](?:[ \xa0][.]){2,4})", "ellipsis"),
    _rule("!?", "([!?]+)"),
    _rule("'", "(''?)"),
    _rule("\\", r"((?:\\\*)+)"),
    _rule("*", r"(\*+)"),
    _rule("_", "(_+)"),
    _rule("#", "(#+)"),
    _rule("@", "(@+)"),
    _rule("<>", "(<<|>>)"),
    _rule(
        "`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\xab\xbb\x91\x92\x93\x94",
        "([`\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u2039\u203a\xab\xbb\x91\x92\x93\x94]{1,2})",
        "quotes",
    ),
    _rule(
        SUPERSCRIPT + SUBSCRIPT + "\u207a\u207b\u208a\u208b",
        f"([\u207a\u207b\u208a\u208b]?(?:{SUPERSCRIPT}+|{SUBSCRIPT}+))",
    ),
    _rule("()[]{}", r"([()\[\]{}])", "bracket"),
    _rule(
        "!\"#$%&'*+,-./:;<=>?@\\^_|~"
        "\x80\x85\x96\x97\xa2\xa3\xa4\xad\xbc\xbd\xbe\u2013\u2014\u2015\u2026\u20a0\u20ac\u2044\u2153\u2154\u3001\u207a\u207b\u208a\u208b"
        + SYMBOL,
        "(.)",
    ),
]

RULES = (*_STOPS, *_WORDS, *_APOSTROPHES, *_NUMBERS, *_ADDRESSES, *_MARKS)
