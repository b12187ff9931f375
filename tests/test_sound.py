"""Sound on the clock of the picture: where it is placed, what is masked, and the store that holds it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result
from forked import Runner
from numpy.typing import NDArray
from videos import numbered_video, picture

from fercache.cli import main
from fercache.config import ExtractConfig
from fercache.data.base import Dataset, Trial
from fercache.errors import MissingExtra
from fercache.extraction import sound as extraction
from fercache.extraction.sound import BLOCK_S, LogMel, WindowedRows, mel_filters
from fercache.media.sound import RATE, Sound, read_sound
from fercache.store.embedding_store import EmbeddingStore

PER_S = 48_000


def make_video(path: Path, frames: int, sound: NDArray[np.int16] | None, *, fps: int = 25, starts_s: float = 0.0,
               stops: int | None = None) -> Path:
    """Write a video whose picture starts at half a second and whose sound starts `starts_s` later, at 48 kHz.

    Parameters
    ----------
    sound : (S, 2).
    stops : sample after which a second of packets is left out.
    """
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 128, 96, "yuv420p"
        video.codec_context.time_base = Fraction(1, fps)
        audible = out.add_stream("pcm_s16le", rate=PER_S, layout="stereo") if sound is not None else None
        for i in range(frames):
            image = av.VideoFrame.from_ndarray(picture(i + 1), format="rgb24")
            image.pts, image.time_base = i + fps // 2, Fraction(1, fps)
            out.mux(video.encode(image))
        out.mux(video.encode(None))
        for start in range(0, len(sound) if sound is not None else 0, 960):
            assert sound is not None and audible is not None
            block = np.ascontiguousarray(sound[start:start + 960]).reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="stereo")
            frame.sample_rate, frame.time_base = PER_S, Fraction(1, PER_S)
            frame.pts = start + round((fps // 2 / fps + starts_s) * PER_S)
            if stops is None or not stops <= start < stops + PER_S:
                out.mux(audible.encode(frame))
        if audible is not None:
            out.mux(audible.encode(None))
    return path


def noise(seconds: float, level: int = 3000) -> NDArray[np.int16]:
    return np.random.default_rng(0).integers(-level, level, (round(seconds * PER_S), 2)).astype(np.int16)


def clicks(seconds: float, *at_s: float) -> NDArray[np.int16]:
    """Return silence with a click of a millisecond at each time."""
    sound = np.zeros((round(seconds * PER_S), 2), np.int16)
    for one in at_s:
        sound[round(one * PER_S):][:48] = 20_000
    return sound


def call(folder: Path, *words: object) -> Result:
    (folder / "recipes").mkdir(exist_ok=True)
    return CliRunner().invoke(main, ["--cache", str(folder / "cache"), "--stages", str(folder / "recipes"),
                                     *map(str, words)], catch_exceptions=False)


def store_of(folder: Path) -> EmbeddingStore:
    (path,) = (folder / "cache" / "features").glob("*/logmel-*.zarr")
    return EmbeddingStore.open(path)


@pytest.mark.parametrize("starts_s", [0.0, 0.2, -0.2])
def test_sound_is_placed_by_its_time_stamps(tmp_path: Path, starts_s: float) -> None:
    """A click lies where it is relative to the first picture, whenever picture and sound start."""
    path = make_video(tmp_path / "a.mkv", 50, clicks(1.9, .5, 1.5), starts_s=starts_s)
    one = read_sound(path, 2.0)
    loud = np.flatnonzero(np.abs(one.samples.astype(int)) > 5000) / RATE
    parts = np.split(loud, np.flatnonzero(np.diff(loud) > .1) + 1)
    np.testing.assert_allclose([part.mean() for part in parts], [.5 + starts_s, 1.5 + starts_s], atol=.002)
    assert len(one.parts) == 1 and one.parts[0][0] == pytest.approx(max(starts_s, 0) * RATE, abs=2)


def test_a_gap_and_an_early_end_are_no_sound(tmp_path: Path) -> None:
    one = read_sound(make_video(tmp_path / "a.mkv", 100, noise(3), stops=PER_S), 4.0)
    assert [round(edge / RATE, 2) for part in one.parts for edge in part] == [0, 1, 2, 3]
    assert not one.samples[RATE + 100:2 * RATE - 100].any() and not one.samples[3 * RATE + 100:].any()
    assert not read_sound(numbered_video(tmp_path / "mute.mp4", 5), 1.0).parts


def test_mel_filters_are_those_of_other_libraries() -> None:
    """Values of `transformers.audio_utils.mel_filter_bank(257, 64, 125, 7500, 16000, mel_scale="htk")`, 5.24."""
    filters = mel_filters()
    known = {(5, 0): 0.9486, (40, 23): 0.657, (100, 42): 0.5881, (200, 59): 0.6851, (239, 63): 0.1098}
    assert filters.shape == (257, 64) and (filters >= 0).all() and filters.max() <= 1
    for (row, band), value in known.items():
        assert filters[row, band] == pytest.approx(value, abs=1e-4) and filters[row].argmax() == band


def test_a_tone_is_in_its_band() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    rows = LogMel()(tone)["audio"]
    assert rows.shape == (101, 64)
    assert abs(int(rows[50].argmax()) - int(mel_filters()[32].argmax())) <= 1


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video with noise in its first two seconds of four, one with digital silence, one without sound."""
    folder = tmp_path_factory.mktemp("clips")
    make_video(folder / "half.mkv", 100, noise(2))
    make_video(folder / "silent.mkv", 30, np.zeros((PER_S, 2), np.int16))
    numbered_video(folder / "mute.mp4", 30)
    return folder


