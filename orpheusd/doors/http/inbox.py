"""What a client sends, on its way to the task that answers it, and the task group that starts such tasks.

Hypercorn's own queue blocks its connection for ever when a request was answered before its body was read; this one
does not. It knows nothing of what the messages say beyond `http.disconnect`.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup

#: Messages that wait; each is at most one read of 64 KiB.
INBOX_LIMIT = 8

_DISCONNECT = {"type": "http.disconnect"}


class Inbox:
    """A bounded queue with one reader and one writer.

    Invariant: holds at most `INBOX_LIMIT` messages. Once the client is gone nothing blocks: what it sent before can
    still be read, what comes after is dropped, and then every `get` says that it is gone.
    """

    def __init__(self) -> None:
        self._messages: deque[Any] = deque()
        self._gone = False
        self._waiter: asyncio.Future[None] | None = None

    async def put(self, message: Any) -> None:
        if message["type"] == "http.disconnect":
            self._gone = True
            self._wake()
            return
        while len(self._messages) >= INBOX_LIMIT and not self._gone:
            await self._wait()
        if not self._gone:
            self._messages.append(message)
            self._wake()

    async def get(self) -> Any:
        while not self._messages:
            if self._gone:
                return _DISCONNECT
            await self._wait()
        message = self._messages.popleft()
        self._wake()
        return message

    async def _wait(self) -> None:
        # The reader waits only when it is empty and the writer only when it is full, so one of them at a time; but the
        # other may have been woken and not have run yet.
        waiter = self._waiter = asyncio.get_running_loop().create_future()
        try:
            await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Tasks(TaskGroup):
    """Hypercorn's task group of one connection, with an `Inbox` for each request."""

    async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Callable[[Any], Awaitable[None]]:
        inbox = Inbox()
        self.spawn(_answer, app, scope, inbox.get, send)
        return inbox.put


async def _answer(app: Any, scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    finally:
        await send(None)
