"""Stage one: clips -> the embedding store. Each frame is decoded, its face found and the CNN run once, ever."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from fercache.backbones import weights
from fercache.backbones.weights import files
from fercache.config import ExtractConfig, digest
from fercache.data import base, persons_part
from fercache.data.base import Dataset, Trial
from fercache.errors import InputError, StoreError
from fercache.extraction import thumbnails
from fercache.extraction.brake_part import Brake, never
from fercache.extraction.done_part import ClipDone, ExtractReport, write_failures
from fercache.extraction.work_part import Work
from fercache.faces import augmentation, interpolation, people_part
from fercache.media import video
from fercache.runtime import atomic_io, wheels
from fercache.runtime.uri import Place
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.remote import read_json, write_json

log = logging.getLogger(__name__)


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
    return {**chosen, "detector": _detector_digest(), "people_policy": people_part.POLICY, "follow_policy": interpolation.POLICY}


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
    persons_part.check_people(dataset, persons_part.people_of(settings))
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
        kept = thumbnails.keep(persons_part.present(dataset, store).trials, store, cache)
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

    return EmbeddingStore.create(path, settings, augmentation.stored(shapes_of(cnn, config.taps), config.views), mend=True)


def _detector_digest() -> str:
    """Return the sha256 over MTCNN's three nets, which facenet-pytorch carries; without importing it."""
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        raise InputError("facenet-pytorch is not installed", hint="pip install facenet-pytorch==2.5.3")
    files = sorted((Path(spec.origin).parent / "data").glob("?net.pt"))
    return digest([MTCNN, *(wheels.file_sha256(path) for path in files)])
