"""Whoever fills a store - parts, processes, Dask workers, runs that are stopped - it holds what one process makes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_nets
from click.testing import CliRunner
from forked import Run, Runner
from numpy.typing import NDArray
from PIL import Image
from videos import make_video

from fercache import data
from fercache.cli import main
from fercache.config import DatasetConfig, ExtractConfig
from fercache.data import base
from fercache.errors import InputError
from fercache.extraction import job
from fercache.extraction.distributed import LaunchPlan
from fercache.extraction.distributed import dask as dask_engine
from fercache.extraction.distributed.processes import JobSpec, without_labels
from fercache.extraction.job import ExtractReport
from fercache.store.embedding_store import EmbeddingStore

CONFIG = ExtractConfig(taps=("conv2d_4b",), threads=1, device="cpu")
FLAGS = ("extract", "--taps", "conv2d_4b", "--device", "cpu", "--threads", 1, "--clips")
TINY = ("cnn", "detector")
CROPS = 6
LONG = 64
"""Frames of a clip that takes longer than the first time limit to detect."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, face_frames: list[NDArray[np.uint8]]) -> Path:
    """A folder with videos of 5 to 12 frames, one that is none, and folders of crops."""
    folder = tmp_path_factory.mktemp("prepared")
    small = [np.asarray(Image.fromarray(frame).resize((320, 180))) for frame in face_frames]
    (folder / "videos").mkdir()
    for name, count in (("a", 12), ("b", 5), ("c", 7)):
        make_video(folder / "videos" / f"{name}.mp4", small[:count])
    (folder / "videos" / "broken.mp4").write_bytes(b"no video at all" * 9000)
    for i in range(CROPS):
        (folder / "crops" / f"{i}").mkdir(parents=True)
        for number in range(1, 3 + i):
            face = np.roll(small[number][20:160, 90:230], i, axis=1)
            Image.fromarray(face).save(folder / "crops" / f"{i}" / f"{number:05d}.jpg")
    return folder


@pytest.fixture
def home(tmp_path: Path, prepared: Path, weights_at: Path) -> Path:
    """A folder to work in, with clips and an empty cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").symlink_to(weights_at)
    for name in ("videos", "crops"):
        (tmp_path / name).symlink_to(prepared / name)
    return tmp_path


def crops_of(home: Path) -> base.Dataset:
    return data.load_dataset(DatasetConfig(clips=str(home / "crops"), dataset="table"), home / "cache")


@pytest.fixture(scope="module")
def alone(prepared: Path, weights_at: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digests of what one process makes of the crops, and of the videos."""
    cache = tmp_path_factory.mktemp("alone")
    (cache / "weights").symlink_to(weights_at)
    found = {}
    for name in ("crops", "videos"):
        dataset = data.load_dataset(DatasetConfig(clips=str(prepared / name), dataset="table"), cache)
        found[name] = EmbeddingStore.open(job.extract_dataset(dataset, CONFIG, cache).store).digest()
    return found


