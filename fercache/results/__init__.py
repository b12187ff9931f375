"""Prediction tables: reading, writing, scoring, filling frames without a face, and the organisers' formats.

Open `io.py` first.
"""
