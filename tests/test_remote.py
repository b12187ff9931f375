"""Stores beyond this machine: a real S3 server on the loopback, HTTP to read, memory; killed, shared, refused."""

from __future__ import annotations

import functools
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import test_resume
import zarr
from forked import Runner
from s3 import bucket, s3_endpoint, server, settings  # noqa: F401 - fixtures
from test_store import NAMES, PROVENANCE, SETTINGS, SOURCE, TAPS, features, put

from fercache import open_store
from fercache.errors import ClipError, InputError, MissingExtra, NotInStore, StoreError
from fercache.maintenance import verify
from fercache.runtime.uri import Url, as_location
from fercache.store import locks
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.store.locks import locked_clips
from fercache.store.remote import RemoteStoreFiles, files_at

pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Client:pytest.PytestUnraisableExceptionWarning")


def fs_of(url: str) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(url.partition("://")[0], use_listings_cache=False)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home-cache"))
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket"
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize(("text", "place"), [
    ("cache", Path("cache")), ("/a/b", Path("/a/b")), ("s3://b/x/", Url("s3://b/x")), ("file:///a/b", Path("/a/b")),
    ("GS://b", Url("gs://b")), (Path("s3://b/x"), Url("s3://b/x")), ("s3:/b", Path("s3:/b")), ("C:/x", Path("C:/x")),
    (Url("s3://b"), Url("s3://b")), ("memory://a", Url("memory://a"))])
def test_places(text: str | Path | Url, place: Path | Url) -> None:
    assert as_location(text) == place


def test_a_folder_that_looks_like_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    assert as_location(Path("s3:/b")) == Path("s3:/b")
    with pytest.raises(InputError, match="chained"):
        as_location("zip::s3://b/x.zip")


@pytest.mark.parametrize("frames", [1, 257, 2500])
def test_what_is_committed_comes_back(bucket: str, tmp_path: Path, frames: int) -> None:  # noqa: F811
    store = EmbeddingStore.create(f"{bucket}/cache/features/d/casia-0123.zarr", SETTINGS, TAPS)
    local = EmbeddingStore.create(tmp_path / "casia-0123.zarr", SETTINGS, TAPS)
    put(store, "a clip", frames)
    put(local, "a clip", frames)
    again = open_store(f"{bucket}/cache/features/d/casia-0123.zarr")
    clock, taps = features(frames)
    for tap, value in taps.items():
        np.testing.assert_array_equal(again["a clip"].read(tap), value)
        np.testing.assert_array_equal(again["a clip"][tap][-1], value[-1])
        np.testing.assert_array_equal(again["a clip"][tap][10:74], value[10:74])
        np.testing.assert_array_equal(again["a clip"][tap].zarr[:], value)
    for i, name in enumerate(FRAME_COLUMNS):
        np.testing.assert_array_equal(again["a clip"].frame_table[name], clock[:, i])
    assert list(again) == ["a clip"] and again.digest() == local.digest()
    assert again.size() == local.size()
    fs, root = fs_of(bucket), f"{bucket}/cache/features/d/casia-0123.zarr"
    there = {key.partition("casia-0123.zarr/")[2]: fs.cat_file(key) for key in fs.find(root)}
    assert there == {str(p.relative_to(local.path)): p.read_bytes() for p in local.path.rglob("*") if p.is_file()}
    assert not fs.find(f"{bucket}/cache/features/d/casia-0123.work"), "a claim was left behind"


def test_plain_zarr_reads_the_url(bucket: str) -> None:  # noqa: F811
    url = f"{bucket}/casia-0123.zarr"
    store = EmbeddingStore.create(url, SETTINGS, TAPS)
    put(store, "a b", 300)
    root = zarr.open_group(url, mode="r")
    clock, taps = features(300)
    assert root.attrs["fercache"]["settings"] == SETTINGS and list(root.group_keys()) == ["a%20b"]
    clip = root["a%20b"]
    assert clip.attrs["fercache"]["clip"] == "a b" and sorted(clip.array_keys()) == ["block8", "frame_table",
                                                                                     "repeat_1-3x3"]
    np.testing.assert_array_equal(clip["block8"][10:74], taps["block8"][10:74])
    np.testing.assert_array_equal(clip["frame_table"][:, clip["frame_table"].attrs["columns"].index("time_s")],
                                  clock[:, 1])


def test_any_name_is_a_clip(memory: str) -> None:
    store = EmbeddingStore.create(f"{memory}/s.zarr", SETTINGS, TAPS)
    for i, name in enumerate(NAMES):
        put(store, name, 3, i)
    again = EmbeddingStore.open(f"{memory}/s.zarr")
    assert list(again) == sorted(NAMES)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(again[name].read("block8"), features(3, i)[1]["block8"])
    assert all(key.startswith("/bucket/s.") for key in fsspec.filesystem("memory").store)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The test's folder, served as plain files."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *said: object) -> None:
            pass
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{serving.server_address[1]}"
    serving.shutdown()
    serving.server_close()


