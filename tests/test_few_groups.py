"""Few groups: no candidate wins by betting against its heads, what does is refused, and real experts still win."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from few_groups import HEADS, LABELS, SETTINGS, draw, train_heads
from forked import Runner
from scipy.optimize import Bounds
from scipy.special import softmax
from videos import first_frames

from fercache import metrics
from fercache.config import AuditConfig, StackConfig
from fercache.diagnostics import audit
from fercache.oof import OofLogits
from fercache.stacking import candidates, features, models, nested_cv, stack

CONFIG = StackConfig(threads=1, bootstrap=0)


def final_and_scores(oof: OofLogits) -> tuple[str, dict[str, float], dict[str, str], np.ndarray]:
    """Return the final candidate, all scores, the rejected candidates, and the final one's predictions."""
    nested = nested_cv.run_nested_cv(oof, CONFIG)
    columns = candidates.gather_candidates(oof, nested)
    rejected = candidates.find_contradictions(oof, nested, columns, "macro_f1")
    final = candidates.choose_final(oof, columns, "auto", "macro_f1", rejected).column
    return final, candidates.score_out_of_fold(oof, columns, "macro_f1"), rejected, columns[final].argmax(1)


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `logistic` bet against its heads, as it did before its weights had bounds."""
    monkeypatch.setattr(models, "Bounds", lambda low, high: Bounds(np.full_like(low, -np.inf),
                                                                   np.full_like(high, np.inf)))


@pytest.mark.parametrize("groups", [6, 8, 12, 16])
def test_no_final_candidate_is_far_above_its_heads(groups: int, full: bool) -> None:
    """50 random labelings, each of another kind than the one before; 50 of each kind with --full."""
    for number in range(50 * (len(SETTINGS) if full else 1)):
        seed, setting = number if not full else number // len(SETTINGS), SETTINGS[number % len(SETTINGS)]
        final, scores, _, _ = final_and_scores(draw(groups, seed=seed, frames=6, **setting))
        assert scores[final] <= max(scores[head] for head in HEADS) + 0.25, (seed, setting, final, scores)


@pytest.mark.parametrize(("groups", "seed", "pull"), [(6, 19, 1.0), (8, 27, 0.0)])
def test_nothing_learned_is_final_where_heads_are_at_chance(groups: int, seed: int, pull: float) -> None:
    """In these draws `logistic` has the best score by .5 and .28, and nothing else is wrong with it."""
    oof = draw(groups, seed=seed, frames=6, pull=pull)
    columns = candidates.gather_candidates(oof, nested_cv.run_nested_cv(oof, CONFIG))
    scores = candidates.score_out_of_fold(oof, columns, "macro_f1")
    assert scores["logistic"] > max(scores[head] for head in HEADS) + 0.25
    chosen = candidates.choose_final(oof, columns, "auto", "macro_f1")
    assert chosen.column not in nested_cv.LEARNED
    assert "chance" in chosen.why and f"{candidates.chance_p_value(oof):.3f}" in chosen.why


def test_heads_that_are_hardly_above_chance_leave_only_heads_and_mean() -> None:
    """One of these heads has .475, `stack` .709: p is .04, as for a few of a hundred draws of noise."""
    oof = draw(16, seed=1085, frames=6, balanced=False)
    assert 0.01 < candidates.chance_p_value(oof) < 0.05
    final, scores, _, _ = final_and_scores(oof)
    assert final not in nested_cv.LEARNED and scores[final] < scores["stack"] - 0.2


def test_a_mean_that_new_clips_repeat_less_often_than_any_head_is_not_final() -> None:
    """Of heads at chance the mean has the best score, .57, but predictions of new clips repeat .69 of it."""
    oof = draw(8, seed=1046, frames=6, **SETTINGS[46 % len(SETTINGS)])
    final, scores, _, _ = final_and_scores(oof)
    assert max((*HEADS, "mean"), key=lambda name: scores[name]) == "mean"
    assert final == max(HEADS, key=lambda name: scores[name])


def test_of_candidates_with_equal_scores_the_likelier_one_is_final() -> None:
    oof = draw(8, seed=0, skill=2.0)
    columns = {"frame": softmax(oof.logits["gru"] / 4, axis=1), "gru": softmax(oof.logits["gru"], axis=1)}
    assert candidates.choose_final(oof, columns, "auto", "macro_f1").column == "gru"


def test_heads_that_know_the_labels_are_above_chance_and_others_are_not() -> None:
    assert candidates.chance_p_value(draw(12, seed=0, skill=1.0)) < 0.02
    assert candidates.chance_p_value(draw(12, seed=0, pull=1.0)) > 0.05
    p = [candidates.chance_p_value(draw(10, seed=seed, pull=0.0, labels="half")) for seed in range(40)]
    assert np.mean(np.array(p) < 0.05) < 0.2 and 0.3 < np.mean(p) < 0.7, "uniform under the hypothesis"


def test_a_candidate_that_bets_against_its_heads_is_refused_and_named(unbounded: None, tmp_path: Path) -> None:
    oof = draw(6, seed=0)
    result = stack.run_stack(oof, CONFIG, tmp_path)
    scores = {name: one.figures["macro_f1"] for name, one in result.report.splits["train"].all_frames.items()}
    assert scores["logistic"] > max(scores[head] for head in HEADS) + 0.25, "the effect itself"
    assert result.final != "logistic" and "logistic" in result.report.rejected
    assert any(flag.startswith("logistic: ") for flag in result.report.flags)


def test_a_candidate_that_new_clips_will_not_repeat_is_refused() -> None:
    """Predicted as new clips are, the training rows of this draw have .25 macro F1, and .65 out of fold."""
    final, _, rejected, _ = final_and_scores(draw(6, seed=0, pull=0.0))
    assert {"smoothed-mean", "stack"} <= rejected.keys() and rejected["stack"].startswith("new clips")
    assert final not in rejected


def test_audit_fails_where_the_best_score_is_a_bet_against_the_heads(unbounded: None) -> None:
    found = audit.check_contradictions(draw(6, seed=0), AuditConfig(threads=1))
    assert found.is_error and any(line.startswith("logistic") for line in found.details)


@pytest.mark.parametrize(("groups", "kind"), [
    (6, {}), (16, {}), (16, {"pull": 0.0, "noise": 1.0}), (12, {"skill": 1.0, "noise": 0.5}),
    (8, {"classes": 6, "frames": 30, "labels": "free", "skill": 2.5, "noise": 1.0, "experts": True})])
def test_audit_passes_on_sound_logits(groups: int, kind: dict[str, Any]) -> None:
    assert not audit.check_contradictions(draw(groups, seed=0, **kind), AuditConfig(threads=1)).is_error


@pytest.mark.parametrize("groups", [6, 10, 16])
@pytest.mark.parametrize("labels", LABELS)
def test_noise_scores_at_chance(groups: int, labels: str, full: bool) -> None:
    """The final score, in the mean over draws, is within the interval of chance of a draw: labels permuted by group."""
    finals, lows, highs = [], [], []
    for seed in range(40 if full else 5):
        oof = draw(groups, seed=seed, frames=6, labels=labels, pull=seed % 2, noise=1.0)
        final, scores, _, predicted = final_and_scores(oof)
        chance = [float(metrics.macro_f1(metrics.confusion(label, predicted, 2)))
                  for label in metrics.permute_by_group(oof.label, oof.per_row(np.arange(groups)), 200, seed)]
        finals.append(scores[final])
        lows.append(np.quantile(chance, 0.025))
        highs.append(np.quantile(chance, 0.975))
    assert np.mean(lows) <= np.mean(finals) <= np.mean(highs)


@pytest.mark.parametrize("groups", [8, 16, 28])
def test_experts_of_different_classes_are_still_combined(groups: int, full: bool) -> None:
    wins, draws = 0, 20 if full else 2
    for seed in range(draws):
        oof = draw(groups, seed=seed, classes=6, frames=30, labels="free", pull=0.3, skill=2.5, noise=1.0,
                   experts=True)
        final, scores, _, _ = final_and_scores(oof)
        simple = max(scores[name] for name in (*HEADS, "mean"))
        wins += final in nested_cv.LEARNED and scores[final] > simple + 0.02
    assert wins >= draws / 2


@pytest.mark.parametrize("groups", [8, 16, 28])
def test_trained_experts_are_combined_and_new_clips_repeat_the_final_predictions(groups: int, full: bool) -> None:
    """The final candidate's predictions are repeated at least as often as those of the worst head."""
    wins, draws = 0, 20 if full else 1
    for seed in range(draws):
        base = draw(groups, seed=seed, classes=6, frames=30, labels="free", experts=True)
        oof, new = train_heads(base, seed=seed, skill=2.5, experts=True)
        nested = nested_cv.run_nested_cv(oof, CONFIG)
        columns = candidates.gather_candidates(oof, nested)
        rejected = candidates.find_contradictions(oof, nested, columns, "macro_f1")
        final = candidates.choose_final(oof, columns, "auto", "macro_f1", rejected).column
        wins += final in nested_cv.LEARNED
        again = nested_cv.predict_new(new, nested.fold_models[nested_cv.ALL], causal=False)
        repeated = {name: float((values.argmax(1) == columns[name].argmax(1)).mean())
                    for name, values in candidates.gather_candidates(new, again).items()}
        assert repeated[final] >= min(repeated[head] for head in HEADS), (seed, repeated)
    assert wins >= draws / 2


