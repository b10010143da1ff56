"""A browser for tests of pages: offline, logging its console and every request.

Chromium is driven through chromedriver; without them the tests skip and say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_QUIET = (
    "--headless=new --disable-gpu --disable-dev-shm-usage --disable-extensions --disable-background-networking "
    "--disable-component-update --disable-sync --disable-default-apps --no-first-run --no-default-browser-check "
    "--disable-features=OptimizationHints,MediaRouter --host-resolver-rules=MAP\u00a0*\u00a0~NOTFOUND"
)


def _found(names: str) -> str | None:
    return next((path for name in names.split() if (path := shutil.which(name))), None)


def opened_browser(profile: Path) -> Iterator[Any]:
    """Headless Chromium that logs its console and every request."""
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs selenium: pip install "showtell[dev]"')
    program = _found("chromium chromium-browser google-chrome google-chrome-stable")
    driver = _found("chromedriver chromium.chromedriver")
    if program is None or driver is None:
        absent = " and ".join(n for n, p in (("a Chromium browser", program), ("chromedriver", driver)) if p is None)
        pytest.skip(f"needs {absent} to open the report with: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for switch in _QUIET.split(" "):
        options.add_argument(switch.replace("\u00a0", " "))
    options.add_argument(f"--user-data-dir={profile}")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's own rule for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        opened.set_page_load_timeout(120)
        opened.set_script_timeout(120)
        yield opened
    finally:
        opened.quit()


def open_page(browser: Any, path: Path, *, scheme: str = "light", width: int = 1200, phone: bool = False) -> None:
    """Open a report without a network and wait until it is drawn."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)  # what came before
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": phone}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(path.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.allSettled([...document.images].map(image => image.decode()))"
        ".then(() => requestAnimationFrame(() => setTimeout(done, 0)));"
    )


def brightness(colour: str) -> int:
    """The sum of the channels of a computed colour, 0..765."""
    return sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(",")))


CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = colour => {
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const [r, g, b] = channels(colour).map(c => linear(c / 255));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const ground = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((channels(colour)[3] ?? 1) > 0) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || ['TITLE', 'DESC'].includes(element.tagName.toUpperCase())) continue;
  const style = getComputedStyle(element);
  const ink = element instanceof SVGElement ? style.fill : style.color;
  const [a, b] = [luminance(ink), luminance(ground(element))];
  found.push({text: walker.currentNode.data.slice(0, 40), contrast: (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)});
}
return found;
"""
