"""All options: frozen dataclasses, from which command-line options, recipe keys and fingerprints follow."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from typing import Any

from fercache.backbones.registry import DEFAULT_WEIGHTS, FACENET, KNOWN_WEIGHTS
from fercache.errors import InputError
from fercache.heads.registry import DEFAULT_HEADS, HEADS
from fercache.metrics import METRICS

MAX_THREADS = 256
PRECISIONS = ("float32", "bf16", "fp16", "int8")
EMBED_EVERY = (*map(str, range(1, 11)), "auto")
FAST: dict[str, Any] = {"precision": "int8", "backend": "openvino", "embed_every": "auto"}
"""What `fercache extract --fast` sets; docs/results/extract.md has the loss."""
FAST_TIME = 0.4  # its time over that of float32 on every frame, for estimates
LOSSES = ("plain", "weighted", "balanced", "focal", "adjusted")
HEAD_KEYS = ("loss", "label_smoothing", "epochs", "patience", "width", "dropout", "lr", "ema", "mixup", "noise")
TEMPORAL_KEYS = ("window_s", "step_s", "time_mask_s")
"""Keys of `train-heads` that at their defaults are left to a head's own settings: of all heads, of temporal ones."""


def option(default: Any, help: str, *, choices: tuple[str, ...] = (), numbers: bool = True, later: bool = False,
           low: float | None = None, high: float | None = None) -> Any:
    """Return a dataclass field that is also a command-line option and a recipe key, with inclusive bounds of a number.

    `numbers`: the field changes numbers beyond float noise, that is, it belongs to the fingerprint. `later`: it does so
    only if it is not at its default, so that the names of older results do not change.
    """
    return field(default=default, metadata={"help": help, "choices": choices, "numbers": numbers, "later": later,
                                            "low": low, "high": high})


def fingerprint_of(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Config:
    """A set of options, checked when it is created."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            _check(entry.name, getattr(self, entry.name), entry.metadata)

    def settings(self) -> dict[str, Any]:
        """Return the options that change numbers, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["numbers"]
                  and not (f.metadata["later"] and getattr(self, f.name) == f.default)}
        # Lists, as JSON returns them: settings are compared with those read from a store.
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def fingerprint(self, **more: Any) -> str:
        """Return the sha256 (hex) over every option that changes numbers, and over `more` (JSON values)."""
        return fingerprint_of({**self.settings(), **more})


