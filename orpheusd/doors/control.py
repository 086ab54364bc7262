"""The control door: JSON-RPC over a Unix socket, served to whoever the kernel says may have it.

It has the listening socket, the connections and what they have asked for that takes time. It knows nothing of what an
operation does; what is said on a connection is that connection's business. When the daemon executes itself anew, the
socket and the connections go over to its next image.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from orpheusd.audit import Audit
from orpheusd.doors.call import Call
from orpheusd.doors.connection import Connection, fault
from orpheusd.doors.place import listen
from orpheusd.doors.rights import gid_of
from orpheusd.errors import OrpheusError
from orpheusd.handover import Client
from orpheusd.operations import BY_NAME, Access
from orpheusd.reload import RELOADING
from orpheusd.service import Service

#: Connections at a time; a client that needs more should use one connection for many requests.
CLIENTS_LIMIT = 512
#: The least that operations get to undo what they did, and clients to read the answers they have.
LAST_S = 0.2


class ControlDoor:
    """The listening socket and its connections.

    Invariant: at most CLIENTS_LIMIT of clients. When there would be more, the one that has been idle longest goes.
    Once it is held, `answered` is set when every call that had begun is answered. `reloaded` is the answer to those
    who asked an earlier image for this one.
    """

    def __init__(self, service: Service, admin_group: str, audit: Audit) -> None:
        self.admin_group = admin_group
        self.audit = audit
        self.dropped_events = 0
        self.methods: dict[str, Callable[[Call, dict[str, Any]], Any]] = {
            name: getattr(service, name.replace(".", "_")) for name in BY_NAME
        }
        self.answered, self._written = asyncio.Event(), asyncio.Event()
        self.reloaded: dict[str, Any] = {}
        self._connections: set[Connection] = set()
        self._fronts: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._listening: int | None = None

    async def open(self, path: Path, listening: socket.socket | None) -> None:
        """Listen on `path`, or on a socket that listens already. The caller holds the directory's lock, and has asked
        `check_place`."""
        gid = gid_of(self.admin_group) if os.geteuid() == 0 else None
        self._server = await listen(path, lambda: Connection(self, "ctl", None), gid, listening)

    async def adopt(
        self, sock: socket.socket, source: str, rights: Access | None, handed: Client | None = None
    ) -> Connection:
        """Serve an already connected socket, such as a front door's, with exactly `rights`, or its peer's."""
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(self, source, rights, handed), sock=sock)
        return connection

    async def resume(self, clients: list[Client]) -> None:
        """Go on with the clients of an earlier image."""
        for client in clients:
            await self.adopt(socket.socket(fileno=client.fd), "ctl", None, client)

    def admit(self, connection: Connection) -> None:
        """Make room for one more. Raises OrpheusError(overloaded) when nobody can go for it."""
        if connection.source == "http":
            self._fronts.add(connection)
            return
        if len(self._connections) >= CLIENTS_LIMIT:
            idle = [one for one in self._connections if one.idle]
            if not idle:
                raise OrpheusError("overloaded", f"{CLIENTS_LIMIT} clients are connected already")
            longest = min(idle, key=lambda one: one.idle_since)
            longest.close()
            self.dismiss(longest)
        self._connections.add(connection)
        self._empty.clear()

    def dismiss(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._fronts.discard(connection)
        if self._listening is not None:
            self.settle()
        if not self._connections:
            self._empty.set()

    def unread_bytes(self) -> int:
        """What front doors have been told and have not read yet."""
        return sum(front.unread_bytes for front in self._fronts)

    def spawn(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        """Carry out an operation that takes time; it goes on if its caller leaves."""
        task = asyncio.get_running_loop().create_task(self._carry_out(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._listening is not None:
            os.close(self._listening)
            self._listening = None

    # For the next image

    def hold(self) -> None:
        """Accept nobody and begin nothing; who connects waits in the socket."""
        if self._server is not None:
            self._listening = os.dup(self._server.sockets[0].fileno())
            self._server.close()
        for connection in self._everyone():
            connection.hold()
        self.settle()

    async def release(self, accept: bool) -> None:
        """There will be no next image: go on with those who were held, and with what they have said meanwhile.
        `accept` also those who wait in the socket, when nobody has it after us.
        """
        for connection in self._everyone():
            connection.release()
        if self._listening is not None and accept:
            with socket.socket(fileno=os.dup(self._listening)) as listening, suppress(BlockingIOError):
                listening.setblocking(False)
                while True:
                    await self.adopt(listening.accept()[0], "ctl", None)
        # a turn of the loop reads what waits in their sockets
        await asyncio.sleep(0)

    def settle(self) -> None:
        """A connection that is held is nearer to its end."""
        if all(connection.answered() for connection in self._everyone()):
            self.answered.set()
        if all(connection.written() for connection in self._everyone()):
            self._written.set()

    async def let_go(self, timeout_s: float) -> None:
        """Refuse what is not answered, and let clients read what they were told for `timeout_s`."""
        await self._cancel(self._tasks, 0)
        for connection in self._everyone():
            connection.give_up(OrpheusError("draining", RELOADING))
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                self._written.clear()
                self.settle()
                await self._written.wait()

    def hand_over(self) -> tuple[int, list[Client]]:
        """The listening socket, and what is left to do for the clients."""
        if self._listening is None:
            raise RuntimeError("the door is not held")
        handed = [connection.hand_over() for connection in self._connections]
        return self._listening, [client for client in handed if client is not None]

    def _everyone(self) -> list[Connection]:
        return [*self._connections, *self._fronts]

    async def close(self, timeout_s: float) -> None:
        """Let operations finish, and clients read their answers, for `timeout_s`; then let go of both."""
        self.stop_accepting()
        by = asyncio.get_running_loop().time() + timeout_s
        await self._cancel(self._tasks, timeout_s)
        for connection in list(self._connections):
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(by - asyncio.get_running_loop().time(), LAST_S)):
                await self._empty.wait()

    async def _cancel(self, tasks: set[asyncio.Task[None]], timeout_s: float) -> None:
        """Let operations finish for `timeout_s`, and then undo what they did."""
        late = (await asyncio.wait(tasks, timeout=timeout_s))[1] if tasks else set()
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=LAST_S)

    async def _carry_out(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        try:
            result = await work
            if result is not None:
                call.answer(result)
        except OrpheusError as error:
            call.refuse(error)
        except asyncio.CancelledError:
            why = "the daemon is stopping" if self._listening is None else RELOADING
            call.refuse(OrpheusError("draining", why))
        except Exception as error:  # nobody foresaw it: the daemon lives on for the other callers
            call.refuse(fault(call.operation, error))
