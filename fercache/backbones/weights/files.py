"""Weights on disk: a safetensors file, and a JSON file of the same name with its metadata, which is written last."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from fercache.backbones.registry import FACENET, KNOWN_WEIGHTS, Card
from fercache.errors import WeightsError, shorten_list
from fercache.runtime import atomic_io

State = dict[str, NDArray[Any]]
CLASSIFIER = "logits."
COUNTER = "num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that are on disk."""

    name: str  # a key of KNOWN_WEIGHTS, the name of a card, or custom, onnx, timm or hf
    path: Path  # safetensors, an ONNX model, or a folder with config.json and safetensors
    # Digest of the tensors' names, types, shapes and values, which does not depend on the file format they came in; for
    # an ONNX model or a folder, digest of its files.
    sha256: str
    # `source`, `terms`: origin, and permitted use.
    source: str
    terms: str
    net: str = "facenet"  # architecture and what runs it: facenet, onnx, timm, hf or dlib
    card: Card = FACENET

    @property
    def tensors(self) -> Path:
        """The file of tensors in the folder of a net of timm or transformers."""
        return next(iter(sorted(self.path.glob("*.safetensors"))), self.path / "model.safetensors")


class WeightsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON file beside stored weights; `path` is the name of the safetensors file, `size` its bytes."""

    name: str
    path: str
    sha256: str
    source: str
    terms: str
    size: int
    version: int = 1


def is_stored(name: str, folder: Path, stem: str = "") -> Weights | None:
    """Return the weights that `store_weights` wrote to `folder`; None if they are missing or incomplete."""
    path, metadata = folder / f"{stem or name}.safetensors", folder / f"{stem or name}.json"
    if not metadata.is_file() or not path.is_file():
        return None
    try:
        record = atomic_io.read_record(metadata, WeightsRecord)
        if record.size != path.stat().st_size:
            return None
        return _weights(name, path, record.sha256, record.source, record.terms)
    except ValueError:  # damaged, or not JSON: treat it as missing, so that it is written again
        return None


def _weights(name: str, path: Path, sha256: str, source: str, terms: str) -> Weights:
    """Return stored weights, with net and card of the known ones; all others are of facenet-pytorch's net."""
    known = KNOWN_WEIGHTS.get(name)
    return Weights(name=name, path=path, sha256=sha256, source=source, terms=terms,
                   net=known.net if known else "facenet", card=known.card if known else FACENET)


def store_weights(name: str, state: Mapping[str, NDArray[Any]], folder: Path, *, source: str, terms: str,
                  stem: str = "") -> Weights:
    """Write the weights to `folder`, completely or not at all, and return them.

    Raises WeightsError if the tensors are not those of the net.
    """
    # The file of another net was checked when it was read.
    state = validated(state, name) if name not in KNOWN_WEIGHTS or KNOWN_WEIGHTS[name].net == "facenet" else dict(state)
    path = folder / f"{stem or name}.safetensors"
    atomic_io.write_bytes(path, safetensors.numpy.save(state, metadata={"format": "pt"}))
    stored = _weights(name, path, _digest(state), source, terms)
    # Last: `is_stored` trusts the metadata only if the tensors were written before it.
    record = WeightsRecord(name=name, path=path.name, sha256=stored.sha256, source=source, terms=terms,
                           size=path.stat().st_size)
    atomic_io.write_json(path.with_suffix(".json"), record)
    return stored


def read_tensors(weights: Weights) -> State:
    """Return the tensors of stored weights by name, checked against their digest.

    Raises WeightsError if the file is damaged or was changed.
    """
    state = read_safetensors(weights.path)
    if _digest(state) != weights.sha256:
        raise WeightsError("the weights changed since they were stored", where=weights.path,
                           hint="remove the file, then run `fercache weights pull` or pass your own file again")
    return state


def read_safetensors(path: Path) -> State:
    """Return the tensors of a safetensors file by name.

    Raises WeightsError if the file is not safetensors, or is truncated.
    """
    try:
        return dict(safetensors.numpy.load_file(path))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"not readable as safetensors ({error})", where=path,
                           hint="remove it and pull (or save) it again; types must be float32 or float16") from error


def validated(state: Mapping[str, NDArray[Any]], where: object) -> State:
    """Return the tensors as float32 without a classifier, if they are exactly those of InceptionResnetV1.

    Raises WeightsError otherwise, with the first tensors that are missing, unexpected, of another shape, or not finite.
    """
    from fercache.backbones.facenet import expected_shapes  # torch takes seconds to import; only a conversion needs it

    shapes = expected_shapes()
    # The TensorFlow graph has no BatchNorm counters, and inference does not use them.
    counters = {name: np.zeros((), np.int64) for name in shapes if name.endswith(COUNTER)}
    own = {**counters, **{name: value for name, value in state.items() if not name.startswith(CLASSIFIER)}}
    _raise_if_any("lacks", sorted(shapes.keys() - own.keys()), where)
    _raise_if_any("has unexpected tensors:", sorted(own.keys() - shapes.keys()), where)
    _raise_if_any("has other shapes than the net in", [n for n in sorted(shapes) if own[n].shape != shapes[n]], where)
    out = {name: np.ascontiguousarray(own[name], np.int64 if name in counters else np.float32).reshape(shapes[name])
           for name in sorted(shapes)}
    _raise_if_any("has values that are not finite in", [n for n in out if not np.isfinite(out[n]).all()], where)
    return out


def _raise_if_any(what: str, names: list[str], where: object) -> None:
    """Raise an error with the first of `names`, if there are any."""
    if names:
        raise WeightsError(f"{what} {shorten_list(names, 3)}", where=where,
                           hint="weights must be a state dict of facenet-pytorch's InceptionResnetV1; use any "
                                "other net as onnx:PATH, timm:NAME or hf:REPO")


def _digest(state: Mapping[str, NDArray[Any]]) -> str:
    """Return the sha256 (hex) of names, types, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(state):
        value = np.ascontiguousarray(state[name]).reshape(state[name].shape)
        total.update(f"{name}\0{value.dtype.str}\0{value.shape}\0".encode())
        total.update(value.reshape(-1).view(np.uint8).data)
    return total.hexdigest()
