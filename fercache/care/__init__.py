"""Care of the cache: prove that a store is whole, tell two apart, remove what nobody names, forget a person."""

from __future__ import annotations

from fercache.care.diff import ClipDiff, DiffReport, diff
from fercache.care.forget import ForgetReport, forget, holding
from fercache.care.gc import Waste, collect, garbage
from fercache.care.traces import traces
from fercache.care.verify import VerifyReport, verify

__all__ = ["ClipDiff", "DiffReport", "ForgetReport", "VerifyReport", "Waste", "collect", "diff", "forget", "garbage",
           "holding", "traces", "verify"]
