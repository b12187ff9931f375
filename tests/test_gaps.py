"""Gaps filled: against the plain loop, and against the mistakes seen in participants' code."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from books import predict_new, simulate
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache import oof
from fercache.config import StackConfig
from fercache.errors import InputError
from fercache.results import missing_faces
from fercache.stacking import candidates, nested_cv, stack

CONFIG = StackConfig(threads=1, bootstrap=0)
Clip = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def clips(draw: st.DrawFn) -> Clip:
    """Return probabilities, uneven times, and which frames have a face (perhaps none)."""
    many = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    time_s = np.cumsum(rng.choice([1 / 30, 1 / 25, 0.5], many))
    return rng.dirichlet(np.ones(3), many), time_s, rng.random(many) < rng.random()


def plain(shares: np.ndarray, time_s: np.ndarray, seen: np.ndarray, t: int) -> np.ndarray:
    """Return what a frame gets by a straight line, the slow way."""
    before = [i for i in range(t + 1) if seen[i]]
    after = [i for i in range(t, len(seen)) if seen[i]]
    if not before or not after:
        return shares[(before or after)[-1 if before else 0]]
    a, b = before[-1], after[0]
    if a == b:
        return shares[a]
    return shares[a] + (shares[b] - shares[a]) * (time_s[t] - time_s[a]) / (time_s[b] - time_s[a])


@settings(max_examples=150, deadline=None)
@given(clip=clips())
def test_the_line_is_the_plain_loop(clip: Clip) -> None:
    shares, time_s, seen = clip
    found = missing_faces.fill_gaps(shares, time_s, seen, "linear")
    if not seen.any():
        np.testing.assert_array_equal(found, shares)
        return
    for t in range(len(seen)):
        np.testing.assert_allclose(found[t], plain(shares, time_s, seen, t), atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)
    np.testing.assert_array_equal(found[seen], shares[seen])


@settings(max_examples=80, deadline=None)
@given(clip=clips(), policy=st.sampled_from(sorted(missing_faces.POLICIES)))
def test_filling_twice_changes_nothing(clip: Clip, policy: str) -> None:
    shares, time_s, seen = clip
    once = missing_faces.fill_gaps(shares, time_s, seen, policy)
    np.testing.assert_array_equal(missing_faces.fill_gaps(once, time_s, seen, policy), once)


def test_the_nearer_face_weighs_more() -> None:
    """Swapped weights, the classic mistake: a frame beside a face would look like the far one."""
    shares = np.zeros((11, 2))
    shares[0], shares[10] = (1, 0), (0, 1)
    seen = np.isin(np.arange(11), (0, 10))
    found = missing_faces.fill_gaps(shares, np.arange(11) / 30, seen, "linear")
    np.testing.assert_allclose(found[:, 0], np.linspace(1, 0, 11), atol=1e-12)


def test_four_missing_frames_lie_on_fifths() -> None:
    """Off by one, the other classic: a gap of n frames has n + 1 steps, and the ends are the faces' own."""
    shares = np.full((6, 2), np.nan)
    shares[0], shares[5] = (0.0, 1.0), (1.0, 0.0)
    found = missing_faces.fill_gaps(shares, np.arange(6.0), np.isin(np.arange(6), (0, 5)), "linear")
    np.testing.assert_allclose(found[:, 0], [0, .2, .4, .6, .8, 1], atol=1e-12)


def test_time_counts_and_not_the_number_of_frames() -> None:
    shares = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
    found = missing_faces.fill_gaps(shares, np.array([0.0, 0.9, 1.0]), np.array([True, False, True]), "linear")
    np.testing.assert_allclose(found[1], [0.1, 0.9])


@pytest.mark.parametrize("policy", ["nearest", "linear"])
def test_edges_have_what_the_first_and_last_face_have(policy: str) -> None:
    shares = np.random.default_rng(0).dirichlet(np.ones(4), 9)
    seen = np.isin(np.arange(9), (3, 5))
    found = missing_faces.fill_gaps(shares, np.arange(9.0), seen, policy)
    np.testing.assert_array_equal(found[:3], shares[[3, 3, 3]])
    np.testing.assert_array_equal(found[6:], shares[[5, 5, 5]])


def test_the_earlier_of_two_equally_near_faces() -> None:
    shares = np.eye(3)
    found = missing_faces.fill_gaps(shares, np.arange(3.0), np.array([True, False, True]), "nearest")
    np.testing.assert_array_equal(found[1], shares[0])


def test_every_policy_is_a_choice_of_the_stack() -> None:
    choices = {entry.name: entry.metadata["choices"] for entry in fields(StackConfig)}["missing_faces"]
    assert set(choices) == set(missing_faces.POLICIES)


