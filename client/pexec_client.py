#!/usr/bin/env python3
"""Runs the tasks of a pexecd master on this computer.

    pexec_client.py [options] SESSION COMMAND MD5 SERVER PORT
    pexec_client.py [options] --from FILE

One file, Python 3.6 or newer, standard library only. The master copies it to a host and
starts it there; it can be started by hand as well. What it says and hears is written
down in docs/protocol.md; this file shares no code with the master.

How it works
------------
One thread, one selector. Whatever takes time is an entry in the selector (a socket, the
pipe that signals are told through) or a timer; nothing is polled, but for the one file
other hosts may change, the worker's ``.lock``.

  Loop        the selector, the timers, the signals
  Request     a request and its answer, HTTP/1.1, not blocking; Http keeps connections
  TaskReader  the body of a task, read as it comes, inputs straight to disk; AnswerReader:
              the answer to an exchange, a row of tasks
  Executable  the worker: shared copy, ``.lock``, own hard link
  Guard       a shell that outlives us for a moment if we are killed, to end the workers;
              each has its folder in PEXEC_FOLDER, by which the next client finds those left
  Engine      runs workers: a Run while one lives, in a Workspace that is used again where it
              was left clean, its output in a Stream, started by the Spawner
  Outcome     what became of a ticket, in memory; Record: the same on disk, where it is large
  Exchange    tells outcomes and fetches tasks, many in one request
  Post        one ticket in a request of its own, until the server has confirmed it
  Client      the life of the whole: config, worker, tasks, pings, the end

A ticket's way: it comes by an exchange -> waits for a slot, some tenths of a second at most ->
Run (folder, inputs, process) -> Outcome or Record. An Outcome goes with the next exchange; a Record
is posted by itself, from its files. Both are repeated until confirmed. What is not after a second
is on disk: from then on nothing but the server's answer can lose it; a client that is killed, or
that gives up after ``Patience``, leaves it for the session's next client here. What was younger
the server gives out again. When there is no task, and with masters that have no exchange, tasks
come by GET /task; with the latter every outcome is a Post.

How short tasks go fast: when a worker ends, nothing is done but to start the next one, whose words
and folder were made ready before, with those of others. What those have left that ended in the last
``AGE`` is then looked at together and told together, while enough tasks wait here for the slots not
to stand idle until the answer comes.

Below the folder (``--dir``), everything 0700:

  pexec_client-*.py                  copies of this file, put there by the master
  NAME-HASH/                         a session: its public name, a hash of its ID
    worker/PLATFORM/WORKER           the shared copy, used through hard links only
    worker/PLATFORM/.lock            somebody is fetching it
    failed/TICKET/                   with KeepFailed: what failed attempts left
    HOST-HASH-PID-RANDOM/            one client; no other host can have that name
      bin/WORKER                     its hard link
      TICKET-HASH/                   current folder of a worker, or of one to be started
      TICKET-HASH.{in,out,stderr}    its streams, where they are results and not pipes
      TICKET-HASH.json               a record: the files belong to a ticket that is to be posted
      NUMBER.err                     standard error of workers, one after another
      unsent                         outcomes, as entries of an exchange
      log                            in the background

Exit status
-----------
With ``--background`` 0 says: in the background now, and the first /config was answered.

  0   ended because no task was left
  1   a mistake in this program; the log has it
  2   wrong usage
  61  not there, or another version (``--verify``)
  62  no usable Python (3.6 or newer)
  63  the folder cannot be used; the reason is on standard error
  64  the server could not be reached, or did not answer for Patience seconds
  65  a client of this session runs on this host already
  66  the server refused the session (403)
  67  the server has no worker for this platform
  128 + N  stopped by signal N
"""
# ruff: noqa: E402

import sys

EXIT_OK = 0
EXIT_BUG = 1
EXIT_VERSION = 61
EXIT_PYTHON = 62
EXIT_FOLDER = 63
EXIT_UNREACHABLE = 64
EXIT_RUNNING = 65
EXIT_REFUSED = 66
EXIT_PLATFORM = 67

# No f-strings in this file: older Pythons must get as far as this.
if sys.version_info < (3, 6):
    sys.stderr.write("pexec_client: needs Python 3.6 or newer, this is %s\n" % sys.version)
    sys.exit(EXIT_PYTHON)

import collections
import errno
import fcntl
import hashlib
import heapq
import io
import itertools
import math
import os
import random
import re
import resource
import select
import selectors
import shlex
import signal
import socket
import stat
import time
import urllib.parse

CHUNK = 256 * 1024  # bytes read or sent at once; the memory a transfer needs
LINE_MOST = 4 * 1024 * 1024  # bytes of a line in a task; argument lists end at 2 MiB
STDERR_TAIL = 4096  # bytes of standard error that go with a failure
INLINE_MOST = 131072  # bytes of results that are kept in memory and told in an exchange
SMALL_MOST = 16384  # of results that always are; larger ones only where it has room for them
OUTBOX_MOST = 4 * 1024 * 1024  # bytes in all that may wait for the next exchange
TIMEOUT_NONE = 31536000  # a Timeout that means: no limit
AGE = 0.05  # seconds until it is told that a worker has ended: then for many at once
KEEP_AFTER = 1.0  # seconds until what the server did not confirm is put on disk
# Large results that may be on their way beside one for each slot: they cover the time that the
# server's disk takes, some tens of milliseconds, while workers go on.
POSTS_BESIDE = 8
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # it cleans up after these
STOP_GRACE = 2.0  # seconds from TERM to KILL, and for last reports
CONNECT_LIMIT = 10.0  # seconds for one address
ANSWER_LIMIT = 60.0  # seconds without a byte in either direction
STORE_LIMIT = 180.0  # the same for uploads: the server may have a slow disk
AFTERWARDS = 60.0  # seconds of silence that are borne when no task is left and none runs
HOLD = 30.0  # seconds for which the server may hold GET /task open
LOCK_RENEW = 5.0  # seconds between renewals of .lock
LOCK_STALE = 30.0  # seconds of the waiter's clock until an unrenewed .lock is broken
LOCK_LOOK = 0.5  # seconds between looks at another's .lock
LOCAL_FOLDER = "/tmp/pexec-%d"  # local to the host, unlike home folders; by user ID
ANNOUNCE = "application/x-pexec; framing=length"
MASTERS_STATUSES = (200, 204, 205, 400, 403, 404, 405, 413, 415, 503)

OWN_FILE = os.path.abspath(__file__)
DEFAULT_PATH = os.fsencode(os.defpath)
# As a result's file: the worker's descriptor, and what the name of a long one's file ends with.
STREAMS = {b"stdout": (1, ".out"), b"stderr": (2, ".stderr")}
UNSENT = "unsent"  # entries of an exchange that the server did not confirm
BEGIN = b"--begin content--"
END = b"--end content--"


class ClientError(Exception):
    """The client cannot go on; ``code`` is its exit status."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Log:
    """Lines for people on standard error, without the secret."""

    secret = ""

    def __call__(self, text, *values):
        line = (text % values) if values else text
        if self.secret:
            line = line.replace(self.secret, "***")
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        data = "%s pexec_client[%d]: %s\n" % (stamp, os.getpid(), line)
        try:
            os.write(2, data.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody listens any more, or the disk is full


log = Log()


def to_bytes(text):
    """Text as it goes over the wire, whatever the locale is."""
    return text.encode("utf-8", "surrogateescape")


def to_text(data):
    """The reverse of ``to_bytes``; nothing is lost."""
    return data.decode("utf-8", "surrogateescape")


def to_path(text):
    """Text from the wire as a file name: its bytes are the same in every locale."""
    return os.fsdecode(to_bytes(text))


def digest(*words):
    """A name made of words that must not be seen, or hold odd characters."""
    return hashlib.sha256(to_bytes("\0".join(words))).hexdigest()


def plain(word):
    """A word as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", word)[:48].lstrip(".-") or "x"


def quietly(function, *args, **keys):
    """Call a function of ``os`` whose failure changes nothing."""
    try:
        return function(*args, **keys)
    except OSError:
        return None


# --- the loop: selector, timers, signals --------------------------------------------------


class Loop:
    """Calls back when a socket is ready, a time has come, or a signal has arrived."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._timers = []  # a heap of [when, number, function or None, arguments]
        self._number = itertools.count()
        self._signals = {}
        self._running = False
        self._wake, self._alarm = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(self._alarm, False)
        signal.set_wakeup_fd(self._alarm)
        self.watch(self._wake, selectors.EVENT_READ, self._awake)

    def watch(self, sock, mask, function=None):
        """Call ``function(mask)`` whenever ``sock`` is ready; mask 0: never again."""
        key = self._selector.get_map().get(sock)
        if key is None:
            if mask:
                self._selector.register(sock, mask, [function])
        elif not mask:
            key.data[0] = None
            self._selector.unregister(sock)
        else:
            key.data[0] = function
            if key.events != mask:
                self._selector.modify(sock, mask, key.data)

    def later(self, delay, function, *args):
        """Call a function in ``delay`` seconds; the result is for ``cancel``."""
        timer = [time.monotonic() + delay, next(self._number), function, args]
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer):
        if timer is not None:
            timer[2] = None  # it is dropped when its time has come

    def on_signal(self, number, function):
        """Call ``function(number)`` from the loop after that signal."""
        self._signals[number] = function
        signal.signal(number, lambda _number, _frame: None)  # the wake-up pipe tells

    def _awake(self, _mask):
        for number in set(os.read(self._wake, 4096)):
            function = self._signals.get(number)
            if function:
                function(number)

    def run(self):
        self._running = True
        while self._running:
            wait = self._run_timers()
            for key, mask in self._selector.select(wait) if self._running else ():
                function = key.data[0]
                if function:  # one callback may have closed the socket of the next
                    function(mask)

    def _run_timers(self):
        """Call what is due; the seconds until the next, or None."""
        timers = self._timers
        while timers:
            wait = timers[0][0] - time.monotonic()
            if wait > 0 and timers[0][2]:
                return wait
            _, _, function, args = heapq.heappop(timers)
            if function:
                function(*args)
        return None

    def stop(self):
        """Leave ``run`` after this callback."""
        self._running = False

    def close(self):
        signal.set_wakeup_fd(-1)
        self._selector.close()
        os.close(self._wake)
        os.close(self._alarm)


def backoff():
    """Growing, jittered pauses: 0.2 s doubling to 10 s."""
    most = 0.2
    while True:
        yield most * random.uniform(0.5, 1.0)
        most = min(10.0, most * 2)


# --- HTTP ---------------------------------------------------------------------------------


class Server:
    """Where the master is.

    ``http://host:port``: a name, an IPv4 or an [IPv6] address. ``https://host:port#SHA256``: the
    same by TLS, with the one who has the certificate of that checksum. ``unix:PATH``: a socket.
    ``file:PATH``: what a file says, which is read for each connection: a tunnel may come back at
    another place. Socket and file are in a folder that is ours alone.
    """

    def __init__(self, url):
        self.url = url
        self.path = self.authority = self.pin = self.socket = ""
        # an absolute path: the current folder is that of the last worker
        self._file = os.path.abspath(to_path(url[5:])) if url.startswith("file:") else ""
        self._said = ""  # by the file
        self._addresses = []
        if not self._file:
            self._read(url)

    def __str__(self):
        return self.url

    def _read(self, url):
        scheme, _, rest = url.partition(":")
        if scheme == "unix" and rest.startswith("/"):
            self.path, self.authority, self.pin, self.socket = "", "localhost", "", to_path(rest)
            return
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(scheme)
        secure = re.fullmatch("[0-9a-f]{64}", parts.fragment) if scheme == "https" else None
        if not (parts.hostname and (scheme == "http" or secure)):
            text = "not http://host:port, https://host:port#SHA256, unix:PATH or file:PATH: %s"
            raise ValueError(text % url)
        self._where = (parts.hostname, port)
        self.pin = parts.fragment if secure else ""
        self.socket = ""
        self.path = parts.path.rstrip("/")
        name = "[%s]" % parts.hostname if ":" in parts.hostname else parts.hostname
        self.authority = "%s:%d" % (name, port)

    def addresses(self):
        """Families and addresses to try, the one that worked first; ``OSError`` if there is none.

        Looking up a name blocks the loop; it happens at the start, and again only when
        no known address answered.
        """
        if self._file:
            check_folder_of(self._file)
            with open(self._file) as file:
                said = file.read().strip()
            if said != self._said:
                self._addresses = []
                self._read(said)
                self._said = said
        if self.socket:
            check_folder_of(self.socket)  # each time: it may have been removed, and be another's
            return [(socket.AF_UNIX, self.socket)]
        if not self._addresses:
            found = socket.getaddrinfo(*self._where, type=socket.SOCK_STREAM)
            self._addresses = [(entry[0], entry[4]) for entry in found]
        return list(self._addresses)

    def worked(self, address):
        self._addresses.sort(key=lambda other: other[1] != address)

    def forget(self):
        self._addresses = []


def check_folder_of(path):
    """``OSError`` unless the folder that a file is in is ours alone: else it may be a trap."""
    folder = os.path.dirname(path)
    try:
        check_ours(folder, os.lstat(folder))
    except ClientError as error:
        raise OSError(errno.EPERM, str(error)) from error


class Pinned:
    """TLS with the one who has a certificate; for the rest like a socket that does not block."""

    def __init__(self, sock):
        import ssl  # slow to load, and not in every Python

        self._wants = {ssl.SSLWantReadError: selectors.EVENT_READ}
        self._wants[ssl.SSLWantWriteError] = selectors.EVENT_WRITE
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # no authority is asked, the checksum decides
        self._sock = context.wrap_socket(sock, do_handshake_on_connect=False)
        self.fileno = self._sock.fileno

    def close(self):
        try:
            self._sock.unwrap()  # says so, without waiting for an answer
        except (OSError, ValueError):
            pass  # ValueError: it had not begun
        self._sock.close()

    def shake_hands(self, pin):
        """Go on with that: what to wait for, 0 at the end; ``OSError`` if it is another's."""
        try:
            self._sock.do_handshake()
        except tuple(self._wants) as error:
            return self._wants[type(error)]
        found = hashlib.sha256(self._sock.getpeercert(True)).hexdigest()
        if found != pin:
            raise OSError(errno.EPERM, "who answers is not the master: it has another certificate")
        return 0

    def send(self, data):
        try:
            return self._sock.send(data)
        except tuple(self._wants) as error:
            raise BlockingIOError from error

    def recv(self, size):
        try:
            data = self._sock.recv(size)
            while self._sock.pending():  # no selector tells of what has been decrypted
                data += self._sock.recv(size)
        except tuple(self._wants) as error:
            raise BlockingIOError from error
        return data


