"""Stage two, a: trains heads on the embedding store by group folds, and writes out-of-fold logits and checkpoints.

Open `train.py` first, then `cross_validation.py`.
"""
