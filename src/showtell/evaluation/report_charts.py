"""Histograms and intervals as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from .report_html import Html, count, element, percent

__all__ = [
    "BOTTOM",
    "HEIGHT",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Axis",
    "Series",
    "axis_name",
    "histogram",
    "interval_axis",
    "interval_plot",
    "nice_step",
    "swatch",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

WIDTH, HEIGHT = 420.0, 210.0  # of a chart, and what its plot leaves free
LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 10.0, 42.0
_PLOT, _MARGIN = 240.0, 18.0  # width of an interval's plot, and what it leaves free at both ends


@dataclass(frozen=True)
class Series:
    """One distribution: its name, its values, and which of the page's styles it has."""

    name: str
    values: Array
    style: Literal["a", "b", "r"]


def histogram(
    title: str,
    axis: str,
    series: Sequence[Series],
    edges: Sequence[float],
    *,
    unit: str = "photos",
    decimals: int = 2,
    shares: bool = False,
    note: str = "",
) -> Html:
    """Distributions over the same bins: the first as bars, the others as outlines.

    `edges`: of the bins, rising; what lies outside counts in the outermost bins. `shares`: the height of a bin is its
    part of the series instead of a number of `unit`. `note`: a sentence below.
    """
    heights = [_heights(one.values, edges, shares) for one in series]
    most = max((float(h.max()) for h in heights if len(h)), default=0.0)
    step = nice_step((most or 1.0) / 3.2)
    if not shares:
        step = max(1.0, step)
    top = step * max(1, math.ceil(most / step - 1e-9))
    low, high = edges[0], edges[-1]

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    def amount(value: float) -> str:
        return percent(value) if shares else f"{count(value)} {unit}"

    drawn = [*_grid(top, step, y, shares), *_ticks(low, high, x, axis, decimals)]
    drawn.append(axis_name(LEFT - 38, TOP + (HEIGHT - TOP - BOTTOM) / 2, f"% of {unit}" if shares else unit))
    for place, (one, values) in enumerate(zip(series, heights, strict=True)):
        drawn.append(_bars(one, values, edges, x, y, amount) if place == 0 else _outline(one, values, edges, x, y))
    told = "; ".join(f"{one.name}: " * (len(series) > 1) + _told(one.values, decimals) for one in series)
    told = told[:1].upper() + told[1:] if len(series) == 1 else told
    picture = element(
        "svg",
        element("title", title),
        element("desc", f"{axis}. {told}."),
        *drawn,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"{title}. {told}.",
        class_="chart",
    )
    names = [element("li", swatch(one.style, bar=i == 0), one.name) for i, one in enumerate(series)]
    legend = element("ul", *names, class_="legend") if len(series) > 1 else None
    return element(
        "figure",
        element("figcaption", element("h3", title), legend),
        picture,
        element("p", f"{told}. {note}".strip(), class_="note"),
        class_="plot",
    )


@dataclass(frozen=True)
class Axis:
    """What a line shows: from low, at most 0, to high, at least 0, a mark each step."""

    low: float
    high: float
    step: float

    def place(self, value: float) -> float:
        """Where a value lies on a line of `_PLOT` pixels; one beyond the ends lies at the end."""
        share = (value - self.low) / (self.high - self.low)
        return _MARGIN + max(0.0, min(1.0, share)) * (_PLOT - 2 * _MARGIN)


def interval_plot(low: float, value: float, high: float, axis: Axis, *, style: str) -> Html:
    """A value and its interval on a line."""
    zero = axis.place(0.0)
    return element(
        "svg",
        element("line", x1=zero, x2=zero, y1=0, y2=36, class_="zero"),
        element("line", x1=axis.place(low), x2=axis.place(high), y1=18, y2=18, class_=f"whisker {style}"),
        element("circle", cx=axis.place(value), cy=18, r=4, class_=f"dot {style}"),
        viewBox=f"0 0 {_PLOT:g} 36",
        class_="interval",
        aria_hidden="true",
    )


