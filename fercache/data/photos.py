"""Data sets of still photos: FER2013 as it is downloaded, and folders with one folder of photos a class."""
# Photos have no clock. Some hundred of them are stored as one clip of kind "photos", whose frames are an hour apart, so
# that no window in seconds ever joins two photos. Copies of a photo are always in one clip, and a clip is a group: no
# fold has a photo on one side and its copy on the other.

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fercache.config import DatasetConfig
from fercache.data import tables
from fercache.data.base import SEVEN, UNKNOWN, Dataset, Issue, Split, Trial, cache_name
from fercache.data.labels import SETS, canonical_class_name, index_by_name, map_class_names
from fercache.data.table import SPLITS
from fercache.errors import InputError, shorten_list
from fercache.media.pictures import is_picture
from fercache.runtime import atomic_io
from fercache.workspace import LOCK_SUFFIX, Workspace, short

log = logging.getLogger(__name__)

PHOTOS_PER_CLIP = 256
"""Photos of one clip in the store, the last of a split excepted: few enough to fit into one chunk of rows."""

FER2013_SPLITS: dict[str, Split] = {
    "training": "train", "train": "train", "publictest": "validation", "validation": "validation",
    "privatetest": "test", "test": "test"}
"""Split of each part of FER2013, by the column ``Usage`` or by the name of a folder or the beginning of a file's name.

Kaggle's folder form calls both test parts together "test"; there the file names tell them apart.
"""

FER_PLUS_COLUMNS = (*map(str.lower, SEVEN), "contempt", "unknown", "NF")
"""Votes of FER+ (Barsoum et al. 2016, arXiv 1608.01041); a majority for one of the last three is no label."""

TABLE_NAMES = ("fer2013.csv", "icml_face_data.csv")
FER_PLUS_NAME = "fer2013new.csv"
COPIES = "-copies-"  # part of the name of a clip whose photos are copies of photos in another split
STREAMS_RECORD = ".made_of_fer2013.json"  # file in the folder of streams that are made of FER2013's photos
SIDE_PX = 48  # width and height of FER2013's photos


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One labelled photo."""

    name: str
    label: int  # index into the classes, -1 without a label
    split: Split
    file: Path | None = None  # the picture, or None where its bytes are in `data`
    data: bytes = b""  # (48, 48) uint8 gray pixels as bytes, for photos that come from a table

    def digest(self) -> bytes:
        """Return a hash of the photo's bytes: equal for copies."""
        return hashlib.sha256(self.data if self.file is None else self.file.read_bytes()).digest()


def read_fer2013(config: DatasetConfig, cache: Path) -> Dataset:
    """Return FER2013: its training part as train, PublicTest as validation, PrivateTest as test.

    Reads ``fer2013.csv`` or ``icml_face_data.csv`` (columns emotion, pixels, Usage), or folders of photos by split and
    class. Beside a table, ``fer2013new.csv`` replaces the labels by the majority of FER+'s votes; photos without a
    majority for one of the seven classes then have no label. `cache`: the cache folder, below which links to the photos
    (from a table: the photos themselves) are written.
    """
    root = _root(config, "fer2013")
    table = root if root.is_file() else next((root / name for name in TABLE_NAMES if (root / name).is_file()), None)
    if table is not None:
        photos = list(_table_photos(table, _fer_plus_labels(table.with_name(FER_PLUS_NAME))))
    else:
        photos = [photo for photo in _folder_photos(root, _pictures(root), SEVEN) if photo.label >= 0]
    if not photos:
        raise InputError("no photo of FER2013 is here", where=root,
                         hint="name the folder that holds fer2013.csv, or train/<class>/*.jpg and test/<class>/*.jpg")
    return _dataset("fer2013", root, SEVEN, photos, config, cache, metric="accuracy")


def read_photos(config: DatasetConfig, cache: Path) -> Dataset:
    """Return a folder of photos by class, with folders of splits above the classes where there are some.

    With ``source = "crops"`` every picture is a face, and some hundred are one clip. Otherwise faces are detected: then
    each photo is a clip of its own, because the main face of one photo says nothing about that of the next.
    """
    root = _root(config, "photos")
    pictures = list(_pictures(root))
    names = sorted({path.parent.name for path in pictures})
    seven = index_by_name(SEVEN)
    common = {SEVEN[seven[name]] for name in map(canonical_class_name, names) if name in seven}
    classes = config.classes or (*(name for name in SEVEN if name in common),
                                 *(name for name in names if canonical_class_name(name) not in seven))
    if len(classes) < 2:
        raise InputError(f"photos of {len(classes)} classes", where=root,
                         hint="put the photos of each class into a folder of its own: happy/1.jpg, sad/2.jpg")
    photos = list(_folder_photos(root, pictures, classes))
    return _dataset("photos", root, classes, photos, config, cache, metric="macro_f1",
                    one_each=config.source != "crops")


