"""`fercache predict`: new clips through extraction, heads and stack. Open `predict.py` first."""
