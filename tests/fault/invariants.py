"""What must hold after every fault, I1 to I9 of docs/faults.md, as pure functions over facts somebody collected.

Each yields a line for every violation. None looks at a process, a file or a clock, so that each can be shown to
fail; `tests/fault/aftermath.py` collects.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from orpheusd.operations import RUN_STATES

UNFINISHED = ("queued", "started")
TERMINAL = frozenset(RUN_STATES) - frozenset(UNFINISHED)
#: Never executed, by their name: nothing may have happened.
NEVER_STARTED = ("rejected", "expired")
#: What a run of a known session may be called, where its home is and where it is not.
AT_HOME, ELSEWHERE = ("warm",), ("spilled", "restored", "lost")
#: A run that was on its way when the daemon died, and that its worker never had, has moved no session.
NEVER_THERE = b"which does not have it"
SECRET = re.compile(rb"secret-[0-9a-f]{32}")

#: What one template and one worker cost the daemon at most: descriptors by kind. A template's listening socket and
#: its channel, the pidfds of sandbox and template, the pipe of what it prints; a worker's channel and pidfd.
COST = {"socket": (2, 1), "pidfd": (3, 1), "pipe": (1, 0)}
#: A database's descriptors are kept for each thread that ever read it (orpheusd/runlog/queries.py), so they grow, but
#: not beyond the executor's threads.
DATABASE_FDS_LIMIT = 100
#: A daemon that holds one result of the greatest size twice, and its input, is below this.
RSS_GROWTH_LIMIT_BYTES = 64 * 1024 * 1024
#: What one fault may make the daemon write about it.
LOG_GROWTH_LIMIT_BYTES = 1024 * 1024


class Said(NamedTuple):
    """What one caller was told of one run. `code` is "" for a result and None where no answer came; `raw` is the
    answer as it stood on the wire. `run_id` is None for what was refused before it was a run."""

    agent: str
    session: str | None
    run_id: str | None
    code: str | None
    raw: bytes = b""
    worker: str | None = None
    context: str | None = None


class Row(NamedTuple):
    """One run in the log. `whole`: the result is stored as it was, not cut. `text` is every word of its end."""

    run_id: str
    agent: str
    session: str | None
    state: str
    code: str | None
    worker: str | None = None
    context: str | None = None
    started_at: float | None = None
    ended_at: float | None = None
    seq: int = 0
    result: bytes | None = None
    whole: bool = True
    text: bytes = b""


class Effect(NamedTuple):
    """A handler's own word that it executed a run, and in which process (as numbered in its sandbox)."""

    agent: str
    run_id: str
    pid: int


class Agent(NamedTuple):
    """An agent as the daemon shows it: workers' states by id, homes of its sessions (None: homeless), and how many
    runs wait or go on."""

    state: str
    least: int
    most: int
    busy: int
    workers: Mapping[str, str]
    homes: tuple[tuple[str, str | None], ...]


class Holdings(NamedTuple):
    """What the daemon holds: descriptors and processes by kind, entries of its directories, bytes."""

    fds: Mapping[str, int]
    processes: Mapping[str, int]
    templates: int
    workers: int
    entries: frozenset[str]
    rss_bytes: int
    log_bytes: int


class Refusal(NamedTuple):
    """A request that had to be refused with `wanted`, and the state of everything before and after."""

    request: str
    wanted: str
    got: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


class Facts(NamedTuple):
    """Everything that is judged. `forgotten` are moments (wall clock) from which a session, or (None) all of an
    agent's, may be new again; `agents` and `after` are None while no daemon runs."""

    said: tuple[Said, ...] = ()
    listed: tuple[Row, ...] = ()
    shown: tuple[Row, ...] = ()
    stored: tuple[Row, ...] = ()
    effects: tuple[Effect, ...] = ()
    agents: Mapping[str, Agent] | None = None
    before: Holdings | None = None
    after: Holdings | None = None
    refusals: tuple[Refusal, ...] = ()
    secrets: Mapping[bytes, tuple[str, str]] = {}
    printed: tuple[tuple[str, str | None, bytes], ...] = ()
    daemon_log: bytes = b""
    forgotten: tuple[tuple[str, str | None, float], ...] = ()
    unanswered: tuple[str, ...] = ()
    rss_growth_bytes: int = RSS_GROWTH_LIMIT_BYTES
    log_growth_bytes: int = LOG_GROWTH_LIMIT_BYTES