def is_fer2013(root: Path) -> bool:
    """Return whether a path is a table of FER2013, a folder with one, or its folder form, by the names of its files."""
    if root.is_file():
        return root.name in TABLE_NAMES
    folder_form = next((root / "train" / "angry").glob("Training_*.*"), None)
    return folder_form is not None or any((root / name).is_file() for name in TABLE_NAMES)


def fer2013_pictures(dataset: Dataset) -> str:
    """Return why a data set's pictures are FER2013's, "" if nothing shows that they are.

    Recognized are the reader `fer2013`, pictures (or links to pictures) with the names of FER2013's files, and streams
    of its photos by the file that `tests/bench/make_streams.py` writes beside them.
    """
    if dataset.layout == "fer2013":
        return f"{dataset.name} is FER2013"
    for trial in dataset.trials[:1]:
        record = next((folder / STREAMS_RECORD for folder in tuple(trial.path.parents)[:2]
                       if (folder / STREAMS_RECORD).is_file()), None)
        if record is not None:
            return f"{dataset.name} is streams of FER2013's photos ({record})"
        first = next(iter(sorted(trial.path.iterdir())), None) if trial.path.is_dir() else None
        if first is not None and first.resolve().name.partition("_")[0] in {"Training", "PublicTest", "PrivateTest"}:
            return f"{dataset.name} has pictures with the names of FER2013's ({first.resolve().name})"
    return ""


def _root(config: DatasetConfig, layout: str) -> Path:
    if not config.root:
        raise InputError("no folder is named", where=layout, hint="give --root FOLDER")
    root = Path(config.root)
    if not root.exists():
        raise InputError("no such file or folder", where=root, hint="check --root")
    return root


