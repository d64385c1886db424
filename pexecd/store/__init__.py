"""SQLite journal with group commit, and the spool that result bodies stream to."""

from __future__ import annotations

from pexecd.store.folder import StateFolder
from pexecd.store.journal import Journal
from pexecd.store.problems import no_room
from pexecd.store.recovery import LostResult, Recovery
from pexecd.store.reports import FailureLog, Joblog, StatisticsFile, write_json
from pexecd.store.schema import SEPARATOR
from pexecd.store.spool import Spool
from pexecd.store.table import Line, Remapped

__all__ = [
    "SEPARATOR",
    "FailureLog",
    "Joblog",
    "Journal",
    "Line",
    "LostResult",
    "Recovery",
    "Remapped",
    "Spool",
    "StateFolder",
    "StatisticsFile",
    "no_room",
    "write_json",
]
