"""The audit log: one line of JSON for every change that somebody asked for at a door, refused ones too.

It tells who, what and how it ended, and never a value: of what was asked there is a digest, in which variables count
by their names only and a piece of a bundle not at all. It decides nothing. A disk that is full costs lines, which the
next one counts.
"""

import errno
import hashlib
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from orpheusd.operations import Operation

log = logging.getLogger(__name__)

#: Some 30 000 changes; the file before it is kept.
FILE_LIMIT_BYTES = 8 * 1024 * 1024
#: Lines that wait for a disk that hangs.
WAITING_LIMIT = 10_000


class Asker(NamedTuple):
    """Who asked: the process at the other end of a connection, as the kernel tells, and the door it came through."""

    source: str
    uid: int
    pid: int
    exe: str


class Audit:
    """Invariant: lines are written in order, by one thread; the two files are bounded. `_given` is counted by the
    loop, `_taken` and `_lost` by the thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_name(f"{path.name}.1")
        self._thread = ThreadPoolExecutor(1, "audit")
        self._given = self._taken = self._lost = 0

    def note(self, asker: Asker, operation: str, agent: str | None, digest: str, outcome: str) -> None:
        """`outcome` is `done` or the code of the refusal."""
        if self._given - self._taken >= WAITING_LIMIT:
            log.error("the disk does not keep up: %s by uid %d is not in the audit log", operation, asker.uid)
            return
        row = {"time": round(time.time(), 3), **asker._asdict(), "operation": operation, "agent": agent,
               "params": digest, "outcome": outcome}  # fmt: skip
        self._given += 1
        self._thread.submit(self._write, row)

    def close(self, timeout_s: float) -> None:
        """Write down what is left, as far as the disk takes it within `timeout_s`."""
        wait([self._thread.submit(_nothing_left)], timeout_s)
        self._thread.shutdown(wait=False)

    def _write(self, row: dict[str, Any]) -> None:
        self._taken += 1
        if self._lost:
            row = {**row, "lost_before": self._lost}
        try:
            if self._path.exists() and self._path.stat().st_size > FILE_LIMIT_BYTES:
                self._path.replace(self._older)
            line = orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "ab", buffering=0) as stream:
                if stream.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "it was cut")
            self._lost = 0
        except OSError as error:
            self._lost += 1
            log.warning("the audit log has lost a line: %s", error)


def digest_of(operation: Operation, params: Mapping[str, Any]) -> str:
    """The same for the same request, whoever asks and whenever. Values that may be secrets have no part in it, nor
    has a piece of a bundle: this is done on the loop.

    Of what is nested deeper than JSON is written here, which no operation takes, there is none.
    """
    named = {param.name for param in operation.params if param.kind == "strings"}
    bulky = {param.name for param in operation.params if param.kind == "piece"}
    plain = {name: sorted(value) if name in named and isinstance(value, dict) else value
             for name, value in params.items() if name not in bulky}
    try:
        text = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return ""
    return hashlib.sha256(text).hexdigest()


def _nothing_left() -> None:
    """Done in the thread once all that came before it is."""
