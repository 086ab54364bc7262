"""What a daemon that executes itself anew hands to its next image: descriptors, and what was read and not yet begun.

It lies in a file without a name (memfd_create(2)), whose descriptor the next image finds in its environment. All else
that image learns as it would after a crash: from the disk and from the workers. Nothing here acts on any of it.
"""

import base64
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

#: Raised when a field changes its meaning: an image that finds another number takes nothing.
FORMAT = 2

STANDARD_ERROR = 2


class Client(NamedTuple):
    """One connection of the control door: what it has said that was not begun, and its calls that the next image
    answers, which are those that asked for the reload."""

    fd: int
    unread: bytes
    asked: list[str | int]


class Door(NamedTuple):
    """A front door: a child of ours that goes on, and its connection."""

    pid: int
    client: Client


class Handover(NamedTuple):
    """`paused_at` is on the monotonic clock, which all images have. `http` has nothing without a front door.
    `kept` names the doors whose sockets systemd has too."""

    version: str
    paused_at: float
    state_lock: int
    runtime_lock: int
    control: int
    http: list[int]
    kept: Sequence[str]
    clients: list[Client]
    doors: list[Door]

    @property
    def descriptors(self) -> list[int]:
        clients = [*self.clients, *(door.client for door in self.doors)]
        return [self.state_lock, self.runtime_lock, self.control, *self.http, *(client.fd for client in clients)]


def pack(handover: Handover) -> int:
    """A descriptor with all of it. It and the others are inheritable from now on: to be executed at once."""
    rows = {**handover._asdict(), "format": FORMAT, "clients": [_client_row(client) for client in handover.clients],
            "doors": [{"pid": door.pid, "client": _client_row(door.client)} for door in handover.doors]}
    fd = os.memfd_create("orpheus-handover", 0)
    with os.fdopen(fd, "w", closefd=False) as stream:
        json.dump(rows, stream)
    os.lseek(fd, 0, os.SEEK_SET)
    for inherited in handover.descriptors:
        os.set_inheritable(inherited, True)
    return fd


def unpack(fd: int) -> Handover | None:
    """What the image before has left; nothing of it is inheritable any more. None, and nothing of it is left open,
    when it cannot be understood: what else is there is then met as after a crash."""
    try:
        with os.fdopen(fd) as stream:
            rows = json.load(stream)
        handover = _handover(rows)
        for inherited in handover.descriptors:
            os.get_inheritable(inherited)  # all are there
    except (OSError, ValueError, KeyError, TypeError):
        _close_inherited()
        return None
    for inherited in handover.descriptors:
        os.set_inheritable(inherited, False)
    return handover


def _close_inherited() -> None:
    """What this image has opened itself, such as its loop, is not inheritable; what came from the one before is."""
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        with suppress(OSError):
            if number > STANDARD_ERROR and os.get_inheritable(number):
                os.close(number)


def _handover(rows: dict[str, Any]) -> Handover:
    if rows.pop("format") != FORMAT:
        raise ValueError("another format")
    doors = [Door(row["pid"], _client(row["client"])) for row in rows.pop("doors")]
    return Handover(**{**rows, "clients": [_client(row) for row in rows["clients"]], "doors": doors})


def _client_row(client: Client) -> dict[str, Any]:
    return {**client._asdict(), "unread": base64.b64encode(client.unread).decode()}


def _client(row: dict[str, Any]) -> Client:
    return Client(row["fd"], base64.b64decode(row["unread"]), row["asked"])
