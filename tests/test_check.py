"""`fercache check`: every disagreement with the right number, every defect told, and nothing read twice."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import tiny_nets
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from trees import Lengths, Made, annotate, crops, picture, real_lengths, real_tree, stub_video
from videos import cut, numbered_video

from fercache import run_log
from fercache.backbones.taps import tap_shapes
from fercache.cli import main
from fercache.config import FAST_TIME, DatasetConfig, ExtractConfig
from fercache.data import load_dataset
from fercache.data.base import FrameTable, Trial, ranges_of
from fercache.diagnostics.check import CheckReport, check_dataset
from fercache.diagnostics.check_issues import ClipIndex
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.workspace import Workspace


def check(root: Path, cache: Path, *, fresh: bool = False, rate: float = 0.0, **choices: object) -> CheckReport:
    config = DatasetConfig(dataset="affwild2", root=str(root), **choices)  # type: ignore[arg-type]
    return check_dataset(load_dataset(config, cache), ExtractConfig(), cache, fresh=fresh, rate=rate)


def kinds(report: CheckReport) -> dict[str, tuple[str, int, bool]]:
    return {one.kind: (one.where, len(one.details), one.is_error) for one in report.issues}


def aged(root: Path) -> None:
    """Have every folder look as if it had been made an hour ago."""
    for folder in [root, *(path for path in root.rglob("*"))]:
        os.utime(folder, (time.time() - 3600,) * 2)


def simple(root: Path, trials: Mapping[str, int] | None = None) -> Path:
    """Make a tree without a fault: crops and labels 1 to n of each trial."""
    for name, frames in (trials or {"a": 5, "b": 7}).items():
        crops(root / "cropped_aligned" / name, range(1, frames + 1))
        annotate(root, name, [i % 7 for i in range(frames)])
    return root


def trial_of(labels: list[int] | None) -> Trial:
    return Trial(name="a", path=Path("a"), kind="crops", parent="a", group="a", split="train",
                 labels=None if labels is None else np.array(labels, np.int16))


@given(st.sets(st.integers(1, 40)), st.lists(st.integers(-1, 6), max_size=40), st.integers(0, 45))
def test_the_clock_has_one_row_for_each_number_any_of_the_three_names(numbers: set[int], labels: list[int],
                                                                      video: int) -> None:
    runs = ranges_of(np.array(sorted(numbers), np.int64))
    clock = FrameTable(trial=trial_of(labels), crops=runs, lines=len(labels), video=video)
    rows = max([*numbers, len(labels), video])
    bare = [n for n in range(1, rows + 1) if n not in numbers]
    assert clock.rows == rows and clock.pictures == len(numbers)
    assert clock.without_crop() == (len(bare), sum(n <= len(labels) and labels[n - 1] >= 0 for n in bare))
    assert clock.labelled().tolist() == [label for label in labels if label >= 0]


def expected(lengths: Mapping[str, Lengths]) -> tuple[int, int, int, int]:
    gaps = [one.frames - one.crops for one in lengths.values()]
    short = [gap for gap in gaps if gap > 0]
    return sum(gap == 0 for gap in gaps), sum(gap < 0 for gap in gaps), len(short), sum(short)


def verify(report: CheckReport, lengths: Mapping[str, Lengths], made: Made) -> None:
    """Check a report on a tree of real lengths against what was planted."""
    wanted = {name: one.frames - one.crops for name, one in lengths.items() if one.frames != one.crops}
    by_name = {one.name: one for one in report.lengths}
    for name in ("crops against video frames", "crops against annotation lines"):
        found = by_name[name]
        assert (found.equal, found.more, found.fewer, found.missing) == expected(lengths), name
        assert {one.trial: one.missing for one in found.differences} == wanted
        assert {one.trial: (one.there, one.expected) for one in found.differences} == {
            one: (lengths[one].crops, lengths[one].frames) for one in wanted}
    assert by_name["annotation lines against video frames"].equal == len(lengths)
    bare = sum(len(gone) for gone in made.missing.values())
    labelled = sum(made.labels[name][n - 1] >= 0 for name, gone in made.missing.items() for n in gone)
    assert sum(split.no_crop for split in report.splits.values()) == bare == expected(lengths)[3]
    assert sum(split.no_crop_labelled for split in report.splits.values()) == labelled
    assert sum(split.frames for split in report.splits.values()) == sum(max(one) for one in lengths.values())
    every = np.concatenate([np.array(labels) for labels in made.labels.values()])
    counts = np.sum([list(split.counts.values()) for split in report.splits.values()], axis=0)
    assert counts.tolist() == np.bincount(every[every >= 0], minlength=7).tolist()


def test_real_trials_with_their_disagreements(tmp_path: Path, shared: Path) -> None:
    """The shortest of the real trials, as many as 60,000 frames hold; `test_all_real_trials` takes all 561."""
    lengths, total = {}, 0
    for name, one in sorted(real_lengths(shared).items(), key=lambda item: item[1].frames):
        total += one.frames
        if total < 60_000:
            lengths[name] = one
    assert min(expected(lengths)) > 5 and len(lengths) > 60
    made = real_tree(tmp_path / "s", lengths, seed=4)
    verify(check(tmp_path / "s", tmp_path / "c"), lengths, made)


@pytest.mark.slow("2.65 million files; 60,000 run always")
def test_all_real_trials_with_their_disagreements(tmp_path: Path, shared: Path) -> None:
    """2.65 million crops: 142 trials equal, 108 with more crops, 311 with fewer, 48,818 crops missing."""
    lengths = real_lengths(shared)
    assert len(lengths) == 561 and expected(lengths) == (142, 108, 311, 48_818)
    made = real_tree(tmp_path / "s", lengths, seed=4)
    first = check(tmp_path / "s", tmp_path / "c")
    verify(first, lengths, made)
    second = check(tmp_path / "s", tmp_path / "c")
    verify(second, lengths, made)
    print(f"561 trials, {sum(one.crops for one in lengths.values()):,} crops: {first.seconds:.1f} s, "
          f"again {second.seconds:.1f} s ({second.clips_known} known)")
    assert second.clips_read < 20


def test_real_annotations_against_their_videos(tmp_path: Path, shared: Path) -> None:
    """Of 318 other trials, 218 annotations are longer than the video by 1 or 2 frames, 6 shorter, 94 equal.

    The table names videos; where it names one twice, the second line is taken for the other person of it.
    """
    path = shared / "data/affwild2_meta/PoloWlg_old_video_annotation_difference.csv"
    differences: dict[str, int] = {}
    for line in path.read_text().splitlines()[1:]:
        video, stated, lines, difference = line.split(",")
        name = f"{video}_right" if video in differences else video
        differences[name] = int(difference)
        stub_video(tmp_path / f"s/videos/{video}.avi", int(stated))
        annotate(tmp_path / "s", name, [0] * int(lines))
    report = check(tmp_path / "s", tmp_path / "c")
    assert [one.name for one in report.lengths] == ["annotation lines against video frames"]
    found = report.lengths[0]
    assert (found.trials, found.equal, found.more, found.fewer) == (318, 94, 218, 6)
    assert {one.trial: one.missing for one in found.differences} == {n: gap for n, gap in differences.items() if gap}


def test_nothing_wrong(tmp_path: Path) -> None:
    report = check(simple(tmp_path / "s", {"a": 7, "b": 9}), tmp_path / "c")
    assert report.issues == () and not report.lost
    assert [(one.equal, one.more, one.fewer) for one in report.lengths] == [(2, 0, 0)]
    assert report.splits["train"].counts["Neutral"] == 3 and report.splits["train"].frames == 16


def test_clips_without_labels_and_labels_without_clips(tmp_path: Path) -> None:
    root = simple(tmp_path / "s")
    annotate(root, "gone", [0])
    annotate(root, "bare", [-1, -1])
    crops(root / "cropped_aligned/bare", (1, 2))
    crops(root / "cropped_aligned/extra", (1,))
    annotate(root, "torn", [99])
    crops(root / "cropped_aligned/torn", (1, 2))
    found = kinds(check(root, tmp_path / "c"))
    assert found["no-clip"] == ("gone", 1, True) and found["no-label"] == ("torn", 1, True)
    assert found["all-minus-one"] == ("bare", 1, False)
    assert found["reader"] == ("extra", 1, False)


def test_pictures_that_are_empty_damaged_or_none(tmp_path: Path) -> None:
    root = simple(tmp_path / "s", {"a": 7, "b": 9, "zero": 7})
    for n in (2, 3):
        (root / f"cropped_aligned/a/{n:05d}.jpg").unlink()
        (root / f"cropped_aligned/a/{n:05d}.jpg").touch()
    (root / "cropped_aligned/b/00009.jpg").unlink()
    (root / "cropped_aligned/b/00009.jpg").write_bytes(picture()[:40])
    (root / "cropped_aligned/b/Thumbs.db").touch()
    (root / "cropped_aligned/zero/00000.jpg").write_bytes(picture())
    report = check(root, tmp_path / "c")
    found = kinds(report)
    assert found["empty-pictures"] == ("a (2)", 1, True) and found["other-files"] == ("b (1)", 1, False)
    unreadable = {one.where: one.message for one in report.issues if one.kind == "unreadable"}
    assert set(unreadable) == {"zero", "b/00009.jpg"} and "start at 1" in unreadable["zero"]
    assert report.splits["train"].no_crop == 7  # the empty pictures are there, the folder that is refused has none


def test_videos_that_do_not_open(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name in ("good", "torn"):
        (root / "videos").mkdir(parents=True, exist_ok=True)
        numbered_video(root / f"videos/{name}.mp4", 12)
        annotate(root, name, range(7))
    cut(root / "videos/torn.mp4", 0.5)
    report = check(root, tmp_path / "c")
    assert kinds(report)["unreadable"] == ("torn", 1, True)
    assert [(one.there, one.expected) for one in report.lengths[0].differences] == [(7, 12)]
    assert (report.cost.frames, report.cost.unknown, report.cost.faces) == (12, 1, "mtcnn")


def test_what_is_said_of_many_clips_is_said_once_and_names_them_all(tmp_path: Path) -> None:
    root = simple(tmp_path / "s", {"a": 7})
    for i in range(9):
        annotate(root, f"gone{i}", [0])
    found = [one for one in check(root, tmp_path / "c").issues if one.kind == "no-clip"]
    assert [one.details for one in found] == [tuple(f"gone{i}" for i in range(9))] and "and 4 more" in found[0].where


def test_twins_across_groups_are_a_leak_and_within_one_a_note(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name, tag in (("a", "same"), ("b", "same"), ("c", "else"), ("v_left", "pair"), ("v_right", "pair")):
        crops(root / "cropped_aligned" / name, (1, 2, 4), tag)
        annotate(root, name, range(7), "Validation_Set" if name == "b" else "Train_Set")
    twins = [(one.where, one.is_error) for one in check(root, tmp_path / "c").issues if one.kind == "twins"]
    assert twins == [("a (train), b (validation)", True), ("v_left (train), v_right (train)", False)]


def test_the_same_video_twice_is_found_and_one_of_equal_length_is_not(tmp_path: Path) -> None:
    root = tmp_path / "s"
    first = stub_video(root / "videos/one.avi", 5)
    (root / "videos/two.avi").write_bytes(first.read_bytes())
    stub_video(root / "videos/six.avi", 5)
    for name in ("one", "two", "six"):
        annotate(root, name, range(5))
    assert [one.where for one in check(root, tmp_path / "c").issues if one.kind == "twins"] == [
        "one (train), two (train)"]


def test_a_group_in_two_splits_is_told(tmp_path: Path) -> None:
    root = tmp_path / "s"
    for name, split in (("v_left", "Train_Set"), ("v_right", "Validation_Set")):
        crops(root / "cropped_aligned" / name, range(1, 8))
        annotate(root, name, range(7), split)
    assert kinds(check(root, tmp_path / "c"))["leak"] == ("v", 1, True)


def test_labels_past_the_clip_and_classes_never_seen(tmp_path: Path) -> None:
    root = tmp_path / "s"
    crops(root / "cropped_aligned/a", (1, 2))
    annotate(root, "a", [0, 1, 2, 3])
    found = kinds(check(root, tmp_path / "c"))
    assert found["labels-past-the-clip"] == ("a (2)", 1, False)
    assert found["no-class"][0] == "Happiness, Sadness, Surprise"


def test_frames_that_a_list_states_are_compared(tmp_path: Path) -> None:
    for clip in (1, 2, 3):
        crops(tmp_path / f"s/clips/{clip:05d}", (1, 2, 3))
    (tmp_path / "s/MAFW_set_1_train.txt").write_text("x/00001 3 0\nx/00002 5 1\n")
    (tmp_path / "s/MAFW_set_1_test.txt").write_text("x/00003 2 10\n")
    dataset = load_dataset(DatasetConfig(root=str(tmp_path / "s")), tmp_path)
    report = check_dataset(dataset, ExtractConfig(), tmp_path / "c")
    assert [(one.name, one.equal, one.more, one.fewer) for one in report.lengths] == [
        ("frames against the list's count", 1, 1, 1)]
    assert report.by_clip and report.splits["test"].counts["Disappointment"] == 1


def test_a_second_check_reads_nothing_and_finds_the_same(tmp_path: Path) -> None:
    root = simple(tmp_path / "s")
    stub_video(root / "videos/a.avi", 6)
    aged(root)
    first, second = check(root, tmp_path / "c"), check(root, tmp_path / "c")
    assert (first.clips_read, first.clips_known) == (3, 0) and (second.clips_read, second.clips_known) == (0, 3)
    assert (first.lengths, first.issues, first.splits) == (second.lengths, second.issues, second.splits)
    assert check(root, tmp_path / "c", fresh=True).clips_read == 3


def test_a_changed_folder_is_read_again(tmp_path: Path) -> None:
    root = simple(tmp_path / "s")
    aged(root)
    check(root, tmp_path / "c")
    (root / "cropped_aligned/a/00003.jpg").unlink()
    again = check(root, tmp_path / "c")
    assert (again.clips_read, again.clips_known) == (1, 1)
    assert [one.missing for one in again.lengths[0].differences] == [1]
    assert check(root, tmp_path / "c").clips_read == 1  # changed a moment ago: not yet to be trusted


def test_views_of_each_face_cost_their_share(tmp_path: Path) -> None:
    root = simple(tmp_path / "s", {"a": 300})
    dataset = load_dataset(DatasetConfig(dataset="affwild2", root=str(root)), tmp_path)
    one, four = (check_dataset(dataset, ExtractConfig(taps=("block8",), augmentations=views), tmp_path / "c").cost
                 for views in (1, 4))
    assert one.bytes_a_frame == 2 * 1792 + 72 and four.bytes_a_frame == 4 * 2 * 1792 + 72
    run_log.record_rate(tmp_path / "c", run_log.ExtractionRate(
            faces="cropped", backbone="casia-webface", precision="float32", threads=2,
                                            device="cpu", frames=600, seconds=10.0, when_s=0.0, views=4))
    assert check_dataset(dataset, ExtractConfig(), tmp_path / "c").cost.seconds is None  # measured on four views only


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 1, "clips": {"x": {"a": 1}}}', '{"version": 9}', "x"])
def test_an_index_that_is_not_ours_is_made_anew(tmp_path: Path, content: str) -> None:
    root = simple(tmp_path / "s")
    aged(root)
    first = check(root, tmp_path / "c")
    path = tmp_path / "c/index" / f"{first.dataset}.json"
    path.write_text(content)
    assert check(root, tmp_path / "c").lengths == first.lengths and check(root, tmp_path / "c").clips_read == 0


def test_what_was_read_before_a_stop_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = simple(tmp_path / "s", {"a": 3, "b": 3, "c": 3})
    aged(root)
    clips = [(root / "cropped_aligned" / name, "crops") for name in "abc"]
    index = ClipIndex.load(tmp_path / "c", "x")
    real = index._one

    def stopped(path: Path, *more: object) -> object:
        if path.name == "c":
            raise KeyboardInterrupt
        return real(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "_one", stopped)
    with pytest.raises(KeyboardInterrupt):
        index.refresh(clips)
    again = ClipIndex.load(tmp_path / "c", "x")
    again.refresh(clips)
    assert (again.read, again.reused) == (1, 2)


def test_bytes_are_those_that_the_store_takes(tmp_path: Path) -> None:
    """Written for real: zeros in the default taps' shapes, no CNN; the store's own files are under 3 % more."""
    lengths = {"a": 40, "b": 300, "c": 1100}
    report = check(simple(tmp_path / "s", lengths), tmp_path / "c")
    taps = tap_shapes(ExtractConfig().taps)
    store = EmbeddingStore.create(tmp_path / "x.zarr", {"backbone": "none"}, taps)
    for name, frames in lengths.items():
        with store.writer(name, source={"sha256": name}, provenance={}) as writer:
            assert writer is not None
            for start in range(0, frames, 1024):
                rows = min(1024, frames - start)
                writer.write(start, {tap: np.zeros((rows, *shape), np.float16) for tap, shape in taps.items()})
            writer.set_frame_table(np.zeros((frames, len(FRAME_COLUMNS))))
            writer.commit()
    assert report.cost.bytes is not None and report.cost.frames == sum(lengths.values())
    assert report.cost.bytes <= store.size().bytes <= 1.03 * report.cost.bytes


def test_time_is_measured_assumed_or_not_told(tmp_path: Path) -> None:
    root = simple(tmp_path / "s", {"a": 30})
    none = check(root, tmp_path / "c").cost
    assert none.seconds is None and "no rate was measured" in none.basis
    assumed = check(root, tmp_path / "c", rate=60).cost
    assert assumed.seconds == 0.5 and "assuming 60 frames/s" in assumed.basis
    for faces, frames in (("cropped", 199), ("mtcnn", 5000), ("cropped", 600)):
        run_log.record_rate(tmp_path / "c", run_log.ExtractionRate(
            faces=faces, backbone="casia-webface", precision="float32", threads=2,
                                                device="cpu", frames=frames, seconds=10.0, when_s=0.0))
    measured = check(root, tmp_path / "c").cost
    assert measured.fast is not None and measured.fast[1] == 0.5 * FAST_TIME
    run_log.record_rate(tmp_path / "c", run_log.ExtractionRate(
        faces="cropped", backbone="casia-webface", precision="int8", embed_every="auto", threads=2, device="cpu",
        frames=600, seconds=2.0, when_s=0.0))
    fast = check(root, tmp_path / "c").cost.fast
    assert fast is not None and fast[1] == 0.1 and fast[0] and fast[0] < .5 * (measured.bytes or 0)
    assert measured.seconds == 0.5 and all(fact in measured.basis for fact in ("60.0 frames/s", "600", "cropped"))
    assert len(run_log.load_run_log(tmp_path / "c").rates) == 3
    Workspace(tmp_path / "c").run_log.write_text('{"rates": [{"faces": 1}]}')
    assert run_log.load_run_log(tmp_path / "c").rates == ()


def cli(root: Path, cache: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["--cache", str(cache), "-q", "check", "--dataset", "affwild2", "--root", str(root),
                                     *words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def test_the_command_line(tmp_path: Path) -> None:
    root = simple(tmp_path / "s", {"a": 7, "a_trial_with_a_name_of_more_than_forty_letters_in_it": 9})
    crops(root / "cropped_aligned/c", (1, 5, 9))
    annotate(root, "c", [0] * 12)
    code, text = cli(root, tmp_path / "c")
    assert code == 0 and max(map(len, text.splitlines())) <= 80
    assert "1 fewer (9 missing)" in text and "c (3)" in text and "9 missing" in text
    annotate(root, "gone", [0])
    code, text = cli(root, tmp_path / "c")
    assert code == 1 and "LOST" in text and max(map(len, text.splitlines())) <= 80
    code, text = cli(root, tmp_path / "c", "--json")
    said = json.loads(text)
    assert code == 1 and said["lost"] and said["lengths"][0]["differences"][0]["trial"] == "c"
    assert said["issues"][0]["details"] == ["gone"] and [one["rows"] for one in said["clips"]] == [7, 9, 12]
    assert said["cost"]["frames"] == 25 and said["splits"]["train"]["no_crop_labelled"] == 9
    assert cli(tmp_path / "nowhere", tmp_path / "c")[0] == 2


def test_extract_measures_what_check_then_tells(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """220 crops through a CNN, once."""
    tiny_nets.install(["cnn"], monkeypatch.setattr)
    root, own = tmp_path / "s", tmp_path / "c"
    crops(root / "cropped_aligned/a", range(1, 221))
    annotate(root, "a", [i % 7 for i in range(220)])
    own.mkdir()
    (own / "weights").symlink_to(cache / "weights")
    words = ["--cache", str(own), "-q", "extract", "--dataset", "affwild2", "--root", str(root), "--taps", "block8"]
    assert CliRunner().invoke(main, words).exit_code == 0
    cost = check(root, own).cost
    assert cost.seconds is not None and cost.seconds > 0 and "measured here over 220 frames (cropped" in cost.basis
    assert CliRunner().invoke(main, words).exit_code == 0  # nothing to do: no measurement
    assert len(run_log.load_run_log(own).rates) == 1


def test_one_class_only_ends_with_exit_code_2(tmp_path: Path) -> None:
    root = tmp_path / "r"
    for name in ("a", "b"):
        crops(root / "cropped_aligned" / name, range(1, 4))
        annotate(root, name, [2, 2, 2])
    found = kinds(check(root, tmp_path / "c"))
    assert found["one-class"] == ("Disgust", 1, True) and found["constant-labels"][1] == 2
    ran = CliRunner().invoke(main, ["check", "--dataset", "affwild2", "--root", str(root), "--cache",
                                    str(tmp_path / "c")])
    assert ran.exit_code == 2 and "Disgust" in ran.output


def test_a_class_of_one_group_is_named(tmp_path: Path) -> None:
    root = tmp_path / "r"
    for name, labels in (("a", [0, 1, 1]), ("b", [1, 0, 3])):
        crops(root / "cropped_aligned" / name, range(1, 4))
        annotate(root, name, labels)
    found = kinds(check(root, tmp_path / "c"))
    assert found["class-in-one-group"] == ("Fear", 1, False) and "constant-labels" not in found
