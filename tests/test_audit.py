"""Each planted leak makes the audit fail, and is named; an honest book passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets
from books import head_record, simulate

from fercache.config import AuditConfig, TrainConfig
from fercache.data.base import Dataset, Issue, Trial
from fercache.diagnostics import audit
from fercache.oof import OofLogits, Provenance
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.training import cross_validation

CONFIG = AuditConfig(threads=1, shuffles=4)


def recorded(book: OofLogits, seen_too: str = "") -> OofLogits:
    """Return the book with the record that honest training leaves; `seen_too`: a head that was trained on all."""
    names = np.array(book.group)
    in_folds = book.fold >= 0
    records = [head_record(head, fold, sorted(set(names[in_folds & ((book.fold != fold) | (head == seen_too))])))
               for head in book.heads for fold in range(int(book.fold.max()) + 1)]
    return replace(book, provenance=Provenance(heads=tuple(records), settings={}))


def states(findings: list[Issue]) -> dict[str, str]:
    return {found.where: found.severity for found in findings}


@pytest.fixture(scope="module")
def book() -> OofLogits:
    return recorded(simulate(groups=15, validation=10, frames=120))


def test_an_honest_book_passes(book: OofLogits) -> None:
    findings = list(audit.run_audit(book, CONFIG))
    assert not any(found.is_error for found in findings), findings
    assert {"groups and folds", "training groups", "shuffled labels, stacker"} <= set(states(findings))


def test_a_group_in_two_folds(book: OofLogits) -> None:
    group = ("video00000", *book.group[:1], *book.group[2:])
    assert book.fold[0] != book.fold[1]
    found = audit.check_folds(replace(book, group=group))
    assert found.is_error and "video00000" in found.details[0]


def test_a_group_in_two_splits(book: OofLogits) -> None:
    found = audit.check_splits(replace(book, group=(*book.group[:-1], book.group[0])))
    assert found.is_error and "train, validation" in found.details[0]


def test_a_head_trained_on_all_by_its_record(book: OofLogits) -> None:
    found = audit.check_provenance(recorded(book, "gru"))
    assert found.is_error and len(found.details) == 5 and all(line.startswith("gru, fold") for line in found.details)
    gone = replace(book, provenance=Provenance(settings={}))
    assert "no record" in audit.check_provenance(gone).details[0]


def test_a_head_trained_on_all_whose_record_lies(book: OofLogits) -> None:
    """It knows the training rows by heart and no others: the rows betray it."""
    inside = (book.per_row(book.fold) >= 0)[:, None]
    known = np.where(inside, book.logits["gru"] + 3 * np.eye(7)[book.label], book.logits["gru"]).astype(np.float32)
    found = audit.check_memorized(replace(book, logits={**book.logits, "gru": known}), 0)
    assert found.is_error and len(found.details) == 1 and found.details[0].startswith("gru:")
    assert audit.check_memorized(book, 0).severity == "ok"


def test_labels_as_a_head(book: OofLogits) -> None:
    told = (9 * np.eye(7)[book.label]).astype(np.float32)
    found = audit.check_perfect(replace(book, logits={**book.logits, "gru": told}))
    assert found.is_error and found.details[0].startswith("gru:")


def sample_of(book: OofLogits, width: int = 40) -> audit.ProbeSample:
    """Return a sample whose features are noise of each group's own, and a little of the label."""
    rng = np.random.default_rng(0)
    rows = np.flatnonzero((book.label >= 0) & (book.per_row(book.fold) >= 0))[::10]
    trial = book.per_row(np.arange(len(book.trials)))[rows]
    own = rng.normal(size=(len(book.trials), width))[trial]
    x = own + rng.normal(size=(len(rows), width)) + .5 * rng.normal(size=(7, width))[book.label[rows]]
    return audit.ProbeSample(x=x.astype(np.float32), label=book.label[rows].astype(np.int64), group=trial,
                        fold=book.fold[trial].astype(np.int64), classes=7,
                        names=tuple(("tap", i) for i in range(width)))


