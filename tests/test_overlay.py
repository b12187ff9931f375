"""The annotated clip: as many frames as the source, at the same times, upright, sound kept, boxes in their place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from finished import put
from numpy.typing import NDArray
from PIL import Image
from videos import make_video, number_in, numbered_video, picture, set_matrix, several_videos

from fercache import media
from fercache.errors import ClipError, InputError
from fercache.media.writer import open_writer
from fercache.results.io import ClipPredictions
from fercache.store.embedding_store import EmbeddingStore
from fercache.viz import overlay

CLASSES = ("Neutral", "Happiness", "Other")
STEP_MS = (40, 10, 90, 33)


def told_of(frames: int, time_s: NDArray[np.float64] | None = None) -> ClipPredictions:
    shares = np.tile([.1, .7, .2], (frames, 1))
    valid = np.arange(frames) % 10 != 9
    return ClipPredictions(name="clip", frame=np.arange(1, frames + 1), valid=valid, probs=shares,
                           time_s=np.arange(frames) / 25 if time_s is None else time_s,
                           label=np.full(frames, -1), label_pred=np.ones(frames, np.int64))


def boxes_of(told: ClipPredictions) -> NDArray[np.float64]:
    return np.where(told.valid[:, None], [30., 40., 60., 80.], np.nan)


def frames_of(path: Path) -> list[tuple[float, NDArray[np.uint8]]]:
    with av.open(str(path)) as container:
        return [(float(f.pts * f.time_base), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]


def with_sound(path: Path, frames: int, codec: str = "aac", rate: int = 25) -> Path:
    """Write a numbered video with a tone beside it."""
    with av.open(str(path), "w") as out:
        video, sound = out.add_stream("libx264", rate=rate), out.add_stream(codec, rate=48000)
        video.height, video.width, video.pix_fmt = 96, 128, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i + 1), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, rate)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        tone = (8000 * np.sin(np.arange(48000 * frames // rate) / 20)).astype(np.int16)
        for start in range(0, len(tone), 1024):
            part = av.AudioFrame.from_ndarray(tone[None, start:start + 1024], format="s16", layout="mono")
            part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
            out.mux(sound.encode(part))
        out.mux(sound.encode(None))
    return path


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_every_frame_is_there_at_its_time_with_box_and_bars(tmp_path: Path) -> None:
    times = np.cumsum([0, *(STEP_MS[i % 4] for i in range(39))])
    source = numbered_video(tmp_path / "v.mp4", 40, times=times.tolist())
    told = told_of(40, times / 1000)
    assert overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4") == 40
    made, before = frames_of(tmp_path / "o.mp4"), frames_of(source)
    assert len(made) == 40
    assert [t for t, _ in made] == pytest.approx([t for t, _ in before], abs=1e-3), "a variable rate is kept"
    yellow = np.array(overlay.rgb(1))
    for i, (_, image) in enumerate(made):
        small = np.asarray(Image.fromarray(image[:384, :512]).resize((128, 96)))
        assert number_in(small) == i + 1
        edge = image[4 * 60, 4 * 30 - 6:4 * 30 + 8].astype(int)
        near = np.abs(edge - yellow).sum(-1).min() < 120
        assert near == told.valid[i], "the box is in the frames with a face, in the class's colour, where it was stored"


def test_the_sound_is_copied_byte_for_byte(tmp_path: Path) -> None:
    source = with_sound(tmp_path / "v.mp4", 75)
    told = told_of(75)
    overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4")
    assert sound_of(tmp_path / "o.mp4") == sound_of(source)
    with av.open(str(source)) as a, av.open(str(tmp_path / "o.mp4")) as b:
        assert a.streams.video[0].average_rate == b.streams.video[0].average_rate == 25
        assert abs(a.streams.audio[0].duration * a.streams.audio[0].time_base
                   - b.streams.audio[0].duration * b.streams.audio[0].time_base) < .05


def test_sound_that_the_format_cannot_hold_is_encoded_again(tmp_path: Path) -> None:
    source = with_sound(tmp_path / "v.avi", 50, codec="pcm_mulaw")
    told = told_of(50)
    assert overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4") == 50
    with av.open(str(tmp_path / "o.mp4")) as made:
        heard = np.concatenate([f.to_ndarray()[0] for f in made.decode(audio=0)])
    assert len(heard) / 48000 == pytest.approx(2, abs=.1) and np.abs(heard[9000:-9000]).max() > .1


def test_a_cover_in_front_does_not_change_the_rate(tmp_path: Path) -> None:
    cover = make_video(tmp_path / "cover.mp4", [picture(3, 64, 64)])
    source = several_videos(tmp_path / "v.mkv", [cover, numbered_video(tmp_path / "plain.mp4", 30)])
    told = told_of(30)
    assert overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4") == 30
    with av.open(str(tmp_path / "o.mp4")) as made:
        assert made.streams.video[0].average_rate == 25


def test_the_overlay_has_the_shape_of_square_pixels(tmp_path: Path) -> None:
    source = make_video(tmp_path / "v.mp4", [picture(i + 1, 720, 576) for i in range(3)], pixel=Fraction(64, 45))
    overlay.render_overlay(source, "video", told_of(3), boxes_of(told_of(3)), CLASSES, tmp_path / "o.mp4")
    with av.open(str(tmp_path / "o.mp4")) as made:
        assert made.streams.video[0].width == 1024


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    source = set_matrix(numbered_video(tmp_path / "v.mp4", 10), (0, 1, -1, 0))
    seen = next(media.open_source(source, "video").frames()).image
    assert seen is not None and seen.shape[:2] == (128, 96)
    told = told_of(10)
    assert overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4") == 10
    shown = frames_of(tmp_path / "o.mp4")[3][1][:128 * 5, :480]
    back = np.asarray(Image.fromarray(shown).resize((96, 128))).astype(int)
    wanted = list(media.open_source(source, "video").frames())[3].image
    assert wanted is not None
    outside = np.ones((128, 96), bool)
    outside[28:84, 26:] = False  # box and label
    assert np.abs(back - wanted.astype(int))[outside].mean() < 12


def test_crops_have_no_clock_of_their_own_and_gaps_keep_the_last_picture(tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    for number in (1, 2, 4):
        Image.fromarray(picture(number)).save(tmp_path / "crops" / f"{number:05d}.png")
    told = told_of(4)
    assert overlay.render_overlay(tmp_path / "crops", "crops", told, boxes_of(told), CLASSES, tmp_path / "o.mkv",
                                  fps=12.5) == 4
    made = frames_of(tmp_path / "o.mkv")
    assert [t for t, _ in made] == pytest.approx([0, .08, .16, .24], abs=2e-3)
    shown = [number_in(np.asarray(Image.fromarray(image[:384, :512]).resize((128, 96)))) for _, image in made]
    assert shown == [1, 2, 2, 4]


def test_annotations_past_the_end_are_no_error_and_another_clip_is(tmp_path: Path) -> None:
    source = numbered_video(tmp_path / "v.mp4", 12)
    told = told_of(14)
    told.valid[12:] = False
    assert overlay.render_overlay(source, "video", told, boxes_of(told), CLASSES, tmp_path / "o.mp4") == 12
    for rows in (8, 30):
        with pytest.raises(ClipError, match="frames"):
            overlay.render_overlay(source, "video", told_of(rows), boxes_of(told_of(rows)), CLASSES,
                                   tmp_path / "no.mp4")
    with pytest.raises(InputError, match="boxes"):
        overlay.render_overlay(source, "video", told_of(12), boxes_of(told_of(3)), CLASSES, tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists()
    assert list(tmp_path.glob(".tmp*")) == []


@pytest.mark.parametrize(("name", "size"), [("a.avi", (96, 128)), ("a.mp4", (95, 128)), ("a.mp4", (96, 127))])
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    with pytest.raises(InputError), open_writer(tmp_path / name, size):
        pass


@pytest.mark.parametrize("size", [(144, 176), (31, 47), (1080, 1920), (2, 3)])
def test_any_size_and_any_number_of_classes_is_drawn(size: tuple[int, int]) -> None:
    for count in (2, 11):
        shares = np.full((5, count), 1 / count)
        told = ClipPredictions(name="clip", frame=np.arange(1, 6), time_s=np.arange(5.), valid=np.ones(5, bool),
                               label=np.zeros(5, np.int64), label_pred=np.full(5, count - 1), probs=shares)
        canvas = overlay.OverlayCanvas.of(size, told, tuple(f"class {i}" for i in range(count)))
        made = canvas.draw(np.zeros((*size, 3), np.uint8), 2, np.array([-5., -5., 5000., 5000.]))
        assert made.shape == (*canvas.size, 3) and not canvas.size[0] % 2 and not canvas.size[1] % 2


def test_boxes_come_from_the_clock_and_end_with_it(tmp_path: Path) -> None:
    store = EmbeddingStore.create(tmp_path / "s.zarr", {}, {"x": (2,)})
    put(store, "a", np.arange(4.), np.array([True, False, True, True]))
    boxes = overlay.boxes_of(store["a"].frame_table, 6)
    assert boxes.shape == (6, 4) and np.isnan(boxes[[1, 4, 5]]).all() and boxes[2].tolist() == [8, 8, 40, 40]