def interval_axis(axis: Axis) -> Html:
    """The axis below such plots, in percent."""
    marks = []
    for i in range(round((axis.high - axis.low) / axis.step) + 1):
        value = axis.low + i * axis.step
        at, shown = axis.place(value), f"{100 * value:+.3g}".replace("-", "\u2212")
        marks.append(element("line", x1=at, x2=at, y1=1, y2=5, class_="axis"))
        marks.append(element("text", "0" if abs(value) < axis.step / 2 else shown, x=at, y=18, text_anchor="middle"))
    line = element("line", x1=_MARGIN, x2=_PLOT - _MARGIN, y1=1, y2=1, class_="axis")
    return element("svg", line, *marks, viewBox=f"0 0 {_PLOT:g} 22", class_="interval", aria_hidden="true")


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `least`.

    Example:
        >>> nice_step(0.13), nice_step(24)
        (0.2, 25.0)
    """
    power = 10.0 ** math.floor(math.log10(least))
    return next(step for m in (1, 2, 2.5, 5, 10) if (step := float(f"{m * power:.12g}")) >= least * (1 - 1e-9))


def _heights(values: Array, edges: Sequence[float], shares: bool) -> Array:
    values = values[np.isfinite(values)]
    places = np.clip(np.searchsorted(np.asarray(edges), values, side="right") - 1, 0, len(edges) - 2)
    heights = np.bincount(places, minlength=len(edges) - 1).astype(np.float64)
    return heights / max(1, len(values)) if shares else heights


def _told(values: Array, decimals: int) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return "nothing to show"
    low, middle, high = np.percentile(values, (10, 50, 90))
    return f"median {middle:.{decimals}f}, 8 in 10 from {low:.{decimals}f} to {high:.{decimals}f}"


def _grid(top: float, step: float, y: Any, shares: bool) -> list[Html]:
    lines = []
    for i in range(round(top / step) + 1):
        value = i * step
        shown = f"{100 * value:.3g}" if shares else count(value)
        lines.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid"))
        lines.append(element("text", shown, x=LEFT - 6, y=y(value) + 4, text_anchor="end"))
    return lines


def _ticks(low: float, high: float, x: Any, axis: str, decimals: int) -> list[Html]:
    step = nice_step((high - low) / 6)
    if not decimals:
        step = max(1.0, math.ceil(step))
    first = math.ceil(low / step - 1e-9)
    marks = [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]
    middle = 0.0 if decimals else 0.5  # the bin of a whole number has it in its middle
    base = HEIGHT - BOTTOM
    parts = [
        element("text", f"{mark:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{mark:.0f}",
                x=x(mark + middle), y=base + 16, text_anchor="middle")
        for mark in marks
        if mark + middle <= high
    ]  # fmt: skip
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    parts.append(
        element("text", axis, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle", class_="label")
    )
    return parts


def axis_name(x: float, y: float, words: str) -> Html:
    """What an upright axis shows, written along it."""
    turned = f"translate({x:.4g} {y:.4g}) rotate(-90)"
    return element("text", words, transform=turned, text_anchor="middle", class_="label")


def _bars(one: Series, values: Array, edges: Sequence[float], x: Any, y: Any, amount: Any) -> Html:
    gap = min(1.0, (x(edges[1]) - x(edges[0])) / 6)
    bars = [
        element(
            "rect",
            element("title", f"{left:g} to {right:g}: {amount(value)}"),
            x=x(left) + gap / 2,
            y=y(value),
            width=x(right) - x(left) - gap,
            height=y(0.0) - y(value),
        )
        for value, left, right in zip(values.tolist(), edges[:-1], edges[1:], strict=True)
        if value
    ]
    return element("g", *bars, class_=f"bars {one.style}")


def _outline(one: Series, values: Array, edges: Sequence[float], x: Any, y: Any) -> Html:
    points = [f"M{x(edges[0]):.2f} {y(0.0):.2f}"]
    for value, right in zip(values.tolist(), edges[1:], strict=True):
        points.append(f"V{y(value):.2f}H{x(right):.2f}")
    return element("path", d="".join([*points, f"V{y(0.0):.2f}"]), class_=f"outline {one.style}")


def swatch(style: str, *, bar: bool) -> Html:
    """The sample of a colour in a legend: a bar or a line."""
    mark = (
        element("rect", x=0, y=2, width=14, height=8, class_=f"bars {style}")
        if bar
        else element("path", d="M0 6H14", class_=f"outline {style}")
    )
    return element("svg", mark, viewBox="0 0 14 12", class_="swatch", aria_hidden="true")
