"""Conch tells eighteen things for each connect; only its warnings are of use to anybody."""

from __future__ import annotations

from twisted.logger import (
    FilteringLogObserver,
    Logger,
    LogLevel,
    LogLevelFilterPredicate,
    globalLogPublisher,
)

#: Stands in for ``_log`` of Conch's classes.
QUIET = Logger(
    namespace="pexecd.ssh",
    observer=FilteringLogObserver(
        globalLogPublisher, [LogLevelFilterPredicate(defaultLogLevel=LogLevel.warn)]
    ),
)
