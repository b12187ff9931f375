"""Who is who: faces linked over frames into pieces, and the pieces of one person joined, by the face or by place."""

from fercache.people.boxes import MIN_IOU, NONE, SAME_IOU, area, iou, match
from fercache.people.face import JOIN, JOIN_NEAR, looks, mean_vector
from fercache.people.person import Person, persons, sides
from fercache.people.pieces import MAX_GAP, Pieces, pieces_of

__all__ = ["JOIN", "JOIN_NEAR", "MAX_GAP", "MIN_IOU", "NONE", "POLICY", "SAME_IOU", "Person", "Pieces", "area", "iou",
           "looks", "match", "mean_vector", "persons", "pieces_of", "sides"]

POLICY = 2
"""Raised whenever the code changes whom boxes belong to. 1 linked by overlap alone."""
