"""Cards: how a net's input is cut out and scaled, which taps it has, its terms. A TOML file; imports no torch."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from fercache.errors import InputError
from fercache.runtime import atomic_io

Rgb = tuple[float, float, float]
PRESETS = Path(__file__).parent / "presets.toml"
"""Cards of nets that fercache knows by name, one table a net."""
SUFFIX = ".toml"


class Card(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a net needs to know of its input; written as TOML beside the weights."""

    net: str = ""  # where the net comes from, as --weights takes it; only of presets and of `fercache weights add`
    size: Annotated[int, msgspec.Meta(ge=16, le=2048)] = 160  # side of the input in pixels
    # Side that the region around the face is scaled to, of which the net sees the middle `size`; 0: `size`.
    resize: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    # `mean`, `std`: of each channel of the net's input, for pixels from 0 to 1.
    mean: Rgb = (0.5, 0.5, 0.5)
    std: Rgb = (128 / 255, 128 / 255, 128 / 255)
    channels: Literal["rgb", "bgr"] = "rgb"
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear"
    # box: the face's box, stretched to a square. square: the square around the box, black beyond the frame. aligned:
    # the five landmarks are moved to those of `template`.
    crop: Literal["box", "square", "aligned"] = "box"
    template: Literal["", "arcface112", "dlib150"] = ""
    margin: Annotated[float, msgspec.Meta(ge=0, le=2)] = 0.0  # as --margin, which replaces it
    scales: tuple[float, ...] = (1.0,)  # relative sizes of the region, over which the taps are averaged
    taps: tuple[str, ...] = ()  # taps that are stored if --taps names none
    identity: str = ""  # tap whose cosine tells people apart
    source: str = ""
    terms: str = ""
    # tap -> a vector for each test picture (`fercache weights check`), made by the net's own library.
    reference: dict[str, list[list[float]]] = {}

    def __post_init__(self) -> None:
        if (self.crop == "aligned") != bool(self.template):
            raise ValueError("crop = \"aligned\" needs a template, and no other crop has one")
        if not self.scales or min(self.scales) <= 0 or min(self.std) <= 0:
            raise ValueError("scales and std must be above 0")

    def settings(self) -> dict[str, Any]:
        """Return what changes the numbers of a store beyond the weights and the taps, as a JSON value."""
        # All of them, defaults too: a later default must not change what a store means.
        names = ("size", "resize", "mean", "std", "channels", "interpolation", "crop", "template", "margin", "scales",
                 "identity")
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


FACENET = Card(taps=("embedding", "block8", "repeat_2", "repeat_1-3x3"))
"""facenet-pytorch's net: (x - 127.5) / 128 of boxes of 160 pixels."""


def parse_card(values: dict[str, Any], where: object) -> Card:
    """Return the card with these keys.

    Raises
    ------
    InputError
        An unknown key, or a value of another type or out of bounds.
    """
    try:
        return msgspec.convert(values, Card)
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError(f"not a card of weights ({error})", where=where,
                         hint=f"its keys are {', '.join(Card.__struct_fields__)}") from error


def read_card(path: Path) -> dict[str, Any]:
    """Return the keys of the card at `path`; none if there is no such file.

    Raises
    ------
    InputError
        The file is not TOML.
    """
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not TOML ({error})", where=path) from error


def presets(with_nets: bool = True) -> dict[str, dict[str, Any]]:
    """Return the keys of the card of each net that fercache knows by name.

    Parameters
    ----------
    with_nets : leave out those that only add reference vectors to known weights.
    """
    return {name: keys for name, keys in read_card(PRESETS).items() if "net" in keys or not with_nets}


def write_card(path: Path, keys: dict[str, Any]) -> None:
    """Write a card as TOML."""
    # Strings, numbers and lists are written alike in JSON and TOML.
    tables = {name: value for name, value in keys.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in keys.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())]
    atomic_io.write_bytes(path, ("\n".join(lines) + "\n").encode())