def test_a_higher_level_of_a_head_never_lowers_its_class() -> None:
    oof = draw(6, seed=1)
    fold_model = nested_cv.run_nested_cv(oof, CONFIG).fold_models[-1]
    columns = features.feature_columns(oof, causal=False)
    for head in (*HEADS, "all"):
        for c, name in enumerate(oof.classes):
            own = [i for i, one in enumerate(columns.names)
                   if one.startswith(f"{head}:") and one.endswith(f":{name}") and columns.class_of[i] == c]
            effect = (fold_model.linear.weights[:, own] / fold_model.linear.scale[own]).sum(1)
            assert effect[c] >= -1e-9 and np.delete(effect, c).max() <= 1e-9


def test_the_models_of_all_folds_have_bounds_or_none_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold's model learns from fewer groups than that of all folds: the number of all groups decides."""
    groups, fit = [], models.fit_linear
    monkeypatch.setattr(models, "fit_linear", lambda *given: groups.append(given[-1]) or fit(*given))
    nested_cv.run_nested_cv(draw(8, seed=0, frames=6), CONFIG)
    assert groups == [8] * 6


def test_with_many_groups_the_stack_is_a_geometric_mean_with_logistic(monkeypatch: pytest.MonkeyPatch) -> None:
    oof = draw(8, seed=0, frames=6, skill=1.0)
    trees = nested_cv.run_nested_cv(oof, CONFIG).columns["stack"]
    monkeypatch.setattr(models, "MANY_GROUPS", 8)
    many = nested_cv.run_nested_cv(oof, CONFIG).columns
    both = np.sqrt(trees * many["logistic"])
    np.testing.assert_allclose(many["stack"], both / both.sum(1, keepdims=True), rtol=1e-4)


