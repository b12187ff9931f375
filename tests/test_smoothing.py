"""Moving statistics against the plain loop they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache.results import smoothing
from fercache.results.smoothing import CumulativeSums, highest, lagged, moving_mean, nearest_row, window_reach


@st.composite
def clips(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return time, values and mask of a clip with uneven steps and gaps."""
    many = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    time_s = np.cumsum(rng.choice([1 / 30, 1 / 25, 0.5], many))
    return time_s - time_s[0], rng.normal(0, 3, (many, 3)), rng.random(many) < rng.random()


@settings(max_examples=80, deadline=None)
@given(clip=clips(), behind=st.sampled_from([0, 0.1, 0.7, 100]), ahead=st.sampled_from([0, 0.1, 0.7, 100]))
def test_windows_are_the_plain_loop(clip: tuple[np.ndarray, np.ndarray, np.ndarray], behind: float,
                                    ahead: float) -> None:
    time_s, values, counts = clip
    window, sums = window_reach(time_s, behind, ahead), CumulativeSums(values, counts)
    mean, spread, share = sums.mean(window), sums.spread(window), sums.share(window)
    for t, now in enumerate(time_s):
        inside = (time_s >= now - behind - 1e-6) & (time_s <= now + ahead + 1e-6)
        assert share[t] == pytest.approx((counts & inside).sum() / inside.sum())
        rows = values[counts & inside]
        if len(rows):
            np.testing.assert_allclose(mean[t], rows.mean(0), atol=1e-9)
            np.testing.assert_allclose(spread[t], rows.std(0), atol=1e-6)


def test_what_stands_in_a_gap_is_never_looked_at() -> None:
    time_s, counts = np.arange(20) / 10, np.arange(20) % 5 != 0
    values = np.random.default_rng(0).normal(size=(20, 2))
    other = np.where(counts[:, None], values, np.nan)
    window = window_reach(time_s, 0.3, 0.3)
    np.testing.assert_array_equal(moving_mean(values, counts, window), moving_mean(other, counts, window))


def test_windows_are_seconds_not_frames() -> None:
    """The same second of another frame rate has the same mean."""
    slow, fast = np.arange(0, 10, 1 / 10), np.arange(0, 10, 1 / 50)
    means = [moving_mean(np.sin(t)[:, None], np.ones(len(t), bool), window_reach(t, 1, 1)) for t in (slow, fast)]
    np.testing.assert_allclose(means[0][20:80], means[1][100:400:5], atol=0.02)


def test_no_future_frame_when_nothing_lies_ahead() -> None:
    time_s, values = np.arange(30) / 10, np.random.default_rng(0).normal(size=(30, 1))
    changed = values.copy()
    changed[20:] += 100
    every = np.ones(30, bool)
    before = [CumulativeSums(v - 0, every).mean(window_reach(time_s, 0.5, 0))[:20] for v in (values, changed)]
    np.testing.assert_allclose(before[0], before[1], atol=1e-9)


def test_an_empty_window_takes_the_nearest_that_is_not() -> None:
    time_s = np.arange(7.0)
    counts = np.array([True, False, False, False, False, False, True])
    values = np.array([[1.0], [9], [9], [9], [9], [9], [2]])
    assert moving_mean(values, counts, window_reach(time_s, 1, 1))[:, 0].tolist() == [1, 1, 1, 1, 2, 2, 2]


def test_long_clips_lose_no_digits() -> None:
    values = np.random.default_rng(0).normal(-12, 1, (60_000, 2)).astype(np.float32)
    window = window_reach(np.arange(60_000) / 30, 1 / 6, 1 / 6)
    mean = CumulativeSums(values, np.ones(60_000, bool)).mean(window)
    np.testing.assert_allclose(mean[-20], values[-25:-14].astype(float).mean(0), atol=1e-10)


def test_nearest_looks_through_gaps() -> None:
    time_s = np.array([0, 1, 2, 3, 4.5])
    counts = np.array([False, True, False, False, True])
    assert nearest_row(time_s, counts).tolist() == [1, 1, 1, 4, 4]


def test_nearest_takes_the_earlier_of_two_and_may_look_back_only() -> None:
    time_s, counts = np.arange(4.0), np.array([False, True, False, True])
    assert nearest_row(time_s, counts).tolist() == [1, 1, 1, 3]
    assert nearest_row(time_s, counts, causal=True).tolist() == [0, 1, 1, 3]


def test_nearest_without_any() -> None:
    assert nearest_row(np.arange(3.0), np.zeros(3, bool)).tolist() == [0, 1, 2]


