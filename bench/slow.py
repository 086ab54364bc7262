"""`python -m bench.slow PORT IDLE READERS BODIES`: so many clients that cost a door patience, each kept up.

An idle one has been answered and asks no more. A reader asks for more than the kernel holds, as a stream or as one
long result, and takes a byte, or a little more, now and then. A body announces a megabyte, sends half of it, and then
a byte now and then. Those that the door has had enough of come again. For each line on stdin it prints how many there
are of each, as JSON, and how many came again.
"""

import asyncio
import json
import random
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import uvloop

#: Between two bytes: far too slow to be served, far too often to be idle.
EVERY_S = 1.0
#: Before somebody who was cut off, or could not connect, comes again.
AGAIN_S = 0.25
#: At once. The door's queue of those who wait to be accepted is longer.
CONNECTING = 50
#: What is not read shall be with the door, and not with the reader.
RECEIVE_BUFFER_BYTES = 4096
BODY_BYTES = 1_000_000
#: The kernel takes some 2.6 MB of an answer; a door has the rest.
LONG_BYTES = 3_000_000
#: What a reader takes that is not cut off: a piece of 256 KiB in less than the 30 s that it may take.
SLOW_BYTES = 16 * 1024
#: They come in this time and not all in one moment.
COME_S = 5.0

HEALTH = b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Crowd:
    """Invariant: `there` counts the clients that are as their kind should be."""

    def __init__(self, port: int) -> None:
        self.there: Counter[str] = Counter(idle=0, readers=0, bodies=0, again=0)
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._connecting = asyncio.Semaphore(CONNECTING)

    async def keep(self, kind: str, begin: Callable[[socket.socket], Awaitable[None]],
                   go_on: Callable[[socket.socket], Awaitable[None]]) -> None:
        """One client, for ever: when it has begun it is there, until `go_on` finds that the door ended it."""
        await asyncio.sleep(random.uniform(0, COME_S))
        while True:
            with socket.socket() as client, suppress(OSError):
                client.setblocking(False)
                if kind == "readers":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                async with self._connecting:
                    await self._loop.sock_connect(client, ("127.0.0.1", self._port))
                    await begin(client)
                self.there[kind] += 1
                try:
                    await go_on(client)
                finally:
                    self.there[kind] -= 1
            self.there["again"] += 1
            await asyncio.sleep(random.uniform(0, 2 * AGAIN_S))

    async def be_answered(self, client: socket.socket) -> None:
        await self._loop.sock_sendall(client, HEALTH)
        await self._received(client, 4096)

    async def do_nothing(self, client: socket.socket) -> None:
        await self._received(client, 4096)

    async def ask_for_a_stream(self, client: socket.socket) -> None:
        body = b'{"input": {"pieces": 100, "bytes": 1}}'
        await self._loop.sock_sendall(client, _run(body, len(body), "Accept: text/event-stream"))

    async def ask_for_much(self, client: socket.socket) -> None:
        body = b'{"input": {"pieces": 0, "bytes": %d}}' % LONG_BYTES
        await self._loop.sock_sendall(client, _run(body, len(body)))

    async def read_bytes(self, client: socket.socket) -> None:
        await self._read(client, 1)

    async def read_slowly(self, client: socket.socket) -> None:
        await self._read(client, SLOW_BYTES)

    async def _read(self, client: socket.socket, most: int) -> None:
        while True:
            await self._received(client, most)
            await asyncio.sleep(EVERY_S)

    async def send_half(self, client: socket.socket) -> None:
        await self._loop.sock_sendall(client, _run(b" " * (BODY_BYTES // 2), BODY_BYTES))

    async def send_slowly(self, client: socket.socket) -> None:
        answered = self._loop.create_task(self._received(client, 4096))
        while not answered.done():
            await self._loop.sock_sendall(client, b" ")
            await asyncio.wait([answered], timeout=EVERY_S)
        answered.result()

    async def _received(self, client: socket.socket, most: int) -> None:
        """Raises OSError at the end of the connection."""
        if not await self._loop.sock_recv(client, most):
            raise ConnectionResetError


def _run(body: bytes, length: int, *headers: str) -> bytes:
    head = ["POST /v1/agents/lengthy/run HTTP/1.1", "Host: localhost", "Content-Type: application/json",
            f"Content-Length: {length}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


async def main(port: int, idle: int, readers: int, bodies: int) -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd(port)
    ways = [*[("idle", crowd.be_answered, crowd.do_nothing)] * idle,
            *[("readers", ask, read) for ask in (crowd.ask_for_a_stream, crowd.ask_for_much)
              for read in (crowd.read_bytes, crowd.read_slowly)] * (readers // 4),
            *[("bodies", crowd.send_half, crowd.send_slowly)] * bodies]
    clients = [loop.create_task(crowd.keep(*way)) for way in ways]
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(crowd.there), flush=True)
    for client in clients:
        client.cancel()
    await asyncio.wait(clients)


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
