"""A model card in Markdown from the records of the runs; parts without a record are marked as unknown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fercache import __version__, metrics
from fercache.backbones import weights
from fercache.config import fingerprint_of
from fercache.errors import InputError
from fercache.results import io
from fercache.stacking import inputs
from fercache.stacking.run_metrics import SplitMetrics, StackMetrics
from fercache.store.multi_store import JOINED
from fercache.viz.report.collect import STAGES, RunInfo, gather_run_info
from fercache.workspace import Workspace

TERMS = {"demo": "the demo's clips come from packages under MIT and BSD licences; its labels are fercache's own",
        "affwild2": "Aff-Wild2 is for research only, under the agreement that its authors have signed by each user"}
UNKNOWN_SET = "unknown to fercache: add the terms of this data set before you share the card"
UNKNOWN_WEIGHTS = "not recorded in this cache: add them before you share the card"


def write_card(preds: Path, cache: Path) -> str:
    """Return the card of the models behind `preds`, in Markdown; raise InputError if there are no metrics beside it."""
    run = gather_run_info(preds, cache)
    if run.metrics is None:
        raise InputError("the metrics of the predictions are missing", where=io.metrics_path(preds),
                         hint="run `fercache stack --out preds.csv`, and name that file with --preds")
    # `predict` writes this key; its metrics record no training, which is what a card describes.
    if run.metrics.predict is not None:
        raise InputError("these are predictions of new clips, not of the training data", where=preds,
                         hint="name the predictions of `fercache stack` on the training data with --preds")
    parts = (_head, _data, _method, _scores, _classes, _limits, _terms, _cost, _fingerprints)
    return "\n\n".join("\n".join(part(run, run.metrics, cache)) for part in parts) + "\n"


def _head(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield f"# Model card: facial expression, trained on {_text(recorded.dataset)}\n"
    yield (f"Predicts one of {len(run.classes)} expressions for every frame of a clip of one person: "
           f"{', '.join(map(_text, run.classes))}. Trained with fercache {_text(recorded.fercache)}; "
           f"card written by fercache {__version__} from the records of the runs.")
    if recorded.notice:
        yield f"\n**Note on the data:** {_text(recorded.notice)}."


def _data(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Data\n"
    yield f"- Data set: {_text(recorded.dataset)}; {recorded.trials:,} clips, {recorded.frames:,} frames."
    for split, scores in _scored(run):
        one = scores.all_frames[run.final]
        seen = scores.frames_with_face[run.final].frames
        yield (f"- {split.capitalize()}: {one.frames:,} annotated frames of {one.groups:,} groups, a face in "
               f"{seen:,} of them. Predicted {scores.predicted}.")
    yield f"- Frames without a face: {_text(recorded.gap_policy)}."


def _scored(run: RunInfo) -> list[tuple[str, SplitMetrics]]:
    """Return the splits on which the final column has a score (a split that it was trained on has none)."""
    return [(split, scores) for split, scores in run.splits.items() if run.final in scores.all_frames]


def _method(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    heads = recorded.logits.provenance.records
    folds = {head.fold for head in heads} - {-1}
    settings = run.store.settings if run.store is not None else {}
    yield "## Method\n"
    yield (f"- Features: backbone "
           f"{_text(weights.verification_of(settings, Workspace(cache).weights) or 'not in this cache')}, "
           f"taps {_text(', '.join(settings.get('taps', [])) or 'not in this cache')}, "
           f"faces by {_text(settings.get('faces', 'not in this cache'))}; the CNN is frozen.")
    for label, theirs in sorted(heads[0].store.get(JOINED, {}).items() if heads else ()):
        yield (f"- Joined as {_text(label)}: {_text(theirs.get('modality', 'picture'))}, "
               f"backbone {_text(theirs.get('backbone', ''))}, settings {fingerprint_of(theirs)[:12]}.")
    names = ", ".join(dict.fromkeys(head.head for head in heads))
    yield (f"- Heads: {_text(names)}; {len(folds)} folds of whole groups: no frame is predicted by a model that saw "
           "its group.")
    yield f"- Final column: {_text(run.final)} ({_text(recorded.columns.get(run.final, ''))}). " \
          f"Why: {_text(recorded.final.why)}."


def _scores(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Scores"
    for split, scores in _scored(run):
        one = scores.all_frames[run.final]
        yield f"\n{split.capitalize()}, every annotated frame, column {_text(run.final)}:\n"
        rows = [(metrics.METRICS[name].title, f"{one.figures[name]:.4f}", _span((one.intervals or {}).get(name)))
                for name in metrics.DISTINCT]
        yield from _table(("figure", "value", "95 % interval"), rows)
        if one.why_none:
            yield f"\nNo interval: {_text(one.why_none)}."


def _classes(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Scores by class"
    spans = spans_by_class(run)
    for split, scores in _scored(run):
        one = scores.all_frames[run.final]
        yield f"\n{split.capitalize()}; intervals by bootstrap over groups, as above:\n"
        rows = [(name, f"{one.f1[name]:.4f}", _span(spans.get(split, {}).get(name)), f"{one.support[name]:,}")
                for name in run.classes]
        yield from _table(("class", "F1", "95 % interval", "annotated frames"), rows)
    if run.oof is None:
        yield "\nNo intervals: the logits file, which holds the groups, is not in this cache."


def spans_by_class(run: RunInfo) -> dict[str, dict[str, tuple[float, float]]]:
    """Return split -> class -> 95 % interval of its F1, by the bootstrap over groups that the other intervals have."""
    config, found = run.metrics.config if run.metrics else {}, {}
    for split, matrices in _by_group(run).items():
        sampler = metrics.Resampler(len(matrices), int(config.get("bootstrap", 0)), int(config.get("seed", 0)))
        if not sampler.why_none:
            drawn = metrics.f1_per_class(sampler.draw(matrices))
            found[split] = {name: metrics.percentiles(f1) for name, f1 in zip(run.classes, drawn.T, strict=True)}
    return found


def _by_group(run: RunInfo) -> dict[str, metrics.Counts]:
    """Return split -> one confusion matrix a group, groups in order of name."""
    counts: dict[str, dict[str, metrics.Counts]] = {}
    if run.oof is None:
        return {}
    with inputs.open_merged(run.oof, run.imported) as oof:
        place = {name: i for i, name in enumerate(oof.trials)}
        for rows in io.PredictionsFile(run.preds).clips():
            if rows.name in place and (rows.label >= 0).any():
                i = place[rows.name]
                groups = counts.setdefault(oof.split[i], {})
                groups[oof.group[i]] = groups.get(oof.group[i], 0) + metrics.confusion(rows.label, rows.label_pred,
                                                                                       len(run.classes))
    # Sorted, so that a bootstrap with the seed of `stack` draws the groups that `stack` drew.
    return {split: np.stack([groups[group] for group in sorted(groups)]) for split, groups in counts.items()}


def _limits(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Limits\n"
    for split, scores in _scored(run):
        one = scores.all_frames[run.final]
        empty = [name for name in run.classes if not one.support[name]]
        if empty:
            yield f"- {split.capitalize()} has no annotated frame of {_text(', '.join(empty))}: its score is unknown."
        if one.groups < metrics.MIN_GROUPS_FOR_INTERVAL:
            yield f"- {split.capitalize()} has {one.groups} groups only: too few to compare methods."
    yield "- One person per clip is tracked. A frame without a face gets the prediction of a neighboring frame."
    yield "- It predicts how annotators would label the expression of a face, not what a person feels."
    yield "- Its accuracy on people, cameras, ages or skin tones other than those in the data was not measured."


def _terms(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    backbone = str(run.store.settings.get("backbone", "")) if run.store is not None else ""
    known = {row.name: row.terms for row in weights.list_weights(Workspace(cache).weights)}
    name = recorded.dataset
    terms = next((text for kind, text in TERMS.items() if name == kind or name.startswith(kind + "-")), UNKNOWN_SET)
    yield "## Terms\n"
    yield f"- Weights of the CNN ({_text(backbone or 'unknown')}): {_text(known.get(backbone, UNKNOWN_WEIGHTS))}."
    yield "- Weights of the face detector (MTCNN): they come with facenet-pytorch, MIT licence."
    yield f"- Data: {terms}."
    yield "- Embeddings and pictures of faces are personal data."


def _cost(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Time and energy\n"
    # A stage without a record gets no row: "0 s" would be wrong.
    rows = [(stage, int(took["runs"]), f"{took['seconds']:,.1f} s")
            for stage in STAGES if (took := run.durations.get(stage, {})).get("runs")]
    yield from _table(("stage", "runs", "wall time"), rows) if rows else ["Time: not recorded."]
    yield "\nEnergy: not measured."


def _fingerprints(run: RunInfo, recorded: StackMetrics, cache: Path) -> Iterator[str]:
    yield "## Fingerprints\n"
    yield f"- Features: `{run.store.fingerprint if run.store is not None else 'not in this cache'}`"
    yield f"- Logits: `{recorded.logits.fingerprint}`"
    yield f"- Stack: `{recorded.fingerprint}`"


def _span(span: Sequence[float] | None) -> str:
    return f"{span[0]:.4f} to {span[1]:.4f}" if span else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    yield from ("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: Any) -> str:
    """Return text that Markdown and HTML show unchanged."""
    # & first: the escapes of the others contain it.
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return "".join("\\" + letter if letter in "\\`*_[]|" else letter for letter in text)
