"""Where the control socket is: whether there can be one, and how it comes to be there with the right mode."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpheusd.errors import OrpheusError

#: sun_path of unix(7) is 108 bytes with its final NUL.
SUN_PATH_BYTES = 107
#: What a template's own socket adds to the runtime directory: `/t/t-` and 6 digits, a number, `/worker.sock`.
TEMPLATE_BYTES = len("/t/t-abcdef-9999999/worker.sock")

#: Connections that wait to be accepted, while the daemon is busy or executes itself anew.
BACKLOG = 512

#: Behind the socket's name until it is right. One name for all: who makes it holds the directory's lock.
_NEW = ".new"

#: A server that is closed leaves its socket, which is its maker's. Python 3.13 takes it away unless told not to.
_STAYS: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


def check_place(path: Path) -> None:
    """Raises OrpheusError when there can be no control socket at `path`, or no socket of a template beside it."""
    most = SUN_PATH_BYTES - max(len(path.name + _NEW) + 1, TEMPLATE_BYTES)
    if len(os.fsencode(path.parent)) > most:
        raise OrpheusError("invalid-request", f"the path {path.parent} is too long for sockets in it (it may have "
                                              f"{most} bytes); choose a shorter one with --runtime-dir")
    if path.is_symlink() or (path.exists() and not path.is_socket()):
        raise OrpheusError("conflict", f"{path} exists and is not a socket; move it away")


async def listen(
    path: Path, client: Callable[[], asyncio.Protocol], gid: int | None, listening: socket.socket | None
) -> asyncio.Server:
    """A server on `path`, in place of a socket that nobody serves; for `gid`, if there is one, besides the owner. Or
    on a socket that was `listening` before we came, whose place and mode are its maker's.

    Never connectable with a wrong mode: bound under a temporary name, and renamed once it is right.
    """
    if listening is not None:
        return await asyncio.get_running_loop().create_unix_server(
            client, sock=listening, backlog=BACKLOG, **_STAYS)
    temporary = path.with_name(path.name + _NEW)
    temporary.unlink(missing_ok=True)
    umask = os.umask(0o177)
    try:
        server = await asyncio.get_running_loop().create_unix_server(
            client, str(temporary), backlog=BACKLOG, start_serving=False)
    finally:
        os.umask(umask)
    if gid is not None:
        os.chown(temporary, -1, gid)
        temporary.chmod(0o660)
    await server.start_serving()
    temporary.rename(path)
    return server
