"""One run over the clips of a data set: what is cached, what is to do, and what becomes of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fercache import media, rates_part
from fercache.backbones.weights import files
from fercache.config import ExtractConfig
from fercache.data.base import Trial
from fercache.data.persons_part import COUNT, people_held, people_of, person_name
from fercache.errors import ClipError
from fercache.extraction import resources
from fercache.extraction.beside_part import Together
from fercache.extraction.brake_part import Brake, Stopped
from fercache.extraction.done_part import ClipDone, ExtractReport
from fercache.extraction.share_part import in_turn
from fercache.extraction.sources_part import unchanged
from fercache.media.source import Source
from fercache.runtime.progress import Meter, meter
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.locks import claimed
from fercache.store.names_part import encode

if TYPE_CHECKING:
    from fercache.extraction.plant_part import Plant
    from fercache.extraction.resources import Nets

log = logging.getLogger(__name__)


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
        """Return the frames to come, as far as the files say; the log tells what they will take."""
        total, row = self._total(trials), 2 * sum(prod(shape) for shape in self.store.taps.values())
        log.info("%d bytes a frame%s, %.2f GB for the %d frames to come", row,
                 f" in {self.config.views} views" if self.config.views > 1 else "", row * total / 1e9, total)
        return total

    def through(self, trials: Sequence[Trial], loaded: Nets, bar: Meter) -> Iterator[ClipDone]:
        """Yield what becomes of each clip as it is done, with nets that are loaded, on a meter that runs."""
        from fercache.extraction.plant_part import opened

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
        from fercache.extraction.clip import ClipJob
        from fercache.extraction.persons_part import Whom

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
            rates_part.record(cache, rates_part.Rate(
                faces=self.faces, backbone=self.config.weights, precision=self.config.precision,
                views=self.config.views, device=self.nets.device, threads=self.nets.threads,
                seconds=report.seconds, when_s=rates_part.now_s(),
                frames=sum(c.frames for c in report.clips if c.state == "computed")))

    def _total(self, trials: Sequence[Trial]) -> float:
        """Return the frames to come, as far as the files say."""
        return sum(map(self._length, trials))

    def _length(self, trial: Trial) -> int:
        """Return the frames that a clip's file states, 0 where it states none."""
        try:
            return self.source(trial).length() or 0
        except ClipError:  # it is recorded when its turn comes
            return 0
