"""`python -m orpheusd.doors.http --listen-fd N --control-fd M`: the process of an HTTP door, started by the daemon.

It lives as long as its control connection: when the daemon is gone, or says `stop`, it accepts no more, ends its
streams, lets what is being answered finish within the grace, and exits. When the daemon says `drain` it accepts no
more either, and leaves when everybody it had accepted was answered, however long that takes. Both are said over that
connection, where a door that is still starting finds them; a signal would be lost to it, which is the init of its
sandbox (pid_namespaces(7)). SIGTERM, from whoever sends it, is `stop`.
"""

import argparse
import asyncio
import logging
import os
import resource
import signal
import socket
import sys

import uvloop

from orpheusd.doors.http.bearer import Bearer
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.complaints import Complaints
from orpheusd.doors.http.door import Door
from orpheusd.doors.http.limits import Limits, with_overrides
from orpheusd.doors.http.routes import routes
from orpheusd.doors.http.server import Server
from orpheusd.doors.http.streams import Room
from orpheusd.doors.http.waits import Waits
from orpheusd.errors import OrpheusError
from orpheusd.heap import give_back_large_blocks, spare_what_is_there
from orpheusd.operations import Access
from orpheusd.wire.control import DRAIN, STOP

#: Files for everything that is not a client: the loop's own, the listening sockets, the log, some to spare.
RESERVED_FILES = 64

_CLOSING = OrpheusError("draining", "the HTTP door is closing; the run goes on")


def main() -> int:
    options = _options()
    give_back_large_blocks()
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s http door %(levelname)s: %(message)s")
    try:
        limits = with_overrides(options.limit)
    except OrpheusError as error:
        print(f"orpheusd.doors.http: {error}", file=sys.stderr)
        return 2
    listeners = [socket.socket(fileno=fd) for fd in options.listen_fd]
    for listener in listeners:
        listener.setblocking(False)
    control = socket.socket(fileno=options.control_fd)
    digest = None
    if options.token_fd is not None:
        with os.fdopen(options.token_fd, "rb") as stream:
            digest = stream.read()
    bearer = Bearer(digest, [Access(value) for value in options.guard])
    limits = limits._replace(connections=max(1, min(limits.connections, _files() - RESERVED_FILES)))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(listeners, control, limits, bearer))
    return 0


async def _serve(
    listeners: list[socket.socket], control: socket.socket, limits: Limits, bearer: Bearer
) -> None:  # fmt: skip
    loop = asyncio.get_running_loop()
    closing = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, closing.set)
    # Ctrl-C in a terminal reaches the daemon too, which then decides.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    complaints = Complaints()
    loop.set_exception_handler(complaints.loop_failed)
    draining = asyncio.Event()
    client = ControlClient(Room(limits.stream_queue_bytes, limits.streams_bytes), on_lost=closing.set,
                           orders={DRAIN: draining.set, STOP: closing.set})
    waits = Waits()
    server = Server(Door(routes(client, limits, bearer, waits), limits, complaints), limits, waits, complaints)
    await loop.create_unix_connection(lambda: client, sock=control)
    server.start(listeners)
    drained = loop.create_task(_drain(server, draining))
    drained.add_done_callback(lambda _: closing.set())
    spare_what_is_there()
    await closing.wait()
    drained.cancel()
    client.end_streams(_CLOSING)
    await server.stop(limits.grace_s)
    client.close()


async def _drain(server: Server, told: asyncio.Event) -> None:
    await told.wait()
    await server.drain()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orpheusd.doors.http", description=__doc__.partition("\n")[0])
    parser.add_argument("--listen-fd", type=int, action="append", required=True, metavar="N",
                        help="an inherited listening socket; may be given more than once")
    parser.add_argument("--control-fd", type=int, required=True, metavar="M",
                        help="an inherited Unix stream socket, connected to the daemon")
    parser.add_argument("--token-fd", type=int, metavar="N",
                        help="an inherited pipe with the digest of the token; without it nobody has the token")
    parser.add_argument("--guard", action="append", default=[], choices=[access.value for access in Access],
                        help="what is of this access class needs the token; changes are served only so")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE",
                        help="another value for one of the limits of docs/http.md")
    return parser.parse_args()


def _files() -> int:
    """How many files this process may open, after asking for all that the system grants it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = Limits().connections + RESERVED_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


if __name__ == "__main__":
    sys.exit(main())