def every_run_ends_once(facts: Facts) -> Iterator[str]:
    """I1: what was acknowledged is in the log, whichever way one reads it, and each run in it has ended once."""
    stored = {row.run_id: row for row in facts.stored}
    for said in facts.said:
        if said.run_id is not None and said.run_id not in stored:
            yield f"{said.run_id} was acknowledged and is not in the log"
    for run_id, count in Counter(row.run_id for row in facts.stored).items():
        if count > 1:
            yield f"{run_id} is in the log {count} times"
    for row in facts.stored:
        if row.state not in TERMINAL or row.ended_at is None:
            yield f"{row.run_id} is {row.state}, which is no end"
    for effect in facts.effects:
        if effect.run_id not in stored:
            yield f"{effect.run_id} was executed and is not in the log"
    if facts.agents is not None:
        yield from _same("run.list", facts.listed, {row.run_id: row for row in facts.stored})
        yield from _same("run.show", facts.shown, {row.run_id: stored[row.run_id]
                                                   for row in facts.shown if row.run_id in stored})
    for name, agent in (facts.agents or {}).items():
        if agent.busy:
            yield f"{name} still has {agent.busy} runs"
    for caller in facts.unanswered:
        yield f"a caller still waits: {caller}"


def every_run_happens_once(facts: Facts) -> Iterator[str]:
    """I2: no run id is executed twice."""
    for run_id, count in Counter(effect.run_id for effect in facts.effects).items():
        if count > 1:
            yield f"{run_id} was executed {count} times"


def completed_means_completed(facts: Facts) -> Iterator[str]:
    """I3: a completed run has happened, its caller has what is stored, and who was told "completed" was told true."""
    happened = {effect.run_id for effect in facts.effects}
    stored = {row.run_id: row for row in facts.stored}
    for row in facts.stored:
        if row.state == "completed" and row.run_id not in happened:
            yield f"{row.run_id} is completed and left no effect"
    for said in facts.said:
        row_of = stored.get(said.run_id or "")
        if said.code is None or row_of is None:
            continue
        if (row_of.code or "") != said.code or (said.code == "") != (row_of.state == "completed"):
            yield f"{said.run_id}: its caller was told {said.code or 'the result'!r}, the log says {row_of.state}"
        elif not said.code and row_of.whole and b'"result":' + (row_of.result or b"") not in said.raw:
            yield f"{said.run_id}: its caller got other bytes than the log has"
        elif said.context != row_of.context or said.worker != row_of.worker:
            yield (f"{said.run_id}: its caller was told {said.context} on {said.worker}, "
                   f"the log says {row_of.context} on {row_of.worker}")


def one_home_each(facts: Facts) -> Iterator[str]:
    """I4: a session has one home, which lives, and every answer told the truth about whether it was there."""
    for name, agent in (facts.agents or {}).items():
        for session, count in Counter(session for session, _ in agent.homes).items():
            if count > 1:
                yield f"session {session} of {name} is there {count} times"
        for session, home in agent.homes:
            if home is not None and home not in agent.workers:
                yield f"session {session} of {name} lives on {home}, which is no worker"
    processes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    worker_of = {row.run_id: row.worker for row in facts.stored}
    for effect in facts.effects:
        processes[effect.agent, worker_of.get(effect.run_id) or ""].add(effect.pid)
    for (name, worker), pids in processes.items():
        if worker and len(pids) > 1:
            yield f"worker {worker} of {name} was the processes {sorted(pids)}"
    histories: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in sorted(facts.stored, key=lambda row: (row.started_at or 0, row.seq)):
        if row.session is not None and row.context is not None and row.worker is not None:
            histories[row.agent, row.session].append(row)
    for (name, session), rows in histories.items():
        yield from _true_contexts(rows, [at for agent, which, at in facts.forgotten
                                         if agent == name and which in (None, session)])


def _true_contexts(rows: Iterable[Row], forgotten: list[float]) -> Iterator[str]:
    """`rows` are one session's, in the order they started. Where it lived before the first is not known."""
    home: str | None = None
    before = ""
    for row in rows:
        while forgotten and row.started_at is not None and min(forgotten) <= row.started_at:
            forgotten.remove(min(forgotten))
            home = None
        if home is not None and row.context not in (AT_HOME if row.worker == home else ELSEWHERE):
            yield (f"{row.run_id} of session {row.session} was {row.context} on {row.worker}; "
                   f"the session's home was {home}, since {before}")
        if row.context != "spilled" and NEVER_THERE not in row.text:
            home = row.worker
            before = f"{row.run_id} was {row.context} there and {row.state}: {row.text.decode(errors='replace')!r}"


