"""What can be chosen of a stack: no future, refit, metric; and whether its probabilities can be believed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from books import predict_new, simulate
from rich.console import Console
from scipy.special import softmax

from fercache import metrics
from fercache.config import StackConfig
from fercache.errors import InputError
from fercache.heads import registry
from fercache.oof import OUT_OF_FOLD, OofLogits, Provenance
from fercache.stacking import calibration, features, nested_cv, smoothed_mean, stack

CONFIG = StackConfig(threads=1, bootstrap=50)
HEADS = ("frame", "frame_b")
DECLARED = {"frame_b": OUT_OF_FOLD}
"""`frame_b` is imported: a causal run takes such logits, and only those, without knowing the head."""


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> stack.StackResult:
    book = simulate(groups=10, frames=120, heads=HEADS, declared=DECLARED)
    return stack.run_stack(book, replace(CONFIG, causal=True, select="stack"), tmp_path_factory.mktemp("causal"))


def new_book(seed: int = 9) -> OofLogits:
    book = simulate(groups=4, frames=150, heads=HEADS, seed=seed, declared=DECLARED)
    return replace(book, fold=np.full_like(book.fold, -1), label=np.full_like(book.label, -1))


@pytest.mark.parametrize("cut", [1, 17, 60])
@pytest.mark.parametrize("final", ["stack", "logistic", "smoothed-mean", "mean", "frame"])
def test_a_causal_run_knows_nothing_of_the_future(causal: stack.StackResult, tmp_path: Path, cut: int,
                                                  final: str) -> None:
    """Everything after a frame is changed (what the heads say, where faces are): not one bit before it moves."""
    found = stack.run_stack(causal.oof, replace(CONFIG, causal=True, select=final), causal.folder.parent.parent)
    book, rng = new_book(), np.random.default_rng(0)
    later = book.index > cut
    logits = {h: np.where(later[:, None], rng.normal(0, 9, v.shape), v).astype(np.float32)
              for h, v in book.logits.items()}
    other = replace(book, logits=logits, valid=np.where(later, rng.random(len(later)) < .5, book.valid))
    before, after = (predict_new(found.folder, b)[~later] for b in (book, other))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(predict_new(found.folder, book), predict_new(found.folder, other))


def test_a_run_that_is_not_causal_does_look_ahead(tmp_path: Path) -> None:
    found = stack.run_stack(simulate(groups=10, frames=120, heads=HEADS, declared=DECLARED),
                            replace(CONFIG, select="smoothed-mean"), tmp_path)
    book = new_book()
    later = book.index > 60
    other = replace(book, logits={h: np.where(later[:, None], -v, v) for h, v in book.logits.items()})
    assert not np.array_equal(*(predict_new(found.folder, b)[~later] for b in (book, other)))


def test_before_the_first_face_a_causal_run_knows_nothing(causal: stack.StackResult) -> None:
    book = new_book()
    blind = replace(book, valid=book.valid & (book.index > 20))
    said = predict_new(causal.folder, blind)[blind.index <= 20]
    assert np.abs(said - 1_000_000 / 7).max() <= 1


def test_a_causal_run_leaves_out_heads_that_look_ahead(tmp_path: Path) -> None:
    found = stack.run_stack(simulate(groups=6, frames=60), replace(CONFIG, causal=True), tmp_path)
    assert found.oof.heads == ("frame",) and found.report.causal
    paper = simulate(groups=6, frames=60, heads=("paper-frame", "paper-gru", "paper-transformer"))
    assert stack.run_stack(paper, replace(CONFIG, causal=True), tmp_path).oof.heads == ("paper-frame",)
    with pytest.raises(InputError, match=r"--causal.*gru"):
        stack.run_stack(simulate(groups=6, frames=60, heads=("gru",)), replace(CONFIG, causal=True), tmp_path)


def test_a_causal_run_asks_the_registry_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.HEADS, "windowed", registry.HEADS["transformer"])
    monkeypatch.setitem(registry.HEADS, "single", registry.HEADS["frame"])
    oof = simulate(groups=6, frames=60, heads=("single", "windowed", "nobody_knows", "imported"),
                   declared={"imported": OUT_OF_FOLD})
    assert stack.run_stack(oof, replace(CONFIG, causal=True), tmp_path).oof.heads == ("single", "imported")


def with_copies_of_the_next_face(oof: OofLogits, step: int) -> OofLogits:
    """Return logits as the frame head leaves them: a frame without a face holds a copy of a frame with one.

    Parameters
    ----------
    step : 1 copies from the next face, -1 from the one before.
    """
    source = np.arange(len(oof.label))
    for trial in range(len(oof.trials)):
        rows = np.arange(len(oof.label))[oof.rows(trial)]
        faces = rows[oof.valid[rows]]
        place = np.searchsorted(faces, rows) - (step < 0)
        source[rows] = np.where(oof.valid[rows], rows, faces[np.clip(place, 0, len(faces) - 1)])
    return replace(oof, logits={head: values[source] for head, values in oof.logits.items()})


def test_without_filling_a_causal_run_takes_no_copy_of_a_later_face(tmp_path: Path) -> None:
    config = replace(CONFIG, causal=True, missing_faces="none", select="frame")
    found = stack.run_stack(simulate(groups=10, frames=120, heads=HEADS, declared=DECLARED), config, tmp_path)
    oof = new_book()
    oof = replace(oof, valid=np.where(oof.index % 40 < 10, False, oof.valid))
    earlier, later = (predict_new(found.folder, with_copies_of_the_next_face(oof, step)) for step in (-1, 1))
    np.testing.assert_array_equal(earlier, later)


def test_a_refit_learns_from_validation_and_shows_no_score_for_it(tmp_path: Path) -> None:
    book = simulate(groups=8, validation=6, frames=90)
    plain, refit = (stack.run_stack(book, replace(CONFIG, refit=how, select="stack"), tmp_path)
                    for how in ("none", "all"))
    said = refit.report.splits["validation"].all_frames
    assert set(said) == {"frame", "gru", "transformer", "mean"} and refit.report.refit.stacker
    assert "stack" in plain.report.splits["validation"].all_frames and not plain.report.refit.stacker
    last = [run.report.fold_models[-1] for run in (plain, refit)]
    assert [one.groups for one in last] == [8, 14]
    assert plain.report.splits["train"].all_frames == refit.report.splits["train"].all_frames
    assert "no score" in refit.report.refit.why
    refit.__rich__()


def test_heads_that_were_refitted_show_no_score_either(tmp_path: Path) -> None:
    book = simulate(groups=8, validation=6, frames=60, provenance=Provenance(settings={"refit": "all"}))
    found = stack.run_stack(book, CONFIG, tmp_path)
    assert found.report.splits["validation"].all_frames == {} and found.report.refit.heads
    found.__rich__()


def test_scores_of_refitted_heads_are_out_of_fold_and_say_so(tmp_path: Path) -> None:
    """Heads whose folds go over train and validation: the stack learns from both, and knows nothing of a row's fold."""
    book = simulate(groups=14, frames=60, provenance=Provenance(settings={"refit": "all"}))
    book = replace(book, split=("train",) * 8 + ("validation",) * 6)
    found = stack.run_stack(book, CONFIG, tmp_path)
    said = found.report.splits["validation"]
    assert said.predicted.startswith("out of fold") and said.title == "validation, out of fold"
    assert set(said.all_frames) == set(found.report.order)
    assert found.report.refit.heads and found.report.refit.stacker
    assert "out of fold" in found.report.refit.why and found.report.fold_models[-1].groups == 14
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(found)
    assert "validation, out of fold:" in screen.export_text()


