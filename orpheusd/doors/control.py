"""The control door: JSON-RPC over a Unix socket, served to whoever the kernel says may have it.

It has the listening socket, the connections and what they have asked for that takes time. It knows nothing of what an
operation does; what is said on a connection is that connection's business.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from orpheusd.doors.connection import Call, Connection, fault
from orpheusd.doors.place import listen
from orpheusd.doors.rights import gid_of
from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, Access
from orpheusd.service import Service

#: Connections at a time; a client that needs more should use one connection for many requests.
CLIENTS_LIMIT = 512
#: The least that operations get to undo what they did, and clients to read the answers they have.
LAST_S = 0.2


class ControlDoor:
    """The listening socket and its connections.

    Invariant: at most CLIENTS_LIMIT of them. When there would be more, the one that has been idle longest goes.
    """

    def __init__(self, service: Service, admin_group: str) -> None:
        self.admin_group = admin_group
        self.dropped_events = 0
        self.methods: dict[str, Callable[[Call, dict[str, Any]], Any]] = {
            name: getattr(service, name.replace(".", "_")) for name in BY_NAME
        }
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.AbstractServer | None = None

    async def open(self, path: Path) -> None:
        """Listen on `path`. The caller holds the directory's lock, and has asked `check_place`."""
        gid = gid_of(self.admin_group) if os.geteuid() == 0 else None
        self._server = await listen(path, lambda: Connection(self, "ctl", None), gid)

    async def adopt(self, sock: Any, source: str, rights: Access) -> None:
        """Serve an already connected socket, such as a front door's, with exactly `rights`."""
        await asyncio.get_running_loop().create_unix_connection(
            lambda: Connection(self, source, rights), sock=sock)

    def admit(self, connection: Connection) -> None:
        """Make room for one more. Raises OrpheusError(overloaded) when nobody can go for it."""
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
        if not self._connections:
            self._empty.set()

    def spawn(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        """Carry out an operation that takes time; it goes on if its caller leaves."""
        task = asyncio.get_running_loop().create_task(self._carry_out(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop_accepting(self) -> None:
        if self._server is not None:
            self._server.close()

    async def close(self, timeout_s: float) -> None:
        """Let operations finish, and clients read their answers, for `timeout_s`; then let go of both."""
        self.stop_accepting()
        by = asyncio.get_running_loop().time() + timeout_s
        late = (await asyncio.wait(self._tasks, timeout=timeout_s))[1] if self._tasks else set()
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late, timeout=LAST_S)
        for connection in list(self._connections):
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(by - asyncio.get_running_loop().time(), LAST_S)):
                await self._empty.wait()

    async def _carry_out(self, call: Call, work: Coroutine[Any, Any, Any]) -> None:
        try:
            result = await work
            if result is not None:
                call.answer(result)
        except OrpheusError as error:
            call.refuse(error)
        except asyncio.CancelledError:
            call.refuse(OrpheusError("draining", "the daemon is stopping"))
        except Exception as error:
            call.refuse(fault(call.operation, error))
