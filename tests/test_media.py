"""The frame clock: one row a source frame, never misnumbered; clear errors for what cannot be read."""

from __future__ import annotations

import os
import re
import resource
import struct
import warnings
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import (
    cut,
    joined,
    make_video,
    number_in,
    numbered_video,
    packets_of,
    picture,
    set_flv_duration,
    set_matrix,
    several_videos,
    spoil,
    with_sound,
    with_subtitles,
)

import fercache
from fercache import media
from fercache.errors import ClipError, InputError
from fercache.media import pictures, source
from fercache.media.video import HLG, PQ, WHITE_48, choose_stream, open_container, tone_map, upright

FASTSTART = {"movflags": "faststart"}


def rows(path: Path, **options: str) -> list[source.Frame]:
    found = list(media.open_source(path, "video", **options).frames())  # type: ignore[arg-type]
    assert [frame.index for frame in found] == list(range(1, len(found) + 1))
    assert found[0].time_s == 0
    assert all(b.time_s > a.time_s for a, b in pairwise(found))
    return found


def shown(frames: list[source.Frame]) -> list[int | None]:
    return [None if frame.image is None else number_in(frame.image) for frame in frames]


@pytest.mark.parametrize(("name", "options"), [
    ("plain.mp4", {}),
    ("b_frames.mp4", {"options": {"bf": "4", "g": "50"}}),
    ("ten_bit.mp4", {"codec": "libx265", "pix_fmt": "yuv420p10le", "options": {"x265-params": "log-level=none"}}),
    ("vp9.webm", {"codec": "libvpx-vp9", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}}),
    ("vp8.webm", {"codec": "libvpx", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}}),
    ("h264.mkv", {}), ("h264.ts", {}), ("mpeg4.avi", {"codec": "mpeg4"}), ("mpeg4_b.avi", {
        "codec": "mpeg4", "options": {"bf": "2"}}),
    ("mjpeg.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}), ("raw.h264", {"options": {"bf": "3"}}),
    ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "10"}}),
    ("mpeg2.mpg", {"codec": "mpeg2video", "options": {"bf": "2"}}),
])
def test_every_frame_has_its_row(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    found = rows(numbered_video(tmp_path / name, 60, **options))
    assert shown(found) == list(range(1, 61))
    if name != "raw.h264":  # a raw stream has no time stamps
        assert [frame.time_s for frame in found] == pytest.approx(timed_packets(tmp_path / name), abs=1e-6)
    assert not any(frame.damaged for frame in found)
    assert found[-1].time_s == pytest.approx(59 / 25, abs=0.002)
    image = found[30].image
    assert image is not None and image.shape == (96, 128, 3) and image.dtype == np.uint8
    assert np.abs(image[40:].mean((0, 1)) - picture(31)[40:].mean((0, 1))).max() < 8


def test_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 40, 45, 100, 700, 701, 5000, 5033]
    found = rows(make_video(tmp_path / "vfr.mp4", [picture(i + 1) for i in range(8)], times=times,
                            options={"bf": "2"}))
    assert shown(found) == list(range(1, 9))
    assert [frame.time_s for frame in found] == pytest.approx([t / 1000 for t in times], abs=1e-4)


def test_start_and_pick_give_the_same_frames(tmp_path: Path) -> None:
    source = media.open_source(numbered_video(tmp_path / "a.mp4", 30), "video")
    every = list(source.frames())
    assert source.length() == 30
    for part, expected in ((source.frames(27), every[27:]), (source.pick([28, 3, 3, 99]), [every[3], every[28]]),
                           (source.frames(30), []), (source.pick([]), [])):
        found = list(part)
        assert [(f.index, f.time_s) for f in found] == [(f.index, f.time_s) for f in expected]
        assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("matrix", [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0), (-1, 0, 0, 1)])
