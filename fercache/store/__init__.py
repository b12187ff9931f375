"""The embedding store: every frame's features, in Zarr, clip by clip; a clip is complete or absent.

On disk
-------
``<name>.zarr/zarr.json``: the root group, its settings, taps and fingerprint.
``<name>.zarr/<clip>/<tap>/c.0.0``: chunks of up to 256 rows, plain little-endian numbers.
``<name>.zarr/<clip>/zarr.json``: the clip's group, whose attributes are the commit mark; written last.
``<name>.work/``: journals of clips on their way, claims of live writers. Of a store at a URL: local, in the user's
cache; beside the URL's store lie only the machines' claims.
"""

from __future__ import annotations

from fercache.store.check import Fault
from fercache.store.clip import Clip, Tap
from fercache.store.core import EmbeddingStore
from fercache.store.files import Size
from fercache.store.joined import Joined, Readable, join
from fercache.store.layout import CHUNK, CLOCK, CLOCK_NAME, SEGMENT
from fercache.store.lease import claimed, work_folder
from fercache.store.mark import ArrayMark, Mark, same_source
from fercache.store.remote import files_at, read_json, write_json
from fercache.store.writer import ClipWriter

__all__ = ["CHUNK", "CLOCK", "CLOCK_NAME", "SEGMENT", "ArrayMark", "Clip", "ClipWriter", "EmbeddingStore", "Fault",
           "Joined", "Mark", "Readable", "Size", "Tap", "claimed", "files_at", "join", "read_json", "same_source",
           "work_folder", "write_json"]
