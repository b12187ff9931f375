"""The embedding store: every frame's features in Zarr, one group per clip; a clip is complete or absent.

Open `embedding_store.py` first, then `writer.py` and `manifest.py`.
"""
