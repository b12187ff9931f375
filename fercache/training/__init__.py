"""Stage two, a: from the store to out-of-fold logits and trained heads.

Open `train.py` first, then `cross_validation.py`.
"""

from __future__ import annotations
