"""The only module that imports facenet-pytorch: its nets and MTCNN, with or without a working torchvision."""

from __future__ import annotations

import http.client
import importlib
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fercache.errors import WeightsError, first_line

TORCHVISION_MODULES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
         "torchvision.ops.boxes")
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError,
              AttributeError, TypeError, struct.error)
"""Exceptions of torch.load for files with changed or missing bytes, as collected from 3,000 such files."""


def to_tensor(picture: NDArray[Any]) -> torch.Tensor:
    """Return a picture (H, W, C) as a tensor (C, H, W); uint8 is divided by 255, float is left as it is."""
    # torchvision's rule for arrays. facenet-pytorch passes float32 in 0..255 and relies on getting it unchanged.
    tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(picture).transpose(2, 0, 1)))
    return tensor.to(torch.get_default_dtype()).div(255) if tensor.dtype == torch.uint8 else tensor


NMS_BLOCK = 256  # boxes that are compared with each other at once: memory grows with their square


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return the indices, best score first, of boxes (n, 4) that no better box of their group in `idxs` suppresses."""
    # torchvision's rule: greedy, float32, and a box without area overlaps nothing.
    by_score = scores.argsort(descending=True, stable=True).cpu().numpy()
    order = by_score[idxs.cpu().numpy()[by_score].argsort(kind="stable")]  # by group, and then by score
    group, (x1, y1, x2, y2) = idxs.cpu().numpy()[order], boxes.detach().cpu().numpy().astype(np.float32)[order].T
    area = (x2 - x1) * (y2 - y1)

    def overlap(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
        a = a[:, None]
        width = (np.minimum(x2[a], x2[b]) - np.maximum(x1[a], x1[b])).clip(0)
        both = width * (np.minimum(y2[a], y2[b]) - np.maximum(y1[a], y1[b])).clip(0)
        with np.errstate(invalid="ignore"):  # two boxes without area: 0 / 0, which counts as no overlap
            return np.asarray((both / (area[a] + area[b] - both) > iou_threshold) & (group[a] == group[b]))

    selected = np.empty(0, np.int64)
    for start in range(0, len(order), NMS_BLOCK):
        block = np.arange(start, min(start + NMS_BLOCK, len(order)))
        before = selected[group[selected] == group[start]]  # no other group has boxes before and in this block
        block = block[~overlap(before, block).any(axis=0)]
        suppresses, kept, last = np.triu(overlap(block, block), 1), np.full(len(block), True), np.full(0, True)
        # A box that none of the kept ones suppresses is kept: repeated until nothing changes, which is the greedy rule.
        while not np.array_equal(kept, last):
            kept, last = np.invert(suppresses[kept].any(axis=0)), kept
        selected = np.concatenate([selected, block[kept]])
    chosen = np.zeros(len(order), bool)
    chosen[order[selected]] = True
    return torch.from_numpy(by_score[chosen[by_score]]).to(boxes.device)


@contextmanager
def torchvision_or_replacement() -> Iterator[bool]:
    """Yield whether torchvision imports; if not, two functions replace it until the block ends."""
    # torchvision refuses to import next to a torch that it was not built for (RuntimeError). It is no dependency of
    # ours, since facenet-pytorch needs only two of its functions.
    try:
        importlib.import_module("torchvision.ops.boxes")
        yield True
        return
    except (ImportError, RuntimeError, OSError):
        broken = {name for name in sys.modules if name.partition(".")[0] == "torchvision"}
    for name in broken:  # a failed import leaves submodules behind, which would hide the replacements
        del sys.modules[name]
    replacements: dict[str, Any] = {name: types.ModuleType(name) for name in TORCHVISION_MODULES}
    for name in TORCHVISION_MODULES[1:]:
        parent, _, child = name.rpartition(".")
        setattr(replacements[parent], child, replacements[name])
    replacements["torchvision.transforms.functional"].to_tensor = to_tensor
    replacements["torchvision.ops.boxes"].batched_nms = batched_nms
    sys.modules.update(replacements)
    try:
        yield False
    finally:
        for name in TORCHVISION_MODULES:
            sys.modules.pop(name, None)


with torchvision_or_replacement():
    from facenet_pytorch import MTCNN as MTCNN
    from facenet_pytorch import InceptionResnetV1 as InceptionResnetV1
    from facenet_pytorch.models import inception_resnet_v1 as _library
    from facenet_pytorch.models.utils import detect_face as _driver
    from facenet_pytorch.models.utils.download import download_url_to_file as _download


library_nms = _driver.batched_nms
"""The suppression that facenet-pytorch uses: torchvision's function, or our replacement."""


def library_nms_by_smaller(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor,
                           threshold: float) -> torch.Tensor:
    """Return the same as `batched_nms`, with the overlap relative to the smaller of two boxes."""
    selected: torch.Tensor = _driver.batched_nms_numpy(boxes, scores, idxs, threshold, "Min")
    return selected


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of InceptionResnetV1, without its classifier."""
    with torch.device("meta"):  # shapes only: allocates and initializes nothing
        return {name: tuple(value.shape) for name, value in InceptionResnetV1().state_dict().items()}


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict that torch saved, without running any code in the file.

    Raises WeightsError if the file is truncated, is no state dict, or contains more than tensors.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = first_line(error) or type(error).__name__
        raise WeightsError(f"not readable as plain tensors ({reason})", where=path,
                           hint="save it again with torch.save(model.state_dict(), path) or as safetensors") from error
    if isinstance(content, dict):  # training frameworks save the state dict as one entry of a larger dict
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError("contains something other than a state dict", where=path,
                           hint="save it with torch.save(model.state_dict(), path)")
    return {str(name): (value.detach().float() if value.is_floating_point() else value).numpy()
            for name, value in content.items()}


def release_name(name: str) -> str:
    """Return the file name of facenet-pytorch's release of `name` (vggface2, casia-webface)."""
    return _release_url(name).rpartition("/")[2]


def release_download(name: str, to: Path, sha256: str) -> None:
    """Download facenet-pytorch's release of `name` to `to`, with the library's own function.

    Raises WeightsError if the download failed, was truncated or has another digest; no file remains.
    """
    try:
        _download(_release_url(name), str(to), hash_prefix=sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsError(f"facenet-pytorch's download failed ({error})", where=name) from error


def torch_home() -> Path:
    """Return the folder of facenet-pytorch's downloads."""
    return Path(_library.get_torch_home()) / "checkpoints"


def _release_url(name: str) -> str:
    """Return the address from facenet-pytorch's own table."""
    # The table is a local variable of `load_weights`, so its strings are constants of the function's code.
    return next(text for text in _library.load_weights.__code__.co_consts
                if isinstance(text, str) and text.endswith(f"-{name}.pt"))
