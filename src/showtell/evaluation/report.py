"""A result, or two side by side, as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np

from .. import journal
from ..captioner import Captioner
from ..errors import ArgumentError
from ..metrics import ptb_tokenize
from .compare import Comparison, compare
from .report_charts import Series, histogram, nice_step
from .report_entry import Entry, entries_of
from .report_html import Html, count, element, text
from .report_page import page
from .report_photos import groups_of, photo_groups
from .report_tables import health_table, score_table
from .result import Evaluation

__all__ = ["write_report"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def write_report(
    path: str | os.PathLike[str],
    evaluation: Evaluation,
    *,
    other: Evaluation | None = None,
    comparison: Comparison | None = None,
    captioner: Captioner | None = None,
    force: bool = False,
) -> None:
    """Write a result as one HTML file: scores, distributions, lengths, health, and photos with their captions.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from showtell.evaluation import ScoredPhoto, score_predictions
        >>> result = score_predictions("mine", [ScoredPhoto("1", "a dog runs", ("a dog", "a wet dog"))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", result)
        ...     (Path(folder) / "report.html").read_bytes()[:15]
        b'<!doctype html>'

    The file holds everything, small copies of the photos too, and asks the network for nothing; it has no scripts and
    forbids them. A photo that can't be read is replaced by a sentence that says so.

    Args:
        path: the file; one that is there is replaced, atomically.
        evaluation: the result.
        other: a second result over the same photos, with which `evaluation` is compared side by side.
        comparison: `compare(other, evaluation)`, where it is at hand already. Alone, it brings the other result.
        captioner: what made the captions of `evaluation`; where its decoder has attention, the photos come with maps.
        force: as for `compare`.

    Raises:
        ArgumentError: the two results can't be compared, or `comparison` is of others.
        RunError: the file can't be written.
    """
    _check(evaluation, other, comparison)
    if other is not None and comparison is None:
        comparison = compare(other, evaluation, force=force)
    shown = [evaluation] if comparison is None else [comparison.a, comparison.b]
    journal.write_file(path, _page(entries_of(shown, captioner), comparison).encode("utf-8"))


def _check(evaluation: Evaluation, other: Evaluation | None, comparison: Comparison | None) -> None:
    given = ((evaluation, Evaluation, False), (other, Evaluation, True), (comparison, Comparison, True))
    for value, kind, optional in given:
        if not isinstance(value, kind) and not (optional and value is None):
            raise ArgumentError(f"a report shows a result of the class {kind.__name__}, not {type(value).__name__}")
    if comparison is not None:
        found = (comparison.a.name, comparison.b.name)
        wanted = (found[0] if other is None else other.name, evaluation.name)
        if found != wanted:
            raise ArgumentError(
                f"the comparison is of {found!r:.300}, the report of {wanted!r:.300}; compare these two"
            )


# --- the page -------------------------------------------------------------------------------------------------------


def _page(entries: Sequence[Entry], comparison: Comparison | None) -> str:
    tables = [
        element("section", element("h2", "Scores"), score_table(entries, comparison)),
        element("section", element("h2", "The captions as a whole"), health_table(entries)),
    ]
    signatures = _signatures(entries, comparison)
    return page(
        f"{' and '.join(entry.name for entry in entries)}: caption scores",
        _header(entries),
        *([element("div", *tables, class_="beside"), signatures] if comparison is None else []),
        *([tables[0], signatures] if comparison is not None else []),
        _distributions(entries),
        *(tables[1:] if comparison is not None else []),
        *photo_groups(groups_of(entries), entries),
    )


def _header(entries: Sequence[Entry]) -> Html:
    first = entries[0].evaluation
    if len(entries) == 1:
        title = [element("bdi", entries[0].name)]
    else:
        title = [entries[0].label(120), element("span", " and ", class_="and"), entries[1].label(120)]
    facts = [_counted(len(first.photos), "photo")]
    counts = {len(photo.references) for photo in first.photos}
    if counts:
        low, high = min(counts), max(counts)
        facts.append(f"{low} to {high} references each" if low < high else f"{_counted(low, 'reference')} each")
    searches = {entry.evaluation.signature.search for entry in entries}
    if len(searches) == 1:
        facts.append(f"search {text(searches.pop(), 80)}")
    return element(
        "header",
        element("p", "Caption scores" if len(entries) == 1 else "Caption scores, side by side", class_="kind"),
        element("h1", *title),
        element("ul", *(element("li", fact) for fact in facts), class_="facts"),
    )


def _counted(number: int, what: str) -> str:
    return f"{count(number)} {what}{'' if number == 1 else 's'}"


def _signatures(entries: Sequence[Entry], comparison: Comparison | None) -> Html:
    lines = []
    for entry in entries:
        if comparison is not None:
            lines.append(element("p", entry.label(120), class_="whose"))
        # A line breaks between two parts rather than at a hyphen; copied, it is one line all the same.
        parts = text(str(entry.evaluation.signature), 2000).split("|")
        spans = [element("span", "|" * (place > 0) + part) for place, part in enumerate(parts)]
        lines.append(element("p", element("code", *spans), class_="signature"))
    unlike = None
    if comparison is not None and comparison.unlike:
        unlike = element(
            "div",
            element("p", "These two were not scored alike; they are compared because that was asked for:"),
            element("ul", *(element("li", text(what, 400)) for what in comparison.unlike)),
            class_="unlike",
        )
    several = len(entries) > 1
    return element(
        "section",
        element("h2", "Signatures" if several else "Signature"),
        element("p", "Scores are comparable where all of this is the same; publish them with it.", class_="lead"),
        *lines,
        unlike,
    )


# --- distributions --------------------------------------------------------------------------------------------------


def _distributions(entries: Sequence[Entry]) -> Html | None:
    first = entries[0].evaluation
    if not first.photos:
        return None
    charts = []
    for metric in ("CIDEr-D", "BLEU-4", "ROUGE-L"):
        if metric in first.scores.each:
            columns = [np.array(entry.evaluation.scores.each[metric], dtype=np.float64) for entry in entries]
            series = [Series(entry.name, values, entry.style) for entry, values in zip(entries, columns, strict=True)]
            note = _without_match(columns) if metric == "BLEU-4" else ""
            charts.append(histogram(f"{metric} of each photo", metric, series, _edges(metric, columns), note=note))
    charts.append(_lengths(entries))
    return element("section", element("h2", "Distributions"), element("div", *charts, class_="plots"))


def _without_match(columns: Sequence[Array]) -> str:
    # Without a match of four words BLEU-4 is some 0.0001, with one at least 0.01.
    none = [int((values < 1e-3).sum()) for values in columns]
    return f"{' and '.join(map(count, none))} captions share no four words in a row with a reference." * (sum(none) > 0)


def _edges(metric: str, columns: Sequence[Array]) -> list[float]:
    values = np.concatenate(columns)
    most = max(1.0, float(values[np.isfinite(values)].max(initial=0.0))) if metric == "CIDEr-D" else 1.0
    step = nice_step(most / 25)
    return [round(i * step, 9) for i in range(int(np.ceil(most / step - 1e-9)) + 1)]


def _lengths(entries: Sequence[Entry]) -> Html:
    several = len(entries) > 1
    series = [
        Series(entry.name if several else "captions", _words(p.caption for p in entry.evaluation.photos), entry.style)
        for entry in entries
    ]
    written = _words(reference for photo in entries[0].evaluation.photos for reference in photo.references)
    series.append(Series("references", written, "r"))
    # All but the longest half percent, at most 60 words: a single long caption would squeeze the rest.
    most = int(min(60, max(10, *(np.percentile(one.values, 99.5) for one in series if len(one.values)))))
    beyond = sum(int((one.values > most).sum()) for one in series)
    note = f"The last bin also holds {_counted(beyond, 'longer one')}." if beyond else ""
    edges = [float(i) for i in range(most + 2)]
    return histogram("Length of captions", "words", series, edges, unit="captions", decimals=0, shares=True, note=note)


def _words(captions: Iterable[str]) -> Array:
    return np.array([len(ptb_tokenize(caption)) for caption in captions], dtype=np.float64)
