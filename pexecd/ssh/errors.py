"""What goes wrong with a host over SSH, each kind a class of its own.

Every message says what happened, in the peer's own words where it has any, and what to do.
"""

from __future__ import annotations

import re

from pexecd.errors import HostError

#: In our words, and in those of ssh: how the host would let the user in.
_ASKS_FOR = re.compile(r"(?:asks for |Permission denied \()([\w,.@-]+)")

#: Kerberos, as SSH servers call it.
GSSAPI = "gssapi-with-mic"
#: The computers of a cluster trust each other, likewise.
HOSTBASED = "hostbased"


class SSHMissingError(HostError):
    """This machine has no ``ssh``, which reads the user's settings for us."""

    retry = False
    advice = "install the OpenSSH client on this machine"


class SettingsError(HostError):
    """The user's settings do not say how to reach the host."""

    retry = False
    advice = "see what `ssh -G` says of this host, and mend the SSH configuration"


class NameUnknownError(HostError):
    """The name has no address."""

    advice = "check the name in the cluster file, and HostName in the SSH configuration"


class NoRouteError(HostError):
    """No packet gets there."""

    advice = "is the host switched on, and the network in between up?"


class RefusedError(HostError):
    """Nobody listens at that port."""

    advice = "is sshd running there, and is the port right?"


class TimedOutError(HostError):
    """No answer within the deadline of a stage."""

    advice = "the host, or the network to it, is too busy or dead, or a firewall swallows packets"


class ThrottledError(HostError):
    """The SSH server turns connections away for a while."""

    least_pause = 20.0
    busy = True
    advice = "it will be tried again later; see MaxStartups and PerSourcePenalties in sshd_config"


class ProxyCommandError(HostError):
    """The command that leads to the host (ProxyCommand) ended too soon."""

    advice = "try it by hand with ssh"


class NotSSHError(HostError):
    """Something else than an SSH server answers."""

    advice = "check the port"


class NoCommonAlgorithmError(HostError):
    """Server and client share no algorithm of some kind."""

    retry = False
    advice = "allow one of ours in the server's sshd_config"


class HostKeyError(HostError):
    """The host is not known to be the one that was meant. Never tried again by itself."""

    retry = False


class HostKeyUnknownError(HostKeyError):
    """Its key is in no known_hosts file."""

    advice = (
        "compare it, log in once by hand with ssh to accept it, or set "
        "`StrictHostKeyChecking accept-new` for the host"
    )


class HostKeyChangedError(HostKeyError):
    """known_hosts has another key for it."""

    advice = "find out why; if the host was set up anew, remove the old key with `ssh-keygen -R`"


class HostKeyRevokedError(HostKeyError):
    """Its key is marked ``@revoked`` in known_hosts."""

    advice = "somebody may have stolen that key: give the host a new one"


class KeysRejectedError(HostError):
    """No key of the user was accepted. A person may add one, so it is tried again, rarely.

    Attributes:
        methods: how the host would let users in.
    """

    methods: frozenset[str] = frozenset()

    least_pause = 60.0
    advice = (
        "add a public key to ~/.ssh/authorized_keys there, load an encrypted key into "
        "ssh-agent, or name the right one by IdentityFile"
    )

    def __init__(self, host: str, stage: str, reason: str, said: str = "") -> None:
        methods = f"{reason} {said}"  # both Conch's reason and ssh's words have them
        if GSSAPI in methods:
            kerberos = "get a Kerberos ticket with kinit, and set `GSSAPIAuthentication yes`"
            self.advice = f"{self.advice}; or {kerberos}" if "publickey" in methods else kerberos
        elif (asks := _ASKS_FOR.search(methods)) and "publickey" not in asks[1]:
            self.advice = (
                "nobody can be asked here: have the host take a key alone, or log in once by hand "
                "with `ssh -M` and a ControlPath in the SSH configuration, which is then used"
            )
        super().__init__(host, stage, reason, said)


class ChannelRefusedError(HostError):
    """The server does not allow (another) session."""

    advice = "see MaxSessions, ForceCommand and the forced command of the key on the server"


class JumpRefusedError(HostError):
    """A jump host does not lead any further."""

    retry = False
    advice = "see AllowTcpForwarding, PermitOpen and DisableForwarding in its sshd_config"


class CommandFailedError(HostError):
    """The server closed a command's channel without an exit status; the command may still run."""

    advice = "try it by hand with ssh; see ChannelTimeout in the server's sshd_config"


class CopyFailedError(HostError):
    """A file could not be copied there."""

    advice = "is there room, and may the user write there?"


class ConnectionLostError(HostError):
    """The connection broke."""

    advice = "it will be tried again"


class PeerVanishedError(ConnectionLostError):
    """The host no longer answers on a connection that is still there."""

    advice = "it may be down, or the network cut"
