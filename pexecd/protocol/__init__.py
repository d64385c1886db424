"""The founding document's protocol: its text format, and the twisted.web tree that speaks it."""