@pytest.fixture(scope="module")
def alone_tiny(prepared: Path, weights_at: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of what one process makes of the videos with tiny nets."""
    cache = tmp_path_factory.mktemp("alone-tiny")
    (cache / "weights").symlink_to(weights_at)
    dataset = data.load_dataset(DatasetConfig(clips=str(prepared / "videos"), dataset="table"), cache)
    with pytest.MonkeyPatch.context() as patch:
        tiny_nets.install(replace=patch.setattr)
        return EmbeddingStore.open(job.extract_dataset(dataset, CONFIG, cache).store).digest()


def digest_in(home: Path) -> str:
    (path,) = (home / "cache" / "features").glob("*/*.zarr")
    return EmbeddingStore.open(path).digest()


def listed(home: Path) -> dict[str, str]:
    """Return name -> text of the lists of failures."""
    return {path.name: path.read_text() for path in (home / "cache" / "features").glob("*/failures*.csv")}


def test_four_parts_at_once(runner: Runner, home: Path, alone_tiny: str) -> None:
    """One store; the part that has the broken video says so, with its list and its exit code, and no other."""
    runs = [runner.start(*FLAGS, "videos", "--shard", f"{i}/4", cwd=home, small=False, tiny=TINY)
            for i in range(1, 5)]
    codes = [run.wait().code for run in runs]
    assert sorted(codes) == [0, 0, 0, 1], [run.err() for run in runs]
    assert digest_in(home) == alone_tiny
    held = codes.index(1) + 1
    assert listed(home).keys() == {f"failures-{held}-of-4.csv"} and "broken" in "".join(listed(home).values())
    assert "part 1 of 4: 1 of 4 clips" in runs[0].err() and not any("Traceback" in run.err() for run in runs)
    whole = runner.run(*FLAGS, "videos", cwd=home, small=False, tiny=TINY)
    assert whole.code == 1 and "3 cached, 1 failed" in whole.err()
    assert listed(home).keys() == {"failures.csv"}, "a run over all of it speaks for the parts"


def test_a_part_does_not_wait_for_others(runner: Runner, home: Path) -> None:
    done = runner.run(*FLAGS, "crops", "--shard", "2/3", cwd=home, tiny=TINY)
    assert done.code == 0 and "2 clips computed" in done.err()
    nothing = runner.run(*FLAGS, "crops", "--shard", "9/9", cwd=home, tiny=TINY)
    assert nothing.code == 0 and "part 9 of 9: 0 of 6 clips" in nothing.err()


def test_a_set_without_its_clips_is_told_by_one_part(runner: Runner, home: Path) -> None:
    (home / "table.csv").write_text("clip,path\n" + "".join(f"{i},crops/{i}\n" for i in range(3)) + "gone,crops/gone\n")
    runs = [runner.run(*FLAGS, "table.csv", "--shard", f"{i}/2", cwd=home, tiny=TINY) for i in (1, 2)]
    assert [run.code for run in runs] == [1, 0]
    assert ["gone" in run.err() for run in runs] == [True, False]
    assert listed(home).keys() == {"failures-1-of-2.csv"}


def test_time_is_up_again_and_again(runner: Runner, home: Path) -> None:
    """Each run ends with 0 and says what is left; what was detected once is not detected again."""
    (home / "whole").mkdir()
    (home / "whole" / "cache").mkdir()
    (home / "whole" / "cache" / "weights").symlink_to(home / "cache" / "weights")
    (home / "videos").unlink()
    (home / "videos").mkdir()
    frames = [np.asarray(Image.fromarray(np.full((360, 640, 3), shade, np.uint8))) for shade in range(60, 60 + LONG)]
    make_video(home / "videos" / "long.mp4", frames)
    flags = (*FLAGS, home / "videos", "--detect-every", 1)
    unbroken = runner.run(*flags, cwd=home / "whole", tiny=TINY)
    steps: list[str] = []
    stopped = 0
    for tenths in range(1, 600, 3):
        run = runner.run(*flags, "--time-limit", f"{tenths / 10}s", cwd=home, tiny=TINY)
        assert run.code == 0, run.err()
        steps += run.steps()
        if "stopped by the time limit" not in run.err():
            break
        assert "time limit" in run.err() and f"{LONG} frames" in run.err()
        stopped += 1
    assert stopped, "the first run has too little time"
    assert digest_in(home) == digest_in(home / "whole")
    assert steps.count("detections.kept") == unbroken.steps().count("detections.kept") == LONG // 8


def start(runner: Runner, home: Path, *words: object) -> Run:
    """Start the real command, whose workers are real processes, in a process group of its own."""
    return runner.start(*words, cwd=home, small=False, session=True)


def group_of(pid: int) -> list[int]:
    """Return the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def check_nobody_is_left(pid: int) -> None:
    """Fail unless every process of a group ends soon; Python's resource tracker ends just after the parent."""
    ends = time.monotonic() + 60
    while group_of(pid) and time.monotonic() < ends:
        time.sleep(.1)
    assert not group_of(pid)


@pytest.mark.parametrize("number, at", [(signal.SIGINT, "group"), (signal.SIGTERM, "parent"),
                                        (signal.SIGKILL, "parent")])
def test_workers_stop_and_go_on(runner: Runner, home: Path, alone: dict[str, str], number: signal.Signals,
                                at: str) -> None:
    """Ctrl-C reaches all, SIGTERM the parent alone, and a killed parent leaves nobody behind; then it is done."""
    run = start(runner, home, *FLAGS, "videos", "--workers", 2)
    while not list((home / "cache" / "features").glob("*/*.work/*.claim")) and run.alive():
        time.sleep(.02)
    (os.killpg if at == "group" else os.kill)(run.pid, number)
    err = run.wait(120).err()
    assert run.code == (-9 if number == signal.SIGKILL else 130), err
    assert "Traceback" not in err and (number == signal.SIGKILL or "stopped; everything committed is kept" in err), err
    check_nobody_is_left(run.pid)
    if number == signal.SIGINT:
        again = start(runner, home, *FLAGS[:-2], 2, "--clips", "videos", "--workers", 2)
        err = again.wait(240).err()
        assert again.code == 1 and "1 failed" in err and "broken" in err, err
        assert err.count("512 bytes per frame") == 1 and "Traceback" not in err
        assert digest_in(home) == alone["videos"] and listed(home).keys() == {"failures.csv"}


def test_a_killed_worker_ends_the_run_with_3_and_loses_nothing(runner: Runner, home: Path, alone: dict[str, str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    flags = (*FLAGS[:-2], 2, "--clips", "crops")  # with two workers a thread each, as in `alone`
    with monkeypatch.context() as patch:
        patch.setenv("FERCACHE_KILL_AT", "frame_table.written:2")
        run = start(runner, home, *flags, "--workers", 2)
        err = run.wait(240).err()
    assert run.code == 3 and "killed" in err and "Traceback" not in err, err
    check_nobody_is_left(run.pid)
    again = runner.run(*FLAGS, "crops", cwd=home, small=False)
    assert again.code == 0 and "0 failed" in again.err(), again.err()
    assert digest_in(home) == alone["crops"]


def test_time_is_up_for_workers_too(home: Path) -> None:
    report = LaunchPlan(workers=2, ends_s=time.time()).run(crops_of(home), CONFIG, home / "cache", None)
    assert [(c.state, c.frames) for c in report.clips] == [("left", 2 + i) for i in range(CROPS)]
    assert not report.failures() and not report.failures_at.exists()


def typed(**flags: str) -> LaunchPlan:
    return LaunchPlan.from_flags({}, time.time(), **flags)


@pytest.mark.parametrize("flags, says", [
    ({"scheduler": "tcp://x:1"}, "only Dask has a scheduler"),
    ({"scheduler": "tcp://x:1", "engine": "dask", "workers": "2"}, "a running scheduler has its own workers"),
    ({"workers": "many"}, "not a number of processes"), ({"workers": "-1"}, "not a number of processes"),
    ({"workers": "9999"}, "not a number of processes"), ({"shard": "1"}, "not a part"),
    ({"time_limit": "soon"}, "not a length of time")])
def test_what_makes_no_sense_is_refused(flags: dict[str, str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        typed(**flags)
    words = [word for name, value in flags.items() for word in ("--" + name.replace("_", "-"), value)]
    done = CliRunner().invoke(main, ["extract", *words])
    assert done.exit_code == 2 and says in done.output and "next: " in done.output


def test_torchrun_seats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of torchrun's has its GPU and its share of the threads; a device with a number stays."""
    from fercache.runtime import devices

    environ = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert LaunchPlan.from_flags(environ, 0, shard="auto").local_rank == (1, 4)
    assert LaunchPlan.from_flags(environ, 0, shard="6/8").local_rank == (0, 1)
    assert devices.assign_gpu("auto", 8, 1, 4) == ("auto", 2) and devices.assign_gpu("cpu", 2, 3, 4) == ("cpu", 1)
    monkeypatch.setattr(devices, "gpus", lambda: 3)
    assert [devices.assign_gpu("auto", 8, i, 4)[0] for i in range(4)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert devices.assign_gpu("cuda:2", 8, 0, 4)[0] == "cuda:2" and devices.assign_gpu("cpu", 8, 0, 4)[0] == "cpu"


def spec_at(home: Path) -> tuple[JobSpec, base.Dataset]:
    """Return the specification of a job on an empty store."""
    dataset = crops_of(home)
    specs: list[JobSpec] = []

    def engine(work: job.ExtractionJob, trials: Any) -> list[job.ClipResult]:
        specs.append(JobSpec.from_job(work, trials, float("inf"), 1))
        return []
    job.extract_dataset(dataset, CONFIG, home / "cache", engine=engine)
    return specs[0], dataset


def test_a_process_that_cannot_do_it_says_why(home: Path, tmp_path: Path) -> None:
    spec, dataset = spec_at(home)
    trials = without_labels(dataset.trials)
    assert all(trial.path.is_absolute() and trial.labels is None for trial in trials)
    assert spec.store.is_absolute() and spec.cnn.path.is_absolute()  # type: ignore[union-attr]
    for wrong, says in ((replace(spec, version="0.0"), "the run has 0.0"),
                        (replace(spec, source=tmp_path / "elsewhere"), "elsewhere does not exist"),
                        (replace(spec, store=tmp_path / "other.zarr"), "other.zarr does not exist"),
                        (replace(spec, cnn=replace(spec.cnn, path=tmp_path / "w")), "/w does not exist")):
        with pytest.raises(InputError, match=says) as error:
            dask_engine.worker_for(wrong, 0)
        assert "every" in str(error.value)


def test_a_dask_worker_returns_its_log(home: Path) -> None:
    spec, dataset = spec_at(home)
    worker = dask_engine.worker_for(spec, 0)
    assert dask_engine.worker_for(spec, 0) is worker, "nets are loaded once"
    done = dask_engine.extract_logged(worker, replace(dataset.trials[0], path=home / "crops" / "gone"))
    assert done.clip.state == "failed"
    assert [level for level, _ in done.log_records] == [logging.ERROR] and "gone" in done.log_records[0][1]
    late = dask_engine.worker_for(replace(spec, ends_s=time.time()), 0)
    assert late is not worker
    left = [dask_engine.extract_logged(late, trial).clip for trial in dataset.trials]
    assert [(clip.state, clip.frames) for clip in left] == [("left", 2 + i) for i in range(CROPS)]


def test_dask_is_an_extra(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.chdir(home)
    done = CliRunner().invoke(main, [*map(str, FLAGS), "crops", "--engine", "dask"])
    assert done.exit_code == 2 and "pip install 'fercache[dask]'" in done.output


@pytest.fixture
def distributed() -> Any:
    return pytest.importorskip("distributed", reason="the extra fercache[dask] is not installed")


def test_no_scheduler_answers(home: Path, distributed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fercache.extraction.distributed.dask.CONNECT_S", .5)
    way = LaunchPlan(dask=True, scheduler="tcp://127.0.0.1:9")
    with pytest.raises(InputError, match="no scheduler answers"):
        way.run(crops_of(home), CONFIG, home / "cache", None)


@pytest.fixture
def cluster(distributed: Any) -> Iterator[Any]:
    """Two workers on this machine, two clips at once each, as somebody else might have started them."""
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, memory_limit=0, dashboard_address="127.0.0.1:0",
                                  silence_logs=logging.CRITICAL) as made:
        yield made


def kill_the_busy_one(work: Path, pids: set[int], killed: list[int]) -> None:
    """Kill the first worker that has a clip at work."""
    while not killed:
        for claim in work.glob("*.claim"):
            for pid in pids:
                links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
                if claim in links and list(work.glob("*.journal")):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    return
        time.sleep(.01)


def test_a_dask_worker_is_killed_in_the_middle(home: Path, cluster: Any, distributed: Any,
                                               alone: dict[str, str]) -> None:
    """The others, and its successor, do what it had: each clip is done, once, and the store is the same."""
    dataset = data.load_dataset(DatasetConfig(clips=str(home / "videos"), dataset="table"), home / "cache")
    with distributed.Client(cluster) as client:
        pids = set(client.run(os.getpid).values())
    (store,) = {job.store_path(home / "cache", dataset.name, order_at_videos(dataset, home))}
    killed: list[int] = []
    work = store.with_suffix(".work")
    thread = threading.Thread(target=kill_the_busy_one, args=(work.resolve(), pids, killed), daemon=True)
    thread.start()
    report: ExtractReport = LaunchPlan(dask=True, scheduler=cluster.scheduler_address).run(dataset, CONFIG,
                                                                                           home / "cache",
                                                                                   None)
    assert killed and killed[0] in pids
    with distributed.Client(cluster) as client:
        assert killed[0] not in client.run(os.getpid).values()
    assert {c.clip: c.state for c in report.clips} == {"a": "computed", "b": "computed", "c": "computed",
                                                       "broken": "failed"}
    assert digest_in(home) == alone["videos"]
    assert not list(work.glob("*.journal"))


def test_a_clip_that_kills_its_worker_is_a_failure(home: Path, distributed: Any,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    whole = crops_of(home)
    monkeypatch.setenv("FERCACHE_KILL_AT", "frame_table.written:1")  # for the workers, which begin anew
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        report = LaunchPlan(dask=True, workers=1).run(replace(whole, trials=whole.trials[:1]), CONFIG, home / "cache",
                                                      None)
    assert [(c.clip, c.state, c.message) for c in report.clips] == [("0", "failed", "its worker died, 1 times")]
    assert "its worker died" in listed(home)["failures.csv"]


def order_at_videos(dataset: base.Dataset, home: Path) -> dict[str, Any]:
    """Return the settings of the videos' store."""
    from fercache.backbones import weights

    return job.settings_of(CONFIG, "mtcnn", weights.ensure_weights(CONFIG.weights, home / "cache" / "weights"))
