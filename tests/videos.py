"""Test videos made with PyAV: each frame carries its number, so that a row can be checked for being the right one."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS, CELL = 10, 8
# FFmpeg's encoders of subtitles open with this only.
ASS_HEADER = b"[Script Info]\nScriptType: v4.00+\n[V4+ Styles]\n[Events]\n"


def picture(number: int, width: int = 128, height: int = 96) -> NDArray[np.uint8]:
    """Return an (height, width, 3) picture: a number in black and white cells on the top, a turning colour below."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = (40 + 5 * number % 160, 120, 200 - 3 * number % 120)
    for bit in range(BITS):
        image[:16, bit * CELL:(bit + 1) * CELL] = 255 * (number >> bit & 1)
    return image


def number_in(image: NDArray[np.uint8]) -> int:
    """Return the number that `picture` drew."""
    cells = [image[4:12, bit * CELL + 2:(bit + 1) * CELL - 2].mean() > 127 for bit in range(BITS)]
    return sum(1 << bit for bit, cell in enumerate(cells) if cell)


def make_video(path: Path, images: Sequence[NDArray[np.uint8]], *, codec: str = "libx264", pix_fmt: str = "yuv420p",
               times: Sequence[int] | None = None, rate: int = 25, options: dict[str, str] | None = None,
               container_options: dict[str, str] | None = None, stated: str | None = None, title: str = "",
               pixel: Fraction | None = None) -> Path:
    """Write pictures as a video; `times` are time stamps in ticks of 1 / 1000 s (default: constant rate)."""
    with av.open(str(path), "w", format=stated, container_options=container_options or {}) as out:
        if title:
            out.metadata["title"] = title
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        for i, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (times[i] if times is not None else i), base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def numbered_video(path: Path, count: int, **options: object) -> Path:
    """Write a video whose frame i (from 1) shows the number i."""
    return make_video(path, [picture(i + 1) for i in range(count)], **options)  # type: ignore[arg-type]


def joined(path: Path, parts: Sequence[Path]) -> Path:
    """Write raw or transport streams end to end (a change of resolution, a clock that starts again)."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def set_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Patch the display matrix (a, b, c, d as whole numbers) into the track header of an MP4."""
    a, b, c, d = (value << 16 for value in matrix)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes from the version field to the matrix
    data[start:start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def set_flv_duration(path: Path, seconds: float) -> Path:
    """Patch the duration that the header of an FLV states."""
    data = bytearray(path.read_bytes())
    place = data.index(b"duration") + len(b"duration") + 1  # onMetaData: a key and a double
    data[place:place + 8] = struct.pack(">d", seconds)
    path.write_bytes(data)
    return path


def packets_of(path: Path) -> list[tuple[int, int, bool]]:
    """Return (position, size, is key frame) of each video packet."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]


def spoil(path: Path, spots: Sequence[int], length: int = 60, skip: int = 0, seed: int = 0) -> Path:
    """Overwrite bytes of the packets of these positions with noise."""
    rng, data, packets = np.random.default_rng(seed), bytearray(path.read_bytes()), packets_of(path)
    for spot in spots:
        start, size, _ = packets[spot]
        first = start + min(skip, size - 1)
        stop = min(first + length, start + size)
        data[first:stop] = rng.bytes(stop - first)
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    """Cut a file off after this share of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * share)])
    return path


def with_sound(path: Path, frames: int, sound_s: float, codec: str = "libx264", sound: str = "libmp3lame") -> Path:
    """Write a numbered video of 25 frames per second beside a tone that may be longer."""
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream(codec, rate=25), out.add_stream(sound, rate=48000)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        packets = []
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i + 1), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            packets += video.encode(frame)
        packets += video.encode(None)
        tone = (8000 * np.sin(np.arange(int(48000 * sound_s)) / 20)).astype(np.int16)
        for start in range(0, len(tone), 1024):
            part = av.AudioFrame.from_ndarray(tone[None, start:start + 1024], format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
            packets += audio.encode(part)
        packets += audio.encode(None)
        for packet in sorted(packets, key=lambda one: float(one.dts * one.time_base)):
            out.mux(packet)
    return path


def first_frames(path: Path, source: Path, frames: int) -> Path:
    """Copy the first packets of the picture of a video."""
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(container.streams.video[0])
        packets = (packet for packet in container.demux(video=0) if packet.size)
        for packet in islice(packets, frames):
            packet.stream = stream
            out.mux(packet)
    return path


def several_videos(path: Path, parts: Sequence[Path], default: int | None = None) -> Path:
    """Copy the video streams of several files into one, each with its packets; `default` marks one of them."""
    with av.open(str(path), "w") as out:
        sources = [av.open(str(part)) for part in parts]
        streams = [out.add_stream_from_template(source.streams.video[0]) for source in sources]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number == default else av.stream.Disposition(0)
        packets = [(float(packet.dts * packet.time_base), number, packet) for number, source in enumerate(sources)
                   for packet in source.demux(video=0) if packet.size]
        for _, number, packet in sorted(packets, key=lambda one: one[:2]):
            packet.stream = streams[number]
            out.mux(packet)
        for source in sources:
            source.close()
    return path


def with_subtitles(path: Path, video: Path, until_s: float) -> Path:
    """Copy a video and add a line of subtitles that ends at `until_s`."""
    if path.suffix == ".flv":  # FFmpeg reads them but writes none: a script tag of one object with one text
        words = b"\x02\0\x0aonTextData\x08\0\0\0\x01\0\x04text\x02\0\x04late\0\0\x09"
        tag = b"\x12" + b"".join(struct.pack(">I", size)[1:] for size in (len(words), int(until_s * 1000)))
        tag += bytes(4) + words
        path.write_bytes(video.read_bytes() + tag + struct.pack(">I", len(tag)))
        return set_flv_duration(path, until_s)
    codec = {".webm": "webvtt", ".mp4": "mov_text", ".mov": "mov_text"}.get(path.suffix, "subrip")
    with av.open(str(video)) as source, av.open(str(path), "w") as out:
        picture_stream = out.add_stream_from_template(source.streams.video[0])
        words = out.add_stream(codec)
        words.codec_context.subtitle_header = ASS_HEADER
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture_stream
                out.mux(packet)
        line = av.Packet(b"\x00\x04late" if codec == "mov_text" else b"late")
        line.stream, line.time_base = words, Fraction(1, 1000)
        line.pts = line.dts = int(until_s * 1000) - 1000
        line.duration = 1000
        out.mux(line)
    return path
