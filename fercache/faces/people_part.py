"""Who is who: faces linked over frames into pieces, and the pieces of one person joined, by the face or by place."""

from __future__ import annotations

POLICY = 2
"""Raised whenever the code changes whom boxes belong to. 1 linked by overlap alone."""
