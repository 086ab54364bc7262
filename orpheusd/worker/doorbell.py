"""How a message reaches a worker whose only thread is inside a handler.

The supervisor writes `cancel` to the channel and rings SIGUSR1. The signal's handler reads the channel and
raises in the agent's handler, if and only if the message names the run that is armed. Whatever else it reads
goes to the inbox. A template rings too, when there is a new supervisor: then the channel is dialled again, in the
middle of a handler. It knows nothing of what a run is.

Why nothing else can be hit: `arm` and `disarm` stand inside one `try` (sync_runs.py) whose `except` runs
disarmed, because raising disarms first; inside the channel the shield postpones the raise to the next point
where nothing is half done.
"""

import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from orpheusd.wire.worker import Message, ProtocolViolation
from orpheusd.worker.channel import Channel, ChannelClosed, Shield
from orpheusd.worker.holdings import Holdings
from orpheusd.worker.runs import REASONS, reason_of, told_text


class Doorbell(Shield):
    """The inbox of a sync worker, and the bell that is heard while a handler runs.

    Invariant: it raises only while a run is armed and the shield is down, at most once for each arming, and
    messages enter the inbox whole and in order. Only the main thread touches it.
    """

    def __init__(self, channel: Channel, holdings: Holdings) -> None:
        self.reason: str | None = None
        #: Dials once when the channel is lost; whether somebody answered. Set by whoever introduces the worker.
        self.redial: Callable[[], bool] = lambda: False
        self._channel = channel
        self._holdings = holdings
        self._inbox: deque[Message] = deque()
        self._armed: str | None = None
        self._rung = False
        self._reading = False
        self._shields = 0
        self._lost: Exception | None = None
        self._main_thread = threading.get_ident()
        self._owner_pid = os.getpid()
        self._on_signal = self._ring
        channel.shield = self

    def install(self) -> None:
        """Listen to SIGUSR1; again before each run, for an agent may have taken the signal."""
        if signal.getsignal(signal.SIGUSR1) is not self._on_signal:
            signal.signal(signal.SIGUSR1, self._on_signal)

    def wait(self) -> Message:
        """The next message. Raises ChannelClosed or ProtocolViolation after the last one."""
        while True:
            # From here on a ring does not read, so nothing can come between the look and the blocking read.
            self._reading = True
            try:
                if self._inbox:
                    return self._inbox.popleft()
                if self._lost is not None:
                    raise self._lost
                self._take(self._channel.receive() or [])
            finally:
                self._reading = False

    def waiting_message(self) -> Message | None:
        """The next message if there is one now. Raises as `wait` does."""
        if not self._inbox and self._lost is None:
            try:
                self._read()
            except (ChannelClosed, ProtocolViolation) as error:
                self._lost = error
        return self.wait() if self._inbox or self._lost is not None else None

    def arm(self, run_id: str) -> None:
        """From here on a cancel of this run raises, one that is already here at once."""
        self.reason = None
        self._shields = 0
        self._armed = run_id
        if self._rung or self._inbox:
            self._rung = True
            self._listen()

    def disarm(self) -> None:
        self._armed = None

    def enter(self) -> None:
        if threading.get_ident() == self._main_thread:
            self._shields += 1

    def leave(self) -> None:
        if threading.get_ident() == self._main_thread:
            self._shields -= 1
            if self._rung and self._shields == 0 and not self._reading:
                self._listen()

    def waiting(self) -> None:
        if self._rung and self._shields == 1 and threading.get_ident() == self._main_thread and not self._reading:
            self._listen()

    def _ring(self, signum: int, frame: FrameType | None) -> None:
        self._rung = True
        if self._reading or self._shields or os.getpid() != self._owner_pid:
            return  # whoever is in there looks at `_rung` when it comes out
        self._listen()

    @contextmanager
    def dialling(self) -> Iterator[None]:
        """While this thread dials by itself, a ring must not dial too. Afterwards the channel is there again."""
        self._reading = True
        try:
            yield
            self._lost = None
        finally:
            self._reading = False

    def _listen(self) -> None:
        while self._rung:
            self._rung = False
            try:
                if self._lost is None or self._regain():
                    while self._read():
                        pass
            except (ChannelClosed, ProtocolViolation) as error:
                self._lost = error  # not the handler's affair: it may finish, and `wait` raises this
                if self._regain():
                    self._rung = True
        self._raise_if_told()

    def _regain(self) -> bool:
        """Whether there is a supervisor again, now that somebody rang on a channel that was lost."""
        self._reading = True
        try:
            if isinstance(self._lost, ChannelClosed) and self.redial():
                self._lost = None
        finally:
            self._reading = False
        return self._lost is None

    def _take(self, messages: list[Message]) -> None:
        """What was read is ours from now on, and a new supervisor must hear of it."""
        for message in messages:
            self._holdings.heard(message)
        self._inbox.extend(messages)

    def _read(self) -> bool:
        """Move what the channel has now to the inbox; False when there was nothing."""
        self._reading = True
        try:
            messages = self._channel.receive(socket.MSG_DONTWAIT)
            if messages is None:
                return False
            self._take(messages)
            return True
        finally:
            self._reading = False

    def _raise_if_told(self) -> None:
        if self._armed is None:
            return
        for message in self._inbox:
            if message.type == "cancel" and message.fields["run_id"] == self._armed:
                self._inbox.remove(message)
                self._armed = None
                self.reason = reason_of(message)
                raise REASONS[self.reason](told_text(self.reason))
