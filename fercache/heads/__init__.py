"""The nets of the heads: each maps rows ``(B, W, D)`` and a face mask ``(B, W)`` to logits ``(B, W, C)``.

Open `registry.py` first: it names all heads. Then `base.py`, `frame.py` and `temporal.py` hold their nets.
"""
