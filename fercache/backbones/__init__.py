"""The frozen face CNN: its nets, their taps, and their weights.

Open `backbone.py` first; `registry.py` lists the backbones by name.
"""
