"""Workers that outlived a daemon: between their word of what they hold, and what the run log knows of that.

The log is asked beside the loop, and only about runs that it has not named at the start. What is heard of such a
worker meanwhile waits, in order. It decides nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

from orpheusd.core import events as ev
from orpheusd.errors import OrpheusError
from orpheusd.process.holdings import Session
from orpheusd.tasks import must_not_fail
from orpheusd.wire.worker import Message

log = logging.getLogger(__name__)


class Records(Protocol):
    """What the recorder knows of runs."""

    def unknown(self, held: list[Message]) -> list[str]: ...

    async def states(self, run_ids: list[str]) -> dict[str, str]: ...


class Returning:
    """Stands before those who are told of workers.

    Invariant: `_later` has, for each worker about whose runs the log is being asked, what was heard of it since.
    """

    def __init__(
        self, records: Records, happened: Callable[[ev.Event], None],
        adopted: Callable[[str, list[Session], list[Message], dict[str, str]], None],
        ended: Callable[[str, Message], None],
    ) -> None:  # fmt: skip
        self._records = records
        self._happened = happened
        self._adopted = adopted
        self._ended = ended
        self._later: dict[str, list[Callable[[], None]]] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def happened(self, event: ev.Event) -> None:
        if not (isinstance(event, ev.WorkerMisbehaved | ev.WorkerExited)
                and self._waits(event.worker, partial(self._happened, event))):
            self._happened(event)

    def ended(self, worker_id: str, message: Message) -> None:
        if not self._waits(worker_id, partial(self._ended, worker_id, message)):
            self._ended(worker_id, message)

    def adopted(self, worker_id: str, sessions: list[Session], held: list[Message]) -> None:
        """A worker has told what it has. Passed on with the states of the runs that the log had to be asked about."""
        run_ids = self._records.unknown(held)
        if not run_ids:
            self._adopted(worker_id, sessions, held, {})
            return
        self._later[worker_id] = []
        task = asyncio.get_running_loop().create_task(self._ask(worker_id, sessions, held, run_ids))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)
        task.add_done_callback(must_not_fail)

    async def _ask(self, worker_id: str, sessions: list[Session], held: list[Message], run_ids: list[str]) -> None:
        states: dict[str, str] = {}
        try:
            states = await self._records.states(run_ids)
        except OrpheusError as error:
            # written again, then: of a run that has an end there, the log keeps that and refuses the rest
            log.error("the run log does not tell what it has of %d runs that worker %s brings: %s",
                      len(run_ids), worker_id, error.message)
        later = self._later.pop(worker_id)
        self._adopted(worker_id, sessions, held, states)
        for say in later:
            say()

    def _waits(self, worker_id: str, say: Callable[[], None]) -> bool:
        later = self._later.get(worker_id)
        if later is None:
            return False
        later.append(say)
        return True
