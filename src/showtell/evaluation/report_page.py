"""The frame of every report: one file without scripts that asks for nothing, and a policy that says so."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from ..version import __version__
from .report_html import Html, element

__all__ = ["page"]

_STYLE = Path(__file__).with_name("report.css")


def page(title: str, *parts: Html | None) -> str:
    """A whole page around its parts, which make up `main`.

    Example:
        >>> shown = page("scores", element("p", "a < b"))
        >>> shown[:15], "<main><p>a &lt; b</p></main>" in shown
        ('<!doctype html>', True)

    Its style is light or dark as the reader's system is. No script runs and nothing is fetched: a content security
    policy forbids both.
    """
    style = _STYLE.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content=f"showtell {__version__}"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    footer = element("footer", element("p", f"Made by showtell {__version__}. This file needs no network."))
    return (
        "<!doctype html>\n" + element("html", head, element("body", element("main", *parts), footer), lang="en") + "\n"
    )