def test_labels_as_a_feature(book: OofLogits) -> None:
    honest = sample_of(book)
    assert audit.check_features(honest).severity == "ok"
    x = honest.x.copy()
    x[:, 7] = honest.label == 4
    found = audit.check_features(replace(honest, x=x))
    assert found.is_error and found.details == ("tap[7] alone separates class 4 from all others (area 1.0000)",)


def test_shuffled_labels_give_chance_and_a_leak_does_not(book: OofLogits) -> None:
    honest = sample_of(book)
    assert audit.check_probe(honest, CONFIG).severity == "ok"
    fold = np.arange(len(honest.fold)) % 5  # every group in every fold
    assert audit.check_probe(replace(honest, fold=fold), CONFIG).is_error


def test_a_stacker_with_groups_in_every_fold_is_caught() -> None:
    """A head that knows who is speaking, and no label: out of fold that is worth nothing, across folds everything."""
    honest = simulate(groups=14, frames=120, heads=("frame",), skill=0.0)
    label = np.repeat(np.arange(14) % 7, np.diff(honest.offsets)).astype(np.int16)
    rng = np.random.default_rng(0)
    own = 3 * rng.normal(size=(14, 7))
    said = {"frame": honest.per_row(np.arange(14)).astype(int)}
    logits = {"frame": own[said["frame"]].astype(np.float32)}
    honest = replace(honest, label=label, logits=logits)
    assert audit.check_stacker(honest, CONFIG).severity == "ok"
    halves = np.sort(np.r_[honest.offsets, (honest.offsets[:-1] + honest.offsets[1:]) // 2])
    twice = replace(honest, offsets=halves, trials=tuple(f"t{i:02d}" for i in range(28)),
                    group=tuple(f"g{i // 2:02d}" for i in range(28)), split=("train",) * 28,
                    fold=(np.arange(28) % 2).astype(np.int16))
    found = audit.check_stacker(twice, CONFIG)
    assert found.is_error and found.details


def store_of(book: OofLogits, path: Path, copied: bool = False) -> EmbeddingStore:
    """Return a store of noise for the book's clips; `copied`: frame 5 of the first clip stands in the fourth too."""
    rng = np.random.default_rng(0)
    store = EmbeddingStore.create(path, {"backbone": "noise"}, {"embedding": (8,)})
    first = rng.normal(size=8).astype(np.float16)
    for i, name in enumerate(book.trials):
        rows = book.rows(i)
        values = rng.normal(size=(rows.stop - rows.start, 8)).astype(np.float16)
        if copied and i in (0, 3):
            values[4] = first
        clock = np.full((len(values), len(FRAME_COLUMNS)), np.nan)
        clock[:, 0], clock[:, 1], clock[:, 2] = book.index[rows], book.time_s[rows], book.valid[rows]
        with store.writer(name, source={"sha256": name}, provenance={"device": "cpu"}) as writer:
            assert writer is not None
            writer.set_frame_table(clock)
            writer.write(0, {"embedding": values})
            writer.commit()
    return store


@pytest.mark.parametrize("copied", [False, True])
def test_near_duplicates_are_listed(book: OofLogits, tmp_path: Path, copied: bool) -> None:
    seen = book.valid.copy()
    for i in (0, 3):  # the first frame of the first second is then the fifth
        seen[book.offsets[i]:book.offsets[i] + 4], seen[book.offsets[i] + 4] = False, True
    watched = replace(book, valid=seen)
    store = store_of(watched, tmp_path / "noise.zarr", copied)
    found = audit.check_copies(watched, store, 0.999)
    assert found.severity == ("warning" if copied else "ok")
    wanted = [f"{book.trials[0]} frame 5 and {book.trials[3]} frame 5: cosine 1.0000"] if copied else []
    assert [line for line in found.details if "frame 5 and" in line] == wanted


def test_the_whole_audit_of_a_store_of_noise(book: OofLogits, tmp_path: Path) -> None:
    findings = list(audit.run_audit(book, CONFIG, store_of(book, tmp_path / "noise.zarr")))
    assert not any(found.is_error for found in findings), findings
    assert {"labels as features", "shuffled labels, probe", "near-duplicate frames"} <= set(states(findings))
    audit.write_audit(findings, tmp_path / "audit.json")
    assert json.loads((tmp_path / "audit.json").read_text())["leaks"] is False


def test_labels_are_dealt_to_other_groups() -> None:
    trials = tuple(Trial(name=f"t{i}", path=Path("x"), kind="video", parent=f"t{i}", group=f"g{i // 2}", split="train",
                         labels=np.full(5 + i, i // 2, np.int16)) for i in range(8))
    made = audit.shuffled_dataset(Dataset(name="d", layout="table", classes=("a", "b", "c", "d"), trials=trials), 0)
    for old, new in zip(trials, made.trials, strict=True):
        assert new.labels is not None and old.labels is not None and len(new.labels) == len(old.labels)
        assert new.labels[0] != old.labels[0]
    assert {int(t.labels[0]) for t in made.trials if t.labels is not None} == {0, 1, 2, 3}


@pytest.mark.slow("trains heads; the probe and the stacker run always")
def test_real_heads_know_nothing_of_shuffled_labels(book: OofLogits, tmp_path: Path) -> None:
    """--full: the frame head is trained again on labels that were dealt out, and is at chance out of fold."""
    trials = tuple(Trial(name=name, path=Path("x"), kind="video", parent=name, group=name, split="train",
                         labels=book.label[book.rows(i)]) for i, name in enumerate(book.trials))
    dataset = Dataset(name="noise", layout="table", classes=book.classes, trials=trials)
    training = TrainConfig(heads=("frame",), taps=("embedding",), folds=2, threads=1)
    findings = list(audit.run_audit(book, replace(CONFIG, full=True), store_of(book, tmp_path / "noise.zarr"), dataset,
                                    training, tmp_path / "scratch"))
    assert not any(found.is_error for found in findings), findings
    assert states(findings)["shuffled labels, heads and stacker"] == "ok"


def retrained(root: Path, groups: int, *, trials_of_group: int = 1, identity: float = 0.0) -> Issue:
    """Return the check of a head trained on shuffled labels, which are constant in a group.

    Parameters
    ----------
    identity : the spread of the features between groups; that within a group is .2.
    """
    rng = np.random.default_rng(0)
    store = EmbeddingStore.create(root / "features.zarr", {"backbone": "noise"}, small_sets.TAPS)
    trials = []
    for group in range(groups):
        own = identity * rng.normal(size=48)
        for number in range(trials_of_group):
            name = f"g{group:02d}_{number}"
            small_sets.put(store, name, own + 0.2 * rng.normal(size=(20, 48)), np.ones(20, bool))
            trials.append(Trial(name=name, path=Path("x"), kind="video", parent=name, group=f"g{group:02d}",
                                split="train", labels=np.full(20, group % 2, np.int16)))
    dataset = Dataset(name="own", layout="table", classes=("a", "b"), trials=tuple(trials))
    training = TrainConfig(heads=("frame",), taps=tuple(small_sets.TAPS), folds=5, ensemble=1, width=16,
                           epochs=40, lr=1e-2, patience=0, dropout=0, loss="plain", threads=1)
    return audit.check_retrained(dataset, store, training, root / "scratch", CONFIG)


def test_few_groups_whose_labels_are_constant_are_below_chance(tmp_path: Path) -> None:
    """Each fold lacks the class that it holds out, so that heads point away from it."""
    found = retrained(tmp_path, 6)
    assert found.is_error and all("below chance" in line for line in found.details), found


def test_a_training_whose_folds_share_groups_is_above_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def by_trial(groups: Sequence[str], counts: np.ndarray, k: int, seed: int) -> np.ndarray:
        return (np.arange(len(groups)) % k).astype(np.int16)

    monkeypatch.setattr(cross_validation, "assign_folds", by_trial)
    found = retrained(tmp_path, 24, trials_of_group=2, identity=1.0)
    assert found.is_error and found.details[0].startswith("frame: "), found
    assert all("above chance" in line for line in found.details)
