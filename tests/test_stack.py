"""The stacker on simulated books, and on real posteriors where they are at hand."""

from __future__ import annotations

import csv
import gzip
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import CLASSES, FPS, predict_new, simulate
from pyarrow import parquet
from rich.console import Console

from fercache.config import StackConfig
from fercache.errors import InputError, StoreError
from fercache.oof import OUT_OF_FOLD, OofLogits, Provenance, assign_folds
from fercache.results.smoothing import nearest_row
from fercache.stacking import candidates, features, inputs, models, run_metrics, stack
from fercache.stacking.features import ClipView

CONFIG = StackConfig(threads=1, bootstrap=200)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> stack.StackResult:
    """A stack run on twenty training groups and ten others."""
    return stack.run_stack(simulate(validation=10), CONFIG, tmp_path_factory.mktemp("stack"))


def scores(found: stack.StackResult, split: str = "train", rows: str = "all_frames") -> dict[str, Any]:
    """Return column -> macro F1."""
    return {name: one.figures["macro_f1"] for name, one in getattr(found.report.splits[split], rows).items()}


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_stack_beats_the_mean_and_every_head(result: stack.StackResult) -> None:
    for split in ("train", "validation"):
        said = scores(result, split)
        assert said["stack"] > max(said[name] for name in ("frame", "gru", "transformer", "mean")) + 0.01


@pytest.mark.parametrize("skill", [0.0, 0.5, 3.0])
def test_the_stack_is_not_below_the_mean_by_more_than_noise(tmp_path: Path, skill: float, full: bool) -> None:
    runs = [scores(stack.run_stack(simulate(groups=10, frames=120, skill=skill, seed=seed), CONFIG, tmp_path))
            for seed in ((1, 2, 3) if full else (1,))]
    lost = np.mean([run["mean"] - run["stack"] for run in runs])
    assert lost < (0.03 if skill else 0.05), "noise itself is wider where nothing is known"


def test_heads_that_know_nothing_give_chance(tmp_path: Path) -> None:
    found = stack.run_stack(simulate(skill=0.0, validation=10), CONFIG, tmp_path)
    assert scores(found)["stack"] < 0.22 and scores(found, "validation")["stack"] < 0.22


def test_every_column_is_scored_on_both_sets_of_rows(result: stack.StackResult) -> None:
    assert list(scores(result)) == ["frame", "gru", "transformer", "mean", "smoothed-mean", "logistic",
                                    "geometric-mean",
                                    "stack"]
    for split in ("train", "validation"):
        everywhere, seen = (getattr(result.report.splits[split], name) for name in ("all_frames", "frames_with_face"))
        assert everywhere["stack"].frames > seen["stack"].frames > 0
        assert everywhere["stack"].intervals["macro_f1"][0] < everywhere["stack"].figures["macro_f1"]
    assert "stack - mean" in result.report.splits["train"].paired


def test_the_report_says_what_went_in(result: stack.StackResult) -> None:
    said = result.report
    best = max(scores(result), key=scores(result).__getitem__)
    assert said.final.column == result.final == best and "out of fold" in said.final.why
    assert said.logits.fingerprint == result.oof.fingerprint and said.fingerprint
    assert said.metric == "macro_f1" and said.notice == "simulated" and "nearest" in said.gap_policy
    assert sum(gain for _, gain in said.importances) == pytest.approx(1, abs=1e-3)
    assert {member.fold for member in said.fold_models} == {-1, 0, 1, 2, 3, 4}


def test_the_table_fits_eighty_columns(result: stack.StackResult) -> None:
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(result)
    text = screen.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for word in ("stack", "logistic", "macro F1", ".67 F1 + .33 acc", "Happin.", f"final: {result.final}", "simulated"):
        assert word in text
    assert "…" not in text


