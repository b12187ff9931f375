"""A store of all people: what every later stage makes of `CLIP#1`, `CLIP#2`."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_sets
from small_sets import CLASSES, FPS, TAPS
from videos import numbered_video

from fercache.config import ScoreConfig, StackConfig, TrainConfig
from fercache.data.base import PEOPLE_COUNT, Dataset, check_people, people_stored, stored_trials
from fercache.errors import InputError
from fercache.inference import predict
from fercache.maintenance import forget
from fercache.oof import OofLogits
from fercache.results import score
from fercache.results.io import PredictionsFile, match_clip
from fercache.stacking import stack
from fercache.store.embedding_store import EmbeddingStore
from fercache.store.layout import FRAME_COLUMNS
from fercache.training import train
from fercache.viz import timeline

FRAMES, GROUPS = 60, 6
TRAIN = TrainConfig(taps=tuple(TAPS), heads=("frame",), folds=3, ensemble=2, epochs=3, width=8, threads=1)


def put(store: EmbeddingStore, name: str, x: np.ndarray, **more: object) -> None:
    """Commit one person, seen in each frame."""
    clock = np.zeros((len(x), len(FRAME_COLUMNS)))
    clock[:, 0], clock[:, 1], clock[:, 2] = np.arange(1, len(x) + 1), np.arange(len(x)) / FPS, 1
    clock[:, 3:7] = (4, 4, 60, 60)
    with store.writer(name, source={"sha256": name}, provenance={"device": "cpu"}) as writer:
        assert writer is not None
        writer.set_frame_table(clock)
        parts = np.split(x.astype(np.float16), [12], axis=1)
        writer.write(0, {tap: part.reshape(-1, *shape) for part, (tap, shape) in zip(parts, TAPS.items(), strict=True)})
        writer.commit(**more)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, EmbeddingStore]:
    """Six labelled clips of two people each, one of one person, and one that is not in the store."""
    root = tmp_path_factory.mktemp("all")
    dataset, _ = small_sets.dataset(root / "plain", groups=GROUPS + 1, frames=FRAMES, validation=1)
    place = root / "cache/features/small/people.zarr"
    store = EmbeddingStore.create(place, {"weights": "none", "people": "all", "taps": list(TAPS)}, TAPS)
    rng = np.random.default_rng(3)
    for i, trial in enumerate(dataset.trials[:GROUPS + 1]):
        assert trial.labels is not None
        people = 2 if i < GROUPS else 1
        features = np.random.default_rng(99).normal(size=(3, 48))[trial.labels] + rng.normal(size=(FRAMES, 48))
        if people == 2:
            put(store, f"{trial.name}#2", features[::-1])
        put(store, f"{trial.name}#1", features, **{PEOPLE_COUNT: people})
    return dataset, store


def test_clips_become_their_people(pair: tuple[Dataset, EmbeddingStore]) -> None:
    dataset, store = pair
    shown = stored_trials(dataset, store)
    assert [t.name for t in shown.trials] == sorted([*store, dataset.trials[-1].name])
    for trial in shown.trials:
        clip, _, number = trial.name.partition("#")
        whole = next(t for t in dataset.trials if t.name == clip)
        assert (trial.parent, trial.group, trial.split, trial.path) == (
            whole.parent, whole.group, whole.split, whole.path)
        assert trial.labels is (None if number == "2" else whole.labels)
    again = stored_trials(shown, store)
    assert [(t.name, t.labelled) for t in again.trials] == [(t.name, t.labelled) for t in shown.trials]
    assert [people_stored(t, store) for t in dataset.trials] == [*[2] * GROUPS, 1, 0]


def test_a_store_of_main_persons_changes_no_data_set(tmp_path: Path) -> None:
    dataset, store = small_sets.dataset(tmp_path, groups=2, validation=1)
    assert stored_trials(dataset, store) is dataset


def test_every_person_is_predicted_and_the_main_one_scored(pair: tuple[Dataset, EmbeddingStore],
                                                           tmp_path: Path) -> None:
    dataset, store = pair
    report = train.train_heads(dataset, store, TRAIN, tmp_path)
    assert report.missing == (dataset.trials[-1].name,)
    book = OofLogits.load(report.logits_file)
    assert set(book.trials) == set(store)
    fold = dict(zip(book.trials, book.fold.tolist(), strict=True))
    assert all(fold[f"{t.name}#1"] == fold[f"{t.name}#2"] for t in dataset.trials[:GROUPS]), "one group, one fold"
    result = stack.run_stack(book, StackConfig(threads=1, bootstrap=20), tmp_path)
    result.save(tmp_path / "preds.csv")
    with (tmp_path / "preds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["clip"] for row in rows} == set(store) and len(rows) == FRAMES * len(store)
    assert all((row["label"] == "") == row["clip"].endswith("#2") for row in rows)
    scored = score.score_file(dataset, PredictionsFile(tmp_path / "preds.csv"),
                              ScoreConfig(split="train", bootstrap=20))
    assert scored["trials"] == GROUPS + 1 and not scored["trials_without_prediction"]
    drawn = timeline.draw_timelines(tmp_path / "preds.csv", stored_trials(dataset, store), store, tmp_path / "pictures")
    assert len(drawn) == len(store)


def test_a_clip_is_forgotten_with_its_people(tmp_path: Path) -> None:
    place = tmp_path / "features/small/people.zarr"
    store = EmbeddingStore.create(place, {"weights": "none", "people": "all", "taps": list(TAPS)}, TAPS)
    for name in ("a#2", "a#1", "a#b", "ab#1"):
        put(store, name, np.zeros((3, 48)), **{PEOPLE_COUNT: 2 if name == "a#1" else 1})
    report = forget.forget_clip(tmp_path, "a")
    assert sorted(EmbeddingStore.open(place)) == ["a#b", "ab#1"] and not report.references


def test_names_that_are_shown(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        numbered_video(tmp_path / folder / "clip.mp4", 3)
    numbered_video(tmp_path / "other.mp4", 3)
    dataset = predict.clips_dataset([tmp_path])
    people = [replace(t, name=f"{t.name}#{k}") for t in dataset.trials for k in (1, 2)]
    assert sorted(predict.display_names(replace(dataset, trials=tuple(people))).values()) == [
        "other#1", "other#2", "x/clip.mp4#1", "x/clip.mp4#2", "y/clip.mp4#1", "y/clip.mp4#2"]


def test_which_clip_a_person_stands_for() -> None:
    assert match_clip("a#1", {"a"}) == "a" and match_clip("a#1", {"a", "a#1"}) == "a#1"
    assert match_clip("a#2", {"a"}) == "a#2" and CLASSES


def test_a_clip_named_as_a_person_of_another_is_refused(tmp_path: Path) -> None:
    dataset, _ = small_sets.dataset(tmp_path, groups=2, validation=0)
    first, other = dataset.trials
    for people, name in (("all", f"{first.name}#2"), ("left/right", f"{first.name}_left")):
        both = replace(dataset, trials=(first, replace(other, name=name)))
        with pytest.raises(InputError, match="has the name of a person of"):
            check_people(both, people)
        check_people(both, "main")
        check_people(replace(dataset, trials=(replace(first, side="right"), replace(other, name=name))), people)
