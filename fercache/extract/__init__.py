"""Stage one: clips -> the embedding store. Each frame is decoded, its face found and the CNN run once, ever."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

from fercache import datasets, durable, media, rates, thumbs, views, weights
from fercache.config import ExtractConfig, digest
from fercache.datasets import Dataset, Trial
from fercache.errors import ClipError, InputError, StoreError
from fercache.extract.done import ClipDone, ExtractReport, write_failures
from fercache.extract.share import in_turn
from fercache.extract.sources import unchanged
from fercache.place import Place
from fercache.progress import Meter, meter
from fercache.store import EmbeddingStore, claimed, read_json, write_json
from fercache.store.names import encode

__all__ = ["ClipDone", "ExtractReport", "current", "faces_of", "run", "settings_of", "store_path", "write_failures"]

log = logging.getLogger(__name__)

FORMAT = {"store": 1, "decoder": media.DECODER, "crop": "pil-bilinear-160"}
"""What the code itself fixes of the numbers; a change here is a new fingerprint."""

DETECTION = ("every", "detect_px", "min_face_px", "min_score", "margin")
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


def settings_of(config: ExtractConfig, faces: str, cnn: weights.Weights) -> dict[str, Any]:
    """Return everything that changes numbers in the store, as a JSON value: its digest names the store."""
    chosen = {**config.settings(), "faces": faces, "weights": cnn.sha256, "backbone": cnn.name, "format": FORMAT}
    if config.views == 1:  # as stores were named before there were views: they hold the same
        del chosen["views"]
    else:
        chosen["view_policy"] = views.POLICY
    if faces == "cropped":  # no detector is run: its settings change nothing
        return {k: v for k, v in chosen.items() if k not in DETECTION}
    return {**chosen, "detector": _detector_digest()}


def store_path(cache: Place, dataset: str, settings: dict[str, Any]) -> Place:
    """Return where the store of these settings lies."""
    return cache / "features" / dataset / f"{settings['backbone']}-{digest(settings)[:12]}.zarr"


def run(dataset: Dataset, config: ExtractConfig, cache: Path, place: Place | None = None) -> ExtractReport:
    """Return what was done to bring the store of `dataset` up to date; clips that are there are left alone.

    Parameters
    ----------
    place : where the features go instead of the cache, such as a URL.

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
    path = store_path(place or cache, dataset.name, settings)
    log.info("store %s", path)
    store = _opened(path, settings, config, cnn)
    work = _Work(dataset, config, store, faces, cnn)
    done = [_lost(problem) for problem in dataset.problems if problem.lost]
    waiting = []
    for trial in dataset.trials:
        cached = work.cached(trial)
        done.append(cached) if cached else waiting.append(trial)
    try:
        if waiting:
            done += work.all(waiting)
    finally:  # a run that is stopped tells of its failures too
        failed = [c for c in sorted(done, key=lambda c: c.clip) if c.state == "failed"]
        if failed or len(done) >= len(dataset.trials):
            write_failures(cache / "features" / dataset.name / "failures.csv", failed)
    report = ExtractReport(store=path, failures_at=cache / "features" / dataset.name / "failures.csv",
                           fingerprint=digest(settings), seconds=time.monotonic() - started,
                           clips=tuple(sorted(done, key=lambda c: c.clip)))
    write_json(path.parent / "current.json", {"store": path.name})
    work.measured(report, cache)
    if config.thumbnails:
        log.info("thumbnails: faces of %d clips kept in %s", thumbs.keep(dataset.trials, store, cache),
                 thumbs.folder_of(cache, store))
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
    return pointer.parent / durable.neighbour(said, "store", pointer)


