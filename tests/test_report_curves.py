"""The curves of a run's report lie where their numbers say, whatever the numbers are."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from showtell.evaluation.report_curves import Curve, curves
from test_report import Page


def drawn(page: Page, place: int = 0) -> list[tuple[float, float]]:
    """The corners of a line, in pixels."""
    path = page.all("path", "outline")
    in_chart = [e for e in path if "figcaption" not in e["inside"]]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", in_chart[place]["@d"])]


def marks(page: Page) -> list[tuple[float, str]]:
    """(height, text) of the marks of the upright axis, from below."""
    found = [(float(e["@y"]) - 4, e["text"]) for e in page.all("text") if e.get("@text-anchor") == "end"]
    return [(y, text) for y, text in found if y <= 168]


def show(*lines: Curve, **options: Any) -> Page:
    return Page(curves("Loss", lines, **options))


def test_a_point_lies_where_the_marks_of_the_axis_say() -> None:
    points = [(0, 1.0), (10, 3.0), (40, 2.0)]
    page = show(Curve("training", points, "a"))
    (low, first), *_, (high, last) = marks(page)
    for (x, y), (across, up) in zip(points, drawn(page), strict=True):
        assert across == pytest.approx(46 + x / 40 * (420 - 46 - 8), abs=0.01)
        share = (y - float(first)) / (float(last) - float(first))
        assert up == pytest.approx(low + share * (high - low), abs=0.02)
    assert page.texts("p", "note") == ["From 1 at step 0 to 2 at step 40."]


def test_two_lines_share_their_axes_and_have_a_legend() -> None:
    page = show(Curve("training", [(0, 4.0), (10, 2.0)], "a"), Curve("validation", [(10, 2.0)], "b"))
    assert page.texts("li") == ["training", "validation"]
    assert drawn(page, 0)[-1] == drawn(page, 1)[0]
    assert page.texts("p", "note") == ["Training: from 4 at step 0 to 2 at step 10; validation: 2 at step 10."]
    assert len(page.all("circle", "dot")) == 1  # a line of one point would not be seen


def test_the_best_step_has_a_dot_on_its_point() -> None:
    page = show(Curve("CIDEr-D", [(0, 0.1), (10, 0.5), (20, 0.4)], "b"), best=10.0)
    (dot,) = page.all("circle", "dot")
    place = (float(dot["@cx"]), float(dot["@cy"]))
    assert place == pytest.approx(drawn(page)[1], abs=0.1)
    assert not show(Curve("CIDEr-D", [(0, 0.1), (10, 0.5)], "b"), best=5.0).all("circle")


@pytest.mark.parametrize(
    "points",
    [
        [(0, 0.0), (1, 0.0)],
        [(5, 7.25)],
        [(0, -3.0), (1, -3.0 - 1e-12)],
        [(0, 1e-300), (1, 2e-300)],
        [(0, 1e12), (1, -1e12)],
        [(0, 1e-13), (100, 3e-9)],
        [(0, math.nan), (1, 2.0), (2, math.inf), (3, 1.0)],
        [(i, math.sin(i)) for i in range(5_000)],
    ],
)
def test_any_numbers_are_drawn_inside_the_picture(points: list[tuple[float, float]]) -> None:
    page = show(Curve("training", points, "a"))
    corners = drawn(page)
    assert corners
    assert all(46 <= x <= 412.01 and 9.99 <= y <= 168.01 for x, y in corners)
    assert 2 <= len(marks(page)) <= 12
    assert "nan" not in page.source.replace("nance", "")
    assert len(corners) <= 240


def test_of_many_points_the_ends_are_kept_and_the_mean_too() -> None:
    points = [(float(i), float(i % 2)) for i in range(10_000)]
    corners = drawn(show(Curve("training", points, "a")))
    assert corners[0] == (46.0, 168.0)
    assert corners[-1] == (412.0, 10.0)
    heights = [y for _, y in corners[1:-1]]
    assert sum(heights) / len(heights) == pytest.approx((168 + 10) / 2, abs=1)


def test_marks_of_small_numbers_stay_short_and_scores_are_not_blown_up() -> None:
    rates = [text for _, text in marks(show(Curve("rate", [(0, 0.0), (9, 0.0012)], "a")))]
    assert rates == ["0", "5e\u22124", "1e\u22123", "1.5e\u22123"]
    page = show(Curve("BLEU-4", [(0, 1e-14), (9, 6e-10)], "b"), decimals=3, span=0.01)
    assert page.texts("p", "note") == ["From 0.000 at step 0 to 0.000 at step 9."]
    assert [text for _, text in marks(page)] == ["0", "0.0025", "0.005", "0.0075", "0.01"]


def test_nothing_to_show_is_said() -> None:
    page = show(Curve("training", [(0, math.nan)], "a"))
    assert page.texts("p", "note") == ["Nothing to show yet."]
    assert not page.all("svg")
