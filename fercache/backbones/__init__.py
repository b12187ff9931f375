"""The frozen face CNN: its nets, the taps that can be kept, and its weights.

Open `backbone.py` first.
"""

from __future__ import annotations
