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
  TaskReader  the body of a task, read as it comes, inputs straight to disk
  Executable  the worker: shared copy, ``.lock``, own hard link
  Guard       a shell that outlives us for a moment if we are killed, to end the workers;
              each has its folder in PEXEC_FOLDER, by which the next client finds those left
  Run         one ticket while its worker runs
  Post        one ticket from its worker's end until the server has confirmed it
  Client      the life of the whole: config, worker, tasks, pings, the end

A ticket's way: GET /task -> Run (folder, inputs, process) -> a record on disk that says
what is to be posted -> Post, repeated until confirmed -> its files are removed. From the
record on nothing but the server's answer can lose it: a client that is killed, or that
gives up after ``Patience``, leaves record and files for the session's next client here.

Below the folder (``--dir``), everything 0700:

  pexec_client-*.py                  copies of this file, put there by the master
  NAME-HASH/                         a session: its public name, a hash of its ID
    worker/PLATFORM/WORKER           the shared copy, used through hard links only
    worker/PLATFORM/.lock            somebody is fetching it
    failed/TICKET/                   with KeepFailed: what failed attempts left
    HOST-HASH-PID-RANDOM/            one client; no other host can have that name
      bin/WORKER                     its hard link
      TICKET-HASH/                   current folder of a worker
      TICKET-HASH.{in,out,err,json}  its streams, and its record
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

import argparse
import errno
import fcntl
import functools
import hashlib
import itertools
import json
import os
import random
import re
import sched
import select
import selectors
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import time
import traceback
import urllib.parse

CHUNK = 256 * 1024  # bytes read or sent at once; the memory a transfer needs
LINE_MOST = 4 * 1024 * 1024  # bytes of a line in a task; argument lists end at 2 MiB
STDERR_TAIL = 4096  # bytes of standard error that go with a failure
TIMEOUT_NONE = 31536000  # a Timeout that means: no limit
STOP_GRACE = 2.0  # seconds from TERM to KILL, and for last reports
CONNECT_LIMIT = 10.0  # seconds for one address
ANSWER_LIMIT = 60.0  # seconds without a byte in either direction
STORE_LIMIT = 180.0  # the same for uploads: the server may have a slow disk
HOLD = 30.0  # seconds for which the server may hold GET /task open
LOCK_RENEW = 5.0  # seconds between renewals of .lock
LOCK_STALE = 30.0  # seconds of the waiter's clock until an unrenewed .lock is broken
LOCK_LOOK = 0.5  # seconds between looks at another's .lock
LOCAL_FOLDER = "/tmp/pexec-%d"  # local to the host, unlike home folders; by user ID
ANNOUNCE = "application/x-pexec; framing=length"
MASTERS_STATUSES = (200, 204, 205, 400, 403, 404, 405, 413, 415, 503)

OWN_FILE = os.path.abspath(__file__)
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
        # it would sleep for 0 s after every timer, which gives the processor away
        self._timers = sched.scheduler(time.monotonic, lambda _seconds: None)
        self._number = itertools.count()
        self._signals = {}
        self._running = False
        self._wake, self._alarm = socket.socketpair()
        self._wake.setblocking(False)
        self._alarm.setblocking(False)
        signal.set_wakeup_fd(self._alarm.fileno())
        self.watch(self._wake, selectors.EVENT_READ, self._awake)

    def watch(self, sock, mask, function=None):
        """Call ``function(mask)`` whenever ``sock`` is ready; mask 0: never again."""
        key = self._selector.get_map().get(sock)
        if key is None:
            if mask:
                self._selector.register(sock, mask, function)
        elif not mask:
            self._selector.unregister(sock)
        elif key.events != mask or key.data != function:
            self._selector.modify(sock, mask, function)

    def later(self, delay, function, *args):
        """Call a function in ``delay`` seconds; the result is for ``cancel``."""
        # a priority of its own for each: some Pythons tell timers apart by that alone
        when = time.monotonic() + delay
        return self._timers.enterabs(when, next(self._number), function, args)

    def cancel(self, timer):
        if timer is not None:
            try:
                self._timers.cancel(timer)
            except ValueError:
                pass

    def on_signal(self, number, function):
        """Call ``function(number)`` from the loop after that signal."""
        self._signals[number] = function
        signal.signal(number, lambda _number, _frame: None)  # the wake-up socket tells

    def _awake(self, _mask):
        for number in set(self._wake.recv(4096)) & set(self._signals):
            self._signals[number](number)

    def run(self):
        self._running = True
        while self._running:
            wait = self._timers.run(blocking=False)
            for key, mask in self._selector.select(wait) if self._running else ():
                # one callback may have closed the socket of the next
                if self._selector.get_map().get(key.fd) is key:
                    key.data(mask)

    def stop(self):
        """Leave ``run`` after this callback."""
        self._running = False

    def close(self):
        signal.set_wakeup_fd(-1)
        for each in (self._selector, self._wake, self._alarm):
            each.close()


