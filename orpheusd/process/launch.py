"""Starts a template, listens to what it prints, and ends it with everything it started.

It execs and never forks. It knows a template as a command and some processes: what is said over worker.sock is
not its business, and the output here is only what is printed before, or past, that.
"""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from io import FileIO
from pathlib import Path

from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd
from orpheusd.process.sandbox import SANDBOX_TAG, Command
from orpheusd.process.spawn import Spawned, spawn

#: The launch line is written into the pipe before anybody reads it, so it must fit: a pipe holds 64 KiB.
LAUNCH_LINE_LIMIT_BYTES = 32 * 1024

#: Longer lines are passed on in pieces.
LINE_LIMIT_BYTES = 8 * 1024

#: A template has little to say itself, a build of many packages some 100 kB. After this much the pipe is closed:
#: to read on would cost the daemon.
OUTPUT_LIMIT_BYTES = 4 * 1024 * 1024

#: bubblewrap tells its child's pid in milliseconds, before that child may run. A slow box gets this long.
INFO_TIMEOUT_S = 5.0

#: After SIGKILL, and for the last output after the exit (a stray process may hold the pipe open).
SETTLE_S = 1.0


async def launch_template(
    command: Command, launch_line: bytes, on_output: Callable[[str], None], units: Path | None = None
) -> "TemplateProcess":
    """Start `command` with `launch_line` as all of its input, in a unit of its own if systemd gives any at `units`;
    `on_output` gets each line it prints.

    To be called from the main thread: what bubblewrap ties to its parent is tied to the thread. Raises OSError
    when there is nothing to execute. A caller that is cancelled leaves no process behind.
    """
    launching = asyncio.get_running_loop().create_task(_launched(command, launch_line, on_output, units))
    try:
        return await asyncio.shield(launching)
    except asyncio.CancelledError:
        await asyncio.wait([launching])
        if not launching.cancelled() and launching.exception() is None:
            launching.result().kill()
        raise


def real_directory(path: Path) -> Path:
    """The same path, if it is a directory itself: a symlink would be followed, and show an agent where it leads.

    Raises OSError that names it.
    """
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
    return path


class TemplateProcess:
    """A started template: the process that was exec'd (`pid`) and, in a sandbox, its child that is pid 1 inside.

    Invariant: it is reaped, and what it left behind is killed, whether or not anybody waits.
    """

    def __init__(self, spawned: Spawned, command: Command, output: "_Output") -> None:
        self.pid = spawned.held.pid
        self.inner_pid: int | None = None
        self._spawned = spawned
        self._outer = spawned.held
        self._inner: PidFd | None = None
        self._output = output
        self._sandboxed = command.sandboxed
        # in a sandbox the kernel ends what is inside with its first process, and nobody has to be looked for
        sought = SANDBOX_TAG in command.env and not command.sandboxed
        self._tag = f"{SANDBOX_TAG}={command.env[SANDBOX_TAG]}" if sought else None
        self._loop = asyncio.get_running_loop()
        self._met: asyncio.Future[None] = self._loop.create_future()
        self._reaper = self._loop.create_task(self._reap())

    async def wait(self) -> int | None:
        """The exit code, negative for a signal, once no process of this template is left; None if only systemd has it.
        """
        return await asyncio.shield(self._reaper)

    def kill(self) -> None:
        """SIGKILL to all of it, at any moment of its life; `wait` tells when it is gone."""
        if self._inner is not None and self._inner.send_signal(signal.SIGKILL):
            # bubblewrap then reaps it and leaves by itself; killed at once, it would leave a zombie to init
            self._loop.call_later(SETTLE_S, self._kill_outer)
        else:
            self._kill_outer()

    def meet_inner(self, pid: int | None) -> None:
        """To be told once: bubblewrap's child, which is held from now on, or None when there is none to be known."""
        inner = None if pid is None else _hold(pid)
        if inner is not None and _belongs(inner.pid, self.pid):
            self._inner, self.inner_pid = inner, inner.pid
        elif inner is not None:
            inner.close()
        (self._inner or self._outer).make_expendable()  # it has started nothing yet: whatever it starts is so too
        self._met.set_result(None)

    def _kill_outer(self) -> None:
        if not self._outer.send_signal(0):
            return
        if self._tag is not None:
            # while it lives it is the parent of its orphans, tagged or not (PR_SET_CHILD_SUBREAPER)
            survivors.kill_once(self._tag)
        self._outer.kill_group()

    async def _reap(self) -> int | None:
        await self._outer.wait(None)
        await self._met
        # not reaped yet, unless systemd does that, so that its number still tells whose child or session it is
        inner = [self._inner] if self._inner is not None else _strays(self.pid)
        code = self._spawned.reap()
        for process in inner:
            process.send_signal(signal.SIGKILL)
            await process.wait(SETTLE_S)
            process.close()
        self._inner = None
        if self._tag is not None:
            await survivors.kill_tagged(self._tag)
        await self._output.ended(SETTLE_S)
        self._outer.close()
        # bubblewrap reports a signal as shells do
        return 128 - code if self._sandboxed and code is not None and code > 128 else code


