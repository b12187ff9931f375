"""Which trials a store holds of a data set: a clip as it is, or one a person of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from fercache.data.base import UNKNOWN, Dataset, Trial
from fercache.errors import InputError

SIDES = "left", "right"
COUNT = "people"
"""In the mark of the first person of a clip: how many there are."""


class Mark(Protocol):
    """What a store keeps of a committed clip."""

    @property
    def provenance(self) -> dict[str, Any]:
        """How it was made; of the first person of several, how many there are."""


class Store(Protocol):
    """An embedding store, as far as it is asked here."""

    settings: dict[str, Any]

    def __contains__(self, clip: object) -> bool:
        """Return whether a clip is committed."""

    def mark(self, clip: str) -> Mark:
        """Return what was committed."""


def people_of(settings: Mapping[str, Any]) -> str:
    """Return whom the rows of a store with these settings are of: main, all or left/right."""
    return str(settings.get("people", "main"))


def person_name(trial: Trial, people: str, number: int = 1) -> str:
    """Return what a person of a clip is called in a store: the first, who is committed last, has number 1.

    Notes
    -----
    A trial that is one of two people by its own name stays what it is.
    """
    if people == "main" or trial.side:
        return trial.name
    return f"{trial.name}#{number}" if people == "all" else f"{trial.name}_{SIDES[number - 1]}"


def check_people(dataset: Dataset, people: str) -> None:
    """Refuse a data set in which a clip has the name of another one's person.

    Raises
    ------
    InputError
        There is such a clip.
    """
    ends = {"all": r"#\d+", "left/right": f"_({'|'.join(SIDES)})"}.get(people)
    several = {trial.name for trial in dataset.trials if not trial.side}
    for trial in dataset.trials if ends else ():
        found = re.fullmatch(f"(.*){ends}", trial.name, re.DOTALL)
        if found and found[1] in several:
            raise InputError(f"the clip {trial.name!r} has the name of a person of {found[1]!r}", where=dataset.name,
                             hint="rename one of them, or leave --people out")


def people_held(trial: Trial, store: Store) -> int:
    """Return how many people of a clip a store holds; 0 where it does not hold all of them."""
    people = people_of(store.settings)
    first = person_name(trial, people)
    if first not in store:
        return 0
    if first == trial.name:
        return 1
    count = int(store.mark(first).provenance.get(COUNT, 0))
    return count if all(person_name(trial, people, k) in store for k in range(2, count + 1)) else 0


def present(dataset: Dataset, store: Store) -> Dataset:
    """Return the data set with each clip replaced by its people, where the store holds one trial a person.

    Notes
    -----
    They share parent, group, subject and split. The clip's labels belong to its main person, `CLIP#1`; of two called
    left and right nobody knows whose they are, so neither has them. Clips that are not in the store stay as they are.
    """
    if people_of(store.settings) == "main":
        return dataset
    trials = (one for trial in dataset.trials for one in _people(trial, store))
    return replace(dataset, trials=tuple(sorted(trials, key=lambda trial: trial.name)))


def _people(trial: Trial, store: Store) -> list[Trial]:
    """Return the trials that stand for one of the data set."""
    people = people_of(store.settings)
    if trial.name in store:
        return [trial]
    named = [replace(trial, name=person_name(trial, people, k)) for k in range(1, people_held(trial, store) + 1)]
    whose = 1 if people == "all" else 0
    return [*named[:whose], *(replace(one, labels=None, clip_label=UNKNOWN) for one in named[whose:])] or [trial]
