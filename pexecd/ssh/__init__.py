"""Conch, with what it lacks: connect, authenticate, run, copy, tunnel."""

from pexecd.ssh.connector import Connector
from pexecd.ssh.transport import Deadlines

__all__ = ["Connector", "Deadlines"]
