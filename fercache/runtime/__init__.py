"""The base of all other folders: atomic files, locks, devices, worker processes, progress.

Open `atomic_io.py` first: no other module replaces a file.
"""
