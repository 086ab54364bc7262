"""The stack sheet: where a worker that is dying writes down what each of its threads was doing.

It is a piece of memory without a name, made by the template before the fork: the worker inherits it, and the
template reads it at the burial. Writing is done by faulthandler, in C and without the interpreter lock, so a worker
tells its stack while it is stuck in C, and after its agent has closed fds 1 and 2. What an agent writes there by
itself is text of a bounded length like any other. It knows nothing of signals beyond those of faulthandler.
"""

import errno
import faulthandler
import fcntl
import os

#: Some hundred threads. Sealed at this size; pages that nobody writes to cost nothing.
SHEET_BYTES = 64 * 1024
#: Linux 6.3 wants to be told that nothing here is to be executed, and a strict one insists on it; older ones refuse.
MFD_NOEXEC_SEAL = 0x8


def blank() -> int:
    """The fd of a new sheet. Raises OSError."""
    try:
        sheet = os.memfd_create("orpheus-stack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        sheet = os.memfd_create("orpheus-stack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(sheet, SHEET_BYTES)
    fcntl.fcntl(sheet, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return sheet


def write_on(sheet: int) -> None:
    """From here on SIGSEGV, SIGFPE, SIGABRT, SIGBUS and SIGILL leave the stacks of all threads on `sheet`."""
    faulthandler.enable(file=sheet, all_threads=True)


def write_elsewhere() -> None:
    """In a process that the agent forked: the sheet is its parent's, and stderr is where anybody's crash is told."""
    faulthandler.enable(file=2)


def taken(sheet: int) -> str:
    """What is on the sheet, which is closed."""
    try:
        data = os.pread(sheet, SHEET_BYTES, 0)
    finally:
        os.close(sheet)
    return data.replace(b"\0", b"").decode("utf-8", "replace").strip()