def nothing_left(facts: Facts) -> Iterator[str]:
    """I5: descriptors, processes, sockets and temporary files are back to what the workers there are account for."""
    before, after = facts.before, facts.after
    if before is None or after is None:
        return
    for kind, count in after.fds.items():
        a_template, a_worker = COST.get(kind, (0, 0))
        spare = count - a_template * after.templates - a_worker * after.workers
        usual = before.fds.get(kind, 0) - a_template * before.templates - a_worker * before.workers
        if kind == "database":
            usual = DATABASE_FDS_LIMIT
        if spare > usual:
            yield f"{spare - usual} more descriptors of kind {kind} ({count} now, {before.fds.get(kind, 0)} before)"
    if after.processes.get("template", 0) != after.templates:
        yield f"{after.processes.get('template', 0)} templates run, {after.templates} have a directory"
    if after.processes.get("sandbox", 0) > after.templates:
        yield f"{after.processes['sandbox']} sandboxes for {after.templates} templates"
    for kind in after.processes.keys() - {"template", "sandbox", "worker"}:
        if after.processes[kind] > before.processes.get(kind, 0):
            yield f"{after.processes[kind]} processes of kind {kind}, {before.processes.get(kind, 0)} before"
    if left := sorted(after.entries - before.entries):
        yield f"new entries in its directories: {left}"


def bounded(facts: Facts) -> Iterator[str]:
    """I6: memory and log stay under their caps."""
    before, after = facts.before, facts.after
    if before is None or after is None:
        return
    if after.rss_bytes - before.rss_bytes > facts.rss_growth_bytes:
        yield f"the daemon's memory grew from {before.rss_bytes} to {after.rss_bytes} bytes"
    if after.log_bytes - before.log_bytes > facts.log_growth_bytes:
        yield f"the daemon wrote {after.log_bytes - before.log_bytes} bytes of log"


def pools_at_target(facts: Facts) -> Iterator[str]:
    """I7: every agent that is not quarantined has the workers it wants, ready."""
    for name, agent in (facts.agents or {}).items():
        ready = sum(state == "ready" for state in agent.workers.values())
        if agent.state == "active" and not (agent.least <= ready <= agent.most and ready == len(agent.workers)):
            yield f"{name} wants {agent.least} to {agent.most} workers and has {dict(agent.workers)}"


def sessions_apart(facts: Facts) -> Iterator[str]:
    """I8: nothing one session told is in another's answers, rows or lines, or in the daemon's log."""
    places: list[tuple[str, str | None, str, bytes]] = [
        *((said.agent, said.session, f"the answer of {said.run_id}", said.raw) for said in facts.said),
        *((row.agent, row.session, f"the row of {row.run_id}", row.text + (row.result or b""))
          for row in facts.stored),
        *((agent, session, f"a line of {agent}", text) for agent, session, text in facts.printed if session),
        ("", None, "the daemon's log", facts.daemon_log),
    ]
    for agent, session, where, data in places:
        for secret in set(SECRET.findall(data)):
            owner = facts.secrets.get(secret)
            if owner is not None and owner != (agent, session):
                yield f"{where} has the secret of session {owner[1]} of {owner[0]}"


def refused_is_nothing(facts: Facts) -> Iterator[str]:
    """I9: what was refused has changed nothing, and what never started has had no effect."""
    for refusal in facts.refusals:
        if refusal.got != refusal.wanted:
            yield f"{refusal.request} came to {refusal.got!r}, not {refusal.wanted!r}"
        for name, value in refusal.before.items():
            if refusal.after.get(name) != value:
                yield f"{refusal.request} was refused and changed {name}: {value} to {refusal.after.get(name)}"
    happened = {effect.run_id for effect in facts.effects}
    for row in facts.stored:
        if row.state in NEVER_STARTED and (row.started_at is not None or row.run_id in happened):
            yield f"{row.run_id} is {row.state} and was started"


INVARIANTS: dict[str, Callable[[Facts], Iterator[str]]] = {
    "I1": every_run_ends_once,
    "I2": every_run_happens_once,
    "I3": completed_means_completed,
    "I4": one_home_each,
    "I5": nothing_left,
    "I6": bounded,
    "I7": pools_at_target,
    "I8": sessions_apart,
    "I9": refused_is_nothing,
}


def violations(facts: Facts) -> list[str]:
    """A line for each, with the invariant's name before it."""
    return [f"{name}: {line}" for name, invariant in INVARIANTS.items() for line in invariant(facts)]


def _same(way: str, seen: Iterable[Row], stored: Mapping[str, Row]) -> Iterator[str]:
    """Whether an operation shows the runs that the database has, with the same ends."""
    found = {row.run_id: (row.state, row.code, row.worker, row.context) for row in seen}
    for run_id, row in stored.items():
        if found.get(run_id) != (row.state, row.code, row.worker, row.context):
            yield f"{run_id} is {row.state} in the database and {found.get(run_id, ('not there',))[0]} by {way}"