@pytest.fixture(scope="module")
def spoken() -> tuple[oof.OofLogits, nested_cv.NestedResult]:
    """A book with gaps, and what the stackers say of it."""
    book = simulate(groups=6, frames=80)
    return book, nested_cv.run_nested_cv(book, CONFIG)


@pytest.mark.parametrize("policy", sorted(missing_faces.POLICIES))
def test_what_each_policy_leaves_in_the_columns(spoken: tuple[oof.OofLogits, nested_cv.NestedResult],
                                                policy: str) -> None:
    book, learnt = spoken
    held = candidates.gather_candidates(book, learnt, candidates.GapFiller.of(book, policy))
    own = {head: np.exp(v) / np.exp(v).sum(1, keepdims=True) for head, v in book.logits.items()}
    blind = ~book.valid
    assert blind.sum() > 20 and set(held) == {*book.heads, "mean", "smoothed-mean", "logistic",
                                              "geometric-mean", "stack"}
    for name, values in held.items():
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-5)
        np.testing.assert_array_equal(values[book.valid], candidates.gather_candidates(book, learnt)[name][book.valid])
        if policy in missing_faces.COPIED:
            for trial in range(len(book.trials)):
                rows = book.rows(trial)
                want = missing_faces.fill_gaps(held[name][rows], book.time_s[rows], book.valid[rows], policy)
                np.testing.assert_array_equal(values[rows], want)
            continue
        speakers = ["frame", "gru", "transformer"] if policy == "none" else ["gru", "transformer"]
        mean = sum(own[head] for head in speakers) / len(speakers)
        np.testing.assert_allclose(values[blind], (own[name] if name in speakers else mean)[blind], atol=1e-6)


def test_the_mask_needs_a_temporal_head(tmp_path: Path) -> None:
    book = simulate(groups=5, frames=60, heads=("frame",))
    with pytest.raises(InputError, match="temporal head") as caught:
        stack.run_stack(book, replace(CONFIG, missing_faces="temporal-heads"), tmp_path)
    assert "--missing-faces" in str(caught.value)


def test_a_run_says_its_policy_and_new_clips_get_the_same(tmp_path: Path) -> None:
    book = simulate(groups=6, frames=60, validation=2)
    runs = {policy: stack.run_stack(book, replace(CONFIG, missing_faces=policy, select="stack"), tmp_path)
            for policy in ("nearest", "linear")}
    assert len({found.folder for found in runs.values()}) == 2
    for policy, found in runs.items():
        assert found.report.gap_policy.startswith(f"{policy}: ") and "face" in found.report.gap_policy
        assert found.report.frames_without_face == int((~book.valid).sum())
        new = replace(book, fold=np.full_like(book.fold, -1))
        held_out = book.per_row(np.array(book.split)) == "validation"
        assert np.abs(predict_new(found.folder, new)[held_out] - found.ppm[held_out]).max() <= 2
    apart = (runs["nearest"].ppm != runs["linear"].ppm).any(1)
    said = [found.ppm[book.valid].argmax(1) for found in runs.values()]
    assert apart[~book.valid].any() and (said[0] == said[1]).all(), "the temperature may differ, the answer may not"


def test_a_clip_without_a_face_keeps_what_the_heads_say(spoken: tuple[oof.OofLogits, nested_cv.NestedResult]) -> None:
    book, learnt = spoken
    dark = replace(book, valid=book.valid & (book.per_row(np.arange(len(book.trials))) != 2))
    rows = book.rows(2)
    for policy in missing_faces.POLICIES:
        held = candidates.gather_candidates(dark, learnt, candidates.GapFiller.of(dark, policy))["gru"][rows]
        own = np.exp(book.logits["gru"][rows])
        np.testing.assert_allclose(held, own / own.sum(1, keepdims=True), atol=1e-6)


def test_nothing_looks_ahead_where_it_may_not(spoken: tuple[oof.OofLogits, nested_cv.NestedResult]) -> None:
    """Later frames thrown into disorder change nothing; before the first face the heads have even odds."""
    book, _ = spoken
    nothing = nested_cv.NestedResult(fold_models={}, columns={})
    valid = book.valid.copy()
    valid[book.offsets[:-1, None] + np.arange(5)] = False
    book = replace(book, valid=valid)
    filling = candidates.GapFiller.of(book, causal=True)
    before = candidates.gather_candidates(book, nothing, filling)
    np.testing.assert_allclose(before["mean"][book.offsets[:-1]], 1 / 7)
    cut = int(book.offsets[1]) // 2
    later = {head: np.where(np.arange(len(v))[:, None] > cut, v[::-1], v) for head, v in book.logits.items()}
    after = candidates.gather_candidates(replace(book, logits=later), nothing, filling)
    for name, values in before.items():
        np.testing.assert_array_equal(values[:cut + 1], after[name][:cut + 1])
    with pytest.raises(InputError, match="linear"):
        candidates.GapFiller.of(book, "linear", causal=True)