def test_lags_repeat_the_ends() -> None:
    values = np.arange(5.0)[:, None]
    assert lagged(values, np.arange(5) / 10, 0.2)[:, 0].tolist() == [0, 0, 0, 1, 2]
    assert lagged(values, np.arange(5) / 10, -0.2)[:, 0].tolist() == [2, 3, 4, 4, 4]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.floats(0, 3), st.floats(0, 3))
def test_the_highest_of_every_window(values: list[float], behind: float, ahead: float) -> None:
    x, time_s = np.array(values)[:, None], np.arange(len(values)) / 5
    window = window_reach(time_s, behind, ahead)
    wanted = [x[a:b].max() for a, b in zip(window.start, window.stop, strict=True)]
    assert highest(x, window)[:, 0].tolist() == wanted


def every_sequence(log_probs: np.ndarray, time_s: np.ndarray, chain: smoothing.Chain, causal: bool) -> np.ndarray:
    """Return the posteriors (T, C) of a chain, summed over all sequences of classes."""
    rows, classes = log_probs.shape
    share = [np.exp(log_probs[:t + 1 if causal else rows]).mean(0) for t in range(rows)]
    gap = np.diff(time_s)
    weight = np.minimum(1, np.append(1.0, gap * chain.evidence_hz))
    total = np.zeros((rows, classes))
    for path in itertools.product(range(classes), repeat=rows):
        p = np.exp((weight * log_probs[np.arange(rows), path]).sum())  # in the first row each is equally likely
        for t in range(1, rows):
            keep = np.exp(-gap[t - 1] / chain.dwell_s)
            p *= keep * (path[t] == path[t - 1]) + (1 - keep) * share[t][path[t]]
        total[np.arange(rows), path] += p
    return total / total.sum(1, keepdims=True)


def test_a_chain_gives_the_posteriors_over_all_sequences() -> None:
    log_probs = np.log(np.random.default_rng(0).dirichlet(np.ones(3), 6))
    time_s = np.array([0, .04, .08, 1.2, 1.24, 1.3])
    chains = [smoothing.Chain(dwell_s=1, evidence_hz=10), smoothing.Chain(dwell_s=4, evidence_hz=20)]
    found = np.exp(smoothing.chain_posteriors([log_probs], [time_s], chains)[0])
    for i, chain in enumerate(chains):
        assert found[:, i] == pytest.approx(every_sequence(log_probs, time_s, chain, False))
    assert smoothing.chain_posteriors([log_probs[:0]], [time_s[:0]], chains)[0].shape == (0, 2, 3)
    assert smoothing.chain_posteriors([], [], chains) == []


def test_photos_an_hour_apart_say_nothing_about_each_other() -> None:
    rng, chain = np.random.default_rng(0), [smoothing.Chain(dwell_s=4, evidence_hz=20)]
    log_probs, time_s = np.log(rng.dirichlet(np.ones(3), 8)), np.arange(8) * 3600.0
    others = np.concatenate([log_probs[:4], np.log(np.tile([.98, .01, .01], (4, 1)))])
    found, beside = smoothing.chain_posteriors([log_probs, others], [time_s, time_s], chain)
    np.testing.assert_allclose(found[:, 0], log_probs, atol=1e-12)
    np.testing.assert_allclose(found[:4], beside[:4], atol=1e-12)


def test_a_causal_chain_knows_no_later_row() -> None:
    log_probs, time_s = np.log(np.random.default_rng(1).dirichlet(np.ones(4), 50)), np.arange(50) / 25
    chain = [smoothing.Chain(dwell_s=1, evidence_hz=10)]
    whole, part = smoothing.chain_posteriors([log_probs, log_probs[:20]], [time_s, time_s[:20]], chain, causal=True)
    assert (whole[:20] == part).all()
    assert np.exp(whole[6, 0]) == pytest.approx(every_sequence(log_probs[:7], time_s[:7], chain[0], True)[-1])


@pytest.mark.parametrize("causal", [False, True])
def test_the_posteriors_of_a_clip_do_not_depend_on_the_others(causal: bool) -> None:
    rng, chains = np.random.default_rng(2), [smoothing.Chain(dwell_s=1, evidence_hz=10)] * 2
    clips = [np.log(rng.dirichlet(np.ones(8), n)).reshape(n, 8) for n in (3, 40, 0, 1, 40, 7)]
    times = [np.cumsum(rng.choice([.04, 2], len(clip))) for clip in clips]
    together = smoothing.chain_posteriors(clips, times, chains, causal=causal)
    for clip, time_s, found in zip(clips, times, together, strict=True):
        assert found.shape == (len(clip), 2, 8)
        assert (found == smoothing.chain_posteriors([clip], [time_s], chains, causal=causal)[0]).all()