class Body:
    """The body of a request: bytes and files, in order."""

    def __init__(self):
        self.length = 0
        self._parts = []  # bytes, or a file and how much of it
        self._pieces = self._read()

    def add(self, data):
        self._parts.append((data, None))
        self.length += len(data)

    def add_file(self, file, size):
        """So many bytes of an open file, which is closed in the end."""
        self._parts.append((file, size))
        self.length += size

    def _read(self):
        for part, left in self._parts:
            if left is None:
                yield part
                continue
            while left:
                piece = part.read(min(left, CHUNK))
                if not piece:
                    raise OSError(errno.EIO, "a result file became shorter while it was sent")
                left -= len(piece)
                yield piece
            part.close()

    def read(self):
        """The next bytes, empty at the end; ``OSError`` if a file became shorter."""
        data = []
        size = 0
        for piece in self._pieces:
            data.append(piece)
            size += len(piece)
            if size >= CHUNK:
                break
        return b"".join(data)

    def close(self):
        for part, size in self._parts:
            if size is not None:
                part.close()


class Parser:
    """Reads a format as its bytes come: ``_parse`` is a generator that yields for more."""

    def __init__(self):
        self.done = False
        self._buffer = b""
        self._at = 0  # so much of it was taken
        self._ended = False
        self._steps = self._parse()
        next(self._steps)

    def feed(self, data):
        """Take some bytes; ``ValueError`` where they are wrong. What follows the end is lost."""
        self._buffer = self._buffer[self._at :] + data if self._left() else data
        self._at = 0
        self._go_on()

    def end(self):
        """No more will come; ``ValueError`` if something is missing."""
        self._ended = True
        self._go_on()

    def _go_on(self):
        if not self.done:
            try:
                next(self._steps)
            except StopIteration:
                self.done = True

    def _line(self, most=65536):
        """A line with its CR, without its LF; None at the end."""
        while True:
            found = self._buffer.find(b"\n", self._at)
            if found >= 0:
                return self._cut(found - self._at, 1)
            if self._left() > most:
                raise ValueError("a line without an end")
            if self._ended:
                return self._cut(self._left()) or None
            yield

    def _copy(self, length, write):
        """Pass exactly so many bytes on."""
        while length:
            if not self._left():
                if self._ended:
                    raise ValueError("it breaks off")
                yield
            data = self._cut(length)
            write(data)
            length -= len(data)

    def _cut(self, length, more=0):
        """Take bytes from the buffer; ``more`` after them are thrown away."""
        data = self._buffer[self._at : self._at + length]
        self._at += len(data) + more
        return data

    def _left(self):
        return len(self._buffer) - self._at


def encode_query(pairs):
    """Pairs as the query of a URL."""
    return urllib.parse.urlencode(pairs, errors="surrogateescape")


def natural(word):
    """A whole number from text or bytes: digits and nothing else; ``ValueError``."""
    if not word.isdigit():
        raise ValueError("%r is no number" % word)
    return int(word)


class Response(Parser):
    """An HTTP response: with a length, in chunks, or until the connection closes.

    ``status`` is 0 where no whole answer came, and then ``error`` says why. ``sink`` takes
    the bytes of a 200; others are ``text``.
    """

    def __init__(self, sink=None, error=""):
        self.status = 0
        self.headers = {}
        self.text = bytearray()
        self.error = error
        self.keep = False
        self._sink = sink
        super().__init__()

    def _parse(self):
        yield
        status = 100
        while status < 200:  # 100 Continue and its like come before the answer
            line = yield from self._line()
            match = re.match(rb"HTTP/1\.(\d) (\d{3})", line or b"")
            if not match:
                raise ValueError("no answer" if line is None else "that is no HTTP server")
            status = int(match.group(2))
            headers = yield from self._read_headers()
        options = headers.get("connection", "").lower()
        keep = "close" not in options and (match.group(1) != b"0" or "keep-alive" in options)
        take = self._sink if self._sink and status == 200 else self._take_text
        if status in (204, 304):
            pass
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            yield from self._read_chunks(take)
        elif "content-length" in headers:
            yield from self._copy(natural(headers["content-length"]), take)
        else:
            keep = False
            while status != 205 and not self._ended:  # 205 has no body by definition
                take(self._cut(self._left()))
                yield
        self.status, self.headers, self.keep = status, headers, keep

    def _read_headers(self):
        headers = {}
        while len(headers) < 200:
            line = yield from self._line()
            if line is None:
                raise ValueError("the answer breaks off")
            if not line.strip():
                return headers
            name, _, value = line.decode("ascii", "replace").partition(":")
            headers[name.strip().lower()] = value.strip()
        raise ValueError("too many headers")

    def _read_chunks(self, take):
        size = -1
        while size:
            line = yield from self._line()
            match = re.match(rb"([0-9A-Fa-f]{1,15})\s*(;|$)", line or b"")
            if not match:
                raise ValueError("a broken chunk")
            size = int(match.group(1), 16)
            if size:
                yield from self._copy(size, take)
                line = yield from self._line()
                if line is None or line.strip():
                    raise ValueError("a broken chunk")
        yield from self._read_headers()

    def _take_text(self, data):
        self.text += data[: max(0, 1024 * 1024 - len(self.text))]

    def retry_after(self):
        """Seconds, or None where the server named none."""
        value = self.headers.get("retry-after")
        if value is None:
            return None
        return min(float(value), 3600.0) if value.isdigit() else 5.0

    def __str__(self):
        if not self.status:
            return self.error
        line = self.text[:200].decode("utf-8", "replace").strip().split("\n")[0]
        return "status %d%s" % (self.status, ": " + line if line else "")


class Request:
    """One request and its answer: ``done(response)`` is called once, never from within the call.

    ``make_body`` makes the ``Body``; it is called again where a kept connection turns out to
    be closed. ``sink`` takes the bytes of a 200. The way from connecting to the answer is a
    generator, ``_go``; wherever it yields it waits for the socket or for the time to be up.
    """

    def __init__(self, http, method, target, make_body, limit, sink, done):
        self._http = http
        self._loop = http.loop
        self._method = method
        self._target = target
        self._make_body = make_body
        self._limit = limit
        self._sink = sink
        self._done = done
        self._sock = None
        self._begun = False  # some of the answer has come
        self.since = self.moved = time.monotonic()  # moved: a byte last came or went
        self._hurried = False
        self._steps = self._go()
        self._timer = self._loop.later(0, self._step)

    def _step(self, mask=None):
        try:
            self._steps.send(mask)
        except StopIteration as stop:
            self._http.running.discard(self)
            self._done(stop.value)

    def _wait(self, mask, limit):
        """What the socket is ready for; ``OSError`` if it takes longer."""
        self._loop.watch(self._sock, mask, self._step)
        self._timer = self._loop.later(limit, self._step)
        mask = yield
        self._loop.cancel(self._timer)
        if mask is None:
            raise socket.timeout("no answer in %d s" % (time.monotonic() - self.moved))
        self.moved = time.monotonic()
        return mask

    def _go(self):
        try:
            self._sock = self._http.take_kept()
            if self._sock is not None:
                try:
                    return (yield from self._talk())
                except socket.timeout:
                    raise
                except (OSError, ValueError):
                    if self._begun:
                        raise
                    self._drop()  # it was closed while it was idle: send again
            yield from self._connect()
            return (yield from self._talk())
        except (OSError, ValueError) as error:
            if isinstance(error, socket.timeout) and not self._hurried:
                self._http.silence()
            return Response(error=getattr(error, "strerror", None) or str(error))
        finally:
            self._drop()

    def _connect(self):
        server = self._http.server
        tried = []
        for family, address in server.addresses():
            try:
                self._sock = socket.socket(family, socket.SOCK_STREAM)
                self._sock.setblocking(False)
                if family != socket.AF_UNIX:
                    self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                code = self._sock.connect_ex(address)
                if code == errno.EINPROGRESS:
                    yield from self._wait(selectors.EVENT_WRITE, CONNECT_LIMIT)
                    code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    if server.pin:
                        yield from self._secure(server.pin)
                    server.worked(address)
                    return
                reason = os.strerror(code)
            except OSError as error:
                reason = error.strerror or str(error)
            name = address if family == socket.AF_UNIX else address[0]
            tried.append("%s: %s" % (name, reason))
            self._drop()
        server.forget()
        self._http.silence()
        raise OSError("; ".join(tried))

    def _secure(self, pin):
        """Nothing is said before it is known who listens."""
        self._loop.watch(self._sock, 0)
        sock, self._sock = self._sock, None
        try:
            self._sock = Pinned(sock)
        except ImportError as error:
            raise OSError(errno.ENOSYS, "this Python has no TLS: %s" % error) from error
        finally:
            sock.close()  # what it was is Pinned's now, unless that failed
        mask = self._sock.shake_hands(pin)
        while mask:
            yield from self._wait(mask, CONNECT_LIMIT)
            mask = self._sock.shake_hands(pin)

    def _talk(self):
        body = self._make_body()
        try:
            out = memoryview(self._head(body) + body.read())
            response = Response(self._sink)
            broken = False
            while not response.done:
                if out:
                    try:
                        out = out[self._sock.send(out) :]
                    except BlockingIOError:
                        pass
                    except OSError:
                        # the server may have answered (413, say) and closed: its answer decides
                        out, broken = b"", True
                    else:
                        out = out or memoryview(body.read())
                both = selectors.EVENT_READ | selectors.EVENT_WRITE
                mask = yield from self._wait(both if out else selectors.EVENT_READ, self._limit)
                if mask & selectors.EVENT_READ:
                    self._receive(response)
            self._http.answer_to(self)
            if response.keep and not out and not broken:
                self._http.keep(self._sock)
                self._sock = None
            return response
        finally:
            body.close()

    def _head(self, body):
        server = self._http.server
        lines = [
            "%s %s%s HTTP/1.1" % (self._method, server.path, self._target),
            "Host: " + server.authority,
            "Accept: " + ANNOUNCE,
        ]
        if self._method == "POST":
            lines.append("Content-Length: %d" % body.length)
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _receive(self, response):
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return
        if data:
            self._begun = True
            response.feed(data)
        else:
            response.end()

    def _drop(self):
        if self._sock is not None:
            self._loop.watch(self._sock, 0)
            self._sock.close()
            self._sock = None

    def hurry(self):
        """It has waited long enough, and ends as if its limit were over."""
        self._hurried = True
        self._loop.cancel(self._timer)
        self._timer = self._loop.later(0, self._step)

    def cancel(self):
        """Break it off; ``done`` is not called."""
        self._http.running.discard(self)
        self._loop.cancel(self._timer)
        self._steps.close()


class Http:
    """All requests to the server, and the connections that are kept for the next."""

    IDLE_LONGEST = 30.0  # seconds; servers and routers forget connections after a while

    def __init__(self, loop, server):
        self.loop = loop
        self.server = server
        self.running = set()
        self._kept = {}  # socket -> since when
        self._silence = 0.0  # when a request last ended for it, if none was answered since

    def send(self, method, target, done, make_body=Body, sink=None, limit=ANSWER_LIMIT):
        request = Request(self, method, target, make_body, limit, sink, done)
        self.running.add(request)
        return request

    def keep(self, sock):
        """A request is over, and its connection is good for another."""
        self._kept[sock] = time.monotonic()
        # whatever comes while it is idle is its end, or nonsense
        self.loop.watch(sock, selectors.EVENT_READ, lambda _mask: self._forget(sock))

    def take_kept(self):
        while self._kept:
            sock, since = self._kept.popitem()
            if time.monotonic() - since < self.IDLE_LONGEST:
                return sock
            self._forget(sock)
        return None

    def silence(self):
        """A request ran into its limit, or nobody could be reached: nor, then, by those kept."""
        self._silence = time.monotonic()
        self._forget_all()

    def answer_to(self, request):
        """A connection made after a silence works: who waits on an older one waits in vain.

        So it is when a cable was cut and the tunnel came back: the other side of what was open
        is gone, and nobody says so.
        """
        silence = self._silence
        if silence and request.since >= silence:
            self._silence = 0.0
            for other in self.running:
                if other.moved < silence:
                    other.hurry()

    def _forget_all(self):
        for sock in list(self._kept):
            self._forget(sock)

    def _forget(self, sock):
        self._kept.pop(sock, None)
        self.loop.watch(sock, 0)
        sock.close()

    def close(self):
        for request in list(self.running):
            request.cancel()
        self._forget_all()


# --- the wire format ----------------------------------------------------------------------


class Task:
    """A task as it was told; names and contents are bytes, as on the wire."""

    __slots__ = (
        *("ticket", "number", "timeout", "command", "environment", "inputs", "results"),
        *("error", "since", "words", "workspace"),
    )

    def __init__(self):
        self.ticket = ""  # a word of ours, too: text
        self.number = b""
        self.timeout = TIMEOUT_NONE
        self.command = b""
        self.environment = []  # (name, value)
        self.inputs = []  # [file, what ``spool`` made]
        self.results = []  # (result name, file)
        self.error = None  # why it cannot be run
        self.since = time.monotonic()  # it waits here
        self.words = []  # of the command, as a worker gets them
        self.workspace = None  # for its worker, where one was to be had

    def discard(self):
        """Remove the files of inputs that are still where they were spooled."""
        for _, content in self.inputs:
            quietly(content.close)
            quietly(os.unlink, content.name)


