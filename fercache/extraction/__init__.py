"""Stage one: from clips to the embedding store. Every frame is decoded, its face detected, and the CNN run once.

Open `job.py` first (all clips), then `clip.py` (one clip).
"""
