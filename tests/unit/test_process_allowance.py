"""What is heard of a worker, and from where on no honest one would go on."""

import itertools
from collections.abc import Callable

import pytest

from orpheusd.process import members
from orpheusd.process.allowance import BURST_BYTES, RUN_LIMIT_BYTES, STRAY_COST_BYTES, Allowance, Excess
from orpheusd.process.members import TemplateMember, WorkerMember
from orpheusd.process.records import Record
from orpheusd.wire.worker import Message
from orpheusd.worker import drains, output
from orpheusd.worker.channel import ENVELOPE_BYTES, LOG_BACKLOG_BYTES


def worker(orphaned: bool = False) -> WorkerMember:
    return WorkerMember("w", TemplateMember(Record("t", "agent", 1, "00"), orphaned), orphaned)


def held(run_id: str) -> Message:
    return Message("held", {"run_id": run_id, "session_id": None, "context": None, "turn": 0, "timeout_s": None,
                            "note": {}, "elapsed_s": 0.5, "over": False}, b"1")


def times_until_excess(say: Callable[[], None], most: int) -> int:
    """How often it can be said. Raises AssertionError when that is more than `most`."""
    for count in itertools.count():
        assert count <= most
        try:
            say()
        except Excess:
            return count
    raise AssertionError


def test_output_is_heard_of_a_run_that_streams_until_it_ends() -> None:
    one = Allowance()
    one.begin("r", streams=True)
    one.piece("r")
    one.end("r")
    with pytest.raises(Excess, match="'output' of run 'r'"):
        one.piece("r")
    one.begin("quiet", streams=False)
    with pytest.raises(Excess, match="'output' of run 'quiet'"):
        one.piece("quiet")


def test_lines_are_heard_of_a_run_until_it_ends() -> None:
    one = Allowance()
    one.begin("r", streams=False)
    one.run_line("r", "text")
    one.end("r")
    with pytest.raises(Excess, match="'log' of run 'r'"):
        one.run_line("r", "text")


def test_a_run_may_print_twice_as_many_lines_as_the_runtime_lets_pass() -> None:
    shortest, longest = Allowance(), Allowance()
    for one in (shortest, longest):
        one.begin("r", streams=False)
    honest = output.RUN_LIMIT_BYTES // output.LINE_COST_BYTES
    assert times_until_excess(lambda: shortest.run_line("r", ""), RUN_LIMIT_BYTES) >= 2 * honest
    honest = output.RUN_LIMIT_BYTES // output.LINE_LIMIT_BYTES
    # what is made printable is twice as long at most: a lone surrogate has three bytes, and becomes \\ud800
    text = "x" * 2 * output.LINE_LIMIT_BYTES
    assert times_until_excess(lambda: longest.run_line("r", text), RUN_LIMIT_BYTES) >= 2 * honest


def test_a_backlog_and_a_burst_are_heard_at_once() -> None:
    assert LOG_BACKLOG_BYTES + max(
        (output.IDLE_BURST_BYTES // output.LINE_COST_BYTES) * ENVELOPE_BYTES,
        (drains.BURST_BYTES // drains.LINE_COST_BYTES) * ENVELOPE_BYTES,
        4 * drains.BURST_BYTES) < BURST_BYTES  # a byte that is no UTF-8 becomes \\xff


@pytest.mark.parametrize("say", [
    lambda one: one.line(""), lambda one: one.end("nobody's"), lambda one: one.stray("exited")])
def test_what_means_nothing_is_heard_for_a_while(say: Callable[[Allowance], None]) -> None:
    # fault 16
    one = Allowance(rate_bytes_s=0)
    assert 500 < times_until_excess(lambda: say(one), BURST_BYTES) <= BURST_BYTES // ENVELOPE_BYTES


def test_the_end_of_a_run_that_goes_on_costs_nothing() -> None:
    one = Allowance(rate_bytes_s=0)
    for number in range(2 * BURST_BYTES // STRAY_COST_BYTES):
        one.begin(str(number), streams=False)
        one.end(str(number))


def test_a_worker_that_dials_again_is_heard_of_any_run_until_it_has_told_which_it_has() -> None:
    one = worker(orphaned=True)
    one.says_line("over long ago", "kept while nobody listened")
    one.holds(held("r"))
    one.heard_out()
    one.says_line("r", "text")
    one.allowance.piece("r")
    with pytest.raises(Excess, match="'log' of run 'over long ago'"):
        one.says_line("over long ago", "text")


@pytest.mark.parametrize("orphaned", [False, True])
def test_who_tells_of_more_than_is_believed_is_heard_for_a_while(
    orphaned: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "HELD_LIMIT", 10)
    one = worker(orphaned)
    assert times_until_excess(lambda: one.holds(held("r")), 3 * BURST_BYTES // STRAY_COST_BYTES) > 500
    assert len(one.held) == (10 if orphaned else 0)


def test_workers_of_one_template_tell_of_as_many_sessions_as_their_agent_may_have() -> None:
    template = TemplateMember(Record("t", "agent", 1, "00"), orphaned=True, sessions_limit=5)
    one, other = (WorkerMember(id, template, orphaned=True) for id in ("w-1", "w-2"))
    one.holds(Message("sessions", {}, b'[["a",1,0.5,false],["b",1,0.5,false]]'))
    other.holds(Message("sessions", {}, b'[["c",1,0.5,false],["d",1,0.5,false]]'))
    one.holds(Message("sessions", {}, b'[["e",1,0.5,false],["f",1,0.5,false]]'))
    assert [row[0] for row in one.sessions] == ["a", "b", "e"] and [row[0] for row in other.sessions] == ["c", "d"]
    with pytest.raises(Excess):
        for _ in range(2 * BURST_BYTES // STRAY_COST_BYTES):
            other.holds(Message("sessions", {}, b'[["g",1,0.5,false]]'))
    assert len(other.sessions) == 2
