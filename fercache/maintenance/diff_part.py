"""What two stores differ in: settings, taps, clips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fercache.runtime.uri import Place
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.manifest import Mark

ABSENT = "(absent)"


@dataclass(frozen=True, kw_only=True)
class ClipDiff:
    """A clip that both stores hold and that is not the same in both.

    Attributes
    ----------
    frames : in the one and in the other.
    arrays : those whose bytes differ.
    provenance : what differs of device, versions and threads: key -> one and other.
    """

    clip: str
    frames: tuple[int, int]
    arrays: tuple[str, ...]
    provenance: dict[str, tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class DiffReport:
    """What `diff` found; `settings` and `taps` are key -> value in the one and in the other."""

    stores: tuple[Place, Place]
    settings: dict[str, tuple[Any, Any]]
    taps: dict[str, tuple[Any, Any]]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    differ: tuple[ClipDiff, ...]
    same: int

    @property
    def equal(self) -> bool:
        """Whether settings, taps and the bytes of every clip agree."""
        return not (self.settings or self.taps or self.only_first or self.only_second or self.differ)


def diff(first: Place, second: Place) -> DiffReport:
    """Return which settings, taps and clips two stores differ in; from their marks, without reading the arrays.

    Raises
    ------
    StoreError
        One of them is no store.
    """
    one, other = EmbeddingStore.open(first), EmbeddingStore.open(second)
    left, right = set(one), set(other)
    found = [_clip(one.mark(clip), other.mark(clip)) for clip in sorted(left & right)]
    differ = tuple(entry for entry in found if entry is not None)
    return DiffReport(stores=(one.path, other.path), settings=_values(one.settings, other.settings),
                      taps=_values(one.taps, other.taps), only_first=tuple(sorted(left - right)),
                      only_second=tuple(sorted(right - left)), differ=differ, same=len(found) - len(differ))


def _clip(one: Mark, other: Mark) -> ClipDiff | None:
    digests = [{name: array.digest for name, array in mark.arrays.items()} for mark in (one, other)]
    arrays = tuple(_values(*digests))
    if one.frames == other.frames and not arrays:
        return None
    return ClipDiff(clip=one.clip, frames=(one.frames, other.frames), arrays=arrays,
                    provenance=_values(one.provenance, other.provenance))


def _values(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs, with keys of dictionaries in dictionaries joined by dots."""
    left, right = _flat(one), _flat(other)
    return {key: (left.get(key, ABSENT), right.get(key, ABSENT)) for key in sorted(left.keys() | right.keys())
            if left.get(key, ABSENT) != right.get(key, ABSENT)}


def _flat(value: dict[str, Any], head: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found |= _flat(inner, f"{head}{key}.") if isinstance(inner, dict) and inner else {f"{head}{key}": inner}
    return found
