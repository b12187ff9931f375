"""Maintenance of the cache: verify, diff, garbage collection, forget, export and import.

Open `verify.py` first.
"""
