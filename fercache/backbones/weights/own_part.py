"""Weights that the user brings: safetensors, a state dict that torch saved, or an ONNX model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fercache.backbones.weights.files import State, Weights, keep, kept, read_safetensors
from fercache.errors import WeightsError
from fercache.runtime import atomic_io
from fercache.runtime.wheels import file_sha256

ONNX_PREFIX = "onnx:"
TERMS = "your own file"


def resolve_own(name: str, folder: Path, known: Sequence[str]) -> Weights:
    """Return the weights at the path `name`; a state dict is converted into `folder` the first time.

    Raises
    ------
    WeightsError
        No such file, an ending that says nothing, or not the net's weights.
    """
    path = Path(name.removeprefix(ONNX_PREFIX)).expanduser()
    if not path.is_file():
        raise WeightsError("no such file, and no weights are known by this name", where=name,
                           hint=f"known are {', '.join(known)}; a file is given by its path, or as onnx:PATH")
    if name.startswith(ONNX_PREFIX):
        return Weights(name="onnx", path=path, sha256=file_sha256(path), source=path.name, terms=TERMS)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise WeightsError(f"the ending {path.suffix!r} says no format of weights", where=path,
                           hint="give .safetensors, .pt or .pth, or an ONNX model as onnx:PATH")
    stem = f"custom-{file_sha256(path)[:16]}"
    return kept("custom", folder, stem) or _convert(path, folder, stem)


def _convert(path: Path, folder: Path, stem: str) -> Weights:
    """Return the weights of the file at `path`, kept in `folder`."""
    atomic_io.make_folder(folder)
    try:
        return keep("custom", _read(path), folder, source=path.name, terms=TERMS, stem=stem)
    except WeightsError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from error


def _read(path: Path) -> State:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    from fercache.backbones.facenet import read_checkpoint  # torch: seconds that only a conversion pays

    return read_checkpoint(path)
