"""Curves over the steps of a training as inline SVG; colours come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from .report_charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axis_name, nice_step, swatch
from .report_html import Html, count, element

__all__ = ["Curve", "curves"]

_MOST_POINTS = 240


@dataclass(frozen=True)
class Curve:
    """One line: its name, its points (x rising), and which of the page's styles it has."""

    name: str
    points: Sequence[tuple[float, float]]
    style: Literal["a", "b", "r"]


def curves(
    title: str,
    lines: Sequence[Curve],
    *,
    axis: str = "step",
    unit: str = "",
    best: float | None = None,
    decimals: int | None = None,
    span: float = 0.0,
) -> Html:
    """Lines over the same steps, with a dot where the first one is at step `best`.

    Example:
        >>> figure = curves("Loss", [Curve("training", [(0, 4.0), (10, 2.0)], "a")])
        >>> "From 4 at step 0 to 2 at step 10." in figure
        True

    Points that aren't finite are left out; of many points, the means of neighbours are drawn. `axis` names what runs
    along, `unit` what goes up. Values are told with four digits, or with so many decimals; the upright axis shows at
    least `span`.
    """

    def told_of(value: float) -> str:
        return f"{value:.4g}" if decimals is None else f"{value:.{decimals}f}"

    kept = [Curve(line.name, _finite(line.points), line.style) for line in lines]
    kept = [line for line in kept if line.points]
    told = "; ".join(f"{line.name}: " * (len(kept) > 1) + _told(line.points, axis, told_of) for line in kept)
    told = told or "nothing to show yet"
    told = told[:1].upper() + told[1:]
    names = [element("li", swatch(line.style, bar=False), line.name) for line in kept]
    return element(
        "figure",
        element("figcaption", element("h3", title), element("ul", *names, class_="legend") if len(kept) > 1 else None),
        _picture(title, kept, axis, unit, best, told, span) if kept else None,
        element("p", f"{told}.", class_="note"),
        class_="plot",
    )


def _picture(
    title: str, lines: Sequence[Curve], axis: str, unit: str, best: float | None, told: str, span: float
) -> Html:
    xs = [x for line in lines for x, _ in line.points]
    drawn = [Curve(line.name, _thinned(line.points), line.style) for line in lines]
    ys = [y for line in drawn for _, y in line.points]
    mark = next(((x, y) for x, y in lines[0].points if x == best), None)
    if mark is not None:
        ys.append(mark[1])
    left, right = min(xs), max(max(xs), min(xs) + 1)
    low, high, step = _scale(min(ys), max(ys), span)

    def across(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for i in range(round((high - low) / step) + 1):
        value = low + i * step
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=up(value), y2=up(value), class_="grid"))
        parts.append(element("text", _number(value, step), x=LEFT - 6, y=up(value) + 4, text_anchor="end"))
    base = HEIGHT - BOTTOM
    every = max(1.0, nice_step((right - left) / 5))
    every = math.ceil(every)
    for i in range(math.ceil(left / every), math.floor(right / every + 1e-9) + 1):
        at = across(i * every)
        anchor = "end" if at > WIDTH - RIGHT - 12 else "middle"
        parts.append(element("text", count(i * every), x=at, y=base + 16, text_anchor=anchor))
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=base, y2=base, class_="axis"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(element("text", axis, x=middle, y=HEIGHT - 6, text_anchor="middle", class_="label"))
    if unit:
        parts.append(axis_name(LEFT - 38, TOP + (base - TOP) / 2, unit))
    for line in drawn:
        places = [f"{across(x):.2f} {up(y):.2f}" for x, y in line.points]
        # A single point is drawn as a dot: a line of no length isn't seen.
        if len(places) == 1:
            (x, y), *_ = line.points
            parts.append(element("circle", cx=across(x), cy=up(y), r=3, class_=f"dot {line.style}"))
        parts.append(element("path", d="M" + "L".join(places), class_=f"outline {line.style}"))
    if mark is not None:
        tip = element("title", f"best: {mark[1]:.4g} at {axis} {count(mark[0])}")
        parts.append(element("circle", tip, cx=across(mark[0]), cy=up(mark[1]), r=4, class_=f"dot {lines[0].style}"))
    return element(
        "svg",
        element("title", title),
        element("desc", f"{told}."),
        *parts,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=f"{title}. {told}.",
        class_="chart",
    )


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MOST_POINTS`: means of neighbours, the ends as they are."""
    if len(points) <= _MOST_POINTS:
        return list(points)
    inner, places = points[1:-1], _MOST_POINTS - 2
    ends = [round(i * len(inner) / places) for i in range(places + 1)]
    groups = [inner[a:b] for a, b in pairwise(ends)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [points[0], *means, points[-1]]


def _scale(low: float, high: float, span: float) -> tuple[float, float, float]:
    """Where the axis begins and ends, and its step; from 0 where that costs less than half of the height."""
    if low > 0 and high - low > 0.5 * high:
        low = 0.0
    if high - low < span:
        high = low + span
    elif high - low <= 1e-6 * max(abs(low), abs(high)):  # flat but for rounding
        margin = abs(high) / 10 or 1.0
        low, high = low - margin, high + margin
    step = nice_step((high - low) / 4)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return first * step, max(last, first + 1) * step, step


def _number(value: float, step: float) -> str:
    """A mark of the upright axis, short: 1500, 0.25, 5e−4."""
    if abs(value) < step / 1e6:
        return "0"
    shown = f"{value:.4g}"
    if step < 1e-3 or abs(value) >= 1e5:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        shown = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return shown.replace("-", "\u2212")


def _told(points: Sequence[tuple[float, float]], axis: str, form: Callable[[float], str]) -> str:
    (x, y), (last, end) = points[0], points[-1]
    first, final = (form(value).replace("-", "\u2212") for value in (y, end))
    if len(points) == 1:
        return f"{first} at {axis} {count(x)}"
    return f"from {first} at {axis} {count(x)} to {final} at {axis} {count(last)}"