def backoff():
    """Growing, jittered pauses: 0.2 s doubling to 10 s."""
    most = 0.2
    while True:
        yield most * random.uniform(0.5, 1.0)
        most = min(10.0, most * 2)


# --- HTTP ---------------------------------------------------------------------------------


class Server:
    """Where the master is: ``http://host:port``, a name, an IPv4 or an [IPv6] address."""

    def __init__(self, url):
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port:
            raise ValueError("not http://host:port: %s" % url)
        self._where = (parts.hostname, port)
        self.path = parts.path.rstrip("/")
        name = "[%s]" % parts.hostname if ":" in parts.hostname else parts.hostname
        self.authority = "%s:%d" % (name, port)
        self._addresses = []

    def __str__(self):
        return "http://%s%s" % (self.authority, self.path)

    def addresses(self):
        """What the name stands for, the one that worked first; ``OSError`` if nothing.

        Looking up a name blocks the loop; it happens at the start, and again only when
        no known address answered.
        """
        if not self._addresses:
            found = socket.getaddrinfo(*self._where, type=socket.SOCK_STREAM)
            self._addresses = [(entry[0], entry[4]) for entry in found]
        return list(self._addresses)

    def worked(self, address):
        self._addresses.sort(key=lambda other: other[1] != address)

    def forget(self):
        self._addresses = []


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
        self._buffer = bytearray()
        self._ended = False
        self._steps = self._parse()
        next(self._steps)

    def feed(self, data):
        """Take some bytes; ``ValueError`` where they are wrong. What follows the end is lost."""
        self._buffer += data
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
            found = self._buffer.find(b"\n")
            if found >= 0:
                return self._cut(found, 1)
            if len(self._buffer) > most:
                raise ValueError("a line without an end")
            if self._ended:
                return self._cut(len(self._buffer)) or None
            yield

    def _copy(self, length, write):
        """Pass exactly so many bytes on."""
        while length:
            if not self._buffer:
                if self._ended:
                    raise ValueError("it breaks off")
                yield
            data = self._cut(length)
            write(data)
            length -= len(data)

    def _cut(self, length, more=0):
        """Take bytes from the buffer; ``more`` after them are thrown away."""
        data = bytes(self._buffer[:length])
        del self._buffer[: length + more]
        return data


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
                take(self._cut(len(self._buffer)))
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
            raise socket.timeout("no answer in %d s" % limit)
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
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                code = self._sock.connect_ex(address)
                if code == errno.EINPROGRESS:
                    yield from self._wait(selectors.EVENT_WRITE, CONNECT_LIMIT)
                    code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    server.worked(address)
                    return
                reason = os.strerror(code)
            except OSError as error:
                reason = error.strerror or str(error)
            tried.append("%s: %s" % (address[0], reason))
            self._drop()
        server.forget()
        raise OSError("; ".join(tried))

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

    def _forget(self, sock):
        self._kept.pop(sock, None)
        self.loop.watch(sock, 0)
        sock.close()

    def close(self):
        for request in list(self.running):
            request.cancel()
        for sock in list(self._kept):
            self._forget(sock)


# --- the wire format ----------------------------------------------------------------------


class Task:
    """A task as it was told; names and contents are bytes, as on the wire."""

    def __init__(self):
        self.ticket = ""
        self.number = ""
        self.timeout = TIMEOUT_NONE
        self.command = b""
        self.environment = []  # (name, value)
        self.inputs = []  # [file, what ``spool`` made]
        self.results = []  # (result name, file)


