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
