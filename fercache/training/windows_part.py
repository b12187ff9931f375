"""The store in RAM, read once, and the windows over it that the heads are trained on."""

from __future__ import annotations
