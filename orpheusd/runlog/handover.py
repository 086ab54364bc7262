"""The hand-over of changes from the event loop to the writer: bounded by whoever asks `room` first, and no locks.

One thread puts and one thread takes. Each counts on its own, so that nothing is shared but the deque and an
eventfd. It knows nothing of the disk.
"""

import os
import select
from collections import deque

from orpheusd.runlog.batch import Batch
from orpheusd.runlog.rows import Change


class Handover:
    """Invariant: what was put is in the deque or was taken, in order; a taker that waits is woken by the first put.

    The first put into an empty deque wakes the taker, and so does the one that makes a full batch and one that is
    urgent; those between do not, because the taker lingers for them.
    """

    def __init__(self, batch_rows: int) -> None:
        self._changes: deque[Change] = deque()
        self._batch_rows = batch_rows
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._wakeup, select.POLLIN)
        self._closing = False
        self._urgent = False
        self._put_count = self._put_bytes = 0
        self._done_count = self._done_bytes = 0

    # The event loop's side

    def put(self, change: Change, size_bytes: int, urgent: bool = False) -> None:
        """`urgent`: somebody waits for this change to be on the disk."""
        self._put_count += 1
        self._put_bytes += size_bytes
        changes = self._changes
        changes.append(change)
        waiting = len(changes)
        if urgent:
            self._urgent = True
        if urgent or waiting in (1, self._batch_rows):
            os.eventfd_write(self._wakeup, 1)

    def room(self, limit_changes: int, limit_bytes: int) -> bool:
        return (self._put_count - self._done_count < limit_changes
                and self._put_bytes - self._done_bytes < limit_bytes)

    @property
    def pending_changes(self) -> int:
        """Put, and not on the disk yet."""
        return self._put_count - self._done_count

    @property
    def pending_bytes(self) -> int:
        return self._put_bytes - self._done_bytes

    def hurry(self) -> None:
        """There will be no more: whoever waits or lingers stops doing so, now and from now on."""
        self._closing = True
        if self._wakeup >= 0:
            os.eventfd_write(self._wakeup, 1)

    # The writer's side

    def __len__(self) -> int:
        return len(self._changes)

    def wait(self, timeout_s: float | None) -> None:
        """Until somebody wakes us, or `timeout_s` seconds passed."""
        self._poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000)
        self._forget_wakeups()

    def linger(self, timeout_s: float) -> None:
        """Until there is a full batch, somebody is in a hurry, or `timeout_s` seconds passed."""
        self._forget_wakeups()
        # In this order: a wake-up that was forgotten left its reason behind.
        if len(self._changes) < self._batch_rows and not self._closing and not self._urgent:
            self._poll.poll(timeout_s * 1000)

    def take(self, batch: Batch) -> None:
        """Move changes into the batch until it is full or there are none."""
        # First: what becomes urgent from here on may not be taken any more.
        self._urgent = False
        changes = self._changes
        while changes and not batch.full:
            batch.add(changes.popleft())

    def done(self, batch: Batch) -> None:
        """The batch is on the disk: its changes weigh no more."""
        self._done_count += batch.change_count
        self._done_bytes += batch.size_bytes

    def close(self) -> None:
        if self._wakeup >= 0:
            os.close(self._wakeup)
            self._wakeup = -1

    def _forget_wakeups(self) -> None:
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            pass

