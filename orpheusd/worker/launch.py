"""The facts a template and its workers are born with: the launch line, the setup, the birth of one worker.

It reads them and checks their shape; it does nothing with them.
"""

import json
import os
import select
import time
from dataclasses import dataclass, fields
from typing import Any

#: Exit codes of templates and workers that leave by themselves. A worker that obeyed `stop` leaves with 0.
EXIT_CANNOT_START = 1
EXIT_CHANNEL = 70  # EX_SOFTWARE: the channel is broken or lies
EXIT_CANNOT_FORK = 71  # EX_OSERR: reported for a worker that never came to be

#: The launch line is there when we start.
LAUNCH_LIMIT_S = 10.0
LAUNCH_LINE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Launch:
    """The one line on a template's stdin."""

    template_id: str
    nonce: str
    socket: str

    @classmethod
    def read(cls, line: bytes) -> "Launch":
        return cls(**_checked(cls, json.loads(line)))


@dataclass(frozen=True, slots=True)
class Setup:
    """The payload of `setup`: what an agent version is, and where its things are in this sandbox."""

    agent: str
    version: int
    module: str
    entrypoint: str
    concurrency: int
    preload: bool
    env: dict[str, str]
    code_dir: str
    workspace_dir: str
    result_limit_bytes: int
    orphan_ttl_s: float
    isolation: str

    @classmethod
    def read(cls, payload: bytes) -> "Setup":
        return cls(**_checked(cls, json.loads(payload)))


@dataclass(frozen=True, slots=True)
class Birth:
    """What a forked child needs to become a worker. `sheet` is the fd of its stack sheet."""

    worker_id: str
    nonce: str
    socket: str
    setup: Setup
    sheet: int


def read_launch() -> Launch:
    """The line on stdin; stdin is /dev/null from then on."""
    data = b""
    deadline = time.monotonic() + LAUNCH_LIMIT_S
    poll = select.poll()
    poll.register(0, select.POLLIN)
    while not data.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or len(data) > LAUNCH_LINE_LIMIT_BYTES:
            raise ValueError("no launch line came on stdin")
        if poll.poll(left_s * 1000):
            piece = os.read(0, 4096)
            if not piece:
                raise ValueError("stdin ended before the launch line did")
            data += piece
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    return Launch.read(data)


def _checked(kind: Any, value: Any) -> dict[str, Any]:
    """The fields of `kind` in `value`; more than these are left alone, so that a newer daemon may say more."""
    if not isinstance(value, dict):
        raise ValueError(f"{kind.__name__} must be a JSON object")
    facts: dict[str, Any] = {}
    for field in fields(kind):
        if field.name not in value:
            raise ValueError(f"{kind.__name__} lacks {field.name!r}")
        given = value[field.name]
        wanted = dict if field.name == "env" else field.type
        if given.__class__ is not wanted:
            raise ValueError(f"{kind.__name__}: {field.name!r} must not be {given!r}"[:200])
        facts[field.name] = given
    return facts