def test_http_reads(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp", reason="the extra `http` is not installed")
    put(EmbeddingStore.create(tmp_path / "s.zarr", SETTINGS, TAPS), "c", 700)
    store = open_store(f"{web}/s.zarr")
    np.testing.assert_array_equal(store["c"]["block8"][10:300], features(700)[1]["block8"][10:300])
    assert list(store) == ["c"] and store.digest() == EmbeddingStore.open(tmp_path / "s.zarr").digest()
    with pytest.raises(NotInStore):
        store["other"]
    with pytest.raises(StoreError):
        put(EmbeddingStore.open(f"{web}/s.zarr", mode="a"), "d", 3)
    with pytest.raises(StoreError, match="no embedding store"):
        open_store(f"{web}/t.zarr")


STEPS = ["store.created:1", "lease.taken:1", "begin.journaled:1", "detections.kept:2", "frame_table.journaled:1",
         "chunk.written:9", "segment.written:2", "segment.journaled:1", "segment.synced:2", "segment.synced:4",
         "commit.array:2", "commit.unmarked:1", "commit.marked:1", "discard.unmarked:1"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("unbroken")
    test_resume.prepare(folder / "s.zarr")
    test_resume.work(folder / "s.zarr")
    return EmbeddingStore.open(folder / "s.zarr").digest()


@pytest.mark.parametrize("step", STEPS[2::4])
def test_killed_anywhere_it_goes_on(runner: Runner, bucket: str, unbroken: str, step: str,  # noqa: F811
                                    tmp_path: Path) -> None:
    check_killed(runner, f"{bucket}/s.zarr", step, unbroken, tmp_path)


@pytest.mark.slow("eleven more steps; three run always")
@pytest.mark.timeout(3600)
def test_killed_at_all_other_steps(runner: Runner, bucket: str, unbroken: str, tmp_path: Path) -> None:  # noqa: F811
    for i, step in enumerate(step for step in STEPS if step not in STEPS[2::4]):
        check_killed(runner, f"{bucket}/{i}.zarr", step, unbroken, tmp_path)


def check_killed(runner: Runner, url: str, step: str, unbroken: str, folder: Path) -> None:
    """Kill the writer of `test_resume` at a step; a second one ends with the bytes of an unbroken one."""
    test_resume.prepare(url)  # type: ignore[arg-type]
    killed = runner.run(url, cwd=folder, kill_at=step, small=False, program="test_resume")
    assert killed.code == -signal.SIGKILL, killed.err()
    test_resume.work(url)  # type: ignore[arg-type]
    store = EmbeddingStore.open(url)
    assert store.digest() == unbroken and set(store) == set(test_resume.FRAMES)
    report = verify.verify_store(url)
    assert report.whole and not report.issues and report.clips == len(test_resume.FRAMES)
    assert not locked_clips(as_location(url)), "a dead process's claim counts as alive"


def test_resumes_inside_a_clip(bucket: str) -> None:  # noqa: F811
    """Segments that are there are read back and kept; one that was altered is written again."""
    url = f"{bucket}/s.zarr"
    store = EmbeddingStore.create(url, test_resume.SETTINGS, test_resume.TAPS)
    assert test_resume.write(store, "video", until=1100) == 0
    store = EmbeddingStore.create(url, test_resume.SETTINGS, test_resume.TAPS)
    assert test_resume.write(store, "video", until=1) == 2048
    fs = fs_of(url)
    fs.pipe_file(f"{url}/video/block8/c.5.0", fs.cat_file(f"{url}/video/block8/c.4.0"))
    assert test_resume.write(EmbeddingStore.open(url, mode="a"), "video") == 1024
    assert verify.verify_store(url).whole


def test_verify_finds_and_repairs(bucket: str) -> None:  # noqa: F811
    url = f"{bucket}/s.zarr"
    store = EmbeddingStore.create(url, SETTINGS, TAPS)
    for i in range(5):
        put(store, f"c{i}", 300, i)
    fs = fs_of(url)
    data = bytearray(fs.cat_file(f"{url}/c1/block8/c.1.0"))
    data[7] ^= 1
    fs.pipe_file(f"{url}/c1/block8/c.1.0", bytes(data))
    fs.rm_file(f"{url}/c2/frame_table/c.0.0")
    fs.pipe_file(f"{url}/c3/block8/c.0.0", fs.cat_file(f"{url}/c3/block8/c.0.0")[:-1])
    fs.pipe_file(f"{url}/c4/other", b"stray")
    with pytest.raises(StoreError, match="missing or torn"):
        EmbeddingStore.open(url)["c2"].frame_table["time_s"]
    with pytest.raises(StoreError, match="missing or torn"):
        EmbeddingStore.open(url)["c3"]["block8"][:]
    report = verify.verify_store(url)
    assert {issue.details[0] for issue in report.issues if issue.is_error} == {"c1", "c2", "c3"}
    assert verify.verify_store(url, repair=True).dropped == ("c1", "c2", "c3")
    after = verify.verify_store(url)
    assert after.whole and not after.issues and after.clips == 2
    assert list(EmbeddingStore.open(url)) == ["c0", "c4"]


def test_another_machine_waits_and_takes_over(bucket: str, tmp_path: Path,  # noqa: F811
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines share nothing but the bucket: each has a folder of claims and journals of its own."""
    url = f"{bucket}/s.zarr"
    store = EmbeddingStore.create(url, SETTINGS, TAPS)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        assert writer is not None and locked_clips(as_location(url)) == {"c"}
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
        other = EmbeddingStore.create(url, SETTINGS, TAPS)
        with other.writer("c", source=SOURCE, provenance=PROVENANCE) as second:
            assert second is None
        with pytest.raises(StoreError, match="another process"):
            other.remove("c")
        put(other, "d", 300)
        silent_for(locks.LEASE_TTL_S + 1, store, "c")
        put(other, "c", 300)
        with pytest.raises(ClipError, match="taken"):
            writer.set_frame_table(features(300, seed=1)[0])
    again = EmbeddingStore.open(url)
    assert set(again) == {"c", "d"} and verify.verify_store(url).whole
    np.testing.assert_array_equal(again["c"].frame_table["time_s"], features(300)[0][:, 1])
    assert not fs_of(url).find(f"{bucket}/s.work")


def silent_for(seconds: float, store: EmbeddingStore, clip: str) -> None:
    """Make a live writer one that was suspended for so long."""
    assert isinstance(store.files, RemoteStoreFiles)
    held = store.files.guards[clip].__self__  # type: ignore[attr-defined]
    held._beat_s -= seconds
    held.claims.replace(held.key, json.dumps({"owner": held.owner, "time_s": time.time() - seconds}).encode())


def test_a_claim_that_is_gone_is_noticed(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.05)
    store = EmbeddingStore.create(f"{memory}/s.zarr", SETTINGS, TAPS)
    with store.writer("c", source=SOURCE, provenance=PROVENANCE) as writer:
        before = fs_of(memory).cat_file(f"{memory}/s.work/c/{next(iter(files_at(f'{memory}/s.work').sizes('c')))}")
        time.sleep(0.3)
        name = next(iter(files_at(f"{memory}/s.work").sizes("c")))
        assert fs_of(memory).cat_file(f"{memory}/s.work/c/{name}") != before, "no sign of life"
        fs_of(memory).rm_file(f"{memory}/s.work/c/{name}")
        time.sleep(0.3)
        with pytest.raises(ClipError, match="taken"):
            writer.set_frame_table(features(300)[0])


def test_of_many_machines_one_has_the_clip(memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight that come at the same moment, over and over: never two at once, and in the end somebody has it."""
    files, claims = RemoteStoreFiles(Url(f"{memory}/s.zarr")), RemoteStoreFiles(Url(f"{memory}/s.work"))
    inside, most, had, put_ = [], [], [], RemoteStoreFiles.replace

    def slow(self: RemoteStoreFiles, key: str, data: bytes) -> None:
        time.sleep(0.02)  # between the first look and the claim
        put_(self, key, data)
    monkeypatch.setattr(RemoteStoreFiles, "replace", slow)

    def machine(number: int) -> None:
        for _ in range(5):
            with locks.remote_lease(files, claims, tmp_path / f"machine{number}", "c") as mine:
                if mine:
                    inside.append(number)
                    most.append(len(inside))
                    had.append(number)
                    time.sleep(0.01)
                    inside.remove(number)
    threads = [threading.Thread(target=machine, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert had and max(most) == 1 and not claims.sizes("c")


def test_wrong_places_are_said(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    for make in (lambda url: EmbeddingStore.create(url, SETTINGS, TAPS), EmbeddingStore.open):
        with pytest.raises(StoreError, match=r"bucket|no embedding store") as said:
            make("s3://there-is-no-such-bucket/s.zarr")
        assert said.value.exit_code == 2 and "s3://there-is-no-such-bucket" in str(said.value)
    with pytest.raises(InputError, match="kind of storage"):
        EmbeddingStore.open("nonsense://bucket/s.zarr")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingExtra, match="gs://") as missing:
        EmbeddingStore.open("gs://bucket/s.zarr")
    assert "fercache[gs]" in str(missing.value)


def test_wrong_credentials_and_no_server_are_said(tmp_path: Path) -> None:
    """As a user meets them: a message, exit code 2, and no traceback."""
    pytest.importorskip("moto")
    with server(INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        denied = info("s3://bucket/s.zarr", tmp_path, **settings(endpoint, key="nobody"))
    # The client tries again after pauses that grow; by default the last of them is many seconds long.
    gone = info("s3://bucket/s.zarr", tmp_path, AWS_MAX_ATTEMPTS="2", **settings(endpoint))
    for done, said in ((denied, "denied"), (gone, "request failed")):
        assert done.returncode == 2 and said in done.stderr and "credentials" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not done.stdout


def info(url: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fercache", "info", "--store", url], check=False, text=True,
                          capture_output=True, timeout=120, cwd=folder, env={**os.environ, **environment})
