"""Callers of a box's HTTP door who ask without end, each on a new connection for every request."""

import http.client
import json
import threading
import time
from typing import Any, NamedTuple, Self

from tests import planted
from tests.eventually import eventually
from tests.system.box import Box

#: Longer than any restart: who waits in the socket waits for the next daemon.
ANSWER_TIMEOUT_S = 40.0
AGENT = "counter"


class Answer(NamedTuple):
    """One request of a session: when it was made and answered, and what was said. `status` is 0 when nothing was."""

    session: str
    asked_at: float
    told_at: float
    status: int
    body: dict[str, Any]

    @property
    def context(self) -> str:
        return str(self.body["session"]["context"])

    @property
    def turn(self) -> int:
        """What the handler itself counted in the memory of its process."""
        return int(self.body["result"]["turn"])


def ask(box: Box, session: str, **input: Any) -> Answer:
    """One run over HTTP."""
    asked_at = time.monotonic()
    caller = http.client.HTTPConnection("localhost")
    try:
        caller.sock = box.connect(ANSWER_TIMEOUT_S)
        caller.request("POST", f"/v1/agents/{AGENT}/run", json.dumps({"input": input}),
                       {"Content-Type": "application/json", "X-Session-ID": session, "Connection": "close"})
        response = caller.getresponse()
        said = response.read()
        planted.LOOKOUT.look(said, "what the HTTP door of the box answered")
        return Answer(session, asked_at, time.monotonic(), response.status, json.loads(said))
    except (OSError, http.client.HTTPException) as error:
        return Answer(session, asked_at, time.monotonic(), 0, {"error": repr(error)})
    finally:
        caller.close()


class Callers:
    """While it is entered, each of the sessions asks, one request after the other. `answers` has them as they came."""

    def __init__(self, box: Box, sessions: list[str]) -> None:
        self.answers: list[Answer] = []
        self._box = box
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(session,)) for session in sessions]

    def of(self, session: str) -> list[Answer]:
        return [answer for answer in self.answers if answer.session == session]

    def go_on(self, count: int = 50) -> None:
        """Returns when so many more requests have succeeded. Raises AssertionError with what was said instead."""
        before = self._succeeded()
        try:
            eventually(lambda: self._succeeded() >= before + count, ANSWER_TIMEOUT_S, f"{count} more answers")
        except AssertionError as error:
            raise AssertionError(f"{error}; answers: {self.answers[-5:]}; journal:\n{self._box.journal()}") from None

    def _succeeded(self) -> int:
        return sum(answer.status == 200 for answer in self.answers)

    def _ask(self, session: str) -> None:
        while not self._over.is_set():
            self.answers.append(ask(self._box, session))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(ANSWER_TIMEOUT_S)
