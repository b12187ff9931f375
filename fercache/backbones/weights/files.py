"""How weights lie on the disk: safetensors, and beside it a JSON file, written last, that says what they are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fercache.errors import InputError, WeightsError
from fercache.runtime import atomic_io

State = dict[str, NDArray[Any]]
ONNX = ".onnx"
CLASSIFIER = "logits."
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that are there.

    Parameters
    ----------
    name : casia-webface, vggface2, custom or onnx.
    path : safetensors, or an ONNX model.
    sha256 : over names, types, shapes and values of the tensors, so that the same weights have the same one in
        whatever file they came; of an ONNX model, over the file.
    source, terms : where they come from, and what they may be used for.
    """

    name: str
    path: Path
    sha256: str
    source: str
    terms: str


def is_stored(name: str, folder: Path, stem: str = "") -> Weights | None:
    """Return the weights that `keep` put into `folder`, None if they are not there or not whole."""
    path, note = folder / f"{stem or name}.safetensors", folder / f"{stem or name}.json"
    if not note.is_file() or not path.is_file():
        return None
    try:
        record = atomic_io.read_json(note)
        if record["size"] != path.stat().st_size:
            return None
        return Weights(name=name, path=path, sha256=record["sha256"], source=record["source"], terms=record["terms"])
    except (InputError, KeyError, TypeError):  # torn or foreign: as if it were not there, so that it is made again
        return None


def store_weights(name: str, state: Mapping[str, NDArray[Any]], folder: Path, *, source: str, terms: str,
         stem: str = "") -> Weights:
    """Return the weights, written into `folder` whole or not at all.

    Raises
    ------
    WeightsError
        They are not InceptionResnetV1's.
    """
    state = checked(state, name)
    path = folder / f"{stem or name}.safetensors"
    atomic_io.write_bytes(path, safetensors.numpy.save(state, metadata={"format": "pt"}))
    found = Weights(name=name, path=path, sha256=_digest(state), source=source, terms=terms)
    note = {**asdict(found), "path": path.name, "size": path.stat().st_size}
    atomic_io.write_json(path.with_suffix(".json"), note)
    return found


def read_tensors(weights: Weights) -> State:
    """Return the tensors of kept weights by name, checked against their hash.

    Raises
    ------
    WeightsError
        The file is damaged, or is not what it was.
    """
    state = read_safetensors(weights.path)
    if _digest(state) != weights.sha256:
        raise WeightsError("the weights were altered since they were put here", where=weights.path,
                           hint="remove the file and run `fercache weights pull` (or give your own file) again")
    return state


def read_safetensors(path: Path) -> State:
    """Return the tensors of a safetensors file by name.

    Raises
    ------
    WeightsError
        It is no such file, or is cut off.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"not readable as safetensors ({error})", where=path,
                           hint="remove it and pull it (or save it) again; types are float32 or float16") from error


def checked(state: Mapping[str, NDArray[Any]], where: object) -> State:
    """Return the tensors as float32, without a classifier, if they are all of InceptionResnetV1's and no others.

    Raises
    ------
    WeightsError
        Names the first tensors that are missing, unexpected, or of another shape.
    """
    from fercache.backbones.facenet import expected  # torch: seconds that only a conversion pays

    shapes = expected()
    counters = {name: np.zeros((), np.int64) for name in shapes if name.endswith(COUNTER)}
    own = {**counters, **{name: value for name, value in state.items() if not name.startswith(CLASSIFIER)}}
    _refuse("lacks", sorted(shapes.keys() - own.keys()), where)
    _refuse("holds, beyond the net's own,", sorted(own.keys() - shapes.keys()), where)
    _refuse("has another shape than the net in", [n for n in sorted(shapes) if own[n].shape != shapes[n]], where)
    out = {name: np.ascontiguousarray(own[name], np.int64 if name in counters else np.float32).reshape(shapes[name])
           for name in sorted(shapes)}
    _refuse("holds values that are no numbers in", [n for n in out if not np.isfinite(out[n]).all()], where)
    return out


def _refuse(what: str, names: list[str], where: object) -> None:
    """Raise the error that names what is wrong, if anything is."""
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise WeightsError(f"{what} {', '.join(names[:3])}{more}", where=where,
                           hint="weights must be a state dict of facenet-pytorch's InceptionResnetV1; any other "
                                "net can come as onnx:PATH")


def _digest(state: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 (hex) over names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = np.ascontiguousarray(state[name]).reshape(state[name].shape)
        total.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        total.update(value.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
