"""Image nets of other libraries: timm (extra `timm`), and CLIP, SigLIP and DINOv2 of transformers (extra `hf`).

Nothing of them is imported before a net is loaded.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from fercache.backbones.registry import Card
from fercache.backbones.taps import GRID, POOLED, split_tap
from fercache.backbones.weights.files import Weights
from fercache.errors import FercacheError, InputError, MissingExtra, WeightsError, first_line

CLASSES = {"clip": "CLIPVisionModel", "clip_vision_model": "CLIPVisionModel", "siglip": "SiglipVisionModel",
           "siglip_vision_model": "SiglipVisionModel", "dinov2": "Dinov2Model",
           "dinov2_with_registers": "Dinov2WithRegistersModel"}
"""Class of transformers by `model_type` of config.json."""


class Node(NamedTuple):
    """The output of a part of a net."""

    grid: torch.Tensor | None = None  # (B, C, h, w)
    prefix: torch.Tensor | None = None  # (B, P, D) class token and registers
    vector: torch.Tensor | None = None  # (B, D)


def nodes_of(tokens: torch.Tensor, prefix: int | None = None) -> Node:
    """Return the node of tokens (B, P + h * h, D); without `prefix`, h is the largest that fits."""
    count = tokens.shape[1]
    side = int((count - (prefix or 0)) ** 0.5)
    first = count - side * side
    grid = tokens[:, first:].transpose(1, 2).reshape(len(tokens), -1, side, side) if prefix in (None, first) else None
    return Node(grid=grid, prefix=tokens[:, :first] if first else None)


def pooled(x: torch.Tensor, form: str) -> torch.Tensor:
    """Return a block's output (B, C, h, w) in float32 and in the form of a tap: "map", "3x3", or "" for the mean."""
    x = x.float()
    if form == "map":
        return x.contiguous()
    return nn.functional.adaptive_avg_pool2d(x, GRID).contiguous() if form == "3x3" else x.mean(dim=(2, 3))


def in_form(tap: str, node: Node) -> torch.Tensor:
    """Return a tap (B, ...) float32 in the form that its name ends in.

    Raises InputError if the node has no such form.
    """
    form = split_tap(tap)[1]
    if node.vector is not None and not form:
        return node.vector.float().contiguous()
    if form == "cls" and node.prefix is not None:
        return node.prefix[:, 0].float().contiguous()
    if node.grid is not None and form == "tokens":
        tokens = node.grid.float().flatten(2).transpose(1, 2)
        return (tokens if node.prefix is None else torch.cat([node.prefix.float(), tokens], 1)).contiguous()
    if node.grid is not None and form != "cls":
        return pooled(node.grid, form)
    raise InputError("this output has no such form", where=tap,
                     hint="cls needs a class token; a vector has no -3x3, -map or -tokens: leave the ending out")


class Tapped(nn.Module):
    """A net from pixels to taps; `features` returns the nodes by name for the net's scaled input."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, net: nn.Module, card: Card, taps: Sequence[str],
                 features: Callable[[torch.Tensor], dict[str, Node]]) -> None:
        super().__init__()
        self.net, self.outputs, self.features = net, list(taps), features
        self.arithmetic = torch.float32
        self.scale_by(card)

    def scale_by(self, card: Card) -> None:
        """Scale pixels as a card says."""
        self.bgr = card.channels == "bgr"
        self.register_buffer("mean", torch.tensor(card.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(card.std) * 255, persistent=False)

    def prepare(self, device: torch.device, arithmetic: torch.dtype) -> Tapped:
        """Move the net to its device and precision, and return it; pixels are scaled and means taken in float32."""
        self.to(device)
        self.net.to(arithmetic)
        self.arithmetic = arithmetic
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return each tap (B, ...) of pixels (B, S, S, 3) RGB in 0..255."""
        x = pixels.float()
        x = (x.flip(-1) if self.bgr else x).sub(self.mean).div(self.std).permute(0, 3, 1, 2)
        nodes = self.features(x.to(self.arithmetic).contiguous())
        return tuple(in_form(tap, nodes[split_tap(tap)[0]]) for tap in self.outputs)


