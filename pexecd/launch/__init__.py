"""Getting clients onto hosts and keeping them there."""

from pexecd.launch.clientfile import client_file
from pexecd.launch.launcher import Launcher

__all__ = ["Launcher", "client_file"]