def test_a_row_is_the_mean_over_its_window_also_where_two_blocks_meet() -> None:
    seconds = 2 * BLOCK_S + 2
    loudness = 1 + np.sin(np.arange(seconds * RATE) / RATE * 9)
    samples = (np.random.default_rng(0).normal(0, 1500, seconds * RATE) * loudness).astype(np.int16)
    net = LogMel()
    whole = net(samples.astype(np.float32) / np.float32(2**15))["audio"].astype(np.float64)
    times = np.array([1.234, BLOCK_S - 0.1, BLOCK_S, BLOCK_S + 0.07, 2 * BLOCK_S])
    rows = WindowedRows(Sound(samples=samples, parts=((0, len(samples)),)), net, 0.3)
    values = rows.read(times, np.ones(len(times), bool), {"audio": (128,)})["audio"]
    at_s = np.arange(len(whole)) * net.hop / RATE
    for time_s, row in zip(times, values, strict=True):
        inside = whole[np.abs(at_s - time_s) <= 0.15 + 1e-9]
        assert np.allclose(row, np.concatenate([inside.mean(0), inside.std(0)]), atol=0.01), time_s


def test_rows_are_those_of_the_picture_and_silence_is_masked(tmp_path: Path, clips: Path) -> None:
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--audio-window-s", ".4")
    assert done.exit_code == 0, done.output
    store = store_of(tmp_path)
    assert store.settings["audio_window_s"] == .4 and {name: store[name].frames for name in store} == {
        "half": 100, "mute": 30, "silent": 30}
    for name in ("mute", "silent"):
        assert not store[name].read("audio").any() and not store[name].frame_table["valid"].any()
    table, rows = store["half"].frame_table, store["half"].read("audio")
    np.testing.assert_allclose(table["time_s"], np.arange(100) / 25, atol=1e-3)
    # A window of .4 s around 2.1 s has .1 s of sound in it, the least that counts.
    assert np.flatnonzero(table["valid"])[[0, -1]].tolist() in ([0, 51], [0, 52])
    assert (rows.any(1) == (table["valid"] > 0)).all() and rows.shape == (100, 128)
    # Of white noise, the mean is alike in every row, and so is the spread.
    assert rows[5:45, :64].std(0).max() < .6 and (rows[5:45, 64:] > .2).all()
    assert not (tmp_path / "cache" / "features" / store.path.parent.name / "current.json").exists()
    assert call(tmp_path, "verify", "--store", store.path).exit_code == 0
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--audio-window-s", ".4")
    assert "3 cached" in done.output or done.output.split()[-1] == str(store.path)


