"""Predictions in the organisers' format: row for row what their template asks for, or a list of the difference.

Open this file first; `formats.py` holds the rows of each format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fercache.config import SubmitConfig
from fercache.data import labels
from fercache.data.affwild2 import SIDES, parent_of
from fercache.errors import InputError
from fercache.results import io
from fercache.results.submit import formats
from fercache.results.submit.formats import ClassTranslator, FilledRows, RowDifference, lines

# What each edition wants: which form of file, and which classes in which order.

Form = Literal["frames", "list", "dfew", "ferv39k"]

FORMS: dict[Form, str] = {
    "frames": "one file with a row for each frame (ABAW5 and later)",
    "list": "a test list, a trial a line, for a folder of <trial>.txt (ABAW1 to ABAW3)",
    "dfew": "DFEW's table video_name,label",
    "ferv39k": "FERV39k's table: clip and label name with a blank between them",
}


class Edition(NamedTuple):
    """The form of an edition's template, and the names of its classes in the order of their numbers."""

    form: Form
    classes: tuple[str, ...]


EDITIONS = {
    "abaw1": Edition("list", labels.SETS["abaw7"]), "abaw2": Edition("list", labels.SETS["abaw7"]),
    "abaw3": Edition("list", labels.SETS["abaw8"]), "abaw5": Edition("frames", labels.SETS["abaw8"]),
    "abaw6": Edition("frames", labels.SETS["abaw8"]), "abaw8": Edition("frames", labels.SETS["abaw8"]),
    "dfew": Edition("dfew", labels.SETS["dfew"]), "ferv39k": Edition("ferv39k", labels.SETS["ferv39k"]),
}
CLIP = re.compile(rb"[^\s,]+/[^\s,]+/[^\s,]+ [A-Za-z]+")


def form_of(path: Path) -> Form:
    """Return what kind of template a file is, by its first line.

    Raises
    ------
    InputError
        It is absent, empty, or of no kind that is known.
    """
    first = next(lines(path, exact=False), b"")
    if first.startswith(b"image_location"):
        return "frames"
    if first.replace(b" ", b"").lower() == b"video_name,label":
        return "dfew"
    if CLIP.fullmatch(first):
        return "ferv39k"
    if first and b"," not in first and b"/" not in first:
        return "list"
    raise InputError(f"no template: its first line is {first[:80].decode(errors='replace')!r}", where=path,
                     hint=f"give the organisers' file: {'; '.join(FORMS.values())}")