@dataclass
class _Work:
    """One run over the clips: nets are loaded once, when the first clip needs them."""

    dataset: Dataset
    config: ExtractConfig
    store: EmbeddingStore
    faces: str
    cnn: weights.Weights
    nets: dict[str, Any] = field(default_factory=dict)

    def cached(self, trial: Trial) -> ClipDone | None:
        """Return the clip's entry if the store holds it and its source is unchanged."""
        if trial.name not in self.store:
            return None
        mark = self.store.mark(trial.name)
        try:
            same = unchanged(mark.source, trial.path, trial.kind, self.config.strict)
        except ClipError as error:
            log.warning("%s: the source is gone or unreadable (%s); the stored features stay", trial.name, error.what)
            same = True
        return ClipDone(clip=trial.name, state="cached", frames=mark.frames) if same else None

    def source(self, trial: Trial) -> media.Source:
        """Return the clip's frames."""
        return media.open_source(trial.path, trial.kind, crop_fps=self.config.crop_fps, damaged=self.config.damaged)

    def all(self, trials: Sequence[Trial]) -> Iterator[ClipDone]:
        """Yield what becomes of each clip; a bad clip does not stop the rest."""
        self.load()
        total, row = _total(trials, self), 2 * sum(prod(shape) for shape in self.store.taps.values())
        log.info("%d bytes a frame%s, %.2f GB for the %d frames to come", row,
                 f" in {self.config.views} views" if self.config.views > 1 else "", row * total / 1e9, total)
        with meter("extract", total) as bar:
            yield from in_turn(trials, lambda trial: self.attempt(trial, bar),
                               lambda clip: encode(clip) in claimed(self.store.path))

    def attempt(self, trial: Trial, bar: Meter) -> ClipDone | None:
        """Return what became of a clip, None if another process is at it."""
        bar.note(trial.name)
        try:
            return self.cached(trial) or self.one(trial, bar)  # done by another process meanwhile
        except ClipError as error:
            log.error("%s: %s", trial.name, error)
            return ClipDone(clip=trial.name, state="failed", message=str(error))

    def load(self) -> None:
        """Load detector and CNN."""
        from fercache.backbones import Backbone  # torch: seconds that a cached run saves
        from fercache.cores import resolve_device, use_threads

        device = resolve_device(self.config.device)
        self.nets["threads"] = use_threads(self.config.threads)
        self.nets["device"] = device
        self.nets["backbone"] = Backbone.load(self.cnn, self.config.taps, precision=self.config.precision,
                                              device=device, backend=self.config.backend)
        if self.faces == "mtcnn":
            from fercache.faces import Detector

            self.nets["detector"] = Detector(min_face_px=self.config.min_face_px, min_score=self.config.min_score,
                                             detect_px=self.config.detect_px, device=device)

    def provenance(self) -> dict[str, Any]:
        """Return what float noise depends on: equal provenance gives equal bytes."""
        names = ["torch", "facenet-pytorch", "numpy", "av", "pillow"]
        if self.config.backend != "torch":
            names.append(self.config.backend)
        return {"device": self.nets["device"], "threads": self.nets["threads"], "machine": platform.machine(),
                "backend": self.config.backend, "versions": {name: version(name) for name in names}}

    def measured(self, report: ExtractReport, cache: Path) -> None:
        """Keep how many frames a second this run made, for what `check` says of the next one."""
        if self.nets:
            rates.record(cache, rates.Rate(
                faces=self.faces, backbone=self.config.weights, precision=self.config.precision,
                views=self.config.views, device=str(self.nets["device"]), threads=int(self.nets["threads"]),
                seconds=report.seconds, when_s=rates.now_s(),
                frames=sum(c.frames for c in report.clips if c.state == "computed")))

    def one(self, trial: Trial, bar: Meter) -> ClipDone | None:
        """Bring one clip from source to commit mark; None if another process took it first."""
        from fercache.extract.clip import ClipJob

        source = self.source(trial)
        if trial.name in self.store:
            log.warning("%s: the source file has changed; it is done again", trial.name)
        with self.store.writer(trial.name, source=source.digest(strict=True), provenance=self.provenance()) as writer:
            if writer is None:
                return None
            ClipJob(source, writer, self.nets["backbone"], self.nets.get("detector"), bar, side=trial.side,
                    every=self.config.every, margin=self.config.margin, views=self.config.views).run()
            mark = writer.commit()
        faces = int(self.store[trial.name].clock["valid"].sum())
        if not faces:
            log.warning("%s: no face in any of its %d frames", trial.name, mark.frames)
        return ClipDone(clip=trial.name, state="computed", frames=mark.frames, faces=faces)


def _check_device(name: str) -> None:
    """Refuse a device that is not there, before anything is made; the usual ones are always there."""
    if name not in ("auto", "cpu"):
        from fercache.cores import resolve_device  # torch: seconds that a cached run saves

        resolve_device(name)


def _lost(problem: datasets.Problem) -> ClipDone:
    return ClipDone(clip=problem.where, state="failed", message=problem.what)


def _total(trials: Sequence[Trial], work: _Work) -> float:
    """Return the frames to come, as far as the files say."""
    total = 0
    for trial in trials:
        try:
            total += work.source(trial).length() or 0
        except ClipError:  # it is recorded when its turn comes
            continue
    return total


def _opened(path: Place, settings: dict[str, Any], config: ExtractConfig, cnn: weights.Weights) -> EmbeddingStore:
    """Return the store at `path`, made if it is not there."""
    if EmbeddingStore.exists(path):
        try:
            store = EmbeddingStore.open(path, mode="a")
        except StoreError as error:
            log.warning("%s; it is written anew, the clips stay", error.what)
        else:
            store.sweep()
            return store
    from fercache.backbones import shapes_of  # torch: seconds that a cached run saves

    return EmbeddingStore.create(path, settings, views.stored(shapes_of(cnn, config.taps), config.views), mend=True)


def _detector_digest() -> str:
    """Return the sha256 over MTCNN's three nets, which facenet-pytorch carries; without importing it."""
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        raise InputError("facenet-pytorch is not installed", hint="pip install facenet-pytorch==2.5.3")
    files = sorted((Path(spec.origin).parent / "data").glob("?net.pt"))
    return digest([weights.file_sha256(path) for path in files])
