"""The chain of expressions: its passes against every path written out, and what is counted and fitted."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from books import simulate
from numpy.typing import NDArray

from fercache.stacking import chain
from fercache.stacking.chain import Chain, ChainInput
from fercache.stacking.features import log_softmax

RNG = np.random.default_rng(0)


def some_chain(classes: int = 3, heads: int = 2) -> Chain:
    jump = RNG.random((classes, classes)) * (1 - np.eye(classes))
    return Chain(rate=RNG.uniform(0.5, 3, classes), jump=jump / jump.sum(1, keepdims=True),
                 share=RNG.dirichlet(np.full(classes, 5.0)), power=RNG.uniform(1, 20, heads), prior=0.5)


def clip(frames: int, classes: int = 3, heads: int = 2) -> ChainInput:
    time_s = np.cumsum(RNG.choice([0.04, 0.04, 0.5], frames))  # a gap now and then
    return ChainInput(log_softmax(RNG.normal(0, 2, (frames, heads, classes))), time_s)


def by_paths(one: Chain, one_input: ChainInput, upto: int | None = None) -> NDArray[np.float64]:
    """Return (M, C): each frame's probabilities, summed over every path of stages; of frames `upto` a row alone."""
    classes, stages, frames = len(one.share), chain.STAGES, len(one_input.log_probs)
    states = [(c, s) for c in range(classes) for s in range(stages)]
    step = np.diff(one_input.time_s, prepend=one_input.time_s[0] - chain.FIRST_S)

    def moved(a: tuple[int, int], b: tuple[int, int], t: int) -> float:
        stay = float(np.exp(-one.rate[a[0]] * stages * step[t]))
        to = a[1] + 1 < stages and b == (a[0], a[1] + 1)
        out = one.jump[a[0], b[0]] if a[1] + 1 == stages and b[1] == 0 else 0.0
        return stay * (a == b) + (1 - stay) * (1.0 if to else out)

    def likely(c: int, t: int) -> float:
        said = one_input.log_probs[t, :, c] @ one.power - one.prior * one.power.sum() * np.log(one.share[c])
        return float(np.exp(said * min(step[t], chain.MOST_S)))

    found = np.zeros((frames, classes))
    for path in product(states, repeat=frames):
        p = one.share[path[0][0]] / stages * likely(path[0][0], 0)
        for t in range(1, frames):
            p *= moved(path[t - 1], path[t], t) * likely(path[t][0], t)
        for t in range(frames):
            found[t, path[t][0]] += p
    return found / found.sum(1, keepdims=True)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_passes_say_what_all_paths_say(frames: int) -> None:
    one, one_input = some_chain(), clip(frames)
    np.testing.assert_allclose(np.exp(one.predict([one_input], causal=False)[0]), by_paths(one, one_input), rtol=1e-4,
                               atol=2e-6)


def test_the_forward_pass_knows_the_past_alone() -> None:
    one, one_input = some_chain(), clip(5)
    said = np.exp(one.predict([one_input], causal=True)[0])
    for t in range(5):
        past = ChainInput(one_input.log_probs[:t + 1], one_input.time_s[:t + 1])
        np.testing.assert_allclose(said[t], by_paths(one, past)[t], rtol=1e-4, atol=2e-6)


def test_a_clip_says_the_same_among_others() -> None:
    """Longer, shorter and empty ones, in one batch or each alone."""
    one, clips = some_chain(), [clip(n) for n in (7, 0, 300, 1, 40)]
    together = one.predict(clips, causal=False)
    assert [len(said) for said in together] == [7, 0, 300, 1, 40]
    for said, one_input in zip(together, clips, strict=True):
        np.testing.assert_allclose(said, one.predict([one_input], causal=False)[0], atol=1e-5)


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ROWS_A_BATCH", 100)
    batches = list(chain._batches([30, 0, 500, 40, 30, 1]))
    assert sorted(i for batch in batches for i in batch) == [0, 2, 3, 4, 5]
    lengths = [30, 0, 500, 40, 30, 1]
    assert all(len(b) * lengths[b[0]] <= 100 for b in batches if len(b) > 1)


def walk(one: Chain, frames: int, noise: float) -> tuple[ChainInput, NDArray[np.int64]]:
    """Return a clip drawn from a chain of one stage a class: one head that knows, and one that says nothing."""
    label = np.zeros(frames, np.int64)
    for t in range(1, frames):
        ends = RNG.random() < one.rate[label[t - 1]] / 30
        label[t] = RNG.choice(3, p=one.jump[label[t - 1]]) if ends else label[t - 1]
    knows = np.eye(3)[label] + RNG.normal(0, noise, (frames, 3))
    return ChainInput(log_softmax(np.stack([knows, RNG.normal(0, noise, (frames, 3))], 1)), np.arange(frames) / 30), label


def test_durations_are_counted_and_heads_weighed() -> None:
    true = some_chain()
    clips, labels = zip(*[walk(true, 600, 1.5) for _ in range(30)], strict=True)
    found = chain.fit(clips, labels, causal=False)
    np.testing.assert_allclose(found.rate, true.rate, rtol=0.25)
    np.testing.assert_allclose(found.jump, true.jump, atol=0.15)
    assert found.power[0] > 4 * found.power[1]
    fresh, label = walk(true, 3000, 1.5)
    alone = (fresh.log_probs[:, 0].argmax(1) == label).mean()
    assert (found.predict([fresh], causal=False)[0].argmax(1) == label).mean() > alone + 0.1
    assert Chain.of(found.json()).json() == found.json()


def test_labels_that_are_not_there_are_not_looked_at() -> None:
    one = some_chain()
    one_input, label = walk(one, 400, 1.0)
    label[100:300] = -1
    found = chain.fit([one_input], [label], causal=False)
    assert np.isfinite(found.rate).all() and found.share.sum() == pytest.approx(1)
    nothing = chain.fit([one_input], [np.full(400, -1)], causal=False)
    assert np.isfinite(nothing.predict([one_input], causal=False)[0]).all()


def test_pieces_hold_a_stated_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "MOST_ROWS", 1000)
    clips = [clip(700) for _ in range(10)]
    pieces, labels = chain._pieces(clips, [np.zeros(700, np.int64)] * 10)
    assert 500 <= sum(map(len, labels)) <= 1000 + chain.PIECE
    assert all(len(p.log_probs) == len(p.time_s) == len(k) <= chain.PIECE for p, k in zip(pieces, labels, strict=True))


def test_what_stands_beside_the_rows_is_of_the_same_frames() -> None:
    """Of rows in clips with gaps: the word of the very frame."""
    book = simulate(groups=4, frames=90)
    rows = np.flatnonzero(book.valid & (book.label >= 0))[::7]
    clips = chain.Clips.of(book, rows, causal=False)
    trials = sorted(clips.chain_input)
    spoken = clips.fit(trials)
    for trial in trials:
        mine = rows[(rows >= book.offsets[trial]) & (rows < book.offsets[trial + 1])]
        np.testing.assert_array_equal(clips.chain_input[trial].time_s[clips.place[trial]], book.time_s[mine])
        np.testing.assert_array_equal(clips.label[trial][clips.place[trial]], book.label[mine])
    x, smoothed = chain.beside(np.zeros((5, 2), np.float32), np.zeros((5, 3, 6, 7), np.float32),
                               np.log(np.full((5, 7), 1 / 7, np.float32)))
    assert x.shape == (5, 2 + len(chain.names(book.classes))) and smoothed.shape == (5, 4, 6, 7)
    assert x[0, -1] == pytest.approx(np.log(7)) and spoken.power.shape == (3,)
