"""The socket by which a template or a worker speaks with the supervisor, and the queue before it.

Logs are queued and written as far as the socket takes them; they never wait, and beyond a bound they are
refused. Other messages may be waited for. Any thread may queue; whoever holds the baton writes. A channel that was
lost keeps the logs until it is dialled again, and nothing else. It knows no message beyond `hello`, and does not
decide when to dial again.
"""

import json
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from orpheusd.wire.worker import PROTOCOL_VERSION, LinkState, Message, Role, WorkerLink
from orpheusd.worker.descriptors import beyond_the_limit, identity

#: Below the size from which malloc takes fresh pages for every read.
READ_BYTES = 64 * 1024
#: Joined into one write: many log lines cost one system call.
BATCH_BYTES = 64 * 1024
#: More than one run may log, envelopes included: only many runs and a supervisor that does not read fill it.
LOG_BACKLOG_BYTES = 8 * 1024 * 1024
#: What a message costs beside its text when the backlog is counted.
ENVELOPE_BYTES = 200
#: The supervisor accepts at once; longer than this and it is not there.
DIAL_TIMEOUT_S = 10.0
#: What is said of a run while it goes on, and that it does no more.
OF_RUNS = frozenset(("output", "log", "ended"))
#: How often a wait for the socket looks up: a cancel must get through, and a dead peer be noticed.
LOOK_UP_S = 0.05


class ChannelClosed(Exception):
    """The supervisor is gone, or the agent closed the channel under us."""


class Shield:
    """Tells somebody when this thread is inside the channel and must not be torn out of it. Here: nobody."""

    def enter(self) -> None:
        pass

    def leave(self) -> None:
        pass

    def waiting(self) -> None:
        """Called while a message waits, at a point where raising does no harm."""


class Posting(NamedTuple):
    """A message in the queue. `numbers`, where given, fills `seq` at the moment of writing, so that the order
    of numbers is the order on the wire whichever thread came first."""

    type: str
    fields: dict[str, Any]
    payload: bytes = b""
    numbers: Iterator[int] | None = None
    cost_bytes: int = 0


class Address(NamedTuple):
    """Where the supervisor listens, and who it is told that we are."""

    path: str
    role: Role
    id: str
    nonce: str


def dial(path: str, role: Role, id: str, nonce: str) -> "Channel":
    """A channel on which `hello` was said. Raises OSError."""
    address = Address(path, role, id, nonce)
    channel = Channel(_connected(path, DIAL_TIMEOUT_S), WorkerLink(role, json.loads, _dumps), address)
    channel.queue(*_hello(address))
    return channel


