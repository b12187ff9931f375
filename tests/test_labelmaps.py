"""Classes of one set in those of another: by name, and what has no counterpart is told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache.data import clip_level, labels
from fercache.data.base import EIGHT, SEVEN
from fercache.data.labels import SETS, map_class_names
from fercache.errors import InputError

EMOTIONS = {"neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise"}


def test_the_sets_are_those_of_the_readers() -> None:
    assert SETS["abaw7"] == SEVEN and SETS["abaw8"] == EIGHT
    assert clip_level.DFEW.classes == ("Happy", "Sad", "Neutral", "Angry", "Surprise", "Disgust", "Fear")
    assert dict(zip(clip_level.CREMAD.codes, SETS["cremad"], strict=True)) == {
        "ANG": "Anger", "DIS": "Disgust", "FEA": "Fear", "HAP": "Happy", "NEU": "Neutral", "SAD": "Sad"}


@pytest.mark.parametrize(("name", "number", "meaning"), [
    ("affectnet8", 1, "happiness"), ("affectnet8", 7, "contempt"), ("affectnet7", 6, "anger"), ("abaw8", 7, "other"),
    ("dfew", 0, "happiness"), ("dfew", 2, "neutral"), ("dfew", 6, "fear"), ("ravdess", 1, "calm"),
    ("ravdess", 5, "fear"), ("ckplus", 1, "contempt"), ("abaw7", 4, "happiness"),
])
def test_numbers_mean_what_the_sets_say(name: str, number: int, meaning: str) -> None:
    assert labels.canonical_class_name(SETS[name][number]) == meaning


@pytest.mark.parametrize("words", ["Happy Happiness happiness HAP happy", "Angry Anger ANG", "Fear Fearful FEA fear",
                                   "Sad Sadness SAD", "Surprise Surprised", "Disgust DIS disgusted", "Neutral NEU"])
def test_spellings_of_one_class(words: str) -> None:
    assert len({labels.canonical_class_name(word) for word in words.split()}) == 1


def test_classes_are_never_guessed() -> None:
    for one, other in (("Other", "Contempt"), ("Calm", "Neutral"), ("Anxiety", "Fear"), ("Disappointment", "Sadness"),
                       ("x", "y")):
        assert labels.canonical_class_name(one) != labels.canonical_class_name(other)
    with pytest.raises(InputError, match="no class of"):
        map_class_names(("a", "b"), SEVEN)


@pytest.mark.parametrize(("source", "target", "lost", "never"), [
    ("abaw7", "abaw8", (), ("Other",)), ("abaw8", "abaw7", ("Other",), ()), ("abaw8", "dfew", ("Other",), ()),
    ("ravdess", "abaw7", ("Calm",), ()), ("abaw7", "cremad", ("Surprise",), ()), ("ckplus", "abaw7", ("Contempt",),
    ("Neutral",)), ("affectnet8", "abaw8", ("Contempt",), ("Other",)), ("dfew", "ferv39k", (), ()),
    ("abaw7", "mafw", (), ("Contempt", "Anxiety", "Helplessness", "Disappointment")),
])
def test_what_has_no_counterpart_is_told(source: str, target: str, lost: tuple[str, ...],
                                         never: tuple[str, ...]) -> None:
    found = map_class_names(SETS[source], SETS[target])
    assert (found.source_only, found.target_only) == (lost, never)
    assert found.one_to_one == (not lost and not never)
    for name in (*lost, *never):
        assert name in found.describe()


@settings(max_examples=80, deadline=None)
@given(pair=st.permutations(sorted(SETS)), seed=st.integers(0, 1000))
def test_probabilities_keep_their_names(pair: list[str], seed: int) -> None:
    source, target = SETS[pair[0]], SETS[pair[1]]
    found = map_class_names(source, target)
    given_ = np.random.default_rng(seed).dirichlet(np.ones(len(source)), 20)
    made = found.probs(given_)
    assert made.shape == (20, len(target))
    np.testing.assert_allclose(made.sum(1), 1)
    kept = sum(given_[:, i] for i, name in enumerate(source) if name not in found.source_only)
    for i, name in enumerate(source):
        for j, other in enumerate(target):
            if labels.canonical_class_name(name) == labels.canonical_class_name(other):
                np.testing.assert_allclose(made[:, j], given_[:, i] / kept)
                assert found.labels(np.array([i]))[0] == j
    assert not made[:, [j for j, other in enumerate(target) if other in found.target_only]].any()


def test_there_and_back_is_the_same() -> None:
    there, back = map_class_names(SETS["dfew"], SEVEN), map_class_names(SEVEN, SETS["dfew"])
    given_ = np.random.default_rng(0).dirichlet(np.ones(7), 9)
    np.testing.assert_allclose(back.probs(there.probs(given_)), given_)
    np.testing.assert_array_equal(back.labels(there.labels(np.array([-1, *range(7)]))), [-1, *range(7)])


def test_a_row_of_lost_classes_gets_even_odds_over_what_can_be_said() -> None:
    found = map_class_names(("Calm", "Happy", "Sad"), ("Happiness", "Sadness", "Other"))
    np.testing.assert_allclose(found.probs(np.array([[1.0, 0, 0], [.5, .5, 0]])), [[.5, .5, 0], [1, 0, 0]])
    np.testing.assert_array_equal(found.labels(np.array([0, 1, 2, -1])), [-1, 0, 1, -1])


def test_pairs_say_what_names_do_not() -> None:
    found = map_class_names(SETS["ravdess"], SEVEN, labels.parse("Calm=Neutral"))
    assert not found.source_only and not found.one_to_one
    np.testing.assert_allclose(found.probs(np.eye(8)[[0, 1]])[:, 0], 1)
    assert labels.parse("names") == labels.parse("") == {}
    assert labels.parse("names, Calm = Neutral") == {"Calm": "Neutral"}


@pytest.mark.parametrize("text", ["Calm", "Calm=", "=Neutral", "Calm=Neutral,Calm=Sad"])
def test_text_without_a_pair_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not a pair"):
        labels.parse(text)


def test_unknown_and_double_classes_are_refused() -> None:
    with pytest.raises(InputError, match="no class 'Boredom'"):
        map_class_names(SEVEN, EIGHT, {"Boredom": "Other"})
    with pytest.raises(InputError, match="no class 'Boredom'"):
        map_class_names(SEVEN, EIGHT, {"Fear": "Boredom"})
    with pytest.raises(InputError, match="mean the same"):
        map_class_names(("Happy", "Happiness"), SEVEN)
    assert {labels.canonical_class_name(name) for name in SEVEN} == EMOTIONS
