"""Stage one: clips -> the embedding store. Each frame is decoded, its face found and the CNN run once, ever."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from fercache import media, run_log
from fercache.backbones import weights
from fercache.backbones.weights import files
from fercache.config import ExtractConfig, digest
from fercache.data import base
from fercache.data.base import COUNT, Dataset, Trial, people_held, people_of, person_name
from fercache.errors import ClipError, InputError, StoreError
from fercache.extraction import resources, thumbnails
from fercache.extraction.cancellation import Brake, Stopped, never
from fercache.extraction.clip import Together
from fercache.faces import augmentation, interpolation, tracklets
from fercache.media import video
from fercache.media.source import Source, file_stamp
from fercache.runtime import atomic_io, wheels
from fercache.runtime.progress import Meter, meter
from fercache.runtime.uri import Place
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import encode
from fercache.store.locks import claimed
from fercache.store.manifest import same_source
from fercache.store.remote import read_json, write_json

if TYPE_CHECKING:
    from fercache.extraction.resources import Nets, Plant

log = logging.getLogger(__name__)


# What a run of stage one did, clip by clip, and the list of what failed.

@dataclass(frozen=True, kw_only=True)
class ClipDone:
    """What became of one clip: `state` is computed, cached (also by another process meanwhile), failed, or left.

    A clip is left where the run was asked to end; the next run goes on with it.
    """

    clip: str
    state: str
    frames: int = 0
    faces: int = 0
    message: str = ""


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """What a run of stage one did."""

    store: Place
    failures_at: Path
    fingerprint: str
    clips: tuple[ClipDone, ...]
    seconds: float

    def count(self, state: str) -> int:
        """Return how many clips ended in `state`."""
        return sum(c.state == state for c in self.clips)

    def frames(self, state: str) -> int:
        """Return how many frames the clips have that ended in `state`; of clips that were left, as their files say."""
        return sum(c.frames for c in self.clips if c.state == state)

    def failures(self) -> list[ClipDone]:
        """Return the clips that failed."""
        return [c for c in self.clips if c.state == "failed"]


def write_failures(path: Path, failed: Sequence[ClipDone]) -> None:
    """Write `failures.csv` (clip, what happened), or remove an old one where nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "message"])
    rows.writerows((c.clip, c.message) for c in failed)
    atomic_io.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


# Several runs on one store: each takes what nobody has at work, and ends when every clip is done.

T = TypeVar("T")

WAIT_S = 0.5
"""Between two looks at clips that another process has."""


def in_turn(trials: Iterable[Trial], attempt: Callable[[Trial], T | None], is_claimed: Callable[[Trial], bool],
            leave: Callable[[Trial], T], brake: Brake, abreast: int = 1) -> Iterator[T]:
    """Yield what `attempt` makes of each trial, as they end; where another process is at one, later.

    Parameters
    ----------
    trials : each is asked for when there is room for it among those at work.
    attempt : returns None if another process took the trial first.
    is_claimed : whether a live process has the trial.
    leave : stands in for `attempt` once the run is to end.
    abreast : trials at once, each in a thread of its own.

    Notes
    -----
    A user who has seen a run end with exit code 0 goes on to the next stage: so it ends when the others' clips are done
    too. A clip whose process died is attempted again, as is one that failed there.
    """
    def turn(trial: Trial) -> T | None:
        if brake.on:
            return leave(trial)
        return None if is_claimed(trial) else attempt(trial)

    waiting, told = trials, False
    while True:
        busy = []
        for trial, result in side_by_side(turn, waiting, abreast, brake):
            if result is None:
                busy.append(trial)
            else:
                yield result
        if not busy:
            return
        if not told:
            log.info("waiting for what another process has at work: %s%s", busy[0].name,
                     f" and {len(busy) - 1} more" if len(busy) > 1 else "")
            told = True
        while not brake.on and all(is_claimed(trial) for trial in busy):
            time.sleep(WAIT_S)
        waiting = busy


