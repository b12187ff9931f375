"""Stage one over all clips of a data set: what is cached, what is to do, and the result of each clip."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec
from msgspec import structs

from fercache import media, run_log, workspace
from fercache.backbones import weights
from fercache.backbones.registry import CALIBRATION_SHA256, KNOWN_WEIGHTS
from fercache.backbones.weights import files
from fercache.config import FAST, FAST_TIME, ExtractConfig, fingerprint_of
from fercache.data import base
from fercache.data.base import PEOPLE_COUNT, Dataset, Trial, people_of, people_stored, person_name
from fercache.errors import ClipError, InputError, StoreError, WeightsError, shorten_list
from fercache.extraction import thumbnails
from fercache.extraction.clip import ClipJob, ClipPeople
from fercache.extraction.run_control import Cancelled, CancelToken, never_cancelled
from fercache.faces import crops, interpolation, tracklets
from fercache.media import video
from fercache.media.source import Source, check_content, file_stamp
from fercache.runtime import atomic_io
from fercache.runtime.progress import ProgressBar, progress_bar
from fercache.runtime.uri import Location
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import encode_name
from fercache.store.locks import locked_clips
from fercache.store.manifest import same_source
from fercache.store.remote import read_pointer, write_pointer
from fercache.workspace import CURRENT, Workspace, features_folder, store_name

if TYPE_CHECKING:
    from fercache.extraction.resources import Nets, PipelineResources  # torch: seconds that a cached run saves

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """The result of one clip."""

    clip: str
    # Computed, cached (also by another process meanwhile), failed, or left: the run was cancelled first, and the next
    # one continues the clip.
    state: str
    # `frames`, `faces`: frames, and frames with a face; for a clip that was left, an estimate of its frames.
    frames: int = 0
    faces: int = 0
    message: str = ""  # why it failed


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """The results of a run of stage one."""

    store: Location
    failures_at: Path
    fingerprint: str
    clips: tuple[ClipResult, ...]
    seconds: float

    def count(self, state: str) -> int:
        """Return how many clips ended in `state`."""
        return sum(c.state == state for c in self.clips)

    def frames(self, state: str) -> int:
        """Return the number of frames of the clips that ended in `state`."""
        return sum(c.frames for c in self.clips if c.state == state)

    def failures(self) -> list[ClipResult]:
        """Return the clips that failed."""
        return [c for c in self.clips if c.state == "failed"]


def write_failures(path: Path, failed: Sequence[ClipResult]) -> None:
    """Write the list of failed clips (CSV: clip, message), or remove an old one if nothing failed."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["clip", "message"])
    rows.writerows((c.clip, c.message) for c in failed)
    # Names of files need not be valid UTF-8.
    atomic_io.write_bytes(path, text.getvalue().encode("utf-8", "backslashreplace"))


def unchanged_stamp(stored: dict[str, Any], path: Path, kind: str, strict: bool = False) -> dict[str, int] | None:
    """Return the time stamp (and inode) of the source at `path` if it is the one whose digest is `stored`, else None.

    `strict`: read every byte, whatever the time stamps say. Raises ClipError if the source is missing or cannot be
    read.
    """
    # Without `strict`, only a change that keeps the size and the time stamp goes unnoticed.

    # Equal size, time stamp and inode: no byte is read. Manifests without an inode go on to the samples.
    if not strict and kind == "video" and (stamp := file_stamp(path)).items() <= stored.items():
        return stamp
    now = media.source_digest(path, kind, strict)
    if not strict and same_source(stored, now) and stored.get("mtime_ns") != now["mtime_ns"]:
        # Equal samples and another time stamp: a copy, or a file changed in place. Only its whole hash decides.
        now = media.source_digest(path, kind, strict=True)
    return {key: now[key] for key in ("mtime_ns", "inode") if key in now} if same_source(stored, now) else None


# Most clips that are opened to estimate the number of frames: extraction must not wait for thousands.
OPENED_FIRST = 16
# Smaller files may be Git LFS pointers (some 130 bytes) or web pages.
SUSPICIOUS_BYTES = 64 << 10
# Seconds between two checks of clips that another process works on.
POLL_S = 0.5
# Features from which a run that embeds every frame in float32 names the faster way.
OFFER_FAST_BYTES = 1e9