class TaskReader(Parser):
    """The body of a task; ``spool()`` makes a binary file for the content of an input.

    ``feed`` never raises: ``finish`` says what was wrong, so that the server can be told.
    """

    def __init__(self, spool):
        self.task = Task()
        self._spool = spool
        self._spooled = []
        self._error = None
        super().__init__()

    def _go_on(self):
        try:
            super()._go_on()
        except (OSError, ValueError) as error:
            self._error = error
            self.done = True
        if self.done:
            self._buffer.clear()

    def discard(self):
        """Remove the files of inputs that are still where they were spooled."""
        for file in self._spooled:
            quietly(file.close)
            quietly(os.unlink, file.name)

    def finish(self):
        """All has come: the task. ``ValueError``: it is wrong; ``OSError``: no room for it."""
        self.end()
        if self._error:
            raise self._error
        if not (self.task.ticket and self.task.command and self.task.results):
            raise ValueError("the task lacks its ticket, command or results")
        return self.task

    def _parse(self):
        yield
        section, keys, content, length = b"", {}, None, None
        while True:
            line = yield from self._line(LINE_MOST)
            word = (line or b"").strip()
            if line is None or word.startswith(b"["):
                self._end_section(section, keys, content)
                section, keys, content, length = word, {}, None, None
                if line is None:
                    return
            elif line.rstrip(b"\r") == BEGIN:
                if section != b"[Input]" or content is not None:
                    raise ValueError("a content that belongs to nothing")
                content = self._spool()
                self._spooled.append(content)
                with content:
                    if length is None:
                        yield from self._read_until_end(content.write, line.endswith(b"\r"))
                    else:
                        yield from self._read_length(content.write, natural(length.strip()))
            elif word:
                key, equals, value = line.partition(b"=")
                key = key.strip()
                if not equals:
                    raise ValueError("a line that is no Key=Value")
                if key == b"Length":
                    length = value
                elif section:
                    keys[key] = value.strip()
                else:
                    self._pair(key, value)

    def _pair(self, key, value):
        task = self.task
        word = value.strip().decode("latin-1")
        if key == b"Ticket":
            task.ticket = word
        elif key == b"Task":
            task.number = word
        elif key == b"Timeout":
            task.timeout = int(word)
        elif key == b"CommandLine":
            task.command = value.strip()
        elif key == b"Environment":
            name, _, text = value.lstrip().rstrip(b"\r").partition(b"=")
            task.environment.append((name, text))

    def _end_section(self, section, keys, content):
        if section == b"[Input]":
            if not keys.get(b"File") or content is None:
                raise ValueError("an input lacks its file or content")
            self.task.inputs.append((keys[b"File"], content))
        elif section == b"[Result]":
            if not keys.get(b"Name") or not keys.get(b"File"):
                raise ValueError("a result lacks its name or file")
            self.task.results.append((keys[b"Name"], keys[b"File"]))
        elif section:
            raise ValueError("an unknown section " + section[:40].decode("latin-1"))

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
            found = self._buffer.find(b"\n")
            if found < 0 and not self._ended:
                if len(self._buffer) > len(END) + 2:  # no closing line, but keep a last CR
                    write(before + self._cut(len(self._buffer) - 1))
                    before, within = b"", True
                yield
                continue
            line = self._cut(found, 1) if found >= 0 else self._cut(len(self._buffer))
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
    body = Body()
    lines = ["%s=%s\n" % (key, " ".join(str(value).split())) for key, value in failure]
    body.add(to_bytes("".join(lines)))
    if stderr is not None:
        body.add(opening(len(stderr)) + stderr + CLOSING)
    return body


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
    try:
        with open(probe, "wb") as file:
            file.write(b"#!/bin/sh\nexit 0\n" + b"#" * 16384)
        os.chmod(probe, 0o700)
        if run:
            subprocess.call([probe], stdin=subprocess.DEVNULL)
        os.unlink(probe)
    except OSError as error:
        what = "nothing can be written or started there"
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


# Kills what has a PEXEC_FOLDER that begins so, where the system tells (Linux).
KILL_MARKED = """
    for file in $(grep -lsF "PEXEC_FOLDER=$1" /proc/[0-9]*/environ); do
        pid=${file%/environ}
        kill -s KILL "${pid#/proc/}"
    done
"""


