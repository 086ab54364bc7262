"""Ctrl-C as something to wait for, so that a run can be asked to stop before the command leaves.

It knows nothing of runs. If the shell has told the command to ignore Ctrl-C (as for background jobs), it does.
"""

import signal
import socket
from types import FrameType


class Interrupts:
    """Counts SIGINT while entered. Invariant: the first only makes `fd` readable, a second leaves at once."""

    def __init__(self) -> None:
        self.count = 0
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.getsignal(signal.SIGINT)

    def __enter__(self) -> "Interrupts":
        if self._before is not signal.SIG_IGN:
            # The wake-up fd is written in the C handler: a signal just before poll() cannot be missed.
            signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            signal.signal(signal.SIGINT, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._before)
            signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()

    @property
    def fd(self) -> int:
        return self._reader.fileno()

    def clear(self) -> None:
        """Makes `fd` wait for the next one."""
        try:
            self._reader.recv(64)
        except BlockingIOError:
            pass

    def _count(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 1:
            raise KeyboardInterrupt