def import_library(name: str) -> Any:
    """Return timm or transformers, imported. Raises MissingExtra if it is not installed."""
    while True:
        try:
            importlib.import_module("torchvision")
            break
        except RuntimeError as error:
            # torchvision refuses to import next to a torch that it was not built for, since operators are missing. Both
            # libraries import it, and their nets do not call those.
            missing = re.search(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except ImportError:  # transformers does without it
            break
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = "hf" if name == "transformers" else name
        raise MissingExtra(f"{extra}: weights need {error.name}, which is not installed",
                           hint=f"pip install 'fercache[{extra}]'") from error


def load_library_net(weights: Weights, taps: Sequence[str]) -> Tapped:
    """Return the net of timm or transformers with these weights, in eval mode.

    Raises InputError for an unknown tap; MissingExtra if the library is not installed; WeightsError if it cannot read
    the weights.
    """
    try:
        net = (_timm if weights.net == "timm" else _transformers)(weights, taps)
    except FercacheError:
        raise
    except (RuntimeError, ValueError, OSError, KeyError, IndexError, AttributeError, SafetensorError) as error:
        raise WeightsError(f"the library cannot load it ({first_line(error)})", where=weights.path) from error
    return net.eval().requires_grad_(False)


def wrong_size(weights: Weights, error: Exception) -> WeightsError:
    """Return the error of a net whose trial run failed."""
    return WeightsError(f"the net does not run on pictures of {weights.card.size} pixels ({first_line(error)})",
                        where=weights.path, hint="change size in its card")


def check_taps(taps: Sequence[str], known: Sequence[str], where: object) -> None:
    """Refuse taps of unknown nodes."""
    unknown = [tap for tap in taps if split_tap(tap)[0] not in known]
    if unknown or not taps or len(set(taps)) != len(taps):
        raise InputError(f"unknown tap {unknown[0]!r}" if unknown else "taps must be named, each once", where=where,
                         hint=f"known are {', '.join(known)}; all but vectors also as NAME-3x3 (grid), NAME-map, and "
                              "with tokens as NAME-cls and NAME-tokens")


def check_complete(missing: Sequence[str], where: Path) -> None:
    """Refuse weights that lack tensors of the net, which would stay random."""
    if missing:
        raise WeightsError(f"the weights lack {missing[0]} and {len(missing) - 1} more tensors of the net",
                           where=where, hint="they belong to another net than config.json: download both again")


def _timm(weights: Weights, taps: Sequence[str]) -> Tapped:
    """Return a net of timm; its inner nodes are the modules that timm names as features."""
    timm = import_library("timm")
    config = json.loads((weights.path / "config.json").read_text(encoding="utf-8"))
    own = config.get("pretrained_cfg", {})
    overlay = {**own, "file": str(weights.tensors), "hf_hub_id": None, "source": "file"}
    # Without its classifier, the net returns the pooled vector.
    settings: dict[str, Any] = {**config.get("model_args", {}), "num_classes": 0}
    if config.get("global_pool"):
        settings["global_pool"] = config["global_pool"]
    create = partial(timm.create_model, config["architecture"], pretrained=True, pretrained_cfg_overlay=overlay)
    try:
        net = create(**(settings := {**settings, "img_size": weights.card.size}))
    except TypeError:  # a convolutional net takes any size
        settings.pop("img_size")
        net = create(**settings)
    with safe_open(weights.tensors, "pt") as file:
        named = set(file.keys())
    if not {name for name in net.state_dict() if not name.endswith("num_batches_tracked")} <= named:
        # timm loads what fits and says nothing, but it also renames tensors of some nets. Those that it did not load
        # are random, so another copy has others.
        again = create(**settings).state_dict()
        check_complete([name for name, value in net.state_dict().items() if not torch.equal(value, again[name])],
                       weights.tensors)
    info = getattr(net, "feature_info", [])
    known = [entry["module"] for entry in (info if isinstance(info, list) else info.get_dicts())]
    known = known if hasattr(net, "forward_intermediates") else []
    check_taps(taps, [POOLED, *known], weights.path)
    wanted = sorted({known.index(node) for tap in taps if (node := split_tap(tap)[0]) != POOLED})
    tokens = bool(getattr(net, "num_prefix_tokens", 0))

    def features(x: torch.Tensor) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        if not wanted:
            return {POOLED: Node(vector=net(x))}
        more = {"return_prefix_tokens": True} if tokens else {}
        if POOLED in taps:
            last, inner = net.forward_intermediates(x, indices=wanted, **more)
            nodes[POOLED] = Node(vector=net.forward_head(last))
        else:
            inner = net.forward_intermediates(x, indices=wanted, intermediates_only=True, stop_early=True, **more)
        for index, value in zip(wanted, inner, strict=True):
            nodes[known[index]] = Node(*value) if isinstance(value, tuple) else Node(value)
        return nodes

    return Tapped(net, weights.card, taps, features)


def _transformers(weights: Weights, taps: Sequence[str]) -> Tapped:
    """Return the image tower of CLIP, SigLIP or DINOv2; its inner nodes are its blocks and its last tokens."""
    transformers = import_library("transformers")
    config = json.loads((weights.path / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("model_type"))
    if kind not in CLASSES:
        raise InputError(f"the image tower of {kind} is not supported", where=weights.path,
                         hint=f"supported are {', '.join(CLASSES)}")
    net, report = getattr(transformers, CLASSES[kind]).from_pretrained(weights.path, local_files_only=True,
                                                                       output_loading_info=True)
    check_complete(sorted(report["missing_keys"]), weights.tensors)
    size = getattr(net.config, "image_size", weights.card.size)
    more = {"interpolate_pos_encoding": True} if size != weights.card.size and "dino" not in kind else {}
    prefix = 0 if kind.startswith("siglip") else 1 + getattr(net.config, "num_register_tokens", 0)
    blocks = [f"blocks.{i}" for i in range(net.config.num_hidden_layers)]
    check_taps(taps, [POOLED, "last", *blocks], weights.path)

    def features(x: torch.Tensor) -> dict[str, Node]:
        out = net(pixel_values=x, output_hidden_states=True, **more)
        return {POOLED: Node(vector=out.pooler_output), "last": nodes_of(out.last_hidden_state, prefix),
                **{name: nodes_of(state, prefix) for name, state in zip(blocks, out.hidden_states[1:], strict=True)}}

    return Tapped(net, weights.card, taps, features)
