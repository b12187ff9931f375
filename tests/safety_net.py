"""Runs version 0.1 and this checkout on the same input, on this machine, and compares what they write.

    python tests/safety_net.py            # streams, submission, predict, demo (about six minutes)
    python tests/safety_net.py --quick    # without the demo (about two minutes)

Both sides run as `python -m fercache` with the interpreter that runs this script, so both see the same libraries.
Nothing is compared with digests from elsewhere: floating-point results differ between processors. The script talks to
fercache through its command line and its files only, and `RENAMED` is the one place that knows what this checkout
calls by another name than 0.1 did. It ends with exit code 1 if anything differs or a command fails, and then keeps its
folder.
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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from streams import write_clip, write_set

ROOT = Path(__file__).resolve().parents[1]
VERSION_0_1 = "85e55ee"

RENAMED: dict[str, dict[str, str]] = {
    # Commands, flags and their values; a recipe is named after its command.
    "words": {"--final": "--select", "smooth": "smoothed-mean", "blend": "geometric-mean"},
    "keys": {"members": "ensemble"},     # recipe keys
    "heads": {},                         # heads: "gru"
    "arrays": {"clock": "frame_table"},  # arrays of a clip in the store, or one of their columns: "clock/valid"
    "datasets": {},                      # HDF5 data sets or groups of the logits: "trial", "trial/offsets"
    "columns": {},                       # columns of predictions: "time_s"
    "paths": {},                         # folders of the cache that both sides share: "weights"
}
"""What 0.1 calls -> what this checkout calls, or "" for what this checkout does not have on purpose.

The words are translated on the way in; the other names are translated back, so that what is printed is 0.1's name.
"""

CLASSES = ("Neutral", "Happiness", "Surprise")
TAP = "conv2d_4b"
CANDIDATES = ("frame", "gru", "mean")  # `predict` follows the last one
"""Final columns to compare. The learned ones are left out: on purpose, 0.2 fits no chain and has one width for all
classes, and its `stack` may be a mean with `logistic`; `bench/bench_candidates.py` compares their scores.
The demo (without --quick) differs on purpose too: its boxes are interpolated without regions of interest."""
Arrays = dict[str, np.ndarray]


class Side:
    """One version of fercache, in a folder of its own."""

    def __init__(self, code: Path, folder: Path, renamed: Mapping[str, Mapping[str, str]]) -> None:
        self.code, self.folder, self.renamed = code, folder, renamed
        self.environment = {**os.environ, "PYTHONPATH": str(code)}
        (folder / "stages").mkdir(parents=True)
        (folder / "cache").mkdir()
        for name in ("weights", "clips"):  # downloads are shared with the checkout's own cache
            source = ROOT / "cache" / name
            source.mkdir(parents=True, exist_ok=True)
            (folder / "cache" / self.name("paths", name)).symlink_to(source)
        self.check_code()

    def check_code(self) -> None:
        """Stop if this side would run another version: an installed fercache would make both sides one."""
        asked = "import fercache; print(fercache.__file__)"
        found = subprocess.run([sys.executable, "-c", asked], cwd=self.folder, env=self.environment, text=True,
                               capture_output=True, check=True).stdout.strip()
        if not Path(found).resolve().is_relative_to(self.code.resolve()):
            raise SystemExit(f"{self.code} was to run, but Python imports {found}")

    def name(self, kind: str, name: str) -> str:
        """Return what this side calls something that 0.1 calls `name`."""
        return self.renamed.get(kind, {}).get(name, name)

    def old_name(self, kind: str, name: str) -> str:
        """Return what 0.1 calls something that this side calls `name`."""
        return old_name(name, self.renamed.get(kind, {}))

    def recipe(self, command: str, **settings: object) -> None:
        """Write the recipe of a command."""
        if self.renamed and command == "train-heads":
            settings["init"] = "scratch"  # 0.1 knows no other beginning
        lines = [f"{self.name('keys', key)} = {value!r}\n" for key, value in settings.items()]
        (self.folder / "stages" / f"{self.name('words', command)}.toml").write_text("".join(lines))

    def run(self, *words: object) -> Path:
        """Run one command; return the path in its last line on stdout. Any exit code but 0 ends the comparison."""
        command = [sys.executable, "-m", "fercache", "--cache", "cache", "--stages", "stages",
                   *(self.name("words", str(word)) for word in words)]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, text=True, capture_output=True,
                              check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode} in {self.folder}:\n{done.stderr}")
        path = self.folder / (done.stdout.strip().splitlines() or ["-"])[-1].strip()
        if not path.exists():
            raise SystemExit(f"{' '.join(command)} printed no path as its last line, but:\n{done.stdout}")
        return path

    def store(self, path: Path) -> Arrays:
        """Return every array of every clip of a store, an array with named columns also column by column."""
        found: Arrays = {}
        for clip, group in zarr.open_group(path, mode="r").groups():
            for name, array in group.arrays():
                values = np.asarray(array[:])
                columns = list(array.attrs.get("columns", []))
                if columns:  # the frame table: by column, as its columns may be renamed one by one
                    found |= {f"{clip}/{self.old_name('arrays', f'{name}/{column}')}": values[:, i]
                              for i, column in enumerate(columns)}
                else:
                    found[f"{clip}/{self.old_name('arrays', name)}"] = values
        return found

    def logits(self, path: Path) -> Arrays:
        """Return every data set of a file of logits; those of a head trial by trial."""
        found: Arrays = {}
        with h5py.File(path) as file:
            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset) and item.shape:  # not the JSON of settings and provenance
                    found[self.old_name("datasets", name)] = item[()]
            file.visititems(visit)
        trials, offsets = found["trial/trials"], found["trial/offsets"]
        for name in [name for name in found if name.startswith("logits/")]:
            head, values = self.old_name("heads", name.removeprefix("logits/")), found.pop(name)
            found |= {f"logits/{head}/{trial.decode()}": values[offsets[i]:offsets[i + 1]]
                      for i, trial in enumerate(trials)}
        return found

    def table(self, path: Path) -> Arrays:
        """Return a table of predictions, column by column; values as they are written."""
        with path.open(newline="") as handle:
            header, *rows = csv.reader(handle)
        return {self.old_name("columns", name): np.array([row[i] for row in rows]) for i, name in enumerate(header)}


def old_name(name: str, renamed: Mapping[str, str]) -> str:
    """Return 0.1's name of `name`, or that of the longest folder above it that was renamed, and the rest as it is."""
    back = {new: old for old, new in renamed.items() if new}
    parts = name.split("/")
    for many in range(len(parts), 0, -1):
        start = "/".join(parts[:many])
        if start in back:
            return "/".join([back[start], *parts[many:]])
    return name