class Channel:
    """A socket, the link that speaks on it, and what waits to be written.

    Invariant: only the holder of the baton encodes and writes, and it leaves either nothing or a whole
    remainder of `_batch` in `_rest`; bytes on the wire are never torn or reordered, whatever thread or signal handler
    comes in between.
    """

    def __init__(self, sock: socket.socket, link: WorkerLink, address: Address | None = None) -> None:
        self.link = link
        self.lost = False
        self.shield = Shield()
        self.on_blocked: Callable[[], None] | None = None
        self._address = address
        self._socket = sock
        self._fd = sock.fileno()
        self._identity = identity(self._fd)
        self._owner_pid = os.getpid()
        self._queue: deque[Posting] = deque()
        self._batch: list[Posting] = []
        self._rest = memoryview(b"")
        self._log_bytes = 0
        self._going_on: set[str] = set()
        self._baton: dict[str, list[int]] = {}

    def fileno(self) -> int:
        return self._fd

    @property
    def backlogged(self) -> bool:
        """Whether something waits to be written."""
        return bool(self._rest or self._queue)

    def receive(self, flags: int = 0) -> list[Message] | None:
        """What the supervisor said; None when `flags` forbid waiting and there is nothing.

        Raises ChannelClosed, and ProtocolViolation when the supervisor breaks the rules.
        """
        try:
            data = self._socket.recv(READ_BYTES, flags)
        except BlockingIOError:
            return None
        except OSError as error:
            _reraise_foreign(error)
            self.lost = True
            raise ChannelClosed(f"cannot read the channel: {error}") from error
        if not data:
            self.lost = True
            raise ChannelClosed("the supervisor closed the channel")
        return self.link.receive(data)

    def begins(self, run_id: str) -> None:
        """From now on until its `ended` something may be said of this run."""
        self._going_on.add(run_id)

    def log(self, fields: dict[str, Any], write: bool = True) -> bool:
        """Queue a `log` message; False when too much waits already, or the channel is lost. Never waits."""
        cost = len(fields["text"]) + ENVELOPE_BYTES
        if self._log_bytes + cost > LOG_BACKLOG_BYTES or os.getpid() != self._owner_pid:
            return False
        self._log_bytes += cost
        self._queue.append(Posting("log", fields, cost_bytes=cost))
        if write:
            self.write()
        return True

    def queue(
        self, type: str, fields: dict[str, Any], payload: bytes = b"", numbers: Iterator[int] | None = None
    ) -> None:
        """Queue a message that may not be dropped while the channel lasts, and write what the socket takes."""
        if not self.lost:
            self._queue.append(Posting(type, fields, payload, numbers))
            self.write()

    def deliver(
        self, type: str, fields: dict[str, Any], payload: bytes = b"", numbers: Iterator[int] | None = None
    ) -> None:
        """Queue a message and wait until all that is queued is written. Raises ChannelClosed.

        The supervisor bounds the wait: it reads, or it ends us.
        """
        self.check()
        self.shield.enter()
        try:
            self._queue.append(Posting(type, fields, payload, numbers))
            while not self._pump():
                if self._holds_baton():
                    return  # a signal handler, come upon our own thread while it writes: that will write this too
                self._await_room()
                self.shield.waiting()
        finally:
            self.shield.leave()

    def check(self) -> None:
        """Raises ChannelClosed when the fd is not our socket any more, or this process not its owner."""
        if os.getpid() != self._owner_pid:
            raise ChannelClosed("a forked child does not speak for its worker")
        if identity(self._fd) != self._identity:
            raise ChannelClosed("the agent closed the channel")
        if self.lost:
            raise ChannelClosed("the supervisor is gone")

    @property
    def is_ours(self) -> bool:
        """False in a process that the agent forked."""
        return os.getpid() == self._owner_pid

    def write(self) -> None:
        """Write what the socket takes now. A lost channel shows when it is next read or waited for."""
        if self.lost:
            return
        self.shield.enter()
        try:
            if not self._pump() and self.on_blocked is not None:
                self.on_blocked()
        except ChannelClosed:
            pass  # `lost` tells
        finally:
            self.shield.leave()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything queued is written, at most `timeout_s` seconds. For those who leave."""
        deadline = time.monotonic() + timeout_s
        try:
            while not self.lost and not self._pump() and time.monotonic() < deadline:
                self._await_room()
        except ChannelClosed:
            pass

    def redial(self) -> None:
        """Connect to whoever listens there now, and say `hello`, on the same fd. Never waits.

        Raises OSError while nobody can be reached, ChannelClosed when the fd is not ours any more.
        """
        if self._address is None or os.getpid() != self._owner_pid or identity(self._fd) != self._identity:
            raise ChannelClosed("the agent closed the channel")
        ours = [threading.get_ident()]
        if self._baton.setdefault("holder", ours) is not ours:
            raise BlockingIOError("somebody is still writing to the channel that was lost")
        try:
            with beyond_the_limit(), _connected(self._address.path, 0.0) as sock:
                os.dup2(sock.fileno(), self._fd, inheritable=False)
            self._identity = identity(self._fd)
            self.link = WorkerLink(self._address.role, json.loads, _dumps)
            self._begin_anew()
            self._queue.appendleft(Posting(*_hello(self._address)))
            self.lost = False
        finally:
            del self._baton["holder"]
        self.write()

    def abandon(self) -> None:
        """Let go without a word: this process is a fork, and the channel is its parent's."""
        self._owner_pid = -1
        self.lost = True
        self._queue.clear()
        self._rest = memoryview(b"")
        self._socket.close()

    def regain(self) -> None:
        """Called where this thread is surely not writing: an agent's signal handler may have raised through us
        while we held the baton."""
        if self._holds_baton():
            self._baton.clear()

    def _pump(self) -> bool:
        """Write until nothing is left (True) or the socket is full (False). Raises ChannelClosed."""
        while self._rest or self._queue:
            ours = [threading.get_ident()]
            try:
                # One step of the interpreter takes the baton and says who has it: no thread or signal comes between.
                if self._baton.setdefault("holder", ours) is not ours:
                    return False  # whoever is writing takes what we queued with it
                if not self._write_queue():
                    return False
            finally:
                if self._baton.get("holder") is ours:
                    del self._baton["holder"]
        return True

    def _holds_baton(self) -> bool:
        return self._baton.get("holder") == [threading.get_ident()]

    def _write_queue(self) -> bool:
        while True:
            if not self._rest:
                self._rest = self._next_batch()
                if not self._rest:
                    return True
            try:
                sent = self._socket.send(self._rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            except OSError as error:
                _reraise_foreign(error)
                self.lost = True
                raise ChannelClosed(f"cannot write to the channel: {error}") from error
            self._rest = self._rest[sent:]

    def _next_batch(self) -> memoryview:
        pieces: list[bytes] = []
        size = 0
        self._batch.clear()
        while self._queue and size < BATCH_BYTES:
            posting = self._queue.popleft()
            if posting.type in OF_RUNS and not self._in_time(posting):
                continue
            self._batch.append(posting)
            fields = posting.fields
            if posting.numbers is not None:
                fields["seq"] = next(posting.numbers)
            piece = self.link.send(posting.type, fields, posting.payload)
            pieces.append(piece)
            size += len(piece)
            self._log_bytes -= posting.cost_bytes
        if not self._queue:
            self._log_bytes = 0  # threads that count at once may miscount; an empty queue is the truth
        return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _in_time(self, posting: Posting) -> bool:
        """Whether it can be said. A thread may have queued it for its run just after the end of that run was queued:
        a line then belongs to no run, and output comes too late. What is told before `ready` of a channel that was
        dialled again, nobody can have an opinion on."""
        fields = posting.fields
        run_id = fields["run_id"]
        if posting.type == "ended":
            self._going_on.discard(run_id)
        elif run_id is not None and run_id not in self._going_on and self.link.state is LinkState.READY:
            if posting.type == "output":
                return False
            fields["run_id"] = fields["session_id"] = None
        return True

    def _await_room(self) -> None:
        waiter = select.poll()
        try:
            waiter.register(self._fd, select.POLLOUT)
            waiter.poll(LOOK_UP_S * 1000)
        except OSError as error:
            _reraise_foreign(error)
            self.lost = True
            raise ChannelClosed(f"cannot wait for the channel: {error}") from error

    def _begin_anew(self) -> None:
        """Logs wait for whoever comes; what else was queued has lost its meaning. For the holder of the baton."""
        unsent = self._batch if self._rest else []
        self._rest = memoryview(b"")
        kept = [posting for posting in [*unsent, *self._queue] if posting.type == "log"]
        self._queue.clear()
        self._queue.extend(kept)
        self._log_bytes = sum(posting.cost_bytes for posting in kept)


def _hello(address: Address) -> tuple[str, dict[str, Any]]:
    return "hello", {
        "protocol": PROTOCOL_VERSION, "role": address.role.value, "id": address.id, "nonce": address.nonce}


def _connected(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


#: Pure ASCII, so that no text a handler prints can make a line that is not UTF-8.
_encoder = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), check_circular=False)


def _dumps(value: Any) -> bytes:
    return _encoder.encode(value).encode("ascii")


def _reraise_foreign(error: OSError) -> None:
    """An OSError without a number is no system call's: a signal handler of the agent's raised it (TimeoutError)."""
    if error.errno is None:
        raise error
