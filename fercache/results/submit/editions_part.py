"""What each edition wants: which form of file, and which classes in which order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, NamedTuple

from fercache.data import labels
from fercache.errors import InputError
from fercache.results.submit import formats
from fercache.results.submit.lines_part import lines

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


def choose(wanted: str, form: Form, given: tuple[str, ...], path: Path) -> tuple[str, ...]:
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
            and labels.map_classes(given, classes).whole]
    if not same:
        raise InputError(f"a test list does not say its classes, and the predictions have {', '.join(given)}",
                         where=path, hint="name the edition: --edition abaw2 (7 classes) or abaw3 (8 classes)")
    return same[0]
