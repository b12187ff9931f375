"""The page's numbers are those that were recorded; what is thinned loses no peak; what is missing is said."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from books import simulate
from finished import ODD, finish
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache import metrics
from fercache.errors import InputError
from fercache.results import io
from fercache.results.io import ClipPredictions
from fercache.stacking import candidates, run_metrics
from fercache.viz import report
from fercache.viz.report.collect import (
    BYTES_FIXED,
    STEPS,
    UNKNOWN,
    WIDTHS_S,
    SmoothingCurve,
    collect_report_data,
    points,
    thin_series,
)


@pytest.fixture(scope="module")
def preds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of a finished run."""
    return finish(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="module")
def page(preds: Path) -> str:
    """Its page."""
    report.make_report(preds, preds.parent / "report.html", preds.parent / "cache")
    return (preds.parent / "report.html").read_text(encoding="utf-8")


def data_of(page: str) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def book_of(preds: Path) -> Path:
    return next((preds.parent / "cache/logits").rglob("*.h5"))


def told_of(seed: int, frames: int, classes: int = 4) -> ClipPredictions:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(classes, .3), frames)
    return ClipPredictions(name="clip", frame=np.arange(1, frames + 1), time_s=np.arange(frames) / 30,
                           valid=rng.random(frames) > .1, label=rng.integers(-1, classes, frames),
                           label_pred=shares.argmax(1), probs=shares)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 700), st.integers(1, 90))
def test_thinning_keeps_every_peak_every_mistake_and_every_gap(seed: int, frames: int, most: int) -> None:
    rows = told_of(seed, frames)
    drawn = thin_series(rows, {"gru": rows.label}, most)
    border = np.linspace(0, frames, min(frames, most) + 1).astype(int)
    assert len(drawn.wrong) == min(frames, most) and drawn.whole == (frames <= most)
    for i, (a, b) in enumerate(pairwise(border)):
        assert (drawn.high[i] == np.rint(rows.probs[a:b].max(0) * STEPS)).all()
        assert (drawn.low[i] == np.rint(rows.probs[a:b].min(0) * STEPS)).all()
        assert (drawn.wrong[i] > 0) == rows.wrong[a:b].any() and (drawn.gap[i] > 0) == (~rows.valid[a:b]).any()
        counts = np.bincount(np.where(rows.label[a:b] < 0, 4, rows.label[a:b]), minlength=5)
        said = drawn.strips["gru"][i]
        assert counts[4 if said == UNKNOWN else said] == counts.max()
    assert drawn.time_s[0] == 0 and drawn.time_s[-1] > rows.time_s[-1]


def test_what_is_packed_can_be_unpacked() -> None:
    rows = told_of(1, 500)
    drawn = thin_series(rows, {}, 100)
    raw = base64.b64decode(drawn.packed())
    assert len(raw) == 100 * (BYTES_FIXED + 2 * 4 + 2) + 4
    assert np.array_equal(np.frombuffer(raw[:404], "<f4"), drawn.time_s)
    assert np.array_equal(np.frombuffer(raw[404:804], np.uint8).reshape(100, 4), drawn.low)


@given(st.lists(st.integers(1, 50_000), min_size=1, max_size=200), st.integers(10, 40), st.integers(10_000, 10**7))
def test_points_fit_the_budget(lengths: list[int], each: int, budget: int) -> None:
    most = points(lengths, each, budget, 4000, 24)
    used = sum(min(n, most) for n in lengths) * each * 4 / 3
    assert most == 24 or used <= budget
    assert most == 4000 or sum(min(n, most + 1) for n in lengths) * each * 4 / 3 > budget


