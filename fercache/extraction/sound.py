"""Stage one for sound: for each frame of the picture, features of the sound around it, in a store of their own."""

from __future__ import annotations

import logging
import os
import platform
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fercache import media, workspace
from fercache.backbones.registry import DEFAULT_WEIGHTS, SOUNDS
from fercache.backbones.taps import AUDIO, is_audio
from fercache.backbones.weights import hub_folder
from fercache.backbones.weights.files import Weights
from fercache.config import ExtractConfig, fingerprint_of
from fercache.data.base import Dataset, Trial, stored_trials
from fercache.errors import InputError, MissingExtra, WeightsError
from fercache.extraction.job import (
    ClipResult,
    Engine,
    ExtractionJob,
    ExtractReport,
    current_store_or_none,
    open_or_create,
    record_weights,
    recorded_weights,
)
from fercache.extraction.run_control import CancelToken, never_cancelled
from fercache.media import sound
from fercache.media.sound import RATE, Sound, read_sound
from fercache.runtime import atomic_io
from fercache.runtime.progress import ProgressBar
from fercache.runtime.uri import Location
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import SEGMENT
from fercache.workspace import Workspace, features_folder, store_name

log = logging.getLogger(__name__)

LOGMEL, EGEMAPS = SOUNDS
HF = "hf:"
FORMAT = {"store": 1, "decoder": sound.DECODER, "rows": "window-1"}
"""Part of the fingerprint for everything that the code, not a setting, fixes."""
READ = {"modality", "weights", "audio_window_s", "taps", "on_truncated", "crop_fps", "device", "threads",
        "concurrent_clips", "verify_sources"}
"""Settings of stage one that sound has."""
SILENCE_DB = -70.0
"""A window below this level (of the root mean square, relative to full scale) is silent: its row is masked."""
MIN_DECODED = 0.25  # least share of a window that must be decoded; at the first frame half of it is before the clip
TICK = RATE // 100  # samples of the steps in which the level and the gaps of the sound are measured: 10 ms
BLOCK_S = 20
"""Seconds that a net reads at once, on a grid that starts with the clip: a resumed clip has the same blocks."""
ROWS = 128  # rows that are averaged at once; it divides SEGMENT


# Log-mel bands. torch and torchvision have no mel filters; torchaudio has, but no release of it fits the pinned torch;
# librosa would add numba and a dozen more packages for one function. A test compares with values of transformers.
BANDS, LOW_HZ, HIGH_HZ, FRAME, FFT = 64, 125.0, 7500.0, 400, 512
FLOOR = 1e-8


def mel_filters() -> NDArray[np.float64]:
    """Return triangular filters, (FFT // 2 + 1, BANDS), equally wide on the mel scale of HTK, each with a peak of 1."""
    def mel(hz: Any) -> Any:
        return 2595 * np.log10(1 + np.asarray(hz) / 700)
    edges = 700 * (10 ** (np.linspace(mel(LOW_HZ), mel(HIGH_HZ), BANDS + 2) / 2595) - 1)
    bins = np.linspace(0, RATE / 2, FFT // 2 + 1)[:, None]
    up, down = (bins - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - bins) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(up, down))