def digest(values: np.ndarray) -> str:
    """Return shape, type and sha256 of an array."""
    data = repr(values.tolist()).encode() if values.dtype.hasobject else np.ascontiguousarray(values).tobytes()
    return f"{values.shape} {values.dtype} {hashlib.sha256(data).hexdigest()[:16]}"


def differences(old: Arrays, new: Arrays) -> Iterator[str]:
    """Yield a line for each array that only one side has, or that differs."""
    for name in sorted({*old, *new}):
        if name not in old or name not in new:
            yield f"{name}: only in {'0.1' if name in old else 'this checkout'}"
        elif digest(old[name]) != digest(new[name]):
            far = ""
            if old[name].shape == new[name].shape and old[name].dtype.kind == new[name].dtype.kind == "f":
                far = f", largest difference {np.abs(old[name].astype(float) - new[name].astype(float)).max():g}"
            yield f"{name}: {digest(old[name])} against {digest(new[name])}{far}"


def left_out(arrays: Arrays, renamed: Mapping[str, str]) -> Arrays:
    """Return the arrays without those that this checkout does not have on purpose; a clip's name may come first."""
    gone = {name for name, new in renamed.items() if not new}
    return {name: values for name, values in arrays.items() if not gone & {name, name.partition("/")[2]}}


def compare(what: str, old: Arrays, new: Arrays, least: int) -> bool:
    """Print and return whether two sets of arrays are the same and hold at least as many as the input must give."""
    found = list(differences(old, new))
    if len(old) < least:
        found.append(f"only {len(old)} arrays, at least {least} were expected: the comparison looks at too little")
    if not found:
        print(f"{what}: same ({len(old)} arrays)", flush=True)
        return True
    more = [f"... and {len(found) - 20} more"] if len(found) > 20 else []
    print(f"{what}: DIFFERENT: {len(found)} of {len({*old, *new})}", *found[:20], *more, sep="\n    ", flush=True)
    return False


def compare_tables(what: str, sides: list[Side], paths: list[Path]) -> bool:
    """Compare two tables of predictions, a path for each side."""
    old, new = (side.table(path) for side, path in zip(sides, paths, strict=True))
    return compare(what, left_out(old, RENAMED["columns"]), new, 6)