def choose_classes(wanted: str, form: Form, given: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Return the classes to write, in the order of their numbers.

    Parameters
    ----------
    wanted : an edition's name, or "auto".
    given : the classes of the predictions, which decide what a test list is for where the edition is not named.

    Raises
    ------
    InputError
        The edition wants another form of template, or nothing says how many classes the test list is for.
    """
    if wanted != "auto":
        edition = EDITIONS[wanted]
        if edition.form != form:
            raise InputError(f"{wanted} wants {FORMS[edition.form]}; this is {FORMS[form]}", where=path,
                             hint="check --edition and --template")
        return edition.classes
    fitting = [edition.classes for edition in EDITIONS.values() if edition.form == form]
    if form == "frames":
        return formats.classes_of(path)
    if form != "list":
        return fitting[0]
    same = [classes for classes in fitting if len(classes) == len(given)
            and labels.map_class_names(given, classes).one_to_one]
    if not same:
        raise InputError(f"a test list does not say its classes, and the predictions have {', '.join(given)}",
                         where=path, hint="name the edition: --edition abaw2 (7 classes) or abaw3 (8 classes)")
    return same[0]


Frames = NDArray[np.int64]


class SubmissionPaths(NamedTuple):
    """Where things are: the organisers' template, our predictions, and lengths of trials where they are given."""

    template: Path
    preds: Path
    out: Path
    frames: Path | None = None
    videos: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What was written.

    Attributes
    ----------
    rows, trials : how many; notes : what its sender must know.
    """

    out: Path
    form: Form
    rows: int
    trials: int
    notes: tuple[str, ...]


def write_submission(places: SubmissionPaths, config: SubmitConfig) -> Submission:
    """Write the submission and return what was written; nothing is written where something does not match.

    Raises
    ------
    InputError
        The template or the predictions are damaged, they do not match row for row, their classes differ and no map is
        asked for, or nothing can be written at `out`.
    """
    if places.out.resolve() in (places.template.resolve(), places.preds.resolve()):
        raise InputError("--out names a file that is read", where=places.out, hint="choose another name")
    form = form_of(places.template)
    given = io.PredictionsFile(places.preds)
    if form != "list" and (places.frames or places.videos):
        raise InputError("the template gives the rows itself", where=places.template,
                         hint="--frames and --videos belong to a test list")
    names = _names(given, choose_classes(config.edition, form, given.classes, places.template), config)
    notes = () if names.source == names.target else (f"classes: {names.describe()}",)
    if form == "frames":
        made = _single_file(places, given, ClassTranslator(names), config)
    elif form == "list":
        made = _folder(places, given, ClassTranslator(names), config)
    else:
        made = _clip_table(places, given, ClassTranslator(names), form)
    return Submission(out=places.out, form=form, rows=made.rows, trials=made.trials, notes=(*notes, *made.notes))


class _Written(NamedTuple):
    rows: int
    trials: int
    notes: tuple[str, ...]


def _names(given: io.PredictionsFile, wanted: tuple[str, ...], config: SubmitConfig) -> labels.LabelMap:
    """Return the label map; one that changes more than order and spelling only where it was asked for.

    Raises
    ------
    InputError
        Classes differ, and no map is asked for.
    """
    found = labels.map_class_names(given.classes, wanted, labels.parse(config.map))
    if not found.one_to_one and not config.map:
        raise InputError(f"the predictions have {len(given.classes)} classes, {len(wanted)} are wanted: "
                         f"{found.describe()}", where=given.path,
                         hint="--map names goes by the names all the same, --map A=B says what becomes what")
    return found


def _single_file(places: SubmissionPaths, given: io.PredictionsFile, translator: ClassTranslator,
                 config: SubmitConfig) -> _Written:
    template = formats.read_template(places.template)
    if template.classes != translator.names.target:
        raise InputError(f"its header has {len(template.classes)} classes", where=places.template,
                         hint=f"{config.edition} has {', '.join(translator.names.target)}; check --edition")
    forgiven: FilledRows = "all" if config.rows == "template" else "nothing"
    predicted, difference, others = _answer(given, template.trials, translator, config, forgiven)
    difference.check(str(places.template), "check that the predictions are of this test set; if only lengths differ, "
                     "--rows template takes the organisers' rows, fills those that we lack and says so")
    flat = np.concatenate([predicted[trial] for trial in template.trials]).astype(np.int16)
    formats.write_single_file(template, flat, places.out)
    return _Written(template.rows, len(template.trials), (*_report_difference(difference, config), *others))


def _folder(places: SubmissionPaths, given: io.PredictionsFile, translator: ClassTranslator,
            config: SubmitConfig) -> _Written:
    trials = formats.folder_names(places.template)
    wanted: dict[str, Frames | None] = dict.fromkeys(trials)
    forgiven: FilledRows = "all" if config.rows == "template" else "nothing"
    for place, count in ((places.frames, formats.of_table), (places.videos, formats.of_videos)):
        if place is not None:
            wanted |= {trial: np.arange(1, many + 1) for trial, many in count(place, trials).items()}
            forgiven = "all" if forgiven == "all" else "ends"
    predicted, difference, others = _answer(given, wanted, translator, config, forgiven)
    difference.check(str(places.template), "predict every trial of the list; --rows template fills frames between "
                     "predicted ones and says so")
    formats.write_folder({trial: predicted[trial] for trial in trials}, translator.names.target, places.out)
    counted = () if places.frames or places.videos else (
        "lengths are those of the predictions' clock; --frames or --videos compares them with the organisers' count",)
    return _Written(sum(map(len, predicted.values())), len(trials),
                    (*_report_difference(difference, config), *counted, *others))


def _clip_table(places: SubmissionPaths, given: io.PredictionsFile, translator: ClassTranslator,
                form: Form) -> _Written:
    predicted = formats.clip_table_answers(given, formats.clip_table_names(places.template, form), translator,
                                      places.template)
    formats.write_clip_table(predicted, form, translator.names.target, places.out)
    return _Written(len(predicted), len(predicted), (io.POOLED, formats.UNOFFICIAL))


def _answer(given: io.PredictionsFile, wanted: Mapping[str, Frames | None], translator: ClassTranslator,
            config: SubmitConfig, forgiven: FilledRows) -> tuple[dict[str, Frames], RowDifference, tuple[str, ...]]:
    """Return trial -> class of each wanted frame, how that differs from the predictions, and what else is to be told.

    Parameters
    ----------
    wanted : trial -> its frames; None stands for every frame up to the last predicted one.
    """
    predicted: dict[str, Frames] = {}
    difference, others = RowDifference(), set[str]()
    for clip in given.clips():
        name = io.match_clip(clip.name, wanted)
        if name not in wanted:
            others.add(clip.name)
            continue
        asked = wanted[name]
        frames_ = np.arange(1, int(clip.frame[-1]) + 1) if asked is None else asked
        difference.note(name, clip.frame, frames_, forgiven)
        predicted[name] = translator.at(clip, frames_, config.missing_faces).astype(np.int16)
    difference.absent = [_sided(trial, {*predicted, *others}) for trial in wanted if trial not in predicted]
    return predicted, difference, (f"{len(others):,} clips of the predictions are not asked for",) if others else ()


def _sided(trial: str, predicted: Set[str]) -> str:
    """Return a trial without prediction; where another person of its video has one, that is said too."""
    others = [name for name in (parent_of(trial), *(f"{parent_of(trial)}_{side}" for side in SIDES))
              if name != trial and name in predicted]
    return f"{trial} ({others[0]} is another person of that video)" if others else trial


def _report_difference(difference: RowDifference, config: SubmitConfig) -> tuple[str, ...]:
    """Return the notes about rows that were filled or left out."""
    if not difference.trials:
        return ()
    shown = difference.trials[:20]
    more = [f"and {len(difference.trials) - len(shown):,} more trials"] if len(difference.trials) > len(shown) else []
    head = (f"lengths differ in {len(difference.trials):,} trials; theirs are taken, and what we lack is filled by the "
            f"policy {config.missing_faces}")
    return (head, *shown, *more)
