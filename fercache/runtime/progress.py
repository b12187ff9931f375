"""Progress of long work: rich bars on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

PLAIN_EVERY_S = 10.0


def format_bytes(count: int) -> str:
    """Return a number of bytes as text: ``31.2 GB``."""
    return filesize.decimal(count)


def format_duration(seconds: float) -> str:
    """Return seconds in words: ``2 h 5 min``."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


class ProgressBar:
    """The progress of one task: count its units with `advance`, name the current one with `note`."""
    # `total`: units of work, None if it is not known yet. `unit`: name of a unit, such as "frames".

    def __init__(self, title: str, total: float | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0.0
        self.text = ""
        self.started = time.monotonic()
        self._lock = threading.RLock()

    def advance(self, amount: float = 1) -> None:
        """Count `amount` units as done; thread-safe."""
        with self._lock:
            self.done += amount
            if self.total and self.done > self.total:
                self.total = None  # it was an estimate, too low: a header may state too few frames
            self.show()

    def note(self, text: str) -> None:
        """Show the current unit."""
        with self._lock:
            self.text = text
            self.show()

    def grow(self, total: float) -> None:
        """Set the total."""
        self.total = total
        self.show()

    def rate(self) -> float:
        """Return units per second since the start."""
        return self.done / max(time.monotonic() - self.started, 1e-9)

    def left(self) -> str:
        """Return the time left at the mean rate so far, as text; "" if it is not known."""
        if not self.total or not self.done:
            return ""
        return f"{format_duration(max(self.total - self.done, 0) / self.rate())} left"

    def show(self) -> None:
        """Draw the current state."""


class _PlainBar(ProgressBar):
    """A line every PLAIN_EVERY_S, for logs."""

    shown = 0.0

    def show(self) -> None:
        now = time.monotonic()
        if now - max(self.shown, self.started) >= PLAIN_EVERY_S:
            self.shown = now
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Return the state as one line of text."""
        goal = f"/{self.total:.0f}" if self.total else ""
        left = f", {left}" if (left := self.left()) else ""
        return f"{self.title}: {self.done:.0f}{goal} {self.unit}, {self.rate():.1f} {self.unit}/s{left} {self.text}"


class _RateColumn(ProgressColumn):
    """Units per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:.0f} {task.fields['unit']}/s", style="cyan")


class _RichBar(ProgressBar):
    """A rich progress bar."""

    def __init__(self, title: str, total: float | None, unit: str, bars: Progress) -> None:
        super().__init__(title, total, unit)
        self.bars, self.task = bars, bars.add_task(title, total=total, unit=unit, text="", left="")

    def show(self) -> None:
        self.bars.update(self.task, completed=self.done, total=self.total, text=self.text, left=self.left())


@contextmanager
def progress_bar(title: str, total: float | None = None, unit: str = "frames") -> Iterator[ProgressBar]:
    """Yield a progress bar that is shown on stderr until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _PlainBar(title, total, unit)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.completed:.0f}"),
               _RateColumn(), TextColumn("{task.fields[left]}"), TextColumn("{task.fields[text]}", style="dim"))
    with Progress(*columns, console=console, transient=True) as bars:
        yield _RichBar(title, total, unit, bars)