def test_folds_are_written_down(tmp_path: Path) -> None:
    book = simulate(groups=8, frames=60)
    folds = stack.run_stack(book, CONFIG, tmp_path).report.folds
    assert sorted(g for fold in folds for g in fold.groups) == sorted(book.group)
    assert sum(n for fold in folds for n in fold.labelled.values()) == (book.label >= 0).sum()


@pytest.mark.parametrize("metric", ["macro_f1", "abaw2", "accuracy", "uar"])
def test_what_is_chosen_by_is_the_metric_that_is_asked_for(tmp_path: Path, metric: str) -> None:
    found = stack.run_stack(simulate(groups=6, frames=60), replace(CONFIG, metric=metric), tmp_path)
    one = found.report.splits["train"].all_frames[found.final]
    assert found.report.metric == metric and one.official == pytest.approx(one.figures[metric])


def learn(book: OofLogits, metric: str = "macro_f1") -> smoothed_mean.SmoothedMean:
    """Return the base of all rows of a book."""
    from fercache.runtime.progress import progress_bar

    made = features.feature_columns(book, causal=False)
    with progress_bar("test", 1) as bar:
        return smoothed_mean.fit_smoothed_mean(features.draw_sample(book, made, False, bar), made.smoothings, metric)


def test_heads_that_flicker_are_smoothed_more_than_heads_that_do_not() -> None:
    oof = simulate(groups=20, frames=300, heads=("a", "b"), skill=2.0)
    rng = np.random.default_rng(1)
    clean = 2.5 * np.eye(7)[oof.label]
    books = [replace(oof, logits={h: (clean + rng.normal(0, sd, clean.shape)).astype(np.float32) for h in oof.heads})
             for sd in (6, .8)]
    made = features.feature_columns(oof, causal=False)
    smoothed = made.smoothed(features.ClipView.of(books[0], 0), [learn(book).smoothing for book in books])
    of_noisy, of_calm = (np.diff(smoothed.argmax(2), axis=0) != 0).sum(0)
    assert of_noisy < of_calm, "changes of class in the same clip"


