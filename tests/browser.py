"""A real Chromium without a window and without a network, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--no-pings",
         "--hide-scrollbars", "--force-device-scale-factor=1",
         "--proxy-server=http://127.0.0.1:9")  # nothing listens there: whatever asked for a network would fail, loudly


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """Yield a driver; the test is skipped where Chromium, its driver or Selenium is not installed."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install '.[dev]')")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = selenium.ChromeService(executable_path=driver)
    found = selenium.Chrome(options=options, service=service)
    try:
        yield found
    finally:
        found.quit()


def look(driver: Any, width: int, height: int, *, dark: bool) -> None:
    """Give the page a window of that size and a colour scheme."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})


def requests(driver: Any) -> list[str]:
    """Return every address that the page has asked for since the last call."""
    import json

    found = []
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            found.append(message["params"]["request"]["url"])
    return found


def errors(driver: Any) -> list[str]:
    """Return what the page has complained of since the last call."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
