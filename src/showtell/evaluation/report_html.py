"""HTML that can't be broken by what it shows: text becomes HTML in one place, escaped."""

from __future__ import annotations

import html
import math
import re

__all__ = ["Html", "clean", "count", "element", "join", "percent", "score", "signed", "text"]

_VOID = frozenset({"meta", "link", "img", "br"})
_STRAY = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters
    "\u202a-\u202e\u2066-\u2069"  # would turn the text around them
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"  # no characters
)
_SPACE = re.compile("[\\s\u2028\u2029]+")


class Html(str):
    """Text that is HTML already; any other text is escaped before it comes into a page."""

    __slots__ = ()


def element(kind: str, /, *children: str | None, **attributes: str | float | None) -> Html:
    """One element; children that aren't `Html` are escaped, None is left out.

    Example:
        >>> element("p", "a < b", element("br"), class_="note")
        '<p class="note">a &lt; b<br></p>'

    In attribute names "_" stands for "-", one at the end for nothing ("class_"); None leaves the attribute out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(clean(_attribute(value)))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if kind in _VOID:
        return Html(f"<{kind}{given}>")
    return Html(f"<{kind}{given}>{join(*children)}</{kind}>")


def join(*children: str | None) -> Html:
    """Several pieces as one; what isn't `Html` is escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(clean(c)) for c in children if c is not None))


def clean(value: str) -> str:
    """Text that any page may hold: stray control characters and halves of characters become U+FFFD.

    Example:
        >>> clean("a\\x00b")
        'a\ufffdb'
    """
    return _STRAY.sub("\ufffd", value)


def text(value: str, limit: int) -> str:
    """One line of at most about `limit` characters; what is cut is counted.

    Example:
        >>> text("a  dog\\nruns", 100), text("x" * 2000, 5)
        ('a dog runs', 'xxxxx … (2,000 characters)')
    """
    line = _SPACE.sub(" ", value[: 4 * limit]).strip()
    if len(value) <= 4 * limit and len(line) <= limit:
        return line
    return f"{line[:limit]} … ({len(value):,} characters)"


def score(value: float) -> str:
    """A score with three decimals."""
    return _number(value, ".3f")


def signed(value: float) -> str:
    """A difference with three decimals and its sign; none where it rounds to 0.

    Example:
        >>> signed(0.0123), signed(-2.0), signed(-0.0001)
        ('+0.012', '\u22122.000', '0.000')
    """
    shown = _number(value, "+.3f")
    return "0.000" if shown[1:] == "0.000" else shown


def percent(value: float) -> str:
    """A share in percent with one decimal."""
    return _number(100 * value, ".1f") + "%"


def count(value: float) -> str:
    """A whole number, thousands apart."""
    return _number(value, ",.0f")


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "not a number"
    return format(value, form).replace("-", "\u2212").replace("inf", "\u221e")


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
