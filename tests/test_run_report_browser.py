"""A run's report as a browser shows it: offline, a silent console, curves drawn, light and dark, on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from page_browser import CONTRASTS, brightness, open_page, opened_browser
from showtell import Dataset
from test_run import go, write_photos
from test_run_logs import hostile_records

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from opened_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reports of an ordinary run and of one with hostile names."""
    folder = tmp_path_factory.mktemp("runs")
    album = write_photos(folder / "album")
    go(album, folder / "plain", overrides={"log_every_steps": 1})
    go(Dataset(tuple(hostile_records())), folder / "<b>hostile", overrides={"epochs": 2})
    return {name: folder / place / "report.html" for name, place in (("plain", "plain"), ("hostile", "<b>hostile"))}


NAMES = ("plain", "hostile")


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_without_network_and_without_a_word_in_the_console(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    open_page(browser, pages[name])
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in sent if not url.startswith(("data:", "about:"))] == [pages[name].as_uri()]
    images = browser.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])")
    assert images
    assert all(complete and min(sizes) > 0 for complete, *sizes in images)


def test_every_curve_is_drawn_inside_its_chart_in_a_colour_of_the_page(browser: Any, pages: dict[str, Path]) -> None:
    open_page(browser, pages["plain"])
    charts = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => {"
        " const box = s.getBoundingClientRect();"
        " return [box.width, box.height, [...s.querySelectorAll('path.outline')].map(p => {"
        "  const b = p.getBoundingClientRect();"
        "  return [b.left - box.left, box.right - b.right, b.top - box.top, box.bottom - b.bottom, b.width,"
        "          getComputedStyle(p).stroke]; })]; })"
    )
    assert len(charts) >= 6
    for width, height, lines in charts:
        assert width > 300
        assert height > 120
        assert lines
        for *margins, drawn, stroke in lines:
            assert min(margins) >= 0
            assert drawn > 200
            assert stroke not in ("none", "rgb(0, 0, 0)")


def test_marks_of_the_axes_stay_on_the_page(browser: Any, pages: dict[str, Path]) -> None:
    for width in (380, 1200):
        open_page(browser, pages["plain"], width=width, phone=width < 500)
        ends = browser.execute_script(
            "return [...document.querySelectorAll('svg.chart text')].map(t => {"
            " const b = t.getBoundingClientRect(); return [b.left, window.innerWidth - b.right]; })"
        )
        assert min(min(pair) for pair in ends) >= 0


def test_light_and_dark_differ_and_both_can_be_read(browser: Any, pages: dict[str, Path]) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        open_page(browser, pages["plain"], scheme=scheme)
        found = browser.execute_script(CONTRASTS)
        assert len(found) > 100
        low = [each for each in found if each["contrast"] < 4.5]
        assert low == [], (scheme, low[:5])
        grounds[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert brightness(grounds["light"]) > 700
    assert brightness(grounds["dark"]) < 100


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [380, 800])
def test_nothing_is_wider_than_a_phone(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    open_page(browser, pages[name], width=width, phone=width < 500)
    seen, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner == width
    assert seen <= width
