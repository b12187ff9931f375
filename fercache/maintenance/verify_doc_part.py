"""Care of the cache: prove that a store is whole, tell two apart, remove what nobody names, forget a person."""

from __future__ import annotations
