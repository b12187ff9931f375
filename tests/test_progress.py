"""The time left is told while work goes on: in a bar on a terminal, in lines elsewhere."""

from __future__ import annotations

import io
import re
import time

import pytest

from fercache.runtime import progress
from fercache.runtime.progress import format_duration, progress_bar


class Screen(io.StringIO):
    """What is written to a terminal of 100 columns."""

    def isatty(self) -> bool:
        return True


def work(bar: progress.ProgressBar) -> None:
    """Do a tenth of a work of ten times .6 s."""
    for _ in range(6):
        time.sleep(.1)
        bar.advance(10)


def test_a_terminal_shows_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar("train heads", 600, "s of work") as bar:
        work(bar)
        said = bar.left()
        bar.bars.refresh()  # type: ignore[attr-defined]
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.fullmatch(r"\d+ s left", said) and 4 <= int(said.split()[0]) < 60
    assert "train heads" in shown and said in shown


def test_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert progress.PLAIN_EVERY_S <= 60, "within the first minute"
    monkeypatch.setattr(progress, "PLAIN_EVERY_S", .3)
    with progress_bar("train heads", 600, "s of work") as bar:
        work(bar)
    assert re.search(r"train heads: \d+/600 s of work, .*, \d+ s left", capsys.readouterr().err)


def test_nothing_is_foretold_of_nothing() -> None:
    for total, done in ((None, 5.0), (10.0, 0.0)):
        bar = progress.ProgressBar("x", total, "frames")
        bar.done = done
        assert bar.left() == ""
    assert [format_duration(s) for s in (0, 59, 119, 3600, 7500)] == ["0 s", "59 s", "2 min", "1 h 0 min", "2 h 5 min"]
