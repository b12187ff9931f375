"""Seconds and peak memory of a stack over a book of Aff-Wild2's size: 2.8 million frames, three heads.

Told are seconds of the clock and, in brackets, seconds of the processor: on a busy machine the latter count.

    python tests/bench/bench_stack.py --small     a hundredth of it
    python tests/bench/bench_stack.py --threads 2
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from books import simulate

from fercache.config import StackConfig
from fercache.stacking import stack

FULL, SMALL = (550, 5000), (20, 1400)
"""Trials, and mean frames a trial."""


def peak_gb() -> float:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a hundredth of the size")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    trials, frames = SMALL if given.small else FULL
    held_out = trials // 5
    book = simulate(groups=trials - held_out, validation=held_out, frames=frames)
    print(f"{len(book.label):,} frames, {trials} trials, {len(book.heads)} heads; {peak_gb():.2f} GB before")
    with tempfile.TemporaryDirectory() as folder:
        started, worked = time.monotonic(), time.process_time()
        result = stack.run_stack(book, StackConfig(threads=given.threads), Path(folder))
        stacked, busy = time.monotonic(), time.process_time() - worked
        out, _ = result.save(Path(folder) / "preds.csv")
        print(f"stack {stacked - started:.0f} s ({busy:.0f} s), preds.csv ({out.stat().st_size / 2**20:.0f} MB) "
              f"{time.monotonic() - stacked:.1f} s, peak {peak_gb():.2f} GB")
        started = time.monotonic()
        assert stack.run_stack(book, StackConfig(threads=given.threads), Path(folder)).cached
        print(f"again, cached: {time.monotonic() - started:.1f} s")
    scores = result.report.splits["validation"].all_frames
    print(", ".join(f"{name} {one['macro_f1']:.3f}" for name, one in scores.items()))


if __name__ == "__main__":
    main()
