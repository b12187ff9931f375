"""Few groups: no candidate wins by betting against its heads, what does is refused, and real experts still win."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from few_groups import HEADS, LABELS, draw
from scipy.optimize import Bounds

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
    final = candidates.choose_final(oof, columns, "auto", "macro_f1", rejected).name
    return final, candidates.score_out_of_fold(oof, columns, "macro_f1"), rejected, columns[final].argmax(1)


@pytest.fixture
def unbounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `logistic` bet against its heads, as it did before its weights had bounds."""
    monkeypatch.setattr(models, "Bounds", lambda low, high: Bounds(np.full_like(low, -np.inf),
                                                                   np.full_like(high, np.inf)))


@pytest.mark.parametrize("groups", [6, 8, 12, 16])
def test_no_final_candidate_is_far_above_its_heads(groups: int, full: bool) -> None:
    for seed in range(50 if full else 2):
        oof = draw(groups, seed=seed, frames=6, labels=LABELS[0 if seed % 2 == 0 else 1 + seed // 2 % 2])
        final, scores, _, _ = final_and_scores(oof)
        assert scores[final] <= max(scores[head] for head in HEADS) + 0.25, (seed, final, scores)


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


def test_audit_passes_with_bounds() -> None:
    assert not audit.check_contradictions(draw(6, seed=0), AuditConfig(threads=1)).is_error


def test_noise_scores_at_chance(full: bool) -> None:
    """The final score, in the mean over draws, is within its interval of chance: labels permuted by group."""
    finals, lows, highs = [], [], []
    for seed in range(20 if full else 3):
        oof = draw(10, seed=seed, frames=6, pull=0.0, noise=1.0)
        final, scores, _, predicted = final_and_scores(oof)
        rng, label = np.random.default_rng(seed), oof.label.reshape(10, -1)
        chance = [float(metrics.macro_f1(metrics.confusion(label[rng.permutation(10)].ravel(), predicted, 2)))
                  for _ in range(200)]
        finals.append(scores[final])
        lows.append(np.quantile(chance, 0.025))
        highs.append(np.quantile(chance, 0.975))
    assert np.mean(lows) <= np.mean(finals) <= np.mean(highs)


@pytest.mark.parametrize("groups", [8, 16, 28])
def test_experts_of_different_classes_are_still_combined(groups: int, full: bool) -> None:
    wins, draws = 0, 20 if full else 1
    for seed in range(draws):
        oof = draw(groups, seed=seed, classes=6, frames=30, labels="free", pull=0.3, skill=2.5, noise=1.0,
                   experts=True)
        final, scores, _, _ = final_and_scores(oof)
        wins += final in nested_cv.LEARNED and scores[final] > max(scores[head] for head in HEADS) + 0.02
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


def test_a_subset_has_the_rows_of_its_trials() -> None:
    oof = replace(draw(5, seed=0), clip=("a", "b", "c", "d", "e"))
    part = oof.subset(np.array([1, 3]))
    assert part.trials == ("g001", "g003") and part.clips == ("b", "d")
    np.testing.assert_array_equal(part.logits["gru"], oof.logits["gru"].reshape(5, -1, 2)[[1, 3]].reshape(-1, 2))
    np.testing.assert_array_equal(part.label[part.rows(1)], oof.label[oof.rows(3)])
