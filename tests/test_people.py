"""Who is who: links over frames, short gaps, people who cross, leave, come back, or are on screen at once."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fercache.faces.identity import Person, build_persons, crops_to_embed, left_and_right, mean_vector
from fercache.faces.tracklets import MAX_GAP, iou, link_tracklets, matched

WIDE = 16


def face(x: float, y: float = 100, size: float = 80, score: float = 0.99) -> np.ndarray:
    return np.array([x, y, x + size, y + size, score])


def frames(*people: dict[int, np.ndarray], total: int) -> list[np.ndarray]:
    """Return detections (n, 5) of `total` frames from people who say where they are in which frame."""
    return [np.array([p[t] for p in people if t in p]).reshape(-1, 5) for t in range(total)]


def main(detections: list[np.ndarray]) -> Person:
    """Return the main person as places alone tell."""
    return build_persons(link_tracklets(detections))[0]


def vector(who: int, twist: float = 0.1, seed: int = 0) -> np.ndarray:
    """Return the identity vector of a person, a bit off."""
    off = np.random.default_rng([who, seed]).normal(size=WIDE)
    return mean_vector((np.eye(WIDE)[who] + twist * off / np.linalg.norm(off))[None])


def by_face(detections: list[np.ndarray], people: list[dict[int, np.ndarray]],
            cuts: tuple[int, ...] = ()) -> list[Person]:
    """Return the people as a net sees them that knows whose each face is (the box tells, in `people`)."""
    pieces = link_tracklets(detections, cuts)
    seen: dict[int, list[np.ndarray]] = {}
    for place in crops_to_embed(pieces):
        box, row = pieces.faces[place], int(pieces.frame[place])
        who = next(i for i, p in enumerate(people) if row in p and (p[row] == box).all())
        seen.setdefault(int(pieces.tracklet[place]), []).append(vector(who, seed=int(place)))
    return build_persons(pieces, {piece: mean_vector(np.array(vectors)) for piece, vectors in seen.items()})


def assert_is(person: Person, there: dict[int, np.ndarray], but: int = 0) -> None:
    """Assert that the boxes are this one's, in every frame but for some without any."""
    rows = np.flatnonzero(person.seen)
    assert all(int(t) in there and (person.boxes[t] == there[int(t)][:4]).all() for t in rows)
    assert len(rows) >= len(there) - but


def test_an_identity_vector_that_is_no_number_joins_nobody() -> None:
    seen = frames({t: face(100) if t < 10 else face(400) for t in range(30) if t < 10 or t >= 20}, total=30)
    pieces = link_tracklets(seen, (15,))
    broken = vector(0)
    broken[0] = np.nan
    assert len(build_persons(pieces, {0: broken, 1: vector(1)})) == 2


def test_one_face_is_followed_and_nothing_else_filled() -> None:
    seen = frames({t: face(100 + t) for t in range(40) if t % 7}, total=40)
    there = np.array([bool(t % 7) for t in range(40)])
    person = main(seen)
    np.testing.assert_array_equal(~np.isnan(person.boxes[:, 0]), there)
    np.testing.assert_array_equal(person.boxes[there, 0], 100 + np.flatnonzero(there))
    np.testing.assert_array_equal(person.track, np.where(there, 0, -1))
    np.testing.assert_array_equal(person.score[there], 0.99)


def test_no_face_and_no_frame() -> None:
    nobody = main([np.empty((0, 5))] * 5)
    assert np.isnan(nobody.boxes).all() and np.isnan(nobody.score).all() and not nobody.seen.any()
    assert nobody.boxes.shape == (5, 4) and main([]).boxes.shape == (0, 4)
    assert len(build_persons(link_tracklets([np.empty((0, 5))]), {})) == 1


@pytest.mark.parametrize(("gap", "pieces"), [(MAX_GAP, 1), (MAX_GAP + 1, 2)])
def test_gaps_are_bridged_up_to_their_limit(gap: int, pieces: int) -> None:
    there = {t: face(100) for t in range(30 + gap) if not 15 <= t < 15 + gap}
    assert link_tracklets(frames(there, total=30 + gap)).count == pieces


def test_the_larger_person_is_main_whatever_the_order_of_detections() -> None:
    small, large = {t: face(400, size=50) for t in range(30)}, {t: face(100, size=120) for t in range(30)}
    for people in ((small, large), (large, small)):
        person = main(frames(*people, total=30))
        assert (person.boxes[:, 0] == 100).all() and len(set(person.track.tolist())) == 1


