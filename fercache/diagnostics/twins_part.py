"""Clips whose content is the same under two names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fercache import media
from fercache.data.base import Trial
from fercache.diagnostics.index_part import Facts
from fercache.errors import ClipError
from fercache.media import pictures
from fercache.media.pictures import MAX_BYTES

SAMPLES = 8
"""Pictures of a folder that are compared byte by byte, spread from first to last."""


def find(trials: Sequence[Trial], facts: Mapping[str, Facts]) -> list[list[Trial]]:
    """Return the sets of trials with the same content, each sorted by name.

    Notes
    -----
    Cheap first: only clips of the same kind, the same bytes and (of crops) the same numbers are opened at all; then the
    sampled hash that the store uses, of a folder that of 8 of its pictures. Clips of no bytes are left out, and so are
    two trials of one file (two people of a video).
    """
    alike: dict[tuple[str, int, str], list[Trial]] = defaultdict(list)
    for trial in trials:
        known = facts[str(trial.path)]
        if known.bytes and not known.problem:
            alike[trial.kind, known.bytes, known.runs].append(trial)
    found: list[list[Trial]] = []
    for group in alike.values():
        if len({trial.path for trial in group}) > 1:
            found += _same(group, facts)
    return sorted(found, key=lambda group: group[0].name)


def _same(group: Sequence[Trial], facts: Mapping[str, Facts]) -> Iterator[list[Trial]]:
    """Yield those of a group that are the same by hash."""
    by_hash: dict[str, list[Trial]] = defaultdict(list)
    for trial in group:
        try:
            by_hash[_hash(trial, facts[str(trial.path)])].append(trial)
        except (OSError, ClipError):
            continue  # told as unreadable elsewhere
    for same in by_hash.values():
        if len({trial.path for trial in same}) > 1:
            yield sorted(same, key=lambda trial: trial.name)


def _hash(trial: Trial, known: Facts) -> str:
    if trial.kind == "video":
        return str(media.digest(trial.path, "video")["sha256"])
    names = pictures.numbered(trial.path)
    numbers = sorted(names)
    state = hashlib.sha256(known.runs.encode())
    for place in sorted({(len(numbers) - 1) * i // (SAMPLES - 1) for i in range(SAMPLES)}):
        state.update(hashlib.sha256(_bytes(trial.path / names[numbers[place]])).digest())
    return state.hexdigest()


def _bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES)
