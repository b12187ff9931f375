"""One colour a class, wherever classes are drawn."""

from __future__ import annotations

COLOURS = ("#999999", "#d55e00", "#009e73", "#56b4e9", "#f0e442", "#0072b2", "#cc79a7", "#000000")
"""Okabe and Ito's palette, which colour-blind readers can tell apart; one colour a class, in order."""
