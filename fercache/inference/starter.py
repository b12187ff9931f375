"""Starter heads: shipped with fercache, so that `predict` works before anything was trained."""
# They are heads as `train-heads` makes them (recipe: ``stages/starter``), with weights in float16 and a card that names
# their data, terms and measured scores. `pack_starter` makes the folder from a training run.

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from fercache import metrics
from fercache.config import StackConfig, fingerprint_of
from fercache.errors import InputError
from fercache.heads.registry import FRAME, STARTER_FOLDER
from fercache.oof import OofLogits, Provenance
from fercache.results.smoothing import moving_mean, window_reach
from fercache.runtime import atomic_io
from fercache.stacking import calibration, candidates, nested_cv, report
from fercache.stacking.run_metrics import FinalRecord
from fercache.stacking.stack import StackResult
from fercache.training import checkpoints
from fercache.training.train import STARTER_FEATURES
from fercache.workspace import heads_of

STARTER = "starter"  # name of the starter heads on the command line

FOLDER = STARTER_FOLDER
CARD = "card.json"
SMOOTHED = "smoothed"
SMOOTHING_S = 0.25
"""Half the width of the moving mean. Expressions last half a second to four seconds (Ekman 2003, Emotions Revealed), so
a window of half a second does not erase one; the errors of single frames are shorter."""

TERMS = ("research only: the heads were trained on FER2013, and the features come from a CNN that was trained on "
         "CASIA-WebFace")


class StarterCard(msgspec.Struct, frozen=True, kw_only=True):
    """What a user must know of the starter heads."""

    data: str  # the photos that the heads were trained on
    classes: tuple[str, ...]
    terms: str  # what they may be used for
    temperature: float  # divides the logarithms of the probabilities; fitted on photos that the heads did not see
    scores: dict[str, dict[str, float]]  # split -> {"frames", "accuracy", "macro_f1"}, of single photos
    version: int = 1


def load_card(folder: Path = FOLDER) -> StarterCard:
    """Return the card of the starter heads; raise InputError without one: the installation is damaged."""
    path = folder / CARD
    try:
        return atomic_io.read_record(path, StarterCard)
    except (OSError, InputError) as error:
        raise InputError(f"no starter heads ({error})", where=path, hint="install fercache again") from error


def starter_logits(card: StarterCard) -> OofLogits:
    """Return logits without a row, which describe the starter heads as those of a training describe trained heads."""
    empty = np.empty(0, np.int64)
    return OofLogits(
        dataset=STARTER, classes=card.classes, metric="macro_f1", notice=card.terms, heads=(FRAME,), trials=(),
        group=(), split=(), fold=empty.astype(np.int16), offsets=np.zeros(1, np.int64), index=empty.astype(np.int32),
        time_s=empty.astype(float), valid=empty.astype(bool), label=empty.astype(np.int16),
        logits={FRAME: np.empty((0, len(card.classes)), np.float32)}, provenance=Provenance(),
        # Of all files of the starter: predictions that are cached for other starter heads do not fit.
        fingerprint=fingerprint_of([[path.name, atomic_io.file_sha256(path)] for path in sorted(FOLDER.iterdir())
                                    if path.is_file()]))


def evaluate_starter(oof: OofLogits, config: StackConfig) -> StackResult:
    """Return the starter's predictions of new trials, smoothed over time, with scores where there are labels.

    Of `config` the policy for frames without a face, `causal` and the bootstrap are used.
    """
    started = time.monotonic()
    # The starter has no temporal head: a policy that needs one falls back to the nearest face.
    policy = "nearest" if config.missing_faces == "temporal-heads" else config.missing_faces
    filler = candidates.GapFiller.of(oof, policy, causal=config.causal)
    nested = nested_cv.NestedResult()  # no stacker: the candidates are the heads
    probs = candidates.gather_candidates(oof, nested, filler)[FRAME]
    probs = filler.refill(calibration.apply_temperature(probs, load_card().temperature))
    columns = {FRAME: probs, SMOOTHED: smooth(probs, oof, causal=config.causal)}
    final = FinalRecord(column=SMOOTHED, why="the starter's predictions, averaged over half a second")
    run = report.StackRun(oof=oof, config=replace(config, missing_faces=policy), nested=nested,
                          columns=columns, final=final, rejected={},
                          temperatures=dict.fromkeys([*range(int(oof.fold.max(initial=-1)) + 1), -1], 1.0))
    record = report.build_report(run, oof.fingerprint)
    record.columns[SMOOTHED] = final.why
    return StackResult(oof=oof, ppm=candidates.to_ppm(filler.refill(columns[SMOOTHED])), report=record, folder=FOLDER,
                       cached=False, seconds=time.monotonic() - started)


