"""Durable files: whole or absent, and a lock that dies with its holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from fercache.errors import InputError
from fercache.runtime import atomic_io


def test_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_io.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_io.replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"], "a temporary file stayed"


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_io.write_bytes(tmp_path / "x", b"")
        with atomic_io.replacing(tmp_path / "y.safetensors") as temporary:
            safetensors.numpy.save_file({"a": np.zeros(1)}, temporary)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "x", tmp_path / "y.safetensors")} == {0o640}


def test_json_round_trip_and_bounds(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    atomic_io.write_json(path, {"b": [1, None], "a": "ü"})
    assert atomic_io.read_json(path) == {"a": "ü", "b": [1, None]}
    with pytest.raises(InputError, match="larger"):
        atomic_io.read_json(path, limit_bytes=3)
    path.write_text("[" * 100_000)
    with pytest.raises(InputError, match="not readable"):
        atomic_io.read_json(path)


def test_a_folder_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        atomic_io.write_bytes(tmp_path / "file" / "x", b"")


HOLDER = """
import sys, time
from pathlib import Path
from fercache.runtime import atomic_io
with atomic_io.lock(Path(sys.argv[1])) as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


def test_a_lock_is_exclusive_and_dies_with_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        with atomic_io.lock(path) as mine:
            assert not mine
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with atomic_io.lock(path) as mine:
            if mine:
                return
    pytest.fail("the lock outlived its holder")


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with pytest.raises(RuntimeError), atomic_io.making_folder(path) as temporary:
        (temporary / "a").write_bytes(b"half")
        raise RuntimeError
    assert not path.exists() and not list(path.parent.iterdir()), "a temporary folder stayed"
    with atomic_io.making_folder(path) as temporary:
        (temporary / "a").write_bytes(b"whole")
        assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"] and (path / "a").read_bytes() == b"whole"
    with pytest.raises(InputError, match="already exists"), atomic_io.making_folder(path):
        pass
    (path / "a").unlink()
    with atomic_io.making_folder(path) as temporary:  # an empty folder is no loss
        (temporary / "b").write_bytes(b"")
    assert (path / "b").exists() and path.stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_name_as_long_as_the_file_system_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".json")
    atomic_io.write_json(path, {})
    assert atomic_io.read_json(path) == {}
    with atomic_io.making_folder(tmp_path / ("顔" * 85)) as folder:
        (folder / "x").write_bytes(b"")
    assert (tmp_path / ("顔" * 85) / "x").is_file()