def test_predictions_file(result: stack.StackResult, tmp_path: Path) -> None:
    out, beside = result.save(tmp_path / "preds.csv")
    rows = read(out)
    assert list(rows[0]) == ["clip", "frame", "time_s", "valid", "label", "prediction", *(f"p_{c}" for c in CLASSES)]
    assert beside.name == "preds.metrics.json" and json.loads(beside.read_text())["dataset"] == "simulated"
    assert len(rows) == len(result.oof.label)
    assert [(r["clip"], int(r["frame"])) for r in rows] == sorted((r["clip"], int(r["frame"])) for r in rows)
    for row in rows[::97]:
        shares = [float(row[f"p_{name}"]) for name in CLASSES]
        assert round(sum(shares), 6) == 1 and shares[int(row["prediction"])] == max(shares)
    assert sum(int(row["valid"]) for row in rows) == result.oof.valid.sum()


def test_a_gap_has_what_the_nearest_face_has(result: stack.StackResult) -> None:
    book = result.oof
    for trial in range(len(book.trials)):
        rows = book.rows(trial)
        source = nearest_row(book.time_s[rows], book.valid[rows])
        np.testing.assert_array_equal(result.ppm[rows], result.ppm[rows][source])


def test_endings(result: stack.StackResult, tmp_path: Path) -> None:
    plain, _ = result.save(tmp_path / "a.csv")
    packed, beside = result.save(tmp_path / "b.csv.gz")
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes() and beside.name == "b.metrics.json"
    with pytest.raises(InputError, match=r"\.parquet"):
        result.save(tmp_path / "preds.xlsx")
    assert not (tmp_path / "preds.metrics.json").exists()


def test_parquet_holds_every_row(result: stack.StackResult, tmp_path: Path) -> None:
    out = tmp_path / "preds.parquet"
    result.save(out)
    table = parquet.read_table(out)
    assert table.num_rows == len(result.oof.label) and table.column_names[0] == "clip"


def test_names_that_need_quotes(tmp_path: Path) -> None:
    names = ("b,2", 'a "100%" \\ d', "Ünï 3", "c\nline")
    book = simulate(groups=4, frames=60)
    found = stack.run_stack(replace(book, trials=names,
                                    label=np.where(book.index == 1, -1, book.label).astype(np.int16)),
                      CONFIG, tmp_path)
    rows = read(found.save(tmp_path / "preds.csv")[0])
    assert sorted({row["clip"] for row in rows}) == sorted(names)
    assert all((row["label"] == "") == (row["frame"] == "1") for row in rows)


def test_the_same_bytes_twice_and_with_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ROWS_FOR_THREADS", 0)
    book, texts = simulate(groups=8, validation=2, frames=60), []
    for i, threads in enumerate((1, 1, 2)):
        found = stack.run_stack(book, replace(CONFIG, threads=threads), tmp_path / str(i))
        assert not found.cached
        texts.append([path.read_bytes() for path in found.save(tmp_path / f"{i}.csv")])
    assert texts[0] == texts[1] == texts[2]


def test_a_run_that_was_done_is_not_done_again(tmp_path: Path) -> None:
    book = simulate(groups=6, frames=60)
    first = stack.run_stack(book, CONFIG, tmp_path)
    again = stack.run_stack(book, CONFIG, tmp_path)
    assert again.cached and again.report == first.report
    np.testing.assert_array_equal(first.ppm, again.ppm)
    assert not stack.run_stack(book, replace(CONFIG, seed=1), tmp_path).cached
    other = {head: values + np.float32(0.1) * (values > 0) for head, values in book.logits.items()}
    assert not stack.run_stack(replace(book, logits=other), CONFIG, tmp_path).cached


def test_a_torn_run_is_done_again(tmp_path: Path) -> None:
    book = simulate(groups=6, frames=60)
    first = stack.run_stack(book, CONFIG, tmp_path)
    path = first.folder / "final.npy"
    path.write_bytes(path.read_bytes()[:1000])
    again = stack.run_stack(book, CONFIG, tmp_path)
    assert not again.cached
    np.testing.assert_array_equal(first.ppm, again.ppm)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"splits": 3}', '{"splits": {"train": {"all_frames": {"a": 1}}}}'])