def side_by_side(turn: Callable[[Trial], T | None], trials: Iterable[Trial], abreast: int, brake: Brake
                 ) -> Iterator[tuple[Trial, T | None]]:
    """Yield each trial with what `turn` returns, as they end; in this thread if there is one at a time.

    Notes
    -----
    What one of them raises is raised here, and an interrupt too, after the others were asked to end and did.
    """
    if abreast == 1:
        yield from ((trial, turn(trial)) for trial in trials)
        return
    pool, coming = ThreadPoolExecutor(abreast, "clip"), iter(trials)
    try:
        promised = {pool.submit(turn, trial): trial for trial in islice(coming, abreast)}
        while promised:
            for promise in wait(promised, return_when=FIRST_COMPLETED).done:
                trial = promised.pop(promise)
                promised |= {pool.submit(turn, following): following for following in islice(coming, 1)}
                yield trial, promise.result()
    except BaseException:
        brake.pull()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


# Whether a clip's source is still what its features were made from.

def unchanged(known: dict[str, Any], path: Path, kind: str, strict: bool = False) -> bool:
    """Return whether the source at `path` is the one whose digest is `known`.

    Parameters
    ----------
    strict : read every byte, whatever the time stamps say.

    Raises
    ------
    ClipError
        The source is gone or cannot be read.

    Notes
    -----
    Each step is as cheap as what it can miss is unlikely. A file of the same size, time stamp and inode is the same,
    and no byte of it is read. Else another size, another name in a folder or another sample of a file is another
    source. Equal samples and an equal time stamp: the same one. Equal samples and another time stamp (a copy, or
    something written in place): every byte is compared with the hash that is kept with each clip. So without `strict`
    only a change is missed that keeps the size and the time stamp, which takes intent. Marks of version 0.1 have no
    inode: there the samples are read.
    """
    if not strict and kind == "video" and file_stamp(path).items() <= known.items():
        return True
    now = media.digest(path, kind, strict)
    if strict or not same_source(known, now) or known.get("mtime_ns") == now["mtime_ns"]:
        return same_source(known, now)
    return same_source(known, media.digest(path, kind, strict=True))


OPENED_FIRST = 16
"""Most clips that are opened to learn how many frames are to come: the first one must not wait for thousands."""


def _bytes(trial: Trial) -> int:
    """Return the size of a clip's file, 0 for a folder and for what is gone."""
    try:
        return file_stamp(trial.path)["size"] if trial.kind == "video" else 0
    except ClipError:  # it is recorded when its turn comes
        return 0


# One run over the clips of a data set: what is cached, what is to do, and what becomes of each.

