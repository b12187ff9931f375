"""Who is who: links over frames, short gaps, people who come back, people who are on screen at once."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache.people import MAX_GAP, iou, link, main_person, match, person_at


def face(x: float, y: float = 100, size: float = 80, score: float = 0.99) -> np.ndarray:
    return np.array([x, y, x + size, y + size, score])


def frames(*people: dict[int, np.ndarray], total: int) -> list[np.ndarray]:
    """Return detections (n, 5) of `total` frames from people who say where they are in which frame."""
    return [np.array([p[t] for p in people if t in p]).reshape(-1, 5) for t in range(total)]


def test_one_face_is_followed_and_nothing_else_filled() -> None:
    seen = frames({t: face(100 + t) for t in range(40) if t % 7}, total=40)
    boxes, score, track = main_person(seen)
    there = np.array([bool(t % 7) for t in range(40)])
    np.testing.assert_array_equal(~np.isnan(boxes[:, 0]), there)
    np.testing.assert_array_equal(boxes[there, 0], 100 + np.flatnonzero(there))
    np.testing.assert_array_equal(track, np.where(there, 0, -1))
    np.testing.assert_array_equal(score[there], 0.99)


def test_no_face_and_no_frame() -> None:
    boxes, score, track = main_person([np.empty((0, 5))] * 5)
    assert np.isnan(boxes).all() and np.isnan(score).all() and (track == -1).all() and boxes.shape == (5, 4)
    assert main_person([])[0].shape == (0, 4)


@pytest.mark.parametrize(("gap", "tracks"), [(MAX_GAP, 1), (MAX_GAP + 1, 2)])
def test_gaps_are_bridged_up_to_their_limit(gap: int, tracks: int) -> None:
    there = {t: face(100) for t in range(30 + gap) if not 15 <= t < 15 + gap}
    numbers = link(frames(there, total=30 + gap))
    assert len(set(numbers.tolist())) == tracks


def test_the_larger_person_is_main_whatever_the_order_of_detections() -> None:
    small, large = {t: face(400, size=50) for t in range(30)}, {t: face(100, size=120) for t in range(30)}
    for people in ((small, large), (large, small)):
        boxes, _, track = main_person(frames(*people, total=30))
        assert (boxes[:, 0] == 100).all() and len(set(track.tolist())) == 1


def test_a_face_that_leaves_and_comes_back_elsewhere_is_the_main_person_again() -> None:
    there = {**{t: face(100) for t in range(30)}, **{t: face(500) for t in range(80, 120)}}
    boxes, _, track = main_person(frames(there, total=120))
    assert np.isnan(boxes[30:80, 0]).all() and not np.isnan(boxes[80:, 0]).any()
    assert track[0] != track[100]


def test_never_jumps_to_somebody_who_was_on_screen_too() -> None:
    main = {t: face(100, size=120) for t in range(60)}
    other = {t: face(500) for t in range(40, 120)}
    boxes, _, _ = main_person(frames(main, other, total=120))
    assert np.isnan(boxes[60:, 0]).all()


def test_the_other_person_after_a_break_is_still_the_other_person() -> None:
    main = {t: face(100, size=120) for t in range(60)}
    other = {t: face(500) for t in range(120) if not 70 <= t < 90}
    boxes, _, _ = main_person(frames(main, other, total=120))
    assert np.isnan(boxes[60:, 0]).all()


def test_short_or_tiny_faces_later_are_nobody() -> None:
    main = {t: face(100, size=120) for t in range(60)}
    for later in ({t: face(300) for t in range(90, 93)}, {t: face(300, size=40) for t in range(90, 120)}):
        assert np.isnan(main_person(frames(main, later, total=120))[0][60:, 0]).all()


def test_two_who_cross_do_not_share_a_track_in_one_frame() -> None:
    left = {t: face(100 + 10 * t) for t in range(50)}
    right = {t: face(600 - 10 * t, y=110) for t in range(50)}
    numbers = link(frames(left, right, total=50)).reshape(50, 2)
    assert (numbers[:, 0] != numbers[:, 1]).all()


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], float)
    b = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [0, 0, 0, 0], [5, 5, 6, 6]], float)
    np.testing.assert_allclose(iou(a, b), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(match(a, b), [-1, 0, -1, -1])


boxes_of_a_frame = st.lists(st.tuples(*[st.integers(0, 300)] * 2, st.integers(1, 120), st.floats(0.9, 1)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(boxes_of_a_frame, max_size=40))
def test_laws(spec: list[list[tuple[int, int, int, float]]]) -> None:
    """Every box given back is a detection of its own frame; no track has two faces in a frame."""
    seen = [np.array([[x, y, x + s, y + s, p] for x, y, s, p in one], float).reshape(-1, 5) for one in spec]
    boxes, score, track = main_person(seen)
    start = 0
    numbers = link(seen)
    for t, faces in enumerate(seen):
        own = numbers[start:start + len(faces)]
        start += len(faces)
        assert len(set(own.tolist())) == len(own)
        assert (track[t] == -1) == np.isnan(boxes[t, 0])
        if track[t] != -1:
            assert (faces == [*boxes[t], score[t]]).all(axis=1).any()
    assert not any(map(len, seen)) or (track != -1).any()


def test_a_long_clip_takes_seconds() -> None:
    seen = [face(100 + 20 * np.sin(t / 50))[None] for t in range(47_434)]
    started = time.process_time()
    assert len(set(main_person(seen)[2].tolist())) == 1
    assert time.process_time() - started < 20


def test_left_and_right_are_two_people() -> None:
    left, right = {t: face(100 + t, size=80) for t in range(40)}, {t: face(400 - t, size=120) for t in range(10, 40)}
    seen = frames(left, right, total=40)
    for side, person in (("left", left), ("right", right)):
        boxes, _, _ = person_at(seen, side)
        there = np.array([t in person for t in range(40)])
        np.testing.assert_array_equal(~np.isnan(boxes[:, 0]), there)
        np.testing.assert_array_equal(boxes[there], np.array([person[t][:4] for t in sorted(person)]))
    np.testing.assert_array_equal(person_at(seen, "")[0], main_person(seen)[0])


def test_one_person_alone_is_on_both_sides() -> None:
    seen = frames({t: face(100) for t in range(20)}, total=20)
    for side in ("left", "right"):
        np.testing.assert_array_equal(person_at(seen, side)[0], main_person(seen)[0])


def test_people_who_are_never_seen_together_count_as_one() -> None:
    seen = frames({t: face(400) for t in range(30)}, {t: face(100) for t in range(60, 80)}, total=80)
    for side in ("left", "right"):
        np.testing.assert_array_equal(person_at(seen, side)[0], main_person(seen)[0])