def test_damaged_metrics_name_the_file_and_the_next_step(tmp_path: Path, text: str) -> None:
    first = stack.run_stack(simulate(groups=6, frames=60), CONFIG, tmp_path)
    path = first.folder / "metrics.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        run_metrics.read_metrics(path)
    assert caught.value.where == path and caught.value.hint
    assert not stack.run_stack(simulate(groups=6, frames=60), CONFIG, tmp_path).cached


def test_each_metric_and_each_merged_source_is_a_key_of_its_own_on_disk(tmp_path: Path) -> None:
    own = simulate(groups=8, frames=60)
    source = simulate(groups=8, frames=60, heads=("other",), declared={"other": OUT_OF_FOLD},
                      provenance=Provenance(source="other", level="frame"))
    result = stack.run_stack(inputs.merge_logits(own, [source]), CONFIG, tmp_path)
    written = json.loads((result.folder / "metrics.json").read_text())
    assert written["splits"]["train"]["all_frames"]["mean"]["macro_f1"] >= 0 and "predict" not in written
    assert written["logits"]["provenance"]["logits other"] == {"source": "other", "level": "frame"}
    assert run_metrics.read_metrics(result.folder / "metrics.json") == result.report


@pytest.mark.parametrize(("groups", "chosen"), [(2, False), (3, False), (5, True), (8, True)])
def test_few_groups(tmp_path: Path, groups: int, chosen: bool) -> None:
    found = stack.run_stack(simulate(groups=groups, frames=90), CONFIG, tmp_path)
    if not chosen:
        assert found.final == "mean" and f"{groups} groups" in found.report.final.why
    else:
        assert "out of fold" in found.report.final.why
    one = found.report.splits["train"].all_frames["mean"]
    assert (one.intervals is None) == (groups < 8) and bool(one.why_none) == (groups < 8)


def test_a_stacker_that_loses_is_told(tmp_path: Path) -> None:
    """Heads that know next to nothing: some plainer column is ahead of the trees, by name and figure, on the screen."""
    told = 0
    for seed in range(4):
        found = stack.run_stack(simulate(groups=6, frames=60, skill=0.2, seed=seed), CONFIG, tmp_path)
        said = scores(found)
        ahead = [name for name, score in said.items() if score > said["stack"]]
        assert [line.split(": ")[1].split()[0] for line in found.report.warnings] == ahead
        screen = Console(width=80, file=io.StringIO(), record=True)
        screen.print(found)
        assert screen.export_text().count("the stacker loses") == len(ahead)
        told += len(ahead)
    assert told, "in none of them"


def test_a_final_column_that_was_asked_for(tmp_path: Path) -> None:
    book = simulate(groups=5, frames=60)
    found = stack.run_stack(book, replace(CONFIG, select="gru"), tmp_path)
    assert found.final == "gru"
    with pytest.raises(InputError, match="gives frame, mean"):
        stack.run_stack(simulate(groups=5, frames=60, heads=("frame",)), replace(CONFIG, select="gru"), tmp_path)


def test_no_labels_at_all(tmp_path: Path) -> None:
    book = simulate(groups=5, frames=60)
    with pytest.raises(InputError, match="train-heads"):
        stack.run_stack(replace(book, label=np.full_like(book.label, -1)), CONFIG, tmp_path)


def test_clips_without_a_face_and_folds_without_one(tmp_path: Path) -> None:
    """All labelled frames without a face but in one group: nothing can be learnt, the heads and their mean remain."""
    book = simulate(groups=2, frames=60)
    blind = replace(book, valid=book.valid & (book.per_row(np.arange(2)) == 0))
    found = stack.run_stack(blind, CONFIG, tmp_path)
    assert list(scores(found)) == ["frame", "gru", "transformer", "mean"] and "nothing" in found.report.fold_models
    mean = sum(np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in blind.logits.values()) / 3
    last = blind.rows(1)
    np.testing.assert_allclose(found.ppm[last] / 1e6, mean[last], atol=2e-6)


def test_one_class_and_two_classes_among_the_labels(tmp_path: Path) -> None:
    book = simulate(groups=5, frames=60)
    for keep in ((0,), (0, 4)):
        label = np.where(np.isin(book.label, keep), book.label, -1).astype(np.int16)
        found = stack.run_stack(replace(book, label=label), CONFIG, tmp_path)
        assert np.all(found.ppm.sum(1) == 1_000_000)


