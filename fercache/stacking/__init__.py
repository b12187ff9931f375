"""Stage two, b: from out-of-fold logits to the final predictions. Open `stack.py` first, then `nested_cv.py`."""