class TaskReader(Parser):
    """The body of a task; ``spool()`` makes a binary file for the content of an input.

    ``feed`` never raises: ``finish`` says what was wrong, so that the server can be told.
    """

    def __init__(self, spool):
        self.task = Task()
        self._spool = spool
        self._error = None
        self._section = b""
        self._keys = {}
        self._content = None
        self._length = None
        super().__init__()

    def _go_on(self):
        try:
            super()._go_on()
        except (OSError, ValueError) as error:
            self._error = error
            self.done = True
        if self.done:
            self._buffer = b""
            self._at = 0

    def finish(self):
        """All has come: the task. ``ValueError``: it is wrong; ``OSError``: no room for it."""
        self.end()
        if self._error:
            raise self._error
        if not (self.task.ticket and self.task.command and self.task.results):
            raise ValueError("the task lacks its ticket, command or results")
        return self.task

    def result(self):
        """All has come: the task, with ``error`` where it is wrong."""
        try:
            return self.finish()
        except (OSError, ValueError) as error:
            self.task.error = error
            return self.task

    def _parse(self):
        yield
        while True:
            line = yield from self._line(LINE_MOST)
            if line is None:
                self._end_section()
                return
            if line.rstrip(b"\r") == BEGIN:
                yield from self._take_content(line.endswith(b"\r"))
            else:
                self._take(line)

    def _take(self, line):
        word = line.strip()
        if word.startswith(b"["):
            self._end_section()
            self._section = word
        elif word:
            key, equals, value = line.partition(b"=")
            key = key.strip()
            if not equals:
                raise ValueError("a line that is no Key=Value")
            if key == b"Length":
                self._length = value
            elif self._section:
                self._keys[key] = value.strip()
            else:
                self._pair(key, value)

    def _take_content(self, with_cr):
        if self._section != b"[Input]" or self._content is not None:
            raise ValueError("a content that belongs to nothing")
        content = self._content = self._spool()
        # the name comes before or after it; discard() must know of it in any case
        self.task.inputs.append([None, content])
        with content:
            if self._length is None:
                yield from self._read_until_end(content.write, with_cr)
            else:
                yield from self._read_length(content.write, natural(self._length.strip()))

    def _pair(self, key, value):
        task = self.task
        word = value.strip()
        if key == b"Ticket":
            task.ticket = word.decode("latin-1")
        elif key == b"Task":
            task.number = word
        elif key == b"Timeout":
            task.timeout = int(word)
        elif key == b"CommandLine":
            task.command = word
        elif key == b"Environment":
            task.environment.append(variable(value))

    def _end_section(self):
        section, keys = self._section, self._keys
        if section == b"[Input]":
            if not keys.get(b"File") or self._content is None:
                raise ValueError("an input lacks its file or content")
            self.task.inputs[-1][0] = keys[b"File"]
        elif section == b"[Result]":
            if not keys.get(b"Name") or not keys.get(b"File"):
                raise ValueError("a result lacks its name or file")
            self.task.results.append((keys[b"Name"], keys[b"File"]))
        elif section:
            raise ValueError("an unknown section " + section[:40].decode("latin-1"))
        self._section, self._keys, self._content, self._length = b"", {}, None, None

    def _read_length(self, write, length):
        yield from self._copy(length, write)
        line = yield from self._line()
        if line is not None and not line.strip():
            line = yield from self._line()
        if line is None or line.rstrip(b"\r") != END:
            raise ValueError("a content is not as long as its Length")

    def _read_until_end(self, write, with_cr):
        """A content without a length: up to the first line that is the closing one."""
        before = b""  # the line break of the line before: content, unless the end follows
        within = False  # a piece of this line was written already
        while True:
            found = self._buffer.find(b"\n", self._at) - self._at
            if found < 0 and not self._ended:
                if self._left() > len(END) + 2:  # no closing line, but keep a last CR
                    write(before + self._cut(self._left() - 1))
                    before, within = b"", True
                yield
                continue
            line = self._cut(found, 1) if found >= 0 else self._cut(self._left())
            if not within and line.rstrip(b"\r") == END and len(line) <= len(END) + 1:
                return
            if found < 0:
                raise ValueError("a content is not closed")
            write(before)
            before = b"\n"
            if with_cr and line.endswith(b"\r"):
                line, before = line[:-1], b"\r\n"
            write(line)
            within = False


def variable(value):
    """Name and text of an ``Environment=`` line."""
    name, _, text = value.lstrip().rstrip(b"\r").partition(b"=")
    return name, text


class AnswerReader(Parser):
    """The answer to an exchange."""

    WHOLE = 65536  # bytes of a task that is read at once; a longer one goes through as it comes
    # A task as masters write it, up to its sections. Where the same were read before, nothing
    # else is looked at: that takes a fifth of the time.
    HEAD = (
        rb"Ticket=(\S+)\nTimeout=(\d+)\nTask=(\S*)\n"
        rb"((?:Environment=.*\n)*)CommandLine=(\S.*)\n(?=\[)"
    )
    USUAL = re.compile(rb"task (\d+)\n" + HEAD)

    def __init__(self, spool):
        self.tasks = []
        self.over = []  # tickets
        self.none = False
        self.no_more = False
        self._known = {}  # sections, as they were written -> results
        self._spool = spool
        super().__init__()

    def _parse(self):
        yield
        while True:
            while self._take_usual():
                pass
            line = yield from self._line()
            if line is None:
                return
            word, _, rest = line.strip().partition(b" ")
            if word == b"task":
                yield from self._read_task(natural(rest))
            elif word == b"over":
                self.over.append(rest.decode("latin-1"))
            elif word == b"none":
                self.none = True
            elif word == b"end":
                self.no_more = True
            else:
                raise ValueError("that is no answer to an exchange")

    def _take_usual(self):
        """Take a task if that is next, whole, and like one that was read before."""
        usual = self.USUAL.match(self._buffer, self._at)
        if not usual:
            return False
        length, ticket, timeout, number, environment, command = usual.groups()
        end = usual.end(1) + 1 + int(length)
        results = self._known.get(self._buffer[usual.end() : end])
        if results is None or self._buffer[end : end + 1] != b"\n":
            return False
        task = Task()
        task.ticket = ticket.decode("latin-1")
        task.timeout = int(timeout)
        task.number = number
        for line in environment.split(b"\n")[:-1]:
            task.environment.append(variable(line.partition(b"=")[2]))
        task.command = command.strip()
        task.results = results
        self.tasks.append(task)
        self._at = end + 1
        return True

    def _read_task(self, length):
        reader = TaskReader(self._spool)
        try:
            if length > self.WHOLE:
                yield from self._copy(length, reader.feed)
            else:
                while self._left() < length:
                    if self._ended:
                        raise ValueError("it breaks off")
                    yield
                data = self._cut(length)
                reader.feed(data)
            if (yield from self._line()) is None:
                raise ValueError("it breaks off")
        except BaseException:  # also where nobody reads on
            reader.task.discard()
            raise
        task = reader.result()
        self.tasks.append(task)
        if length <= self.WHOLE and not (task.error or task.inputs):
            head = re.match(self.HEAD, data)
            if head:
                self._known[data[head.end() :]] = task.results


def read_pairs(data):
    """``Key=Value`` lines as a list of pairs; other lines do not count."""
    lines = [line.partition("=") for line in to_text(data).split("\n")]
    return [(key.strip(), value.strip()) for key, equals, value in lines if equals]


def opening(size):
    """What comes before a content of so many bytes."""
    return b"Length=%d\n%s\n" % (size, BEGIN)


CLOSING = b"\n%s\n" % END


def failure_body(failure, stderr):
    """The body of /failed: key-value pairs, then the tail of standard error, or None."""
    lines = ["%s=%s\n" % (key, " ".join(str(value).split())) for key, value in failure]
    tail = b"" if stderr is None else opening(len(stderr)) + stderr + CLOSING
    return to_bytes("".join(lines)) + tail


# --- files --------------------------------------------------------------------------------

FOLDER_ONLY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def inner_path(path):
    """The parts of a path that stays below its folder; ``ValueError`` if it does not."""
    parts = [part for part in path.split(b"/") if part != b"."]
    if not parts or b"" in parts or b".." in parts or b"\0" in path:
        text = path.decode("utf-8", "replace")
        raise ValueError("the path '%s' does not stay below the task's folder" % text)
    return parts


def open_parent(folder, parts, make):
    """A descriptor of the folder that holds the last part; no links are followed."""
    descriptor = os.open(folder, FOLDER_ONLY)
    try:
        for part in parts[:-1]:
            if make:
                try:
                    os.mkdir(part, 0o700, dir_fd=descriptor)
                except FileExistsError:
                    pass
            below = os.open(part, FOLDER_ONLY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def put_below(folder, path, source):
    """Move a file to a path below a folder."""
    parts = inner_path(path)
    descriptor = open_parent(folder, parts, True)
    try:
        os.rename(source, parts[-1], dst_dir_fd=descriptor)
    finally:
        os.close(descriptor)


def open_regular(name, dir_fd=None):
    """An open file and its size; ``OSError`` if it is no regular file."""
    # non-blocking: opening a FIFO would wait for its writer
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(name, flags, dir_fd=dir_fd)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb", buffering=0), status.st_size


def open_below(folder, path):
    """A regular file below a folder, open, and its size."""
    parts = inner_path(path)
    parent = open_parent(folder, parts, False)
    try:
        return open_regular(parts[-1], parent)
    finally:
        os.close(parent)


def remove_tree(name, dir_fd=None):
    """Remove a file or folder with all that is in it; no links are followed."""
    try:
        try:
            os.rmdir(name, dir_fd=dir_fd)
        except NotADirectoryError:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        except OSError:
            empty_folder(name, dir_fd)
            os.rmdir(name, dir_fd=dir_fd)
    except (OSError, RecursionError) as error:
        log("cannot remove %s: %s", name, error)


def empty_folder(name, dir_fd):
    """Remove all that is in a folder."""
    try:
        descriptor = os.open(name, FOLDER_ONLY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)  # a worker may have locked itself out
        descriptor = os.open(name, FOLDER_ONLY, dir_fd=dir_fd)
    try:
        os.fchmod(descriptor, 0o700)
        for entry in os.listdir(descriptor):
            remove_tree(entry, descriptor)
    finally:
        os.close(descriptor)


def check_ours(path, status):
    """``ClientError`` unless a folder is ours alone to write to."""
    problem = None
    if not stat.S_ISDIR(status.st_mode):
        problem = "%s is not a folder" % path
    elif status.st_uid != os.geteuid():
        problem = "folder %s belongs to user %d, not to us" % (path, status.st_uid)
    elif status.st_mode & 0o022:
        problem = "others can write to folder %s; say: chmod go-w %s" % (path, path)
    if problem:
        raise ClientError(EXIT_FOLDER, problem)


def own_folder(path):
    """Make a folder, 0700, or check the one that is there. Its real path."""
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        path = os.path.realpath(path)
        check_ours(path, os.stat(path))
    except OSError as error:
        reason = "folder %s cannot be used: %s" % (path, error.strerror)
        raise ClientError(EXIT_FOLDER, reason) from error
    return path


def try_folder(folder, run):
    """Write some KiB to a folder and, with ``run``, start a script there: mounts can forbid it."""
    probe = os.path.join(folder, ".probe")
    what = "nothing can be written there"
    try:
        with open(probe, "wb") as file:
            file.write(b"#!/bin/sh\nexit 0\n" + b"#" * 16384)
        os.chmod(probe, 0o700)
        if run:
            what = "no program can be started there (a noexec mount?)"
            run_to_end([os.fsencode(probe)])
        os.unlink(probe)
    except OSError as error:
        reason = "folder %s: %s: %s" % (folder, what, error.strerror)
        raise ClientError(EXIT_FOLDER, reason) from error


def file_digest(path, kind):
    """A file's checksum, in hex."""
    total = hashlib.new(kind)
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(CHUNK), b""):
            total.update(data)
    return total.hexdigest()


class HostLock:
    """One client for each host and session, until the process is gone."""

    def __init__(self, session, host):
        self._folder = LOCAL_FOLDER % os.geteuid()
        name = digest("lock", session, host)[:32]
        self._path = os.path.join(self._folder, name + ".lock")
        self._descriptor = None

    def take(self):
        """``ClientError`` if another has it."""
        while self._descriptor is None:
            try:
                self._descriptor = self._try()
            except FileNotFoundError:
                pass  # one that ends has just removed the file or the folder
            except BlockingIOError as error:
                reason = "a client of this session runs on this host already"
                raise ClientError(EXIT_RUNNING, reason) from error
            except OSError as error:
                reason = "cannot lock %s: %s" % (self._path, error.strerror)
                raise ClientError(EXIT_FOLDER, reason) from error

    def _try(self):
        try:
            os.mkdir(self._folder, 0o700)
        except FileExistsError:
            pass
        # no link followed: the folder above belongs to all
        check_ours(self._folder, os.lstat(self._folder))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self._path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self):
        if self._descriptor is not None:
            quietly(os.unlink, self._path)
            os.close(self._descriptor)
            quietly(os.rmdir, self._folder)
            self._descriptor = None


# --- processes ----------------------------------------------------------------------------


def has_terminal():
    """Have we a controlling terminal?"""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


class Spawner:
    """Starts processes, in process groups of their own.

    Where there is a terminal also in sessions of their own: it is none of their business. Without
    one they stay in ours: Linux weighs sessions against each other as if none was nice
    (sched_autogroup), and two short tasks a time were a fifth slower, when their client had to wait
    for the end of one before it could start the other.
    """

    # what Python ignores, and a worker must not
    DEFAULT_SIGNALS = [
        number
        for number in (getattr(signal, name, None) for name in ("SIGPIPE", "SIGXFZ", "SIGXFSZ"))
        if number is not None
    ]

    def __init__(self):
        self._found = {}  # (PATH, word) -> program
        # Python 3.8; ``subprocess``, which is used before, is also slow to load
        self._lean = hasattr(os, "posix_spawn")
        self._apart = {"setsid": True} if has_terminal() else {"setpgroup": 0}

    def start(self, words, folder, environment, streams):
        """Run a command in an open folder; ``streams`` are its standard input, output and error.

        Its PID. The client's own current folder becomes the worker's: nothing here depends on it.
        """
        os.fchdir(folder)
        program = words[0]
        if b"/" not in program:
            path = environment.get(b"PATH", DEFAULT_PATH)
            program = self._found.get((path, program)) or self._find(path, program)
        try:
            if self._lean:
                dup = os.POSIX_SPAWN_DUP2
                return os.posix_spawn(
                    program,
                    words,
                    environment,
                    file_actions=((dup, streams[0], 0), (dup, streams[1], 1), (dup, streams[2], 2)),
                    setsigmask=(),
                    setsigdef=self.DEFAULT_SIGNALS,
                    **self._apart,
                )
        except NotImplementedError:  # a C library that cannot make sessions
            self._lean = False
        except OSError:
            self._found.clear()  # it may have moved
            raise
        import subprocess

        process = subprocess.Popen(
            words,
            executable=program,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=environment,
            start_new_session=True,
        )
        process.returncode = 0  # who waits for it is not subprocess
        return process.pid

    def _find(self, path, word):
        problem = errno.ENOENT
        for folder in path.split(b":"):
            program = os.path.join(folder, word)
            if os.path.isfile(program):
                if os.access(program, os.X_OK):
                    if folder.startswith(b"/"):  # others depend on the current folder
                        self._found[path, word] = program
                    return program
                problem = errno.EACCES
        raise OSError(problem, os.strerror(problem), os.fsdecode(word))


