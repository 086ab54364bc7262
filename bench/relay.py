"""The least a runtime can do: hand bytes on, over Unix sockets, and hand the answer back.

`python -m bench.relay relay FRONT BACK` listens on FRONT and connects to BACK for each client;
`python -m bench.relay echo BACK` answers each line with the same fixed line. Together they are the bare two-hop
path (client, relay, echo process, and back) that one run over the control socket is measured against. They
decode nothing, log nothing and decide nothing.
"""

import asyncio
import contextlib
import socket
import sys
import threading
from pathlib import Path
from typing import cast

import uvloop

READ_BYTES = 256 * 1024


class Hop(asyncio.Protocol):
    """One end of a relayed connection. Invariant: bytes that come before `other` is there are kept in `early`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.write(data)

    def connection_lost(self, _error: Exception | None) -> None:
        if self.other is not None:
            self.other.close()


class Front(Hop):
    """The end a client dials. The connection behind it is made when the client's is."""

    def __init__(self, back: str) -> None:
        super().__init__()
        self.back = back
        self._dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        behind, hop = await asyncio.get_running_loop().create_unix_connection(Hop, self.back)
        hop.other, self.other = self.transport, behind
        behind.write(self.early)


async def relay(front: str, back: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(lambda: Front(back), front)
    print("ready", flush=True)
    await server.serve_forever()


def echo(back: str, answer: bytes) -> None:
    """Blocking, as a worker with a sync handler is; a thread for each connection."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(back)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, answer), daemon=True).start()


def _serve(connection: socket.socket, answer: bytes) -> None:
    with connection, contextlib.suppress(ConnectionError):
        while data := connection.recv(READ_BYTES):
            if lines := data.count(b"\n"):
                connection.sendall(answer * lines)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        if sys.argv[1] == "relay":
            uvloop.run(relay(sys.argv[2], sys.argv[3]))
        else:
            echo(sys.argv[2], Path(sys.argv[3]).read_bytes())