@dataclass
class ExtractionJob:
    """One run over the clips of a data set."""

    config: ExtractConfig
    store: EmbeddingStore
    faces: str  # mtcnn or cropped
    cnn: files.Weights
    nets: Nets | None = None  # loaded by `resources`
    cancel: CancelToken = field(default_factory=CancelToken)
    logged: Counter[str] = field(default_factory=Counter)  # problems by `base.pattern_of` their message
    started_s: float = field(default_factory=time.monotonic)
    # `bar`, `pipeline`: what the clips of this process share, while `resources` are open.
    bar: ProgressBar = field(init=False, repr=False, compare=False)
    pipeline: PipelineResources = field(init=False, repr=False, compare=False)

    def cached(self, trial: Trial) -> ClipResult | None:
        """Return the clip's result if the store holds it and its source is unchanged."""
        if not people_stored(trial, self.store):
            return None
        manifest = self.store.manifest(self.name(trial))
        try:
            stamp = unchanged_stamp(manifest.source, trial.path, trial.kind, self.config.verify_sources)
            if stamp is None:
                return None
            self.store.accept_stamp(self.name(trial), stamp)
        except ClipError as error:
            self.log_alike(logging.WARNING, trial.name,
                           f"the source is missing or unreadable ({error.what}); keeping the stored features")
        return ClipResult(clip=trial.name, state="cached", frames=manifest.frames)

    def name(self, trial: Trial) -> str:
        """Return the clip's name in the store."""
        return person_name(trial, people_of(self.store.settings))

    def source(self, trial: Trial) -> Source:
        """Return the clip's frames."""
        return media.open_source(trial.path, trial.kind, crop_fps=self.config.crop_fps,
                                 damaged=self.config.on_truncated)

    def log_size(self, trials: Sequence[Trial]) -> float:
        """Log the size of the features to come, and return the number of frames that the files state."""
        # Of many clips only a sample is opened; the others count by their bytes, folders by their number.
        sample = _sample(trials)
        frames: float = sum(map(self._stated_frames, sample))
        if len(sample) < len(trials):
            part, whole = (sum(map(_file_bytes, some)) for some in (sample, trials))
            frames *= whole / part if part else len(trials) / len(sample)
        row = 2 * sum(prod(shape) for shape in self.store.taps.values())  # float16
        row = round(row * interpolation.embedded_share(self.config.embed_every))
        views = f" in {self.config.augmentations} views" if self.config.augmentations > 1 else ""
        log.info("%d bytes per frame%s, %.2f GB for about %d frames", row, views, row * frames / 1e9, frames)
        if (row * frames > OFFER_FAST_BYTES and (self.config.precision, self.config.embed_every) == ("float32", "1")
                and self.cnn.net == "facenet" and find_spec("openvino")):
            log.info("--fast stores about %.2f GB and takes about %.0f %% of the time; it is a little less exact",
                     row * frames / 1e9 * interpolation.embedded_share(FAST["embed_every"]), 100 * FAST_TIME)
        return frames

    def run(self, dataset: Dataset, engine: Engine, failures_at: Path) -> ExtractReport:
        """Return the result of each clip, by name, and write those that failed to `failures_at`."""
        done = [ClipResult(clip=problem.where, state="failed", message=problem.message) for problem in dataset.problems
                if problem.is_error]
        waiting = []
        self.store.load_index()
        for trial in dataset.trials:
            cached = self.cached(trial)
            done.append(cached) if cached else waiting.append(trial)
        refused = _refuse_content(waiting)
        waiting = [trial for trial in waiting if trial.name not in refused]
        done += [ClipResult(clip=name, state="failed", message=str(error)) for name, error in refused.items()]
        for issue in base.group_issues(base.Issue(where=name, message=error.what, hint=error.hint)
                                       for name, error in refused.items()):
            log.error("%s%s", f"{len(issue.details)} clips: " if len(issue.details) > 1 else "", issue)
        try:
            if self.cancel.is_cancelled:  # no net is loaded, and no process started, for nothing
                done += map(self.pending, waiting)
            elif waiting:
                done += engine(self, waiting)
        finally:  # also if the run was interrupted
            failed = [c for c in sorted(done, key=lambda c: c.clip) if c.state == "failed"]
            # A run that ended early without a failure proves nothing about the clips in an older list.
            if failed or sum(c.state != "left" for c in done) >= len(dataset.trials):
                write_failures(failures_at, failed)
        self.store.write_index()
        return ExtractReport(store=self.store.path, failures_at=failures_at, fingerprint=self.store.fingerprint,
                             clips=tuple(sorted(done, key=lambda c: c.clip)),
                             seconds=time.monotonic() - self.started_s)

    def run_all(self, trials: Sequence[Trial]) -> Iterator[ClipResult]:
        """Yield the result of each clip; a bad clip does not stop the others. The default engine."""
        total = self.log_size(trials)
        with progress_bar("extract", total) as bar, self.resources(bar, len(trials)) as concurrent:
            yield from self.run_clips(trials, concurrent)

    @contextmanager
    def resources(self, bar: ProgressBar, most: int = 256) -> Iterator[int]:
        """Open what the clips of this process share, and yield how many of at `most` this many clips run at once."""
        from fercache.extraction.resources import in_flight, load_nets, open_resources

        nets = self.nets = self.nets or load_nets(self.config, self.cnn, self.faces)
        # A single clip runs in this thread.
        concurrent = min(most, self.config.concurrent_clips or in_flight(nets.device, nets.threads))
        with open_resources(nets, self.cancel, bar, concurrent) as self.pipeline:
            self.bar = bar
            yield concurrent
            if self.pipeline.profiler.line():
                log.info("%s", self.pipeline.profiler.line())

    def for_process(self) -> dict[str, Any]:
        """Return the fields that only this kind of job has, for a job of the same kind in another process."""
        return {}

    def run_clips(self, trials: Iterable[Trial], concurrent: int) -> Iterator[ClipResult]:
        """Yield the result of each clip as it ends, with open resources, `concurrent` clips at once.

        `trials`: the next one is taken when a thread is free.
        """
        # After exit code 0 a user starts the next stage. So a run ends only when the clips that other processes work on
        # are done too. A clip whose process died is tried again, and so is a clip that failed there.
        def is_locked(trial: Trial) -> bool:
            return encode_name(self.name(trial)) in locked_clips(self.store.path)

        def turn(trial: Trial) -> ClipResult | None:
            if self.cancel.is_cancelled:
                return self.pending(trial)
            return None if is_locked(trial) else self.try_clip(trial)

        logged = False
        while True:
            elsewhere = []
            for trial, result in self._in_threads(turn, trials, concurrent):
                if result is None:
                    elsewhere.append(trial)
                else:
                    yield result
            if not elsewhere:
                return
            if not logged:
                log.info("waiting for clips of another process: %s",
                         shorten_list((trial.name for trial in elsewhere), 1))
                logged = True
            while not self.cancel.is_cancelled and all(map(is_locked, elsewhere)):
                time.sleep(POLL_S)
            trials = elsewhere

    def _in_threads(self, turn: Callable[[Trial], ClipResult | None], trials: Iterable[Trial], concurrent: int
                    ) -> Iterator[tuple[Trial, ClipResult | None]]:
        """Yield each trial with the result of `turn` as it ends; in the calling thread if only one runs at a time."""
        # An exception of one trial, or an interrupt, is raised here after all others were cancelled and have ended.
        if concurrent == 1:
            yield from ((trial, turn(trial)) for trial in trials)
            return
        pool, remaining = ThreadPoolExecutor(concurrent, "clip"), iter(trials)
        try:
            futures = {pool.submit(turn, trial): trial for trial in islice(remaining, concurrent)}
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    trial = futures.pop(future)
                    # Before the result is used: the thread need not wait for that.
                    futures |= {pool.submit(turn, following): following for following in islice(remaining, 1)}
                    yield trial, future.result()
        except BaseException:
            self.cancel.cancel()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def try_clip(self, trial: Trial) -> ClipResult | None:
        """Return the result of a clip, or None if another process works on it."""
        self.bar.note(trial.name)
        try:
            # Another process may have committed the clip since the run began.
            return self.cached(trial) or self.extract_clip(trial)
        except Cancelled:
            return self.pending(trial)
        except ClipError as error:
            self.log_alike(logging.ERROR, trial.name, error.what, f"{error}")
            return ClipResult(clip=trial.name, state="failed", message=str(error))

    def log_alike(self, level: int, clip: str, what: str, text: str = "") -> None:
        """Log a problem of a clip; of many alike ones only the first (the list of failures has all that failed)."""
        pattern = base.pattern_of(what)
        self.logged[pattern] += 1
        if self.logged[pattern] <= base.MAX_ALIKE:
            log.log(level, "%s: %s", clip, text or what)
        elif self.logged[pattern] == base.MAX_ALIKE + 1:
            log.log(level, "more clips like this (%s) are not logged one by one; clips that fail are listed in %s",
                    what, workspace.FAILURES)

    def pending(self, trial: Trial) -> ClipResult:
        """Return the result of a clip that is left to the next run, with an estimate of its frames."""
        return ClipResult(clip=trial.name, state="left", frames=self._stated_frames(trial))

    def extract_clip(self, trial: Trial) -> ClipResult | None:
        """Extract and commit one clip with the open resources; return None if another process took it first."""
        # The hash of every byte, by which a later run recognizes a copy of the file. Before the frames are listed: a
        # picture that is added meanwhile makes the clip a changed one.
        digest = media.source_digest(trial.path, trial.kind, strict=True)
        source = self.source(trial)
        if self.name(trial) in self.store:
            log.warning("%s: the source file has changed or a person is missing from the store; extracting it again",
                        trial.name)
        people = ClipPeople(trial=trial, store=self.store, source=digest, provenance=self.pipeline.provenance)
        config, card = self.config, self.cnn.card
        if self.faces == "cropped":  # around a picture that is a crop there is nothing
            config, card = replace(config, margin=0.0), structs.replace(card, margin=0.0)
        with people.open_first() as writer:
            if writer is None:
                return None
            count = ClipJob(source, writer, self.pipeline, people, config, card).run()
            manifest = writer.commit(**{PEOPLE_COUNT: count} if people.several else {})
        faces = int(self.store[self.name(trial)].frame_table["valid"].sum())
        if not faces:
            self.log_alike(logging.WARNING, trial.name, f"no face in any of its {manifest.frames} frames")
        return ClipResult(clip=trial.name, state="computed", frames=manifest.frames, faces=faces)

    def record_rate(self, report: ExtractReport, cache: Path) -> None:
        """Record this run's frames per second, from which `check` estimates the time of the next one."""
        if self.nets is not None:
            run_log.record_rate(cache, run_log.ExtractionRate(
                faces=self.faces, backbone=self.config.weights, precision=self.config.precision,
                views=self.config.augmentations, embed_every=self.config.embed_every, device=self.nets.device,
                threads=self.nets.threads, seconds=report.seconds, when_s=time.time(),
                frames=report.frames("computed")))

    def _stated_frames(self, trial: Trial) -> int:
        """Return the frames that a clip's file states, 0 if it states none."""
        try:
            return self.source(trial).length() or 0
        except ClipError:  # recorded when the clip is extracted
            return 0