def test_the_report_counts_what_stack_counted(preds: Path) -> None:
    said = json.loads((preds.parent / "preds.metrics.json").read_text())
    found = collect_report_data(preds, book_of(preds))
    assert set(found.matrix) == set(said["splits"]) == {"train", "validation"}
    for split, matrix in found.matrix.items():
        scores = said["splits"][split]["all_frames"][said["final"]["column"]]
        assert float(metrics.macro_f1(matrix)) == pytest.approx(scores["macro_f1"], abs=1e-12)
        assert float(metrics.accuracy(matrix)) == pytest.approx(scores["accuracy"], abs=1e-12)
        assert int(found.bins[split][0].sum()) == scores["frames"]
        assert found.bins[split][2].sum() / scores["frames"] == pytest.approx(scores["accuracy"])
    wrong = [clip.wrong / clip.labelled for clip in found.clips]
    assert wrong == sorted(wrong, reverse=True)


def test_the_confident_mistakes_are_mistakes_and_the_surest(preds: Path) -> None:
    found = collect_report_data(preds, book_of(preds))
    clips = {clip.name: clip for clip in io.PredictionsFile(preds).clips()}
    shares = [mistake.prob for mistake in found.mistakes]
    assert shares and shares == sorted(shares, reverse=True)
    for mistake in found.mistakes:
        rows = clips[mistake.clip]
        inside = (rows.time_s >= mistake.start_s) & (rows.time_s <= mistake.end_s)
        assert (rows.label[inside] == mistake.truth).all() and (rows.label_pred[inside] == mistake.label_pred).all()
        assert mistake.truth != mistake.label_pred and mistake.frames == inside.sum() >= 5


def test_the_curve_without_smoothing_is_the_plain_mean_and_smoothing_helps() -> None:
    book = simulate(groups=6, frames=400)
    curve = SmoothingCurve(book.classes, "macro_f1")
    said = []
    for i in range(len(book.trials)):
        rows = book.rows(i)
        logits = {head: values[rows] for head, values in book.logits.items()}
        curve.add(replace(book, valid=np.ones_like(book.valid)), i)
        p = [values - np.log(np.exp(values).sum(1, keepdims=True)) for values in logits.values()]
        said.append(np.mean(p, axis=0).argmax(1))
    plain = metrics.confusion(book.label, np.concatenate(said), 7)
    scores = curve.scores()
    assert scores[0] == pytest.approx(float(metrics.macro_f1(plain)), abs=1e-9)
    assert scores.max() > scores[0] + .02 and WIDTHS_S[int(scores.argmax())] in (.25, .5, 1.0)


def test_clips_out_of_fold_only_are_in_the_curve(preds: Path) -> None:
    said = json.loads((preds.parent / "preds.metrics.json").read_text())
    found = collect_report_data(preds, book_of(preds))
    assert found.curve is not None
    frames = said["splits"]["train"]["all_frames"]["mean"]["frames"]
    assert int(found.curve.counts[0].sum()) == frames, "validation frames choose nothing and are not shown here"


def test_numbers_in_the_page_are_those_of_the_metrics_file(preds: Path, page: str) -> None:
    said = json.loads((preds.parent / "preds.metrics.json").read_text())
    for split, scores in said["splits"].items():
        table = re.search(rf'<table id="table-scores-{split}">.*?</table>', page, re.S)
        assert table is not None
        values = sorted(float(v) for v in re.findall(r'data-value="([^"]+)"', table[0]))
        wanted = [one[name] for one in scores["all_frames"].values()
                  for name in ("macro_f1", "accuracy", "uar", "abaw2", "frames", "groups")]
        assert values == sorted(map(float, wanted))