def start_silent(words, stdin=None):
    """Start a program of our own, in ``/``, that says nothing. Its PID."""
    null = os.open(os.devnull, os.O_RDWR)
    root = os.open("/", FOLDER_ONLY)
    try:
        streams = (null if stdin is None else stdin, null, null)
        return Spawner().start(words, root, dict(os.environb), streams)
    finally:
        os.close(null)
        os.close(root)


def run_to_end(words):
    """Run such a program until it ends."""
    os.waitpid(start_silent(words), 0)


# Kills what has a PEXEC_FOLDER that begins so, where the system tells (Linux).
KILL_MARKED = """
    for file in $(grep -lsF "PEXEC_FOLDER=$1" /proc/[0-9]*/environ); do
        pid=${file%/environ}
        kill -s KILL "${pid#/proc/}"
    done
"""


def kill_left(beginning):
    """Kill what workers left running that have a ``PEXEC_FOLDER`` that begins so."""
    script = KILL_MARKED.encode("ascii")
    run_to_end([b"/bin/sh", b"-c", script, b"pexec-sweep", os.fsencode(beginning)])


class Guard:
    """Ends the workers when the client is killed, and what they left when it ends.

    A shell that reads the numbers of all process groups that run, line by line, and
    kills those of the last line when the pipe ends. That works on every system, and for
    the children of workers too, unlike a parent-death signal.
    """

    DELAY = 0.05  # seconds until it is told: workers that are shorter cost nothing

    # A second later, because a process that was just being started has no variables yet.
    SCRIPT = """
        trap '' HUP INT TERM
        while read -r groups; do last=$groups; done
        if test "$last" != end; then
            for group in $last; do kill -s KILL -- "-$group"; done
            sleep 1
        fi
    """

    def __init__(self, loop, place, groups):
        self._loop = loop
        self._groups = groups  # a function that says them
        self._timer = None
        script = (self.SCRIPT + KILL_MARKED).encode("ascii")
        hear, self._say = os.pipe()
        command = [b"/bin/sh", b"-c", script, b"pexec-guard", os.fsencode(place + "/")]
        self._pid = start_silent(command, hear)
        os.close(hear)

    def changed(self):
        if self._timer is None:
            self._timer = self._loop.later(self.DELAY, self._tell_groups)

    def _tell_groups(self):
        self._timer = None
        self._tell(" ".join(map(str, self._groups())))

    def _tell(self, line):
        # somebody may have killed it; the next client's sweep remains
        quietly(os.write, self._say, (line + "\n").encode("ascii"))

    def close(self):
        self._tell("end")
        os.close(self._say)
        quietly(os.waitpid, self._pid, 0)  # the engine may have seen its end


# --- the worker's executable --------------------------------------------------------------


class Executable:
    """The worker: fetched once for all that share the folder, used through a hard link.

    ``place`` is the folder of the shared copy, ``link`` the client's own; ``done()`` is
    called when the link is there and has the right checksum, (kind, hex) or None.
    """

    def __init__(self, client, link, checksum, place, done):
        self.name = name = os.path.basename(link)
        self.link = link
        self._client = client
        self._checksum = checksum
        self._place = place
        self._shared = os.path.join(place, name)
        self._lock = os.path.join(place, ".lock")
        self._token = "%s %s" % (client.host, os.urandom(8).hex())
        self._new = None  # the file that is being fetched
        self._timer = None
        self._seen = (None, 0.0)  # what another's lock said, and since when
        self._backoff = backoff()
        self._done = done
        self.ready = False  # the link is there, and tasks may be asked for

    def get(self):
        """Look, wait or fetch, until ``done``."""
        if not self._client.lives():
            return
        try:
            os.makedirs(self._place, 0o700, exist_ok=True)
            # the path from the command line, where it may be already
            given = self._client.settings.command
            if self._get_from(self._shared, True) or "/" in given and self._get_from(given, False):
                self._done()
            elif self._take_lock():
                self._fetch()
            else:
                self._client.loop.later(LOCK_LOOK, self.get)
        except OSError as error:
            self._again("cannot store the worker: %s" % error)

    def _again(self, reason):
        log("%s", reason)
        self._unlock()
        self._client.loop.later(next(self._backoff), self.get)

    def _get_from(self, source, may_link):
        """Link or copy, then check what is there now: the source may be replaced any time."""
        quietly(os.unlink, self.link)
        try:
            if may_link:
                quietly(os.link, source, self.link)
            if not os.path.exists(self.link):
                import shutil  # slow to load, and seldom needed

                shutil.copyfile(source, self.link)
        except FileNotFoundError:
            return False
        if self._checksum and file_digest(self.link, self._checksum[0]) != self._checksum[1]:
            os.unlink(self.link)
            return False
        os.chmod(self.link, 0o700)
        self.ready = True
        return True

    def _take_lock(self):
        try:
            with open(self._lock, "xb") as file:
                file.write(self._token.encode("utf-8"))
        except FileExistsError:
            self._look_at_lock()
            return False
        self._timer = self._client.loop.later(LOCK_RENEW, self._renew, 1)
        return True

    def _look_at_lock(self):
        """Another has the lock. It is broken, for the next look, when it is not renewed."""
        says = self._read_lock()
        if says != self._seen[0]:
            self._seen = (says, time.monotonic())
        elif time.monotonic() - self._seen[1] > LOCK_STALE and says is not None:
            log("the worker's lock was not renewed for %d s: broken", LOCK_STALE)
            quietly(os.unlink, self._lock)

    def _read_lock(self):
        # opened anew each time: NFS asks the server then, but keeps attributes for a while
        try:
            with open(self._lock, "rb") as file:
                return file.read(200).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    def _is_ours(self):
        return (quietly(self._read_lock) or "").startswith(self._token)

    def _renew(self, number):
        self._timer = self._client.loop.later(LOCK_RENEW, self._renew, number + 1)
        if self._is_ours():
            try:
                with open(self._lock, "wb") as file:
                    file.write(("%s %d" % (self._token, number)).encode("utf-8"))
            except OSError as error:
                log("cannot renew the worker's lock: %s", error)

    def _unlock(self):
        self._client.loop.cancel(self._timer)
        self._timer = None
        if self._new is not None:
            quietly(self._new.close)
            quietly(os.unlink, self._new.name)
            self._new = None
        if self._is_ours():
            quietly(os.unlink, self._lock)

    def _fetch(self):
        for name in os.listdir(self._place):
            if name.startswith(".new-"):  # of one that was killed: the lock is ours
                quietly(os.unlink, os.path.join(self._place, name))
        new = open(os.path.join(self._place, ".new-" + os.urandom(8).hex()), "wb")
        self._new = new

        def fetched(response):
            problem = response
            if response.status == 200:
                try:
                    new.close()
                    os.chmod(new.name, 0o700)
                    os.rename(new.name, self._shared)
                    if self._get_from(self._shared, True):
                        self._unlock()
                        self._done()
                        return
                    problem = "it has the wrong checksum"
                except OSError as error:
                    problem = error
            if response.status == 415:
                self._unlock()
                self._client.end(EXIT_PLATFORM, "no worker for this platform")
            else:
                self._again("cannot fetch the worker: %s" % problem)

        query = [("name", os.fsencode(self.name)), ("platform", self._client.platform)]
        self._client.call("GET", "/worker", query, fetched, sink=new.write)

    def remove(self, shared):
        """Remove the link; with ``shared`` also the shared copy, unless others use it."""
        self._unlock()
        quietly(os.unlink, self.link)
        try:
            if shared and os.stat(self._shared).st_nlink == 1:
                os.unlink(self._shared)
        except OSError:
            pass  # not there, or just removed by another


# --- what became of tickets ---------------------------------------------------------------


class Outcome:
    """What became of one ticket, in memory: an entry of an exchange, or a request of its own."""

    __slots__ = ("ticket", "seconds", "body", "since", "lasting", "kept")

    def __init__(self, ticket, seconds, body, lasting=True):
        self.ticket = ticket
        self.seconds = seconds  # how long the worker ran, or None: it has failed
        self.body = body  # of /complete or /failed
        self.since = time.monotonic()
        self.lasting = lasting  # worth telling by the next client, too
        self.kept = False  # it is on disk, too

    def entry(self):
        """Its pieces: they are put together only once, and may be large."""
        if self.seconds is None:
            head = b"failed %s %d\n" % (to_bytes(self.ticket), len(self.body))
        else:
            head = b"complete %s %.3f %d\n" % (to_bytes(self.ticket), self.seconds, len(self.body))
        return head, self.body, b"\n"

    def request(self):
        """Path, query and body of a request of its own."""
        query = [("ticket", self.ticket)]
        if self.seconds is None:
            return "/failed", query, self.make_body
        return "/complete", [*query, ("seconds", "%.3f" % self.seconds)], self.make_body

    def make_body(self):
        body = Body()
        body.add(self.body)
        return body

    def remove(self):
        """Nothing of it is on disk that is its own."""


def failed(ticket, failure, stderr):
    """The outcome of a failed attempt: pairs for /failed, the tail of standard error or None."""
    log("ticket %s: %s", ticket, dict(failure)["Reason"])
    return Outcome(ticket, None, failure_body(failure, stderr))


def read_entries(data):
    """The outcomes that a row of entries tells of; the last may have been cut off."""
    found = []
    file = io.BytesIO(data)
    while True:
        words = to_text(file.readline()).split()
        try:
            kind, ticket, length = words[0], words[1], natural(words[-1])
            seconds = float(words[2]) if kind == "complete" else None
        except (IndexError, ValueError):
            return found
        body = file.read(length)
        if file.read(1) != b"\n":
            return found
        outcome = Outcome(ticket, seconds, body)
        found.append(outcome)


def remove_ticket(base):
    """Remove all files of a ticket; the record first, it would have them posted."""
    for ending in (".json", ".in", ".out", ".stderr"):
        quietly(os.unlink, base + ending)
    remove_tree(base)


class Record:
    """The files of a ticket whose results are large, in a client's folder, all with one name.

    ``data`` is what the ``.json`` file says: ``ticket``, ``seconds`` and ``results``: what is to be
    posted by a request of its own.
    """

    def __init__(self, folder, name, data):
        self.folder = folder
        self.base = os.path.join(folder, name)
        self.data = data
        self.ticket = data["ticket"]
        self._failure = None

    @staticmethod
    def load_all(folder):
        import json  # slow to load, and seldom needed

        records = []
        for name in sorted(os.listdir(folder)):
            if name.endswith(".json"):
                try:
                    with open(os.path.join(folder, name), "rb") as file:
                        data = json.loads(file.read().decode("ascii"))
                    records.append(Record(folder, name[:-5], data))
                except (OSError, ValueError, KeyError) as error:
                    log("cannot read the record %s: %s", name, error)
        return records

    def save(self):
        """Put ``data`` on disk; if it cannot be, go on."""
        import json

        try:
            with open(self.base + ".json", "wb") as file:
                file.write(json.dumps(self.data).encode("ascii"))
        except OSError as error:
            log("cannot record ticket %s: %s", self.ticket, error)

    def open_result(self, path):
        """A result's file, open, and its size; ``OSError`` where there is none."""
        if path in STREAMS:
            return open_regular(self.base + STREAMS[path][1])
        return open_below(self.base, path)

    def request(self):
        """Path, query and body of the request that posts it."""
        query = [("ticket", self.ticket)]
        if self._failure:
            return "/failed", query, self._failure.make_body
        return "/complete", [*query, ("seconds", self.data["seconds"])], self.results_body

    def results_body(self):
        """The body of /complete. ``OSError``: one is gone, and the next try is to say so."""
        body = Body()
        try:
            for name, path in self.data["results"]:
                file, size = self.open_result(to_bytes(path))
                body.add(b"[Result]\nName=%s\n%s" % (to_bytes(name), opening(size)))
                body.add_file(file, size)
                body.add(CLOSING)
        except OSError as error:
            body.close()
            reason = "a result is gone: %s" % error.strerror
            self._failure = failed(self.ticket, [("Kind", "missing"), ("Reason", reason)], b"")
            raise
        return body

    def remove(self):
        remove_ticket(self.base)


class Post:
    """One ticket told by a request of its own, until the server has confirmed it, or will not."""

    def __init__(self, client, outcome, ended):
        self.outcome = outcome
        self.under_way = False
        self._client = client
        self._ended = ended
        self._backoff = backoff()
        self._pause = None  # the timer until the next try, where nobody answered

    def send(self):
        """Try now, and again until it is settled."""
        self._pause = None
        if not self._client.lives():
            return
        self.under_way = True
        path, query, make_body = self.outcome.request()
        self._client.call("POST", path, query, self._answered, make_body, limit=STORE_LIMIT)

    def _answered(self, response):
        self.under_way = False
        if response.status in (0, 503):
            self._client.keep_unsent([self.outcome])
            pause = response.retry_after() or next(self._backoff)
            timer = self._client.loop.later(pause, self.send)
            self._pause = None if response.status else timer
            return
        if response.status >= 300:
            log("ticket %s: the server does not take it: %s", self.outcome.ticket, response)
        self._ended(self)

    def hurry(self):
        """The server is there again."""
        if self._pause is not None:
            self._client.loop.cancel(self._pause)
            self.send()


# --- workers ------------------------------------------------------------------------------


def split_words(command):
    """A command line as words; ``shlex`` only where there is something for it to do: it is slow."""
    # it does not take \v and \f for blanks
    if re.search(rb"['\"\\\v\f]", command):
        # bytes: whatever the locale is, the worker gets what the server sent
        return [to_bytes(word) for word in shlex.split(to_text(command))]
    return command.split()


class Place:
    """The client's folder, open."""

    def __init__(self, path):
        self.path = path
        self.descriptor = os.open(path, FOLDER_ONLY)


