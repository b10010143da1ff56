"""The report as a browser shows it: offline, a silent console, every picture there, light and dark, on a phone.

Chromium is driven through chromedriver; without them these tests skip and say so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from page_browser import CONTRASTS, brightness, open_page, opened_browser
from report_examples import attending_captioner, photo_files, result
from showtell.evaluation import ScoredPhoto, score_predictions
from showtell.evaluation.report import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield from opened_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of every kind: one result with attention, two side by side, hostile and empty-handed ones."""
    folder = tmp_path_factory.mktemp("reports")
    files = photo_files(folder, 40)
    one, other = result("ours", 40, images=files), result("theirs", 40, images=files)
    found = {name: folder / f"{name}.html" for name in ("one", "two", "hostile", "single")}
    write_report(found["one"], one, captioner=attending_captioner())
    write_report(found["two"], one, other=other, captioner=attending_captioner())
    texts = (
        '<script>document.title = "broken"</script><img src="https://example.org/x.png" onerror="alert(1)">',
        "w" * 5000,
        "\u202egnirts a \u2067 half \ud800",
        "\u0643\u0644\u0628 " * 40,
        "Z" + "\u0337" * 500,
    )
    photos = [ScoredPhoto(text[:200], text, (text, "a dog")) for text in texts]
    hostile, long = score_predictions(texts[0] * 3, photos), score_predictions("w" * 500, photos[::-1])
    write_report(found["hostile"], hostile, other=long, force=True)
    write_report(found["single"], result("alone", 1, images=files))
    return found


NAMES = ("one", "two", "hostile", "single")


@pytest.mark.parametrize("name", NAMES)
def test_the_report_opens_without_network_and_without_a_word_in_the_console(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    open_page(browser, pages[name])
    assert browser.get_log("browser") == []
    assert not browser.title.startswith("broken")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert pages[name].as_uri() in sent  # the log does see requests
    assert [url[:200] for url in sent if not url.startswith(("file:", "data:", "about:"))] == []
    assert [url for url in sent if url.startswith("file:")] == [pages[name].as_uri()]


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_complete_and_visible(browser: Any, pages: dict[str, Path], name: str) -> None:
    open_page(browser, pages[name])
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight, i.clientWidth])"
    )
    assert len(images) == {"one": 18, "two": 18, "hostile": 0, "single": 1}[name]
    assert all(complete and min(sizes) > 0 for complete, *sizes in images)
    # The pictures below the maps of attention are used from one place: each use must have the size of its picture.
    uses = browser.execute_script(
        "return [...document.querySelectorAll('use')].map(u => [u.getBoundingClientRect().width, u.getBBox().width])"
    )
    assert bool(uses) is (name in ("one", "two"))
    assert all(shown > 20 and own == 32 for shown, own in uses)
    heat = browser.execute_script(
        "return [...document.querySelectorAll('.heat path')].map(p => p.getBoundingClientRect().width)"
    )
    assert all(width > 0 for width in heat)
    assert bool(heat) is bool(uses)


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_charts_are_drawn(browser: Any, pages: dict[str, Path], name: str) -> None:
    open_page(browser, pages[name])
    charts = browser.execute_script(
        "return [...document.querySelectorAll('svg.chart')].map(s => {"
        " const box = s.getBoundingClientRect();"
        " const bars = [...s.querySelectorAll('rect')].map(r => r.getBoundingClientRect());"
        " return [box.width, box.height, bars.length, Math.max(...bars.map(b => b.height)),"
        "         Math.min(...bars.map(b => b.width)), getComputedStyle(s.querySelector('.bars')).fill]; })"
    )
    assert len(charts) == 4
    for width, height, bars, tallest, narrowest, fill in charts:
        assert width > 300
        assert height > 120
        assert bars > 2
        assert tallest > 60
        assert narrowest > 1
        assert fill not in ("none", "rgb(0, 0, 0)")  # the style sheet counts


@pytest.mark.parametrize("width", [380, 1200])
def test_the_signature_is_copied_as_one_line_however_it_is_broken(
    browser: Any, pages: dict[str, Path], width: int
) -> None:
    open_page(browser, pages["single"], width=width)
    copied = browser.execute_script(
        "getSelection().selectAllChildren(document.querySelector('.signature code'));return getSelection().toString();"
    )
    assert copied == str(result("alone", 1).signature)


def test_light_and_dark_differ_and_both_can_be_read(browser: Any, pages: dict[str, Path]) -> None:
    """The contrast of every piece of text with the ground it really stands on, as the browser computes colours."""
    grounds = {}
    for scheme in ("light", "dark"):
        for name in ("one", "two"):
            open_page(browser, pages[name], scheme=scheme)
            found = browser.execute_script(CONTRASTS)
            assert len(found) > 200
            low = [each for each in found if each["contrast"] < 4.5]
            assert low == [], (scheme, name, low[:5])
            grounds[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert brightness(grounds["light"]) > 700
    assert brightness(grounds["dark"]) < 100


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [380, 800])
def test_nothing_is_wider_than_a_phone(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    open_page(browser, pages[name], width=width, phone=width < 500)
    seen, inner = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert inner == width  # a page that doesn't fit is laid out wider than the phone
    assert seen <= width
    # What scrolls or clips its content may hold what is wider; of the others nothing reaches beyond the edge.
    beyond = browser.execute_script(
        "const inside = e => e.parentElement.closest('.wide, .card');"
        "return [...document.querySelectorAll('main *')].filter(e => !inside(e) && "
        "e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 120))"
    )
    assert beyond == []
    if name in ("one", "two"):  # with ordinary names even the tables fit
        wide = "return [...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth)"
        assert max(browser.execute_script(wide)) <= 1


def test_a_printed_report_is_light_and_shows_the_maps_that_are_closed_on_a_dark_screen(
    browser: Any, pages: dict[str, Path]
) -> None:
    open_page(browser, pages["one"], scheme="dark")
    look = (
        "document.querySelectorAll('details').forEach(each => { each.open = false; });"
        "return [getComputedStyle(document.body).color, CSS.supports('selector(::details-content)'),"
        "  document.querySelector('.maps').checkVisibility({contentVisibilityProperty: true})]"
    )
    on_screen, can, seen = browser.execute_script(look)
    assert brightness(on_screen) > 600
    assert not seen
    feature = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": [feature]})
    on_paper, _, seen = browser.execute_script(look)
    assert brightness(on_paper) < 150
    assert seen is can  # a browser of before 2025 prints the details that are open
