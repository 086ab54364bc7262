"""The program that this process executes, and how it comes to execute what is on disk now in its place: an image."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import NoReturn

from orpheusd.process.pidfds import PidFd

#: To import the daemon takes half a second; a disk that is busy gets this long.
TRY_S = 30.0
#: Of what a program says that cannot start, the end: that is where Python names the error.
SAID_BYTES = 2000


def command() -> list[str]:
    """What this process was started with: the interpreter, its options, the program and its arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


async def try_out() -> str:
    """What the program, as it is on disk now, has against being started; "" when nothing."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen([*command(), "--check"], stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        except OSError as error:
            return f"{sys.executable} cannot be executed: {error.strerror}"
        held = PidFd(process.pid)
        try:
            await held.wait(TRY_S)
        finally:
            in_time = held.exited()
            held.send_signal(9)
            code = process.wait()
            held.close()
        if in_time and code == 0:
            return ""
        output.seek(max(0, output.seek(0, os.SEEK_END) - SAID_BYTES))
        said = output.read().decode(errors="replace").strip()
    return said or (f"its check ended with {code}" if in_time else f"its check took longer than {TRY_S:g} s")


def become(environ: Mapping[str, str]) -> NoReturn:
    """Execute it. Raises OSError when that cannot be."""
    os.execve(sys.executable, command(), environ)
