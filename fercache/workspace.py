"""The layout of `cache/`: every folder, file name and pointer below it is defined here and nowhere else.

::

    cache/features/<dataset>/<backbone>-<fp12>.zarr   stage one; current.json names the store of the last run
    cache/thumbs/<dataset>/<backbone>-<fp12>/         small pictures of faces, if asked for
    cache/logits/<dataset>/<fp12>.h5                  out-of-fold logits; current.json names those of the last training
    cache/logits/<dataset>/imported/<name>.h5         logits made elsewhere
    cache/heads/<dataset>/<fp12>/                     the trained heads behind the logits of the same name
    cache/stack/<dataset>/<fp12>/                     stack runs
    cache/index/<dataset>.json                        facts that `check` read from the clips
    cache/photos/<dataset>/<fp12>/<clip>/             links to the photos of a clip, for data sets of still photos
    cache/weights/, cache/clips/                      downloads: pretrained CNNs, the demo's videos
    cache/run_log.json                                runs and their durations

``fp12`` are the first twelve hex digits of the fingerprint of all settings that change numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from fercache.errors import InputError
from fercache.runtime import atomic_io
from fercache.runtime.uri import Location

FEATURES, LOGITS, HEADS, STACK, PHOTOS = "features", "logits", "heads", "stack", "photos"
STAGES = (FEATURES, LOGITS, HEADS, STACK)
"""Folders with the results of a stage: one folder a data set, in it one file or folder a result."""

DOWNLOADS = ("weights", "clips")  # folders that hold nothing made from a user's clips

CURRENT = "current.json"  # pointer to the result of the last run, beside the results of a data set

FAILURES = "failures.csv"
FAILURES_OF_ANY_PART = "failures*.csv"
METRICS = "metrics.json"  # `stack` writes this file last, so a run's folder without it is unfinished

STORE_SUFFIX, WORK_SUFFIX, LOCK_SUFFIX = ".zarr", ".work", ".lock"
MAPPED_FEATURES = f"{HEADS}/*/features"  # folders of features that trainings of a data set map into memory


# A name that a pointer holds must not lead out of the folder, and must be one that a file can have.
SiblingName = Annotated[str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/\x00-\x1f\x7f\ud800-\udfff]+$")]


class CurrentLogits(msgspec.Struct, frozen=True):
    """The pointer to the logits of the last `train-heads`."""

    logits_file: SiblingName


class CurrentStore(msgspec.Struct, frozen=True):
    """The pointer to the store of the last `extract`."""

    store: SiblingName


def short(fingerprint: str) -> str:
    """Return the part of a fingerprint that names files: its first twelve hex digits."""
    return fingerprint[:12]


def store_name(backbone: str, fingerprint: str) -> str:
    """Return the name of a store of a backbone, or of imported features, with settings of this fingerprint."""
    return f"{backbone}-{short(fingerprint)}{STORE_SUFFIX}"


def features_folder(root: Location, dataset: str) -> Location:
    """Return the folder of a data set's stores, below a folder or a URL; `CURRENT` in it names the last one."""
    return root / FEATURES / dataset


