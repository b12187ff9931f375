"""The people of one clip in the store: they come and go together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fercache.data.base import Trial
from fercache.data.persons_part import COUNT, SIDES, people_held, people_of, person_name
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.locks import claimed
from fercache.store.names_part import encode
from fercache.store.writer import ClipWriter


@dataclass(frozen=True, kw_only=True)
class Together:
    """A clip's people in the store; the first one's commit mark, written last, stands for all.

    Attributes
    ----------
    source, provenance : as `EmbeddingStore.writer` takes them.
    """

    trial: Trial
    store: EmbeddingStore
    source: dict[str, Any]
    provenance: dict[str, Any]

    def name(self, number: int = 1) -> str:
        """Return what the person of a number is called."""
        return person_name(self.trial, people_of(self.store.settings), number)

    @contextmanager
    def begun(self) -> Iterator[ClipWriter | None]:
        """Yield the writer of the first person, None where another process holds it or has just committed it.

        Notes
        -----
        Where it begins from nothing, the others of an earlier source or run go first, the last one before.
        """
        several = self.name() != self.trial.name
        known = self._stated() if several else 0
        if known and not people_held(self.trial, self.store) and encode(self.name()) not in claimed(self.store.path):
            self.store.remove(self.name())  # one of the others was lost: all are done again
        with self.store.writer(self.name(), source=self.source, provenance=self.provenance) as writer:
            if several and writer is not None and not writer.detected:
                self._clear(known)
            yield writer

    @contextmanager
    def beside(self, number: int) -> Iterator[ClipWriter | None]:
        """Yield the writer of another person, None where that one is committed."""
        with self.store.writer(self.name(number), source=self.source, provenance=self.provenance) as writer:
            yield writer

    def _stated(self) -> int:
        """Return how many people the first one's mark states, 0 where there is none."""
        return int(self.store.mark(self.name()).provenance.get(COUNT, 0)) if self.name() in self.store else 0

    def _clear(self, known: int) -> None:
        """Remove every other person, the last one first; they were committed in the order of their numbers."""
        last = len(SIDES) if people_of(self.store.settings) == "left/right" else max(known, 1)
        while people_of(self.store.settings) == "all" and self.name(last + 1) in self.store:
            last += 1
        for number in range(last, 1, -1):
            if self.name(number) in self.store:
                self.store.remove(self.name(number))
