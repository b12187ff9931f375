"""Parts of a data set: each clip in one part, the same on each machine, and about equal; and lengths of time."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fercache.data.base import Dataset, Issue, Trial
from fercache.errors import InputError
from fercache.extraction import run_control
from fercache.extraction.distributed.shard import Shard, estimate_work, largest_first, read_shard


def trial(name: str, path: str = "", **more: object) -> Trial:
    held = {"kind": "video", "parent": name, "group": name, "split": "train", "stated": 100, **more}
    return Trial(name=name, path=Path(path or f"/nowhere/{name}.mp4"), **held)  # type: ignore[arg-type]


def array(number: int, count: int, first: int = 1, step: int = 1, **more: str) -> dict[str, str]:
    """Return what Slurm sets in a task of an array."""
    held = {"ID": number, "COUNT": count, "MIN": first, "MAX": first + (count - 1) * step, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in held.items()} | more


@given(sizes=st.lists(st.integers(0, 5000), max_size=40), of=st.integers(1, 9), pairs=st.booleans())
def test_each_clip_is_in_one_part(sizes: list[int], of: int, pairs: bool) -> None:
    """Also where there are more parts than clips, and clips of no known size; two people of one video go together."""
    trials = [trial(f"{i:02d}", f"/v/{i // 2 if pairs else i}.mp4", stated=size) for i, size in enumerate(sizes)]
    parts = [Shard(i + 1, of).select(trials) for i in range(of)]
    assert sorted(t.name for part in parts for t in part) == [t.name for t in trials]
    assert all([t.name for t in part] == sorted(t.name for t in part) for part in parts)
    paths = [{t.path for t in part} for part in parts]
    assert sum(map(len, paths)) == len({t.path for t in trials})
    assert parts == [Shard(i + 1, of).select(trials[::-1])[::-1]
                     for i in range(of)], "the order at hand changes nothing"


def test_parts_are_about_equal() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(f"{i:03d}", stated=int(size)) for i, size in enumerate(rng.lognormal(7, 1, 400))]
    loads = [sum(t.stated for t in Shard(i + 1, 8).select(trials)) for i in range(8)]
    assert max(loads) < 1.01 * min(loads)
    by_turns = [sum(t.stated for t in trials[i::8]) for i in range(8)]
    assert max(by_turns) > 1.1 * min(by_turns), "a plain deal of the same clips is less even"


def test_size_is_stated_or_labels_or_pictures_or_bytes(tmp_path: Path) -> None:
    (tmp_path / "crops").mkdir()
    for i in range(3):
        (tmp_path / "crops" / f"{i}.jpg").touch()
    (tmp_path / "clip.mp4").write_bytes(bytes(50_000))
    assert estimate_work(trial("a", stated=7, labels=np.zeros(9, np.int16))) == 7
    assert estimate_work(trial("a", stated=0, labels=np.zeros(9, np.int16))) == 9
    assert estimate_work(trial("a", str(tmp_path / "crops"), kind="crops", stated=0)) == 3
    small = estimate_work(trial("a", str(tmp_path / "clip.mp4"), stated=0))
    (tmp_path / "clip.mp4").write_bytes(bytes(500_000))
    assert estimate_work(trial("a", str(tmp_path / "clip.mp4"), stated=0)) > 5 * small
    assert estimate_work(trial("a", str(tmp_path / "gone.mp4"), stated=0)) == 0


def test_one_part_tells_of_what_is_lost() -> None:
    whole = Dataset(name="x", layout="table", classes=(), trials=tuple(trial(name) for name in "abcd"),
                    problems=(Issue(where="e", message="no clip"),))
    parts = [Shard(i, 2).of_dataset(whole) for i in (1, 2)]
    assert [len(part.problems) for part in parts] == [1, 0]
    assert [Shard(i, 2).failures for i in (1, 2)] == ["failures-1-of-2.csv", "failures-2-of-2.csv"]


@pytest.mark.parametrize("text, environ, shard", [
    ("2/8", {}, (2, 8)),
    ("1/1", array(3, 4), (1, 1)),
    ("auto", array(3, 8), (3, 8)),
    ("auto", array(0, 8, first=0), (1, 8)),
    ("auto", array(12, 4, first=0, step=4), (4, 4)),
    ("auto", array(5, 1, first=5), (1, 1)),
    ("auto", {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_MIN": "5"}, (3, 3)),
    ("auto", {"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
    ("auto", {"RANK": "3", "WORLD_SIZE": "4"}, (4, 4)),
    ("auto", array(2, 3, RANK="1", WORLD_SIZE="4"), (6, 12)),
])
def test_which_part(text: str, environ: dict[str, str], shard: tuple[int, int]) -> None:
    assert read_shard(text, environ) == Shard(*shard)


def test_an_array_of_torchruns_covers_every_part() -> None:
    found = [read_shard("auto", array(task, 3, RANK=str(rank), WORLD_SIZE="4")) for task in (1, 2, 3)
             for rank in range(4)]
    assert found == [Shard(i + 1, 12) for i in range(12)]


@pytest.mark.parametrize("text, environ, says", [
    ("3", {}, "'3' is not a part"), ("a/b", {}, "is not a part"), ("-1/4", {}, "is not a part"),
    ("5/4", {}, "part 5 of 4 does not exist"), ("0/4", {}, "part 0 of 4 does not exist"), ("0/0", {},
                                                                                           "part 0 of 0 does not "
                                                                                           "exist"),
    ("auto", {}, "no torchrun"),
    ("auto", {"RANK": "1"}, "no torchrun"),
    ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_COUNT is not set"),
    ("auto", {"RANK": "x", "WORLD_SIZE": "4"}, "RANK is 'x'"),
    ("auto", array(3, 3) | {"SLURM_ARRAY_TASK_MAX": "7"}, "--array=1-8"),
    ("auto", array(4, 3, step=2), "task 4"),
    ("auto", array(9, 3), "part 9 of 3 does not exist"),
])
def test_which_part_is_refused(text: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as error:
        read_shard(text, environ)
    assert "--shard" in str(error.value)


def test_large_sources_come_first_and_their_people_together() -> None:
    trials = [trial(f"{i:02d}", f"/v/{i // 2}.mp4", stated=10 * i) for i in range(8)]
    assert [t.name for t in largest_first(trials)] == ["06", "07", "04", "05", "02", "03", "00", "01"]


@pytest.mark.parametrize("text, seconds", [
    ("3600", 3600), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("45s", 45), ("2d", 172_800), ("90M", 5400),
    ("1:30:00", 5400), ("10:30", 630), ("90:00", 5400), ("1-12", 129_600), ("1-12:30", 131_400),
    ("1-00:00:10", 86_410), (" 60 ", 60)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert run_control.parse_time_limit(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "soon", "-5", "1:2:3:4", "m", "1-2-3", "5x", "1 h", "0:00"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(InputError, match="not a length of time"):
        run_control.parse_time_limit(text)