def test_clips_of_one_frame_and_of_none(tmp_path: Path) -> None:
    book = simulate(groups=6, frames=60)
    rows = np.r_[0:1, int(book.offsets[1]):len(book.label)]
    cut = {name: getattr(book, name)[rows] for name in ("index", "time_s", "valid", "label")}
    offsets = np.r_[0, 1, 1 + np.cumsum(np.diff(book.offsets)[1:]), len(rows)]
    one = {name: (*getattr(book, name), last) for name, last in (("trials", "z"), ("group", "z"), ("split", "test"))}
    found = stack.run_stack(replace(book, **cut, **one, offsets=offsets, fold=np.append(book.fold, -1).astype(np.int16),
                              logits={head: values[rows] for head, values in book.logits.items()}), CONFIG, tmp_path)
    assert found.ppm.shape == (len(rows), 7)


def test_a_run_of_another_version_is_refused_with_the_next_step(tmp_path: Path) -> None:
    oof = simulate(groups=2, frames=60)
    found = stack.run_stack(oof, CONFIG, tmp_path)
    path = found.folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": stack.FORMAT - 1}))
    with pytest.raises(StoreError, match="fercache stack"):
        predict_new(found.folder, oof)


def test_new_clips_are_spoken_of_as_the_run_would(result: stack.StackResult) -> None:
    book = result.oof
    new = replace(book, fold=np.full_like(book.fold, -1), label=np.full_like(book.label, -1))
    said = predict_new(result.folder, new)
    held_out = book.per_row(np.array(book.split)) == "validation"
    assert np.abs(said[held_out] - result.ppm[held_out]).max() <= 2
    (result.folder / "trees-all.txt").rename(result.folder / "gone")
    try:
        with pytest.raises(StoreError, match="fercache stack"):
            predict_new(result.folder, new)
    finally:
        (result.folder / "gone").rename(result.folder / "trees-all.txt")


def test_features_are_named_and_few() -> None:
    book = simulate(groups=2, frames=60)
    view, made = ClipView.of(book, 0), features.feature_columns(book, causal=False)
    x = made.build(view)
    assert x.shape[1] == len(made.names) == len(set(made.names)) <= features.MOST_COLUMNS
    assert np.isfinite(x).all()
    said = features.log_softmax(book.logits["gru"][book.rows(0)][view.counts])
    first = made.names.index("gru:now:Neutral")
    np.testing.assert_allclose(x[:, first:first + 7], said, atol=1e-5)
    words = " ".join(made.names)
    for word in ("mean 15 s", "spread 1.5 s", "most 5 s", "before", "after", "ago", "slope", "disagreement", "entropy",
                 "seen", "face before", "face after", "clip"):
        assert word in words


def test_views_of_many_clips_equal_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "ROWS_AT_ONCE", 100)
    book = simulate(groups=4, frames=60)
    views = list(ClipView.each(book, [3, 0, 2]))
    assert list(ClipView.each(book, [])) == []
    for trial, view in zip([3, 0, 2], views, strict=True):
        alone = ClipView.of(book, trial)
        assert (view.log_probs == alone.log_probs).all() and (view.posteriors == alone.posteriors).all()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3, 8, 20])
def test_any_number_of_heads_gives_few_features(heads: int, causal: bool) -> None:
    names = tuple(f"h{i}" for i in range(heads))
    book = simulate(groups=2, frames=60, heads=names, classes=(*CLASSES, "Other"),
                    logits={h: np.zeros((simulate(groups=2, frames=60).label.size, 8), np.float32) for h in names})
    made = features.feature_columns(book, causal)
    assert made.build(ClipView.of(book, 0, causal)).shape[1] == len(made.names) <= 160
    smoothed = made.smoothed(ClipView.of(book, 0, causal), made.smoothings)
    assert smoothed.shape[1:] == (len(made.smoothings), 8)