def kill_left(beginning):
    """Kill what workers left running that have a ``PEXEC_FOLDER`` that begins so."""
    command = ["/bin/sh", "-c", KILL_MARKED, "pexec-sweep", beginning]
    subprocess.call(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


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
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", self.SCRIPT + KILL_MARKED, "pexec-guard", place + "/"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def changed(self):
        if self._timer is None:
            self._timer = self._loop.later(self.DELAY, self._tell_groups)

    def _tell_groups(self):
        self._timer = None
        self._tell(" ".join(map(str, self._groups())))

    def _tell(self, line):
        # somebody may have killed it; the next client's sweep remains
        quietly(os.write, self._process.stdin.fileno(), (line + "\n").encode("ascii"))

    def close(self):
        self._tell("end")
        self._process.stdin.close()
        self._process.wait()


class Record:
    """The files of one ticket in a client's folder, all named by session and ticket.

    ``data`` is what the ``.json`` file says once the worker has ended: ``ticket``, and
    ``seconds`` and ``results``, or ``failure``: what is to be posted.
    """

    def __init__(self, folder, name, data):
        self.folder = folder
        self.base = os.path.join(folder, name)
        self.data = data
        self.ticket = data["ticket"]

    @staticmethod
    def load_all(folder):
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
        try:
            with open(self.base + ".json", "wb") as file:
                file.write(json.dumps(self.data).encode("ascii"))
        except OSError as error:
            log("cannot record ticket %s: %s", self.ticket, error)

    def open_result(self, path):
        """A result's file, open, and its size; ``OSError`` where there is none."""
        if path in (b"stdout", b"stderr"):
            return open_regular(self.base + (".out" if path == b"stdout" else ".err"))
        return open_below(self.base, path)

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
            self.data["failure"] = [("Kind", "missing"), ("Reason", reason)]
            raise
        return body

    def failure_body(self):
        """The body of /failed."""
        failure = self.data["failure"]
        ran = dict(failure)["Kind"] not in ("start", "refused")
        return failure_body(failure, self._stderr_tail() if ran else None)

    def _stderr_tail(self):
        try:
            file, size = open_regular(self.base + ".err")
            with file:
                file.seek(max(0, size - STDERR_TAIL))
                return file.read(STDERR_TAIL)
        except OSError:
            return b""

    def remove(self):
        """Remove all files of the ticket; the record first, it would have them posted."""
        for ending in (".json", ".in", ".out", ".err"):
            quietly(os.unlink, self.base + ending)
        remove_tree(self.base)

    def keep(self, folder):
        place = os.path.join(folder, plain(self.ticket))
        try:
            os.makedirs(place, 0o700)
        except OSError as error:
            log("cannot keep the folder of ticket %s: %s", self.ticket, error)
            return
        names = {"": "folder", ".in": "stdin", ".out": "stdout", ".err": "stderr"}
        for ending, name in names.items():
            quietly(os.rename, self.base + ending, os.path.join(place, name))


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
                shutil.copyfile(source, self.link)
        except FileNotFoundError:
            return False
        if self._checksum and file_digest(self.link, self._checksum[0]) != self._checksum[1]:
            os.unlink(self.link)
            return False
        os.chmod(self.link, 0o700)
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


# --- tickets ------------------------------------------------------------------------------


class Run:
    """One ticket while its worker runs. ``ended(run, failure)`` says when it has ended."""

    def __init__(self, client, task, record, slot, ended):
        self.ticket = task.ticket
        self.record = record
        self.slot = slot
        self.over = False  # nobody wants its result any more
        self._task = task
        self._client = client
        self._loop = client.loop
        self._ended = ended
        self.group = 0
        self._process = None
        self._started = 0.0
        self._timed_out = False
        self._stopped = False
        self._timer = None

    def start(self):
        """Put the inputs into place and start the worker.

        ``ValueError``: the task asks for what must not be done. ``OSError``: it cannot be.
        """
        folder = self.record.base
        os.mkdir(folder, 0o700)
        stdin = os.devnull
        for file, content in self._task.inputs:
            if file == b"stdin":
                stdin = self.record.base + ".in"
                os.rename(content.name, stdin)
            else:
                put_below(folder, file, content.name)
        wanted = [file for _, file in self._task.results]
        for file in wanted:
            inner_path(file)
        # bytes: whatever the locale is, the worker gets what the server sent
        words = [to_bytes(word) for word in shlex.split(to_text(self._task.command))]
        if not words:
            raise ValueError("an empty command")
        executable = self._client.executable
        if executable and words[0] == os.fsencode(executable.name):
            words[0] = os.fsencode(executable.link)
        out = self.record.base + ".out" if b"stdout" in wanted else os.devnull
        err = self.record.base + ".err"
        with open(stdin, "rb") as stream, open(out, "wb") as output, open(err, "wb") as errors:
            self._process = subprocess.Popen(
                words,
                stdin=stream,
                stdout=output,
                stderr=errors,
                cwd=folder,
                env=self._environment(),
                start_new_session=True,
            )
        self._started = time.monotonic()
        self.group = self._process.pid
        if self._client.nice:
            # the group, because the worker may have children already
            nice = os.getpriority(os.PRIO_PROCESS, 0) + self._client.nice
            quietly(os.setpriority, os.PRIO_PGRP, self.group, min(nice, 19))
        if 0 < self._task.timeout < TIMEOUT_NONE:
            self._timer = self._loop.later(self._task.timeout, self._time_out)

    def _environment(self):
        client = self._client
        environment = dict(client.environment)
        environment.update(self._task.environment)
        own = {
            "PEXEC_SESSION": client.public,
            "PEXEC_TASK": self._task.number,
            "PEXEC_TICKET": self.ticket,
            "PEXEC_SLOT": "%d" % self.slot,
            "PEXEC_HOST": client.host,
        }
        for name, value in own.items():
            environment[to_bytes(name)] = to_bytes(value)
        environment[b"PEXEC_FOLDER"] = os.fsencode(self.record.base)
        if client.executable:
            # with ``shell = yes`` the shell looks for the worker
            path = environment.get(b"PATH", os.fsencode(os.defpath))
            own_place = os.fsencode(os.path.dirname(client.executable.link))
            environment[b"PATH"] = own_place + b":" + path
        return environment

    def _time_out(self):
        self._timed_out = True
        self.stop()

    def stop(self):
        """TERM for the group, KILL two seconds later."""
        self._stopped = True
        self._signal(signal.SIGTERM)
        self._loop.cancel(self._timer)
        self._timer = self._loop.later(STOP_GRACE, self.kill)

    def kill(self):
        self._signal(signal.SIGKILL)

    def _signal(self, number):
        try:
            os.killpg(self.group, number)
        except (ProcessLookupError, PermissionError):
            pass  # it is gone; macOS says EPERM for a group of zombies

    def poll(self):
        """After SIGCHLD: is it over?"""
        status = self._process.poll()
        if status is None:
            return
        self.kill()  # what the worker left running
        if self._stopped and self._client.lives():  # else the guard does it for all
            kill_left(self.record.base)  # groups of their own, as timeout(1) makes one
        self._loop.cancel(self._timer)
        self.record.data["seconds"] = round(time.monotonic() - self._started, 3)
        results = [[to_text(name), to_text(file)] for name, file in self._task.results]
        self.record.data["results"] = results
        self._ended(self, self._judge(status))

    def wait(self):
        """After a KILL: until it is gone."""
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            log("ticket %s: the worker cannot be killed", self.ticket)

    def _judge(self, status):
        """What failed, as pairs for /failed, or None."""
        if self._timed_out:
            kind, reason = "timeout", "timed out, stopped after %d s" % self._task.timeout
        elif status < 0:
            kind, reason = "signal", "killed by signal %d" % -status
        elif status:
            kind, reason = "exit", "exit status %d" % status
        else:
            kind, reason = "missing", self._missing()
        if self._full():
            # also where the worker noticed nothing: its results may be cut off
            reason = (reason + "; " if reason else "") + "no space left on the host's disk"
        if not reason:
            return None
        how = ("Signal", -status) if status < 0 else ("Exit", status)
        seconds = self.record.data["seconds"]
        return [("Kind", kind), ("Reason", reason), how, ("Seconds", seconds)]

    def _full(self):
        room = quietly(os.statvfs, os.path.dirname(self.record.base))
        return room is not None and room.f_blocks and not room.f_bavail

    def _missing(self):
        for name, file in self._task.results:
            try:
                self.record.open_result(file)[0].close()
            except OSError as error:
                name, file = to_text(name), to_text(file)
                return "result %s: %s: %s" % (name, file, error.strerror)
        return ""


class Post:
    """One ticket from its worker's end until the server has confirmed it, or will not."""

    def __init__(self, client, record, ended):
        self.record = record
        self.under_way = False
        self._client = client
        self._ended = ended
        self._backoff = backoff()

    def send(self):
        """Try now, and again until it is settled."""
        if not self._client.lives():
            return
        self.under_way = True
        record = self.record
        path, query, make_body = "/failed", [("ticket", record.ticket)], record.failure_body
        if "failure" not in record.data:
            path, make_body = "/complete", record.results_body
            query.append(("seconds", record.data["seconds"]))
        self._client.call("POST", path, query, self._answered, make_body, limit=STORE_LIMIT)

    def _answered(self, response):
        self.under_way = False
        if response.status in (0, 503):
            pause = response.retry_after() or next(self._backoff)
            self._client.loop.later(pause, self.send)
            return
        if response.status >= 300:
            log("ticket %s: the server does not take it: %s", self.record.ticket, response)
        self._ended(self)


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
        self.nice = 0
        self.executable = None
        self._guard = None
        self._ready = ready
        self._who = ""  # the part of the query that says who we are
        self._config = {}
        self._ping = 0.0
        self._folder = ""  # the session's
        self._place = ""  # ours in it
        self._runs = {}  # ticket -> Run
        self._posts = set()
        self._pings = {}  # ticket -> timer, None while a ping is under way
        self._asking = None
        self._pause = None  # the timer until the next request for a task
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
            if response.status and self._config:
                self.loop.cancel(self._silent)
                self._silent = None
            elif self._silent is None:
                self._silent = self.loop.later(self._patience, self._lose_patience)
            if response.status == 403:
                self.end(EXIT_REFUSED, "the server refuses the session")
            else:
                done(response)

        return self.http.send(method, target, answered, make_body, sink, limit)

    def _lose_patience(self):
        text = "no answer from %s for %g s: %s"
        self.end(EXIT_UNREACHABLE, text % (self.settings.server, self._patience, self._problem))

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
                self._sweep()
            except ClientError as error:
                self.end(error.code, str(error))
            except OSError as error:
                self.end(EXIT_FOLDER, "folder %s: %s" % (self.settings.dir, error))
            else:
                if self.executable:
                    self.executable.get()
                else:
                    self._ask()

    def _try_later(self, response, function):
        return self.loop.later(response.retry_after() or next(self._backoff), function)

    def _is_no_master(self, reason):
        self.end(EXIT_UNREACHABLE, "%s is no pexec master: %s" % (self.settings.server, reason))

    def _read_config(self, pairs):
        config = self._config = dict(pairs)
        self._introduce(config.get("Client"))
        self._ping = float(config.get("Ping", "0"))
        self._patience = float(config.get("Patience", "3600"))
        self.nice = int(config.get("Nice", "0"))
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
        runs = self._runs
        self._guard = Guard(self.loop, self._place, lambda: [run.group for run in runs.values()])
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
            self._ask,
        )

    def _make_place(self):
        session = self.settings.session
        name = "%s-%s" % (plain(self.public), digest("session", session)[:8])
        self._folder = own_folder(os.path.join(self.settings.dir, name))
        name = "%s-%d-%s" % (host_word(self.host), os.getpid(), os.urandom(4).hex())
        place = os.path.join(self._folder, name)
        os.mkdir(place, 0o700)
        self._place = place

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
                self._post(record)
            self._remove_place(place)

    # tasks

    def lives(self):
        """False once the end is near and nothing may be begun."""
        return self._code is None

    def _ask(self):
        """Ask for a task where a slot is free. One request at a time: it may be held open."""
        if self._asking or self._pause or self._no_more or not self.lives():
            return
        # a server that is slow to take results must not fill the disk with them
        if len(self._runs) >= self.settings.slots or len(self._posts) > self.settings.slots:
            return
        reader = TaskReader(self._spool)
        executable = self.executable
        query = [("worker", os.fsencode(executable.name))] if executable else []

        def told(response):
            self._asking = None
            self._told(response, reader)

        limit = HOLD + ANSWER_LIMIT
        self._asking = self.call("GET", "/task", query, told, sink=reader.feed, limit=limit)

    def _spool(self):
        return open(os.path.join(self._place, "input-" + os.urandom(8).hex()), "wb")

    def _told(self, response, reader):
        if response.status == 200:
            self._take(reader)
        reader.discard()
        if response.status == 200:
            self._ask()
        elif response.status == 503 and response.retry_after() is None:
            self._no_more = True
            self._maybe_end()
        elif response.status in (0, 503):
            self._pause = self._try_later(response, self._ask_again)
        else:
            self._is_no_master(response)

    def _ask_again(self):
        self._pause = None
        self._ask()

    def _take(self, reader):
        """A task has come: run it, or say why not."""
        ticket = reader.task.ticket
        known = [post.record.ticket for post in self._posts]
        if not ticket or ticket in self._runs or ticket in known:
            log("the server sent what is no task, or the same one again")
            self._pause = self.loop.later(next(self._backoff), self._ask_again)
            return
        self._backoff = backoff()
        name = digest("ticket", self.settings.session, ticket)[:24]
        record = Record(self._place, name, {"ticket": ticket})
        used = {run.slot for run in self._runs.values()}
        slot = min(set(range(self.settings.slots)) - used)
        try:
            run = Run(self, reader.finish(), record, slot, self._run_ended)
            run.start()
        except ValueError as error:
            self._fail(record, [("Kind", "refused"), ("Reason", str(error))])
        except OSError as error:
            reason = os.strerror(error.errno)  # some Pythons put the name into the error's own
            if error.filename:
                reason = "%s: %s" % (os.fsdecode(error.filename), reason)
                if error.errno == errno.ENOENT and os.path.isfile(error.filename):
                    reason += " (the file is; its #! interpreter or its loader is not)"
            self._fail(record, [("Kind", "start"), ("Reason", reason)])
        else:
            self._runs[ticket] = run
            self._guard.changed()
            if self._ping > 0:
                first = self._ping * random.random()
                self._pings[ticket] = self.loop.later(first, self._ping_for, ticket)

    def _ping_for(self, ticket):
        """Ping until the ticket is settled, also while its results are on their way."""

        def answered(response):
            if response.status == 205 and ticket in self._runs:
                log("ticket %s is over: its worker is stopped", ticket)
                self._runs[ticket].over = True
                self._runs[ticket].stop()
            elif ticket in self._pings:
                self._pings[ticket] = self.loop.later(self._ping, self._ping_for, ticket)

        self._pings[ticket] = None
        limit = max(self._ping, 5.0)
        self.call("GET", "/ping", [("ticket", ticket)], answered, limit=limit)

    def _no_pings(self, ticket):
        self.loop.cancel(self._pings.pop(ticket, None))

    def _look_at_workers(self, _number):
        for run in list(self._runs.values()):
            run.poll()

    def _run_ended(self, run, failure):
        del self._runs[run.ticket]
        self._guard.changed()
        if run.over or not self.lives():
            self._no_pings(run.ticket)
            run.record.remove()
        elif failure:
            self._fail(run.record, failure)
        else:
            run.record.save()
            self._post(run.record)
        self._ask()
        self._maybe_end()

    def _fail(self, record, failure):
        log("ticket %s: %s", record.ticket, dict(failure)["Reason"])
        record.data["failure"] = failure
        record.save()
        self._post(record)

    def _post(self, record):
        post = Post(self, record, self._post_ended)
        self._posts.add(post)
        post.send()

    def _post_ended(self, post):
        self._posts.discard(post)
        record = post.record
        self._no_pings(record.ticket)
        if "failure" in record.data and self._says_yes("KeepFailed"):
            record.keep(os.path.join(self._folder, "failed"))
        record.remove()
        if record.folder != self._place:
            self._remove_place(record.folder)
        self._ask()
        self._maybe_end()

    # the end

    def stopped(self, number):
        """A signal: report the tickets whose workers are stopped; at once if it is the second."""
        if not self.lives():
            self._leave()
            return
        failure = [("Kind", "stopped"), ("Reason", "the client was stopped")]
        for ticket, run in self._runs.items():
            if not run.over:
                self._reports += 1
                query = [("ticket", ticket)]
                make_body = functools.partial(failure_body, failure, None)
                self.call("POST", "/failed", query, self._reported, make_body)
        self.end(128 + number, "stopped by signal %d" % number)

    def _reported(self, _response):
        self._reports -= 1
        self._maybe_end()

    def end(self, code, reason):
        """Begin the end: no more tasks, workers stopped; what is under way gets two seconds."""
        if not self.lives():
            return
        log("%s", reason)
        self._code = code
        if self._asking:
            self._asking.cancel()
        for ticket in list(self._pings):
            self._no_pings(ticket)
        for run in self._runs.values():
            run.stop()
        self._farewell = self.loop.later(STOP_GRACE + 0.2, self._leave)
        self._maybe_end()

    def _maybe_end(self):
        if self._runs or self._reports:
            return
        if not self.lives():
            if not any(post.under_way for post in self._posts):
                self._leave()
        elif self._no_more and not self._posts:
            self._code = EXIT_OK
            log("no task is left")
            self._leave()

    def _leave(self):
        self.loop.cancel(self._farewell)
        for run in self._runs.values():
            run.kill()
        for run in self._runs.values():
            run.wait()
        self.loop.stop()

    def run(self):
        """All of it; the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.loop.on_signal(number, self.stopped)
        self.loop.on_signal(signal.SIGCHLD, self._look_at_workers)
        self._introduce(None)
        # a little later than what knows the reason, where there is no answer at all
        self._silent = self.loop.later(self._patience + 0.1, self._lose_patience)
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
        places = {post.record.folder for post in self._posts}
        if self._place:
            places.add(self._place)
        if self._code == EXIT_REFUSED:
            self._posts.clear()
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
            os.path.basename(post.record.base)
            for post in self._posts
            if post.record.folder == place
        }
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
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


FILE_KEYS = (
    *("Session", "Server", "Slots", "Host", "Dir", "Public", "Platform"),
    *("Copied", "StartLimit", "Command", "MD5"),
)


def read_settings(arguments):
    """The settings from the command line, and from the file that it names."""
    parser = argparse.ArgumentParser(
        prog="pexec_client.py",
        description="Runs the tasks of a pexecd master on this computer.",
        epilog=__doc__[__doc__.index("Exit status") :],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("session", nargs="?", metavar="SESSION", help="session ID; others may see it here")
    add("command", nargs="?", default="", metavar="COMMAND", help="the worker: name or path")
    add("md5", nargs="?", default="", metavar="MD5", help="its checksum")
    add("server", nargs="?", metavar="SERVER", help="host name or address of the master")
    add("port", nargs="?", type=int, metavar="PORT")
    add(
        "--from",
        dest="file",
        metavar="FILE",
        help="read Key=Value lines from a file, or - for standard input; Server is "
        "http://host:port; keys: " + ", ".join(FILE_KEYS),
    )
    add("--slots", type=int, default=usable_cores(), help="workers at once (default: cores)")
    add("--dir", default="~/.cache/pexecd", help="folder for all files (default: %(default)s)")
    add("--host", default="", help="name of this host in the master's cluster file")
    add("--public", default="", help="the session's public name")
    add("--platform", default="", help="default: %s" % platform_word())
    add("--copied", action="store_true", help="the master put this file here")
    add(
        "--start-limit",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="give up when the first /config was not answered by then (default: %(default)s)",
    )
    add("--verify", metavar="SHA256", help="go on only if this file has that checksum")
    add("--background", action="store_true")
    settings = parser.parse_args(arguments)
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
        parser.error(str(error))
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
    found = file_digest(OWN_FILE, "sha256")
    if wanted and found != wanted.lower():
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
    try:
        verify(settings.verify)
        lock.take()
        settings.dir = own_folder(os.path.expanduser(settings.dir))
        return Client(settings, tell).run()
    except ClientError as error:
        log("%s", error)
        return error.code
    except Exception:
        log("%s", traceback.format_exc())
        return EXIT_BUG
    finally:
        lock.release()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
