"""The page in a real Chromium: no error, no request, the filter filters, a timeline zooms, names are text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, errors, look, requests
from finished import ODD, finish

from fercache.viz import report

WAIT = """const done = arguments[arguments.length - 1], plots = [...document.querySelectorAll("[data-figure]")];
const wait = (n) => { const left = plots.filter((plot) => !plot.querySelector("svg.main-svg"));
  if (!left.length || n === 0) return done(plots.length - left.length);
  left[0].scrollIntoView({ behavior: "instant" });
  setTimeout(() => wait(n - 1), 50); };
wait(600);"""
"""Scrolls until every figure is drawn; gives how many are."""


@pytest.fixture(scope="module")
def preds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = finish(tmp_path_factory.mktemp("page"))
    report.make_report(made, made.parent / "report.html", made.parent / "cache")
    return made


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, preds: Path) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        found.set_script_timeout(60)
        look(found, 1280, 900, dark=False)
        found.get("about:blank")
        requests(found)
        found.get((preds.parent / "report.html").as_uri())
        yield found


def names(driver: Any) -> list[str]:
    return list(driver.execute_script(
        "return [...document.querySelectorAll('#list button span:first-child')].map((one) => one.textContent)"))


def write(driver: Any, text: str) -> None:
    from selenium.webdriver.common.by import By

    field = driver.find_element(By.ID, "filter")
    field.clear()
    field.send_keys(text + " \b")


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(driver: Any, preds: Path) -> None:
    assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"
    assert driver.execute_async_script(WAIT) == driver.execute_script(
        "return document.querySelectorAll('[data-figure]').length") >= 9
    assert driver.execute_script("return document.querySelectorAll('#timeline svg.main-svg').length") > 0
    asked = [address for address in requests(driver) if not address.startswith("data:")]
    assert asked == [(preds.parent / "report.html").as_uri()]
    assert errors(driver) == []
    held = driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert all(name.startswith("data:") for name in held)


def test_the_page_may_not_ask_even_if_it_wanted_to(driver: Any) -> None:
    said = driver.execute_async_script("""const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective), { once: true });
        fetch("http://127.0.0.1:9/").then(() => done("it went through"), () => 0);
        setTimeout(() => done("no violation was seen"), 5000);""")
    assert said == "connect-src"
    errors(driver)
    requests(driver)


def test_names_are_shown_as_they_stand(driver: Any) -> None:
    assert set(ODD) <= set(names(driver))
    for name in ODD:
        driver.execute_script("""[...document.querySelectorAll('#list button')].find((one) =>
            one.firstChild.textContent === arguments[0]).click()""", name)
        assert driver.execute_script("return document.getElementById('chosen').textContent") == name
    assert driver.execute_script("return document.querySelectorAll('script').length") == 3
    assert not driver.execute_script("return document.querySelector('main b b, h3 b, #list b')")
    assert errors(driver) == []


def test_the_filter_filters(driver: Any) -> None:
    everything = names(driver)
    write(driver, "VIDEO0001")
    assert sorted(names(driver)) == sorted(name for name in everything if "video0001" in name) != []
    write(driver, "表情")
    assert names(driver) == [ODD[2]]
    write(driver, "no such clip")
    assert names(driver) == []
    assert "0 of" in driver.execute_script("return document.getElementById('count').textContent")
    write(driver, "")
    assert names(driver) == everything


def test_the_list_begins_with_the_most_wrong(driver: Any, preds: Path) -> None:
    from fercache.results import io

    share = {rows.name: rows.wrong.sum() / (rows.label >= 0).sum()
             for rows in io.PredictionsFile(preds).clips()}
    listed = [share[name] for name in names(driver)]
    assert listed == sorted(listed, reverse=True) and len(listed) == len(share)


def test_a_timeline_zooms_under_the_mouse(driver: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    def span() -> list[float]:
        return list(driver.execute_script("return document.getElementById('timeline')._fullLayout.xaxis.range"))

    driver.execute_script("document.querySelector('#list button').click();"
                          "document.getElementById('timeline').scrollIntoView({block: 'center', behavior: 'instant'})")
    before = span()
    place = driver.find_element(By.CSS_SELECTOR, "#timeline .nsewdrag")
    wide = place.size["width"]
    ActionChains(driver).move_to_element_with_offset(place, -int(wide * .2), 0).click_and_hold().move_by_offset(
        int(wide * .2), 0).move_by_offset(int(wide * .2), 0).release().perform()
    after = span()
    assert before[0] < after[0] < after[1] < before[1]
    assert (after[1] - after[0]) / (before[1] - before[0]) == pytest.approx(.4, abs=.05)
    assert errors(driver) == []


def test_the_timeline_draws_what_was_told(driver: Any, preds: Path) -> None:
    from fercache.results import io

    classes, clips = io.PredictionsFile(preds).classes, {clip.name: clip for clip in io.PredictionsFile(preds).clips()}
    driver.execute_script("document.querySelector('#list button').click()")
    drawn = driver.execute_script("""return document.getElementById('timeline').data
        .filter((one) => one.mode === 'lines' && one.name !== 'no face').map((one) => [one.name, [...one.y]])""")
    shares = clips[names(driver)[0]].probs
    assert [name for name, _ in drawn] == list(classes)
    for place, (_, y) in enumerate(drawn):
        assert y == pytest.approx(shares[:, place].tolist(), abs=.0021)


def test_numbers_on_the_screen_are_those_of_the_metrics_file(driver: Any, preds: Path) -> None:
    said = json.loads((preds.parent / "preds.metrics.json").read_text())
    for split, scores in said["splits"].items():
        rows = driver.execute_script("""return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map((row) =>
            [...row.cells].map((cell) => cell.textContent))""", f"#table-scores-{split}")
        assert {row[0] for row in rows} == set(scores["all_frames"])
        for column, f1, accuracy, *_ in rows:
            one = scores["all_frames"][column]
            for text, name in ((f1, "macro_f1"), (accuracy, "accuracy")):
                span = (one["intervals"] or {}).get(name)
                assert text == f"{one[name]:.4f}" + (f" [{span[0]:.3f}, {span[1]:.3f}]" if span else "")
        bars = driver.execute_script("return document.getElementById(arguments[0]).data[0]", f"f1-{split}")
        final = scores["all_frames"][said["final"]["column"]]
        assert dict(zip(bars["y"], bars["x"], strict=True)) == pytest.approx(final["f1"])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_in_both_schemes(driver: Any, width: int, dark: bool) -> None:
    look(driver, width, 900, dark=dark)
    driver.execute_async_script(WAIT)
    driver.execute_async_script("setTimeout(arguments[0], 700)")
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    paper, ink = driver.execute_script("""const style = getComputedStyle(document.body);
        return [style.backgroundColor, document.querySelector('#timeline .legendtext').style.fill]""")
    assert (paper, ink) == (("rgb(21, 24, 28)", "rgb(232, 234, 237)") if dark else
                            ("rgb(255, 255, 255)", "rgb(28, 30, 33)"))
    wide = driver.execute_script("""return Math.max(...[...document.querySelectorAll('.plot svg.main-svg')].map((one) =>
        one.getBoundingClientRect().right))""")
    assert wide <= width + 1
    assert errors(driver) == []