def _refuse_content(trials: Sequence[Trial]) -> dict[str, ClipError]:
    """Return the errors of files that are empty, Git LFS pointers or web pages, by clip."""
    # Before any work: thousands of files may be such, and one line about all of them is enough. But the first clip must
    # not wait until all were opened: the small ones and a sample are, and the rest only if the sample is bad. What is
    # missed here is refused when it is opened.
    def errors(some: Iterable[Trial]) -> Iterator[tuple[str, ClipError]]:
        for trial in some:
            if trial.kind == "video" and trial.path.is_file():  # others are reported when they are opened
                try:
                    check_content(trial.path)
                except ClipError as error:
                    yield trial.name, error

    if any(errors(_sample(trials))):
        return dict(errors(trials))
    return dict(errors(trial for trial in trials if _file_bytes(trial) <= SUSPICIOUS_BYTES))


def _sample(trials: Sequence[Trial]) -> Sequence[Trial]:
    """Return up to OPENED_FIRST of the trials, evenly spread."""
    return trials[::max(1, -(-len(trials) // OPENED_FIRST))]


def _file_bytes(trial: Trial) -> int:
    """Return the size of a clip's file, 0 for a folder and a missing file."""
    try:
        return file_stamp(trial.path)["size"] if trial.kind == "video" else 0
    except ClipError:  # recorded when the clip is extracted
        return 0


# Yields the result of each clip: `ExtractionJob.run_all` in this process, or an engine of `distributed`.
Engine: TypeAlias = Callable[[ExtractionJob, Sequence[Trial]], Iterable[ClipResult]]


# Part of the fingerprint for everything that the code, not a setting, fixes.
FORMAT = {"store": 1, "decoder": video.DECODER, "crop": "pil-bilinear-160"}

# Version of the MTCNN driver, changed whenever its boxes change by more than float noise.
DETECTOR_VERSION = "sums-1"

# Settings that have no effect without a detector.
DETECTION = ("detect_every", "detect_px", "min_face_px", "min_score", "margin", "people")


def resolve_faces(dataset: Dataset, config: ExtractConfig) -> str:
    """Return mtcnn or cropped: what `faces = "auto"` means for this data set.

    Raises InputError if the data set mixes videos and folders of crops, so neither is right for all clips.
    """
    if config.faces != "auto":
        return config.faces
    if not dataset.faces:
        raise InputError("holds both videos and folders of pictures", where=dataset.name,
                         hint="choose --faces mtcnn (detect a face in each picture) or --faces cropped")
    return dataset.faces


def with_card_taps(config: ExtractConfig, cnn: files.Weights) -> ExtractConfig:
    """Return the settings with the taps of the card in place of the default ones, which are facenet-pytorch's."""
    own = cnn.net != "facenet" and cnn.card.taps and config.taps == ExtractConfig().taps
    return replace(config, taps=cnn.card.taps) if own else config


def settings_of(config: ExtractConfig, faces: str, cnn: files.Weights) -> dict[str, Any]:
    """Return everything that changes numbers in the store, as a JSON value; its digest is in the store's name."""
    config = with_card_taps(config, cnn)
    chosen = {**config.settings(), "faces": faces, "weights": cnn.sha256, "backbone": cnn.name, "format": FORMAT}
    if cnn.net != "facenet":
        chosen["card"] = cnn.card.settings()
    if config.augmentations == 1:  # then it does not matter how augmentations are sampled
        del chosen["augmentations"]
    else:
        chosen["augmentation_version"] = crops.AUGMENTATION_VERSION
    if config.embed_every == "auto":
        chosen["embed_version"] = interpolation.EMBED_VERSION
    if config.precision == "int8":  # its ranges come from these faces
        chosen["calibration"] = CALIBRATION_SHA256
    if faces == "cropped":  # a setting without effect must not make another store
        return {k: v for k, v in chosen.items() if k not in DETECTION}
    return {**chosen, "detector": _detector_digest(), "people_version": tracklets.PEOPLE_VERSION,
            "interpolation_version": interpolation.INTERPOLATION_VERSION}


class WeightsSource(msgspec.Struct, frozen=True):
    """The value of ``--weights`` by which weights were found, with an absolute path."""

    weights: str


def record_weights(cache: Path, sha256: str, name: str) -> None:
    """Record where the weights of this digest are, for a `predict` that must find them without a flag."""
    if name in KNOWN_WEIGHTS:
        return
    prefix, colon, rest = name.partition(":")
    path = Path(rest if colon else name).expanduser()
    found = f"{prefix}{colon}{path.resolve()}" if colon else f"{path.resolve()}"
    atomic_io.write_json(Workspace(cache).weights_source(sha256), WeightsSource(found if path.exists() else name))


def recorded_weights(cache: Path, sha256: str) -> str:
    """Return the value of ``--weights`` for the weights of this digest.

    Raises WeightsError if they were never used in this cache.
    """
    path = Workspace(cache).weights_source(sha256)
    if not path.is_file():
        raise WeightsError(f"it is not known where the weights with the sha256 {sha256[:12]} are", where=path.parent,
                           hint="run `fercache extract --weights` with them once in this cache")
    return atomic_io.read_record(path, WeightsSource).weights


def store_path(cache: Location, dataset: str, settings: dict[str, Any]) -> Location:
    """Return the path of the store of these settings."""
    return features_folder(cache, dataset) / store_name(settings["backbone"], fingerprint_of(settings))


def extract_dataset(dataset: Dataset, config: ExtractConfig, cache: Path, features: Location | None = None, *,
                    engine: Engine = ExtractionJob.run_all, failures: str = workspace.FAILURES,
                    stop: Callable[[], bool] = never_cancelled) -> ExtractReport:
    """Bring the store of `dataset` up to date and return the results; stored clips are not computed again.

    Several runs on one store divide the clips. Each waits for those of the others and ends when every clip is done; it
    takes over a clip whose process died. Raises InputError, WeightsError or StoreError if no clip can be extracted at
    all; an error in a single clip goes into the report instead.

    Parameters
    ----------
    features : where the features go instead of below `cache`, such as a URL.
    engine : extracts the clips that are not stored yet; by default in this process.
    failures : file name of the list of failed clips.
    stop : called often, by several threads. Once it returns True, each clip ends at its next block or segment, and the
        remaining clips are reported as left.
    """
    started = time.monotonic()
    if config.embed_every != "1" and not dataset.has_clock:
        log.info("--embed-every has no effect on still photos")
        config = replace(config, embed_every="1")
    faces = resolve_faces(dataset, config)
    if config.device not in ("auto", "cpu"):  # those two always exist
        from fercache.runtime.devices import resolve_device  # torch: seconds that a cached run saves

        resolve_device(config.device)  # before anything is created
    cnn = weights.ensure_weights(config.weights, Workspace(cache).weights)
    config = with_card_taps(config, cnn)
    record_weights(cache, cnn.sha256, config.weights)
    settings = settings_of(config, faces, cnn)
    # Before the store is created: a data set that contradicts --people must leave nothing behind.
    base.check_people(dataset, base.people_of(settings))
    path = store_path(features or cache, dataset.name, settings)
    log.info("store %s", path)
    if "card" in settings and not weights.is_verified(cnn.name, Workspace(cache).weights):
        log.warning("the input of %s is not verified: its card has no vectors of the net's own library "
                    "(see `fercache weights check`)", cnn.name)

    def shapes() -> dict[str, tuple[int, ...]]:
        from fercache.backbones.backbone import shapes_of  # torch: seconds that a cached run saves

        return crops.with_views(shapes_of(cnn, config.taps), config.augmentations)

    store = open_or_create(path, settings, shapes)
    job = ExtractionJob(config, store, faces, cnn, cancel=CancelToken(stop), started_s=started)
    report = job.run(dataset, engine, Workspace(cache).failures(dataset.name, failures))
    # An interrupted run does not get here: the pointer stays at the store of the last run that ended by itself.
    write_pointer(features_folder(features or cache, dataset.name) / CURRENT, path)
    job.record_rate(report, cache)
    if config.thumbnails:
        written = thumbnails.write_thumbnails(base.stored_trials(dataset, store).trials, store, cache)
        log.info("thumbnails: faces of %d clips written to %s", written, Workspace(cache).thumbnails(store.path))
    return report


def current_store(cache: Location, dataset: str) -> Location:
    """Return the store of the last `extract` of this data set. Raises InputError if nothing was extracted yet."""
    store = current_store_or_none(cache, dataset)
    if store is None:
        raise InputError("nothing was extracted yet", where=features_folder(cache, dataset),
                         hint="run `fercache extract` first")
    return store


def current_store_or_none(cache: Location, dataset: str) -> Location | None:
    """Return the store of the last `extract` of this data set, or None."""
    return read_pointer(features_folder(cache, dataset) / CURRENT)


def open_or_create(path: Location, settings: dict[str, Any], taps: Callable[[], dict[str, tuple[int, ...]]]
                   ) -> EmbeddingStore:
    """Return the store at `path` for writing; create it, with the shapes that `taps` returns, if it does not exist."""
    if EmbeddingStore.exists(path):
        try:
            store = EmbeddingStore.open(path, mode="a")
        except StoreError as error:
            log.warning("%s; rewriting its root, readable clips are kept", error.what)
        else:
            store.sweep()
            return store
    return EmbeddingStore.create(path, settings, taps(), repair=True)


def _detector_digest() -> str:
    """Return a digest of MTCNN's three nets in facenet-pytorch, without importing the package."""
    spec = find_spec("facenet_pytorch")  # importing it would import torch
    if spec is None or spec.origin is None:
        raise InputError("facenet-pytorch is not installed", hint="pip install facenet-pytorch==2.5.3")
    # MTCNN's three nets: pnet.pt, rnet.pt, onet.pt.
    files = sorted((Path(spec.origin).parent / "data").glob("?net.pt"))
    return fingerprint_of([DETECTOR_VERSION, *(atomic_io.file_sha256(path) for path in files)])
