"""Build streams of real face photos, one expression label a frame, in the folder layout of Aff-Wild2.

    python tests/bench/make_streams.py --images fer2013_train.zip --out streams --trials 60 --frames 300 --seed 1
    python tests/bench/make_streams.py --images fer2013.csv --usage Training --out streams --seed 1

Video with a label for every frame cannot be passed on, so these streams are half real: each face is a photo of FER2013,
the timeline is drawn at random. A trial is a Markov chain of expressions that prefers Neutral. Within one expression
a few photos follow each other. Each stays for 6 to 15 frames under slow camera motion, changing light and noise, so
that the errors of neighboring frames correlate as they do in video.

Two trials never show the same photo: copies are dropped, and so are photos that stand under two labels. An expression
whose photos are used up is not drawn again. Typical defects of Aff-Wild2 are included: frames without a crop,
stretches that nobody annotated (-1), `_left` and `_right` trials of one video, and annotation files that are longer or
shorter than the folder of crops.

The output
----------
OUT/cropped_aligned/TRIAL/00001.jpg ...
    The crops, 112 x 112 px.
OUT/annotations/EXPR_Set/{Train_Set,Validation_Set}/TRIAL.txt
    The annotations with their defects.
OUT/test_set_release.txt
    The names of the validation trials.
OUT/truth/TRIAL.txt
    The label of every frame, annotated or not. Use it for scoring only.
OUT/.made_of_fer2013.json
    Tells fercache that starter heads may have been trained on these photos.

The photos
----------
You download FER2013 yourself: Kaggle has it as folders of JPEG files (data set "FER-2013") and as a CSV (data set
"fer2013", competition "Challenges in Representation Learning: Facial Expression Recognition Challenge"). `--images`
takes either form:

- A folder or a zip file that holds CLASS/PHOTO.jpg at any depth (`train/angry/Training_10118481.jpg`). All seven
  classes must be there: angry, disgust, fear, happy, neutral, sad, surprise.
- `fer2013.csv` or `icml_face_data.csv`, with the columns emotion, pixels and Usage.

`--usage Training` (or PublicTest, PrivateTest) takes one part of FER2013. It compares the column Usage of a CSV, or
the beginning of a photo's file name up to the first `_`.

Notes
-----
The same photos, flags and seed give the same bytes, under the same releases of NumPy and Pillow. The two forms of
FER2013 give different streams: the CSV holds the exact pixels, the JPEG files are lossy, and copies that are equal in
one form need not be equal in the other. Also, photos are drawn by their order: that of the paths in the one form,
that of the rows in the other. For the same reason `--exclude` needs the same form as `--images`.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise")
"""Aff-Wild2's order; a label is an index into it."""
LABEL_OF_FOLDER = {"neutral": 0, "angry": 1, "disgust": 2, "fear": 3, "happy": 4, "sad": 5, "surprise": 6}
LABEL_OF_EMOTION = (1, 2, 3, 4, 5, 6, 0)
"""FER2013's numbers: 0 angry, 1 disgust, 2 fear, 3 happy, 4 sad, 5 surprise, 6 neutral."""
CLASS_WEIGHTS = (.40, .10, .05, .08, .16, .12, .09)
"""How often a segment has each expression."""
MIN_PHOTOS = 8
"""Unused photos that an expression needs to start a segment."""
SUFFIXES = (".jpg", ".jpeg", ".png")
CSV_SIDE_PX, CROP_SIDE_PX = 48, 112
MIN_TRIAL_FRAMES, MIN_SEGMENT_FRAMES = 60, 12
JPEG_QUALITY = 90
UNANNOTATED = -1

Pool = dict[int, list["Photo"]]
"""Label -> photos that no trial has shown yet. Trials take photos from the end."""
Labels = NDArray[np.int64]


