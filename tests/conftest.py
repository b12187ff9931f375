"""What tests share."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl
from forked import Runner
from numpy.typing import NDArray

from fercache import media
from fercache.backbones import weights
from fercache.data import demo
from fercache.runtime import devices

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a background shell starts is deaf to it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Parallel test processes share the cores, and threads that spin while they wait cost more than they give: a stack run
# takes half the processor time with one BLAS thread, and two files of tests took 12 s instead of 16 to 21 with OpenMP
# threads that sleep. numpy is loaded already; the variables reach torch, LightGBM and the processes that tests start.
threadpoolctl.threadpool_limits(1, user_api="blas")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Nothing that is imported goes away again, and each full collection looks through it for half a second: two in each
# training, before it forks. Frozen, it costs nothing: a small training takes 1.2 s of processor time instead of 3.4.
gc.disable()  # until the tests are collected

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # see backbones/onnx.py

ROOT = Path(__file__).resolve().parent.parent
MEMORY = Path("/dev/shm")
LONGEST = ("test_engines", "test_few_groups", "test_memory", "test_people_clips", "test_pipeline", "test_remote",
           "test_resume", "test_train_heads", "test_train_heads_command")
"""Files with the longest tests."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the stated volumes too (make test-full)")


def pytest_configure(config: pytest.Config) -> None:
    """Put temporary files into memory: on a disk, tests mostly wait for small files to be written and removed."""
    # A run keeps less than 1 GB of files; 2.65 million of them with --full.
    room = (24 if config.getoption("--full") else 8) << 30
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and not os.statvfs(MEMORY).f_flag & os.ST_NOEXEC
    if "TMPDIR" not in os.environ and usable and min(shutil.disk_usage(MEMORY).free, devices.free_memory()) > room:
        os.environ["TMPDIR"] = str(MEMORY)  # for the processes that tests start too
        tempfile.tempdir = None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # A process must not be left alone with the longest tests at the end of a parallel run.
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    if not config.getoption("--full"):
        for item in items:
            if slow := item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason=f"{slow.args[0]} (make test-full)"))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Make captured text printable: parallel workers send it as UTF-8, and some tests log names that are not."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A folder of a module's own, in whose `cache` are the weights."""
    folder = tmp_path_factory.mktemp("home")
    weights.ensure_weights("casia-webface", cache / "weights")
    (folder / "cache").mkdir()
    (folder / "cache" / "weights").symlink_to(cache.resolve() / "weights")
    return folder


@pytest.fixture(scope="session")
def full(pytestconfig: pytest.Config) -> bool:
    """Whether the stated volumes run (make test-full); a test with a volume takes a smaller one if not."""
    return bool(pytestconfig.getoption("--full"))


@pytest.fixture(scope="module")
def tiny_cnn() -> Iterator[None]:
    """A tiny CNN in place of the real one, for all tests and fixtures of a module."""
    import tiny_nets

    with pytest.MonkeyPatch.context() as patch:
        tiny_nets.install(["cnn"], patch.setattr)
        yield


@pytest.fixture(scope="module")
def tiny_detector() -> Iterator[None]:
    """A tiny detector in place of the real one, for all tests and fixtures of a module."""
    import tiny_nets

    with pytest.MonkeyPatch.context() as patch:
        tiny_nets.install(["detector"], patch.setattr)
        yield


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs the real command line, each time in a forked process."""
    made = Runner(tmp_path_factory.mktemp("runner"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and tools beside the checkout."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared beside this checkout (real data for development; never needed by users)")
    return folder


@pytest.fixture(scope="session")
def cache() -> Path:
    """The checkout's own cache folder, where weights are kept from one test run to the next."""
    return ROOT / "cache"


@pytest.fixture(scope="session")
def weights_at(cache: Path) -> Path:
    """The checkout's folder of weights, once the default ones lie in it."""
    weights.ensure_weights("casia-webface", cache / "weights")
    return cache / "weights"


@pytest.fixture(scope="session")
def face_frames(cache: Path) -> list[NDArray[np.uint8]]:
    """Twelve upright frames, (360, 640, 3), with one real face, out of a clip of the demo."""
    clips = demo.fetch_demo_clips(cache / "clips")
    source = media.open_source(clips / "single_face.mp4", "video")
    return [frame.image for frame in source.pick(range(0, 60, 5)) if frame.image is not None]
