"""Callers who ask for a run over the control socket and keep what they were told, to the byte."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from tests.daemon import Control
from tests.fault.invariants import Said

#: A caller that is not answered by now will not be.
ANSWER_TIMEOUT_S = 60.0


class Line(Control):
    """A control connection that gives frames as they stand on the wire."""

    def line(self) -> bytes:
        """The next frame. Raises EOFError when the daemon closed the connection."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the daemon closed the control connection")
        return line


class Outcome:
    """What a caller got: an answer, or the error in its place. `code` is "" for an answer, None where none came."""

    def __init__(self, run_id: str | None, code: str | None, answer: dict[str, Any], message: str = "") -> None:
        self.run_id = run_id
        self.code = code
        self.answer = answer
        self.message = message

    def __repr__(self) -> str:
        return f"Outcome({self.run_id}, {self.code!r}, {self.message or self.answer!r})"

    @property
    def result(self) -> Any:
        assert self.code == "", f"no result but {self}"
        return self.answer["result"]

    @property
    def context(self) -> str | None:
        return (self.answer.get("session") or {}).get("context")

    @property
    def worker(self) -> str | None:
        return self.answer.get("worker_id")


class Going:
    """A run whose caller waits in a thread. Invariant: the thread ends with the answer or with the connection."""

    def __init__(self, agent: str, session: str | None, connection: Line, params: dict[str, Any],
                 tell: Callable[[Said], None]) -> None:
        self.agent = agent
        self.session = session
        self.events: list[dict[str, Any]] = []
        self._connection = connection
        self._params = params
        self._tell = tell
        self._accepted = threading.Event()
        self._run_id: str | None = None
        self._outcome: Outcome | None = None
        self._thread = threading.Thread(target=self._wait, name=f"caller of {agent}")
        self._thread.start()

    @property
    def run_id(self) -> str:
        """Known once the daemon has accepted the run."""
        assert self._accepted.wait(ANSWER_TIMEOUT_S) and self._run_id is not None, f"not accepted: {self._outcome}"
        return self._run_id

    @property
    def answered(self) -> bool:
        return not self._thread.is_alive()

    def outcome(self, timeout_s: float = ANSWER_TIMEOUT_S) -> Outcome:
        """What the caller got. Raises AssertionError when it got nothing within `timeout_s`."""
        self._thread.join(timeout_s)
        assert self._outcome is not None, f"no answer within {timeout_s} s to {self!r}"
        return self._outcome

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def hang_up(self) -> None:
        """Leave without the answer."""
        with suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)

    def __repr__(self) -> str:
        return f"run {self._run_id} of {self.agent}, session {self.session}"

    def _wait(self) -> None:
        try:
            frame, raw = self._answer()
        except (OSError, EOFError):
            frame, raw = {}, b""
        finally:
            self._connection.close()
        self._outcome = _outcome(frame, self._run_id)
        self._run_id = self._outcome.run_id
        self._tell(_said(self.agent, self.session, self._outcome, raw))
        self._accepted.set()

    def _answer(self) -> tuple[dict[str, Any], bytes]:
        id = self._connection.send("run", agent=self.agent, **self._params)
        while True:
            raw = self._connection.line()
            frame = json.loads(raw)
            if frame.get("id") == id:
                return frame, raw
            self.events.append(frame["params"])
            if frame["params"].get("event") == "accepted":
                self._run_id = frame["params"]["data"]["request_id"]
                self._accepted.set()


def _outcome(frame: dict[str, Any], run_id: str | None) -> Outcome:
    """The outcome in a frame; the empty frame stands for a connection that ended."""
    if "result" in frame:
        return Outcome(frame["result"]["request_id"], "", frame["result"])
    if "error" in frame:
        data = frame["error"]["data"]
        return Outcome(data.get("request_id", run_id), data["code"], data, frame["error"]["message"])
    return Outcome(run_id, None, {})


def _said(agent: str, session: str | None, outcome: Outcome, raw: bytes) -> Said:
    return Said(agent, session, outcome.run_id, outcome.code, raw, outcome.worker, outcome.context)