async def _launched(
    command: Command, launch_line: bytes, on_output: Callable[[str], None], units: Path | None
) -> TemplateProcess:
    output = _Output(on_output)
    with ExitStack() as stack:
        stdin = stack.enter_context(_filled_pipe(launch_line))
        info_read, info_write = map(stack.enter_context, _pipe_that_keeps_its_reader())
        hold_read, hold_write = map(stack.enter_context, _pipe())
        output_read, output_write = _pipe()
        stack.enter_context(output_write)
        await asyncio.get_running_loop().connect_read_pipe(lambda: output, output_read)
        info, hold = info_write.fileno(), hold_read.fileno()
        options = ("--info-fd", str(info), "--block-fd", str(hold)) if command.sandboxed else ()
        try:
            with command.opened(*options) as (argv, fds):
                spawned = await spawn(argv, command.env, command.cwd, stdin.fileno(), output_write.fileno(),
                                      (*fds, info, hold) if options else (), units)
        except BaseException:
            output.close()
            raise
        template = TemplateProcess(spawned, command, output)
        info_write.close()  # so that a bubblewrap which ends without a word is heard to
        inner_pid = None
        try:
            inner_pid = await _child_pid(info_read.fileno())
        finally:
            template.meet_inner(inner_pid)
            if inner_pid is None and command.sandboxed:
                template.kill()
        hold_write.close()  # lets the child run: now it is held, until now it was in the group
        return template


class _Output(asyncio.Protocol):
    """The read end of a template's stdout and stderr. Bounded in line length and in total."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self._left_bytes = OUTPUT_LIMIT_BYTES
        self._transport: asyncio.BaseTransport | None = None
        self._closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data[: self._left_bytes]).split(b"\n")
        self._left_bytes -= len(data)
        for line in lines:
            self._tell(line)
        while len(self._rest) >= LINE_LIMIT_BYTES:
            self._tell(self._rest[:LINE_LIMIT_BYTES])
            self._rest = self._rest[LINE_LIMIT_BYTES:]
        if self._left_bytes <= 0:
            self._tell(self._rest)
            self._rest = b""
            self._on_line(f"(more than {OUTPUT_LIMIT_BYTES} bytes of output: the rest is not read)")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell(self._rest)
        self._rest = b""
        if not self._closed.done():
            self._closed.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def ended(self, timeout_s: float) -> None:
        """Read to the end, but no longer than `timeout_s`."""
        await asyncio.wait([self._closed], timeout=timeout_s)
        self.close()

    def _tell(self, line: bytes) -> None:
        for start in range(0, len(line), LINE_LIMIT_BYTES):
            self._on_line(line[start : start + LINE_LIMIT_BYTES].decode("utf-8", "replace"))


def _pipe() -> tuple[FileIO, FileIO]:
    read_end, write_end = os.pipe()
    return FileIO(read_end, "rb"), FileIO(write_end, "wb")


def _pipe_that_keeps_its_reader() -> tuple[FileIO, FileIO]:
    """A pipe whose write end is a reader as well, so that to write into it is no error when we are dead.

    A bubblewrap that dies of such an error leaves a child that waits for it for ever.
    """
    read_end, write_end = _pipe()
    with write_end:
        return read_end, FileIO(os.open(f"/proc/self/fd/{write_end.fileno()}", os.O_RDWR | os.O_CLOEXEC), "r+b")


def _filled_pipe(line: bytes) -> FileIO:
    """The read end of a pipe that holds `line`, if there is one, and then ends."""
    if len(line) > LAUNCH_LINE_LIMIT_BYTES:
        raise ValueError(f"a launch line of {len(line)} bytes does not fit into a pipe")
    read_end, write_end = _pipe()
    with write_end:
        write_end.write(line.rstrip(b"\n") + b"\n" if line else b"")
    return read_end


async def _child_pid(info_fd: int) -> int | None:
    """What bubblewrap writes to --info-fd, or None when it ended without."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[bytes] = loop.create_future()
    written = b""

    def read() -> None:
        nonlocal written
        piece = os.read(info_fd, 4096)
        written += piece
        if (not piece or b"}" in piece) and not told.done():
            told.set_result(written)

    loop.add_reader(info_fd, read)
    try:
        async with asyncio.timeout(INFO_TIMEOUT_S):
            pid = json.loads(await told)["child-pid"]
    except (TimeoutError, ValueError, KeyError, TypeError):
        return None
    finally:
        loop.remove_reader(info_fd)
    return pid if isinstance(pid, int) else None


def _strays(outer_pid: int) -> list[PidFd]:
    """Who else was started by a process that is dead but not reaped: the child of a bubblewrap that died too early."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(outer_pid) and _belongs(int(entry.name), outer_pid):
            process = _hold(int(entry.name))
            if process is not None and _belongs(process.pid, outer_pid):
                found.append(process)
            elif process is not None:
                process.close()
    return found


def _belongs(pid: int, outer_pid: int) -> bool:
    """Whether `pid` is a child of that process or in its session, not a stranger with the number of a dead one."""
    try:
        _, parent, _, session = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:4]
    except OSError:
        return False
    return outer_pid in (int(parent), int(session))


def _hold(pid: int) -> PidFd | None:
    try:
        return PidFd(pid)
    except ProcessLookupError:
        return None
