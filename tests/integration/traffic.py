"""Callers that ask without end, each for a session of its own, and what they were told."""

import threading
import time
from collections import defaultdict
from typing import Any, NamedTuple, Self

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon
from tests.eventually import eventually

#: Between two runs of one caller: twenty of them keep a small pool busy and leave the machine some air.
PAUSE_S = 0.01


class Told(NamedTuple):
    """One completed run: when its answer came, and what it said."""

    at: float
    worker: str
    context: str
    result: Any


class Traffic:
    """While it is entered, `sessions` callers ask, and one more that begins a new session each time.

    Invariant: `told` has each session's completed runs in order, `refused` every other answer with its session. A
    caller goes on after an error of a run, and stops at anything else, which `broken` then has.
    """

    def __init__(self, daemon: Daemon, agent: str, sessions: int) -> None:
        self.told: defaultdict[str, list[Told]] = defaultdict(list)
        self.refused: list[tuple[str, OrpheusError]] = []
        self.broken: list[BaseException] = []
        self._daemon = daemon
        self._agent = agent
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(f"s{number}", False)) for number in range(sessions)]
        self._threads.append(threading.Thread(target=self._ask, args=("new", True)))

    @property
    def latest_of_new(self) -> Any:
        """The result of the latest completed run that began a session; {} before the first."""
        news = [answers[0].result for session, answers in list(self.told.items()) if session.startswith("new")]
        return news[-1] if news else {}

    def await_version(self, version: int) -> None:
        """Returns when a new session was served by that version."""
        eventually(lambda: self.latest_of_new.get("version") == version, 20, f"a new session on version {version}")

    def _ask(self, session: str, anew: bool) -> None:
        try:
            with self._daemon.connect() as control:
                number = 0
                while not self._over.wait(PAUSE_S):
                    number += 1
                    self._run(control, f"{session}-{number}" if anew else session)
        except BaseException as error:
            self.broken.append(error)

    def _run(self, control: Any, session: str) -> None:
        try:
            answer = control.call("run", agent=self._agent, input={}, session_id=session)
        except OrpheusError as error:
            self.refused.append((session, error))
            return
        self.told[session].append(
            Told(time.monotonic(), answer["worker_id"], answer["session"]["context"], answer["result"]))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