class InputError(Exception):
    """The photos or flags cannot be used; the message names what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Photos


@dataclass(frozen=True, eq=False)
class Photo:
    """One labeled photo, an encoded file or the pixels of a CSV's row (48, 48) uint8."""

    source: str
    label: int
    usage: str
    content: bytes | NDArray[np.uint8]

    def open(self) -> Image.Image:
        """Return the decoded photo.

        Raises
        ------
        InputError
            The file is no picture, or it is damaged.
        """
        if not isinstance(self.content, bytes):
            return Image.fromarray(self.content)
        try:
            image = Image.open(io.BytesIO(self.content))
            image.load()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{self.source} cannot be decoded: {error}; get the data set again") from error
        return image

    def digest(self) -> str:
        """Return a digest of the gray pixels; two copies of a photo have the same."""
        return hashlib.sha256(np.asarray(self.open().convert("L")).tobytes()).hexdigest()


def read_photos(path: Path, usage: str | None = None) -> list[Photo]:
    """Return all photos of a folder, a zip file or a CSV, in the order of their paths or rows.

    Raises
    ------
    InputError
        The path does not exist, cannot be read, or holds no photos of that usage; or an expression has no photos.
    """
    if path.is_dir():
        photos = _photos_of_folder(path)
    elif not path.is_file():
        raise InputError(f"{path} does not exist; give a folder or zip file of FER2013's photos, or fer2013.csv")
    elif zipfile.is_zipfile(path):
        photos = _photos_of_zip(path)
    elif path.suffix.lower() == ".csv":
        photos = _photos_of_csv(path)
    else:
        raise InputError(f"{path} is no folder, zip file or .csv file; unpack other archives first")
    if usage is not None:
        known = sorted({photo.usage for photo in photos})
        photos = [photo for photo in photos if photo.usage == usage]
        if not photos:
            raise InputError(f"{path} holds no photos of usage {usage!r}; it holds {', '.join(known)}")
    missing = [name for name, label in LABEL_OF_FOLDER.items() if label not in {photo.label for photo in photos}]
    if missing:
        raise InputError(f"{path} holds no photos of the class{'es' if len(missing) > 1 else ''} {', '.join(missing)}; "
                         f"all seven are needed ({', '.join(sorted(LABEL_OF_FOLDER))})")
    return photos


def is_csv(path: Path) -> bool:
    """Return whether photos are read as the rows of a CSV."""
    return path.is_file() and path.suffix.lower() == ".csv"


def _photo_paths(names: list[str], path: Path) -> list[str]:
    """Return the sorted names CLASS/PHOTO.jpg among all names of a folder or a zip file."""
    # A zip that macOS packed holds a "._" file beside each photo, which is none.
    chosen = sorted(name for name in names if name.lower().endswith(SUFFIXES)
                    and PurePosixPath(name).parent.name in LABEL_OF_FOLDER
                    and not PurePosixPath(name).name.startswith("._"))
    if not chosen:
        tables = sorted(name for name in names if name.lower().endswith(".csv"))
        hint = f"; it holds {tables[0]}: unpack it and give that file" if tables else ""
        raise InputError(f"{path} holds no photos CLASS/PHOTO.jpg "
                         f"(classes: {', '.join(sorted(LABEL_OF_FOLDER))}){hint}")
    return chosen


def _photo_of_file(name: str, container: Path, encoded: bytes) -> Photo:
    """Return the photo of a file, whose folder is its class and whose name begins with its usage."""
    place = PurePosixPath(name)
    return Photo(f"{container}: {name}", LABEL_OF_FOLDER[place.parent.name], place.stem.split("_")[0], encoded)


