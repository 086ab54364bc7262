"""The HTTP front doors as processes: the listening sockets, held by the daemon, and N processes that serve them.

Because the daemon holds the sockets, a door that dies loses the requests it had and no others: connections wait
in them until the next door accepts them. A door talks to the daemon over a socket pair that carries the
rights to read and run, and to change things only where that is switched on and there is a token. What needs the
token is the door's to ask for. In its sandbox
there is neither state nor workspace. It outlives the daemon's image, and its requests wait for the next one. What a
door does with HTTP is no business of this file.
"""

import asyncio
import errno
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from orpheusd.config import LOCALHOST, Config, environ_behind, http_addresses, http_name
from orpheusd.doors.connection import Connection
from orpheusd.doors.control import ControlDoor
from orpheusd.doors.token import digest_of_token
from orpheusd.errors import AddressInUse, OrpheusError
from orpheusd.handover import Door
from orpheusd.operations import Access
from orpheusd.process.child import NOT_FOR_CHILDREN, Child
from orpheusd.process.listeners import evict, listener_on
from orpheusd.process.sandbox import Isolation, door_argv
from orpheusd.tasks import must_not_fail
from orpheusd.wire.control import DRAIN, STOP

log = logging.getLogger(__name__)

BACKLOG = 1024
#: A door that dies at once is started again after this long, doubling up to the second number.
RESTART_FIRST_S = 0.1
RESTART_MOST_S = 10.0
#: A door that lived this long was well.
WELL_S = 30.0
#: A door that was told to go is killed when it has not this long after its own grace; it dies of that in milliseconds.
LATE_S = 0.2


class _NoIPv6(OrpheusError):
    """`::1` is nobody's on this host, so nobody else can have it either."""


async def listen(setting: str, runtime_dir: Path) -> tuple[socket.socket, ...]:
    """The listening sockets for the setting `http`: all that it means, but `localhost` is 127.0.0.1 alone on a host
    without IPv6. Port 0 is one that the kernel chooses, the same for all. Raises as `bind_or_evict` does.
    """
    addresses = http_addresses(setting)
    socks: list[socket.socket] = []
    with ExitStack() as undo:
        for host, port in addresses:
            try:
                sock = await _bind_or_evict(host, port or (socks[0].getsockname()[1] if socks else 0), runtime_dir)
            except _NoIPv6:
                if len(addresses) == 1:
                    raise
                log.info("this host has no IPv6: %s is %s alone", setting, LOCALHOST[0])
            else:
                socks.append(undo.enter_context(sock))
        undo.pop_all()
    return tuple(socks)


async def _bind_or_evict(host: str, port: int, runtime_dir: Path) -> socket.socket:
    """The same as `_bind`, but an agent of this runtime directory that listens there while no daemon does is killed,
    and all that is in its sandbox. Raises as `_bind` does when it is anybody else.
    """
    while True:
        try:
            return _bind(host, port)
        except AddressInUse:
            evicted = await evict(host, port, runtime_dir)
            if not evicted:
                raise
            log.error(
                "an agent listens on %s, where HTTP clients look for the daemon: %s killed, with all workers; only a "
                "socket that systemd holds cannot be taken", http_name([(host, port)]), ", ".join(evicted))


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressInUse, _NoIPv6, or OrpheusError when there is another reason."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(BACKLOG)
            sock.setblocking(False)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        undo.pop_all()
    return sock


def _cannot_listen(host: str, port: int, error: OSError) -> Exception:
    address, advice = http_name([(host, port)]), "choose another address with --http, or use --no-http"
    if error.errno == errno.EADDRINUSE:
        return AddressInUse(
            f"cannot listen on {address}: {listener_on(host, port) or 'another process'} does; {advice}")
    text = f"cannot listen on {address}: {error.strerror}; {advice}"
    if host == LOCALHOST[1] and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
        return _NoIPv6("conflict", text)
    return OrpheusError("conflict", text)


def tag_of(runtime_dir: Path) -> str:
    """What marks the doors of the daemon with this runtime directory."""
    return f"ORPHEUS_DOOR_OF={runtime_dir}"


