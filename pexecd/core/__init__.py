"""The state of a session and every decision about it.

Pure: events in (past tense), effects out (imperative); no clock, no dice, no I/O.
"""