def test_a_kill_at_any_step_leaves_the_same_bytes(runner: Runner, tmp_path: Path, clips: Path) -> None:
    """Segments of 8 rows: the clip of 100 frames has thirteen of them."""
    words = ("extract", "--modality", "audio", "--clips", clips, "--threads", 1)

    def files(folder: Path) -> dict[str, bytes]:
        store = store_of(folder).path
        return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}

    (tmp_path / "whole").mkdir()
    whole = runner.run(*words, cwd=tmp_path / "whole")
    assert whole.code == 0, whole.err()
    for step in ("store.created:1", "frame_table.journaled:1", "chunk.written:9", "segment.synced:3", "commit.array:1",
                 "commit.marked:2"):
        folder = tmp_path / step
        folder.mkdir()
        assert runner.run(*words, cwd=folder, kill_at=step).code == -9, step
        assert runner.run(*words, cwd=folder).code == 0
        assert files(folder) == files(tmp_path / "whole"), step
    (tmp_path / "both").mkdir()
    both = [runner.start(*words, cwd=tmp_path / "both") for _ in range(2)]
    assert [run.wait().code for run in both] == [0, 0] and files(tmp_path / "both") == files(tmp_path / "whole")


@pytest.mark.parametrize("engine", ["here", pytest.param("dask", marks=pytest.mark.slow("starts a cluster"))])
def test_other_processes_store_the_same_bytes(tmp_path: Path, clips: Path, engine: str) -> None:
    digests = []
    for name, more in (("one", ()), ("two", ("--workers", 2, "--engine", engine))):
        (tmp_path / name).mkdir()
        done = call(tmp_path / name, "extract", "--modality", "audio", "--clips", clips, "--threads", 1, *more)
        assert done.exit_code == 0, done.output
        digests.append(store_of(tmp_path / name).digest())
    assert digests[0] == digests[1]


def test_crops_have_the_sound_of_their_video(tmp_path: Path) -> None:
    """Row n has the sound at frame n of the video, though crops count as 30 a second and the video has 10."""
    video = make_video(tmp_path / "v.mkv", 20, clicks(2, 1.0), fps=10)
    crops = tmp_path / "v"
    crops.mkdir()
    for number in (1, 11, 25):  # past the end of the video
        (crops / f"{number:05d}.jpg").write_bytes(b"")
    trial = Trial(name="v", path=crops, kind="crops", parent="v", group="v", split="train", video=video)
    dataset = Dataset(name="set", layout="table", classes=(), trials=(trial,))
    report = extraction.extract_sound(dataset, ExtractConfig(modality="audio", audio_window_s=.1), tmp_path / "cache")
    table = EmbeddingStore.open(report.store)["v"].frame_table
    assert len(table) == 25 and (np.flatnonzero(table["valid"]) + 1).tolist() == [11]


