"""Runs on the hosts, under any Python from 3.6 on: looks at the folder, says what the host is.

Its source goes there with the start script (``launch.start``), ahead of the client, and is
written nowhere. It prints one line that begins with ``MARK``, with a JSON object.

Hosts that share the folder are found out by a note in it: the first one writes its name, the
others read it. A note is of use until the client is there; the next host that finds it removes it.
"""

# Tests: tests/unit/launch/test_onhost.py. No annotations of Python 3.9, no f-strings: an older
# Python must get so far as to be told apart.

import hashlib
import json
import os
import pwd
import re
import sys
import tempfile
import time
import types

MARK = "pexecd-host "
#: Exit statuses, as in ``launch.errors``.
NOT_THERE, FOLDER = 61, 63
NOTE = ".pexecd-note-"
#: Notes that a killed master left behind go after a day (the clocks may differ).
STALE = 86400.0
#: How long a note is waited for that is being written.
NOTE_LIMIT = 3.0

YES = ("1", "yes", "y", "true", "t", "on")


def say(facts: dict) -> None:  # type: ignore[type-arg]
    """Tell the master."""
    sys.stdout.write(MARK + json.dumps(facts) + "\n")
    sys.stdout.flush()


def refuse(words: str) -> int:
    """The folder cannot be used."""
    sys.stderr.write(words + "\n")
    return FOLDER


def folder_problem(folder: str) -> str:
    """Why nothing may be put into a folder: others could change it."""
    about = os.stat(folder)
    if about.st_uid != os.getuid():
        return "folder %s belongs to user %d, not to us" % (folder, about.st_uid)
    if about.st_mode & 0o022:
        return "others can write to folder %s; say: chmod go-w %s" % (folder, folder)
    return ""


def is_there(path: str, wanted: str) -> bool:
    """Whether the client is there, and this version of it."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest() == wanted
    except OSError:
        return False


def write_note(folder: str, run: str, name: str) -> str:
    """Leave a note, or read the one that is there: who wrote it first.

    Creating a file makes an NFS client forget what it remembers of the folder, up to a minute old.
    """
    path = os.path.join(folder, NOTE + run)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.fsencode(name) + b"\n")
        return name
    except FileExistsError:
        other, place = tempfile.mkstemp(prefix=".pexecd-try-", dir=folder)
        os.close(other)
        os.unlink(place)
    end = time.monotonic() + NOTE_LIMIT
    while time.monotonic() < end:
        try:
            with open(path, "rb") as file:
                text = file.read()
        except OSError:
            text = b""  # it is gone, or not seen yet
        if text.endswith(b"\n"):
            return os.fsdecode(text[:-1])
        time.sleep(0.1)
    return name


def remove_notes(folder: str, run: str) -> None:
    """Remove this run's note, and those of runs that are long gone."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        try:
            old = name.startswith(NOTE) and time.time() - os.stat(path).st_mtime > STALE
            if name == NOTE + run or old:
                os.unlink(path)
        except OSError:
            pass  # another host was faster


def logind_settings(root: str) -> dict:  # type: ignore[type-arg]
    """What logind.conf and the files beside it say."""
    places = ["etc", "run", "usr/local/lib", "usr/lib", "lib"]
    folders = [os.path.join(root, place, "systemd") for place in places]
    files = {}
    for folder in reversed(folders):  # the first ones win
        inner = os.path.join(folder, "logind.conf.d")
        if os.path.isfile(os.path.join(folder, "logind.conf")):
            files[""] = os.path.join(folder, "logind.conf")
        for name in os.listdir(inner) if os.path.isdir(inner) else []:
            if name.endswith(".conf"):
                files[name] = os.path.join(inner, name)
    settings = {}
    for name in sorted(files):
        with open(files[name], encoding="utf-8", errors="replace") as file:
            for line in file:
                key, equals, value = line.partition("=")
                if equals and not line.startswith(("#", ";")):
                    settings[key.strip()] = value.strip()
    return settings


def ends_at_logout(root: str = "/", cgroup: str = "/proc/self/cgroup") -> bool:
    """Whether logind kills what a session leaves behind (lingering does not change that)."""
    try:
        with open(cgroup) as file:
            if not any("/session-" in line and ".scope" in line for line in file):
                return False  # not a session of logind's
        settings = logind_settings(root)
        user = pwd.getpwuid(os.getuid()).pw_name
    except (OSError, KeyError):
        return False
    if settings.get("KillUserProcesses", "no").lower() not in YES:
        return False
    if user in settings.get("KillExcludeUsers", "root").split():
        return False
    return user in (settings.get("KillOnlyUsers", "").split() or [user])


def start(folder: str, file: str, wanted: str, run: str, name: str) -> int:
    """Before the client is started: 0 when it is there."""
    problem = folder_problem(folder)
    if problem:
        return refuse(problem)
    path = os.path.join(folder, file)
    if not is_there(path, wanted):
        try:
            holder = write_note(folder, run, name)
        except OSError as error:
            return refuse("folder %s: nothing can be written there: %s" % (folder, error.strerror))
        if not is_there(path, wanted):
            say({"holder": holder})
            return NOT_THERE
    remove_notes(folder, run)
    say({"ends_at_logout": ends_at_logout()})
    return 0


def check(folder: str, run: str, name: str, source: str) -> int:
    """What the host is, and whether the client could work there; ``source`` is the client's."""
    client = types.ModuleType("pexec_client")
    client.__file__ = "pexec_client.py"
    exec(compile(source, client.__file__, "exec"), client.__dict__)
    facts = {
        "python": "%d.%d.%d" % sys.version_info[:3],
        "platform": client.platform_word(),
        "cores": client.usable_cores(),
        "ends_at_logout": ends_at_logout(),
        "made": [],
    }
    missing = folder
    while not os.path.lexists(missing):
        facts["made"].append(missing)
        missing = os.path.dirname(missing)
    try:
        folder = client.own_folder(folder)
        place = tempfile.mkdtemp(prefix=".pexecd-try-", dir=folder)
        try:
            client.try_folder(place, True)
        finally:
            for left in os.listdir(place):
                os.unlink(os.path.join(place, left))
            os.rmdir(place)
        room = os.statvfs(folder)
        facts["free"] = room.f_bavail * room.f_frsize
        facts["holder"] = write_note(folder, run, name)
    except client.ClientError as error:
        clean(folder, run, facts["made"])
        return refuse(re.sub(r"/\.pexecd-try-\w+", "", str(error)))
    except OSError as error:
        clean(folder, run, facts["made"])
        return refuse("folder %s: nothing can be written there: %s" % (folder, error.strerror))
    say(facts)
    return 0


def clean(folder: str, run: str, made: list) -> int:  # type: ignore[type-arg]
    """After a check: leave nothing behind."""
    if os.path.isdir(folder):
        remove_notes(folder, run)
    for path in made:
        try:
            os.rmdir(path)
        except OSError:
            pass  # in use by now
    return 0


def main(arguments: list) -> int:  # type: ignore[type-arg]
    """One of the above."""
    what, rest = arguments[0], arguments[1:]
    if what == "start":
        return start(*rest)
    if what == "check":
        return check(rest[0], rest[1], rest[2], sys.stdin.buffer.read().decode("utf-8"))
    return clean(rest[0], rest[1], json.loads(rest[2]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
