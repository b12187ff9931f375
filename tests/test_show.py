"""What is shown beside the page: thumbnails, the model card, the doctor's screen, info; as the commands give it."""

from __future__ import annotations

import io
import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from books import simulate
from click.testing import CliRunner, Result
from finished import finish, put
from PIL import Image
from rich.console import Console
from videos import make_video, numbered_video

from fercache import logits_import, metrics, oof, run_log
from fercache.cli import main
from fercache.config import StackConfig
from fercache.data.base import Trial
from fercache.diagnostics import doctor
from fercache.errors import InputError
from fercache.extraction import thumbnails
from fercache.stacking import inputs, run_metrics, stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.viz import model_card, report
from fercache.viz.report import collect
from fercache.workspace import Workspace


@pytest.fixture(scope="module")
def preds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(tmp_path_factory.mktemp("show"))


def typed(*words: object) -> Result:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


# ---- thumbnails ------------------------------------------------------------------------------------------------------


def trial_of(path: Path) -> Trial:
    return Trial(name="a", path=path, kind="video", parent="a", group="a", split="train")


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """A store of one clip of 5 s, whose pictures are red where the face is."""
    image = np.zeros((96, 128, 3), np.uint8)
    image[8:40, 8:40] = (220, 20, 20)
    make_video(tmp_path / "v.mp4", [image] * 125)
    held = EmbeddingStore.create(tmp_path / "cache/features/d/s.zarr", {}, {"x": (2,)})
    valid = np.ones(125, bool)
    valid[:30] = False
    put(held, "a", np.arange(125) / 25, valid)
    return held