def test_flags_of_pictures_are_refused(tmp_path: Path, clips: Path) -> None:
    audio = ("extract", "--modality", "audio", "--clips", clips)
    for words, part in (("--weights casia-webface", "casia-webface"), ("--weights vggface2", "vggface2"),
                        ("--taps block8", "block8"), ("--precision bf16", "--precision"), ("--fast", "--precision"),
                        ("--people all", "--people"), ("--detect-every 3", "--detect-every")):
        done = call(tmp_path, *audio, *words.split())
        assert done.exit_code == 2 and part in done.output, words
    done = call(tmp_path, "extract", "--clips", clips, "--audio-window-s", "2")
    assert done.exit_code == 2 and "--modality audio" in done.output
    assert not (tmp_path / "cache" / "features").exists()
    # A recipe for pictures does not change the source of sound; one for sound does.
    recipe = tmp_path / "recipes" / "extract.toml"
    recipe.write_text('weights = "dinov2-s"\ntaps = ["pooled"]\npeople = "all"\n')
    assert call(tmp_path, *audio).exit_code == 0 and store_of(tmp_path).settings["taps"] == ["audio"]
    recipe.write_text('modality = "audio"\nweights = "nothing"\n')
    for words in (("extract", "--clips", clips), audio):
        done = call(tmp_path, *words)
        assert done.exit_code == 2 and "nothing" in done.output


def test_sources_are_named_and_extras_asked_for(tmp_path: Path, clips: Path) -> None:
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--weights", "nothing")
    assert done.exit_code == 2 and "logmel" in done.output
    for words, part in (("--weights logmel", "--modality audio"), ("--modality audio --weights hf:/no/x", "folder"),
                        ("--modality audio --weights hf:", "folder"), ("--weights timm:./x", "folder")):
        done = call(tmp_path, "extract", "--clips", clips, *words.split())
        assert done.exit_code == 2 and part in done.output, words
    (tmp_path / "model").mkdir()
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--weights", f"hf:{tmp_path / 'model'}")
    assert done.exit_code == 2 and ".safetensors" in done.output
    assert not list(tmp_path.glob("cache/features/*/*.zarr"))


def test_egemaps(tmp_path: Path, clips: Path) -> None:
    try:
        import opensmile  # noqa: F401
    except ImportError:
        with pytest.raises(MissingExtra, match="opensmile"):
            extraction.EGemaps()
        return
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--weights", "egemaps")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "cache" / "features").glob("*/egemaps-*.zarr")
    assert EmbeddingStore.open(path)["half"].read("audio").shape == (100, 50)


def test_a_model_of_transformers_gives_what_the_library_gives(tmp_path: Path, clips: Path) -> None:
    """A tiny WavLM with random weights, on a clip of one block: the mean of the library's own rows in the window."""
    pytest.importorskip("transformers")
    import torch

    from fercache.backbones.library import import_library

    transformers = import_library("transformers")  # also beside a torchvision that does not fit torch
    torch.manual_seed(0)
    config = transformers.WavLMConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                                      conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2)
    model = transformers.WavLMModel(config).eval()
    model.save_pretrained(tmp_path / "tiny", safe_serialization=True)
    prepare = transformers.Wav2Vec2FeatureExtractor()
    prepare.save_pretrained(tmp_path / "tiny")
    done = call(tmp_path, "extract", "--modality", "audio", "--clips", clips, "--weights", f"hf:{tmp_path / 'tiny'}",
                "--taps", "audio,audio-1", "--audio-window-s", ".2")
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "cache" / "features").glob("*/tiny-*.zarr")
    store = EmbeddingStore.open(path)
    one = read_sound(clips / "half.mkv", 3.96 + .1)
    inputs = prepare(one.samples.astype(np.float32) / 2**15, sampling_rate=RATE, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True)
    for tap, rows in (("audio", out.last_hidden_state[0]), ("audio-1", out.hidden_states[1][0])):
        center = (np.arange(len(rows)) * 320 + 200) / RATE
        wanted = rows[np.abs(center - 1.0) <= .1].mean(0).numpy()
        np.testing.assert_allclose(store["half"].read(tap)[25].astype(float), wanted, rtol=2e-3, atol=2e-3)
    # The model is found again by its digest, wherever `predict` runs.
    again = extraction.config_of(store.settings, tmp_path / "cache", ExtractConfig())
    assert again.weights == f"hf:{(tmp_path / 'tiny').resolve()}" and again.taps == ("audio", "audio-1")
