"""Where the processes of one template dial home: a listening Unix socket, and how many may come through it.

Whoever is in the sandbox can connect there as fast as the kernel lets it, and each connection costs the daemon a tenth
of a millisecond. Those that turn out to be a template or a worker are free; of others so many are let in at first, and
then so many a second. The rest wait in the kernel's queue, together with whoever else of that sandbox dials just then.
"""

import asyncio
import socket

from orpheusd.process.channel import Channel, Listener
from orpheusd.process.pidfds import PidFd
from orpheusd.process.shares import Shares

#: Connections that nobody believed: at first, and then per second, some 2 % of a processor. A worker that outlived a
#: daemon may dial a few times before its template has told of it.
STRANGERS_BURST = 512
STRANGERS_RATE_S = 200
#: Connections that have not said who they are; each costs two descriptors for a while.
STRANGERS_INSIDE = 64
#: So many may wait in the kernel's queue.
BACKLOG = 100
#: How long nobody is let in when there were too many, or no descriptor is left.
PAUSE_S = 0.05


class Entrance:
    """Invariant: one connection is accepted each time the loop comes round, and none while `_allowed` is below 1;
    `_inside` are those that have not been met."""

    def __init__(self, path: str, home: str, listener: Listener, shares: Shares) -> None:
        """Let in who dials `path`, into channels of template `home`. Raises OSError when it cannot listen there."""
        self._home = home
        self._listener = listener
        self._shares = shares
        self._loop = asyncio.get_running_loop()
        self._allowed = float(STRANGERS_BURST)
        self._counted_at = self._loop.time()
        self._inside = 0
        self._resuming: asyncio.TimerHandle | None = None
        self._seating: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(path)
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self._listen()

    def close(self) -> None:
        """Let nobody in any more. Those who are in stay."""
        if self._resuming is not None:
            self._resuming.cancel()
        else:
            self._loop.remove_reader(self._socket)
        self._socket.close()

    def _listen(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._socket, self._admit)

    def _pause(self) -> None:
        self._loop.remove_reader(self._socket)
        self._resuming = self._loop.call_later(PAUSE_S, self._listen)

    def _admit(self) -> None:
        now = self._loop.time()
        self._allowed = min(STRANGERS_BURST, self._allowed + (now - self._counted_at) * STRANGERS_RATE_S)
        self._counted_at = now
        if self._allowed < 1:
            self._pause()
            return
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            self._pause()
            return
        self._allowed -= 1
        if self._inside >= STRANGERS_INSIDE:
            connection.close()
            return
        channel = Channel(self._listener, self._home, self._shares, self._met)
        try:
            channel.process = PidFd.of_peer(connection)
        except OSError:
            connection.close()
            return
        self._inside += 1
        task = self._loop.create_task(self._seat(channel, connection))
        self._seating.add(task)
        task.add_done_callback(self._seating.discard)

    async def _seat(self, channel: Channel, connection: socket.socket) -> None:
        connection.setblocking(False)
        await self._loop.connect_accepted_socket(lambda: channel, connection)

    def _met(self, believed: bool) -> None:
        self._inside -= 1
        if believed:
            self._allowed += 1