def test_a_class_that_every_head_favors_gets_a_lower_bias() -> None:
    oof = simulate(groups=20, frames=300)
    favored = 2 * np.eye(7, dtype=np.float32)[3]
    before, after = learn(oof), learn(replace(oof, logits={h: v + favored for h, v in oof.logits.items()}))
    assert after.bias[3] < before.bias[3] - 1


def test_accuracy_asks_for_no_prior_correction() -> None:
    book = simulate(groups=20, frames=200)
    assert learn(book, "accuracy").balance == 0 < learn(book).balance


def test_a_smoothed_mean_survives_json() -> None:
    found = learn(simulate(groups=6, frames=60))
    assert msgspec.json.decode(msgspec.json.encode(found), type=smoothed_mean.SmoothedMean) == found


def test_a_temperature_is_found_and_is_nested(tmp_path: Path) -> None:
    """Probabilities that are three times too sure are flattened; a fold's labels have no say in its temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1, (6000, 7))
    label = np.array([rng.choice(7, p=p) for p in softmax(logits, axis=-1)])
    sure = softmax(3 * logits, axis=-1).astype(np.float32)
    assert calibration.fit_temperature(sure, label) == pytest.approx(3, rel=.1)
    book = simulate(groups=10, frames=100)
    p = softmax(2 * book.logits["gru"], axis=-1).astype(np.float32)
    before = calibration.temperature_by_fold(book, p)
    held = book.per_row(book.fold) == 2
    other = replace(book, label=np.where(held, (book.label + 1) % 7, book.label).astype(np.int16))
    after = calibration.temperature_by_fold(other, p)
    assert before[2] == after[2] and before[1] != after[1] and before[-1] != after[-1]
    found = stack.run_stack(book, replace(CONFIG, select="gru"), tmp_path)
    said = found.report.splits["train"].calibration.final
    assert said is not None and said.after.ece <= said.before.ece + .01


def test_reliability_is_the_gap_between_sure_and_right() -> None:
    p = np.full((100, 2), .5, np.float32)
    p[:, 0], p[:, 1] = .9, .1
    label = np.r_[np.zeros(60, int), np.ones(40, int)]
    found = calibration.reliability(p, label)
    assert found.ece == pytest.approx(.3, abs=1e-6) and found.bins[0].rows == 100


def test_any_two_columns_are_compared(tmp_path: Path) -> None:
    found = stack.run_stack(simulate(groups=8, frames=60), CONFIG, tmp_path)
    pairs = found.report.splits["train"].paired
    names = list(found.report.columns)
    assert set(pairs) == {f"{a} - {b}" for a in names for b in names if a != b}
    one, other = pairs["stack - gru"], pairs["gru - stack"]
    assert one.difference == -other.difference and one.interval[0] == pytest.approx(-other.interval[1])
    assert one.official.difference == -other.official.difference


def test_every_edition_has_its_metric() -> None:
    for name in metrics.EDITIONS.values():
        metrics.official(name)
    assert metrics.EDITIONS["ABAW2"] == "abaw2" and metrics.EDITIONS["ABAW8"] == "macro_f1"


def test_nothing_is_learnt_from_validation_without_a_refit() -> None:
    book = simulate(groups=8, validation=3, frames=60)
    assert not features.thinned(book)[book.per_row(book.fold) < 0].any()
    assert features.thinned(book, refit=True)[book.per_row(book.fold) < 0].any()
    assert set(nested_cv.run_nested_cv(book, CONFIG).fold_models) == {0, 1, 2, 3, 4, -1}