def test_a_face_that_leaves_and_comes_back_elsewhere_is_the_main_person_again() -> None:
    there = {**{t: face(100) for t in range(30)}, **{t: face(500) for t in range(80, 120)}}
    for person in (main(frames(there, total=120)), by_face(frames(there, total=120), [there])[0]):
        assert_is(person, there)
        assert person.track[0] != person.track[100]


def test_never_jumps_to_somebody_who_was_on_screen_too() -> None:
    first = {t: face(100, size=120) for t in range(60)}
    other = {t: face(500) for t in range(40, 120)}
    assert_is(main(frames(first, other, total=120)), first)


def test_the_other_person_after_a_break_is_still_the_other_person() -> None:
    first = {t: face(100, size=120) for t in range(60)}
    other = {t: face(500) for t in range(120) if not 70 <= t < 90}
    assert_is(main(frames(first, other, total=120)), first)


def test_short_or_tiny_faces_later_are_nobody() -> None:
    first = {t: face(100, size=120) for t in range(60)}
    for later in ({t: face(300) for t in range(90, 93)}, {t: face(300, size=40) for t in range(90, 120)}):
        assert_is(main(frames(first, later, total=120)), first)


def test_somebody_else_who_comes_when_the_main_person_has_left_is_told_by_the_face() -> None:
    """Places alone take the passer-by for the main person come back."""
    first, other = {t: face(100, size=120) for t in range(60)}, {t: face(105, size=110) for t in range(90, 120)}
    seen = frames(first, other, total=120)
    assert main(seen).seen[90:].all()
    people = by_face(seen, [first, other])
    assert len(people) == 2
    assert_is(people[0], first)
    assert_is(people[1], other)