def test_every_figure_has_named_axes_and_a_sentence(page: str) -> None:
    figures = data_of(page)["figures"]
    assert len(figures) >= 8
    for name, one in figures.items():
        titles = [one["layout"][axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
        assert all(titles), name
        found = re.search(rf'data-figure="{name}".*?</div>\s*<figcaption>(.*?)</figcaption>', page, re.S)
        assert found is not None and len(found[1]) > 60, name


def test_odd_names_are_text(page: str) -> None:
    assert "<script>alert" not in page and "<b>bold" not in page
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)
    assert data is not None and "alert(1)" in data[1]
    assert not {*"<>&"} & {*data[1]}, "no name can end the element, or begin another"
    assert set(ODD) <= {clip["name"] for clip in data_of(page)["clips"]}


def test_the_page_names_no_address_that_it_would_load(page: str) -> None:
    ours = re.sub(r"<script>/\*\*\s*\* plotly.*?</script>", "", page, flags=re.S)
    assert len(ours) < len(page) - 4_000_000, "the plotting library was cut out"
    assert not re.search(r"(src|href|url\()\s*=?\s*[\"']?(https?:)?//", ours)
    assert "default-src 'none'" in ours


def test_time_and_versions_are_those_that_were_noted(page: str) -> None:
    table = re.search(r'<table id="table-times">.*?</table>', page, re.S)
    assert table is not None and "50.5" in table[0] and "57" not in table[0], "the runs of this store, and no other"
    assert "cpu, x" in page and "torch 2" in page


def test_without_metrics_book_and_store_the_page_says_how_to_get_them(preds: Path, tmp_path: Path) -> None:
    shutil.copy(preds, tmp_path / "alone.csv")
    made = report.make_report(tmp_path / "alone.csv", tmp_path / "r.html", tmp_path / "cache")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    for words in ("no metrics beside", "logits behind these predictions are not", "fercache check --json",
                  "No ablation was given", "no picture of a face"):
        assert words in page, words
    assert not made.pictures and set(data_of(page)["clips"][0]["strips"]) == {"truth", "prediction"}


def test_check_and_ablation_are_shown_when_given(preds: Path, tmp_path: Path) -> None:
    (tmp_path / "check.json").write_text(json.dumps({"clips": [{"name": "x"}] * 9, "issues": [
        {"kind": "short", "details": ["<i>a</i>", *"bcdefghi"], "message": "too short", "severity": "error"}]}))
    (tmp_path / "ablation.csv").write_text("row,column,macro_f1,low,high,difference,difference_low,difference_high\n"
                                           "all,stack,0.5125,.4,.6,,,\nno gru,stack,0.4,.3,.5,-0.1125,-.2,.1\n"
                                           "no gru,mean,0.3,.2,.4,-0.05,,\n")
    report.make_report(preds, tmp_path / "r.html", preds.parent / "cache", check=tmp_path / "check.json",
                ablation=tmp_path / "ablation.csv")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "&lt;i&gt;a&lt;/i&gt;" in page and "too short" in page and "and 3 more" in page and "0.5125" in page
    figure = data_of(page)["figures"]["ablation-differences"]["data"][0]
    assert figure["y"] == ["no gru"] and figure["x"] == [-.1125]
    assert figure["error_x"]["array"] == pytest.approx([.2125])
    row = {"name": "no gru", "skipped": "", "figures": {"stack": {"macro_f1": .4, "difference": -.1125,
                                                                  "difference_interval": [-.2, .1]}}}
    (tmp_path / "ablation.json").write_text(json.dumps({"rows": [row]}))
    report.make_report(preds, tmp_path / "r.html", preds.parent / "cache", ablation=tmp_path / "ablation.json")
    assert data_of((tmp_path / "r.html").read_text(encoding="utf-8"))["figures"]["ablation-differences"][
        "data"][0]["error_x"]["array"] == pytest.approx([.2125]), "the same, from JSON"
    with pytest.raises(InputError, match="no such file"):
        report.make_report(preds, tmp_path / "r.html", preds.parent / "cache", check=tmp_path / "absent.json")


@pytest.mark.parametrize("text", ["clip,frame\n", "clip,frame,time_s,valid,label,prediction,p_A\na,1,0,1,,0\n",
                                  "clip,frame,time_s,valid,label,prediction,p_A\na,1,0,1,,x,1\n",
                                  "clip,frame,time_s,valid,label,prediction,p_A\na,1,0,1,,0,1\nb,1,0,1,,0,1\n"
                                  "a,2,0,1,,0,1\n"])
def test_a_torn_table_is_told_and_no_page_is_left(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InputError):
        report.make_report(tmp_path / "p.csv", tmp_path / "r.html", tmp_path / "cache")
    assert not (tmp_path / "r.html").exists()


def large(home: Path, clips: int, frames: int) -> Path:
    """Write predictions of a run of that many clips and frames a clip, with its book and a metrics file."""
    book = simulate(groups=clips, frames=frames)
    book.save(home / "cache/logits/simulated" / f"{book.fingerprint[:12]}.h5")
    mean = candidates.to_ppm(np.mean([np.exp(v - v.max(1, keepdims=True)) for v in book.logits.values()], axis=0))
    io.write_predictions(book, mean, home / "preds.csv")
    said = mean.argmax(1)
    group = book.per_row(np.arange(clips))
    known = book.label >= 0
    matrices = metrics.confusions(book.label[known], said[known], group[known], 7, clips)
    scores = {"mean": metrics.score_predictions(matrices, book.classes, "macro_f1", metrics.Resampler(clips, 200, 0))}
    split = run_metrics.SplitMetrics(predicted="", all_frames=scores, frames_with_face=scores, paired={},
                                     calibration=run_metrics.Calibration())
    run_metrics.write_metrics(home / "preds.metrics.json", run_metrics.StackMetrics(
        version=run_metrics.FORMAT, fingerprint="0" * 64, fercache="x", dataset="simulated", notice="",
        classes=book.classes, metric="macro_f1", level="frame", causal=False, temperatures={}, warnings=(), flags=(),
        refit=run_metrics.RefitRecord(stacker=False, heads=False, why=""), rejected={}, order=("mean",), columns={},
        final=run_metrics.FinalRecord(column="mean", why="simulated", temperature=1.0), gap_policy="",
        frames_without_face=0, splits={"train": split}, folds=(), declared={}, fold_models="", importances=(),
        frames=len(book.label), trials=clips, config={},
        logits=run_metrics.LogitsRecord(fingerprint=book.fingerprint, provenance=book.provenance)))
    return home / "preds.csv"


MAKE = ("import sys, time; from pathlib import Path; from fercache.viz import report; t = time.monotonic();"
        "made = report.make_report(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]));"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(made.clips, made.frames, made.bytes, peak, time.monotonic() - t)")
"""The peak is VmHWM: `ru_maxrss` of a new process begins with what its parent held."""


def measured(preds: Path) -> tuple[int, int, int, int, float]:
    """Return clips, frames, bytes, peak kB of memory and seconds of making a page in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MAKE, str(preds), str(preds.parent / "report.html"),
                           str(preds.parent / "cache")], capture_output=True, text=True, check=True)
    clips, frames, size, peak, seconds = done.stdout.split()
    return int(clips), int(frames), int(size), int(peak), float(seconds)


@pytest.mark.slow("2.8 million frames")
def test_560_clips_and_2_8_million_frames(tmp_path: Path) -> None:
    """Under 30 MB, opened in seconds, made in bounded memory; what Chromium needs is measured where there is one."""
    small = measured(large(tmp_path / "small", 20, 500))
    clips, frames, size, peak, seconds = measured(large(tmp_path / "large", 560, 5000))
    print(f"\n{clips} clips, {frames} frames: {size / 1e6:.1f} MB, {seconds:.0f} s to make, peak {peak / 1e3:.0f} MB "
          f"(20 clips, {small[1]} frames: {small[2] / 1e6:.1f} MB, {small[4]:.0f} s, peak {small[3] / 1e3:.0f} MB)")
    assert clips == 560 and frames > 2_700_000 and size < 30_000_000
    # 160 MB were measured: the libraries' own memory differs from run to run.
    assert peak - small[3] < 300_000, "kB: what is drawn, and never all frames"
    from browser import chromium, errors, look

    with chromium(tmp_path / "profile") as driver:
        look(driver, 1280, 900, dark=False)
        started = time.monotonic()
        driver.get((tmp_path / "large/report.html").as_uri())
        opened = time.monotonic() - started
        assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"
        print(f"opened in {opened:.1f} s")
        assert not errors(driver) and opened < 15