def _pictures(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders.sort()
        yield from (Path(folder, name) for name in sorted(names)
                    if is_picture(name) and not name.startswith("."))


def _folder_photos(root: Path, pictures: Iterable[Path], classes: Sequence[str]) -> Iterator[Photo]:
    """Yield the photos of folders by class; a file's name or a folder above the class names the split."""
    places, words = index_by_name(classes), FER2013_SPLITS | SPLITS
    for path in pictures:
        label = places.get(canonical_class_name(path.parent.name), UNKNOWN)
        above = [part.lower() for part in path.relative_to(root).parts[:-2]]
        above_split: Split = next((words[word] for word in reversed(above) if word in words), "train")
        # The name counts first: Kaggle's folder form puts PublicTest and PrivateTest into one folder "test". Only
        # FER2013's own words: "val_kilmer.jpg" is a person.
        split = FER2013_SPLITS.get(path.name.partition("_")[0].lower(), above_split)
        yield Photo(name=str(path.relative_to(root)), label=label, split=split, file=path)


def _table_photos(table: Path, votes: Sequence[int] | None) -> Iterator[Photo]:
    """Yield the photos of ``fer2013.csv`` or ``icml_face_data.csv``, whose column names may have spaces around them."""
    codes = map_class_names(SETS["fer2013"], SEVEN).to
    header = [name.strip().lower() for name in tables.read_header(table)]
    if not {"emotion", "pixels", "usage"} <= {*header}:
        raise InputError("not a table of FER2013", where=table, hint="its columns are emotion, pixels and Usage")
    emotion, pixels, usage = (header.index(name) for name in ("emotion", "pixels", "usage"))
    for number, (line, row) in enumerate(tables.read_rows(table)):
        where = f"{table}, line {line}"
        try:
            data = np.array(row[pixels].split(), np.int64)
            label = codes[int(row[emotion])]
            split = FER2013_SPLITS[row[usage].strip().lower()]
        except (LookupError, ValueError) as error:
            raise InputError(f"not a row of FER2013 ({error})", where=where, hint="download the table again") from error
        if data.shape != (SIDE_PX**2,) or data.min() < 0 or data.max() > 255:
            raise InputError(f"{len(data)} pixels; {SIDE_PX**2} numbers from 0 to 255 are expected", where=where,
                             hint="download the table again")
        if votes is not None and number >= len(votes):
            raise InputError(f"{len(votes)} rows of votes, fewer than photos", where=table.with_name(FER_PLUS_NAME),
                             hint="both tables describe the same 35,887 photos in the same order")
        yield Photo(name=f"row {number + 1}", label=label if votes is None else votes[number], split=split,
                    data=data.astype(np.uint8).tobytes())


def _fer_plus_labels(path: Path) -> list[int] | None:
    """Return the label of each row by the majority of its votes, -1 without one; None where there are no votes."""
    if not path.is_file():
        return None
    header = tables.read_header(path)
    missing = [name for name in FER_PLUS_COLUMNS if name not in header]
    if missing:
        raise InputError(f"no column {missing[0]!r}", where=path, hint="use FER+'s own fer2013new.csv")
    labels = []
    for line, row in tables.read_rows(path):
        try:
            votes = [int(row[header.index(name)] or 0) for name in FER_PLUS_COLUMNS]
        except ValueError as error:
            raise InputError(f"not a number of votes ({error})", where=f"{path}, line {line}",
                             hint="use FER+'s own fer2013new.csv") from error
        best = votes.index(max(votes))
        labels.append(best if votes.count(votes[best]) == 1 and best < len(SEVEN) else UNKNOWN)
    log.info("%s: labels by the majority of the votes; %d photos have none", path, labels.count(UNKNOWN))
    return labels


def _dataset(layout: str, root: Path, classes: Sequence[str], photos: Sequence[Photo], config: DatasetConfig,
             cache: Path, *, metric: str, one_each: bool = False) -> Dataset:
    """Return the photos as clips; the photos of a clip are linked, by number, in one folder of the cache."""
    name = cache_name(layout, root, config.name)
    copies: dict[bytes, list[Photo]] = defaultdict(list)
    # Links hold full paths: the photos of a folder that was moved need other links.
    content = hashlib.sha256(os.fsencode(root.resolve()))
    for photo in photos:
        digest = photo.digest()
        copies[digest].append(photo)
        content.update(repr((photo.name, photo.split, digest)).encode())
    # Other photos make other clips, which must not meet the links of the clips before.
    folder = Workspace(cache).photos(name) / short(content.hexdigest())
    clips = list(_clips(copies.values(), one_each))
    _link(folder, clips)
    trials = [Trial(name=clip, path=folder / clip, kind="crops" if one_each else "photos", parent=clip, group=clip,
                    split=chosen[0].split, labels=np.array([photo.label for photo in chosen], np.int16),
                    copied=COPIES in clip)
              for clip, chosen in clips]
    return Dataset(name=name, layout=layout, classes=tuple(classes), trials=tuple(sorted(trials, key=lambda t: t.name)),
                   metric=metric, whole_frames=one_each, problems=tuple(_issues(copies.values(), root)))


def _clips(copies: Iterable[Sequence[Photo]], one_each: bool) -> Iterator[tuple[str, list[Photo]]]:
    """Yield name and photos of each clip."""
    # Photos are shuffled with a fixed seed, so that each clip has all classes. Held-out photos that are copies of
    # photos in another split are in clips of their own, "test-copies-0000": scores can be computed without them.
    parts: dict[str, list[list[Photo]]] = defaultdict(list)
    for same in copies:
        splits = {photo.split for photo in same}
        for split in splits:
            mine = [photo for photo in same if photo.split == split]
            copied = split != "train" and len(splits) > 1
            parts[f"{split}{COPIES}" if copied else f"{split}-"].append(mine)
    for part in sorted(parts):
        waiting = sorted(parts[part], key=lambda same: same[0].name)
        random.Random(0).shuffle(waiting)
        number, clip = 0, list[Photo]()
        for same in waiting:
            clip += same
            if one_each or len(clip) >= PHOTOS_PER_CLIP:
                yield f"{part}{number:05d}", clip
                number, clip = number + 1, []
        if clip:
            yield f"{part}{number:05d}", clip


def _link(folder: Path, clips: Sequence[tuple[str, list[Photo]]]) -> None:
    """Make a folder with the numbered files of each clip; a clip's folder that has a file is complete."""
    # Most commands find all of them, also where the cache cannot be written: only then is there something to lock.
    if all(any((folder / clip).glob("*")) for clip, _ in clips):
        return
    with atomic_io.lock(folder.with_suffix(LOCK_SUFFIX), wait=True):
        for clip, photos in clips:
            if any((folder / clip).glob("*")):
                continue
            with atomic_io.making_folder(folder / clip) as temporary:
                for number, photo in enumerate(photos, 1):
                    _write_photo(photo, temporary, f"{number:05d}")


def _write_photo(photo: Photo, folder: Path, stem: str) -> None:
    if photo.file is None:
        Image.frombytes("L", (SIDE_PX, SIDE_PX), photo.data).save(folder / f"{stem}.png")
        return
    path = folder / f"{stem}{photo.file.suffix.lower()}"
    try:
        path.symlink_to(photo.file.resolve())
    except OSError:  # a file system without links
        shutil.copyfile(photo.file, path)


def _issues(copies: Iterable[Sequence[Photo]], root: Path) -> Iterator[Issue]:
    """Yield what a reader of scores must know: copies across splits, and photos under two labels."""
    across = Counter(photo.split for same in copies if len({p.split for p in same}) > 1
                     for photo in same if photo.split != "train")
    for split, number in sorted(across.items()):
        yield Issue(kind="copies", where=str(root), severity="note",
                    message=f"{number} {split} photos are copies of photos in another split",
                    hint=f"they are the clips {split}{COPIES}*; `fercache score` also scores without them")
    twice = [same[0].name for same in copies if len({photo.label for photo in same} - {UNKNOWN}) > 1]
    if twice:
        yield Issue(kind="two-labels", where=str(root), severity="note",
                    message=f"{len(twice)} photos have several copies with different labels: {shorten_list(twice, 3)}",
                    hint="each copy keeps its own label")
