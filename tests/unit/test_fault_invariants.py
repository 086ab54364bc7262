"""Each invariant of the fault tests holds for sound facts and fails for doctored ones."""

from typing import Any

import pytest

from tests.fault.invariants import (
    INVARIANTS,
    Agent,
    Effect,
    Facts,
    Holdings,
    Refusal,
    Row,
    Said,
    violations,
)

SECRET, OTHER = b"secret-" + b"a" * 32, b"secret-" + b"b" * 32

#: Two sessions and a crash: "a" lives on w-1 until it dies, "b" on w-2, and "x" was refused.
ROWS = (
    Row("r-1", "my-agent", "a", "completed", "", "w-1", "new", 1.0, 2.0, 1, b'{"n":1}'),
    Row("r-2", "my-agent", "a", "completed", "", "w-1", "warm", 2.0, 3.0, 2, b'{"n":2}'),
    Row("r-3", "my-agent", "b", "completed", "", "w-2", "new", 2.5, 3.0, 3, b'{"n":1}'),
    Row("r-4", "my-agent", "a", "crashed", "worker-crashed", "w-1", "warm", 3.0, 4.0, 4, text=b"signal 9"),
    Row("r-5", "my-agent", "a", "completed", "", "w-3", "lost", 5.0, 6.0, 5, b'{"n":1}'),
    Row("r-6", "my-agent", "x", "rejected", "session-queue-full", None, None, None, 6.0, 6),
)
SAID = tuple(
    Said(row.agent, row.session, row.run_id, row.code, b'{"result":{"result":%b}}' % (row.result or b""), row.worker,
         row.context)
    for row in ROWS)
HELD = Holdings({"socket": 20, "pidfd": 9, "file": 5, "database": 8}, {"template": 1, "sandbox": 1, "door": 1}, 1, 3,
                frozenset({"run/ctl.sock"}), 50_000_000, 1000)
AGENT = Agent("active", 3, 3, 0, {"w-2": "ready", "w-3": "ready", "w-4": "ready"}, (("a", "w-3"), ("b", "w-2")))
SOUND = Facts(
    said=SAID, listed=ROWS, shown=ROWS, stored=ROWS,
    effects=(Effect("my-agent", "r-1", 2), Effect("my-agent", "r-2", 2), Effect("my-agent", "r-3", 3),
             Effect("my-agent", "r-4", 2), Effect("my-agent", "r-5", 4)),
    agents={"my-agent": AGENT}, before=HELD, after=HELD,
    refusals=(Refusal("run", "not-found", "not-found", {"runs": []}, {"runs": []}),),
    secrets={SECRET: ("my-agent", "a"), OTHER: ("my-agent", "b")},
    printed=(("my-agent", "a", b"I know " + SECRET), ("my-agent", None, b"a line of nobody")),
)


def rows(run_id: str, **changes: Any) -> dict[str, Any]:
    """The log with one row changed, whichever way it is read."""
    changed = tuple(row._replace(**changes) if row.run_id == run_id else row for row in ROWS)
    return {"stored": changed, "listed": changed, "shown": changed}


def said(run_id: str, **changes: Any) -> dict[str, Any]:
    return {"said": tuple(one._replace(**changes) if one.run_id == run_id else one for one in SAID)}


def agent(**changes: Any) -> dict[str, Any]:
    return {"agents": {"my-agent": AGENT._replace(**changes)}}


def after(**changes: Any) -> dict[str, Any]:
    return {"after": HELD._replace(**changes)}