def test_a_subset_has_the_rows_of_its_trials() -> None:
    oof = replace(draw(5, seed=0), clip=("a", "b", "c", "d", "e"))
    part = oof.subset(np.array([1, 3]))
    assert part.trials == ("g001", "g003") and part.clips == ("b", "d")
    np.testing.assert_array_equal(part.logits["gru"], oof.logits["gru"].reshape(5, -1, 2)[[1, 3]].reshape(-1, 2))
    np.testing.assert_array_equal(part.label[part.rows(1)], oof.label[oof.rows(3)])


def write_labeling(folder: Path, clips: list[Path], seed: int) -> list[str]:
    """Write a random labeling of clips and return the flags that name it; every third one changes within each clip."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(len(clips)) % 2) if seed % 3 else rng.permutation(np.arange(len(clips)) % 3 > 0)
    rows = [f"{path.stem},{path},{('happy', 'sad')[int(one)]}" for path, one in zip(clips, label, strict=True)]
    flags = ["--dataset", "table", "--name", "labelings", "--clips", str(folder / "clips.csv")]
    if seed % 3 != 2:
        (folder / "clips.csv").write_text("\n".join(["clip,path,label", *rows]) + "\n")
        return flags
    (folder / "clips.csv").write_text("\n".join(["clip,path", *(row.rpartition(",")[0] for row in rows)]) + "\n")
    frames = [f"{path.stem},{frame},{('happy', 'sad')[int(one) ^ (frame > 30)]}"
              for path, one in zip(clips, label, strict=True) for frame in range(1, 49)]
    (folder / "labels.csv").write_text("\n".join(["clip,frame,label", *frames]) + "\n")
    return [*flags, "--labels", str(folder / "labels.csv")]


def read_labels(path: Path) -> dict[tuple[str, str], str]:
    """Return (clip, frame) -> predicted class of the predictions at `path`."""
    with path.open(newline="") as file:
        return {(row["clip"], row["frame"]): row["prediction"] for row in csv.DictReader(file)}


@pytest.mark.slow("trains real heads for ten labelings of six real clips and two of twelve")
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("source", "clips", "draws"), [("cases/six/videos", 6, 10), ("videos", 12, 2)])
def test_real_labelings_through_all_stages(source: str, clips: int, draws: int, linked: Path, shared: Path,
                                           runner: Runner) -> None:
    """No candidate wins from nowhere; new clips are predicted as out of fold at least as often as by the heads."""
    videos = [path for path in (shared / "data" / source).iterdir() if path.stem != "no_face"]
    videos = sorted(sorted(videos, key=lambda path: path.stat().st_size)[:clips])
    (linked / source.replace("/", "-")).mkdir()
    # Groups count here, not frames: all frames of twelve clips would take three times as long.
    videos = [first_frames(linked / source.replace("/", "-") / path.name, path, 96) for path in videos]
    for seed in range(1, draws + 1):  # seed 0 draws the labels of seed 9, and equal labels are not trained again
        home = linked / f"{clips}-{seed}"
        flags = write_labeling(home, videos, seed)
        for words in (["extract"], ["train-heads"], ["stack", "--bootstrap", "0", "--out", home / "preds.csv"],
                      ["predict", "--no-timelines", "--out", home / "new"]):
            done = runner.typed("--cache", linked / "cache", "--stages", home, *words, *flags, cwd=home,
                                timeout_s=3600)  # twelve clips take 5 minutes of one core
            assert done.returncode == 0, done.stderr
        report = json.loads((home / "preds.metrics.json").read_text())
        scores = {name: one["macro_f1"] for name, one in report["splits"]["train"]["all_frames"].items()}
        final = report["final"]["column"]
        best = max(scores[head] for head in HEADS)
        oof_pred, new_pred = read_labels(home / "preds.csv"), read_labels(home / "new" / "preds.csv")
        agrees = np.mean([new_pred[key] == one for key, one in oof_pred.items()])
        # The two newest files: those of `train-heads`, and those of `predict`.
        trained, new = (OofLogits.load(path) for path in sorted((linked / "cache/logits/labelings").glob("*.h5"),
                                                                key=lambda path: path.stat().st_mtime)[-2:])
        heads_agree = [np.mean(trained.logits[head].argmax(1) == new.logits[head].argmax(1)) for head in HEADS]
        print(f"{clips} clips, labeling {seed}: best head {best:.3f}, final {final} {scores[final]:.3f}, highest score "
              f"{max(scores.values()):.3f}, predict agrees {agrees:.3f}, heads {min(heads_agree):.3f}")
        assert scores[final] <= best + 0.25, (seed, scores)
        assert agrees >= min(heads_agree), seed
