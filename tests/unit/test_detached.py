"""Detached runs: no worker gets one before its start is on the disk, and what is kept of one queues it again."""

from typing import Any

import orjson

from orpheusd.core.events import RunRequested
from orpheusd.detached import WriteAhead, never_began, options_of, requested_again
from orpheusd.runlog.batch import Story
from orpheusd.runlog.compose import detail_of, fresh, sealed
from orpheusd.runlog.rows import RunDetail
from orpheusd.said import believable
from tests.runlog_kit import queued


class Workers:
    """What was handed over, in order."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str]] = []
        self.ahead = WriteAhead(self._hand_over)

    def dispatch(self, worker: str, run: str) -> None:
        self.ahead.dispatch(worker, {"run_id": run}, b"{}")

    def _hand_over(self, worker: str, fields: dict[str, Any], payload: bytes) -> None:
        self.got.append((worker, fields["run_id"]))


def test_a_run_is_handed_over_once_its_start_is_written() -> None:  # fault 32
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    workers.dispatch("w-2", "r-2")
    assert workers.got == []
    workers.ahead.written(["r-2", "r-other"])
    assert workers.got == [("w-2", "r-2")]
    workers.ahead.written(["r-1", "r-2"])
    assert workers.got == [("w-2", "r-2"), ("w-1", "r-1")]


def test_a_run_that_was_withdrawn_is_never_handed_over() -> None:
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    assert workers.ahead.withdraw("r-1")
    workers.ahead.written(["r-1"])
    assert workers.got == []
    assert not workers.ahead.withdraw("r-1")


def test_a_run_that_its_worker_has_is_not_withdrawn() -> None:
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    workers.ahead.written(["r-1"])
    assert not workers.ahead.withdraw("r-1")


def test_what_a_dead_worker_never_got_goes_to_another_when_it_is_written() -> None:
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    workers.dispatch("w-2", "r-2")
    assert workers.ahead.unread("w-1") == {"r-1"}
    workers.dispatch("w-3", "r-1")  # the log is told of its start again
    workers.ahead.written(["r-1"])
    assert workers.got == [("w-3", "r-1")]
    assert workers.ahead.unread("w-1") == frozenset()


def test_a_start_that_is_written_is_not_waited_for_again() -> None:
    """Its worker died without having read it, which its channel proved."""
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    workers.ahead.written(["r-1"])
    workers.dispatch("w-2", "r-1")
    assert workers.got == [("w-1", "r-1"), ("w-2", "r-1")]


def test_what_is_over_is_forgotten_and_says_whether_it_began() -> None:
    workers = Workers()
    workers.dispatch("w-1", "r-1")
    assert workers.ahead.ended("r-1") and not workers.ahead.ended("r-1") and not workers.ahead.ended("r-2")
    workers.ahead.written(["r-1"])
    assert workers.got == [] and workers.ahead._begun == {} and workers.ahead._held == {}


def test_what_the_engine_says_for_a_worker_is_believed() -> None:
    for reason in ("cancelled", "timed-out"):
        message = never_began("r-1", reason)
        assert believable(message) is message
        assert orjson.loads(message.payload) == {"message": f"{reason} before a worker began it"}


def left(event: RunRequested) -> RunDetail:
    """The row that an earlier daemon left of this request."""
    story = Story()
    story.queued = queued(event.run, agent=event.agent, session_id=event.session, detached=True,
                          options=options_of(event), input=b"1" * event.input_bytes)
    return detail_of(sealed(fresh(1, story)))


def test_what_is_asked_for_again_is_what_was_asked_for() -> None:
    for event in (RunRequested("r-1", "a"),
                  RunRequested("r-1", "a", "user-1", "strict", "queue", True, 2.5, input_bytes=3)):
        assert requested_again(left(event)) == event._replace(readmitted=True)
