"""Seconds and peak memory of a first and a second check over 2.9 million crops: 560 folders of 5,200 linked pictures.

    python tests/bench/bench_index.py --full
    python tests/bench/bench_index.py             a hundredth of it

The tree is made in a temporary folder and removed; it needs 560 inodes, since the pictures are hard links, and about
150 MB of directory entries.
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

from trees import annotate, crops

from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import load_dataset
from fercache.diagnostics.check import check_dataset
from fercache.diagnostics.check_issues import SETTLED_NS

FULL, SMALL = (560, 5200), (56, 520)
"""Folders, and crops in each."""


def make(root: Path, folders: int, names: int) -> None:
    """Make the tree: every seventh crop of every tenth folder is missing."""
    for i in range(folders):
        numbers = [n for n in range(1, names + 1) if i % 10 or n % 7]
        crops(root / "cropped_aligned" / f"video{i}", numbers)
        annotate(root, f"video{i}", [n % 7 for n in range(names)], "Validation_Set" if i % 5 == 0 else "Train_Set")


def main() -> None:
    """Print one line a step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the stated size, not a hundredth of it")
    folders, names = FULL if parser.parse_args().full else SMALL
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "s", Path(folder) / "c"
        started = time.monotonic()
        make(root, folders, names)
        print(f"{folders} folders, {folders * names:,} numbers; made in {time.monotonic() - started:.0f} s")
        time.sleep(SETTLED_NS / 1e9)
        for turn in ("first", "second"):
            started = time.monotonic()
            dataset = load_dataset(DatasetConfig(dataset="affwild2", root=str(root)), cache)
            loaded = time.monotonic() - started
            report = check_dataset(dataset, ExtractConfig(), cache)
            pictures = sum(split.frames - split.no_crop for split in report.splits.values())
            print(f"{turn} check: {report.seconds:.2f} s after {loaded:.2f} s of loading labels; {pictures:,} crops, "
                  f"{report.lengths[0].missing:,} missing, {report.clips_read} folders read, "
                  f"{report.clips_known} known")
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"index {next((cache / 'index').iterdir()).stat().st_size / 1e6:.2f} MB, peak memory {peak_mb:.0f} MB "
              "(torch, imported for the taps' shapes, included)")


if __name__ == "__main__":
    main()
