"""The tables of a report: scores with their intervals, differences, and the captions' health."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..metrics.diversity import Health
from .compare import Comparison, Confidence, Difference, Interval, confidence
from .report_charts import Axis, interval_axis, interval_plot, nice_step
from .report_entry import Entry
from .report_html import Html, count, element, join, percent, score, signed, text

__all__ = ["health_table", "score_table"]

_FEW = 30  # photos: with fewer, the bootstrap's intervals are too narrow
_TINY = 1e-6  # a score below has no sensible part


def score_table(entries: Sequence[Entry], comparison: Comparison | None) -> Html:
    """Every metric with its interval; of two results also the differences; and what one has to know of them."""
    found = [confidence(entry.evaluation) for entry in entries]
    table = _one(entries[0], found[0]) if comparison is None else _two(entries, comparison, found)
    return join(table, element("p", " ".join(_notes(entries, comparison, found[0])), class_="note"))


def _notes(entries: Sequence[Entry], comparison: Comparison | None, found: Confidence) -> list[str]:
    photos, metrics = len(entries[0].evaluation.photos), entries[0].evaluation.scores.corpus
    notes = []
    if photos > 1:
        same = ", the same photos for both" if comparison is not None else ""
        notes.append(f"Intervals: bootstrap over the photos, {count(found.samples)} samples{same}.")
        if comparison is not None:
            notes.append("A difference in bold has an interval that leaves out 0.")
        if photos < _FEW:
            notes.append(f"{photos} photos are few: these intervals are too narrow.")
    elif photos:
        notes.append("One photo says nothing about others, so there are no intervals.")
    if "METEOR" in metrics:
        notes.append("METEOR over many photos isn't made of theirs, so it has no interval.")
    if "CIDEr-D" in metrics:
        notes.append("CIDEr-D is what tables call CIDEr; it goes from 0 to 10, BLEU and ROUGE-L from 0 to 1.")
    return notes


def _one(entry: Entry, found: Confidence) -> Html:
    rows = [
        (
            element("th", metric, scope="row"),
            element("td", score(value), class_="main"),
            element("td", _between(found.intervals[metric], score) or "none", class_="range"),
        )
        for metric, value in entry.evaluation.scores.corpus.items()
    ]
    return _table(("Metric", "Score", "95% interval"), rows, "scores")


def _two(entries: Sequence[Entry], comparison: Comparison, found: Sequence[Confidence]) -> Html:
    axis = _axis(comparison.differences)
    rows = []
    for one in comparison.differences:
        values = [
            element("td", score(value), _small(_between(own.intervals[one.metric], score)))
            for value, own in zip((one.a, one.b), found, strict=True)
        ]
        shown = signed(one.difference)
        difference = element("strong", shown) if one.significant else shown
        rows.append(
            (
                element("th", one.metric, scope="row"),
                *values,
                element("td", difference, _small(_between(one.interval, signed) or "no interval")),
                element("td", "" if one.better is None else percent(one.better), class_="extra"),
                element("td", _plot(one, axis), class_="extra picture"),
            )
        )
    a, b = (entry.label(40) for entry in entries)
    heads = ("Metric", a, b, "Difference", join("Samples led by ", b), join("Difference in % of ", a))
    last = (element("td", colspan=5, class_="extra"), element("td", interval_axis(axis), class_="extra picture"))
    return _table(heads, [*rows, last], "scores comparison")


def _axis(differences: Sequence[Difference]) -> Axis:
    """An axis that holds all intervals, as parts of the first result's scores."""
    ends = [0.0]
    for one in differences:
        if one.interval is not None and one.a > _TINY:
            ends += [max(-5.0, min(5.0, end / one.a)) for end in (one.interval.low, one.interval.high)]
    step = nice_step(max(0.01, (max(ends) - min(ends)) / 4))
    return Axis(step * math.floor(min(ends) / step), step * math.ceil(max(ends) / step + 1e-9), step)


def _plot(one: Difference, axis: Axis) -> Html | None:
    if one.interval is None or one.a <= _TINY:
        return None
    style = "none" if not one.significant else "b" if one.difference > 0 else "a"
    return interval_plot(one.interval.low / one.a, one.difference / one.a, one.interval.high / one.a, axis, style=style)


def _between(interval: Interval | None, form: Callable[[float], str]) -> str | None:
    return None if interval is None else f"{form(interval.low)} to {form(interval.high)}"


def _small(words: str | None) -> Html | None:
    return None if words is None else element("span", words, class_="range")


def _table(heads: Sequence[str], rows: Sequence[Sequence[Html]], kind: str) -> Html:
    cells = [element("th", head, scope="col", class_="extra" if i > 3 else None) for i, head in enumerate(heads)]
    top = element("thead", element("tr", *cells)) if any(heads) else None
    table = element("table", top, element("tbody", *(element("tr", *row) for row in rows)), class_=kind)
    return element("div", table, class_="wide")


# --- health ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    name: str
    meaning: str
    value: Callable[[Health], str]
    detail: Callable[[Health], str | None] = lambda _: None


def _share(ratio: float | None) -> str:
    return "unknown" if ratio is None else percent(ratio)


_ROWS = (
    _Row("Different captions", "", lambda h: _share(h.unique_ratio), lambda h: f"of {count(h.captions)}"),
    _Row("Most frequent caption", "", lambda h: _share(h.most_common_ratio), lambda h: text(h.most_common, 200)),
    _Row("Words used", "different ones", lambda h: count(h.vocabulary)),
    _Row(
        "Words a caption",
        "mean; shortest and longest",
        lambda h: "unknown" if h.mean_length is None else f"{h.mean_length:.1f}",
        lambda h: f"{count(h.min_length)} to {count(h.max_length)}",
    ),
    _Row("Repetitions", "captions that say something twice in a row", lambda h: _share(h.repeated_word_ratio)),
    _Row(
        "Broken endings",
        "captions that end in \u201ca\u201d, \u201cof\u201d \u2026",
        lambda h: _share(h.bad_ending_ratio),
    ),
    _Row("Unknown words", "of all words", lambda h: _share(h.unknown_ratio)),
    _Row("Empty", "captions without a word", lambda h: _share(h.empty_ratio)),
    _Row("New", "captions that are not among the training captions", lambda h: _share(h.novelty)),
)


def health_table(entries: Sequence[Entry]) -> Html:
    """What the captions look like without a look at the references."""
    rows = []
    for row in _ROWS:
        if row.name == "New" and all(entry.evaluation.health.novelty is None for entry in entries):
            continue
        cells = []
        for entry in entries:
            detail = row.detail(entry.evaluation.health)
            small = None if detail is None else element("bdi", detail, class_="range")
            cells.append(element("td", row.value(entry.evaluation.health), small))
        meaning = element("span", row.meaning, class_="range") if row.meaning else None
        rows.append((element("th", row.name, meaning, scope="row"), *cells))
    heads = ["Captions", *(entry.label(40) for entry in entries)] if len(entries) > 1 else ["", ""]
    return _table(heads, rows, "health")