def _check(name: str, value: Any, meta: Any) -> None:
    choices, low, high = (meta.get(key) for key in ("choices", "low", "high"))
    flag = f"--{name.replace('_', '-')}"  # the recipe's key is the same word
    for item in value if isinstance(value, tuple) else (value,):
        if choices and item not in choices:
            raise InputError(f"{item!r} is not one of {', '.join(choices)}", where=flag)
        # Negated comparisons, so that NaN is refused too.
        if low is not None and not low <= item:
            raise InputError(f"{item!r} is below {low}", where=flag)
        if high is not None and not item <= high:
            raise InputError(f"{item!r} is above {high}", where=flag)


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(Config):
    """Where the clips and labels are (`stages/dataset.toml`)."""

    # Its choices are the readers of fercache.data, which imports this module; the command line adds them.
    dataset: str = option("", "Layout of the data set. With --root alone it is recognized from the folders. "
                          "logits: imported logits only.  [default: the data set used last in this cache, else demo]")
    root: str = option("", "Folder of the data set.", numbers=False)
    clips: str = option("", "Table clip,path[,label][,subject][,group][,split], a folder of clips, or one clip.",
                        numbers=False)
    labels: str = option("", "Per-frame labels: a table clip,frame,label (or clip,time_s,label) or a folder of text "
                         "files.", numbers=False)
    classes: tuple[str, ...] = option((), "Class names in order, for labels that are numbers.")
    edition: str = option("", "Part of the path of the annotations to use if there are several, such as 6th_ABAW.")
    first_frame: int = option(1, "Number of a clip's first frame in tables of labels and predictions.", low=0, high=1)
    fold: int = option(0, "Published fold whose test list is held out, from 1 (0: the first, or none).", low=0,
                       high=100)
    source: str = option("auto", "What to read if a set has both pictures and videos; auto prefers crops.",
                         choices=("auto", "crops", "video"))
    name: str = option("", "Name of this data set in the cache (default: made from the layout and the path).",
                       numbers=False)


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(Config):
    """Stage one (`stages/extract.toml`)."""

    # `modality` and its window are no part of `settings`: stores of sound have settings of their own.
    modality: str = option("picture", "What to extract: picture, or audio: sound around each frame, in a store of its "
                           "own, which `train-heads --join` reads.", choices=("picture", "audio"), numbers=False)
    weights: str = option(DEFAULT_WEIGHTS, f"{', '.join(KNOWN_WEIGHTS)}, another NAME of `fercache weights list`, PATH "
                          "(.safetensors, .pt), onnx:PATH, timm:NAME or hf:REPO; of sound: logmel, egemaps (extra "
                          "`opensmile`; audEERING's licence: not for products), hf:FOLDER or hf:REPO (extra `hf`).")
    audio_window_s: float = option(1.0, "Seconds of sound around each frame.", numbers=False, low=0.05, high=60)
    taps: tuple[str, ...] = option(FACENET.taps, "Values of the CNN to store: BLOCK (mean), BLOCK-3x3 (grid) or "
                                   "BLOCK-map; of transformers also BLOCK-cls and BLOCK-tokens. The default is that of "
                                   "the net's card.")
    precision: str = option("float32", "Arithmetic of the CNN.", choices=PRECISIONS)
    embed_every: str = option("1", "Run the CNN on every Nth frame of a face and interpolate its values between; auto: "
                              "where the face changes (1: every frame).", choices=EMBED_EVERY, later=True)
    backend: str = option("torch", "What runs the CNN on a CPU: torch; openvino (extra `openvino`), faster after a "
                          "slower first start; auto: openvino where it is installed and runs the precision (nets "
                          "other than facenet-pytorch's: with int8 only).",
                          choices=("torch", "openvino", "auto"), numbers=False)
    faces: str = option("auto", "mtcnn detects faces; cropped takes each picture as a face; auto decides by the kind "
                        "of clip.", choices=("auto", "mtcnn", "cropped"))
    detect_every: int = option(5, "Detect faces in every Nth frame and interpolate boxes between; uncertain frames are "
                               "detected too (1: every frame).", low=1, high=64)
    detect_px: int = option(0, "Reduce pictures to this longer side for detection (0: full size).", low=0, high=16384)
    min_face_px: int = option(40, "Smallest face to detect, in pixels of the frame.", low=10, high=4096)
    min_score: float = option(0.9, "Drop detections with a lower score.", low=0, high=1)
    margin: float = option(0.0, "Margin around a box, as a fraction of its longer side (0: that of the net's card).",
                           low=0, high=2)
    people: str = option("main", "People to extract: the main person of a clip; all, as CLIP#1 (the main person), "
                         "CLIP#2, ...; or the two people, as CLIP_left and CLIP_right.",
                         choices=("main", "all", "left/right"))
    augmentations: int = option(1, "Crops of each face: the plain one, its mirror image, then shifted, rotated and "
                                "relit ones.", low=1, high=64)
    on_truncated: str = option("fail", "A video that ends before its stated length: fail the clip, or keep the frames "
                               "that decode.", choices=("fail", "keep"))
    crop_fps: float = option(30.0, "Frame rate of folders of crops, which hold no times.", low=1e-3, high=1e6)
    thumbnails: bool = option(False, "Store a small picture of the face about every second, for the report.",
                              numbers=False)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", numbers=False)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)
    concurrent_clips: int = option(0, "Clips to extract at once (0: threads + 2 on a CPU, 12 on a GPU).", numbers=False,
                                   low=0, high=256)
    verify_sources: bool = option(False, "Compare every byte of each source file with what was stored.", numbers=False)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Stage two, a (`stages/train-heads.toml`)."""

    heads: tuple[str, ...] = option(DEFAULT_HEADS, "Heads to train.", choices=tuple(HEADS))
    taps: tuple[str, ...] = option(("block8", "repeat_2", "repeat_1-3x3"), "Taps that the heads read "
                                   "(of nets other than facenet-pytorch's by default all but the identity vector).")
    join: tuple[str, ...] = option((), "Other stores of the data set to join, extracted or imported: NAME or path. All "
                                   "their taps are read, or those that --taps names as NAME/tap.", numbers=False)
    normalize: str = option("train", "Normalize features by mean and spread of the training rows, or of each clip.",
                            choices=("train", "clip"))
    augmentations: str = option("draw", "Draw one of the stored augmentations of a crop in each step, or use the plain "
                                "crop only.", choices=("draw", "off"))
    temporal_input: str = option("oof-logits", "What temporal heads read: out-of-fold logits of the frame head, or the "
                                 "features.", choices=("oof-logits", "features"))
    ensemble: int = option(4, "Trainings per head and fold, each with other validation groups; their mean is used.",
                           low=1, high=20)
    validation: str = option("groups", "groups: a part of each fold's training groups chooses the epoch, and is not "
                             "trained on; none: train on all of them, for all epochs (temporal heads then read the "
                             "features).", choices=("groups", "none"), later=True)
    init: str = option("auto", "Weights that the frame head begins with: starter, those of starter heads, then trained "
                       "further; scratch, random ones; auto decides by the number of groups.",
                       choices=("auto", "starter", "scratch"), numbers=False)
    init_from: str = option("", "Folder of the starter heads to begin with (default: those that fercache ships).",
                            numbers=False)
    loss: str = option("", "Loss (default: the head's own).", choices=("", *LOSSES))
    label_smoothing: float = option(-1.0, "Fraction of the target spread over all classes (-1: the head's own).",
                                    low=-1, high=1)
    window_s: float = option(0.0, "Seconds that a window of a temporal head covers (0: the head's own).", low=0,
                             high=3600)
    step_s: float = option(-1.0, "Seconds between the frames of a window (-1: the head's own, 0: every frame).", low=-1,
                           high=60)
    epochs: int = option(0, "Maximum number of epochs (0: the head's own).", low=0, high=100_000)
    patience: int = option(-1, "Epochs without gain after which training stops (-1: the head's own, 0: never).", low=-1,
                           high=100_000)
    width: int = option(0, "Width of the nets (0: the head's own).", low=0, high=8192)
    dropout: float = option(-1.0, "Dropout (-1: the head's own).", low=-1, high=0.95)
    lr: float = option(0.0, "Peak of the learning rate (0: the head's own).", low=0, high=10)
    ema: float = option(-1.0, "Decay of the average of weights (-1: the head's own, 0: none).", low=-1, high=0.99999)
    mixup: float = option(-1.0, "Alpha of mixup over windows (-1: the head's own, 0: none).", low=-1, high=10)
    noise: float = option(-1.0, "Noise added to normalized features (-1: the head's own, 0: none).", low=-1, high=10)
    time_mask_s: float = option(-1.0, "Longest stretch masked in windows of temporal heads during training (-1: the "
                                "head's own).", low=-1, high=60)
    level: str = option("frame", "One prediction per frame or per clip (attention pooling in the temporal heads).",
                        choices=("frame", "clip"))
    finetune_tap: str = option("", "Map tap from which the frame head fine-tunes the backbone's last blocks, such as "
                               "mixed_7a-map.")
    precision: str = option("auto", "Arithmetic of training; auto: bf16 on a GPU, float32 on a CPU.",
                            choices=("auto", "float32", "bf16"))
    memory: str = option("auto", "Hold features in RAM, memory-map them from a file in the cache, or decide by free "
                         "memory.", choices=("auto", "ram", "map"), numbers=False)
    refit: str = option("none", "all: train on the validation split too, for a submission; its predictions are then "
                        "out of fold.", choices=("none", "all"), later=True)
    folds: int = option(5, "Folds by group (fewer if there are fewer groups).", low=2, high=100)
    seed: int = option(0, "Random seed.", low=0, high=2**31 - 1)
    device: str = option("auto", "auto, cpu, cuda or cuda:N.", numbers=False)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)

    @property
    def learns_from(self) -> tuple[str, ...]:
        """The splits that the folds are made of."""
        return ("train", "validation") if self.refit == "all" else ("train",)


@dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """Stage two, b (`stages/stack.toml`)."""

    select: str = option("auto", "What preds.csv holds: auto (the best out of fold), or one of stack, logistic, "
                         "geometric-mean, smoothed-mean, mean, or a head.")
    logits: tuple[str, ...] = option((), "Imported logits to use beside the heads (see `fercache logits import`).")
    force: bool = option(False, "Learn from imported logits even if they were declared in-sample.")
    level: str = option("frame", "clip: one prediction per clip, from its pooled frames.", choices=("frame", "clip"))
    metric: str = option("", "Metric to select by.  [default: the data set's own]", choices=("", *METRICS))
    causal: bool = option(False, "Use no stored frame later than the one that is predicted. Extraction itself looks "
                          "ahead: boxes between two detections (but for --detect-every 1), and which person is "
                          "followed.")
    refit: str = option("none", "all: learn from the validation split too, for a submission; it is then not scored.",
                        choices=("none", "all"))
    missing_faces: str = option("nearest", "Frames without a face: leave them unfilled, copy the nearest face's "
                                "prediction, interpolate, or leave them to the temporal heads.",
                                choices=("none", "nearest", "linear", "temporal-heads"))
    seed: int = option(0, "Random seed.", low=0, high=2**31 - 1)
    bootstrap: int = option(1000, "Bootstrap samples over groups.", low=0, high=1_000_000)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)


@dataclass(frozen=True, kw_only=True)
class LogitsConfig(Config):
    """Logits from elsewhere (`fercache logits import`)."""

    table: str = option("", "Table clip[,frame][,person][,label][,split][,group], then p_CLASS or logit_CLASS.")
    provenance: str = option("", "What predicted the training rows: out-of-fold, models that never saw the row's "
                             "group; held-out, a model that saw none of these clips; in-sample, a model that did.",
                             choices=("", "out-of-fold", "held-out", "in-sample"))
    only: str = option("", "Import the rows of this split only, and score them out of fold.",
                       choices=("", "train", "validation", "test"))
    fps: float = option(30.0, "Frame rate, if the table is all there is.", low=1e-3, high=1e6)
    folds: int = option(5, "Folds by group, if the table is all there is.", low=2, high=100)
    seed: int = option(0, "Seed of the folds.", low=0, high=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class AuditConfig(Config):
    """Proof that nothing leaks (`fercache audit`)."""

    full: bool = option(False, "Train the real heads and the stacker again on labels shuffled by group, which takes "
                         "as long as train-heads (several times that with fewer than 24 groups).")
    shuffles: int = option(5, "Number of shuffles of the labels for the probe.", low=2, high=1000)
    similar: float = option(0.995, "Cosine from which frames of two groups are listed as near duplicates.", low=0.5,
                            high=1)
    seed: int = option(0, "Random seed.", low=0, high=2**31 - 1)
    threads: int = option(0, "CPU threads (0: all cores).", numbers=False, low=0, high=MAX_THREADS)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(Config):
    """How predictions become a submission (`stages/submit.toml`)."""

    edition: str = option("auto", "Edition of the template; auto recognizes it from the first line and the classes.",
                          choices=("auto", "abaw1", "abaw2", "abaw3", "abaw5", "abaw6", "abaw8", "dfew", "ferv39k"))
    map: str = option("", "For other class names: `names` (map equal names and accept the rest) or A=B,C=D. Without it "
                      "other classes are refused.")
    rows: str = option("strict", "strict: refuse missing or extra rows; template: write the organizers' rows, fill or "
                       "drop ours, and report it.", choices=("strict", "template"))
    missing_faces: str = option("nearest", "How to fill rows that the predictions lack.", choices=("nearest", "linear"))


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Config):
    """How predictions are scored on a set's labels (`stages/score.toml`)."""

    split: str = option("all", "Trials to score.", choices=("all", "train", "validation", "test"))
    map: str = option("", "Class mapping A=B,C=D (ours=theirs), where names differ.")
    level: str = option("auto", "Score frames or clips; auto: clips where the set has one label a clip.",
                        choices=("auto", "frame", "clip"))
    seed: int = option(0, "Seed of the bootstrap.", low=0, high=2**31 - 1)
    bootstrap: int = option(1000, "Bootstrap samples over groups.", low=0, high=1_000_000)


@dataclass(frozen=True, kw_only=True)
class AblationConfig(Config):
    """What the table of choices tries (`stages/ablation.toml`)."""

    rows: tuple[str, ...] = option((), "Changes to try: KEY=VALUE of train-heads, lists joined by +, several changes "
                                   "by ; (default: taps and every switch).")
    repeats: int = option(3, "Seeds per row.", low=1, high=100)
    bootstrap: int = option(1000, "Bootstrap samples over groups.", low=0, high=1_000_000)


RECIPES: dict[str, type[Config]] = {"dataset": DatasetConfig, "extract": ExtractConfig, "train-heads": TrainConfig,
                                    "stack": StackConfig, "submit": SubmitConfig, "score": ScoreConfig,
                                    "ablation": AblationConfig, "audit": AuditConfig, "logits-import": LogitsConfig}
"""Name of a recipe in `stages/` -> its options."""
