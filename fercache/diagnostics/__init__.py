"""Checks of data sets, caches and results: `check`, `audit`, `ablation`, `doctor`. Open `check.py` first."""
