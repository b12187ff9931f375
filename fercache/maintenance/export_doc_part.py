"""Features go out to other tools, and features made elsewhere come in as stores on the same frame clock.

Formats
-------
``h5``: one file, a group a clip, a dataset a tap and the clock. ``npz``: a folder, one file a clip. ``npy``: a folder a
clip, one file an array. ``parquet``: one file, a row a frame, a list column a tap. All of them come back bit for bit.
Also read: HDF5 ``file[trial]['00001'] -> vector``, one npy or npz a trial, CSV with columns clip, frame and numbers.
"""

from __future__ import annotations
