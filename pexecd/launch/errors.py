"""Why a client could not be started on a host, by its exit status."""

from __future__ import annotations

from pexecd.errors import HostError

START = "start"

#: Exit statuses of the start script and of the client (SPEC section 4.2).
STARTED, NOT_THERE, NO_PYTHON, FOLDER, UNREACHABLE, RUNNING, REFUSED, NO_PLATFORM = (
    0,
    61,
    62,
    63,
    64,
    65,
    66,
    67,
)


#: Not an error as long as the SSH connection stands: what to know of such a host.
ENDS_AT_LOGOUT = (
    "logind there ends a client when its SSH connection does (KillUserProcesses=yes, which "
    "lingering does not change); ask for KillUserProcesses=no, or for KillExcludeUsers= with the "
    "user's name, in its /etc/systemd/logind.conf"
)


class NoPythonError(HostError):
    """No Python 3.6 or newer."""

    least_pause = 60.0
    advice = "install one there, or name it by python= in the cluster file"


class FolderUnusableError(HostError):
    """The client's folder cannot be made or written to."""

    least_pause = 30.0
    advice = "name another folder by dir= in the cluster file"


class FolderFullError(FolderUnusableError):
    """No room, or the user's quota is used up."""

    advice = "make room there, or name another folder by dir= in the cluster file"


class FolderReadOnlyError(FolderUnusableError):
    """It is mounted for reading alone."""

    advice = "have it mounted for writing, or name another folder by dir= in the cluster file"


class NoExecError(FolderUnusableError):
    """No program in it can be started."""

    advice = "name a folder on another file system by dir= in the cluster file"


class ServerUnreachableError(HostError):
    """The host does not get through to the master."""

    least_pause = 10.0
    advice = "does `listen` or `advertise` in [job] say an address that the host can reach?"


class SessionRefusedError(HostError):
    """Another master answers at that address."""

    least_pause = 60.0
    advice = "does `advertise` in [job] lead to this master?"


class NoPlatformError(HostError):
    """There is no executable for the host's platform."""

    retry = False
    advice = "add executable.PLATFORM to [worker], or set platform= in the cluster file"


class LoginUnusableError(HostError):
    """The user can log in, but no command gets through."""

    least_pause = 30.0
    advice = (
        "try `ssh HOST echo hello` by hand: the login shell or its start-up files stop commands"
    )


class OldClientError(HostError):
    """The client that is there was told what is no longer so, and has not ended yet."""


class ThisComputerError(HostError):
    """It is not the host's fault."""

    advice = "mend that on this computer; it will be tried again"


class StartFailedError(HostError):
    """Anything else."""

    advice = "it will be tried again; what the host says may tell why"


_BY_STATUS = {
    NO_PYTHON: (NoPythonError, "no usable Python"),
    FOLDER: (FolderUnusableError, "the client's folder cannot be used"),
    UNREACHABLE: (ServerUnreachableError, "the client cannot reach the master"),
    REFUSED: (SessionRefusedError, "the server that the client reached refused its session"),
    NO_PLATFORM: (NoPlatformError, "no worker for its platform"),
}


#: What systems and the client say of a folder; the first that fits counts.
_BY_WORDS = (
    ("no program can be started there", NoExecError, "no program can be started in its folder"),
    ("No space left", FolderFullError, "its disk is full"),
    ("quota exceeded", FolderFullError, "the user's quota there is used up"),
    ("Read-only file system", FolderReadOnlyError, "its folder is on a read-only file system"),
)


def explain(host: str, status: int | None, words: str) -> HostError | None:
    """The error that an exit status stands for.

    Args:
        host: the host's name.
        status: of the start script, or of the client.
        words: what was said on standard error.

    Returns:
        None for a status without a meaning of its own.
    """
    if status not in _BY_STATUS:
        return None
    kind, what = _BY_STATUS[status]
    if status == FOLDER:
        for phrase, special, why in _BY_WORDS:
            if phrase in words:
                kind, what = special, why
                break
    return kind(host, START, what, words)
