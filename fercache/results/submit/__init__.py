"""Predictions in the organizers' format: row for row what their template asks for, or a list of the differences.

Open this file first; `formats.py` reads and writes each format.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fercache.config import SubmitConfig
from fercache.data import labels
from fercache.data.affwild2 import parent_of
from fercache.data.base import SIDES
from fercache.errors import InputError
from fercache.results import io
from fercache.results.submit import formats
from fercache.results.submit.formats import FilledRows, Frames, RowDifference, lines

Form = Literal["frames", "list", "dfew", "ferv39k"]

FORMS: dict[Form, str] = {
    "frames": "one file with a row for each frame (ABAW5 and later)",
    "list": "a test list with one trial per line, for a folder of <trial>.txt (ABAW1 to ABAW3)",
    "dfew": "DFEW's table video_name,label",
    "ferv39k": "FERV39k's table: clip and label name, separated by a space",
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


def _form_of(path: Path) -> Form:
    """Return what kind of template a file is, by its first line; raises InputError for an unknown kind."""
    first = next(lines(path, exact=False), b"")
    if first.startswith(b"image_location"):
        return "frames"
    if first.replace(b" ", b"").lower() == b"video_name,label":
        return "dfew"
    if CLIP.fullmatch(first):
        return "ferv39k"
    if first and b"," not in first and b"/" not in first:
        return "list"
    raise InputError(f"not a template: its first line is {first[:80].decode(errors='replace')!r}", where=path,
                     hint=f"use the organizers' file: {'; '.join(FORMS.values())}")


def _choose_classes(wanted: str, form: Form, given: tuple[str, ...], path: Path) -> tuple[str, ...]:
    """Return the classes to write; those of the predictions, `given`, decide between the editions of a test list."""
    if wanted != "auto":
        edition = EDITIONS[wanted]
        if edition.form != form:
            raise InputError(f"{wanted} needs {FORMS[edition.form]}; this is {FORMS[form]}", where=path,
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
        raise InputError(f"a test list does not name its classes, and the predictions have {', '.join(given)}",
                         where=path, hint="name the edition: --edition abaw2 (7 classes) or abaw3 (8 classes)")
    return same[0]


class SubmissionPaths(NamedTuple):
    """The organizers' template, the predictions, the output, and optional sources for the lengths of trials."""

    template: Path
    preds: Path
    out: Path
    frames: Path | None = None
    videos: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What was written; `notes` are for the person who sends it."""

    out: Path
    form: Form
    rows: int
    trials: int
    notes: tuple[str, ...]


def write_submission(places: SubmissionPaths, config: SubmitConfig) -> Submission:
    """Write the submission and return what was written; if anything does not match, write nothing.

    Raises InputError if the template or the predictions are damaged, they do not match row for row, their classes
    differ without a --map, or `out` cannot be written.
    """
    if places.out.resolve() in (places.template.resolve(), places.preds.resolve()):
        raise InputError("--out is also an input file", where=places.out, hint="choose another name")
    form = _form_of(places.template)
    given = io.PredictionsFile(places.preds)
    if form != "list" and (places.frames or places.videos):
        raise InputError("this template lists the rows itself", where=places.template,
                         hint="use --frames and --videos only with a test list")
    wanted = _choose_classes(config.edition, form, given.classes, places.template)
    names = labels.map_class_names(given.classes, wanted, labels.parse(config.map))
    # Another order or spelling is harmless; merged or missing classes change predictions, so the user must ask for it.
    if not names.one_to_one and not config.map:
        raise InputError(f"the predictions have {len(given.classes)} classes, the submission needs {len(wanted)}: "
                         f"{names.describe()}", where=given.path,
                         hint="--map names matches classes by name; --map A=B writes A as B")
    notes = () if names.source == names.target else (f"classes: {names.describe()}",)
    if form == "frames":
        rows, trials, more = _single_file(places, given, names, config)
    elif form == "list":
        rows, trials, more = _folder(places, given, names, config)
    else:
        predicted = formats.clip_table_answers(given, formats.clip_table_names(places.template, form),
                                               names, places.template)
        formats.write_clip_table(predicted, form, names.target, places.out)
        rows, trials, more = len(predicted), len(predicted), (io.POOLED, formats.UNOFFICIAL)
    return Submission(out=places.out, form=form, rows=rows, trials=trials, notes=(*notes, *more))


Written = tuple[int, int, tuple[str, ...]]  # rows, trials and notes of what was written


def _single_file(places: SubmissionPaths, given: io.PredictionsFile, names: labels.LabelMap,
                 config: SubmitConfig) -> Written:
    template = formats.read_template(places.template)
    if template.classes != names.target:
        raise InputError(f"its header has {len(template.classes)} classes", where=places.template,
                         hint=f"{config.edition} has {', '.join(names.target)}; check --edition")
    allowed: FilledRows = "all" if config.rows == "template" else "nothing"
    predicted, difference, others = _answer(given, template.trials, names, config, allowed)
    difference.check(str(places.template), "check that the predictions are of this test set; if only lengths differ, "
                     "--rows template writes the organizers' rows, fills the missing ones and reports them")
    flat = np.concatenate([predicted[trial] for trial in template.trials]).astype(np.int16)
    formats.write_single_file(template, flat, places.out)
    return len(flat), len(template.trials), (*_report_difference(difference, config), *others)


def _folder(places: SubmissionPaths, given: io.PredictionsFile, names: labels.LabelMap,
            config: SubmitConfig) -> Written:
    trials = formats.folder_names(places.template)
    wanted: dict[str, Frames | None] = dict.fromkeys(trials)
    allowed: FilledRows = "all" if config.rows == "template" else "nothing"
    for place, count in ((places.frames, formats.of_table), (places.videos, formats.of_videos)):
        if place is not None:
            wanted |= {trial: np.arange(1, many + 1) for trial, many in count(place, trials).items()}
            allowed = "all" if allowed == "all" else "ends"
    predicted, difference, others = _answer(given, wanted, names, config, allowed)
    difference.check(str(places.template), "predict every trial of the list; --rows template fills frames between "
                     "predicted ones and reports them")
    formats.write_folder({trial: predicted[trial] for trial in trials}, names.target, places.out)
    counted = () if places.frames or places.videos else (
        "lengths are those of the predictions; --frames or --videos compares them with the organizers' numbers",)
    return (sum(map(len, predicted.values())), len(trials),
            (*_report_difference(difference, config), *counted, *others))


def _answer(given: io.PredictionsFile, wanted: Mapping[str, Frames | None], names: labels.LabelMap,
            config: SubmitConfig, allowed: FilledRows) -> tuple[dict[str, Frames], RowDifference, tuple[str, ...]]:
    """Return trial -> class of each wanted frame, the difference from the predictions, and further notes.

    Frames of None mean every frame up to the last predicted one.
    """
    predicted: dict[str, Frames] = {}
    difference, others = RowDifference(), set[str]()
    for clip in given.clips():
        name = io.match_clip(clip.name, wanted)
        if name not in wanted:
            others.add(clip.name)
            continue
        asked = wanted[name]
        frames = np.arange(1, int(clip.frame[-1]) + 1) if asked is None else asked
        difference.note(name, clip.frame, frames, allowed)
        predicted[name] = formats.classes_at(clip, names, frames, config.missing_faces).astype(np.int16)
    for trial in [trial for trial in wanted if trial not in predicted]:
        # A prediction for another person of the same video hints at a wrong side in a name.
        sides = [name for name in (parent_of(trial), *(f"{parent_of(trial)}_{side}" for side in SIDES))
                 if name != trial and name in {*predicted, *others}]
        difference.absent.append(f"{trial} ({sides[0]} is another person of that video)" if sides else trial)
    notes = (f"{len(others):,} clips of the predictions are not in the template",) if others else ()
    return predicted, difference, notes


def _report_difference(difference: RowDifference, config: SubmitConfig) -> tuple[str, ...]:
    if not difference.trials:
        return ()
    shown = difference.trials[:20]
    more = [f"and {len(difference.trials) - len(shown):,} more trials"] if len(difference.trials) > len(shown) else []
    head = (f"lengths differ in {len(difference.trials):,} trials; the organizers' are used, and missing rows are "
            f"filled by the policy {config.missing_faces}")
    return (head, *shown, *more)
