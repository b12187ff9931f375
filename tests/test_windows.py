"""Windows and loading: every frame is covered, augmentations are drawn, a clip is normalized by its own frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_sets

from fercache.backbones.taps import TapSlice
from fercache.errors import StoreError
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import encode_name
from fercache.training.data import FrameDataset, WindowSampler, load_features, normalize_clip

TAPS = tuple(small_sets.TAPS)


def features(lengths: tuple[int, ...] = (1, 7, 30, 95), augmentations: int = 0) -> FrameDataset:
    """Return features whose single value is the row's number, plus a thousand per augmentation."""
    rows = sum(lengths)
    x = np.arange(rows, dtype=np.float16)[:, None]
    return FrameDataset(layout=(TapSlice(tap="a", start=0, stop=1, shape=(1,)),), x=x, label=np.zeros(rows, np.int16),
                        offsets=np.concatenate([[0], np.cumsum(lengths)]), valid=np.ones(rows, bool),
                        index=np.concatenate([np.arange(1, n + 1) for n in lengths]).astype(np.int32),
                        time_s=np.concatenate([np.arange(n) / 30 for n in lengths]),
                        augmentations=np.stack([x + 1000 * (v + 1) for v in range(augmentations)]) if augmentations
                        else np.zeros((0, 0, 0)))


@pytest.mark.parametrize("step", [1, 3, 8])
@pytest.mark.parametrize("window", [1, 9, 64])
def test_every_frame_is_covered_and_no_window_leaves_its_trial(window: int, step: int) -> None:
    dataset = features()
    sampler = WindowSampler(dataset, range(4), window, step=step)
    batch = sampler.batch(sampler.covering_starts())
    assert set(batch.rows[batch.rows >= 0].tolist()) == set(range(len(dataset.label)))
    trial = dataset.trial_of_row()
    for rows, time_s, x in zip(batch.rows, batch.time_s, batch.x, strict=True):
        inside = rows[rows >= 0]
        assert len(set(trial[inside].tolist())) == 1 and (np.diff(inside) == step).all()
        assert np.allclose(time_s[:len(inside)], (inside - inside[0]) / 30, atol=1e-5)
        assert np.array_equal(x[:len(inside), 0], inside) and not x[len(inside):].any()
    assert not batch.seen.numpy()[batch.rows < 0].any() and (batch.label.numpy()[batch.rows < 0] == -1).all()


def test_augmentations_are_drawn_by_window_and_only_with_a_generator() -> None:
    sampler = WindowSampler(features(augmentations=2), [3], 8)
    starts = np.repeat(sampler.starts(4), 20, axis=0)
    assert (sampler.batch(starts).x < 1000).all()
    drawn = sampler.batch(starts, np.random.default_rng(0)).x.numpy()[..., 0] // 1000
    assert (drawn == drawn[:, :1]).all(), "one augmentation per window"
    assert all(.2 < (drawn[:, 0] == v).mean() < .5 for v in range(3))


def test_a_clip_is_normalized_by_its_own_frames_with_a_face() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(5, 3, size=(2, 200, 6)).astype(np.float16)
    seen = rng.random(200) > .3
    x[:, ~seen] = 0
    other = x.copy()
    other[:, ~seen] = 77
    normalize_clip(x, seen)
    normalize_clip(other, seen)
    assert np.array_equal(x[:, seen], other[:, seen]), "frames without a face must not count"
    assert not x[:, ~seen].any()
    assert np.allclose(x[0, seen].mean(0), 0, atol=.01) and np.allclose(x[0, seen].std(0), 1, atol=.01)


def test_augmentations_are_stored_beside_their_tap(tmp_path: Path) -> None:
    data, store = small_sets.dataset(tmp_path, groups=2, validation=0)
    taps = {"block8": (12,), "block8_views": (2, 12)}
    augmented = EmbeddingStore.create(tmp_path / "viewed.zarr", {"views": 3}, taps)
    for trial in data.trials:
        clip = store[trial.name]
        with augmented.writer(trial.name, source={"sha256": "a"}, provenance={}) as writer:
            assert writer is not None
            writer.set_frame_table(np.array(clip.frame_table.tolist()))
            plain = clip.read("block8")
            writer.write(0, {"block8": plain, "block8_views": np.stack([plain + 1, plain + 2], 1)})
            writer.commit()
    loaded = load_features(augmented, data.trials, ("block8",), augmentations=True)
    assert loaded.augmentations.shape == (2, *loaded.x.shape)
    assert np.array_equal(loaded.augmentations[1], loaded.x + np.float16(2))
    assert not len(load_features(augmented, data.trials, ("block8",)).augmentations)
    assert np.array_equal(loaded.x, load_features(store, data.trials, ("block8",)).x)


def test_features_read_in_threads_equal_those_of_each_clip_and_a_missing_chunk_is_an_error(tmp_path: Path) -> None:
    data, store = small_sets.dataset(tmp_path, groups=12, validation=0)
    loaded = load_features(store, data.trials, TAPS)
    for i, trial in enumerate(data.trials):
        clip = store[trial.name]
        rows = loaded.rows(i)[:clip.frames]
        parts = [clip.read(part.tap).reshape(clip.frames, -1) for part in loaded.layout]
        assert loaded.x[rows].tobytes() == np.concatenate(parts, 1).tobytes()
        assert np.array_equal(loaded.time_s[rows], clip.frame_table["time_s"])
    torn = next((tmp_path / store.path / encode_name(data.trials[7].name) / TAPS[0]).glob("c.0*"))
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(StoreError, match="missing or torn"):
        load_features(store, data.trials, TAPS)
