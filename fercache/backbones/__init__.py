"""The frozen face CNN: its nets, the taps that can be kept, and its weights.

Open `backbone.py` first.
"""