def test_display_matrix_makes_the_picture_upright(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    stored = picture(5)
    path = set_matrix(make_video(tmp_path / "phone.mp4", [stored] * 3), matrix)
    turned = {(1, 0, 0, 1): stored, (0, 1, -1, 0): np.rot90(stored, -1), (-1, 0, 0, -1): np.rot90(stored, 2),
              (0, -1, 1, 0): np.rot90(stored), (-1, 0, 0, 1): stored[:, ::-1]}[matrix]
    image = rows(path)[0].image
    assert image is not None and image.shape == turned.shape and image.flags.c_contiguous
    assert np.abs(image.astype(int) - turned).mean() < 4


def test_upright_leaves_a_picture_without_matrix_alone() -> None:
    image = picture(1)
    assert upright(image, None) is image


@pytest.mark.parametrize("ending", ["ts", "h264"])
def test_change_of_resolution_in_mid_stream(tmp_path: Path, ending: str) -> None:
    small = make_video(tmp_path / f"a.{ending}", [picture(i + 1) for i in range(30)])
    large = make_video(tmp_path / f"b.{ending}", [picture(i + 31, 192, 160) for i in range(30)])
    found = rows(joined(tmp_path / f"c.{ending}", [small, large]))
    assert shown(found) == list(range(1, 61))
    assert [frame.image.shape[:2] for frame in found if frame.image is not None] == [(96, 128)] * 30 + [(160, 192)] * 30
    assert found[-1].time_s == pytest.approx(59 / 25, abs=0.05), "the second part's clock goes on from the first's"


@pytest.mark.parametrize(("name", "options"), [
    ("intra.mp4", {"options": {"g": "1"}}), ("intra.mkv", {"options": {"g": "1"}}),
    ("intra.webm", {"codec": "libvpx-vp9", "options": {"g": "1"}}),
    ("intra.mov", {"codec": "libx265", "options": {"x265-params": "keyint=1:log-level=none"}}),
])
def test_a_bad_packet_leaves_a_hole_and_moves_no_number(tmp_path: Path, name: str, options: dict[str, object]) -> None:
    path, spots = numbered_video(tmp_path / name, 300, **options), list(range(3, 300, 8))
    found = rows(spoil(path, spots, skip=6))
    assert len(found) == 300
    wrong = {frame.index - 1 for frame, number in zip(found, shown(found), strict=True) if number != frame.index}
    assert wrong <= set(spots) and len(wrong) > 20
    assert all(found[row].damaged for row in wrong if found[row].image is None)


@pytest.mark.parametrize("skip", [0, 5, 6, 30])
def test_forty_bad_spots_among_b_frames_keep_every_row(tmp_path: Path, skip: int) -> None:
    path = numbered_video(tmp_path / "a.mp4", 600, options={"g": "60", "bf": "3"})
    found = rows(spoil(path, range(7, 600, 15), skip=skip, seed=skip))
    assert len(found) == 600
    assert sum(frame.damaged for frame in found) >= 37
    assert shown(found)[:5] == [1, 2, 3, 4, 5]
    assert sum(frame.image is not None for frame in found) > 500


def test_damaged_pixels_are_the_same_twice(tmp_path: Path) -> None:
    path = spoil(numbered_video(tmp_path / "a.mp4", 200), range(7, 200, 15), skip=30)
    for first, second in zip(rows(path), rows(path), strict=True):
        assert np.array_equal(first.image, second.image)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "options", "share"), [
    ("front.mp4", {"container_options": FASTSTART}, .5), ("front.mp4", {"container_options": FASTSTART}, .98),
    ("a.mkv", {}, .5), ("a.mkv", {}, .85), ("a.webm", {"codec": "libvpx-vp9"}, .5), ("a.flv", {"codec": "flv1"}, .5),
    ("a.avi", {"codec": "mpeg4"}, .5),
    ("fragments.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "10"}}, .5)])
def test_truncated_fails_after_the_last_good_frame(tmp_path: Path, name: str, options: dict[str, object],
                                                   share: float) -> None:
    path = cut(numbered_video(tmp_path / name, 100, **options), share)
    found: list[source.Frame] = []
    with pytest.raises(ClipError, match="ends early") as caught:
        for frame in media.open_source(path, "video").frames():
            found.append(frame)
    assert "keep" in str(caught.value) and str(path) in str(caught.value)
    assert [number for number in shown(found) if number is not None][:20] == list(range(1, 21))
    assert len(rows(path, damaged="keep")) == len(found) < 100


def test_an_flv_cut_in_its_sound_is_noticed(tmp_path: Path) -> None:
    whole = with_sound(tmp_path / "a.flv", 50, 2.0, "flv1").read_bytes()
    cuts = np.random.default_rng(0).uniform(0.3, 0.85, 12)
    for share in cuts:
        (tmp_path / "a.flv").write_bytes(whole[:int(len(whole) * share)])
        with pytest.raises(ClipError, match="ends early"):
            rows(tmp_path / "a.flv")


@pytest.mark.parametrize(("name", "codec", "sound"), [
    ("a.mkv", "libx264", "libmp3lame"), ("a.webm", "libvpx", "libopus"), ("a.flv", "flv1", "libmp3lame"),
    ("a.wmv", "wmv2", "libmp3lame"), ("a.avi", "mpeg4", "libmp3lame"), ("a.mp4", "libx264", "aac")])
def test_sound_longer_than_the_picture_is_a_warning(tmp_path: Path, name: str, codec: str, sound: str,
                                                    caplog: pytest.LogCaptureFixture) -> None:
    assert shown(rows(with_sound(tmp_path / name, 30, 6.0, codec, sound))) == list(range(1, 31))
    assert name in caplog.text and "picture ends at 1.2 s of 6.0 s" in caplog.text


@pytest.mark.parametrize(("name", "codec"), [
    ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.flv", "flv1")])
def test_subtitles_longer_than_the_picture_are_a_warning(tmp_path: Path, name: str, codec: str,
                                                         caplog: pytest.LogCaptureFixture) -> None:
    """ASF and AVI are not here: FFmpeg writes no subtitles into them."""
    path = with_subtitles(tmp_path / name, numbered_video(tmp_path / f"plain-{name}", 30, codec=codec), 9.0)
    assert shown(rows(path)) == list(range(1, 31))
    # FFmpeg's duration of an MP4 leaves subtitles out, so there is nothing to warn about.
    assert ("picture ends at 1.2 s of 9.0 s" in caplog.text) == (name not in ("a.mp4", "a.mov"))


@pytest.mark.parametrize(("name", "codec"), [("a.flv", "flv1"), ("a.wmv", "wmv2")])
def test_a_wrong_duration_in_the_header_is_a_warning(tmp_path: Path, name: str, codec: str,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    path = numbered_video(tmp_path / name, 30, codec=codec)
    if name == "a.flv":
        set_flv_duration(path, 8.0)
    else:  # file properties: 16 bytes of id, 8 of size, 16 of id, 8 of size, 8 of date, 8 of packets, then 100 ns units
        data = bytearray(path.read_bytes())
        place = data.index(bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")) + 64
        data[place:place + 8] = struct.pack("<Q", struct.unpack("<Q", data[place:place + 8])[0] + 70_000_000)
        path.write_bytes(data)
    assert shown(rows(path)) == list(range(1, 31))
    assert "wrong duration in the header" in caplog.text


def test_an_avi_header_that_counts_more_frames_than_the_index_is_a_warning(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = numbered_video(tmp_path / "a.avi", 30, codec="mpeg4")
    data = bytearray(path.read_bytes())
    place = data.index(b"strh") + 8 + 32  # the length of the stream
    assert struct.unpack("<I", data[place:place + 4])[0] == 30
    data[place:place + 4] = struct.pack("<I", 87)
    path.write_bytes(data)
    assert shown(rows(path)) == list(range(1, 31))
    assert "header counts 87 frames" in caplog.text
    path.write_bytes(data[:data.index(b"idx1")])  # without its index, the header is all that there is
    with pytest.raises(ClipError, match="30 of 87"):
        rows(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
@pytest.mark.parametrize("default", [None, 0, 1])
def test_a_thumbnail_in_front_is_not_the_video(tmp_path: Path, name: str, default: int | None,
                                               caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    thumbnail = make_video(tmp_path / "thumbnail.mp4", [picture(7, 320, 240)])
    path = several_videos(tmp_path / name, [thumbnail, numbered_video(tmp_path / "real.mp4", 30)], default)
    assert shown(rows(path)) == list(range(1, 31))
    assert "2 video streams" in caplog.text and str(path) in caplog.text


def test_the_default_stream_goes_before_the_longest_and_that_before_the_largest(tmp_path: Path) -> None:
    short, long_ = (numbered_video(tmp_path / f"{count}.mp4", count) for count in (20, 40))
    large = make_video(tmp_path / "large.mp4", [picture(i + 1, 320, 240) for i in range(20)])
    for parts, default, wanted in (([long_, short], 1, 1), ([short, long_], None, 1), ([short, large], None, 1),
                                   ([long_, large], 0, 0), ([large, long_], 1, 1)):
        path = several_videos(tmp_path / "several.mkv", parts, default)
        with open_container(path) as container:
            chosen = choose_stream(container, path)
            assert chosen is not None and chosen.index == wanted


def test_pixels_are_made_square(tmp_path: Path) -> None:
    for pixel, shape in ((Fraction(64, 45), (96, 182)), (Fraction(15, 16), (102, 128)), (Fraction(1, 99), (96, 128))):
        path = make_video(tmp_path / f"{pixel.numerator}.mp4", [picture(i + 1) for i in range(4)], pixel=pixel)
        image = rows(path)[3].image
        assert image is not None and image.shape[:2] == shape
        assert list(media.open_source(path, "video").traits) == (["non-square pixels"] if pixel > .5 else [])  # type: ignore[attr-defined]
    turned = set_matrix(make_video(tmp_path / "turned.mp4", [picture(1)] * 3, pixel=Fraction(2)), (0, 1, -1, 0))
    image = rows(turned)[0].image
    assert image is not None and image.shape[:2] == (256, 96)


@pytest.mark.parametrize("name", ["sound.mov", "sound.mp4", "wave.mov"])
def test_a_file_without_a_picture_is_called_that(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w", format="wav" if name == "wave.mov" else None) as out:
        stream = out.add_stream("pcm_s16le" if name == "wave.mov" else "aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
        frame.sample_rate = 44100
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ClipError, match="no video stream in this file, only sound"):
        media.open_source(path, "video")


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_hdr_is_tone_mapped(transfer: int) -> None:
    """Grey stays grey, brighter stays brighter, and the picture uses the whole range of BT.709."""
    grey = np.repeat(np.arange(0, WHITE_48 + 1, 5, np.uint16)[None, :, None], 3, axis=2)
    mapped = tone_map(grey, transfer, 9, 1000)[0].astype(int)
    assert np.ptp(mapped, axis=1).max() <= 1
    assert (np.diff(mapped[:, 1]) >= -1).all()  # the gain is a table: rounding may fall on either side
    assert mapped[0].max() <= 1 and mapped[-1].min() == 255
    # Signals of BT.2100: PQ of 26 cd/m2 is below the knee of BT.2390; HLG of a half is 1/12 of the scene's peak.
    known, wanted = (0.38, (26 / 203) ** (1 / 2.4)) if transfer == PQ else (0.5, (1 / 12) ** (1.2 / 2.4))
    assert abs(mapped[round(known * WHITE_48 / 5), 1] - 255 * wanted) <= 1.5


def hdr_signal(nits: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    """Return the signal of gray light on the reference display: the inverse of the functions of BT.2100."""
    if transfer == PQ:
        power = (nits / 10_000) ** 0.1593017578125
        return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    scene = (nits / 1000) ** (1 / 1.2)
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene, 1) - 0.28466892)
                    + 0.55991073)


def hdr_video(path: Path, greys: NDArray[np.uint8], white_nits: float, transfer: int, brightest: int = 0) -> Path:
    """Write gray pictures of an SDR video, ``(T, W)``, as 10-bit HDR whose white has this luminance."""
    name, pixels = {".mkv": ("ffv1", "yuv420p10le"), ".mov": ("prores_ks", "yuv422p10le"),
                    ".mp4": ("libx265", "yuv420p10le")}[path.suffix]
    with av.open(str(path), "w") as out:
        stream = out.add_stream(name, rate=25)
        stream.width, stream.height, stream.pix_fmt = greys.shape[1], 64, pixels
        codec = stream.codec_context
        codec.color_trc, codec.color_primaries, codec.colorspace, codec.color_range = transfer, 9, 9, 1
        codec.options = {"x265-params": f"log-level=none:max-cll={brightest},{brightest}"} if brightest else {}
        for number, grey in enumerate(greys):
            signal = hdr_signal(white_nits * (grey / 255) ** 2.4, transfer)
            image = np.rint(np.broadcast_to(signal[None, :, None], (64, len(signal), 3)) * 65535).astype(np.uint16)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb48le")
            frame = frame.reformat(format=pixels, dst_colorspace=9, dst_color_range=1)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("transfer", "white_nits"), [(PQ, 100), (PQ, 203), (HLG, 203), (HLG, 1000)])
def test_the_white_of_an_sdr_picture_in_hdr_is_found(transfer: int, white_nits: int, tmp_path: Path) -> None:
    """A video of SDR content comes out as it was, whichever white its maker chose; black pictures begin it."""
    greys = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (40, 1))
    greys[:10] //= 8
    # ProRes of this encoder names no transfer function in its pictures, only in the container.
    path = hdr_video(tmp_path / ("a.mov" if (transfer, white_nits) == (HLG, 203) else "a.mkv"), greys, white_nits,
                     transfer)
    for frame in rows(path)[::8]:
        assert frame.image is not None
        off = np.abs(frame.image[32].astype(int) - greys[frame.index - 1][:, None])
        assert off[8:-8].max() <= 4, (frame.index, off.max())  # PQ of 10 bits has steps of 2 in the shadows


def test_hdr_with_highlights_is_compressed_and_a_stated_peak_counts(tmp_path: Path) -> None:
    greys = np.tile(np.linspace(0, 255, 128).astype(np.uint8), (4, 1))
    bright = rows(hdr_video(tmp_path / "a.mkv", greys, 1000, PQ))[0].image
    assert bright is not None and bright[32, -10:].min() > 240 and bright[32, 64].max() > greys[0, 64] + 40
    dark = greys // 2  # 40 cd/m2 at most where white is 203
    for stated, brighter in ((0, True), (1000, False)):
        image = rows(hdr_video(tmp_path / f"{stated}.mp4", dark, 203, PQ, stated))[0].image
        assert image is not None and (image[32, 100].min() > dark[0, 100] + 20) == brighter


@pytest.mark.slow("stage one over four clips, 15 s")
def test_hdr_and_non_square_pixels_give_the_features_of_the_plain_clips(tmp_path: Path, shared: Path, weights_at: Path
                                                                        ) -> None:
    """Through the whole of stage one, with each clip's own detection."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "weights").symlink_to(weights_at)
    for name in ("hlg", "sdr", "pal169", "square"):
        (tmp_path / "clips" / f"{name}.mp4").symlink_to(shared / "data/cases" / f"{name}.mp4")
    store = fercache.open_store(fercache.extract(cache=tmp_path, clips=tmp_path / "clips", taps=("block8",)).store)
    for one, other, least in (("hlg", "sdr", 0.98), ("pal169", "square", 0.99)):
        a, b = (np.asarray(store[clip]["block8"][:], np.float64) for clip in (one, other))
        cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosines.mean() >= least, (one, cosines.mean())  # .9937 and .9944 when this was written


def timed_packets(path: Path) -> list[float]:
    """Return the seconds of the frames that a player shows, sorted, from packets alone: independent of the reader."""
    with av.open(str(path)) as container:
        videos = container.streams.video
        stream = max(videos, key=lambda one: (one.disposition & 1, one.frames))
        stamps = [packet.pts * packet.time_base for packet in container.demux(stream)
                  if packet.size and packet.pts is not None and not packet.is_discard]
    return [float(stamp - min(stamps)) for stamp in sorted(stamps)]


def test_times_and_counts_are_those_of_the_packets(shared: Path, full: bool) -> None:
    """What ffprobe would list: one row per packet shown, at its time stamp."""
    real = [*(shared / "data/cases").glob("*.*"), *((shared / "data/videos").iterdir() if full else ())]
    clips = [path for path in real if path.suffix in (".mp4", ".mov", ".mkv", ".avi")]
    assert len(clips) >= (20 if full else 7)
    for path in clips:
        assert [frame.time_s for frame in media.open_source(path, "video").frames()] == pytest.approx(
            timed_packets(path), abs=1e-6), path.name


def test_the_table_of_inputs_names_existing_tests() -> None:
    """Each row of the page about inputs is a test."""
    root = Path(__file__).parents[1]
    table = (root / "docs/guide/inputs.md").read_text().partition("## Kinds of input")[2]
    names = re.findall(r"`(test_\w+\.py)::(test_\w+)`", table)
    assert len(names) == table.count("\n| ") - 2  # the head of the table and the line below it
    for file, name in names:
        assert f"\ndef {name}(" in (root / "tests" / file).read_text(), (file, name)


def test_index_at_the_end_cut_off_is_not_a_video(tmp_path: Path) -> None:
    with pytest.raises(ClipError, match="not a video that can be opened"):
        media.open_source(cut(numbered_video(tmp_path / "a.mp4", 50), .7), "video", damaged="keep")


def test_a_stream_that_begins_later_is_passed_over(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (368, 512, 3), dtype=np.uint8)  # more than FFmpeg looks through
    images = [np.concatenate([picture(i + 1, 512, 16), noise]) for i in range(30)]
    first = make_video(tmp_path / "a.ts", images, options={"crf": "4", "g": "1", "preset": "ultrafast"})
    assert first.stat().st_size > 6 << 20
    with av.open(str(tmp_path / "b.ts"), "w") as out:
        video, sound = out.add_stream("libx264", rate=25), out.add_stream("mp2", rate=48000)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        for i in range(30):
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture(i + 31), format="rgb24")))
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 2 * 1920), np.int16), format="s16", layout="stereo")
            silence.sample_rate = 48000
            out.mux(sound.encode(silence))
        out.mux([*video.encode(None), *sound.encode(None)])
    assert shown(rows(joined(tmp_path / "c.ts", [first, tmp_path / "b.ts"]))) == list(range(1, 61))


def test_what_is_no_video_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is a text\n" * 100)
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://localhost/a.ts\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile real.mp4\n")
    numbered_video(tmp_path / "real.mp4", 3)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("text.mp4", "list.mp4", "concat.mp4", "empty.mp4", "absent.mp4", "pipe.mp4", "folder", "a\0b"):
        with pytest.raises(ClipError) as caught:
            media.open_source(tmp_path / name, "video")
        assert "\n  next: " in str(caught.value)
        if name != "folder":
            with pytest.raises(ClipError):
                media.open_source(tmp_path / name, "crops")


def test_video_of_zero_frames(tmp_path: Path) -> None:
    path = numbered_video(tmp_path / "a.mp4", 10, container_options={"movflags": "frag_keyframe+empty_moov"})
    data = path.read_bytes()
    path.write_bytes(data[:data.index(b"moof") - 4])  # the header alone
    with pytest.raises(ClipError, match="without a frame"):
        media.open_source(path, "video")
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        out.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ClipError, match="no video stream"):
        media.open_source(sound, "video")


@pytest.mark.parametrize("name", ["a b.mp4", "back\\slash.mp4", "Ωλ%03d.mp4", "concat:x.mp4", "-i.mp4", "q?a=b#c.mp4",
                                  b"\xff\xfe.mp4"])
def test_odd_names(tmp_path: Path, name: str | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = numbered_video(tmp_path / "plain.mp4", 3).read_bytes()
    monkeypatch.chdir(tmp_path)
    path = Path(os.fsdecode(name))
    path.write_bytes(data)
    assert shown(rows(path)) == [1, 2, 3]


@pytest.mark.parametrize("name", ["mp4", "mkv", "avi"])
def test_metadata_that_is_not_utf8_is_ignored(tmp_path: Path, name: str) -> None:
    path, title = numbered_video(tmp_path / f"clip.{name}", 3, title="some title"), b"\xff\xfe\xe9 raw \xff\xc0"
    data = path.read_bytes()
    assert data.count(b"some title") == 1 and len(title) == len(b"some title")
    path.write_bytes(data.replace(b"some title", title))
    assert shown(rows(path)) == [1, 2, 3]


@pytest.mark.parametrize(("offset", "value", "has_picture"), [
    pytest.param(1, 0xFE, False, id="no-scan"), pytest.param(5, 0x81, True, id="scan-of-unknown-component")])
def test_a_damaged_mjpeg_frame_never_shows_an_earlier_frame(tmp_path: Path, offset: int, value: int,
                                                            has_picture: bool) -> None:
    path = numbered_video(tmp_path / "clip.mov", 12, codec="mjpeg", pix_fmt="yuvj420p")
    start, size, _ = packets_of(path)[6]
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xda", start, start + size) + offset] = value
    path.write_bytes(data)
    found = rows(path)
    assert [frame.index for frame in found if frame.damaged] == [7]
    assert (found[6].image is not None) == has_picture
    assert shown(found[:6] + found[7:]) == [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]
    assert shown(found[6:7]) != [5]


def test_colours_follow_the_streams_own_matrix(tmp_path: Path) -> None:
    red = np.zeros((96, 128, 3), np.uint8)
    red[:] = (200, 30, 40)
    tagged = {}
    for matrix in ("bt709", "smpte170m"):
        options = {"x264-params": f"colormatrix={matrix}:crf=4"}
        image = rows(make_video(tmp_path / f"{matrix}.mp4", [red] * 3, options=options))[0].image
        assert image is not None
        tagged[matrix] = image.mean((0, 1))
    assert np.abs(tagged["smpte170m"] - (200, 30, 40)).max() < 4
    assert np.abs(tagged["bt709"] - tagged["smpte170m"]).max() > 8, "the tag is not looked at"


def test_mutated_files_raise_nothing_but_clip_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for ending in ("mp4", "mkv", "avi", "ts"):
        good = numbered_video(tmp_path / f"good.{ending}", 12, codec="mpeg4").read_bytes()
        for _ in range(25):
            data = np.frombuffer(good, np.uint8).copy()
            region = int(rng.choice([400, 1500, len(data)]))
            where = rng.integers(0, region, 8)
            data[where if rng.random() < .6 else len(data) - 1 - where] = rng.integers(0, 256, 8)
            path = tmp_path / f"bad.{ending}"
            path.write_bytes(data.tobytes())
            try:
                found = rows(path, damaged="keep")
            except ClipError:
                continue
            assert len(found) <= 40


def test_real_clips_are_whole(shared: Path) -> None:
    for path in sorted((shared / "data/videos").iterdir()):
        source = media.open_source(path, "video")
        count = sum(1 for _ in source.frames())
        assert count == (95 if path.name == "no_face.mp4" else source.length()), path.name  # an edit list hides three


def save(path: Path, seed: int, **options: object) -> None:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
    coarse.resize((56, 40)).save(path, **options)  # type: ignore[arg-type]


def test_crops_are_numbered_by_name(tmp_path: Path) -> None:
    for i, name in enumerate(("00002.jpg", "0004.JPEG", "7.png", "00010.jpg", "cover.jpg", "x3.jpg", "._00005.jpg",
                              "00006.gif", "00008.jpg.tmp", "٣.jpg")):
        save(tmp_path / name, i, format="jpeg" if "jp" in name.lower() else "png")
    (tmp_path / "00009.jpg").mkdir()
    source = media.open_source(tmp_path, "crops", crop_fps=10)
    found = list(source.frames())
    assert source.length() == 10
    assert [frame.index for frame in found if frame.image is not None] == [2, 4, 7, 10]
    assert [frame.time_s for frame in found] == pytest.approx([i / 10 for i in range(10)])
    assert not any(frame.damaged for frame in found)
    with Image.open(tmp_path / "0004.JPEG") as image:
        assert np.array_equal(found[3].image, np.asarray(image.convert("RGB")))  # type: ignore[arg-type]
    assert [f.index for f in source.frames(8)] == [9, 10]
    assert [f.index for f in source.pick([9, 1, 1, 55, -1])] == [2, 10]


def test_crops_with_a_prefix_are_numbered_by_what_comes_after_it(tmp_path: Path) -> None:
    for number in (1, 3):
        Image.fromarray(picture(number)).save(tmp_path / f"S005_001_{number:08d}.png")
    assert pictures.numbered(tmp_path) == {1: "S005_001_00000001.png", 3: "S005_001_00000003.png"}
    found = list(media.open_source(tmp_path, "crops").frames())
    assert [frame.image is not None and number_in(frame.image) for frame in found] == [1, False, 3]
    Image.fromarray(picture(9)).save(tmp_path / "S005_002_00000009.png")
    with pytest.raises(ClipError, match="several clips in one folder"):
        pictures.numbered(tmp_path)
    Image.fromarray(picture(2)).save(tmp_path / "00002.png")
    assert pictures.numbered(tmp_path) == {2: "00002.png"}  # plain numbers go first


def test_one_number_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, name in enumerate(("1.png", "00001.png", "00001.jpg", "01.jpg")):
        save(tmp_path / name, i)
    image = next(media.open_source(tmp_path, "crops").frames()).image
    with Image.open(tmp_path / "00001.jpg") as expected:
        assert np.array_equal(image, np.asarray(expected))  # type: ignore[arg-type]
    assert "00001.jpg is read" in caplog.text


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48))
    turned = Image.Exif()
    turned[0x0112] = 6
    grey16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    for i, (mode, ending) in enumerate((("RGB", "png"), ("CMYK", "jpg"), ("L", "jpg"), ("P", "png"), ("RGBA", "png"),
                                        ("LA", "png"), ("1", "png"))):
        image.convert(mode).save(tmp_path / f"{i + 1}.{ending}")
    image.convert("P").save(tmp_path / "8.png", transparency=bytes(range(256)))
    grey16.save(tmp_path / "9.png")
    image.save(tmp_path / "10.jpg", exif=turned)
    found = [frame.image for frame in media.open_source(tmp_path, "crops").frames()]
    assert [None if one is None else one.shape for one in found] == [(48, 64, 3)] * 9 + [(64, 48, 3)]
    for i, name in ((0, "1.png"), (1, "2.jpg"), (2, "3.jpg"), (3, "4.png"), (4, "5.png"), (5, "6.png"), (6, "7.png")):
        with Image.open(tmp_path / name) as expected:
            assert np.array_equal(found[i], np.asarray(expected.convert("RGB"))), name  # type: ignore[arg-type]
    assert np.array_equal(found[8][..., 0], np.asarray(image.convert("L")))  # type: ignore[index]


def test_damaged_pictures_keep_their_row(tmp_path: Path) -> None:
    for i in range(1, 6):
        save(tmp_path / f"{i:05d}.jpg", i)
    cut(tmp_path / "00001.jpg", .5)
    (tmp_path / "00002.jpg").write_bytes(b"")
    (tmp_path / "00003.jpg").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "00004.png")
    (tmp_path / "00004.jpg").unlink()
    found = list(media.open_source(tmp_path, "crops").frames())
    assert [(frame.damaged, frame.image is None) for frame in found] == [(True, True)] * 4 + [(False, False)]


def test_folders_that_are_no_clip(tmp_path: Path) -> None:
    for name, files in {"empty": (), "stray": ("a.txt",), "from_zero": ("00000.jpg", "00001.jpg"),
                        "dates": ("20240131120000.jpg",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"x")
        with pytest.raises(ClipError) as caught:
            media.open_source(tmp_path / name, "crops")
        assert "\n  next: " in str(caught.value)
    with pytest.raises(InputError, match="sound"):
        media.open_source(tmp_path, "sound")


def test_digest_tells_files_apart(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"abc")
    with large.open("wb") as file:
        file.truncate(1 << 30)
    plain, strict = media.source_digest(small, "video"), media.source_digest(small, "video", strict=True)
    assert plain["size"] == 3 and plain["sha256"] == strict["sha256"] == strict["sha256_strict"]
    before = media.source_digest(large, "video")
    with large.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    assert media.source_digest(large, "video")["sha256"] != before["sha256"]


def test_digest_of_a_folder(tmp_path: Path) -> None:
    for i in range(1, 4):
        save(tmp_path / f"{i}.png", i)
    before, strict = (media.source_digest(tmp_path, "crops", strict) for strict in (False, True))
    (tmp_path / "notes.txt").write_text("stray")
    assert media.source_digest(tmp_path, "crops")["sha256"] == before["sha256"] == strict["sha256"]
    data = bytearray((tmp_path / "2.png").read_bytes())
    data[-1] ^= 1
    (tmp_path / "2.png").write_bytes(data)
    assert media.source_digest(tmp_path, "crops")["sha256"] == before["sha256"]
    assert media.source_digest(tmp_path, "crops", strict=True)["sha256_strict"] != strict["sha256_strict"]
    (tmp_path / "3.png").unlink()
    assert media.source_digest(tmp_path, "crops")["sha256"] != before["sha256"]


def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long.mp4", [np.zeros((480, 640, 3), np.uint8)] * 500, options={"preset": "ultrafast"})
    source = media.open_source(path, "video")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(frame.image is not None for frame in source.frames()) == 500  # 461 MB of pixels
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000


def test_pictures_are_read_without_touching_the_filters_of_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    """The filters belong to the process; a reader that swaps them in a thread can leave them swapped for good."""
    path = tmp_path / "1.jpg"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff")

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("the filters of the process were touched")

    monkeypatch.setattr(warnings, "catch_warnings", touched)
    assert pictures.read_picture(path) is not None
