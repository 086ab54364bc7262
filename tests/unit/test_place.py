"""The socket that somebody else made is still there when its server is closed: systemd goes on with it."""

import asyncio
import socket
from pathlib import Path

import pytest
import uvloop

from orpheusd.doors import place

#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_given_socket_stays_when_its_server_is_closed(tmp_path: Path, new_loop: object) -> None:
    path = tmp_path / "ctl.sock"
    with socket.socket(socket.AF_UNIX) as given, socket.socket(socket.AF_UNIX) as later:
        given.bind(str(path))
        given.listen()

        async def serve() -> None:
            server = await place.listen(path, asyncio.Protocol, None, given.dup())
            server.close()
            await server.wait_closed()

        with asyncio.Runner(loop_factory=new_loop) as runner:  # type: ignore[arg-type]  # both make loops
            runner.run(serve())
        later.connect(str(path))
