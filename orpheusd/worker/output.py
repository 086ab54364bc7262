"""sys.stdout and sys.stderr of a worker: each line becomes a `log` message, tagged with the run that wrote it.

Which run that is follows the context of whoever writes, so it is right with several runs at a time; what is
written outside any run, and by anything that outlives its run, belongs to no run. Writing never waits: what
exceeds the caps or the channel's backlog is dropped and counted. The fds 1 and 2 stay what they were (pipes
that the template drains), for subprocesses and C code. It knows nothing of handlers.
"""

import io
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, TextIO, cast

from orpheusd.worker.budget import Allowance, TokenBucket
from orpheusd.worker.channel import Channel

#: What one run may print; the rest is counted.
RUN_LIMIT_BYTES = 1024 * 1024
#: What a worker may print outside of runs: at first, and then per second.
IDLE_BURST_BYTES = 1024 * 1024
IDLE_RATE_BYTES_S = 128 * 1024
#: What a line counts for at least, so that empty lines cannot become a flood of messages.
LINE_COST_BYTES = 64
#: A longer line is cut into several. Text beyond ASCII is cut earlier: a character may take four bytes.
LINE_LIMIT_BYTES = 16 * 1024
#: Lines that threads began and never ended; each may hold one line's worth.
OPEN_LINES_LIMIT = 64


class Output:
    """What one run, or the worker outside of runs, has printed.

    Invariant: an open line belongs to one thread and one stream, and holds no newline and less than a full
    line; `dropped_bytes` only grows.
    """

    def __init__(self, channel: Channel, worker_id: str, run_id: str | None, session_id: str | None) -> None:
        self.dropped_bytes = 0
        self._channel = channel
        self._worker_id = worker_id
        self._run_id = run_id
        self._session_id = session_id
        self._budget: Allowance | TokenBucket
        if run_id is None:
            self._budget = TokenBucket(IDLE_BURST_BYTES, IDLE_RATE_BYTES_S, time.monotonic())
        else:
            self._budget = Allowance(RUN_LIMIT_BYTES)
        self._reported_bytes = 0
        self._open: dict[tuple[str, int], str] = {}
        self.over = False

    def write(self, stream: str, text: str) -> None:
        now = time.monotonic()
        if self._budget.exhausted(now):
            self.dropped_bytes += _size(text, 0)
            return
        key = (stream, threading.get_ident())
        start, queued = 0, False
        while True:
            end = text.find("\n", start)
            if end < 0:
                break
            if not self._line(stream, self._closed(key) + text[start:end], 1, now):
                self.dropped_bytes += _size(text, end + 1)
                start = len(text)
                break
            start, queued = end + 1, True
        if start < len(text):
            queued |= self._keep(key, text, start, now)
        if queued:
            self._channel.write()

    def flush(self) -> None:
        """Send the lines that were begun and not ended."""
        now = time.monotonic()
        for key in list(self._open):
            text = self._closed(key)
            if text:
                self._line(key[0], text, 0, now)
        self._channel.write()

    def finish(self) -> None:
        """The run is over: send what is left; whoever writes on in its context writes for no run."""
        if self._open:
            self.flush()
        self.over = True

    def _keep(self, key: tuple[str, int], text: str, start: int, now: float) -> bool:
        """Hold the begun line until its end comes, sending what fills a whole line; True when some was sent."""
        if key not in self._open and len(self._open) >= OPEN_LINES_LIMIT:
            self.flush()
        cut = start + RUN_LIMIT_BYTES + 1
        held = self._closed(key) + text[start:cut]
        step = _step(held)
        full = len(held) - len(held) % step
        if full and (not self._line(key[0], held[:full], 0, now) or cut < len(text)):
            self.dropped_bytes += _size(held, full) + _size(text, cut)
            return True
        if full < len(held):
            self._open[key] = held[full:]
        return full > 0

    def _closed(self, key: tuple[str, int]) -> str:
        return self._open.pop(key, "")

    def _line(self, stream: str, text: str, ending_bytes: int, now: float) -> bool:
        """Queue a line, in pieces if it is long. False when a piece was dropped, and all after it."""
        step = _step(text)
        for start in range(0, len(text) or 1, step):
            piece = text[start:start + step] if len(text) > step else text
            cost = max(_size(piece, 0) + ending_bytes, LINE_COST_BYTES)
            if not self._budget.take(cost, now) or not self._send(stream, piece):
                self.dropped_bytes += _size(text, start) + ending_bytes
                return False
        return True

    def _send(self, stream: str, text: str) -> bool:
        dropped = self.dropped_bytes
        fields = {
            "worker_id": self._worker_id,
            "run_id": self._run_id,
            "session_id": self._session_id,
            "stream": stream,
            "text": _sound(text),
            "dropped_bytes": dropped - self._reported_bytes,
        }
        sent = self._channel.log(fields, write=False)
        if not sent:
            self._channel.write()
            sent = self._channel.log(fields, write=False)
        if sent:
            self._reported_bytes = dropped
        return sent