def _photos_of_folder(path: Path) -> list[Photo]:
    try:
        names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        return [_photo_of_file(name, path, (path / name).read_bytes()) for name in _photo_paths(names, path)]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _photos_of_zip(path: Path) -> list[Photo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [_photo_of_file(name, path, archive.read(name)) for name in _photo_paths(archive.namelist(), path)]
    # RuntimeError: the archive has a password. NotImplementedError: its compression is unknown.
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read: {error}; get the data set again") from error


def _photos_of_csv(path: Path) -> list[Photo]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file)
            # icml_face_data.csv has a space before all column names but the first.
            header = [name.strip() for name in next(rows, [])]
            missing = [name for name in ("emotion", "pixels") if name not in header]
            if missing:
                raise InputError(f"{path} has no column {' and no column '.join(missing)}; FER2013's CSV has "
                                 f"emotion, pixels and Usage")
            photos = [_photo_of_row(dict(zip(header, row, strict=False)), f"{path} line {rows.line_num}")
                      for row in rows if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {error}; get the data set again") from error
    if not photos:
        raise InputError(f"{path} has no rows; get the data set again")
    return photos


def _photo_of_row(row: dict[str, str], where: str) -> Photo:
    emotion, values = row["emotion"].strip(), row.get("pixels", "").split()
    if emotion not in {str(number) for number in range(len(LABEL_OF_EMOTION))}:
        raise InputError(f"{where}: emotion is {emotion!r}; it must be 0 to {len(LABEL_OF_EMOTION) - 1}")
    if len(values) != CSV_SIDE_PX ** 2:
        raise InputError(f"{where} has {len(values)} pixels; {CSV_SIDE_PX ** 2} are needed "
                         f"({CSV_SIDE_PX} x {CSV_SIDE_PX}): get the data set again")
    try:
        pixels = np.array([int(value) for value in values])
    except ValueError as error:
        raise InputError(f"{where}: a pixel is no integer ({error})") from error
    if pixels.min() < 0 or pixels.max() > 255:
        raise InputError(f"{where}: pixels run from {pixels.min()} to {pixels.max()}; 0 to 255 is allowed")
    return Photo(where, LABEL_OF_EMOTION[int(emotion)], row.get("Usage", "").strip(),
                 pixels.astype(np.uint8).reshape(CSV_SIDE_PX, CSV_SIDE_PX))


def draw_pool(photos: Sequence[Photo], excluded: Sequence[Photo], rng: np.random.Generator) -> Pool:
    """Return the photos of each class in random order: one of all copies, none excluded, none under two labels."""
    unwanted = {photo.digest() for photo in excluded}
    copies: defaultdict[str, list[Photo]] = defaultdict(list)
    for photo in photos:
        copies[photo.digest()].append(photo)
    pool: Pool = {label: [] for label in range(len(CLASSES))}
    for digest, equal in copies.items():
        if digest not in unwanted and len({photo.label for photo in equal}) == 1:
            pool[equal[0].label].append(equal[0])
    for unused in pool.values():
        rng.shuffle(unused)
    return pool


# ---------------------------------------------------------------------------------------------------------------------
# One trial. The order of the random draws decides the bytes: do not move one.


def draw_timeline(frames: int, pool: Pool, rng: np.random.Generator) -> list[Photo]:
    """Return the photo of every frame, taken from the pool.

    Lengths of segments are log-normal with a median of about 45 frames. Two neighboring segments differ in expression.

    Raises
    ------
    InputError
        No expression has enough photos left.
    """
    timeline: list[Photo] = []
    previous = None
    while len(timeline) < frames:
        weights = np.array([weight if label != previous and len(pool[label]) >= MIN_PHOTOS else 0
                            for label, weight in enumerate(CLASS_WEIGHTS)])
        if not weights.any():
            raise InputError("the photos ran out; ask for fewer --trials or --frames")
        label = int(rng.choice(len(CLASSES), p=weights / weights.sum()))
        end = len(timeline) + int(min(frames - len(timeline), max(MIN_SEGMENT_FRAMES, rng.lognormal(3.8, .6))))
        while len(timeline) < end:
            rest = end - len(timeline)
            # The last photo of an expression stays until the segment ends.
            length = min(rest, int(rng.integers(6, 16))) if len(pool[label]) > 1 else rest
            timeline += [pool[label].pop()] * length
        previous = label
    return timeline


def drift(steps: int, scale: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a slow random walk (steps,) that starts and ends at 0 and stays within +-scale."""
    walk: NDArray[np.float64] = np.cumsum(rng.normal(0, 1, steps))
    walk -= np.linspace(walk[0], walk[-1], steps)
    # The small term keeps a walk of one step from a division by zero.
    bounded: NDArray[np.float64] = scale * walk / (np.abs(walk).max() + 1e-6)
    return bounded


class Camera:
    """The camera of one trial: position, zoom, roll, light and noise of every frame.

    Parameters
    ----------
    frames : length of the trial.
    rng : the generator; the camera goes on drawing noise from it.
    """

    def __init__(self, frames: int, rng: np.random.Generator) -> None:
        self._rng = rng
        self.shift_x, self.shift_y = drift(frames, .05, rng), drift(frames, .05, rng)  # shares of the photo's side
        self.zoom = drift(frames, .06, rng) + .06
        self.roll_degrees = drift(frames, 6, rng)
        self.gain = drift(frames, .2, rng)
        self.noise = rng.uniform(1, 7)

    def render(self, image: Image.Image, t: int) -> Image.Image:
        """Return frame t, (112, 112, 3), of an RGB photo."""
        side = image.size[0]
        moved = image.rotate(self.roll_degrees[t], Image.Resampling.BILINEAR,
                             translate=(self.shift_x[t] * side, self.shift_y[t] * side))
        visible = side * (1 - max(0, self.zoom[t]))
        margin = (side - visible) / 2
        zoomed = moved.crop((margin, margin, margin + visible, margin + visible)).resize(
            (CROP_SIDE_PX, CROP_SIDE_PX), Image.Resampling.BILINEAR)
        # One value of noise for all three channels, since the photos are gray.
        noise = self._rng.normal(0, self.noise, (CROP_SIDE_PX, CROP_SIDE_PX, 1))
        pixels = np.asarray(zoomed, np.float32) * (1 + self.gain[t]) + noise
        return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def write_crops(folder: Path, frames: int, pool: Pool, rng: np.random.Generator) -> Labels:
    """Write the crops of one trial; return the label of every frame, (frames,).

    Up to three times the face is lost for up to 24 frames, which have no crop.
    """
    folder.mkdir(parents=True)
    timeline = draw_timeline(frames, pool, rng)
    camera = Camera(frames, rng)
    visible = np.ones(frames, bool)
    for _ in range(rng.integers(0, 4)):
        start = rng.integers(0, frames)
        visible[start:start + rng.integers(1, 25)] = False
    opened = {photo: photo.open().convert("RGB") for photo in dict.fromkeys(timeline)}
    for t in np.flatnonzero(visible).tolist():
        camera.render(opened[timeline[t]], t).save(folder / f"{t + 1:05d}.jpg", quality=JPEG_QUALITY)
    return np.array([photo.label for photo in timeline])


def with_defects(labels: Labels, rng: np.random.Generator) -> Labels:
    """Return labels as an annotator leaves them: up to two stretches of -1, and a line too many or too few."""
    annotated = labels.copy()
    for _ in range(rng.integers(0, 3)):
        start = rng.integers(0, len(labels))
        annotated[start:start + rng.integers(5, 40)] = UNANNOTATED
    extra = int(rng.choice([0, 0, 0, 1, 2, -1]))
    return annotated[:extra] if extra < 0 else np.concatenate([annotated, np.full(extra, UNANNOTATED)])


# ---------------------------------------------------------------------------------------------------------------------
# The data set


def trial_names(count: int) -> list[str]:
    """Return the names of the trials; every tenth video has two people, hence two trials, if both fit."""
    names: list[str] = []
    video = 0
    while len(names) < count:
        video += 1
        # Aff-Wild2 has names of both kinds, and readers must parse the second.
        parent = f"{video}-30-1280x720" if video % 3 == 0 else f"video{video}"
        two_people = video % 10 == 0 and len(names) + 2 <= count
        names += [f"{parent}_left", f"{parent}_right"] if two_people else [parent]
    return names


def parent_of(trial: str) -> str:
    """Return the name of a trial's video."""
    return trial.removesuffix("_left").removesuffix("_right")


def write_labels(path: Path, labels: Labels) -> None:
    """Write labels as Aff-Wild2 does: a line with the classes, then a line a frame."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([",".join(CLASSES), *map(str, labels.tolist()), ""]), encoding="utf-8")


def write_streams(out: Path, pool: Pool, rng: np.random.Generator, *, trials: int, frames: int, val: float) -> str:
    """Write all trials into a folder, which must be empty; return one line that sums up what was written."""
    names = trial_names(trials)
    parents = sorted({parent_of(name) for name in names})
    validation = set(rng.permutation(parents)[:round(val * len(parents))].tolist())
    for split in ("Train_Set", "Validation_Set"):  # readers expect both, also where one is empty
        (out / "annotations/EXPR_Set" / split).mkdir(parents=True)
    for name in names:
        length = int(max(MIN_TRIAL_FRAMES, rng.lognormal(np.log(frames), .35)))
        labels = write_crops(out / "cropped_aligned" / name, length, pool, rng)
        split = "Validation_Set" if parent_of(name) in validation else "Train_Set"
        write_labels(out / "truth" / f"{name}.txt", labels)
        write_labels(out / "annotations/EXPR_Set" / split / f"{name}.txt", with_defects(labels, rng))
    (out / ".made_of_fer2013.json").write_text('{"made_of": "FER2013"}\n', encoding="utf-8")
    released = sorted(name for name in names if parent_of(name) in validation)
    (out / "test_set_release.txt").write_text("".join(f"{name}\n" for name in released), encoding="utf-8")
    unused = ", ".join(f"{CLASSES[label]} {len(photos)}" for label, photos in pool.items())
    return f"{len(names)} trials of {len(parents)} videos; unused photos: {unused}"


def build(args: argparse.Namespace) -> str:
    """Build the streams that the flags ask for; OUT appears whole or not at all.

    Raises
    ------
    InputError
        OUT is not empty, or the photos cannot be used.
    """
    out: Path = args.out
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; give another --out or delete it")
    if args.exclude and args.images.exists() and args.exclude.exists() and is_csv(args.images) != is_csv(args.exclude):
        raise InputError(f"--images {args.images} and --exclude {args.exclude} must both be CSV files or both hold "
                         "JPEG files; copies of a photo cannot be recognized from one form to the other")
    rng = np.random.default_rng(args.seed)
    excluded = read_photos(args.exclude, args.exclude_usage) if args.exclude else []
    pool = draw_pool(read_photos(args.images, args.usage), excluded, rng)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        # Beside OUT, so that the last step is a rename: a run that fails half-way leaves nothing that looks complete.
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
            unfinished = Path(folder) / "streams"
            summary = write_streams(unfinished, pool, rng, trials=args.trials, frames=args.frames, val=args.val)
            unfinished.rename(out)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from error
    return f"{out}: {summary}"


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 1 up")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no integer from 0 up")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 1:  # not for NaN either
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    summary, _, details = (__doc__ or "").partition("\n\n")
    command = argparse.ArgumentParser(description=summary, epilog=details,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    command.add_argument("--images", type=Path, required=True, metavar="PATH",
                         help="FER2013: a folder or zip file with CLASS/PHOTO.jpg, or fer2013.csv")
    command.add_argument("--usage", metavar="NAME", help="only this part of it: Training, PublicTest or PrivateTest")
    command.add_argument("--exclude", type=Path, metavar="PATH", help="photos that must not be used, in the same form")
    command.add_argument("--exclude-usage", metavar="NAME", help="exclude only this part of --exclude")
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="a folder to create")
    command.add_argument("--trials", type=_positive, default=60, metavar="N", help="number of trials (default: 60)")
    command.add_argument("--frames", type=_positive, default=300, metavar="N",
                         help=f"typical frames a trial, at least {MIN_TRIAL_FRAMES} (default: 300)")
    command.add_argument("--val", type=_share, default=.25, metavar="SHARE",
                         help="share of the videos in Validation_Set (default: .25)")
    command.add_argument("--seed", type=_seed, default=1, metavar="N", help="seed of all random draws (default: 1)")
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exit code 2 where flags or photos cannot be used."""
    command = parser()
    args = command.parse_args(argv)
    if args.exclude_usage and not args.exclude:
        command.error("--exclude-usage needs --exclude")
    try:
        summary = build(args)
    except InputError as error:
        command.exit(2, f"{command.prog}: error: {error}\n")
    print(summary)


if __name__ == "__main__":
    main()
