"""Without the future: which heads a causal stack may listen to."""

from __future__ import annotations

import logging
from dataclasses import replace

from fercache.errors import InputError
from fercache.oof import LogitBook

log = logging.getLogger(__name__)


LOOK_AHEAD = ("gru", "transformer")
"""Heads that read a window on both sides of a frame."""


def without(book: LogitBook) -> LogitBook:
    """Return the book without the heads that look at later frames.

    Raises
    ------
    InputError
        No other head is there, or rows are whole clips.
    """
    if book.pooled:
        raise InputError("a clip's prediction looks at the whole clip", where="stack",
                         hint="drop --causal, or choose --level frame")
    kept = tuple(head for head in book.heads if head not in LOOK_AHEAD)
    if not kept:
        raise InputError(f"--causal: {', '.join(book.heads)} look at later frames, and there is no other head",
                         where="stack", hint="train the head `frame`, or import logits of a causal model")
    settings = book.provenance.get("settings", {})
    if set(kept) - set(book.declared) and isinstance(settings, dict) and settings.get("standardise") == "clip":
        raise InputError("--causal: the heads' features were standardised over whole clips, later frames included",
                         where="stack", hint="train heads with another --standardise")
    if len(kept) < len(book.heads):
        log.info("causal: without %s, which look at later frames",
                 ", ".join(head for head in book.heads if head not in kept))
    return replace(book, heads=kept, logits={head: book.logits[head] for head in kept})
