"""A model card in Markdown, made from what the runs recorded; what was not recorded is said to be unknown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fercache import __version__, metrics
from fercache.backbones import weights
from fercache.errors import InputError
from fercache.results import io
from fercache.stacking import inputs
from fercache.viz import run_info
from fercache.viz.run_info import STAGES, RunInfo
from fercache.workspace import Workspace

SHOWN = {"macro_f1": "macro F1", "accuracy": "accuracy", "uar": "UAR", "abaw2": ".67 F1 + .33 accuracy"}
SETS = {"demo": "the demo's clips come from packages under MIT and BSD licences; its labels are fercache's own",
        "affwild2": "Aff-Wild2 is for research only, under the agreement that its authors have signed by each user"}
UNKNOWN_SET = "fercache does not know the terms of this set: write them here before you pass the card on"
UNKNOWN_WEIGHTS = "not recorded in this cache: write them here before you pass the card on"


def write_card(preds: Path, cache: Path) -> str:
    """Return the card of the models behind `preds`, in Markdown.

    Raises
    ------
    InputError
        No metrics lie beside the predictions.
    """
    facts = run_info.gather_run_info(preds, cache)
    if not facts.metrics:
        raise InputError("no metrics lie beside the predictions", where=io.metrics_path(preds),
                         hint="run `fercache stack --out preds.csv`, and give the card that file")
    if "predict" in facts.metrics:
        raise InputError("these are predictions of new clips, by models that were trained before", where=preds,
                         hint="give the card what `fercache stack` wrote of the set that they were trained on")
    parts = (_head, _data, _made, _scores, _classes, _limits, _terms, _cost, _prints)
    return "\n\n".join("\n".join(part(facts, cache)) for part in parts) + "\n"


def _head(facts: RunInfo, cache: Path) -> Iterator[str]:
    recorded = facts.metrics
    yield f"# Model card: facial expression, trained on {_text(recorded['dataset'])}"
    yield ""
    yield (f"Tells one of {len(facts.classes)} expressions for every frame of a clip of one person: "
           f"{', '.join(map(_text, facts.classes))}. Made by fercache {_text(recorded.get('fercache', '?'))}, written "
           f"by "
           f"fercache {__version__} from what the runs recorded.")
    if recorded.get("notice"):
        yield f"\n**Note on the data:** {_text(recorded['notice'])}."


def _data(facts: RunInfo, cache: Path) -> Iterator[str]:
    recorded = facts.metrics
    yield "## Data\n"
    yield f"- Data set: {_text(recorded['dataset'])}; {recorded['trials']:,} clips, {recorded['frames']:,} frames."
    for split, scores in _scored(facts):
        one = scores["all_frames"][facts.final]
        seen = scores["frames_with_face"][facts.final]["frames"]
        yield (f"- {split.capitalize()}: {one['frames']:,} annotated frames of {one['groups']:,} groups, a face in "
               f"{seen:,} of them. Predicted {scores['predicted']}.")
    yield f"- Frames without a face: {_text(recorded.get('gap_policy', 'not recorded'))}."


def _scored(facts: RunInfo) -> list[tuple[str, dict[str, Any]]]:
    """Return the splits on which the final column has a score (one that was learnt from has none)."""
    return [(split, scores) for split, scores in facts.splits.items() if facts.final in scores["all_frames"]]


def _made(facts: RunInfo, cache: Path) -> Iterator[str]:
    recorded = facts.metrics
    heads = [head for head in recorded["logits"]["provenance"].get("heads", []) if isinstance(head, dict)]
    folds = {head.get("fold") for head in heads} - {None, -1}
    settings = facts.store.settings if facts.store is not None else {}
    yield "## How it was made\n"
    yield (f"- Features: backbone {_text(settings.get('backbone', 'not in this cache'))}, "
           f"taps {_text(', '.join(settings.get('taps', [])) or 'not in this cache')}, "
           f"faces by {_text(settings.get('faces', 'not in this cache'))}; the CNN is frozen.")
    names = ", ".join(dict.fromkeys(str(head["head"]) for head in heads))
    yield (f"- Heads: {_text(names)}; {len(folds)} folds of whole groups: no frame is predicted by a model that saw "
           "its group.")
    yield f"- Final column: {_text(facts.final)} ({_text(recorded['columns'].get(facts.final, ''))}). " \
          f"Why: {_text(recorded['final']['why'])}."


def _scores(facts: RunInfo, cache: Path) -> Iterator[str]:
    yield "## Scores"
    for split, scores in _scored(facts):
        one = scores["all_frames"][facts.final]
        yield f"\n{split.capitalize()}, every annotated frame, column {_text(facts.final)}:\n"
        rows = [(title, f"{one[name]:.4f}", _span((one["intervals"] or {}).get(name))) for name, title in SHOWN.items()]
        yield from _table(("figure", "value", "95 % interval"), rows)
        if one.get("why_none"):
            yield f"\nNo interval: {_text(one['why_none'])}."


def _classes(facts: RunInfo, cache: Path) -> Iterator[str]:
    yield "## Scores by class"
    spans = spans_by_class(facts)
    for split, scores in _scored(facts):
        one = scores["all_frames"][facts.final]
        yield f"\n{split.capitalize()}; intervals by bootstrap over groups, as above:\n"
        rows = [(name, f"{one['f1'][name]:.4f}", _span(spans.get(split, {}).get(name)), f"{one['support'][name]:,}")
                for name in facts.classes]
        yield from _table(("class", "F1", "95 % interval", "annotated frames"), rows)
    if facts.oof is None:
        yield "\nNo interval a class: the book of logits, which knows the groups, is not in this cache."


def spans_by_class(facts: RunInfo) -> dict[str, dict[str, tuple[float, float]]]:
    """Return split -> class -> 95 % interval of its F1, by the bootstrap over groups that the other intervals have."""
    config, found = facts.metrics.get("config", {}), {}
    for split, matrices in _by_group(facts).items():
        sampler = metrics.Resampler(len(matrices), int(config.get("bootstrap", 0)), int(config.get("seed", 0)))
        if not sampler.why_none:
            ends = [(1 - metrics.LEVEL) / 2, (1 + metrics.LEVEL) / 2]
            low, high = np.quantile(metrics.f1_per_class(sampler.draw(matrices)), ends, axis=0)
            found[split] = {name: (float(a), float(b)) for name, a, b in zip(facts.classes, low, high, strict=True)}
    return found


def _by_group(facts: RunInfo) -> dict[str, metrics.Counts]:
    """Return split -> one confusion matrix a group, groups in order of name."""
    counts: dict[str, dict[str, metrics.Counts]] = {}
    if facts.oof is None:
        return {}
    with inputs.open_merged(facts.oof, facts.imported) as book:
        for name, rows in io.each_clip(facts.preds):
            if name in book and (rows.label >= 0).any():
                split, group = book.place(name)
                held = counts.setdefault(split, {})
                held[group] = held.get(group, 0) + metrics.confusion(rows.label, rows.label_pred, len(facts.classes))
    return {split: np.stack([held[group] for group in sorted(held)]) for split, held in counts.items()}


def _limits(facts: RunInfo, cache: Path) -> Iterator[str]:
    yield "## Limits\n"
    for split, scores in _scored(facts):
        one = scores["all_frames"][facts.final]
        empty = [name for name in facts.classes if not one["support"][name]]
        if empty:
            yield f"- {split.capitalize()} has no annotated frame of {_text(', '.join(empty))}: nothing is known there."
        if one["groups"] < metrics.MIN_GROUPS_FOR_INTERVAL:
            yield f"- {split.capitalize()} has {one['groups']} groups only: too few to tell one method from another."
    yield "- One person a clip is followed; where no face is seen the prediction is that of a neighbouring frame."
    yield "- It tells what annotators would call the face's expression, not what a person feels."
    yield "- How it does on other people, cameras, ages or skin tones than those in the data was not measured."


def _terms(facts: RunInfo, cache: Path) -> Iterator[str]:
    backbone = str(facts.store.settings.get("backbone", "")) if facts.store is not None else ""
    known = {row.name: row.terms for row in weights.list_weights(Workspace(cache).weights)}
    name = str(facts.metrics["dataset"])
    terms = next((text for kind, text in SETS.items() if name == kind or name.startswith(kind + "-")), UNKNOWN_SET)
    yield "## Terms\n"
    yield f"- Weights of the CNN ({_text(backbone or 'unknown')}): {_text(known.get(backbone, UNKNOWN_WEIGHTS))}."
    yield "- Weights of the face detector (MTCNN): they come with facenet-pytorch, MIT licence."
    yield f"- Data: {terms}."
    yield "- Embeddings and pictures of faces are personal data."


def _cost(facts: RunInfo, cache: Path) -> Iterator[str]:
    yield "## Time and energy\n"
    rows = [(stage, int(took["runs"]), f"{took['seconds']:,.1f} s")
            for stage in STAGES if (took := facts.took.get(stage, {})).get("runs")]
    yield from _table(("stage", "runs", "wall time"), rows) if rows else ["Time: not recorded."]
    yield "\nEnergy: not measured."


def _prints(facts: RunInfo, cache: Path) -> Iterator[str]:
    yield "## Fingerprints\n"
    yield f"- Features: `{facts.store.fingerprint if facts.store is not None else 'not in this cache'}`"
    yield f"- Logits: `{facts.metrics['logits']['fingerprint']}`"
    yield f"- Stack: `{facts.metrics.get('fingerprint', 'not recorded')}`"


def _span(span: Sequence[float] | None) -> str:
    return f"{span[0]:.4f} to {span[1]:.4f}" if span else "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    yield from ("| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows)


def _text(value: Any) -> str:
    """Return text that Markdown and HTML show as it stands."""
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return "".join("\\" + letter if letter in "\\`*_[]|" else letter for letter in text)