def test_a_face_a_second_through_the_stored_box(store: EmbeddingStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert not thumbnails.any_stored(cache, store) and thumbnails.read_thumbnails(cache, store, "a") is None
    assert thumbnails.write_thumbnails([trial_of(tmp_path / "v.mp4")], store, cache) == 1
    held = thumbnails.read_thumbnails(cache, store, "a")
    assert held is not None and held.row.tolist() == [30, 50, 75, 100]
    for jpeg in held.jpeg:
        face = np.asarray(Image.open(io.BytesIO(jpeg)))
        assert face.shape == (64, 64, 3) and np.abs(face.mean((0, 1)) - (220, 20, 20)).max() < 12
    assert thumbnails.write_thumbnails([trial_of(tmp_path / "v.mp4")], store,
                                       cache) == 0, "what is there is not made again"
    assert thumbnails.thumbnails_path(cache, store, "a") == cache / "thumbs/d/s/a.npz"


def test_faces_taken_through_other_boxes_do_not_count(store: EmbeddingStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    thumbnails.write_thumbnails([trial_of(tmp_path / "v.mp4")], store, cache)
    again = EmbeddingStore.open(store.path, mode="a")
    again.remove("a")
    put(again, "a", np.arange(125) / 25, np.ones(125, bool), box=(0, 0, 9, 9))
    assert thumbnails.read_thumbnails(cache, again, "a") is None
    thumbnails.thumbnails_path(cache, again, "a").write_bytes(b"torn")
    assert thumbnails.read_thumbnails(cache, again, "a") is None
    assert thumbnails.write_thumbnails([trial_of(tmp_path / "v.mp4")], again, cache) == 1


def test_a_clip_without_a_face_or_a_source_is_passed_over(store: EmbeddingStore, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert thumbnails.write_thumbnails([trial_of(tmp_path / "gone.mp4")], store, cache) == 0
    store.remove("a")
    put(store, "a", np.arange(10) / 25, np.zeros(10, bool))
    assert thumbnails.write_thumbnails([trial_of(numbered_video(tmp_path / "w.mp4", 10))], store, cache) == 1
    held = thumbnails.read_thumbnails(cache, store, "a")
    assert held is not None and held.jpeg == ()


def test_the_page_says_that_it_holds_faces(preds: Path) -> None:
    held = collect.gather_run_info(preds, preds.parent / "cache").store
    assert held is not None
    names = [name for name in held if name.startswith("video")][:2]
    image = np.full((48, 48, 3), 99, np.uint8)
    for name in names:
        make_video(preds.parent / "v.mp4", [image] * len(held[name].frame_table))
        trial = Trial(name=name, path=preds.parent / "v.mp4", kind="video", parent=name, group=name, split="train")
        thumbnails.write_thumbnails([trial], held, preds.parent / "cache")
    made = report.make_report(preds, preds.parent / "faces.html", preds.parent / "cache")
    text = (preds.parent / "faces.html").read_text(encoding="utf-8")
    assert made.pictures and "small pictures of faces" in text and "no picture of a face" not in text
    assert '"faces":[[' in text


# ---- runs ------------------------------------------------------------------------------------------------------------


def test_runs_are_noted_and_a_damaged_note_stops_nothing(tmp_path: Path) -> None:
    for seconds in (2.0, 3.0):
        run_log.record_run(tmp_path, "d", "extract", "s", seconds, frames=50)
    assert run_log.total_seconds(run_log.recorded_runs(tmp_path, "d"), "extract", "s") == {"runs": 2, "seconds": 5.0,
                                                                                           "frames": 100.0}
    assert run_log.total_seconds(run_log.recorded_runs(tmp_path, "d"), "extract", "t")["runs"] == 0
    for text in ("{", "[]", '{"version": 1, "runs": 3}', '{"version": 9, "runs": []}'):
        Workspace(tmp_path).run_log.write_text(text)
        assert run_log.recorded_runs(tmp_path, "d") == []
    run_log.record_run(tmp_path, "d", "stack", "x", 1.0)
    assert len(run_log.recorded_runs(tmp_path, "d")) == 1


# ---- the card --------------------------------------------------------------------------------------------------------


def test_the_card_says_what_was_recorded(preds: Path) -> None:
    text = model_card.write_card(preds, preds.parent / "cache")
    said = json.loads((preds.parent / "preds.metrics.json").read_text())
    one = said["splits"]["validation"]["all_frames"][said["final"]["column"]]
    low, high = said["splits"]["train"]["all_frames"][said["final"]["column"]]["intervals"]["macro_f1"]
    assert f"| macro F1 | {one['macro_f1']:.4f} | none |" in text, "three groups have no interval"
    assert f"| {low:.4f} to {high:.4f} |" in text
    for words in ("Energy: not measured", "research", "MIT", "| extract | 2 | 50.5 s |", "Limits", "simulated"):
        assert words in text, words
    for line in text.splitlines():
        assert "<" not in line and ">" not in line


def test_intervals_by_class_are_those_of_the_same_bootstrap(preds: Path) -> None:
    held = collect.gather_run_info(preds, preds.parent / "cache")
    spans = model_card.spans_by_class(held)
    assert set(spans) == {"train"}
    assert held.metrics is not None
    scores = held.metrics.splits["train"].all_frames[held.final]
    assert held.oof is not None
    with oof.open_oof(held.oof) as book:
        groups = len({group for group, split in zip(book.group, book.split, strict=True) if split == "train"})
    for name, (low, high) in spans["train"].items():
        assert low <= scores.f1[name] <= high
    matrices = model_card._by_group(held)["train"]
    again = metrics.Resampler(groups, 100, 0).intervals(matrices)
    assert again is not None and again["macro_f1"] == pytest.approx(scores.intervals["macro_f1"])
    drawn = metrics.f1_per_class(metrics.Resampler(groups, 100, 0).draw(matrices))
    assert dict(spans["train"]) == {name: pytest.approx(tuple(np.quantile(drawn[:, i], [.025, .975])))
                                    for i, name in enumerate(held.classes)}


@pytest.mark.parametrize("heads", [True, False])
def test_report_and_card_find_the_logits_of_a_stack_with_imported_ones(tmp_path: Path, heads: bool) -> None:
    """Logits that were merged for the stack have no file of their own: the parts are found and merged again."""
    cache, names = tmp_path / "cache", ("other", "another")
    own = simulate(groups=8, validation=3, frames=60)
    for i, name in enumerate(names):
        source = simulate(groups=8, validation=3, frames=60, seed=i, heads=(name,), declared={name: oof.OUT_OF_FOLD},
                          trials=own.trials, fingerprint=f"imported {name}")
        source.save(logits_import.path_of(cache, own.dataset, name))
    trained = cache / "logits" / own.dataset / f"{own.fingerprint[:12]}.h5" if heads else None
    if trained:
        own.save(trained)
        simulate(groups=2, frames=30, seed=5, fingerprint="of another run").save(trained.parent / "of another.h5")
    merged = inputs.load_logits(cache, own.dataset, trained, names)
    config = StackConfig(threads=1, bootstrap=20, logits=names, select="mean")
    stack.run_stack(merged, config, cache).save(tmp_path / "preds.csv")
    facts = collect.gather_run_info(tmp_path / "preds.csv", cache)
    found = collect.collect_report_data(facts.preds, facts.oof, facts.imported)
    assert found.heads == merged.heads and found.curve is not None
    assert set(found.matrix) == {"train", "validation"} and {clip.split for clip in found.clips} == set(found.matrix)
    for split, matrix in found.matrix.items():
        assert int(matrix.sum()) == facts.splits[split].all_frames["mean"].frames
    report.make_report(facts.preds, tmp_path / "page.html", cache)
    assert "confusion-train" in (page := (tmp_path / "page.html").read_text()) and "confusion-all" not in page
    assert "is not in this cache" not in model_card.write_card(facts.preds, cache)
    assert "train" in model_card.spans_by_class(facts)


def test_a_card_needs_metrics(preds: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_bytes(preds.read_bytes())
    with pytest.raises(InputError, match="metrics"):
        model_card.write_card(tmp_path / "p.csv", preds.parent / "cache")
    found = run_metrics.read_metrics(preds.parent / "preds.metrics.json")
    of_new_clips = run_metrics.PredictRecord(heads="h", stack="s", trained_on="d", clips={}, forced=(), known=())
    run_metrics.write_metrics(tmp_path / "p.metrics.json", msgspec.structs.replace(found, predict=of_new_clips))
    with pytest.raises(InputError, match="new clips"):
        model_card.write_card(tmp_path / "p.csv", preds.parent / "cache")
    (tmp_path / "p.metrics.json").unlink()
    done = typed("--cache", preds.parent / "cache", "card", "--preds", tmp_path / "p.csv")
    assert done.exit_code == 2 and "next:" in done.output


# ---- commands and the terminal ---------------------------------------------------------------------------------------


def test_the_commands_write_what_they_say(preds: Path, tmp_path: Path) -> None:
    cache = preds.parent / "cache"
    done = typed("--cache", cache, "report", "--preds", preds, "--out", tmp_path / "r.html")
    assert done.exit_code == 0 and done.stdout.strip() == str(tmp_path / "r.html") and (tmp_path / "r.html").is_file()
    done = typed("--cache", cache, "card", "--preds", preds, "--out", tmp_path / "c.md")
    assert done.exit_code == 0 and (tmp_path / "c.md").read_text() == model_card.write_card(preds, cache)
    done = typed("--cache", cache, "report", "--preds", tmp_path / "absent.csv", "--out", tmp_path / "no.html")
    assert done.exit_code == 2 and "next:" in done.output and not (tmp_path / "no.html").exists()


def test_overlay_as_typed(tmp_path: Path) -> None:
    numbered_video(tmp_path / "v.mp4", 20)
    (tmp_path / "clips.csv").write_text("clip,path\na,v.mp4\n")
    (tmp_path / "preds.csv").write_text("clip,frame,time_s,valid,label,prediction,p_A,p_B\n" + "".join(
        f"a,{i + 1},{i / 25},1,,1,0.25,0.75\n" for i in range(20)))
    store = EmbeddingStore.create(tmp_path / "s.zarr", {}, {"x": (2,)})
    put(store, "a", np.arange(20) / 25, np.ones(20, bool))
    words = ("--cache", tmp_path / "cache", "overlay", "--dataset", "table", "--clips", tmp_path / "clips.csv",
             "--store", tmp_path / "s.zarr", "--preds", tmp_path / "preds.csv", "--out", tmp_path / "o.mp4", "--clip")
    assert typed(*words, "a").exit_code == 0 and (tmp_path / "o.mp4").stat().st_size > 1000
    done = typed(*words, "b")
    assert done.exit_code == 2 and "no clip 'b'" in done.output


def drawn(lines: list[doctor.DoctorLine], *, colour: bool, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(width=width, file=out, force_terminal=colour, color_system="standard" if colour else None)
    console.print(doctor.doctor_screen(lines, "fercache extract"))
    return out.getvalue()


def test_the_doctor_fits_a_screen_with_and_without_colour(tmp_path: Path) -> None:
    lines = doctor.inspect_machine(tmp_path)
    plain = drawn(lines, colour=False)
    assert len(plain.splitlines()) <= 24 and max(map(len, plain.splitlines())) <= 80
    assert "\x1b[" not in plain and "\x1b[" in drawn(lines, colour=True)
    for words in ("torch", "casia-webface", "cores", "free", "next: fercache extract"):
        assert words in plain


def test_the_doctor_says_what_is_missing_and_never_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> str:
        raise PackageNotFoundError(name)

    def broken(*_: Any) -> Any:
        raise RuntimeError("a broken disk")

    monkeypatch.setattr(doctor, "version", gone)
    monkeypatch.setattr(doctor.shutil, "disk_usage", broken)
    lines = doctor.inspect_machine(tmp_path)
    assert any(line.what == "packages" and line.state == doctor.MISSING for line in lines)
    assert any("a broken disk" in line.found for line in lines)
    assert doctor.next_step(tmp_path, lines) == "make setup"
    assert typed("--cache", tmp_path, "doctor").exit_code == 1


def test_the_doctor_imports_torch_only_where_a_gpu_may_be(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = ("import sys; from pathlib import Path; from fercache.diagnostics import doctor; doctor.GPU_FILES = ();"
            "doctor.shutil.which = lambda name: None; doctor.inspect_machine(Path('cache')); sys.exit('torch' in "
            "sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False).returncode == 0


def test_the_doctor_knows_the_next_step(tmp_path: Path) -> None:
    def step() -> str:
        return doctor.next_step(tmp_path / "cache", [], tmp_path / "preds.csv")

    assert "extract" in step()
    for path, then in (("cache/features/d/current.json", "fercache train-heads"),
                       ("cache/logits/d/x.h5", "fercache stack --out"), ("preds.csv", "fercache report")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
        assert then in step()


def test_info_fits_80_columns(preds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    store = next((preds.parent / "cache/features").rglob("*.zarr"))
    done = typed("info", "--store", store)
    path, *others = done.stdout.splitlines()
    assert path.endswith(str(store)), "on one line, to be copied"
    assert done.exit_code == 0 and max(map(len, others)) <= 80 and "\x1b[" not in done.stdout
    said = json.loads(typed("info", "--store", store, "--json").stdout)
    assert f"{said['frames']:,}" in done.stdout and f"{said['bytes']:,}" in done.stdout


def test_the_doctor_lists_the_extras_that_the_package_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["av>=14", 'click>=8; extra == "one"', 'not-there-yet>=1; extra == "future"',
                'moto[s3]>=5 ; python_version >= "3.11" and extra == "two"', 'not-there-yet>=1; extra == "two"',
                'pytest>=8; extra == "dev"', 'mkdocs>=1; extra == "docs"']
    monkeypatch.setattr(doctor, "requires", lambda _: declared)
    lines = {line.state: line.found for line in doctor.inspect_machine(tmp_path) if line.what == "extras"}
    assert "one (click" in lines["ok"] and "two" not in lines["ok"]
    assert "future, two" in lines["-"] and "fercache[future]" in lines["-"]
    assert not any(extra in found for extra in ("dev", "docs") for found in lines.values()), "not what users need"
