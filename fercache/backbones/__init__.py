"""The frozen face CNN: its nets, their taps, and their weights.

Open `backbone.py` first, then `weights/__init__.py`.
"""

from __future__ import annotations