def compare_stages(what: str, sides: list[Side], paths: list[list[Path]], clips: int, taps: int, heads: int,
                   ) -> Iterator[bool]:
    """Compare what the three stages wrote: a list of store, logits and predictions for each side."""
    stores, logits, tables = (list(found) for found in zip(*paths, strict=True))
    old, new = (side.store(path) for side, path in zip(sides, stores, strict=True))
    yield compare(f"{what}, store", left_out(old, RENAMED["arrays"]), new, clips * (taps + 1))
    old, new = (side.logits(path) for side, path in zip(sides, logits, strict=True))
    yield compare(f"{what}, logits", left_out(old, RENAMED["datasets"]), new, clips * heads)
    yield compare_tables(f"{what}, predictions", sides, tables)


def demo(sides: list[Side]) -> Iterator[bool]:
    """Run the demo's three steps on both sides."""
    paths = []
    for side in sides:
        side.recipe("train-heads")
        paths.append([side.run("extract", "--dataset", "demo"), side.run("train-heads", "--dataset", "demo"),
                      side.run("stack", "--dataset", "demo", "--final", "mean", "--out", "demo.csv")])
    yield from compare_stages("demo", sides, paths, clips=6, taps=3, heads=3)


def streams(sides: list[Side], folder: Path) -> Iterator[bool]:
    """Run 12 trials of crops through the three stages, a submission and a prediction on both sides."""
    made = write_set(folder / "set", train=9, test=3, frames=36, seed=4)
    rng = np.random.default_rng(11)
    write_clip(folder / "new_clip", rng.integers(0, 3, 30), rng)
    write_template(folder / "template.txt")
    data = ["--clips", made / "clips.csv", "--labels", made / "labels.csv", "--classes", ",".join(CLASSES)]
    paths, candidates, submissions, predicted = [], [], [], []
    for side in sides:
        heads = ",".join(side.name("heads", head) for head in ("frame", "gru", "transformer"))
        side.recipe("train-heads", members=2, epochs=4, seed=3)
        paths.append([side.run("extract", *data, "--taps", TAP),
                      side.run("train-heads", *data, "--taps", TAP, "--heads", heads, "--folds", 3),
                      side.run("stack", *data, "--bootstrap", 50, "--seed", 3, "--final", "mean", "--out",
                                "streams.csv")])
        candidates.append([side.run("stack", *data, "--bootstrap", 0, "--seed", 3, "--final", name, "--out",
                                    f"streams-{name}.csv") for name in CANDIDATES])
        submissions.append(side.run("submit", "--template", folder / "template.txt", "--preds", "streams.csv", "--map",
                                    "names", "--rows", "template", "--edition", "abaw5", "--out", "submission.txt"))
        predicted.append(side.run("predict", folder / "new_clip", "--out", "predicted"))
    yield from compare_stages("streams", sides, paths, clips=12, taps=1, heads=3)
    for name, *found in zip(CANDIDATES, *candidates, strict=True):
        yield compare_tables(f"streams, {name}", sides, found)
    yield compare("submission", *({"bytes": np.frombuffer(path.read_bytes(), np.uint8)} for path in submissions), 1)
    yield compare_tables("predict", sides, predicted)


def unpack(ref: str, folder: Path) -> Path:
    """Write the package as it was at a commit into a new folder, and return the folder."""
    folder.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", ref, "fercache"], check=True,
                             capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def write_template(path: Path) -> None:
    """Write an organisers' file of ABAW5's form for the three test trials."""
    rows = [f"s4-{trial:02d}/{frame:05d}.jpg,\n" for trial in (9, 10, 11) for frame in range(1, 37)]
    header = "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
    path.write_text(header + "".join(rows))


def main() -> int:
    """Return 0 if everything agrees, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the demo")
    parser.add_argument("--ref", default=VERSION_0_1, help="the version to compare with [default: %(default)s]")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to compare [default: this one]")
    parser.add_argument("--keep", type=Path, help="an empty folder to work in, kept afterwards")
    options = parser.parse_args()
    work = (options.keep or Path(tempfile.mkdtemp(prefix="fercache-net-"))).resolve()
    old_code = unpack(options.ref, work / "code-0.1")
    sides = [Side(old_code, work / "old", {}), Side(options.tree.resolve(), work / "new", RENAMED)]
    same = list(streams(sides, work)) + ([] if options.quick else list(demo(sides)))
    if all(same) and not options.keep:
        shutil.rmtree(work)
    print("everything agrees" if all(same) else f"the two differ; what they wrote is in {work}")
    return 0 if all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
