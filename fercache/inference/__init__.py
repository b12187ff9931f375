"""`fercache predict`: new clips through extraction, heads and stack.

Open `predict.py` first.
"""

from __future__ import annotations
