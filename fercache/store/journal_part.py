"""What is durable of a clip on its way: lines appended, each with its checksum, read up to the first torn one."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from fercache.runtime import atomic_io
from fercache.store.manifest import LARGEST

LONGEST_JOURNAL = 16 * LARGEST


class Journal:
    """An append-only file of JSON records.

    Notes
    -----
    A crash tears at most the last line, and a torn or altered line ends the reading. What a record says of other files
    is checked against their digests when it is read, so that both can be synced in one turn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.end = 0
        self.records = self._read()

    def _read(self) -> list[dict[str, Any]]:
        """Return the records up to the first line that is not whole."""
        if not self.path.is_file() or self.path.stat().st_size > LONGEST_JOURNAL:
            return []
        found = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            record = _parse(line)
            if record is None:
                break
            found.append(record)
            self.end += len(line)
        return found

    def append(self, record: dict[str, Any]) -> None:
        """Add a record; `sync` makes it last, or a sync of `path` among other files."""
        text = json.dumps(record, separators=(",", ":")).encode()
        atomic_io.make_folder(self.path.parent)
        with self.path.open("ab") as file:
            file.truncate(self.end)
            self.end += file.write(b"%08x %s\n" % (zlib.crc32(text), text))
        self.records.append(record)

    def sync(self) -> None:
        """Return when the records have reached the disk."""
        atomic_io.sync_all([self.path])

    def remove(self) -> None:
        """Forget everything; a journal that a crash brings back is harmless, since files are checked against it."""
        self.records, self.end = [], 0
        self.path.unlink(missing_ok=True)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record of one line, None where the line is torn or altered."""
    checksum, _, text = line.partition(b" ")
    if not text.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text[:-1]):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
