"""Faces in frames: detection, interpolation between detections, tracklets, persons, crops and augmentations.

Open `detector.py` first, then `interpolation.py`.
"""
