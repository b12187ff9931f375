"""The sound of a video: mono at 16 kHz, placed on the clock of the picture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av import AudioResampler
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from fercache.media.video import MAX_BAD_READS, RESTART_S, first_picture_s, open_container

log = logging.getLogger(__name__)

RATE = 16_000  # samples per second: what speech models read, and twice the highest frequency that the log-mel bands use
DECODER = "pyav-swresample-1"  # part of the fingerprint: increase it when the same file yields other samples
# A block whose time stamp is this far from the end of the one before begins a new part; less is the rounding of
# containers (Matroska counts milliseconds).
TOLERANCE_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of a clip from the first picture on."""

    samples: NDArray[np.int16]  # (S,) mono, zeros where nothing was decoded
    parts: tuple[tuple[int, int], ...]  # first sample and stop of each stretch that was decoded


def read_sound(path: Path, stop_s: float) -> Sound:
    """Return the sound of a video from its first picture to `stop_s` seconds later; empty if it has none.

    What cannot be decoded is a gap. Takes 32 kB of memory per second. Raises ClipError if the file cannot be opened, or
    has no picture.
    """
    origin_s, size = first_picture_s(path), max(0, round(stop_s * RATE))
    samples, parts = np.zeros(size, np.int16), list[tuple[int, int]]()
    with open_container(path) as container:
        stream = container.streams.best("audio")
        if not isinstance(stream, AudioStream) or getattr(stream, "codec_context", None) is None:
            return Sound(samples=samples[:0], parts=())
        for start, block in _blocks(container, stream, origin_s):
            first, stop = max(start, 0), min(start + len(block), size)
            if first < stop:
                samples[first:stop] = block[first - start:stop - start]
                if parts and parts[-1][1] == first:
                    parts[-1] = parts[-1][0], stop
                else:
                    parts.append((first, stop))
    return Sound(samples=samples, parts=tuple(parts))


def _blocks(container: InputContainer, stream: AudioStream, origin_s: float) -> Iterator[tuple[int, NDArray[np.int16]]]:
    """Yield position (in samples from the first picture) and samples of each block; blocks of a part are adjacent."""
    resampler: AudioResampler | None = None
    shape: tuple[object, ...] = ()
    written, end_s, shift_s = 0, 0.0, -origin_s

    def resampled(frame: AudioFrame | None) -> Iterator[tuple[int, NDArray[np.int16]]]:
        nonlocal written
        for out in resampler.resample(frame) if resampler is not None else ():
            block = out.to_ndarray().reshape(-1).astype(np.int16, copy=False)
            yield written, block
            written += len(block)

    for frame in _frames(container, stream):
        known = frame.pts is not None and frame.time_base is not None
        start_s = float(frame.pts * frame.time_base) + shift_s if known else end_s  # type: ignore[operator]
        if end_s - start_s >= RESTART_S:  # a joined recording, whose time stamps begin again
            shift_s, start_s = shift_s + end_s - start_s, end_s
        own = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or own != shape or abs(start_s - end_s) > TOLERANCE_S:
            yield from resampled(None)
            resampler, shape, written = AudioResampler("s16", "mono", RATE), own, round(start_s * RATE)
            end_s = start_s
        end_s += frame.samples / frame.sample_rate
        yield from resampled(frame)
    yield from resampled(None)


def _frames(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Yield the frames that decode."""
    bad = 0
    while bad < MAX_BAD_READS:
        try:
            for packet in container.demux(stream):
                try:
                    yield from stream.codec_context.decode(packet if packet.size else None)
                except av.FFmpegError as error:
                    log.debug("%s: %s", container.name, error)
            return
        except (IndexError, av.FFmpegError, ValueError, MemoryError):  # as in `video._packets`
            bad += 1