@dataclass(frozen=True)
class Workspace:
    """The paths below one cache folder; it creates nothing and reads pointers only."""

    root: Path

    @classmethod
    def holding(cls, result: Path) -> Workspace:
        """Return the workspace that a result such as ``cache/logits/<dataset>/<fp12>.h5`` lies in."""
        return cls(result.parents[2])

    @property
    def weights(self) -> Path:
        """Folder of downloaded CNN weights."""
        return self.root / "weights"

    def weights_source(self, sha256: str) -> Path:
        """Return the file that names where weights with this digest were found."""
        return self.weights / f"source-{sha256[:16]}.json"

    @property
    def clips(self) -> Path:
        """Folder of the demo's videos."""
        return self.root / "clips"

    def photos(self, dataset: str) -> Path:
        """Return the folder of links to a data set's photos, one folder a clip."""
        return self.root / PHOTOS / dataset

    @property
    def run_log(self) -> Path:
        """File of runs and rates."""
        return self.root / "run_log.json"

    @property
    def indexes(self) -> Path:
        """Folder of the facts that `check` read from clips."""
        return self.root / "index"

    def index(self, dataset: str) -> Path:
        """Return the file of the facts about a data set's clips."""
        return self.indexes / f"{dataset}.json"

    def features(self, dataset: str) -> Path:
        """Return the folder of a data set's local stores."""
        return self.root / FEATURES / dataset

    def failures(self, dataset: str, name: str = FAILURES) -> Path:
        """Return the list of clips that failed in `extract`; it is local even where the features are at a URL."""
        return self.features(dataset) / name

    def thumbnails(self, store: Location) -> Path:
        """Return the folder of the thumbnails of a store's clips."""
        return self.root / "thumbs" / store.parent.name / store.name.removesuffix(STORE_SUFFIX)

    def thumbnail_folders(self) -> Iterator[tuple[Path, Path]]:
        """Yield each folder of thumbnails with the store that it belongs to."""
        for folder in sorted(path for path in self.root.glob("thumbs/*/*") if path.is_dir()):
            yield folder, self.features(folder.parent.name) / f"{folder.name}{STORE_SUFFIX}"

    def logits(self, dataset: str) -> Path:
        """Return the folder of a data set's logits."""
        return self.root / LOGITS / dataset

    def logits_file(self, dataset: str, fingerprint: str) -> Path:
        """Return the file of the logits with this fingerprint."""
        return self.logits(dataset) / f"{short(fingerprint)}.h5"

    def imported_logits(self, dataset: str) -> Path:
        """Return the folder of logits that were made elsewhere."""
        return self.logits(dataset) / "imported"

    def heads(self, dataset: str, fingerprint: str) -> Path:
        """Return the folder of the heads whose logits have this fingerprint."""
        return self.root / HEADS / dataset / short(fingerprint)

    def all_heads(self, dataset: str) -> Iterator[Path]:
        """Yield the folders of all trainings of a data set."""
        return (self.root / HEADS / dataset).glob("*")

    def stack_runs(self, dataset: str) -> Path:
        """Return the folder of a data set's stack runs."""
        return self.root / STACK / dataset

    def stack_run(self, dataset: str, fingerprint: str) -> Path:
        """Return the folder of the stack run with this fingerprint."""
        return self.stack_runs(dataset) / short(fingerprint)

    def set_current_logits_file(self, path: Path) -> None:
        """Make `path` the data set's current logits, which later stages read by default."""
        atomic_io.write_json(path.parent / CURRENT, CurrentLogits(path.name))

    def current_logits_file(self, dataset: str) -> Path:
        """Return the logits file of the last `train-heads` of this data set; raise InputError before the first."""
        pointer = self.logits(dataset) / CURRENT
        if not pointer.is_file():
            raise InputError("no heads were trained yet", where=pointer.parent, hint="run `fercache train-heads` first")
        return pointer.parent / atomic_io.read_record(pointer, CurrentLogits, 1 << 20).logits_file

    def current_logits_file_or_none(self, dataset: str) -> Path | None:
        """Return the logits file of the last `train-heads` of this data set; None before the first."""
        return self.current_logits_file(dataset) if (self.logits(dataset) / CURRENT).is_file() else None

    def trained_datasets(self) -> list[str]:
        """Return the data sets with trained heads, the one trained last at the end."""
        pointers = sorted(self.root.glob(f"{LOGITS}/*/{CURRENT}"), key=lambda path: path.stat().st_mtime_ns)
        return [path.parent.name for path in pointers]

    def results(self) -> Iterator[Path]:
        """Yield all results: stores, logits files, folders of heads, of stack runs, and of links to photos."""
        for stage in (*STAGES, PHOTOS):
            for path in sorted(self.root.glob(f"{stage}/*/*")):
                # Pointers and lists of failures describe results; a lock belongs to the result beside it.
                if path.name != CURRENT and not path.match(FAILURES_OF_ANY_PART) and path.suffix != LOCK_SUFFIX:
                    yield path

    def user_folders(self) -> list[str]:
        """Return the names of the folders that may hold something made from clips."""
        return sorted(path.name for path in self.root.glob("*") if path.is_dir() and path.name not in DOWNLOADS)


def logits_file_of(heads: Path) -> Path:
    """Return the logits file of a folder of heads; the path of a logits file is returned unchanged."""
    if heads.suffix == ".h5":
        return heads
    full = heads.resolve()
    if len(full.parents) < 3:  # too near the root of the file system to lie in a cache
        return full
    return Workspace.holding(full).logits_file(full.parent.name, full.name)


def heads_of(logits_file: Path) -> Path:
    """Return the folder of the heads behind a logits file."""
    return Workspace.holding(logits_file).heads(logits_file.parent.name, logits_file.stem)
