"""Workers that come back: the log is asked beside the loop, and what is heard meanwhile comes in order."""

import asyncio
import logging
from typing import Any

import pytest

from orpheusd.core import events as ev
from orpheusd.errors import OrpheusError
from orpheusd.returning import Returning
from orpheusd.wire.worker import Message

MISBEHAVED = ev.WorkerMisbehaved("w-1", "it lied")
EXITED = ev.WorkerExited("w-1", "exit 0", frozenset())


class Log:
    """A run log that knows of r-1 without being asked, and answers when it is let go."""

    def __init__(self, states: dict[str, str] | None) -> None:
        self.asked: list[list[str]] = []
        self.go = asyncio.Event()
        self._states = states

    def unknown(self, held: list[Message]) -> list[str]:
        return [message.fields["run_id"] for message in held if message.fields["run_id"] != "r-1"]

    async def states(self, run_ids: list[str]) -> dict[str, str]:
        self.asked.append(run_ids)
        await self.go.wait()
        if self._states is None:
            raise OrpheusError("internal", "cannot read the run log")
        return self._states


class Heard:
    """What came through, in order."""

    def __init__(self, log: Log) -> None:
        self.facts: list[Any] = []
        self.returning = Returning(
            log, self.facts.append,
            lambda worker, sessions, held, states: self.facts.append((worker, len(sessions), len(held), states)),
            lambda worker, message: self.facts.append((worker, message.fields["run_id"])))


def held(run_id: str) -> Message:
    return Message("held", {"run_id": run_id}, b"")


def test_a_log_that_has_told_is_not_asked() -> None:
    async def scenario() -> None:
        log = Log({})
        heard = Heard(log)
        heard.returning.adopted("w-1", [], [held("r-1")])
        heard.returning.ended("w-1", held("r-1"))
        assert heard.facts == [("w-1", 0, 1, {}), ("w-1", "r-1")] and log.asked == []

    asyncio.run(scenario())


@pytest.mark.parametrize("states", [{"r-2": "completed"}, None])
def test_what_is_heard_while_the_log_is_asked_waits(
    states: dict[str, str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the log does not answer: what was heard of the worker is true all the same."""
    async def scenario() -> None:
        log = Log(states)
        heard = Heard(log)
        told = heard.returning
        told.adopted("w-1", [], [held("r-1"), held("r-2")])
        told.ended("w-1", held("r-1"))
        told.ended("w-2", held("r-8"))
        told.happened(MISBEHAVED)
        told.happened(EXITED)
        told.happened(ev.TimePassed())
        assert heard.facts == [("w-2", "r-8"), ev.TimePassed()], "the others are not held up"
        log.go.set()
        async with asyncio.timeout(5):
            while len(heard.facts) < 6:
                await asyncio.sleep(0)
        assert heard.facts[2:] == [("w-1", 0, 2, states or {}), ("w-1", "r-1"), MISBEHAVED, EXITED]
        assert log.asked == [["r-2"]]
        told.ended("w-1", held("r-9"))
        assert heard.facts[-1] == ("w-1", "r-9"), "nothing waits any more"

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert ("does not tell" in caplog.text) == (states is None)