def test_rows_are_thinned_in_time() -> None:
    book = simulate(groups=3, frames=300)
    kept = features.thinned(book)
    assert (book.label[kept] >= 0).all() and book.valid[kept].all()
    assert 0.8 * len(kept) / (features.STEP_S * FPS) < kept.sum() <= len(kept) / (features.STEP_S * FPS) + 6


def test_large_books_are_thinned_to_a_stated_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "MOST", 100)
    kept = features.thinned(simulate(groups=3, frames=300))
    assert 50 < kept.sum() <= 100


def test_leaves_grow_with_the_rows_of_a_case() -> None:
    few, many = (features.TrainingSample(rows=np.arange(n), x=np.zeros((n, 1), np.float32),
                               smoothed=np.zeros((n, 1, 2), np.float32), label=np.zeros(n, int),
                               fold=np.zeros(n, int), group=np.zeros(n, int), block_id=np.arange(n) % 10, classes=2)
                 for n in (100, 1000))
    small, large = (models._settings(one, StackConfig(threads=1))["min_data_in_leaf"] for one in (few, many))
    assert (small, large) == (20, 200)


def test_millionths_sum_to_a_million() -> None:
    p = np.random.default_rng(0).dirichlet([0.1] * 7, 1000).astype(np.float32)
    units = candidates.to_ppm(p)
    assert (units.sum(1) == 1_000_000).all() and (units >= 0).all()
    np.testing.assert_allclose(units / 1e6, p, atol=1.1e-6)


def real_posteriors(path: Path) -> OofLogits:
    """Return the real per-frame posteriors as a book: a trial a person of a clip, a group a clip."""
    people: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for row in read(path):
        people.setdefault((row["split"], row["clip"], row["person"]), []).append(row)
    keys = sorted(people, key=lambda key: key[1:])
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for key in keys:
        frame = np.array([int(row["frame"]) for row in people[key]])
        seen = np.zeros(frame.max() - frame.min() + 1, bool)
        seen[frame - frame.min()] = True
        logits = np.zeros((len(seen), 7), np.float32)
        logits[frame - frame.min()] = np.log(np.maximum(
            [[float(row[f"p_{name}"]) for name in CLASSES] for row in people[key]], 1e-7))
        parts.append((np.arange(frame.min(), frame.max() + 1), seen, logits))
    label = [int(people[key][0]["label"]) for key in keys]
    lengths = np.array([len(seen) for _, seen, _ in parts])
    train = np.array([key[0] == "train" for key in keys])
    group = tuple(key[1] for key in keys)
    counts = np.eye(7, dtype=np.int64)[label] * (lengths * train)[:, None]
    index = np.concatenate([i for i, _, _ in parts]).astype(np.int32)
    return OofLogits(dataset="afew", classes=CLASSES, metric="macro_f1", notice="", heads=("video",),
                     trials=tuple(f"{clip}#{who}" for _, clip, who in keys), group=group,
                     split=tuple("train" if t else "validation" for t in train),
                     fold=np.where(train, assign_folds(group, counts, 5, 0), -1).astype(np.int16),
                     offsets=np.concatenate([[0], np.cumsum(lengths)]), index=index,
                     time_s=np.concatenate([(i - i[0]) / 25 for i, _, _ in parts]),
                     valid=np.concatenate([v for _, v, _ in parts]), label=np.repeat(label, lengths).astype(np.int16),
                     logits={"video": np.concatenate([x for _, _, x in parts])},
                     provenance=Provenance(), fingerprint="real")


def test_real_posteriors(shared: Path, tmp_path: Path) -> None:
    """Film clips, gaps, several people, 390 groups: what is learnt holds on clips that nothing has seen."""
    path = shared / "data" / "afew_posteriors" / "frames.csv"
    if not path.is_file():
        pytest.skip("no afew_posteriors in ../shared")
    found = stack.run_stack(real_posteriors(path), CONFIG, tmp_path)
    for split in ("train", "validation"):
        said = found.report.splits[split]
        assert said.all_frames["stack"].figures["macro_f1"] > said.all_frames["mean"].figures["macro_f1"] + 0.02
        assert said.paired[f"{found.final} - mean"].interval[0] > 0