class LogMel:
    """Logarithms of the energy in 64 mel bands from 125 to 7,500 Hz, over Hann windows of 25 ms, every 10 ms."""

    hop, offset, context_s, spread = TICK, 0, 0.02, True

    def __init__(self) -> None:
        self.filters = mel_filters()
        self.window = np.hanning(FRAME + 1)[:-1]

    def __call__(self, samples: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return {"audio": (H, 64)}."""
        padded = np.pad(samples.astype(np.float64), FRAME // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::self.hop]
        power = np.abs(np.fft.rfft(frames * self.window, FFT)) ** 2
        return {AUDIO: np.log(power @ self.filters + FLOOR).astype(np.float32)}


class EGemaps:
    """The 25 low-level descriptors of eGeMAPS v02 (Eyben et al. 2016), every 10 ms, by the package opensmile."""

    hop, offset, context_s, spread = TICK, 0, 1.0, True

    def __init__(self) -> None:
        try:
            import opensmile
        except ImportError as error:
            raise MissingExtra("egemaps needs the package opensmile, which is not installed",
                               hint="pip install 'fercache[opensmile]' (audEERING's licence: free for private use, "
                                    "research and education, not for products)") from error
        self.smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02,
                                     feature_level=opensmile.FeatureLevel.LowLevelDescriptors)
        self.lock = threading.Lock()  # one openSMILE process holds the state of one signal

    def __call__(self, samples: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return {"audio": (H, 25)}."""
        with self.lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a signal that is too short: it gives no row
            values = self.smile.process_signal(samples, RATE).to_numpy(np.float32)
        return {AUDIO: np.nan_to_num(values)}


class HfSound:
    """A wav2vec 2.0, HuBERT or WavLM model of transformers; taps are its last layer, or the output of block N."""

    offset, context_s, spread = 200, 2.0, False  # the first row is the center of 400 samples

    def __init__(self, folder: Path, taps: Sequence[str], device: str) -> None:
        import torch  # takes seconds, as what is imported below

        from fercache.backbones.library import check_complete, import_library
        from fercache.runtime.devices import resolve_device

        transformers = import_library("transformers")
        try:
            self.prepare = transformers.AutoFeatureExtractor.from_pretrained(folder, local_files_only=True)
            model, report = transformers.AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True,
                                                                   output_loading_info=True)
        except (OSError, ValueError, KeyError) as error:
            raise WeightsError(f"not a model that transformers opens ({str(error).splitlines()[0]})", where=folder,
                               hint="a folder with config.json, preprocessor_config.json and .safetensors") from error
        # Used in training only, and left out of some files.
        check_complete(sorted(name for name in report["missing_keys"] if "masked_spec_embed" not in name), folder)
        self.hop = getattr(model.config, "inputs_to_logits_ratio", 0)
        if not self.hop or self.prepare.sampling_rate != RATE:
            raise WeightsError("reads no samples at 16 kHz", where=folder,
                               hint="use a model of the kind of wav2vec 2.0, HuBERT or WavLM")
        self.torch, self.device = torch, resolve_device(device)
        self.model = model.to(self.device).eval()
        last = int(model.config.num_hidden_layers)
        self.layers = {tap: int(tap.partition("-")[2] or last) for tap in taps}
        wrong = [tap for tap, layer in self.layers.items() if not 0 <= layer <= last]
        if wrong:
            raise InputError(f"has no layer {wrong[0]!r}", where=folder,
                             hint=f"choose {AUDIO} (the last), or {AUDIO}-0 to {AUDIO}-{last}")

    def __call__(self, samples: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return tap -> (H, D)."""
        if len(samples) < 2 * self.offset:
            return {tap: np.zeros((0, int(self.model.config.hidden_size)), np.float32) for tap in self.layers}
        inputs = self.prepare(samples, sampling_rate=RATE, return_tensors="pt").to(self.device)
        with self.torch.inference_mode():
            out = self.model(**inputs, output_hidden_states=True)
        # The last layer is `last_hidden_state`: some models normalize it once more.
        last = len(out.hidden_states) - 1
        return {tap: (out.last_hidden_state if layer == last else out.hidden_states[layer])[0].float().cpu().numpy()
                for tap, layer in self.layers.items()}


# Called with samples (S,) from -1 to 1, a net returns tap -> (H, D): a row for each `hop` samples, the first of which
# is centered `offset` samples after the start. A row depends on `context_s` seconds of sound before and after. With
# `spread`, a frame gets the standard deviation over its window beside the mean.
SoundNet: TypeAlias = LogMel | EGemaps | HfSound


def with_typed(config: ExtractConfig, typed: Mapping[str, Any], for_sound: bool) -> ExtractConfig:
    """Return the configuration for sound, of which the user gave the keys `typed` and a recipe may give others.

    `for_sound`: whether the recipe itself is for sound. Raises InputError or WeightsError if a typed key is for
    pictures.
    """
    pictures = sorted(typed.keys() & {entry.name for entry in fields(ExtractConfig)} - READ)
    pictures += [f"taps {tap}" for tap in typed.get("taps", ()) if not is_audio(tap)]
    if pictures:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in pictures)
        raise InputError("sound has no such setting", where=flags,
                         hint="leave it out; rows are those of the pictures, so extract these first, with their flags")
    if typed.get("weights") == DEFAULT_WEIGHTS:
        raise _unknown_source(DEFAULT_WEIGHTS)
    # A recipe for pictures names a net of pictures: sound has its own default.
    own = "weights" in typed or for_sound
    return config if own else replace(config, weights=LOGMEL)


def _unknown_source(name: str) -> WeightsError:
    return WeightsError("no features of sound have this name", where=name,
                        hint=f"choose {LOGMEL}, {EGEMAPS}, or {HF}FOLDER or {HF}REPOSITORY")


def resolve_sound(config: ExtractConfig, cache: Path) -> Weights:
    """Return what identifies the source of sound features; a model is downloaded on first use.

    Raises WeightsError if there is no such source, or the model cannot be found; MissingExtra if a package that the
    source needs is not installed.
    """
    name = LOGMEL if config.weights == DEFAULT_WEIGHTS else config.weights
    if name == LOGMEL:
        return Weights(name=LOGMEL, path=Path(), sha256="logmel-1", source="fercache", terms="", net=AUDIO)
    if name == EGEMAPS:
        try:
            return Weights(name=EGEMAPS, path=Path(), sha256=f"eGeMAPSv02 of opensmile {version('opensmile')}",
                           source="opensmile", terms="audEERING: private use, research and education", net=AUDIO)
        except PackageNotFoundError:
            EGemaps()  # raises with a hint
    if not name.startswith(HF):
        raise _unknown_source(name)
    source = name.removeprefix(HF)
    folder = Path(source).expanduser()
    if not source or not folder.is_dir():
        folder = hub_folder("hf", source, download=True)
    files = sorted([*folder.glob("*config.json"), *folder.glob("*.safetensors")])
    if not any(path.suffix == ".safetensors" for path in files):
        raise WeightsError("holds no .safetensors", where=folder,
                           hint="save the model with transformers' save_pretrained; pickles are never loaded")
    digest = fingerprint_of([[path.name, atomic_io.file_sha256(path)] for path in files])
    record_weights(cache, digest, name)
    label = re.sub(r"[^A-Za-z0-9_.]+", "-", Path(source).name).strip("-.") or "model"
    return Weights(name=label, path=folder, sha256=digest, source=source, terms="see the model's card", net=AUDIO)


def settings_of(config: ExtractConfig, source: Weights) -> dict[str, Any]:
    """Return everything that changes numbers in a store of sound, as a JSON value."""
    taps = [tap for tap in config.taps if is_audio(tap)] or [AUDIO]  # the recipe names taps of pictures
    # Of models only, block N is `audio-N`.
    known = AUDIO if source.name in (LOGMEL, EGEMAPS) else rf"{AUDIO}(-\d+)?"
    wrong = [tap for tap in taps if not re.fullmatch(known, tap)]
    if wrong:
        raise InputError(f"has no tap {wrong[0]!r}", where=source.name, hint="leave --taps out")
    return {"modality": AUDIO, "backbone": source.name, "weights": source.sha256, "taps": taps, "format": FORMAT,
            "audio_window_s": config.audio_window_s}


def config_of(settings: Mapping[str, Any], cache: Path, defaults: ExtractConfig) -> ExtractConfig:
    """Return the configuration that makes a store of sound with these settings.

    Raises WeightsError if it is not known where its model is.
    """
    name = settings["backbone"]
    if name not in (LOGMEL, EGEMAPS):
        name = recorded_weights(cache, settings["weights"])
    return replace(defaults, modality="audio", weights=name, taps=tuple(settings["taps"]),
                   audio_window_s=settings["audio_window_s"])


def extract_sound(dataset: Dataset, config: ExtractConfig, cache: Path, features: Location | None = None, *,
                  pictures: Location | None = None, engine: Engine = ExtractionJob.run_all,
                  failures: str = workspace.FAILURES, stop: Callable[[], bool] = never_cancelled) -> ExtractReport:
    """Bring the store of the sound of `dataset` up to date; takes, returns and raises what `extract_dataset` does.

    `pictures`: store whose frame tables give the rows; by default that of the last `extract`. A clip that it lacks, or
    all without a store, get a row for each frame that decodes. The store does not become the data set's current one:
    heads join it with that of the pictures.
    """
    started = time.monotonic()
    source = resolve_sound(config, cache)
    settings = settings_of(config, source)
    place = pictures or current_store_or_none(features or cache, dataset.name)
    picture_store = None if place is None else EmbeddingStore.open_or_none(place, log_level=logging.WARNING)
    if picture_store is not None:
        dataset = stored_trials(dataset, picture_store)
    path = features_folder(features or cache, dataset.name) / store_name(source.name, fingerprint_of(settings))
    log.info("store %s", path)
    net: SoundNet | None = None

    def shapes() -> dict[str, tuple[int, ...]]:
        nonlocal net
        net = _net(source, settings["taps"], config)  # a model is loaded only where it has work
        return {tap: (values.shape[1] * (1 + net.spread),)
                for tap, values in net(np.zeros(RATE, np.float32)).items()}

    store = open_or_create(path, settings, shapes)
    # Crops have no sound; the video that they were cut from has it, by frame number.
    trials = tuple(trial if trial.video is None else replace(trial, path=trial.video, kind="video")
                   for trial in dataset.trials)
    job = SoundJob(config, store, "", source, cancel=CancelToken(stop), started_s=started, net=net,
                   pictures=None if picture_store is None else picture_store.path, crops={
                       trial.name: trial.path.absolute() for trial in dataset.trials if trial.kind != "video"})
    failures_at = Workspace(cache).failures(dataset.name, failures.replace("failures", "failures-audio", 1))
    return job.run(replace(dataset, trials=trials), engine, failures_at)


def _net(source: Weights, taps: Sequence[str], config: ExtractConfig) -> SoundNet:
    if source.name == LOGMEL:
        return LogMel()
    return EGemaps() if source.name == EGEMAPS else HfSound(source.path, taps, config.device)


@dataclass
class SoundJob(ExtractionJob):
    """One run over the sound of a data set."""

    net: SoundNet | None = None  # if not given, loaded by `resources`
    pictures: Location | None = None  # store whose frame tables give the rows
    crops: dict[str, Path] = field(default_factory=dict)  # trials whose pictures are not those of the video -> folder
    provenance: dict[str, Any] = field(init=False, repr=False, compare=False)
    picture_store: EmbeddingStore | None = field(init=False, repr=False, compare=False)

    @contextmanager
    def resources(self, bar: ProgressBar, most: int = 256) -> Iterator[int]:
        """Open what the clips of this process share, and yield how many of at `most` this many clips run at once."""
        packages, threads = ["numpy", "av"], self.config.threads or len(os.sched_getaffinity(0))
        self.net = self.net or _net(self.cnn, self.store.settings["taps"], self.config)
        if isinstance(self.net, EGemaps):
            packages.append("opensmile")
        if isinstance(self.net, HfSound):
            packages += ["torch", "transformers"]
            self.net.torch.set_num_threads(1)  # clips use the cores: one each
        self.provenance = {"device": getattr(self.net, "device", "cpu"), "machine": platform.machine(),
                           "versions": {name: version(name) for name in packages}}
        # The run that started the processes has opened it, so a failure here must not give other rows.
        self.picture_store = None if self.pictures is None else EmbeddingStore.open(self.pictures)
        self.bar = bar
        yield min(most, self.config.concurrent_clips or threads)

    def for_process(self) -> dict[str, Any]:
        """Return the fields that only this kind of job has."""
        place = self.pictures
        return {"pictures": place.absolute() if isinstance(place, Path) else place, "crops": self.crops}

    def extract_clip(self, trial: Trial) -> ClipResult | None:
        """Extract and commit the sound of one clip; return None if another process took it first."""
        source = media.source_digest(trial.path, trial.kind, strict=True)
        with self.store.writer(trial.name, source=source, provenance=self.provenance) as writer:
            if writer is None:
                return None
            index, time_s, at_s = self._rows(trial)
            half_s, last_s = self.config.audio_window_s / 2, float(np.nanmax(at_s, initial=0.0))
            one = Sound(samples=np.zeros(0, np.int16), parts=())
            if trial.kind == "video":
                one = read_sound(trial.path, last_s + half_s)
            assert self.net is not None
            rows = WindowedRows(one, self.net, self.config.audio_window_s)
            audible = rows.audible(at_s)
            if writer.frame_table is None:
                empty = np.full((len(index), 5), np.nan)
                writer.set_frame_table(np.column_stack([index, time_s, audible, empty, np.full(len(index), -1.0)]))
            while writer.written < len(index):
                self.cancel.check()
                part = slice(writer.written, writer.written + SEGMENT)
                writer.write(writer.written, rows.read(at_s[part], audible[part], self.store.taps))
            manifest = writer.commit()
        self.bar.advance(manifest.frames)
        if not audible.any():
            self.log_alike(logging.WARNING, trial.name, f"no sound in any of its {manifest.frames} frames")
        return ClipResult(clip=trial.name, state="computed", frames=manifest.frames, faces=int(audible.sum()))

    def _rows(self, trial: Trial) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return number, time and place in the sound (both in seconds) of each row; NaN without a place."""
        folder, pictures = self.crops.get(trial.name), self.picture_store
        if pictures is not None and trial.name in pictures:
            table = pictures[trial.name].frame_table
            index, time_s = table["index"].copy(), table["time_s"].copy()
        else:
            kind = trial.kind if folder is None else "crops"
            time_s = media.open_source(folder or trial.path, kind, crop_fps=self.config.crop_fps,
                                       damaged=self.config.on_truncated).times()
            index = np.arange(1.0, len(time_s) + 1)
        if folder is None:
            return index, time_s, time_s
        # Crops are numbered as the frames of the video are, whatever rate the crops are taken to have.
        of_frame = media.packet_times(trial.path) if trial.kind == "video" else np.zeros(0)
        at_s = np.full(len(index), np.nan)
        inside = index <= len(of_frame)
        at_s[inside] = of_frame[index[inside].astype(int) - 1]
        return index, time_s, at_s


class WindowedRows:
    """The features of one clip's sound, averaged over a window around each frame."""

    def __init__(self, one: Sound, net: SoundNet, window_s: float) -> None:
        self.samples, self.net, self.half_s = one.samples, net, window_s / 2
        ticks = -(-len(self.samples) // TICK)
        self.decoded = np.zeros(ticks, bool)
        for start, stop in one.parts:
            self.decoded[-(-start // TICK):stop // TICK] = True
        squares = np.pad(self.samples, (0, ticks * TICK - len(self.samples))).astype(np.float64) ** 2
        # (ticks + 1,) sums up to each tick: of decoded ticks, and of the squares in them.
        self.sums = [np.concatenate([[0], np.cumsum(values)]) for values in
                     (self.decoded, squares.reshape(-1, TICK).sum(1) * self.decoded)]
        self.block = lru_cache(maxsize=3)(self._block)

    def audible(self, at_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return whether there is sound around each time, (T,)."""
        low, high = self._range(at_s, TICK, 0, len(self.decoded))
        decoded, energy = (values[high] - values[low] for values in self.sums)
        level = np.sqrt(energy / np.maximum(decoded * TICK, 1)) / 2**15
        audible: NDArray[np.bool_] = ((decoded >= MIN_DECODED * 2 * self.half_s * RATE / TICK)
                                    & (level >= 10 ** (SILENCE_DB / 20)))
        return audible

    def read(self, at_s: NDArray[np.float64], audible: NDArray[np.bool_], shapes: dict[str, tuple[int, ...]]
             ) -> dict[str, NDArray[np.float16]]:
        """Return tap -> (n, D) of n frames: mean over the window, and spread; zeros where nothing is audible."""
        out = {tap: np.zeros((len(at_s), *shape), np.float16) for tap, shape in shapes.items()}
        for start in range(0, len(at_s), ROWS):
            rows = start + np.flatnonzero(audible[start:start + ROWS])
            if len(rows):
                for tap, values in self._means(at_s[rows]).items():
                    out[tap][rows] = np.clip(values, -65504, 65504)  # float16 has no more
        return out

    def _range(self, at_s: NDArray[np.float64], hop: int, offset: int, count: int
               ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first step in the window around each time, and the stop; an empty range for NaN."""
        at = np.nan_to_num(at_s, nan=-1e6) * RATE - offset
        low = np.ceil((at - self.half_s * RATE) / hop).astype(np.int64)
        high = np.floor((at + self.half_s * RATE) / hop).astype(np.int64) + 1
        return np.clip(low, 0, count), np.clip(high, 0, count)

    def _means(self, at_s: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return tap -> mean (and standard deviation) of the net's decoded rows in each window."""
        net = self.net
        low, high = self._range(at_s, net.hop, net.offset, -(-len(self.samples) // net.hop))
        first, stop = int(low.min()), int(high.max())
        tick = (np.arange(first, stop) * net.hop + net.offset) // TICK
        weight = self.decoded[np.minimum(tick, len(self.decoded) - 1)][:, None]
        count = np.maximum(_window_sums(weight.astype(np.float64), low - first, high - first), 1)
        size = BLOCK_S * RATE // net.hop
        blocks = [self.block(number) for number in range(first // size, -(-stop // size))]
        skipped = first // size * size
        means = {}
        for tap in blocks[0]:
            values = np.concatenate([block[tap] for block in blocks])[first - skipped:stop - skipped] * weight
            mean = _window_sums(values, low - first, high - first) / count
            means[tap] = mean
            if net.spread:
                square = _window_sums(values ** 2, low - first, high - first) / count
                means[tap] = np.column_stack([mean, np.sqrt(np.maximum(square - mean ** 2, 0))])
        return means

    def _block(self, number: int) -> dict[str, NDArray[np.float64]]:
        """Return tap -> the net's rows of a block; rows past the last one repeat it."""
        hop, context = self.net.hop, round(self.net.context_s * RATE)
        size = BLOCK_S * RATE // hop
        start = number * size * hop
        first = max(0, start - context // hop * hop)
        samples = self.samples[first:start + size * hop + context].astype(np.float32) / np.float32(2**15)
        rows = {}
        for tap, values in self.net(samples).items():
            own = values[(start - first) // hop:][:size].astype(np.float64)
            rows[tap] = np.pad(own, ((0, size - len(own)), (0, 0)), "edge" if len(own) else "constant")
        return rows


def _window_sums(values: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums of rows `low` to `high`, (n, D)."""
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, 0)])
    result: NDArray[np.float64] = sums[high] - sums[low]
    return result
