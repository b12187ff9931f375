"""The metrics of a stack run: `metrics.json` in its folder, `preds.metrics.json` beside predictions."""
# Reading them imports no LightGBM, which takes seconds to load.

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fercache.errors import InputError
from fercache.metrics import METRICS, PairedDifference, Scores
from fercache.oof import Provenance
from fercache.runtime import atomic_io
from fercache.stacking.smoothed_mean import SmoothedMean

FORMAT = 12  # incremented whenever the code changes the output of a run, so that old cached runs are not reused
MERGED = "logits "  # prefix of the keys under which the provenance lists the imported sources that were merged


class FoldRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen in fitting one fold: in `metrics.json`, and for all folds in a file of its own."""

    version: int = 1
    fold: int  # the fold that was left out; -1 for none
    many_groups: bool  # whether all folds together have `models.MANY_GROUPS` groups or more
    groups: int  # numbers of groups and rows that the models learned from
    rows: int
    smoothed_mean: SmoothedMean
    rounds: int  # trees
    validation_groups: int  # the groups on whose rows the number of trees was chosen (0: a fixed number)


class RefitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Which parts were fitted on the validation split as well, and what that means for its scores."""

    stacker: bool
    heads: bool
    why: str


class FinalRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The final column, why it was chosen, and its temperature for new clips."""

    column: str
    why: str
    temperature: float = 1.0


class FoldGroups(msgspec.Struct, frozen=True, kw_only=True):
    """The groups of a fold, and its number of labeled rows by class."""

    fold: int
    groups: tuple[str, ...]
    labelled: dict[str, int]


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True):
    """The rows with about the same confidence."""

    rows: int
    confidence: float
    accuracy: float


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """The expected calibration error, and the accuracy in each bin of confidence."""

    ece: float
    bins: tuple[ReliabilityBin, ...]


class TemperedReliability(msgspec.Struct, frozen=True, kw_only=True):
    """The reliability of the final column before and after its temperature."""

    before: Reliability
    after: Reliability


class Calibration(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The calibration error of each column on a split; `final` is absent where the final column has no score."""

    ece: dict[str, float] = {}
    final: TemperedReliability | None = None


class SplitMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The scores of every column on one split; empty where no column has an honest score."""

    predicted: str  # which models predicted the rows
    title: str = ""  # heading, where it is not that of the split
    all_frames: dict[str, Scores]
    frames_with_face: dict[str, Scores]
    paired: dict[str, PairedDifference]
    calibration: Calibration


class LogitsRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The logits that the run read."""

    fingerprint: str
    provenance: Provenance


class PredictRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a `predict` run."""

    heads: str
    stack: str
    trained_on: str
    clips: dict[str, str]  # name -> path
    forced: tuple[str, ...]  # differences of the features that --force accepted
    known: tuple[str, ...]  # clips that are not scored, because the heads were trained on them


class StackMetrics(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All scores of a run, and its inputs and settings."""

    version: int  # of the run's format
    fingerprint: str
    fercache: str
    dataset: str
    notice: str
    classes: tuple[str, ...]
    metric: str
    level: str
    causal: bool
    refit: RefitRecord
    final: FinalRecord
    temperatures: dict[str, float]  # by fold
    warnings: tuple[str, ...]
    flags: tuple[str, ...]
    rejected: dict[str, str]  # candidates that are never final -> why
    order: tuple[str, ...]  # the names of the columns
    columns: dict[str, str]  # what each column is
    gap_policy: str
    frames_without_face: int
    splits: dict[str, SplitMetrics]
    folds: tuple[FoldGroups, ...]
    declared: dict[str, str]  # imported head -> how its training rows were predicted
    fold_models: tuple[FoldRecord, ...] | str  # a sentence where nothing was learned
    importances: tuple[tuple[str, float], ...]  # (feature, fraction of the gain), the largest first
    frames: int
    trials: int
    config: dict[str, Any]  # the settings of the stack, as its fingerprint covers them
    logits: LogitsRecord
    predict: PredictRecord | None = None  # of a `predict` run only


def write_metrics(path: Path, metrics: StackMetrics) -> None:
    """Write the metrics of a run to `path`."""
    value = msgspec.to_builtins(metrics)
    for split in value["splits"].values():
        for rows in (split["all_frames"], split["frames_with_face"]):
            for column, scores in rows.items():
                rows[column] = {**scores.pop("figures"), **scores}  # each metric is a key of its own
    provenance = value["logits"]["provenance"]
    provenance |= {f"{MERGED}{name}": source for name, source in provenance.pop("merged", {}).items()}
    atomic_io.write_json(path, value)


def read_metrics(path: Path) -> StackMetrics:
    """Return the metrics of a run; raise InputError if the file is damaged or of another version of fercache."""
    value = atomic_io.read_json(path)
    try:
        for split in value["splits"].values():
            for rows in (split["all_frames"], split["frames_with_face"]):
                for scores in rows.values():
                    scores["figures"] = {name: scores[name] for name in METRICS}
        provenance = value["logits"]["provenance"]
        provenance["merged"] = {key.removeprefix(MERGED): provenance[key] for key in sorted(provenance)
                                if key.startswith(MERGED)}
        return msgspec.convert(value, StackMetrics)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"no metrics of a stack run that this version can read ({error})", where=path,
                         hint="run `fercache stack` again") from error
