"""Validation and collection; user functions run in processes of their own."""

from pexecd.results.collector import Collector
from pexecd.results.judge import Judge

__all__ = ["Collector", "Judge"]