def smooth(probs: NDArray[np.float32], oof: OofLogits, *, causal: bool = False) -> NDArray[np.float32]:
    """Return the mean of probabilities ``(R, C)`` over half a second around each frame, over frames with a face.

    `causal`: the half second ends with the frame; rows before the first face stay as they are.
    """
    behind_s, ahead_s = (2 * SMOOTHING_S, 0.0) if causal else (SMOOTHING_S, SMOOTHING_S)
    smoothed = np.array(probs)
    for trial in range(len(oof.trials)):
        rows = oof.rows(trial)
        valid = oof.valid[rows]
        if valid.any():
            window = window_reach(oof.time_s[rows], behind_s, ahead_s)
            known = np.logical_or.accumulate(valid) | (not causal)
            smoothed[rows][known] = moving_mean(probs[rows], valid, window, causal=causal)[known]
    return smoothed


def pack_starter(logits_file: Path, out: Path) -> StarterCard:
    """Write trained frame heads as starter heads: float16 weights, records without names of groups, and the card.

    `logits_file`: the out-of-fold logits of the heads; they must have held-out rows with labels. Raises InputError if
    there are other heads than the frame head, or nothing is held out.
    """
    from safetensors.numpy import load_file, save_file

    oof = OofLogits.load(logits_file)
    split, rows = oof.per_row(np.array(oof.split)), oof.label >= 0
    held_out = rows & (split == "validation")
    if oof.heads != (FRAME,) or not held_out.any():
        raise InputError("starter heads are frame heads with a labelled validation split", where=logits_file,
                         hint="use the recipes in stages/starter")
    out.mkdir(parents=True, exist_ok=True)
    for path in checkpoints.record_files(out):  # a training with more folds left more heads
        path.unlink()
        path.with_suffix(".safetensors").unlink(missing_ok=True)
    for path in checkpoints.record_files(heads_of(logits_file)):
        record = checkpoints.load_record(path)
        kept = {name: record.store[name] for name in STARTER_FEATURES}
        # Names of training groups mean nothing to a user and would be most of the file.
        record = msgspec.structs.replace(record, store=kept, train_groups=(), val_groups=())
        weights = load_file(path.with_suffix(".safetensors"))
        with atomic_io.replacing((out / path.name).with_suffix(".safetensors")) as temporary:
            save_file({name: values.astype(np.float16) for name, values in weights.items()}, temporary)
        atomic_io.write_json(out / path.name, record)
    probs = candidates.gather_candidates(oof, nested_cv.NestedResult())[FRAME]
    temperature = calibration.fit_temperature(probs[held_out], oof.label[held_out])
    scores = {}
    for name in report.SPLITS:
        chosen = rows & (split == name)
        if chosen.any():
            matrix = metrics.confusion(oof.label[chosen], probs[chosen].argmax(1), len(oof.classes))
            scores[name] = {"frames": float(chosen.sum()),
                            **{metric: round(float(metrics.official(metric)(matrix)), 4)
                               for metric in ("accuracy", "macro_f1")}}
    data = f"FER2013's {int(scores['train']['frames']):,} training photos"
    card = StarterCard(data=data, classes=oof.classes, terms=TERMS, temperature=round(temperature, 4), scores=scores)
    atomic_io.write_json(out / CARD, card)
    return card


def main() -> None:
    """Pack heads: ``python -m fercache.inference.starter LOGITS_FILE OUT``; see `make starter`."""
    parser = argparse.ArgumentParser(description="Pack trained frame heads as starter heads.")
    parser.add_argument("logits_file", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(pack_starter(options.logits_file, options.out))


if __name__ == "__main__":
    main()
