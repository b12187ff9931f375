"""--causal: a change of later stored rows changes no earlier prediction, for all heads, candidates and policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from small_sets import TAPS, dataset, put

from fercache.config import StackConfig, TrainConfig
from fercache.data.base import Trial
from fercache.errors import InputError
from fercache.heads import registry
from fercache.oof import OofLogits
from fercache.results import missing_faces
from fercache.stacking import nested_cv, run_metrics, stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.training import inference, train
from fercache.workspace import METRICS, heads_of

CUT = 40
"""The first changed row of the new clip; it is within a gap, so that the nearest face may be a later one."""

HEADS = [head for head, spec in registry.HEADS.items() if spec.sound != "only"]
"""The heads that read pictures: the store has no sound."""


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> tuple[OofLogits, OofLogits, OofLogits]:
    """The logits of training, and those of a new clip before and after its later stored rows changed; of all heads."""
    root = tmp_path_factory.mktemp("causal")
    data, store = dataset(root, groups=5, frames=60, validation=0)
    config = TrainConfig(heads=tuple(HEADS), taps=tuple(TAPS), folds=2, epochs=1, ensemble=1, width=16,
                         threads=1)
    trained = train.train_heads(data, store, config, root / "cache").logits_file
    rng = np.random.default_rng(0)
    x, valid = rng.normal(size=(90, 48)), np.arange(90) % 11 != 3
    valid[CUT - 4:CUT + 1] = False
    later = np.arange(90) >= CUT
    changed = np.where(later[:, None], rng.normal(0, 3, x.shape), x), np.where(later, ~valid, valid)
    new = []
    for name, (values, seen) in {"before": (x, valid), "after": changed}.items():
        new_store = EmbeddingStore.create(root / f"{name}.zarr", store.settings, store.taps)
        put(new_store, "new", values * seen[:, None], seen)
        trial = Trial(name="new", path=root / "new", kind="crops", parent="new", group="new", split="test")
        heads = inference.load_trained(heads_of(trained))
        features = heads.load_features(new_store, [trial])
        new.append(replace(OofLogits.load(trained), trials=("new",), clip=(), group=("new",), split=("test",),
                           fold=np.array([-1], np.int16), offsets=features.offsets, index=features.index,
                           time_s=features.time_s, valid=features.valid, label=features.label,
                           logits=inference.predict_new(heads, features)))
    return OofLogits.load(trained), new[0], new[1]


def of_head(oof: OofLogits, head: str) -> OofLogits:
    return replace(oof, heads=(head,), logits={head: oof.logits[head]})


@pytest.mark.parametrize("policy", missing_faces.POLICIES)
@pytest.mark.parametrize("head", HEADS)
def test_later_stored_rows_change_no_earlier_prediction(logits: tuple[OofLogits, OofLogits, OofLogits], head: str,
                                                        policy: str, tmp_path: Path) -> None:
    """What is not refused is causal in every candidate; what is refused looks ahead by the registry or the policy."""
    training, before, after = (of_head(oof, head) for oof in logits)
    config = StackConfig(causal=True, missing_faces=policy, threads=1, bootstrap=0)
    if registry.HEADS[head].lookahead or policy in ("linear", "temporal-heads"):
        with pytest.raises(InputError, match=r"later frame|no temporal head"):
            stack.run_stack(training, config, tmp_path)
        return
    folder = stack.run_stack(training, config, tmp_path).folder
    metrics = run_metrics.read_metrics(folder / METRICS)
    for candidate in (head, "mean", *nested_cv.LEARNED):
        run = structs.replace(metrics, final=structs.replace(metrics.final, column=candidate))
        first, second = (replace(stack.StackInference.of(folder, oof), metrics=run).probs_ppm(oof)
                         for oof in (before, after))
        np.testing.assert_array_equal(first[:CUT], second[:CUT], err_msg=candidate)
        assert not np.array_equal(first[CUT:], second[CUT:]), candidate


@pytest.mark.parametrize("head", HEADS)
def test_the_registry_names_all_heads_that_look_ahead(logits: tuple[OofLogits, OofLogits, OofLogits],
                                                      head: str) -> None:
    """On rows with a face: a frame without one has a copy of the nearest face, which a causal stack does not use."""
    _, before, after = logits
    rows = np.flatnonzero(before.valid[:CUT])
    moved = not np.array_equal(before.logits[head][rows], after.logits[head][rows])
    assert moved == registry.HEADS[head].lookahead
