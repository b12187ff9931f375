"""Runs version 0.1 and this checkout on the same input, on this machine, and compares what they write.

    python tests/safety_net.py            # demo, streams, submission, predict
    python tests/safety_net.py --quick    # without the demo (about a minute)

Both sides run as `python -m fercache` with the interpreter that runs this script, so both see the same libraries.
Nothing is compared with digests from elsewhere: floating-point results differ between processors. The script talks to
fercache through its command line and its files only, and `RENAMED` is the one place that knows what this checkout
calls by another name than 0.1 did. It ends with exit code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

ROOT = Path(__file__).resolve().parents[1]
VERSION_0_1 = "85e55ee"

RENAMED = {
    "--members": "--ensemble", "clock": "frame_table",
}
"""What 0.1 calls -> what this checkout calls, for flags, HDF5 data sets, arrays of the store and columns."""

CLASSES = ("Neutral", "Happiness", "Surprise")
TAP = "conv2d_4b"


class Side:
    """One version of fercache, in a folder of its own."""

    def __init__(self, code: Path, folder: Path, renamed: dict[str, str]) -> None:
        self.code, self.folder, self.renamed = code, folder, renamed
        (folder / "stages").mkdir(parents=True)
        (folder / "cache").mkdir()
        for name in ("weights", "clips"):  # downloads are shared with the checkout's own cache
            source = ROOT / "cache" / name
            source.mkdir(parents=True, exist_ok=True)
            (folder / "cache" / name).symlink_to(source)

    def name(self, name: str) -> str:
        """Return what this side calls something that 0.1 calls `name`."""
        return self.renamed.get(name, name)

    def run(self, *words: object) -> None:
        """Run one command; anything but exit code 0 ends the comparison."""
        command = [sys.executable, "-m", "fercache", "--cache", "cache", "--stages", "stages",
                   *(self.name(str(word)) for word in words)]
        done = subprocess.run(command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(self.code)}, text=True,
                              capture_output=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode} in {self.folder}:\n{done.stderr}")

    def store(self, dataset: str) -> dict[str, np.ndarray]:
        """Return every array of the data set's only store, by clip and 0.1's name of the array."""
        path, = (self.folder / "cache" / "features" / dataset).glob("*.zarr")
        back = {new: old for old, new in self.renamed.items()}
        group = zarr.open_group(path, mode="r")
        return {f"{clip}/{back.get(name, name)}": np.asarray(array[:])
                for clip, clip_group in group.groups() for name, array in clip_group.arrays()}

    def logits(self, dataset: str) -> dict[str, np.ndarray]:
        """Return every data set of the only file of out-of-fold logits, by 0.1's name."""
        path, = (self.folder / "cache" / "logits" / dataset).glob("*.h5")
        back = {new: old for old, new in self.renamed.items()}
        found: dict[str, np.ndarray] = {}
        with h5py.File(path) as file:
            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.shape:  # not the JSON of settings and provenance
                    found["/".join(back.get(part, part) for part in name.split("/"))] = item[()]
            file.visititems(visit)
        return found

    def table(self, name: str) -> dict[str, np.ndarray]:
        """Return a table of predictions, column by column, by 0.1's names."""
        with (self.folder / name).open(newline="") as handle:
            rows = list(csv.DictReader(handle))
        back = {new: old for old, new in self.renamed.items()}
        return {back.get(key, key): np.array([row[key] for row in rows]) for key in rows[0]}


def digest(values: np.ndarray) -> str:
    """Return shape, type and sha256 of an array."""
    data = repr(values.tolist()).encode() if values.dtype.hasobject else np.ascontiguousarray(values).tobytes()
    return f"{values.shape} {values.dtype} {hashlib.sha256(data).hexdigest()[:16]}"