class Workspace:
    """What a worker is given: a folder, and a file for its standard error.

    Where a worker left no more than some small files the folder is emptied and serves the next one,
    under the name of its ticket: on a disk, to make and remove one takes longer than many a worker.
    """

    FILES_MOST = 8  # files that are removed at once
    BYTES_MOST = 1024 * 1024  # and what they hold: large ones take their time

    def __init__(self, place, number, name):
        self._place = place
        self._call(name)
        os.mkdir(self.folder, 0o700)
        self.descriptor = os.open(self.folder, FOLDER_ONLY)
        self._errors_path = os.path.join(place.path, "%08d.err" % number)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        self.errors = os.open(self._errors_path, flags, 0o600)
        self._mark()

    def _call(self, name):
        self._name = name
        self.base = self._place.path + "/" + name
        self.folder = os.fsencode(self.base)

    def rename(self, name):
        """It is for another ticket now; ``OSError``: somebody has moved it."""
        # from the open place: the way there takes a fifth of the time
        place = self._place.descriptor
        os.rename(self._name, name, src_dir_fd=place, dst_dir_fd=place)
        self._call(name)

    def _mark(self):
        # a time that nothing else sets: then one look tells that nothing was made or removed
        stamp = 10**18 + random.getrandbits(59)
        os.utime(self.folder, ns=(stamp, stamp))
        self._looks = self._look()

    def _look(self):
        status = os.fstat(self.descriptor)
        return status.st_mtime_ns, status.st_mode, status.st_nlink

    def clean(self):
        """Can the next worker have the folder? Then it is made ready."""
        try:
            if os.lseek(self.errors, 0, os.SEEK_END):
                os.ftruncate(self.errors, 0)
                os.lseek(self.errors, 0, os.SEEK_SET)
            looks = self._look()
            if looks != self._looks:
                if looks[1:] != self._looks[1:] or not self._empty():
                    return False
                self._mark()
        except OSError:
            return False
        return True

    def _empty(self):
        """Remove what a worker left; false where that is for ``remove_tree``."""
        names = os.listdir(self.descriptor)
        if len(names) > self.FILES_MOST:
            return False
        here = {"dir_fd": self.descriptor}
        found = [os.stat(name, follow_symlinks=False, **here) for name in names]
        if any(stat.S_ISDIR(each.st_mode) for each in found):
            return False
        if sum(each.st_size for each in found) > self.BYTES_MOST:
            return False
        for name in names:
            os.unlink(name, **here)
        return True

    def error_tail(self):
        """The end of what the worker wrote to standard error."""
        size = os.lseek(self.errors, 0, os.SEEK_END)
        return os.pread(self.errors, STDERR_TAIL, max(0, size - STDERR_TAIL)) if size else b""

    def close(self, keep_errors=None):
        """Let go of it: the folder stays, standard error only where it is kept under that path."""
        os.close(self.errors)
        os.close(self.descriptor)
        if keep_errors is None:
            quietly(os.unlink, self._errors_path)
        else:
            quietly(os.rename, self._errors_path, keep_errors)


class Stream:
    """A worker's standard output or error, where it is a result.

    A pipe: it is read when the worker has ended, or after a moment (``Engine.WATCH``). What
    is long goes on into a file. Where long ones are expected it is that file from the beginning.
    """

    PIECE = 65536  # what a pipe holds, as a rule
    PIECES = 17  # one may hold a megabyte; what comes after that nobody waits for

    __slots__ = ("path", "data", "problem", "long", "file", "source", "target")

    def __init__(self, path, long):
        self.path = path
        self.data = b""  # unless there is a file
        self.problem = None
        self.long = False
        self.file = self.source = None
        if long:
            self.target = self.file = self._open()
        else:
            self.source, self.target = os.pipe()

    def _open(self):
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def started(self):
        """The worker has its end: close ours."""
        if self.source is not None:
            os.close(self.target)

    def unblock(self):
        """Before ``read``: what a worker left running may hold the other end open for long."""
        os.set_blocking(self.source, False)

    def read(self):
        """Take what is there; how much."""
        try:
            data = os.read(self.source, self.PIECE)
        except BlockingIOError:
            return 0
        self._take(data)
        return len(data)

    def _take(self, data):
        if self.problem:
            return  # it must not stop the worker
        try:
            if self.file is None:
                if len(self.data) + len(data) <= INLINE_MOST:
                    self.data += data
                    return
                self.file = self._open()
                data = self.data + data
                self.data = b""
            while data:
                data = data[os.write(self.file, data) :]
        except OSError as error:
            self.problem = error

    def finish(self):
        """The worker has ended: take the rest. ``long`` says whether it is in the file."""
        if self.source is not None:
            self.unblock()
            for _ in range(self.PIECES):
                if self.read() < self.PIECE:
                    break
        if self.file is not None:
            self.long = os.lseek(self.file, 0, os.SEEK_END) > INLINE_MOST
            if not self.long:
                self.data = os.pread(self.file, INLINE_MOST, 0)
                os.unlink(self.path)
        self.close()

    def save(self):
        """Put what is in memory into the file."""
        if not self.long:
            with open(self.path, "wb") as file:
                file.write(self.data)

    def tail(self):
        """The end of it."""
        if not self.long:
            return self.data[-STDERR_TAIL:]
        with open(self.path, "rb") as file:
            file.seek(-STDERR_TAIL, os.SEEK_END)
            return file.read(STDERR_TAIL)

    def close(self):
        for descriptor in (self.source, self.file):
            if descriptor is not None:
                os.close(descriptor)
        self.source = self.file = None


class Run:
    """One ticket while its worker runs."""

    __slots__ = (
        *("task", "slot", "workspace", "pid", "started", "streams", "watched"),
        *("limit", "over", "stopped", "timed_out", "kill_at", "writes", "full"),
    )

    def __init__(self, task, slot):
        self.task = task
        self.slot = slot
        self.workspace = task.workspace
        self.pid = 0
        self.limit = 0  # seconds it may take, 0: any
        self.started = 0.0
        self.streams = {}  # b"stdout" and b"stderr" -> Stream, where they are results
        self.watched = False
        self.over = False  # nobody wants its result any more
        self.stopped = False
        self.timed_out = False
        self.kill_at = 0.0
        self.writes = False  # results, into its folder
        self.full = False  # the disk was full while it ran: its files may be cut off

    def signal(self, number):
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass  # it is gone; macOS says EPERM for a group of zombies


