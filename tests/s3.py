"""A real S3 protocol server (moto's) on the loopback, in a process of its own."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

REGION = "us-east-1"


@contextmanager
def server(**environment: str) -> Iterator[str]:
    """Yield the endpoint of a server that ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
    try:
        _await(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        assert process.poll() is None, "the S3 server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the S3 server does not answer")


def settings(endpoint: str, key: str = "somebody") -> dict[str, str]:
    """Return the environment by which every S3 client finds the server."""
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    pytest.importorskip("moto", reason="the S3 server of the tests is not installed (make setup for development)")
    pytest.importorskip("s3fs", reason="needs fercache[s3]")
    with server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[str]:
    """An empty bucket of its own, ``s3://test-...``; the environment points to it, claims lie in the test's folder."""
    for name, value in settings(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", f"{tmp_path}/home-cache")
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # one made for another server would be handed out again
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    name = f"test-{os.getpid()}-{time.monotonic_ns()}"
    fs.mkdir(name)
    yield f"s3://{name}"
    fs.rm(name, recursive=True)
    gc.collect()  # Zarr's own connections are closed by nobody: let them go here, where that is expected