class Switchboard:
    """Whose output a write is: the run of the writer's context, else the worker's own.

    Invariant: `idle` is None until the worker has a channel, and again in a process forked by the agent; the
    text then goes to the real fd.
    """

    def __init__(self) -> None:
        self.idle: Output | None = None
        self.running: ContextVar[Output | None] = ContextVar("orpheus_output", default=None)

    def output(self) -> Output | None:
        if self.idle is None:
            return None
        running = self.running.get()
        return self.idle if running is None or running.over else running


class LogStream(io.TextIOBase):
    """A text stream that sends lines through the switchboard. Invariant: it cannot be closed, and never waits."""

    encoding = "utf-8"
    errors = "backslashreplace"
    mode = "w"
    line_buffering = True

    def __init__(self, name: str, fd: int, switchboard: Switchboard) -> None:
        super().__init__()
        self.name = f"<{name}>"
        self._stream = name
        self._fd = fd
        self._switchboard = switchboard
        self.buffer = _BytesFace(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        output = self._switchboard.output()
        if output is not None:
            output.write(self._stream, text)
        else:
            _write_all(self._fd, text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[Any]) -> None:
        for line in lines:
            self.write(line)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Nothing: the next run prints too."""

    def reconfigure(self, **_: object) -> None:
        """Nothing: this stream is what it is. Libraries call this to get UTF-8, which it has."""


class _BytesFace(io.BufferedIOBase):
    """`sys.stdout.buffer`: bytes, read as UTF-8, on their way to the text stream."""

    def __init__(self, text: LogStream) -> None:
        super().__init__()
        self.raw = self
        self._text = text

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._text.write(bytes(view).decode("utf-8", "backslashreplace"))
        return len(view)

    def fileno(self) -> int:
        return self._text.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing, like the stream's own."""


#: One for this process: the streams are installed in the template, so that loggers made by a preloaded module
#: hold them, and each worker connects its own channel after the fork.
switchboard = Switchboard()


def install() -> None:
    """Put our streams in the place of sys.stdout and sys.stderr."""
    for real in (sys.__stdout__, sys.__stderr__):
        if isinstance(real, io.TextIOWrapper):
            real.reconfigure(line_buffering=True)  # what it buffered would come once from every fork
    sys.stdout = cast(TextIO, LogStream("stdout", 1, switchboard))
    sys.stderr = cast(TextIO, LogStream("stderr", 2, switchboard))


def _step(text: str) -> int:
    """Characters of `text` that make a full line."""
    return LINE_LIMIT_BYTES if text.isascii() else LINE_LIMIT_BYTES // 4


def _size(text: str, start: int) -> int:
    """Bytes of `text[start:]` in UTF-8."""
    if text.isascii():
        return max(0, len(text) - start)
    return len(text[start:].encode("utf-8", "surrogatepass"))


def _sound(text: str) -> str:
    """`text` without lone surrogates, which the supervisor's decoder refuses."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def _write_all(fd: int, data: bytes) -> None:
    try:
        while data:
            data = data[os.write(fd, data):]
    except OSError:
        pass  # the agent closed its own stdout
