"""Pages, metrics and control (to come)."""
