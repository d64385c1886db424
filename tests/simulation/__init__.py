"""The core in a simulated world: see ``history.py``."""