class Engine:
    """Runs workers, one in each slot, and tells the client what became of them.

    The way from a worker's end to the next one's start decides how fast short tasks go, and a
    processor that comes from another program runs slowly at first. So nothing but that is done when
    a worker ends. What can be done before, is: for all tasks that have come together, in ``add``.
    What those have left that ended since is looked at together, in ``settle``.
    """

    WATCH = 0.02  # seconds until a worker's pipes are watched; shorter ones cost nothing
    TIDY_PAUSE = 0.02  # seconds between pieces of removing what workers left
    TIDY = 0.005  # seconds of such a piece: workers that end wait no longer
    SETTLE_MOST = 32  # workers whose ends are looked at together: each has three files open
    LITTER_MOST = 200  # folders that may wait to be removed

    def __init__(self, client, place):
        self.runs = {}  # PID -> Run
        self.waiting = collections.deque()  # tasks
        self._equipped = 0  # how many of them have workspaces: the first
        self._slots = client.settings.slots
        self.free = list(reversed(range(self._slots)))  # slots
        self.over = []  # (Run, status, when it ended)
        self._written = False  # one of those has written results into its folder
        self.finished = 0  # workers that have ended
        self.pace = None  # seconds that a worker takes, about
        self.nice = None  # the priority that workers get, where it is not our own
        self._client = client
        self._loop = client.loop
        self._place = Place(place)
        self._spawner = Spawner()
        self._number = itertools.count(1)
        self._spare = []
        self._litter = collections.deque()
        self._tidying = False
        self._settling = False
        self._long = False  # the last output was: expect the same of the next
        self._look_at = None  # when to look at the workers again, and the timer
        self._timer = None
        self._null = os.open(os.devnull, os.O_RDWR)
        self._raise_limit()
        self._environment = self._make_environment()
        client.loop.on_signal(signal.SIGCHLD, self.reap)

    def _raise_limit(self):
        """See to it that enough files may be open: three or four for each worker."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        need = 4 * (self._client.settings.slots + self.SETTLE_MOST) + 100
        if soft != resource.RLIM_INFINITY and soft < need:
            most = need if hard == resource.RLIM_INFINITY else min(need, hard)
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            except (OSError, ValueError):
                most = soft
            if most < need:
                log("only %d files may be open at once: that may be too few for the slots", most)

    def _make_environment(self):
        client = self._client
        environment = dict(client.environment)
        own = (("SESSION", client.public), ("HOST", client.host))
        for name, value in own:
            environment[to_bytes("PEXEC_" + name)] = to_bytes(value)
        return self._with_worker(environment)

    def _with_worker(self, environment):
        if self._client.executable:
            # with ``shell = yes`` the shell looks for the worker
            path = environment.get(b"PATH", DEFAULT_PATH)
            own = os.fsencode(os.path.dirname(self._client.executable.link))
            environment[b"PATH"] = own + b":" + path
        return environment

    def add(self, tasks):
        """They wait for slots from now on."""
        for task in tasks:
            if not task.error:
                try:
                    task.words = self._words_of(task)
                except ValueError as error:
                    task.error = error
            self.waiting.append(task)
        self._equip()

    def _words_of(self, task):
        words = split_words(task.command)
        if not words:
            raise ValueError("an empty command")
        for _, file in task.results:
            if file not in STREAMS:
                inner_path(file)
        executable = self._client.executable
        if executable and words[0] == os.fsencode(executable.name):
            words[0] = os.fsencode(executable.link)
        return words

    def _equip(self):
        """Spare workspaces for those that wait: to rename many in a row takes half the time."""
        while self._spare and self._equipped < len(self.waiting):
            task = self.waiting[self._equipped]
            task.workspace = self._spare_for(self._name_for(task))
            if task.workspace:
                self._equipped += 1

    def _next(self):
        self._equipped = max(0, self._equipped - 1)
        return self.waiting.popleft()

    def drop(self, task):
        """It waits no longer, and is not to be run here."""
        self.waiting.remove(task)
        task.discard()
        if task.workspace:
            self._equipped -= 1
            task.workspace.close()
            remove_tree(task.workspace.base)

    def fill(self):
        """Start what waits, as long as slots are free."""
        while self.waiting and self.free and self._client.may_start():
            self._start(self._next())

    def _start(self, task):
        run = Run(task, self.free.pop())
        try:
            self._spawn(run)
        except ValueError as error:
            self._give_up(run, "refused", str(error))
        except OSError as error:
            reason = os.strerror(error.errno)  # some Pythons put the name into the error's own
            if error.filename:
                reason = "%s: %s" % (os.fsdecode(error.filename), reason)
                if error.errno == errno.ENOENT and os.path.isfile(error.filename):
                    reason += " (the file is; its #! interpreter or its loader is not)"
                elif error.errno == errno.ENOEXEC:
                    reason += " (it has no #! line, or is for another platform)"
            self._give_up(run, "start", reason)

    def _give_up(self, run, kind, reason):
        for stream in run.streams.values():
            stream.started()
            stream.close()
        run.task.discard()
        self.free.append(run.slot)
        if run.workspace:
            self._recycle(run)
        outcome = failed(run.task.ticket, [("Kind", kind), ("Reason", reason)], None)
        self._client.ended(run.task.ticket, outcome)

    def _spawn(self, run):
        task = run.task
        if task.error:
            raise task.error
        if run.workspace is None:
            run.workspace = self._workspace_for(task)
        workspace = run.workspace
        streams = [self._null, self._null, workspace.errors]
        try:
            for file, content in task.inputs:
                if file == b"stdin":
                    os.rename(content.name, workspace.base + ".in")
                    streams[0] = os.open(workspace.base + ".in", os.O_RDONLY)
                else:
                    put_below(workspace.base, file, content.name)
            for _, file in task.results:
                if file not in STREAMS:
                    run.writes = True
                elif file not in run.streams:
                    # not a file that others had: one that lives on in secret may still write to it
                    number, ending = STREAMS[file]
                    stream = run.streams[file] = Stream(workspace.base + ending, self._long)
                    streams[number] = stream.target
            environment = self._variables(run)
            run.started = time.monotonic()
            run.pid = self._spawner.start(task.words, workspace.descriptor, environment, streams)
        finally:
            if streams[0] != self._null:
                os.close(streams[0])
        for stream in run.streams.values():
            stream.started()
        self.runs[run.pid] = run
        self._client.started()
        if self.nice is not None:
            # the group, because the worker may have children already
            quietly(os.setpriority, os.PRIO_PGRP, run.pid, self.nice)
        if 0 < task.timeout < TIMEOUT_NONE:
            run.limit = task.timeout
            self._look_by(run.started + run.limit)
        if run.streams:
            self._look_by(run.started + self.WATCH)

    def _name_for(self, task):
        # hashes have one width: none is the beginning of another
        return digest("ticket", self._client.settings.session, task.ticket)[:24]

    def _workspace_for(self, task):
        name = self._name_for(task)
        return self._spare_for(name) or Workspace(self._place, next(self._number), name)

    def _spare_for(self, name):
        """A workspace that was used before, under this name now; None if there is none."""
        while self._spare:
            workspace = self._spare.pop()
            try:
                workspace.rename(name)
            except OSError:
                workspace.close()
            else:
                return workspace
        return None

    def _variables(self, run):
        environment = self._environment
        if run.task.environment:
            environment = dict(self._client.environment)
            environment.update(run.task.environment)
            environment = self._with_worker(environment)
            for name in (b"PEXEC_SESSION", b"PEXEC_HOST"):
                environment[name] = self._environment[name]
        environment[b"PEXEC_TASK"] = run.task.number
        environment[b"PEXEC_TICKET"] = to_bytes(run.task.ticket)
        environment[b"PEXEC_SLOT"] = b"%d" % run.slot
        environment[b"PEXEC_FOLDER"] = run.workspace.folder
        return environment

    # while they run: one timer for all

    def _look_by(self, when):
        if self._look_at is None or when < self._look_at:
            self._loop.cancel(self._timer)
            self._look_at = when
            self._timer = self._loop.later(when - time.monotonic(), self._look)

    def _look(self):
        """Watch the pipes of those that run for longer; stop those whose time is up."""
        self._look_at = self._timer = None
        self.reap()  # we may be late, and who has ended was not
        now = time.monotonic()
        soonest = None
        for run in self.runs.values():
            times = []
            if run.streams and not run.watched:
                times.append(run.started + self.WATCH)
                if times[0] <= now:
                    times.clear()
                    run.watched = True
                    for stream in run.streams.values():
                        if stream.source is not None:
                            self._watch(stream)
            if run.stopped:
                if run.kill_at <= now:
                    run.signal(signal.SIGKILL)
                    run.kill_at = math.inf
                times.append(run.kill_at)
            elif run.limit:
                if run.started + run.limit <= now:
                    run.timed_out = True
                    self.stop(run)
                    times.append(run.kill_at)
                else:
                    times.append(run.started + run.limit)
            for each in times:
                soonest = each if soonest is None else min(soonest, each)
        if soonest is not None and soonest < math.inf:
            self._look_by(soonest)

    def _watch(self, stream):
        def ready(_mask):
            if not stream.read():
                self._loop.watch(stream.source, 0)  # its end

        stream.unblock()
        self._loop.watch(stream.source, selectors.EVENT_READ, ready)

    def stop(self, run):
        """TERM for the group, KILL two seconds later."""
        run.stopped = True
        run.signal(signal.SIGTERM)
        run.kill_at = time.monotonic() + STOP_GRACE
        self._look_by(run.kill_at)

    # the end of a worker

    def reap(self, _number=None):
        """After SIGCHLD: see which have ended."""
        now = time.monotonic()
        while self.runs:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            run = self.runs.pop(pid, None)
            if run:  # else it was the guard
                run.signal(signal.SIGKILL)  # what the worker left running
                self.free.append(run.slot)
                self.over.append((run, status, now))
                self._written = self._written or run.writes
                self.finished += 1
        if self._written and self._full():
            self._make_room()
        self.fill()
        if len(self.over) >= self.SETTLE_MOST:
            self.settle()
        elif self.over and not self._settling:
            self._settling = True
            self._loop.later(AGE, self._settle_old)
        elif self.runs and len(self.waiting) > self._slots:
            return  # as most often: nothing is due before a timer says so
        self._client.go_on()

    def _make_room(self):
        """The disk is full: before the next worker starts, what failed for that is removed.

        Afterwards nobody could see that the others, which run now, wrote to a full disk.
        """
        for run in self.runs.values():
            run.full = True
        self.settle()
        while self._litter:
            remove_ticket(self._litter.popleft())

    def _settle_old(self):
        self._settling = False
        self.settle()
        self._client.go_on()

    def settle(self):
        """Look at what those have left that ended."""
        over, self.over = self.over, []
        self._written = False
        for run, status, now in over:
            self._settle(run, status, now)
        self._equip()

    def _settle(self, run, status, now):
        if run.stopped and self._client.lives():  # else the guard does it for all
            kill_left(run.workspace.base)  # groups of their own, as timeout(1) makes one
        for stream in run.streams.values():
            if run.watched and stream.source is not None:
                self._loop.watch(stream.source, 0)
            stream.finish()
        if b"stdout" in run.streams:
            self._long = run.streams[b"stdout"].long
        seconds = now - run.started
        self.pace = seconds if self.pace is None else 0.9 * self.pace + 0.1 * seconds
        if run.over:
            outcome = None
            self._recycle(run)
        else:
            outcome = self._judge(run, status, seconds)
            if isinstance(outcome, Outcome):
                outcome.since = now
        self._client.ended(run.task.ticket, outcome)

    def _judge(self, run, status, seconds):
        """What became of it: an ``Outcome``, or a ``Record`` where the results are large."""
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            kind, reason, how = "signal", "killed by signal %d" % number, ("Signal", number)
        else:
            code = os.WEXITSTATUS(status)
            kind, reason, how = "exit", "exit status %d" % code if code else "", ("Exit", code)
        parts, large = [], False
        if run.timed_out:
            kind, reason = "timeout", "timed out, stopped after %d s" % run.limit
        elif not reason:
            try:
                parts, large = self._gather(run)
            except OSError as error:
                kind, reason = "missing", error.strerror
        if (reason or large or run.writes) and (run.full or self._full()):
            # also where the worker noticed nothing: its results may be cut off
            reason = (reason + "; " if reason else "") + "no space left on the host's disk"
        if reason:
            failure = [("Kind", kind), ("Reason", reason), how, ("Seconds", round(seconds, 3))]
            outcome = failed(run.task.ticket, failure, self._error_tail(run))
            if self._client.keeps_failed():
                self._keep(run)
            else:
                self._recycle(run)
            return outcome
        if large:
            run.workspace.close()
            results = [[to_text(name), to_text(file)] for name, file in run.task.results]
            data = {"ticket": run.task.ticket, "seconds": round(seconds, 3), "results": results}
            record = Record(self._place.path, os.path.basename(run.workspace.base), data)
            record.save()
            return record
        self._recycle(run)
        return Outcome(run.task.ticket, seconds, b"".join(parts))

    def _gather(self, run):
        """The parts of a body of /complete; or none, and True: it is to be read from disk.

        ``OSError``, whose text is the whole reason, where a result is missing.
        """
        parts, size = [], 0
        for name, file in run.task.results:
            stream = run.streams.get(file)
            try:
                if stream is None:
                    source, length = open_below(run.workspace.base, file)
                    with source:
                        data = source.read(INLINE_MOST + 1)
                    size += max(length, len(data))
                elif stream.problem:
                    raise stream.problem
                else:
                    data = stream.data
                    size += INLINE_MOST + 1 if stream.long else len(data)
            except OSError as error:
                words = (to_text(name), to_text(file), error.strerror)
                raise OSError(error.errno, "result %s: %s: %s" % words) from error
            parts.append(b"[Result]\nName=%s\n%s%s%s" % (name, opening(len(data)), data, CLOSING))
        if size <= INLINE_MOST and self._client.has_room(size):
            return parts, False
        try:
            for stream in run.streams.values():
                stream.save()
        except OSError as error:
            raise OSError(error.errno, "a result: %s" % error.strerror) from error
        return [], True

    def _full(self):
        room = quietly(os.statvfs, self._place.path)
        return room is not None and room.f_blocks and not room.f_bavail

    def _error_tail(self, run):
        errors = run.streams.get(b"stderr")
        return quietly(errors.tail if errors else run.workspace.error_tail) or b""

    def _keep(self, run):
        """Leave what a failed attempt left where people find it."""
        base = run.workspace.base
        place = self._client.folder_for_failed(run.task.ticket)
        try:
            os.makedirs(place, 0o700)
            for stream in run.streams.values():
                stream.save()
        except OSError as error:
            log("cannot keep the folder of ticket %s: %s", run.task.ticket, error)
            run.workspace.close()
            self._throw_away(base)
            return
        run.workspace.close(os.path.join(place, "stderr"))
        names = [("", "folder"), (".in", "stdin"), (".out", "stdout"), (".stderr", "stderr")]
        for ending, name in names:
            quietly(os.rename, base + ending, os.path.join(place, name))

    def _recycle(self, run):
        """The files are not needed any more; the workspace may be."""
        workspace = run.workspace
        for stream in run.streams.values():
            if stream.long:
                quietly(os.unlink, stream.path)
        if run.task.inputs:
            quietly(os.unlink, workspace.base + ".in")
        if workspace.clean():
            self._spare.append(workspace)
        else:
            workspace.close()
            self._throw_away(workspace.base)

    def _throw_away(self, base):
        self._litter.append(base)
        if len(self._litter) > self.LITTER_MOST:
            remove_ticket(self._litter.popleft())
        if not self._tidying:
            self._tidying = True
            self._loop.later(self.TIDY_PAUSE, self._tidy)

    def _tidy(self):
        end = time.monotonic() + self.TIDY
        while self._litter and time.monotonic() < end:
            remove_ticket(self._litter.popleft())
        self._tidying = bool(self._litter)
        if self._tidying:
            self._loop.later(self.TIDY_PAUSE, self._tidy)

    def kill_all(self):
        """KILL every worker, and wait a second until all are gone."""
        for run in self.runs.values():
            run.signal(signal.SIGKILL)
        end = time.monotonic() + 1
        while self.runs and time.monotonic() < end:
            pid = quietly(os.waitpid, -1, os.WNOHANG)
            if pid is None:
                break
            if not pid[0]:
                time.sleep(0.001)
            self.runs.pop(pid[0], None)
        for run in self.runs.values():
            log("ticket %s: the worker cannot be killed", run.task.ticket)


# --- the exchange -------------------------------------------------------------------------


class Exchange:
    """Tells what became of many tickets in one request, and fetches new ones with it.

    One is under way at a time. It is sent when what has ended is ``AGE`` old, when few tasks are
    left to start, or when nothing runs. How many tasks are wanted ahead is learned: twice as
    many as were done between two exchanges, more when slots stood idle until the answer came. So is
    how much of large results may wait for one: others go by requests of their own, from disk.
    """

    AHEAD_MOST = 512  # tasks that may wait here
    AHEAD_WORK = 0.2  # seconds until those are begun: so long they may be missing elsewhere
    LONG = 1.0  # seconds a worker takes, for which a round trip is nothing: none waits behind it
    BACK_AFTER = 0.5  # seconds after which a task that waits is given back

    def __init__(self, client, engine, path, most, ping):
        self.none = False  # there is no task at this moment; GET /task waits for one
        self.outbox = []
        self._client = client
        self._engine = engine
        self._slots = client.settings.slots
        self._path = path
        self._most = most  # bytes of a body
        # a ticket is doubtful after 3 x ping + 5 s of silence: there must be time for another try
        self._limit = max(2 * ping, 10.0)
        self._size = 0  # bytes in the outbox, without the entries' heads
        self._room = OUTBOX_MOST // 8  # bytes that should be there, as learned
        self._sent = 0  # bytes of the one that is under way
        self._sent_at = 0.0
        self._call = None
        self._carried = []  # outcomes in the one that is under way
        self._back = []  # tickets to give back
        self._ping_due = False
        self._parting = False  # the last ones, whatever they are
        self._gone = False  # the server has none any more
        self._ahead = 0  # tasks that should wait here, as learned
        self._finished = 0  # workers that had ended when the last one was sent
        self._dry = False  # slots stood idle until the last answer came
        self._pause = None  # the timer until the next try
        self._backoff = backoff()
        self._timer = None
        self._when = 0.0

    def add(self, outcome):
        self.outbox.append(outcome)
        self._size += len(outcome.body)

    def has_room(self, size):
        """Only for what the way to the server takes within a second: pings wait behind it."""
        return size <= SMALL_MOST or self._size + size <= self._room

    def unconfirmed(self):
        return self._carried + self.outbox

    def ping(self):
        """It is time to say which tickets are alive."""
        self._ping_due = True
        self.consider()

    def part(self):
        """The client is stopped: tell what there is, without asking for more."""
        self._parting = True
        self._client.loop.cancel(self._pause)
        self._pause = None
        self._tell_last()

    def _tell_last(self):
        self._give_back(len(self._engine.waiting))
        self.consider()

    def busy(self):
        """Is there something under way that the client's end should wait for?"""
        last = self.outbox or self._back or self._engine.waiting
        return bool(self._call or self._parting and last)

    def consider(self):
        """Send it, or see to it that this is asked again when it may be time."""
        if self._call or self._pause or self._gone:
            return
        if not (self._client.lives() or self._parting):
            return
        now = time.monotonic()
        waiting = self._engine.waiting
        while waiting and now >= waiting[0].since + self.BACK_AFTER:
            self._give_back(1)
            self._ahead = 0
        times = []
        if self.outbox:
            times.append(self.outbox[0].since + AGE)
        if waiting:
            times.append(waiting[0].since + self.BACK_AFTER)
        if self._is_due(min(times, default=math.inf) <= now):
            self._send(now)
        elif times:
            self._consider_at(min(times))

    def _consider_at(self, when):
        if self._timer is None or when < self._when:
            self._client.loop.cancel(self._timer)
            self._when = when
            self._timer = self._client.loop.later(when - time.monotonic(), self._timer_ran)

    def _timer_ran(self):
        self._timer = None
        self.consider()

    def _is_due(self, late):
        engine = self._engine
        if late or self._back or self._parting and (self.outbox or engine.over):
            return True
        if self._ping_due and (engine.runs or engine.waiting or self._client.large()):
            return True
        if (self.outbox or engine.over) and not engine.runs or self._size > self._most // 2:
            return True
        return len(engine.waiting) <= self._slots and self._want() > 0

    def _want(self):
        engine = self._engine
        if self.none or not self._client.may_ask():
            return 0
        pace = engine.pace
        ahead = 0
        if pace is not None and pace < self.LONG:
            work = int(self.AHEAD_WORK * self._slots / max(pace, 1e-6))
            ahead = min(self._ahead, work, self.AHEAD_MOST)
        return max(0, len(engine.free) + ahead - len(engine.waiting))

    def _learn(self):
        """How many tasks should wait here, now that one is sent."""
        finished = self._engine.finished
        ahead = self._slots + 2 * (finished - self._finished)
        self._finished = finished
        before = self._ahead
        self._ahead = min(max(ahead, before * 2 if self._dry else before * 3 // 4), self.AHEAD_MOST)
        self._dry = False

    def _give_back(self, count):
        for _ in range(count):
            task = self._engine.waiting[0]
            self._engine.drop(task)
            self._client.forget(task.ticket)
            self._back.append(task.ticket)

    def _send(self, now):
        self._engine.settle()
        self._learn()
        want = self._want()
        lines = [b"back %s\n" % to_bytes(ticket) for ticket in self._back]
        if self._ping_due:
            self._ping_due = False
            lines += self._pings(now)
        size = sum(map(len, lines))
        count = 0
        for outcome in self.outbox:
            entry = outcome.entry()
            more = sum(map(len, entry))
            if count and size + more > self._most:
                break
            count += 1
            lines += entry
            size += more
        self._carried = self.outbox[:count]
        del self.outbox[:count]
        self._size = sum(len(outcome.body) for outcome in self.outbox)
        self._sent, self._sent_at = size, now

        def make_body():
            made = Body()
            for line in lines:
                made.add(line)
            return made

        reader = AnswerReader(self._client.spool)
        given_back = len(self._back)

        def answered(response):
            self._answered(response, reader, want, given_back)

        query = [("want", want)]
        self._call = self._client.call(
            "POST",
            self._path,
            query + self._client.which_worker(),
            answered,
            make_body,
            reader.feed,
            self._limit,
        )

    def _pings(self, now):
        engine = self._engine
        running = [(run.task.ticket, now - run.started) for run in engine.runs.values()]
        running += [(record.ticket, record.data["seconds"]) for record in self._client.large()]
        for ticket, seconds in running:
            yield b"running %s %.3f\n" % (to_bytes(ticket), seconds)
        for task in engine.waiting:
            yield b"waiting %s\n" % to_bytes(task.ticket)

    def _answered(self, response, reader, want, given_back):
        self._call = None
        carried, self._carried = self._carried, []
        client = self._client
        if response.status == 200:
            self._backoff = backoff()
            if self._sent > SMALL_MOST:
                in_a_second = self._sent / max(time.monotonic() - self._sent_at, 0.001)
                self._room = min(int(in_a_second), OUTBOX_MOST)
            del self._back[:given_back]
            for outcome in carried:
                client.settled(outcome)
            for ticket in reader.over:
                client.over(ticket)
            if want:
                self.none = reader.none or not (reader.tasks or reader.no_more)
                self._dry = bool(reader.tasks and self._engine.free)
            if reader.no_more:
                client.no_more()
        elif response.status in (0, 503):
            self.outbox[:0] = carried
            self._size += sum(len(outcome.body) for outcome in carried)
            client.keep_unsent(self.outbox)
            pause = response.retry_after() or next(self._backoff)
            self._pause = client.loop.later(pause, self._go_on)
        else:
            log("the server does not take an exchange: %s", response)
            for outcome in carried:
                client.post(outcome)
            if response.status in (404, 405):
                self._gone = True  # another version of the server
                client.no_exchange()
            else:
                self._pause = client.loop.later(next(self._backoff), self._go_on)
        # those that came whole are good, even where the rest was cut off
        client.take(reader.tasks)
        if self._parting:
            self._tell_last()

    def _go_on(self):
        self._pause = None
        self._client.go_on()
        self.consider()  # also where the client does so no more


# --- the client ---------------------------------------------------------------------------


class Client:
    """The life of the whole. ``ready(log)``, unless None, is called after the first /config."""

    def __init__(self, settings, ready):
        self.settings = settings
        self.host = settings.host or os.uname().nodename
        self.platform = settings.platform or platform_word()
        self.loop = Loop()
        self.http = Http(self.loop, settings.server)
        self.public = ""
        self.environment = {}
        self.executable = None
        self._nice = 0
        self._engine = None
        self._exchange = None  # where the server has one
        self._guard = None
        self._ready = ready
        self._who = ""  # the part of the query that says who we are
        self._config = {}
        self._ping = 0.0
        self._folder = ""  # the session's
        self._place = ""  # ours in it
        self._tickets = set()  # those that are not settled
        self._posts = {}  # ticket -> Post: what goes by a request of its own
        self._away = False  # the server did not answer the last time
        self._pings = {}  # ticket -> timer, None while a ping is under way; without exchange
        self._unsent = 0  # outcomes in the file of that name that are not confirmed
        self._keeping = None  # the timer that looks for outcomes to put there
        self._asking = None
        self._pause = None  # the timer until the next request for a task, after a failed one
        self._backoff = backoff()
        self._no_more = False  # the server has no task left
        self._patience = settings.start_limit
        self._silent = None  # the timer that ends a server's silence
        self._problem = "it is slow"  # why there was no answer
        self._reports = 0  # of stopped tickets, under way
        self._code = None  # exit status, once the end has begun
        self._farewell = None

    # talking to the server

    def _introduce(self, client_id):
        words = [("sessionID", self.settings.session)]
        if client_id:
            words.append(("client", client_id))
        if self.settings.host:
            words.append(("host", self.settings.host))
        self._who = encode_query(words)

    def call(self, method, path, query, done, make_body=Body, sink=None, limit=ANSWER_LIMIT):
        """Make a request; ``done(response)`` unless the server refuses the session.

        A status that the master does not use is passed on as 0: something between us and
        it answered, or it is ill, and both may pass.
        """
        target = "%s?%s&%s" % (path, self._who, encode_query(query))
        limit = min(limit, max(1.0, self._patience) + (HOLD if path == "/task" else 0.0))

        def answered(response):
            if response.status not in MASTERS_STATUSES:
                response.status, response.error = 0, str(response)
            if response.status in (0, 503):
                self._problem = response
            if response.status and self._away:
                # before new tasks begin: the run may end with them, and the way there with the run
                for post in list(self._posts.values()):
                    post.hurry()
            self._away = not response.status
            if response.status and self._config:
                self.loop.cancel(self._silent)
                self._silent = None
            elif self._silent is None:
                patience = self._patience
                if self._no_more and not self._engine.runs:
                    # the run may be over; what is not confirmed then is the next client's
                    patience = min(patience, AFTERWARDS)
                self._silent = self.loop.later(patience, self._lose_patience, patience)
            if response.status == 403:
                self.end(EXIT_REFUSED, "the server refuses the session")
            else:
                done(response)

        return self.http.send(method, target, answered, make_body, sink, limit)

    def _lose_patience(self, seconds):
        text = "no answer from %s for %g s: %s"
        self.end(EXIT_UNREACHABLE, text % (self.settings.server, seconds, self._problem))

    # the beginning

    def begin(self):
        """Ask for the config, until it comes or ``start_limit`` is over."""
        query = [("slots", self.settings.slots), ("platform", self.platform)]
        self.call("GET", "/config", query, self._configured)

    def _configured(self, response):
        if not self.lives():
            return
        if response.status in (0, 503):
            self._try_later(response, self.begin)
        elif response.status == 415:
            self.end(EXIT_PLATFORM, "no worker for %s: %s" % (self.platform, response))
        elif response.status != 200:
            self._is_no_master(response)
        else:
            try:
                self._read_config(read_pairs(bytes(response.text)))
            except ValueError as error:
                self._is_no_master(error)
                return
            try:
                self._prepare()
                if self._ready:
                    self._ready(os.path.join(self._place, "log"))
                self._engine = self._make_engine()
                self._sweep()
            except ClientError as error:
                self.end(error.code, str(error))
            except OSError as error:
                self.end(EXIT_FOLDER, "folder %s: %s" % (self.settings.dir, error))
            else:
                if self.executable:
                    self.executable.get()
                else:
                    self.go_on()

    def _try_later(self, response, function):
        return self.loop.later(response.retry_after() or next(self._backoff), function)

    def _is_no_master(self, reason):
        self.end(EXIT_UNREACHABLE, "%s is no pexec master: %s" % (self.settings.server, reason))

    def _read_config(self, pairs):
        config = self._config = dict(pairs)
        self._introduce(config.get("Client"))
        self._ping = float(config.get("Ping", "0"))
        self._patience = float(config.get("Patience", "3600"))
        self._nice = int(config.get("Nice", "0"))
        self.public = config.get("Session") or self.settings.public or "session"
        self.loop.cancel(self._silent)
        self._silent = None
        self.environment = dict(os.environb)
        for key, value in pairs:
            if key == "Environment":
                name, _, text = to_bytes(value).partition(b"=")
                self.environment[name] = text

    def _says_yes(self, key):
        return self._config.get(key, "No").lower() == "yes"

    def _prepare(self):
        """Make the folders, start the guard, and say where the worker is to be."""
        try:
            self._make_place()
        except (ClientError, OSError):
            self._make_place()  # one that ends may have removed the folder just now
        settings = self.settings
        if "/" in settings.command:
            settings.command = os.path.abspath(settings.command)
        worker = to_path(self._config.get("Worker", "")) or os.path.basename(settings.command)
        if "/" in worker or worker.startswith("."):
            raise ClientError(EXIT_FOLDER, "the worker's name is no file name: %s" % worker)
        try_folder(self._place, run=bool(worker))
        self._guard = Guard(self.loop, self._place, self._groups)
        if not worker:
            return
        config = self._config
        kind, wanted = "sha256", config.get("SHA256", "")
        if not wanted:
            kind, wanted = "md5", config.get("MD5") or settings.md5
        os.mkdir(os.path.join(self._place, "bin"), 0o700)
        self.executable = Executable(
            self,
            os.path.join(self._place, "bin", worker),
            (kind, wanted.lower()) if wanted else None,
            os.path.join(self._folder, "worker", plain(self.platform)),
            self.go_on,
        )

    def _make_place(self):
        session = self.settings.session
        name = "%s-%s" % (plain(self.public), digest("session", session)[:8])
        self._folder = own_folder(os.path.join(self.settings.dir, name))
        name = "%s-%d-%s" % (host_word(self.host), os.getpid(), os.urandom(4).hex())
        place = os.path.join(self._folder, name)
        os.mkdir(place, 0o700)
        self._place = place

    def _groups(self):
        return list(self._engine.runs)

    def _make_engine(self):
        engine = Engine(self, self._place)
        if self._nice:
            engine.nice = min(os.getpriority(os.PRIO_PROCESS, 0) + self._nice, 19)
        if self._config.get("Exchange"):
            most = natural(self._config.get("ExchangeMost", "1048576"))
            path = self._config["Exchange"]
            self._exchange = Exchange(self, engine, path, most, self._ping)
            if self._ping > 0:
                self.loop.later(self._ping * random.random(), self._ping_all)
        return engine

    def keeps_failed(self):
        return self._says_yes("KeepFailed")

    def folder_for_failed(self, ticket):
        return os.path.join(self._folder, "failed", plain(ticket))

    def _sweep(self):
        """See to what dead clients of this host and session left.

        The lock says that no other is alive, the name that none is another host's.
        """
        own = os.path.basename(self._place)
        for name in sorted(os.listdir(self._folder)):
            if name == own or name.rsplit("-", 2)[0] != host_word(self.host):
                continue
            log("a dead client's folder: %s", name)
            place = os.path.join(self._folder, name)
            kill_left(place + "/")
            for record in Record.load_all(place):
                self._tickets.add(record.ticket)
                self.post(record)
            self._adopt(os.path.join(place, UNSENT))
            self._remove_place(place)

    def _adopt(self, path):
        """Take over what another did not get confirmed: first into our file, then out of theirs."""
        try:
            with open(path, "rb") as file:
                found = {outcome.ticket: outcome for outcome in read_entries(file.read())}
        except FileNotFoundError:
            return
        # one that was killed just here has left the same in two files
        outcomes = [found[ticket] for ticket in found if ticket not in self._tickets]
        self.keep_unsent(outcomes)
        if all(outcome.kept for outcome in outcomes):
            os.unlink(path)
        for outcome in outcomes:
            self._tickets.add(outcome.ticket)
            self._tell(outcome)

    # tasks

    def lives(self):
        """False once the end is near and nothing may be begun."""
        return self._code is None

    def may_start(self):
        """Not where a server that is slow to take results would have the disk filled with them."""
        return self.lives() and len(self._posts) < self.settings.slots + POSTS_BESIDE

    def may_ask(self):
        """May tasks be asked for in an exchange?"""
        if self.executable and not self.executable.ready:
            return False  # an exchange may be due before, for pings
        return not (self._no_more or self._asking or self._pause) and self.may_start()

    def go_on(self):
        """Start what waits, tell what has ended, ask for more."""
        if not self._engine:
            return
        self._engine.fill()
        if self._exchange and self.lives():
            self._exchange.consider()
        else:
            self._engine.settle()
        self._ask()
        self._maybe_end()

    def which_worker(self):
        executable = self.executable
        return [("worker", os.fsencode(executable.name))] if executable else []

    def _ask(self):
        """Ask for a task where a slot is free. One request at a time: it may be held open.

        Where there are exchanges, only when the last one brought nothing.
        """
        if not self.may_ask() or self._exchange and not self._exchange.none:
            return
        if not self._engine.free or self._engine.waiting:
            return
        reader = TaskReader(self.spool)

        def told(response):
            self._asking = None
            self._told(response, reader)

        limit = HOLD + ANSWER_LIMIT
        query = self.which_worker()
        self._asking = self.call("GET", "/task", query, told, sink=reader.feed, limit=limit)

    def spool(self):
        return open(os.path.join(self._place, "input-" + os.urandom(8).hex()), "wb")

    def _told(self, response, reader):
        if response.status == 200:
            if self._exchange:
                self._exchange.none = False
            self.take([reader.result()])
            return
        reader.task.discard()
        if response.status == 503 and response.retry_after() is None:
            self.no_more()
            self._maybe_end()
        elif response.status in (0, 503):
            self._pause = self._try_later(response, self._ask_again)
        else:
            self._is_no_master(response)

    def _ask_again(self):
        self._pause = None
        if self._exchange:
            self._exchange.none = False
        self.go_on()

    def no_more(self):
        """The server has no task left."""
        self._no_more = True

    def take(self, tasks):
        """Tasks have come: run them, or say why not."""
        new = []
        for task in tasks:
            if not task.ticket or task.ticket in self._tickets:
                log("the server sent what is no task, or the same one again")
                task.discard()
                self._pause = self._pause or self.loop.later(next(self._backoff), self._ask_again)
                continue
            self._backoff = backoff()
            self._tickets.add(task.ticket)
            new.append(task)
            if self._ping > 0 and not self._exchange:
                first = self._ping * random.random()
                self._pings[task.ticket] = self.loop.later(first, self._ping_for, task.ticket)
        self._engine.add(new)
        self.go_on()

    def _ping_for(self, ticket):
        """Ping until the ticket is settled, also while its results are on their way."""

        def answered(response):
            if response.status == 205:
                self.over(ticket)
            if ticket in self._pings:
                self._pings[ticket] = self.loop.later(self._ping, self._ping_for, ticket)

        self._pings[ticket] = None
        limit = max(self._ping, 5.0)
        self.call("GET", "/ping", [("ticket", ticket)], answered, limit=limit)

    def _ping_all(self):
        if self._exchange:
            self.loop.later(self._ping, self._ping_all)
            self._exchange.ping()

    def no_exchange(self):
        """The server has none any more: go on with single requests."""
        outbox, self._exchange = self._exchange.outbox, None
        for outcome in outbox:
            self.post(outcome)
        if self._ping > 0:
            for ticket in self._tickets:
                self._ping_for(ticket)

    def over(self, ticket):
        """Nobody wants that ticket's result any more."""
        for run in self._engine.runs.values():
            if run.task.ticket == ticket and not run.over:
                log("ticket %s is over: its worker is stopped", ticket)
                run.over = True
                self._engine.stop(run)
        for task in list(self._engine.waiting):
            if task.ticket == ticket:
                self._engine.drop(task)
                self.forget(ticket)

    def has_room(self, size):
        """May results of so many bytes wait in memory until they are told?"""
        return not self._exchange or self._exchange.has_room(size)

    def large(self):
        """The records that are on their way."""
        return [post.outcome for post in self._posts.values() if isinstance(post.outcome, Record)]

    def forget(self, ticket):
        """The ticket is settled, or not ours any more."""
        self._tickets.discard(ticket)
        if self._pings:
            self.loop.cancel(self._pings.pop(ticket, None))

    def started(self):
        self._guard.changed()

    def ended(self, ticket, outcome):
        """A worker has ended, or could not be started; None: nobody wants to know."""
        self._guard.changed()
        if outcome is None or not self.lives():
            if outcome:
                outcome.remove()
            self.forget(ticket)
        else:
            self._tell(outcome)

    def _tell(self, outcome):
        if isinstance(outcome, Record) or not self._exchange:
            self.post(outcome)
        else:
            self._exchange.add(outcome)
            self._keep_later()

    def post(self, outcome):
        """Tell it by a request of its own."""
        post = Post(self, outcome, self._post_ended)
        self._posts[outcome.ticket] = post
        self._keep_later()
        post.send()

    def _post_ended(self, post):
        del self._posts[post.outcome.ticket]
        self.settled(post.outcome)
        self.go_on()

    def settled(self, outcome):
        """The server has confirmed it, or will not."""
        self.forget(outcome.ticket)
        outcome.remove()
        if isinstance(outcome, Record):
            if outcome.folder != self._place:
                self._remove_place(outcome.folder)
        elif outcome.kept:
            self._unsent -= 1
            if not self._unsent:
                quietly(os.unlink, os.path.join(self._place, UNSENT))

    # what the server did not confirm at once is put on disk

    def _keep_later(self):
        if self._keeping is None:
            self._keeping = self.loop.later(KEEP_AFTER, self._keep_old)

    def _keep_old(self):
        self._keeping = None
        now = time.monotonic()
        outcomes = self._unconfirmed()
        self.keep_unsent([each for each in outcomes if now - each.since >= KEEP_AFTER])
        if outcomes:
            self._keep_later()

    def _unconfirmed(self):
        """The outcomes that are in memory."""
        found = [post.outcome for post in self._posts.values()]
        found = [outcome for outcome in found if isinstance(outcome, Outcome)]
        return found + (self._exchange.unconfirmed() if self._exchange else [])

    def keep_unsent(self, outcomes):
        """Put outcomes on disk, so that the session's next client here can tell them."""
        new = [each for each in outcomes if isinstance(each, Outcome)]
        new = [each for each in new if each.lasting and not each.kept]
        if not new:
            return
        path = os.path.join(self._place, UNSENT)
        end = None
        try:
            with open(path, "ab") as file:
                end = file.tell()
                file.writelines(piece for outcome in new for piece in outcome.entry())
        except OSError as error:
            log("cannot record %d tickets: %s", len(new), error)
            if end is not None:
                quietly(os.truncate, path, end)  # behind half an entry nobody would find another
            return
        self._unsent += len(new)
        for outcome in new:
            outcome.kept = True

    # the end

    def stopped(self, number):
        """A signal: report the tickets whose workers are stopped; at once if it is the second."""
        if not self.lives():
            self._leave()
            return
        failure = [("Kind", "stopped"), ("Reason", "the client was stopped")]
        for run in self._engine.runs.values() if self._engine else ():
            if run.over:
                continue
            run.over = True
            outcome = Outcome(run.task.ticket, None, failure_body(failure, None), False)
            if self._exchange:
                self._exchange.add(outcome)
            else:
                self._reports += 1
                path, query, make_body = outcome.request()
                self.call("POST", path, query, self._reported, make_body)
        self.end(128 + number, "stopped by signal %d" % number)
        if self._exchange:
            self._exchange.part()

    def _reported(self, _response):
        self._reports -= 1
        self._maybe_end()

    def end(self, code, reason):
        """Begin the end: no more tasks, workers stopped; what is under way gets two seconds."""
        if not self.lives():
            return
        log("%s", reason)
        if self._engine:
            self._engine.settle()  # what has ended is told, or kept
        self._code = code
        if self._asking:
            self._asking.cancel()
        for timer in self._pings.values():
            self.loop.cancel(timer)
        self._pings.clear()
        if self._engine:
            for run in self._engine.runs.values():
                self._engine.stop(run)
        self._farewell = self.loop.later(STOP_GRACE + 0.2, self._leave)
        self._maybe_end()

    def _maybe_end(self):
        engine = self._engine
        if engine and (engine.runs or engine.over) or self._reports:
            return
        telling = self._exchange and (self._exchange.busy() or self._exchange.outbox)
        if not self.lives():
            posting = any(post.under_way for post in self._posts.values())
            if not posting and not (self._exchange and self._exchange.busy()):
                self._leave()
        elif self._no_more and not (self._posts or telling or engine.waiting):
            self._code = EXIT_OK
            log("no task is left")
            self._leave()

    def _leave(self):
        self.loop.cancel(self._farewell)
        if self._engine:
            self._engine.kill_all()
        self.loop.stop()

    def run(self):
        """All of it; the exit status."""
        for number in ENDING:
            self.loop.on_signal(number, self.stopped)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        self._introduce(None)
        # a little later than what knows the reason, where there is no answer at all
        patience = self._patience
        self._silent = self.loop.later(patience + 0.1, self._lose_patience, patience)
        self.begin()
        self.loop.run()
        self.http.close()
        self._clean()
        self.loop.close()
        return self._code

    def _clean(self):
        """Leave what config says, and what the next client is to post."""
        if self._guard:
            self._guard.close()
        os.chdir("/")  # out of the folder of the last worker
        places = {record.folder for record in self.large()}
        if self._place:
            places.add(self._place)
        if self._code == EXIT_REFUSED:
            self._posts.clear()
            self._unsent = 0
        else:
            self.keep_unsent(self._unconfirmed())
        if self.executable:
            self.executable.remove(self._says_yes("DeleteWorker"))
            for names in (("worker", plain(self.platform)), ("worker",)):
                quietly(os.rmdir, os.path.join(self._folder, *names))
        for place in places:
            self._remove_place(place)
        if self._folder:
            quietly(os.rmdir, self._folder)
        if self.settings.copied and self._says_yes("DeleteClient"):
            quietly(os.unlink, OWN_FILE)
        remove_empty_dir(self.settings.dir)

    def _remove_place(self, place):
        """Remove a client's folder, but for the log and the tickets that wait to be posted."""
        waiting = {
            os.path.basename(record.base) for record in self.large() if record.folder == place
        }
        # another's is still there where it could not be taken over
        there = os.path.exists(os.path.join(place, UNSENT))
        if self._unsent if place == self._place else there:
            waiting.add(UNSENT)
        if not waiting:
            remove_tree(place)
            return
        for name in quietly(os.listdir, place) or ():
            if name.partition(".")[0] not in waiting | {"log"}:
                remove_tree(os.path.join(place, name))


def platform_word():
    """``<system>-<machine>`` of this computer, as job files have it."""
    system, machine = os.uname().sysname.lower(), os.uname().machine.lower()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return "%s-%s" % (system, machine)


def host_word(host):
    """A host's name for folders; no other host that shares them could have the same."""
    try:
        with open("/etc/machine-id") as file:
            machine = file.read()
    except OSError:
        machine = ""
    return "%s-%s" % (plain(host), digest("host", host, os.uname().nodename, machine)[:8])


def remove_empty_dir(path):
    """Remove ``--dir`` if nothing is in it; its parent too where that is ~/.cache."""
    quietly(os.rmdir, path)
    parent = os.path.dirname(path)
    if parent == os.path.realpath(os.path.expanduser("~/.cache")):
        quietly(os.rmdir, parent)


# --- the command line ---------------------------------------------------------------------


def usable_cores():
    """The cores that this process may use, as its affinity and its control groups have it."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    # half a core more is one that a worker can use
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(proc="/proc/self"):
    """How many cores' time the control groups of this process give it; None: no limit (Linux)."""
    paths, quotas = {}, []
    try:
        with open(proc + "/cgroup") as file:
            for line in file:
                names, path = line.rstrip("\n").split(":", 2)[1:]
                paths.update((name, path) for name in names.split(","))
        with open(proc + "/mountinfo") as file:
            mounts = [line.partition(" - ") for line in file]
    except (OSError, ValueError):
        return None
    for mount, _, about in mounts:
        kind, _, options = about.split()[:3]
        # version 2 has no names; in version 1 each controller may have a mount of its own
        name = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if name not in paths or (name and name not in options.split(",")):
            continue
        root, top = mount.split()[3:5]
        path = paths[name]
        if path.startswith(root.rstrip("/") + "/"):
            path = path[len(root.rstrip("/")) :]
        folder = top + path.rstrip("/")
        while folder.startswith(top) and folder != "/":  # the groups above have limits, too
            quotas.append(read_quota(folder))
            folder = os.path.dirname(folder)
    return min((quota for quota in quotas if quota), default=None)


def read_quota(folder):
    """The limit of one control group, in cores; None if it has none."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        words = []
        try:
            for name in names:
                with open(os.path.join(folder, name)) as file:
                    words += file.read().split()
            return int(words[0]) / int(words[1]) if int(words[0]) > 0 else None
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            pass  # "max", or not there
    return None


FILE_KEYS = (
    *("Session", "Server", "Slots", "Host", "Dir", "Public", "Platform"),
    *("Copied", "StartLimit", "Command", "MD5"),
)


class Settings:
    """What the command line says, and the file that it names; the defaults."""

    session = server = port = file = verify = None
    command = md5 = host = public = platform = ""
    dir = "~/.cache/pexecd"
    start_limit = 20.0
    copied = background = False

    def __init__(self):
        self.slots = usable_cores()


def make_parser():
    """The parser of the command line, for what ``read_arguments`` does not know."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="pexec_client.py",
        description="Runs the tasks of a pexecd master on this computer.",
        epilog=__doc__[__doc__.index("Exit status") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("session", nargs="?", metavar="SESSION", help="session ID; others may see it here")
    add("command", nargs="?", metavar="COMMAND", help="the worker: name or path")
    add("md5", nargs="?", metavar="MD5", help="its checksum")
    add("server", nargs="?", metavar="SERVER", help="host name or address of the master")
    add("port", nargs="?", type=int, metavar="PORT")
    add(
        "--from",
        dest="file",
        metavar="FILE",
        help="read Key=Value lines from a file, or - for standard input; Server is "
        "http://host:port, https://host:port#SHA256 of the certificate, unix:PATH of a socket, or "
        "file:PATH of a file that says one of these; keys: " + ", ".join(FILE_KEYS),
    )
    add("--slots", type=int, help="workers at once (default: cores)")
    add("--dir", help="folder for all files (default: %s)" % Settings.dir)
    add("--host", help="name of this host in the master's cluster file")
    add("--public", help="the session's public name")
    add("--platform", help="default: %s" % platform_word())
    add("--copied", action="store_true", help="the master put this file here")
    add(
        "--start-limit",
        type=float,
        metavar="SECONDS",
        help="give up when the first /config was not answered by then (default: %g)"
        % Settings.start_limit,
    )
    add("--verify", metavar="SHA256", help="go on only if this file has that checksum")
    add("--background", action="store_true")
    return parser


def read_arguments(arguments):
    """What masters say is read here; all else by ``argparse``, which is slow to load."""
    settings = Settings()
    words = iter(arguments)
    for word in words:
        if word in ("--background", "--copied"):
            setattr(settings, word[2:], True)
        elif word in ("--from", "--dir", "--verify") and arguments[-1] != word:
            setattr(settings, "file" if word == "--from" else word[2:], next(words))
        else:
            return make_parser().parse_args(arguments, Settings())
    return settings


def read_settings(arguments):
    """The settings from the command line, and from the file that it names."""
    settings = read_arguments(arguments)
    try:
        if settings.file:
            read_file(settings)
        elif settings.port:
            name = "[%s]" % settings.server if ":" in settings.server else settings.server
            settings.server = "http://%s:%d" % (name, settings.port)
        if not settings.session or not settings.server or settings.slots < 1:
            raise ValueError("session, server and at least one slot are needed")
        settings.server = Server(settings.server)
    except (OSError, ValueError) as error:
        make_parser().error(str(error))
    return settings


def read_file(settings):
    """Settings from ``Key=Value`` lines."""
    if settings.file == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(settings.file, "rb") as file:
            data = file.read()
    kinds = {
        "Slots": int,
        "StartLimit": float,
        "Copied": lambda word: word.lower() == "yes",
        "Dir": to_path,
        "Command": to_path,
    }
    for key, value in read_pairs(data):
        if key not in FILE_KEYS:
            raise ValueError("--from: unknown key %s" % key)
        name = "start_limit" if key == "StartLimit" else key.lower()
        setattr(settings, name, kinds.get(key, str)(value))


def verify(wanted):
    """``ClientError`` unless this file has that SHA-256."""
    if not wanted:
        return  # it may be gone by now: a client that has just ended removed the copy of both
    found = file_digest(OWN_FILE, "sha256")
    if found != wanted.lower():
        raise ClientError(EXIT_VERSION, "this file has another checksum: %s" % found)


def go_to_background():
    """Fork. The parent exits as the child says; the child gets what tells it: ``tell(log)``.

    When nobody reads its standard error any more, as when the SSH connection is gone, the child is
    ended: who did not hear that it runs would leave it behind.
    """
    sys.stderr.flush()
    hear, say = os.pipe()
    pid = os.fork()
    if pid:
        os.close(say)
        news = select.poll()
        news.register(hear, select.POLLIN)
        news.register(sys.stderr, 0)
        news = dict(news.poll())  # on some systems a device cannot be watched, and says so at once
        if hear not in news and news[sys.stderr.fileno()] & (select.POLLERR | select.POLLHUP):
            os.kill(pid, signal.SIGTERM)
        elif os.read(hear, 1):
            os._exit(EXIT_OK)
        status = os.waitpid(pid, 0)[1]
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else EXIT_BUG)
    os.close(hear)
    os.setsid()

    def tell(path):
        # first let go of the terminal or the SSH channel, then say so
        null = os.open(os.devnull, os.O_RDWR)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for target, source in ((0, null), (1, null), (2, file)):
            os.dup2(source, target)
        os.close(null)
        os.close(file)
        os.chdir("/")
        os.write(say, b"r")
        os.close(say)

    return tell


def main(arguments):
    """Run the client; the exit status."""
    settings = read_settings(arguments)
    log.secret = settings.session
    tell = go_to_background() if settings.background else None
    lock = HostLock(settings.session, settings.host or os.uname().nodename)
    # from the lock on there is something to clean up: they wait until ``run`` can do that
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        verify(settings.verify)
        lock.take()
        settings.dir = own_folder(os.path.expanduser(settings.dir))
        return Client(settings, tell).run()
    except ClientError as error:
        log("%s", error)
        return error.code
    except Exception:
        import traceback

        log("%s", traceback.format_exc())
        return EXIT_BUG
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
