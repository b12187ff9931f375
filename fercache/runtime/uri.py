"""Locations: paths of this machine, and URLs that fsspec opens."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from fercache.errors import InputError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(/?)(.*)", re.DOTALL)
LOCAL = ("file", "local")


@dataclass(frozen=True, order=True)
class Url:
    """A URL such as ``s3://bucket/folder``, with the part of Path's interface that concerns names."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, key: str) -> Url:
        return Url(f"{self.text}/{key}") if key else self

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The part before the last slash."""
        return Url(self.text.rpartition("/")[0])


Location: TypeAlias = Path | Url


def as_location(place: str | Path | Url) -> Location:
    """Return a path or a URL; ``file://`` URLs become paths, and chained ones (``zip::s3://...``) are an InputError."""
    # A Path made from a URL has lost one of its slashes. It counts as the URL, unless such a folder exists.
    if isinstance(place, Url):
        return place
    text = str(place)
    if "::" in text and "://" in text:
        raise InputError("chained URLs are not supported", where=text, hint="use one URL, such as s3://bucket/folder")
    found = _URL.fullmatch(text)
    if found is None or (not found[2] and (isinstance(place, str) or Path(Path(text).parts[0]).is_dir())):
        return Path(place)
    scheme, rest = found[1].lower(), found[3]
    if scheme in LOCAL:
        return Path("/" + rest.lstrip("/"))
    return Url(f"{scheme}://{rest.rstrip('/')}")
