"""The root of a store: what every clip in it was made by."""

from __future__ import annotations

from typing import Any

from fercache.config import digest
from fercache.errors import InputError, StoreError
from fercache.runtime.uri import Place
from fercache.store.layout import CLOCK_NAME, META, VERSION
from fercache.store.manifest import sealed, unsealed

MENDING = "run `fercache extract` with the settings it was made by: it writes the root anew and keeps the clips"


def root_document(settings: dict[str, Any], taps: dict[str, tuple[int, ...]]) -> bytes:
    """Return the `zarr.json` of a store's root."""
    return sealed({"version": VERSION, "settings": settings, "fingerprint": digest(settings),
                   "taps": {name: list(shape) for name, shape in taps.items()}})


def read_root(data: bytes, where: Place) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Return settings and taps from the root's `zarr.json`."""
    try:
        body = unsealed(data, where / META)
        taps = {name: tuple(int(n) for n in shape) for name, shape in body["taps"].items()}
        check_taps(taps)
        return dict(body["settings"]), taps
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StoreError("is no embedding store of fercache's", where=where / META,
                         hint=MENDING) from error
    except StoreError as error:
        raise StoreError(error.what, where=where / META, hint=MENDING) from error


def is_root(data: bytes, where: Place) -> bool:
    """Return whether a store's root can be read."""
    try:
        read_root(data, where)
    except StoreError:
        return False
    return True


def check_taps(taps: dict[str, tuple[int, ...]]) -> None:
    """Refuse taps that no array can be made for."""
    if not taps:
        raise InputError("a store needs at least one tap")
    for name, shape in taps.items():
        if name == CLOCK_NAME or not shape or min(shape) < 1:
            raise InputError(f"tap {name!r} of shape {shape} cannot be stored",
                             hint=f"shapes are positive, and {CLOCK_NAME!r} is the clock's name")
