"""The HTTP front doors as processes: one listening socket, held by the daemon, and N processes that serve it.

Because the daemon holds the socket, a door that dies loses the requests it had and no others: connections wait
in the socket until the next door accepts them. A door talks to the daemon over a socket pair that carries the
rights to read and run, and to change things only where that is switched on and there is a token. In its sandbox
there is neither state nor workspace. It outlives the daemon's image, and its requests wait for the next one. What a
door does with HTTP is no business of this file.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from orpheusd.config import Config, environ_behind, http_address
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

log = logging.getLogger(__name__)

BACKLOG = 1024
#: A door that dies at once is started again after this long, doubling up to the second number.
RESTART_FIRST_S = 0.1
RESTART_MOST_S = 10.0
#: A door that lived this long was well.
WELL_S = 30.0
#: A door that was told to go is killed when it has not this long after its own grace; it dies of that in milliseconds.
LATE_S = 0.2


def bind(address: str) -> socket.socket:
    """The listening socket for `address`. Raises AddressInUse, or OrpheusError when there is another reason."""
    host, port = http_address(address)
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(f"cannot listen on {address}: {listener_on(port) or 'another process'} does; choose "
                               "another address with --http, or use --no-http") from error
        raise OrpheusError("conflict", f"cannot listen on {address}: {error.strerror}; choose another address with "
                                       "--http, or use --no-http") from error
    return sock


async def bind_or_evict(address: str, runtime_dir: Path) -> socket.socket:
    """The same, but an agent of this runtime directory that listens there while no daemon does is killed, and all that
    is in its sandbox. Raises as `bind` does when it is anybody else.
    """
    while True:
        try:
            return bind(address)
        except AddressInUse:
            evicted = await evict(*http_address(address), runtime_dir)
            if not evicted:
                raise
            log.error("an agent listens on %s, where HTTP clients look for the daemon: %s killed, with all workers; "
                      "only a socket that systemd holds cannot be taken", address, ", ".join(evicted))


def tag_of(runtime_dir: Path) -> str:
    """What marks the doors of the daemon with this runtime directory."""
    return f"ORPHEUS_DOOR_OF={runtime_dir}"


class FrontDoors:
    """Invariant: while open, `count` doors run or wait to be restarted. A door that is told to go lets requests finish
    for `grace_s` seconds. `empty` is set while there is none, and none to come.
    """

    def __init__(self, control: ControlDoor, sock: socket.socket, config: Config, isolation: Isolation) -> None:
        self._control = control
        self._isolation = isolation
        self._tag = tag_of(config.runtime_dir)
        self._sock = sock
        self._count = config.http_doors
        self._grace_s = config.grace_s
        self._digest = _digest(config)
        self._children: dict[Child, Connection | None] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = asyncio.Event()
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
        self._closing.set()
        for child in self._children:
            child.signal(signal.SIGUSR1)

    async def close(self, timeout_s: float) -> None:
        """Ask the doors to finish what they have, and kill those that are there after `timeout_s`."""
        self._closing.set()
        self._sock.close()
        for child in self._children:
            child.signal(signal.SIGTERM)
        if not self._keepers:
            return
        _, late = await asyncio.wait(self._keepers, timeout=timeout_s + LATE_S)
        if late:
            log.warning("a front door did not leave within %g s and is killed", timeout_s)
            for child in self._children:
                child.signal(signal.SIGKILL)
            await asyncio.wait(late, timeout=LATE_S)

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
            delay_s = RESTART_FIRST_S if loop.time() - started_at > WELL_S else min(delay_s * 2, RESTART_MOST_S)
            log.error("a front door ended (%s); the next one starts in %g s", code, delay_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), delay_s)

    async def _serve(self, handed: Door | None) -> int:
        """One door, from its start to its end. Raises OSError when it cannot be started."""
        child, ours = self._start() if handed is None else (Child(handed.pid), socket.socket(fileno=handed.client.fd))
        self._children[child] = None
        try:
            ours.setblocking(False)
            rights = Access.RUN if self._digest is None else Access.ADMIN
            self._children[child] = await self._control.adopt(
                ours, "http", rights, handed.client if handed is not None else None)
        except BaseException:
            ours.close()
            child.signal(signal.SIGKILL)
            raise
        finally:
            code = await child.wait()
            del self._children[child]
        return code

    def _start(self) -> tuple[Child, socket.socket]:
        """A new door and our end of its connection."""
        ours, theirs = socket.socketpair()
        with theirs:
            fds: tuple[int, ...] = (self._sock.fileno(), theirs.fileno())
            program = [sys.executable, "-m", "orpheusd.doors.http", f"--listen-fd={fds[0]}", f"--control-fd={fds[1]}",
                       f"--limit=grace_s={self._grace_s}"]
            with ExitStack() as stack:
                if self._digest is not None:
                    pipe = stack.enter_context(_filled_pipe(self._digest))
                    fds = (*fds, pipe.fileno())
                    program.append(f"--token-fd={pipe.fileno()}")
                argv, more = stack.enter_context(door_argv(self._isolation, program, self._tag).opened())
                return Child.start(argv, (*fds, *more), environ_behind(self._tag, NOT_FOR_CHILDREN)), ours


def _digest(config: Config) -> bytes | None:
    """Of the token that makes changes; None where there are none."""
    if not config.http_admin:
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