@dataclass
class Work:
    """One run over the clips."""

    config: ExtractConfig
    store: EmbeddingStore
    faces: str
    cnn: files.Weights
    nets: Nets | None = None
    brake: Brake = field(default_factory=Brake)

    def cached(self, trial: Trial) -> ClipDone | None:
        """Return the clip's entry if the store holds it and its source is unchanged."""
        if not people_held(trial, self.store):
            return None
        mark = self.store.mark(self.name(trial))
        try:
            same = unchanged(mark.source, trial.path, trial.kind, self.config.strict)
        except ClipError as error:
            log.warning("%s: the source is gone or unreadable (%s); the stored features stay", trial.name, error.what)
            same = True
        return ClipDone(clip=trial.name, state="cached", frames=mark.frames) if same else None

    def name(self, trial: Trial) -> str:
        """Return under which name a clip is in the store when it is done."""
        return person_name(trial, people_of(self.store.settings))

    def source(self, trial: Trial) -> Source:
        """Return the clip's frames."""
        return media.open_source(trial.path, trial.kind, crop_fps=self.config.crop_fps, damaged=self.config.damaged)

    def all(self, trials: Sequence[Trial]) -> Iterator[ClipDone]:
        """Yield what becomes of each clip; a bad clip does not stop the rest."""
        loaded = self.nets = resources.load(self.config, self.cnn, self.faces)
        with meter("extract", self.announce(trials)) as bar:
            yield from self.through(trials, loaded, bar)

    def announce(self, trials: Sequence[Trial]) -> float:
        """Return the frames to come, as far as some of the files say; the log tells what they will take."""
        total, row = self._total(trials), 2 * sum(prod(shape) for shape in self.store.taps.values())
        log.info("%d bytes a frame%s, %.2f GB for %s%d frames to come", row,
                 f" in {self.config.views} views" if self.config.views > 1 else "", row * total / 1e9,
                 "about " if len(trials) > OPENED_FIRST else "the ", total)
        return total

    def through(self, trials: Sequence[Trial], loaded: Nets, bar: Meter) -> Iterator[ClipDone]:
        """Yield what becomes of each clip as it is done, with nets that are loaded, on a meter that runs."""
        from fercache.extraction.resources import opened

        abreast = min(len(trials), self.config.in_flight or loaded.in_flight)
        with opened(loaded, self.brake, bar, abreast) as plant:
            yield from self.on(plant, loaded, trials, abreast)
            if plant.gauge.line():
                log.info("%s", plant.gauge.line())

    def on(self, plant: Plant, loaded: Nets, trials: Iterable[Trial], abreast: int) -> Iterator[ClipDone]:
        """Yield what becomes of each clip as it is done, on a plant that is open, `abreast` at once."""
        provenance = resources.provenance(loaded, self.config.backend)
        return in_turn(trials, lambda trial: self.attempt(trial, plant, provenance),
                       lambda trial: encode(self.name(trial)) in claimed(self.store.path), self.left, self.brake,
                       abreast)

    def attempt(self, trial: Trial, plant: Plant, provenance: dict[str, Any]) -> ClipDone | None:
        """Return what became of a clip, None if another process is at it."""
        plant.bar.note(trial.name)
        try:
            return self.cached(trial) or self.one(trial, plant, provenance)  # done by another process meanwhile
        except Stopped:
            return self.left(trial)
        except ClipError as error:
            log.error("%s: %s", trial.name, error)
            return ClipDone(clip=trial.name, state="failed", message=str(error))

    def left(self, trial: Trial) -> ClipDone:
        """Return the entry of a clip that waits for the next run, with the frames that its file states."""
        return ClipDone(clip=trial.name, state="left", frames=self._length(trial))

    def one(self, trial: Trial, plant: Plant, provenance: dict[str, Any]) -> ClipDone | None:
        """Bring one clip from source to commit mark; None if another process took it first."""
        from fercache.extraction.clip import ClipJob, Whom

        source = self.source(trial)
        if self.name(trial) in self.store:
            log.warning("%s: the source file has changed, or one of its people was lost; it is done again", trial.name)
        together = Together(trial=trial, store=self.store, source=source.digest(strict=True),
                            provenance=provenance)
        whom = Whom(people=people_of(self.store.settings), side=trial.side, look=plant.look, beside=together.beside)
        with together.begun() as writer:
            if writer is None:
                return None
            count = ClipJob(source, writer, plant, whom=whom, every=self.config.every, margin=self.config.margin,
                            views=self.config.views).run()
            mark = writer.commit(**{COUNT: count} if whom.several else {})
        faces = int(self.store[self.name(trial)].clock["valid"].sum())
        if not faces:
            log.warning("%s: no face in any of its %d frames", trial.name, mark.frames)
        return ClipDone(clip=trial.name, state="computed", frames=mark.frames, faces=faces)

    def measured(self, report: ExtractReport, cache: Path) -> None:
        """Keep how many frames a second this run made, for what `check` says of the next one."""
        if self.nets is not None:
            run_log.record(cache, run_log.Rate(
                faces=self.faces, backbone=self.config.weights, precision=self.config.precision,
                views=self.config.views, device=self.nets.device, threads=self.nets.threads,
                seconds=report.seconds, when_s=run_log.now_s(),
                frames=sum(c.frames for c in report.clips if c.state == "computed")))

    def _total(self, trials: Sequence[Trial]) -> float:
        """Return the frames to come: some files state them, the others go by size (folders by number)."""
        step = -(-len(trials) // OPENED_FIRST)
        seen = trials[::step] if step > 1 else trials
        frames = sum(map(self._length, seen))
        if len(seen) == len(trials):
            return frames
        part, whole = sum(map(_bytes, seen)), sum(map(_bytes, trials))
        return frames * (whole / part if part else len(trials) / len(seen))

    def _length(self, trial: Trial) -> int:
        """Return the frames that a clip's file states, 0 where it states none."""
        try:
            return self.source(trial).length() or 0
        except ClipError:  # it is recorded when its turn comes
            return 0


Engine: TypeAlias = Callable[[Work, Sequence[Trial]], Iterable[ClipDone]]
"""Gives what becomes of each clip: `Work.all` in this process, the room `engines` in several."""

FAILURES = "failures.csv"

FORMAT = {"store": 1, "decoder": video.DECODER, "crop": "pil-bilinear-160"}
"""What the code itself fixes of the numbers; a change here is a new fingerprint."""

MTCNN = "sums-1"
"""How MTCNN's nets are driven: raised whenever its boxes change by more than float noise."""

DETECTION = ("every", "detect_px", "min_face_px", "min_score", "margin", "people")
"""Settings that change nothing where no detector is run."""


def faces_of(dataset: Dataset, config: ExtractConfig) -> str:
    """Return mtcnn or cropped: what `faces = "auto"` means for this data set.

    Raises
    ------
    InputError
        The data set mixes videos and folders of crops, so that no one answer is right.
    """
    if config.faces != "auto":
        return config.faces
    if not dataset.faces:
        raise InputError("holds both videos and folders of pictures", where=dataset.name,
                         hint="say --faces mtcnn (find a face in each picture) or --faces cropped")
    return dataset.faces


def settings_of(config: ExtractConfig, faces: str, cnn: files.Weights) -> dict[str, Any]:
    """Return everything that changes numbers in the store, as a JSON value: its digest names the store."""
    chosen = {**config.settings(), "faces": faces, "weights": cnn.sha256, "backbone": cnn.name, "format": FORMAT}
    if config.views == 1:  # as stores were named before there were views: they hold the same
        del chosen["views"]
    else:
        chosen["view_policy"] = augmentation.POLICY
    if faces == "cropped":  # no detector is run: its settings change nothing
        return {k: v for k, v in chosen.items() if k not in DETECTION}
    return {**chosen, "detector": _detector_digest(), "people_policy": tracklets.POLICY,
            "follow_policy": interpolation.POLICY}


def store_path(cache: Place, dataset: str, settings: dict[str, Any]) -> Place:
    """Return where the store of these settings lies."""
    return cache / "features" / dataset / f"{settings['backbone']}-{digest(settings)[:12]}.zarr"


def run(dataset: Dataset, config: ExtractConfig, cache: Path, place: Place | None = None, *,
        engine: Engine = Work.all, failures: str = FAILURES, stop: Callable[[], bool] = never) -> ExtractReport:
    """Return what was done to bring the store of `dataset` up to date; clips that are there are left alone.

    Parameters
    ----------
    place : where the features go instead of the cache, such as a URL.
    engine : brings the clips through that are not there yet; without one, this process does.
    failures : name of the list of clips that failed.
    stop : asked often, by several threads; once it says True, each clip ends at its next block or segment, and what is
        not done is reported as left.

    Raises
    ------
    InputError, WeightsError, StoreError
        Nothing could be done at all. What goes wrong with one clip is recorded in the report instead.

    Notes
    -----
    Several runs on one store share the work. Each ends when every clip is done, and waits for those that another one
    has; a clip whose process died is taken over.
    """
    started = time.monotonic()
    faces = faces_of(dataset, config)
    _check_device(config.device)
    cnn = weights.ensure(config.weights, cache / "weights")
    settings = settings_of(config, faces, cnn)
    base.check_people(dataset, base.people_of(settings))
    path = store_path(place or cache, dataset.name, settings)
    log.info("store %s", path)
    store = _opened(path, settings, config, cnn)
    work = Work(config, store, faces, cnn, brake=Brake(stop))
    failures_at = cache / "features" / dataset.name / failures
    done = [_lost(problem) for problem in dataset.problems if problem.lost]
    waiting = []
    for trial in dataset.trials:
        cached = work.cached(trial)
        done.append(cached) if cached else waiting.append(trial)
    try:
        if waiting:
            done += engine(work, waiting)
    finally:  # a run that is stopped tells of its failures too
        failed = [c for c in sorted(done, key=lambda c: c.clip) if c.state == "failed"]
        if failed or sum(c.state != "left" for c in done) >= len(dataset.trials):
            write_failures(failures_at, failed)
    report = ExtractReport(store=path, failures_at=failures_at, fingerprint=digest(settings),
                           clips=tuple(sorted(done, key=lambda c: c.clip)), seconds=time.monotonic() - started)
    write_json(path.parent / "current.json", {"store": path.name})
    work.measured(report, cache)
    if config.thumbnails:
        kept = thumbnails.keep(base.present(dataset, store).trials, store, cache)
        log.info("thumbnails: faces of %d clips kept in %s", kept, thumbnails.folder_of(cache, store))
    return report


def current(cache: Place, dataset: str) -> Place:
    """Return the store that the last `extract` of this data set made or found.

    Raises
    ------
    InputError
        Nothing was extracted yet.
    """
    pointer = cache / "features" / dataset / "current.json"
    said = read_json(pointer)
    if said is None:
        raise InputError("nothing was extracted yet", where=pointer.parent, hint="run `fercache extract` first")
    return pointer.parent / atomic_io.neighbour(said, "store", pointer)


def current_or_none(cache: Place, dataset: str) -> Place | None:
    """Return the store that the last `extract` of this data set made or found; None where there is none."""
    return None if read_json(cache / "features" / dataset / "current.json") is None else current(cache, dataset)


def _check_device(name: str) -> None:
    """Refuse a device that is not there, before anything is made; the usual ones are always there."""
    if name not in ("auto", "cpu"):
        from fercache.runtime.devices import resolve_device  # torch: seconds that a cached run saves

        resolve_device(name)


def _lost(problem: base.Problem) -> ClipDone:
    return ClipDone(clip=problem.where, state="failed", message=problem.what)


def _opened(path: Place, settings: dict[str, Any], config: ExtractConfig, cnn: files.Weights) -> EmbeddingStore:
    """Return the store at `path`, made if it is not there."""
    if EmbeddingStore.exists(path):
        try:
            store = EmbeddingStore.open(path, mode="a")
        except StoreError as error:
            log.warning("%s; it is written anew, the clips stay", error.what)
        else:
            store.sweep()
            return store
    from fercache.backbones.backbone import shapes_of  # torch: seconds that a cached run saves

    return EmbeddingStore.create(path, settings, augmentation.stored(shapes_of(cnn, config.taps), config.views),
                                 mend=True)


def _detector_digest() -> str:
    """Return the sha256 over MTCNN's three nets, which facenet-pytorch carries; without importing it."""
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        raise InputError("facenet-pytorch is not installed", hint="pip install facenet-pytorch==2.5.3")
    files = sorted((Path(spec.origin).parent / "data").glob("?net.pt"))
    return digest([MTCNN, *(wheels.file_sha256(path) for path in files)])