class FrontDoors:
    """Invariant: while open, `count` doors run or wait to be restarted. A door that is told to go lets requests finish
    for `grace_s` seconds; each has been told `_order`, or is when it has its connection. `empty` is set while there is
    none, and none to come.
    """

    def __init__(self, control: ControlDoor, socks: Sequence[socket.socket], config: Config,
                 isolation: Isolation) -> None:
        self._control = control
        self._isolation = isolation
        self._tag = tag_of(config.runtime_dir)
        self._socks = socks
        self._count = config.http_doors
        self._grace_s = config.grace_s
        self._digest = _digest(config)
        self._guarded = _guarded(config, self._digest is not None)
        self._children: dict[Child, Connection | None] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()
        self._order: str | None = None
        self.empty = asyncio.Event()
        self.empty.set()

    def open(self, handed: Sequence[Door] = ()) -> None:
        """`handed` are the doors of an earlier image of this daemon."""
        loop = asyncio.get_running_loop()
        self.empty.clear()
        doors = [*handed, *[None] * (self._count - len(handed))]
        self._keepers = [loop.create_task(self._keep(door)) for door in doors]
        for keeper in self._keepers:
            keeper.add_done_callback(must_not_fail)

    def hand_over(self) -> list[Door]:
        """The doors that go on."""
        handed = [(child.pid, connection.hand_over())
                  for child, connection in self._children.items() if connection is not None]
        return [Door(pid, client) for pid, client in handed if client is not None]

    def stop_accepting(self) -> None:
        """Whoever was accepted is answered, whoever comes waits in the socket. A door leaves after its last client."""
        self._tell(DRAIN)

    async def close(self, timeout_s: float) -> None:
        """Ask the doors to finish what they have, and kill those that are there after `timeout_s`."""
        self._tell(STOP)
        for sock in self._socks:
            sock.close()
        if not self._keepers:
            return
        _, late = await asyncio.wait(self._keepers, timeout=timeout_s + LATE_S)
        if late:
            log.warning("a front door did not leave within %g s and is killed", timeout_s)
            for child in self._children:
                child.kill()
            await asyncio.wait(late, timeout=LATE_S)

    def _tell(self, order: str) -> None:
        self._closing.set()
        self._order = order
        for connection in self._children.values():
            if connection is not None:
                connection.tell(order)

    async def _keep(self, handed: Door | None) -> None:
        await self._serve_on(handed)
        if not self._children:
            self.empty.set()

    async def _serve_on(self, handed: Door | None) -> None:
        loop = asyncio.get_running_loop()
        delay_s = RESTART_FIRST_S
        while not self._closing.is_set():
            started_at = loop.time()
            try:
                code: int | OSError = await self._serve(handed)
            except OSError as error:
                code = error
            handed = None
            if self._closing.is_set():
                return
            if loop.time() - started_at > WELL_S:
                delay_s = RESTART_FIRST_S
            log.error("a front door ended (%s); the next one starts in %g s", code, delay_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)
            delay_s = min(delay_s * 2, RESTART_MOST_S)

    async def _serve(self, handed: Door | None) -> int:
        """One door, from its start to its end. Raises OSError when it cannot be started."""
        child, ours = self._start() if handed is None else (Child(handed.pid), socket.socket(fileno=handed.client.fd))
        self._children[child] = None
        try:
            ours.setblocking(False)
            rights = Access.ADMIN if Access.ADMIN in self._guarded else Access.RUN
            self._children[child] = connection = await self._control.adopt(
                ours, "http", rights, handed.client if handed is not None else None)
            if self._order is not None:
                connection.tell(self._order)
        except BaseException:
            ours.close()
            child.kill()
            raise
        finally:
            code = await child.wait()
            del self._children[child]
        return code

    def _start(self) -> tuple[Child, socket.socket]:
        """A new door and our end of its connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            listening = [sock.fileno() for sock in self._socks]
            fds: tuple[int, ...] = (*listening, theirs.fileno())
            program = [sys.executable, "-m", "orpheusd.doors.http", *(f"--listen-fd={fd}" for fd in listening),
                       f"--control-fd={theirs.fileno()}", f"--limit=grace_s={self._grace_s}",
                       *(f"--guard={access.value}" for access in self._guarded)]
            with ExitStack() as stack:
                if self._digest is not None:
                    pipe = stack.enter_context(_filled_pipe(self._digest))
                    fds = (*fds, pipe.fileno())
                    program.append(f"--token-fd={pipe.fileno()}")
                argv, more = stack.enter_context(door_argv(self._isolation, program, self._tag).opened())
                return Child.start(argv, (*fds, *more), environ_behind(self._tag, NOT_FOR_CHILDREN)), ours


def _guarded(config: Config, has_token: bool) -> tuple[Access, ...]:
    """What needs the token. Changes are not served where there is none."""
    changes = (Access.ADMIN,) if config.http_admin and has_token else ()
    return (*((Access.READ, Access.RUN) if config.http_require_token else ()), *changes)


def _digest(config: Config) -> bytes | None:
    """Of the token, where something needs it; None where nobody has one."""
    if not config.http_admin and not config.http_require_token:
        return None
    try:
        return digest_of_token(config.state_dir)
    except OrpheusError as error:
        log.error("%s", error.message)
        return None


def _filled_pipe(data: bytes) -> BinaryIO:
    """The read end of a pipe that holds `data`, which is short, and then ends."""
    read_end, write_end = os.pipe()
    with open(write_end, "wb") as stream:  # noqa: PTH123 (a descriptor)
        stream.write(data)
    return open(read_end, "rb")  # noqa: PTH123