DOCTORED: list[tuple[str, str, dict[str, Any]]] = [
    ("I1", "r-7 was acknowledged and is not", {"said": (*SAID, Said("my-agent", "a", "r-7", None))}),
    ("I1", "r-1 is in the log 2 times", {"stored": (*ROWS, ROWS[0])}),
    ("I1", "r-4 is started", rows("r-4", state="started", ended_at=None)),
    ("I1", "r-7 was executed and is not in the log", {"effects": (*SOUND.effects, Effect("my-agent", "r-7", 2))}),
    ("I1", "not there by run.list", {"listed": ROWS[1:]}),
    ("I1", "r-2 is completed in the database and crashed by run.show",
     {"shown": (ROWS[0], ROWS[1]._replace(state="crashed"))}),
    ("I1", "still has 1 runs", agent(busy=1)),
    ("I1", "a caller still waits", {"unanswered": ("run r-1",)}),
    ("I2", "r-1 was executed 2 times", {"effects": (*SOUND.effects, Effect("my-agent", "r-1", 2))}),
    ("I3", "r-1 is completed and left no effect", {"effects": SOUND.effects[1:]}),
    ("I3", "told 'the result', the log says failed", rows("r-2", state="failed", code="handler-failed")),
    ("I3", "told 'timed-out', the log says completed", said("r-2", code="timed-out")),
    ("I3", "other bytes", said("r-2", raw=b'{"result":{"result":{"n":1}}}')),
    ("I3", "told warm on w-2", said("r-2", worker="w-2")),
    ("I3", "told new on w-1", said("r-2", context="new")),
    ("I4", "is there 2 times", agent(homes=(("a", "w-3"), ("a", "w-2")))),
    ("I4", "lives on w-1, which is no worker", agent(homes=(("a", "w-1"),))),
    ("I4", "was the processes [2, 9]", {"effects": (SOUND.effects[0]._replace(pid=9), *SOUND.effects[1:])}),
    ("I4", "was new on w-1; the session's home was w-1", {**rows("r-2", context="new"), **said("r-2", context="new")}),
    ("I4", "was warm on w-3; the session's home was w-1",
     {**rows("r-5", context="warm"), **said("r-5", context="warm")}),
    ("I4", "was spilled on w-1", {**rows("r-2", context="spilled"), **said("r-2", context="spilled")}),
    ("I4", "was lost on w-3",
     {**rows("r-4", worker="w-3", context="lost"), **said("r-4", worker="w-3", context="lost")}),
    ("I4", "was lost on w-1", {**rows("r-2", context="lost"), **said("r-2", context="lost")}),
    ("I5", "1 more descriptors of kind socket", after(fds={**HELD.fds, "socket": 21})),
    ("I5", "2 more descriptors of kind pidfd", after(fds={**HELD.fds, "pidfd": 11})),
    ("I5", "1 more descriptors of kind inotify", after(fds={**HELD.fds, "inotify": 1})),
    ("I5", "0 templates run, 1 have a directory", after(processes={"door": 1})),
    ("I5", "2 sandboxes for 1 templates", after(processes={**HELD.processes, "sandbox": 2})),
    ("I5", "1 processes of kind sleep 1000", after(processes={**HELD.processes, "sleep 1000": 1})),
    ("I5", "1 processes of kind zombie", after(processes={**HELD.processes, "zombie": 1})),
    ("I5", "new entries in its directories: ['state/tmp/x']", after(entries=HELD.entries | {"state/tmp/x"})),
    ("I6", "memory grew", after(rss_bytes=HELD.rss_bytes + SOUND.rss_growth_bytes + 1)),
    ("I6", "bytes of log", after(log_bytes=HELD.log_bytes + SOUND.log_growth_bytes + 1)),
    ("I7", "wants 3 to 3 workers", agent(workers={"w-2": "ready", "w-3": "ready"})),
    ("I7", "wants 3 to 3 workers", agent(workers={**AGENT.workers, "w-4": "starting"})),
    ("I8", "the answer of r-3 has the secret of session a", said("r-3", raw=SAID[2].raw + SECRET)),
    ("I8", "the row of r-4 has the secret of session b", rows("r-4", text=b"signal 9 " + OTHER)),
    ("I8", "a line of my-agent has the secret", {"printed": (("my-agent", "b", b"I know " + SECRET),)}),
    ("I8", "the daemon's log has the secret", {"daemon_log": b"input: " + SECRET}),
    ("I9", "came to '', not 'not-found'", {"refusals": (SOUND.refusals[0]._replace(got=""),)}),
    ("I9", "was refused and changed runs", {"refusals": (SOUND.refusals[0]._replace(after={"runs": ["r-9"]}),)}),
    ("I9", "r-6 is rejected and was started", rows("r-6", started_at=5.0)),
    ("I9", "r-6 is rejected and was started", {"effects": (*SOUND.effects, Effect("my-agent", "r-6", 2))}),
]


def test_sound_facts_violate_nothing() -> None:
    assert violations(SOUND) == []


@pytest.mark.parametrize(("name", "says", "changes"), DOCTORED)
def test_doctored_facts_are_found_out(name: str, says: str, changes: dict[str, Any]) -> None:
    found = violations(SOUND._replace(**changes))
    assert [line for line in found if line.startswith(f"{name}: ") and says in line], found


def test_every_invariant_has_been_shown_to_fail() -> None:
    assert {name for name, _, _ in DOCTORED} == set(INVARIANTS)


@pytest.mark.parametrize("changes", [
    {"agents": None, "after": None, "listed": (), "shown": ()},
    {"agents": {"my-agent": AGENT._replace(state="quarantined", workers={"w-2": "ready", "w-3": "ready"})}},
    {"after": HELD._replace(workers=4, fds={**HELD.fds, "socket": 21, "pidfd": 10})},
    {"stored": (ROWS[0], ROWS[1]._replace(context="new"), *ROWS[2:]), "forgotten": (("my-agent", "a", 1.5),),
     "listed": (ROWS[0], ROWS[1]._replace(context="new"), *ROWS[2:]), "shown": (), "said": ()},
    {"stored": (*ROWS, Row("r-8", "my-agent", "b", "completed", "", "w-3", "spilled", 7.0, 8.0, 8, b"1")),
     "effects": (*SOUND.effects, Effect("my-agent", "r-8", 4)), "agents": None},
    {**rows("r-4", worker="w-3", context="lost", text=b"handed to a worker, which does not have it"),
     **said("r-4", worker="w-3", context="lost"), "effects": tuple(e for e in SOUND.effects if e.run_id != "r-4")},
], ids=["no daemon runs", "quarantined", "one worker more", "a session was ended", "a run spilled", "never there"])
def test_what_is_right_is_not_complained_about(changes: dict[str, Any]) -> None:
    assert violations(SOUND._replace(**changes)) == []
