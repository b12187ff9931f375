"""The door of facenet-pytorch: its nets and MTCNN, with or without a torchvision that imports."""

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

from fercache.errors import WeightsError

NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.ops",
         "torchvision.ops.boxes")
UNREADABLE = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError, AssertionError,
              AttributeError, TypeError, struct.error)
"""What torch.load raises on files with a few bytes changed or cut off (3,000 were tried)."""


def to_tensor(picture: NDArray[Any]) -> torch.Tensor:
    """Return a picture (H, W, C) as a tensor (C, H, W); uint8 is divided by 255, float is left as it is.

    Notes
    -----
    torchvision's rule for arrays. facenet-pytorch passes float32 in 0..255 and relies on its being left alone.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(picture).transpose(2, 0, 1)))
    return tensor.to(torch.get_default_dtype()).div(255) if tensor.dtype == torch.uint8 else tensor


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return the indices, best score first, of boxes (n, 4) that no better kept box overlaps by over `iou_threshold`.

    Notes
    -----
    torchvision's rule: greedy, float32, a box without area overlaps nothing. Memory grows with n, not its square.
    """
    order = scores.argsort(descending=True, stable=True)
    ranked = boxes[order].detach().cpu().numpy().astype(np.float32)
    area = (ranked[:, 2] - ranked[:, 0]) * (ranked[:, 3] - ranked[:, 1])
    alive, kept = np.arange(len(ranked)), []
    while alive.size:
        best, alive = alive[0], alive[1:]
        kept.append(best)
        size = np.minimum(ranked[best, 2:], ranked[alive, 2:]) - np.maximum(ranked[best, :2], ranked[alive, :2])
        both = size.clip(0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two boxes without area: 0 / 0, which overlaps nothing
            alive = alive[~(both / (area[best] + area[alive] - both) > iou_threshold)]
    return order[torch.as_tensor(kept, dtype=torch.long, device=order.device)]


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Return the indices, best score first, of boxes (n, 4) kept by `nms` within each group of `idxs` (n,)."""
    kept = [members[nms(boxes[members], scores[members], iou_threshold)]
            for members in ((idxs == group).nonzero()[:, 0] for group in torch.unique(idxs))]
    if not kept:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    together = torch.cat(kept).sort().values
    return together[scores[together].argsort(descending=True, stable=True)]


@contextmanager
def torchvision_or_stand_in() -> Iterator[bool]:
    """Yield whether real torchvision imports; if not, two functions stand in for it until the block ends.

    Notes
    -----
    torchvision's wheel refuses to import beside a torch that it was not built for (RuntimeError), and is no dependency
    of ours: facenet-pytorch needs two of its functions only.
    """
    try:
        importlib.import_module("torchvision.ops.boxes")
        yield True
        return
    except (ImportError, RuntimeError, OSError):
        broken = {name for name in sys.modules if name.partition(".")[0] == "torchvision"}
    for name in broken:
        del sys.modules[name]
    stand_in: dict[str, Any] = {name: types.ModuleType(name) for name in NAMES}
    for name in NAMES[1:]:
        parent, _, child = name.rpartition(".")
        setattr(stand_in[parent], child, stand_in[name])
    stand_in["torchvision.transforms.functional"].to_tensor = to_tensor
    stand_in["torchvision.ops.boxes"].batched_nms = batched_nms
    sys.modules.update(stand_in)
    try:
        yield False
    finally:
        for name in NAMES:
            sys.modules.pop(name, None)


with torchvision_or_stand_in():
    from facenet_pytorch import MTCNN as MTCNN
    from facenet_pytorch import InceptionResnetV1 as InceptionResnetV1
    from facenet_pytorch.models import inception_resnet_v1 as _library
    from facenet_pytorch.models.utils import detect_face as _driver
    from facenet_pytorch.models.utils.download import download_url_to_file as _download



library_nms = _driver.batched_nms
"""What facenet-pytorch thins out boxes with: torchvision's function, or the stand-in."""


def library_nms_by_smaller(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor,
                           threshold: float) -> torch.Tensor:
    """Return what `batched_nms` does, where overlap is measured against the smaller of two boxes."""
    kept: torch.Tensor = _driver.batched_nms_numpy(boxes, scores, idxs, threshold, "Min")
    return kept


def expected() -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of InceptionResnetV1, without its classifier."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in InceptionResnetV1().state_dict().items()}


def read_checkpoint(path: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors of a state dict that torch saved; nothing in the file is run.

    Raises
    ------
    WeightsError
        The file is cut off, no state dict, or holds more than tensors.
    """
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WeightsError(f"not readable as plain tensors ({reason})", where=path,
                           hint="save it again with torch.save(model.state_dict(), path) or as safetensors") from error
    held = held.get("state_dict", held) if isinstance(held, dict) else held
    if not isinstance(held, dict) or not all(isinstance(value, torch.Tensor) for value in held.values()):
        raise WeightsError("holds something other than a state dict", where=path,
                           hint="save it with torch.save(model.state_dict(), path)")
    return {str(name): (value.detach().float() if value.is_floating_point() else value).numpy()
            for name, value in held.items()}


def release_name(name: str) -> str:
    """Return the file name of facenet-pytorch's release of `name` (vggface2, casia-webface)."""
    return _release_url(name).rpartition("/")[2]


def release_download(name: str, to: Path, sha256: str) -> None:
    """Put facenet-pytorch's release of `name` at `to`, by its own table and download.

    Raises
    ------
    WeightsError
        The download was refused, cut off or altered; nothing is left behind.
    """
    try:
        _download(_release_url(name), str(to), hash_prefix=sha256, progress=sys.stderr.isatty())
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise WeightsError(f"facenet-pytorch's download failed ({error})", where=name) from error


def torch_home() -> Path:
    """Return the folder that facenet-pytorch keeps its downloads in."""
    return Path(_library.get_torch_home()) / "checkpoints"


def _release_url(name: str) -> str:
    """Return the address in facenet-pytorch's own table, which lies inside its `load_weights`."""
    return next(text for text in _library.load_weights.__code__.co_consts
                if isinstance(text, str) and text.endswith(f"-{name}.pt"))
