"""One request at the control door, from its frame to its answer.

It says once how the request ended: to whoever asked, and to the audit log when it was a change.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson

from orpheusd.audit import digest_of
from orpheusd.errors import OrpheusError
from orpheusd.operations import AGENT_NAME, Access, Operation
from orpheusd.wire.control import INVALID_PARAMS, SERVER_ERROR, event, refusal

if TYPE_CHECKING:
    from orpheusd.doors.connection import Connection


class Call:
    """One request of a connection, until it is answered. Invariant: answered at most once."""

    __slots__ = ("_connection", "_gone", "_over", "_params", "id", "operation")

    def __init__(
        self, connection: "Connection", id: str | int | None, operation: Operation, params: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._params = params
        self._gone: Callable[[], None] | None = None
        self._over = False
        self.id = id
        self.operation = operation

    @property
    def source(self) -> str:
        """Which door the caller came through: `ctl` or `http`."""
        return self._connection.source

    @property
    def caller(self) -> str:
        """Who asks, as the run log has it."""
        peer = self._connection.peer
        return "" if peer is None or self.source == "http" else f"uid {peer.uid}, pid {peer.pid}"

    def answer(self, result: Any) -> None:
        """Answer with `result`, which may hold orjson fragments."""
        connection = self._connection
        connection.done(self)
        if self._ends("done", result) and self.id is not None:
            connection.write(orjson.dumps({"jsonrpc": "2.0", "id": self.id, "result": result}))

    def refuse(self, error: OrpheusError) -> None:
        self._connection.done(self)
        if self._ends(error.code, None) and self.id is not None:
            number = INVALID_PARAMS if error.code == "invalid-request" else SERVER_ERROR
            self._connection.write(orjson.dumps(refusal(self.id, error, number)))

    def event(self, params: dict[str, Any]) -> None:
        """Send a notification of this call's stream."""
        if self.id is not None and not self._over:
            self._connection.write_event(orjson.dumps(event(self.id, self.operation.name, params)))

    def on_gone(self, callback: Callable[[], None]) -> None:
        """Call `callback` if the caller leaves before the answer, or has left already."""
        self._gone = callback
        if self._connection.lost or self._connection.silent:
            self._connection.done(self)
            callback()

    def at_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the caller's connection ends, whatever has become of this call."""
        self._connection.at_end(callback)

    @property
    def watches_caller(self) -> bool:
        """Whether it is over when its caller leaves."""
        return self._gone is not None

    def abandoned(self) -> None:
        if self._gone is not None:
            self._gone()

    def _ends(self, outcome: str, result: Any) -> bool:
        """Whether it ends with this: it does so once. A change is told to the audit log; the agent it was about may be
        named by its result alone."""
        if self._over:
            return False
        self._over = True
        operation, params = self.operation, self._params
        if operation.access is Access.ADMIN:
            connection = self._connection
            agent = params.get("agent", result.get("name") if isinstance(result, dict) else None)
            named = isinstance(agent, str) and AGENT_NAME.fullmatch(agent) is not None
            connection.audit.note(connection.asker, operation.name, agent if named else None,
                                  digest_of(operation, params), outcome)
        return True
