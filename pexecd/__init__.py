"""pexecd runs a program once for every line of a table, on all computers at once."""

__version__ = "0.1.0"