def differences(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> Iterator[str]:
    """Yield a line for each array that only one side has, or that differs."""
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            yield f"{name}: only in {'0.1' if name in old else 'this checkout'}"
        elif digest(old[name]) != digest(new[name]):
            far = ""
            if old[name].shape == new[name].shape and old[name].dtype.kind == new[name].dtype.kind == "f":
                far = f", largest difference {np.abs(old[name].astype(float) - new[name].astype(float)).max():g}"
            yield f"{name}: {digest(old[name])} against {digest(new[name])}{far}"


def compare(what: str, old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> bool:
    """Print and return whether two sets of arrays are the same."""
    found = list(differences(old, new))
    print(f"{what}: {'same' if not found else 'DIFFERENT'} ({len(old)} arrays)", *found[:20], sep="\n    ", flush=True)
    return not found


def demo(sides: list[Side]) -> Iterator[bool]:
    """Run the demo's three steps on both sides."""
    for side in sides:
        side.run("extract", "--dataset", "demo")
        side.run("train-heads", "--dataset", "demo")
        side.run("stack", "--dataset", "demo", "--out", "demo.csv")
    yield compare("demo, store", *(side.store("demo") for side in sides))
    yield compare("demo, logits", *(side.logits("demo") for side in sides))
    yield compare("demo, predictions", *(side.table("demo.csv") for side in sides))


def streams(sides: list[Side], folder: Path) -> Iterator[bool]:
    """Run 12 trials of crops through the three stages, a submission and a prediction on both sides."""
    sys.path.insert(0, str(ROOT / "tests"))
    from streams import write_clip, write_set

    made = write_set(folder / "set", train=9, test=3, frames=36, seed=4)
    rng = np.random.default_rng(11)
    write_clip(folder / "new_clip", rng.integers(0, 3, 30), rng)
    write_template(folder)
    data = ["--clips", made / "clips.csv", "--labels", made / "labels.csv", "--classes", ",".join(CLASSES)]
    for side in sides:
        side.run("extract", *data, "--taps", TAP)
        side.run("train-heads", *data, "--taps", TAP, "--heads", "frame,gru,transformer", "--folds", 3, "--members", 2,
                 "--epochs", 4, "--seed", 3)
        side.run("stack", *data, "--bootstrap", 50, "--out", "streams.csv")
        side.run("submit", "--template", folder / "template.txt", "--preds", "streams.csv", "--map",
                 "names", "--rows", "template", "--edition", "abaw5", "--out", "submission.txt")
        side.run("predict", folder / "new_clip", "--out", "predicted")
    name = next((sides[0].folder / "cache" / "features").iterdir()).name
    yield compare("streams, store", *(side.store(name) for side in sides))
    yield compare("streams, logits", *(side.logits(name) for side in sides))
    yield compare("streams, predictions", *(side.table("streams.csv") for side in sides))
    yield compare("submission", *({"file": np.frombuffer((side.folder / "submission.txt").read_bytes(), np.uint8)}
                                  for side in sides))
    yield compare("predict", *(side.table("predicted/preds.csv") for side in sides))


def write_template(folder: Path) -> None:
    """Write an organisers' file of ABAW5's form for the three test trials."""
    rows = [f"s4-{trial:02d}/{frame:05d}.jpg,\n" for trial in (9, 10, 11) for frame in range(1, 37)]
    header = "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
    (folder / "template.txt").write_text(header + "".join(rows))


def main() -> int:
    """Return 0 if everything agrees, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the demo")
    parser.add_argument("--ref", default=VERSION_0_1, help="the version to compare with [default: %(default)s]")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to compare [default: this one]")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, kept afterwards")
    options = parser.parse_args()
    work = options.keep or Path(tempfile.mkdtemp(prefix="fercache-net-"))
    old_code = work / "code-0.1"
    old_code.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", options.ref, "fercache"], check=True,
                             capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(old_code)], input=archive, check=True)
    sides = [Side(old_code, work / "old", {}), Side(options.tree.resolve(), work / "new", RENAMED)]
    same = list(streams(sides, work)) + ([] if options.quick else list(demo(sides)))
    if not options.keep:
        shutil.rmtree(work)
    print("everything agrees" if all(same) else "the two differ")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
