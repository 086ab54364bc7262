"""The read ends of the workers' stdout and stderr, as the template holds them.

This way the output of C code, of subprocesses and the last words of a crash survive the worker. A drain always
reads, so that nobody blocks on a full pipe for long; what exceeds the rate is dropped and counted. It reads
fds and cuts lines; how a line is sent is handed in.
"""

import fcntl
import os
import select
from collections.abc import Callable
from typing import NamedTuple

from orpheusd.worker.budget import TokenBucket

#: What a worker may write past Python: at first, and then per second.
BURST_BYTES = 1024 * 1024
RATE_BYTES_S = 256 * 1024
#: What a line counts for beside its text, so that empty lines cannot become a flood of messages.
LINE_COST_BYTES = 64
LINE_LIMIT_BYTES = 16 * 1024
READ_BYTES = 64 * 1024
#: Reads at one time: a pipe that is filled as fast as we read must not keep us from forking.
READS_AT_ONCE = 4
#: More than a pipe can hold.
LAST_READS = 16
#: A pipe over its rate is left alone this long. With its size it still passes 100 MB/s, and costs little.
PAUSE_S = 0.002
#: The most that pipes may have by default without privileges is 1 MiB each, 64 MiB a user.
PIPE_BYTES = 256 * 1024


class Line(NamedTuple):
    """A line to send, and how many bytes of this worker's were dropped before it."""

    text: str
    dropped_bytes: int


class Drain:
    """One pipe of one worker.

    Invariant: `_partial` holds no newline and at most one full line; every byte read is in a line, in
    `_partial`, or counted as dropped.
    """

    def __init__(self, fd: int, worker_id: str, stream: str, bucket: TokenBucket) -> None:
        self.fd = fd
        self.worker_id = worker_id
        self.stream = stream
        self.dropped_bytes = 0
        self.paused_until = 0.0
        self._bucket = bucket
        self._partial = b""
        self._skipping = False

    def read(self, now: float, reads: int) -> tuple[list[Line], bool]:
        """What has come, as lines; and whether the pipe has ended."""
        lines: list[Line] = []
        for _ in range(reads):
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return lines, False
            except OSError:
                data = b""
            if not data:
                return lines, True
            self._cut(data, lines, now)
        return lines, False

    def rest(self, now: float) -> list[Line]:
        """The line that was begun and will not be ended, or an empty one that only says what was dropped."""
        lines: list[Line] = []
        partial, self._partial = self._partial, b""
        if partial:
            self._add(partial, 0, lines, now)
        if self.dropped_bytes:
            lines.append(Line("", self._take_dropped()))
        return lines

    def refused(self, line: Line) -> None:
        """The channel did not take `line`."""
        self.dropped_bytes += len(line.text.encode()) + line.dropped_bytes

    def _cut(self, data: bytes, lines: list[Line], now: float) -> None:
        if self._skipping or self._bucket.exhausted(now):
            data = self._skip(data, now)
        start = 0
        while True:
            end = data.find(b"\n", start)
            if end < 0:
                break
            line, self._partial = self._partial + data[start:end], b""
            start = end + 1
            if not self._add(line, 1, lines, now):
                data, start = self._skip(data[start:], now), 0
        self._partial += data[start:]
        while len(self._partial) >= LINE_LIMIT_BYTES:
            line, self._partial = self._partial[:LINE_LIMIT_BYTES], self._partial[LINE_LIMIT_BYTES:]
            if not self._add(line, 0, lines, now):
                self._skip(b"", now)

    def _skip(self, data: bytes, now: float) -> bytes:
        """Drop all whole lines of `data`; what is returned begins a line."""
        self.paused_until = now + PAUSE_S
        cut = data.rfind(b"\n") + 1
        self.dropped_bytes += len(self._partial) + (cut or len(data))
        self._partial = b""
        self._skipping = cut == 0
        return data[cut:] if cut else b""

    def _add(self, line: bytes, ending_bytes: int, lines: list[Line], now: float) -> bool:
        for start in range(0, len(line) or 1, LINE_LIMIT_BYTES):
            piece = line[start:start + LINE_LIMIT_BYTES]
            if not self._bucket.take(len(piece) + LINE_COST_BYTES, now):
                self.dropped_bytes += len(line) - start + ending_bytes
                return False
            lines.append(Line(piece.decode("utf-8", "backslashreplace"), self._take_dropped()))
        return True

    def _take_dropped(self) -> int:
        dropped, self.dropped_bytes = self.dropped_bytes, 0
        return dropped


class Drains:
    """All pipes of a template's workers.

    Invariant: a drain is known to the poll unless it is paused; it is closed when its pipe ended or its worker's
    time is up, and then everything it read was offered to `say(worker_id, stream, line)`.
    """

    def __init__(self, poll: select.poll, say: Callable[[str, str, Line], bool]) -> None:
        self._poll = poll
        self._say = say
        self._drains: dict[int, Drain] = {}
        self._paused: set[int] = set()

    def add(self, worker_id: str, stdout: int, stderr: int, now: float) -> None:
        bucket = TokenBucket(BURST_BYTES, RATE_BYTES_S, now)
        for fd, stream in ((stdout, "stdout"), (stderr, "stderr")):
            self._drains[fd] = Drain(fd, worker_id, stream, bucket)
            self._poll.register(fd, select.POLLIN)

    def due(self) -> list[float]:
        """When the paused pipes want to be read again."""
        return [self._drains[fd].paused_until for fd in self._paused]

    def read(self, fd: int, now: float) -> None:
        """The poll says that there is something."""
        drain = self._drains[fd]
        if self._pass_on(drain, now, READS_AT_ONCE):
            self._close(drain, now)
        elif drain.paused_until > now:
            self._poll.unregister(fd)
            self._paused.add(fd)

    def resume(self, now: float) -> None:
        """Listen again to the pipes whose pause is over."""
        for fd in [fd for fd in self._paused if self._drains[fd].paused_until <= now]:
            self._paused.discard(fd)
            self._poll.register(fd, select.POLLIN)

    def is_open(self, worker_id: str) -> bool:
        return any(drain.worker_id == worker_id for drain in self._drains.values())

    def finish(self, worker_id: str, now: float) -> None:
        """Take the last words of a worker whose pipes somebody still holds open."""
        for drain in [drain for drain in self._drains.values() if drain.worker_id == worker_id]:
            self._pass_on(drain, now, LAST_READS)
            self._close(drain, now)

    def _pass_on(self, drain: Drain, now: float, reads: int) -> bool:
        lines, ended = drain.read(now, reads)
        for line in lines:
            if not self._say(drain.worker_id, drain.stream, line):
                drain.refused(line)
        return ended

    def _close(self, drain: Drain, now: float) -> None:
        for line in drain.rest(now):
            self._say(drain.worker_id, drain.stream, line)
        del self._drains[drain.fd]
        if drain.fd in self._paused:
            self._paused.discard(drain.fd)
        else:
            self._poll.unregister(drain.fd)
        os.close(drain.fd)


def open_pipe() -> tuple[int, int]:
    """A pipe for a worker's output: our end does not block, and neither end passes an exec. Raises OSError."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # the user's pipes are at their limit: the default size only means more turns
    return reader, writer