def test_another_person_in_the_same_place_after_a_cut_is_told_by_the_face() -> None:
    """Shot and counter-shot: the boxes go on as if nothing had happened."""
    first = {t: face(100, size=120) for t in range(100) if t // 25 % 2 == 0}
    other = {t: face(104, size=116) for t in range(100) if t // 25 % 2}
    seen, cuts = frames(first, other, total=100), (25, 50, 75)
    assert link_tracklets(seen).count == 1 and link_tracklets(seen, cuts).count == 4
    people = by_face(seen, [first, other], cuts)
    assert len(people) == 2
    assert_is(people[0], first)
    assert_is(people[1], other)


@pytest.mark.parametrize("hidden", [False, True])
def test_two_who_cross_keep_their_own_faces(hidden: bool) -> None:
    """The boxes cross with one behind the other; overlap alone may give each the other's way."""
    left, right = {t: face(100 + 8 * t, size=100) for t in range(60)}, {t: face(572 - 8 * t, y=104) for t in range(60)}
    if hidden:
        right = {t: box for t, box in right.items() if abs(left[t][0] - box[0]) > 60}
    people = by_face(frames(left, right, total=60), [left, right])
    assert_is(people[0], left, but=10)
    assert_is(people[1], right, but=10)


def test_two_who_meet_and_turn_back_are_not_swapped() -> None:
    left = {t: face(100 + 6 * min(t, 60 - t), size=100) for t in range(60)}
    right = {t: face(480 - 6 * min(t, 60 - t), size=90) for t in range(60)}
    people = by_face(frames(left, right, total=60), [left, right])
    assert_is(people[0], left, but=10)
    assert_is(people[1], right, but=10)


def test_who_is_never_joined_though_alike() -> None:
    """Twins in one picture: equal vectors, two people."""
    one, two = {t: face(100) for t in range(30)}, {t: face(400, size=60) for t in range(30)}
    pieces = link_tracklets(frames(one, two, total=30))
    people = build_persons(pieces, {0: vector(3), 1: vector(3)})
    assert [int(p.seen.sum()) for p in people] == [30, 30]


def test_small_faces_are_not_known_again_by_the_vector_alone() -> None:
    for size, people in ((30, 2), (60, 1)):
        there = {t: face(100 if t < 40 else 500, size=size) for t in range(120) if not 30 <= t < 90}
        assert len(by_face(frames(there, total=120), [there])) == people


def test_one_face_at_a_time_without_a_break_needs_no_look() -> None:
    assert not len(crops_to_embed(link_tracklets(frames({t: face(100 + t) for t in range(40)}, total=40))))
    with_noise = frames({t: face(100 + t) for t in range(40)}, {20: face(400, size=40)}, total=40)
    assert not len(crops_to_embed(link_tracklets(with_noise))), "a face of one frame is mostly none"


def test_looks_are_few_and_spread_over_each_piece() -> None:
    seen = frames({t: face(100, score=.9 + .001 * (t % 50)) for t in range(200)}, {t: face(400) for t in range(90)},
                  total=200)
    pieces = link_tracklets(seen)
    at = crops_to_embed(pieces)
    assert [int((pieces.tracklet[at] == piece).sum()) for piece in range(2)] == [5, 5]
    assert pieces.frame[at[pieces.tracklet[at] == 0]].tolist() == [39, 49, 99, 149, 199]
    assert (np.diff(pieces.frame[at]) >= 0).all()


def test_iou_of_known_boxes() -> None:
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], float)
    b = np.array([[1, 0, 3, 2], [0, 0, 2, 2], [0, 0, 0, 0], [5, 5, 6, 6]], float)
    np.testing.assert_allclose(iou(a, b), [[1 / 3, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(matched(iou(a, b)), [-1, 0, -1, -1])


boxes_of_a_frame = st.lists(st.tuples(*[st.integers(0, 300)] * 2, st.integers(1, 120), st.floats(0.9, 1)), max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.lists(boxes_of_a_frame, max_size=40), st.sets(st.integers(0, 39), max_size=3), st.booleans())
def test_laws(spec: list[list[tuple[int, int, int, float]]], cuts: set[int], with_faces: bool) -> None:
    """Each face is one person's; no piece and no person has two in a frame; no piece goes over a cut."""
    seen = [np.array([[x, y, x + s, y + s, p] for x, y, s, p in one], float).reshape(-1, 5) for one in spec]
    pieces = link_tracklets(seen, cuts)
    rows = list(zip(pieces.frame.tolist(), pieces.tracklet.tolist(), strict=True))
    assert len(set(rows)) == len(rows)
    for number in range(pieces.count):
        span = pieces.frame[pieces.tracklet == number]
        assert not any(span[0] < cut <= span[-1] for cut in cuts)
    vectors = {int(p): vector(int(p) % 3)
               for p in np.unique(pieces.tracklet[crops_to_embed(pieces)])} if with_faces else None
    people = build_persons(pieces, vectors)
    assert sum(int(person.seen.sum()) for person in people) == len(pieces.frame)
    for person in people:
        for t in np.flatnonzero(person.seen):
            assert (seen[t] == [*person.boxes[t], person.score[t]]).all(axis=1).any()
        assert (person.seen == ~np.isnan(person.boxes[:, 0])).all()
    assert len(people) >= max(map(len, seen), default=0)


def test_a_long_clip_takes_seconds() -> None:
    seen = [face(100 + 20 * np.sin(t / 50))[None] for t in range(47_434)]
    started = time.process_time()
    assert set(main(seen).track.tolist()) == {0}
    assert time.process_time() - started < 20


def test_a_crowd_of_thousands_of_pieces_takes_seconds() -> None:
    rng = np.random.default_rng(0)
    people = [{t: face(300 * (k % 6), 300 * (k // 6 % 4)) for t in range(s, s + 12)}
              for k, s in enumerate(np.sort(rng.integers(0, 9000, 1500)).tolist())]
    started = time.process_time()
    pieces = link_tracklets(frames(*people, total=9020))
    vectors = {int(p): vector(int(p) % WIDE) for p in np.unique(pieces.tracklet[crops_to_embed(pieces)])}
    assert len(build_persons(pieces, vectors)) >= WIDE
    assert time.process_time() - started < 60


def test_left_and_right_are_two_people() -> None:
    left, right = {t: face(100 + t, size=80) for t in range(40)}, {t: face(400 - t, size=120) for t in range(10, 40)}
    found = left_and_right(build_persons(link_tracklets(frames(left, right, total=40))))
    for person, there in zip(found, (left, right), strict=True):
        assert_is(person, there)


def test_one_person_alone_is_on_both_sides() -> None:
    alone = {t: face(100) for t in range(20)}
    for person in left_and_right(build_persons(link_tracklets(frames(alone, total=20)))):
        assert_is(person, alone)


def test_people_who_are_never_seen_together_are_two_by_their_faces_and_one_by_place() -> None:
    right, left = {t: face(400) for t in range(30)}, {t: face(100) for t in range(60, 80)}
    seen = frames(right, left, total=80)
    for person in left_and_right(build_persons(link_tracklets(seen))):
        assert_is(person, {**left, **right})
    for person, there in zip(left_and_right(by_face(seen, [right, left])), (left, right), strict=True):
        assert_is(person, there)
