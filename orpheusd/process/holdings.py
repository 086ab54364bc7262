"""Reads what templates and workers that outlived a daemon say of themselves. They are not trusted to say it well."""

from collections.abc import Callable
from typing import Any

import orjson

from orpheusd.operations import CONTEXTS, COUNT_LIMIT, MOMENT_LIMIT, RUN_ID, SESSION_ID
from orpheusd.said import is_json
from orpheusd.wire.worker import Message

#: Beyond what an agent may have, workers of one template may claim as many sessions: some were being ended.
SESSIONS_ENDING = 10_000
#: What one worker may claim: a bounded amount of memory.
HELD_LIMIT = 10_000
#: The inputs that come with them are for the log, and are left out beyond this.
HELD_LIMIT_BYTES = 64 * 1024 * 1024
WORKERS_LIMIT = 10_000
#: The daemon's own note on a run, which it gets back: who asked, through which door and when.
NOTE_LIMIT_BYTES = 1024


#: A session as a worker tells of it: id, runs finished, seconds since the last, whether it has saved state.
Session = tuple[str, int, float, bool]


def orphans_in(payload: bytes, nonce: Callable[[str], str]) -> list[str]:
    """The worker ids in the payload of a template's `workers`, of those that it forked: code of the agent may run in
    it, and name others'. `nonce` tells what each of its own proves itself with."""
    return [row[0] for row in _array(payload)[:WORKERS_LIMIT]
            if isinstance(row, list) and [type(value) for value in row] == [str, str] and row[1] == nonce(row[0])]


def sessions_in(payload: bytes) -> list[Session]:
    """The sessions in the payload of `sessions`."""
    return [(id, max(0, turns), max(0.0, float(idle_s)), saved)
            for id, turns, idle_s, saved in filter(_is_session, _array(payload))]


def is_held(message: Message) -> bool:
    """Whether a `held` message tells of a run as there are. Its numbers go into clocks, sums and the run log, which do
    not take any number, and its input into answers."""
    fields = message.fields
    session, context = fields["session_id"], fields["context"]
    return (RUN_ID.fullmatch(fields["run_id"]) is not None
            and (session is None or SESSION_ID.fullmatch(session) is not None)
            and context in ((None,) if session is None else CONTEXTS)
            and 0 <= fields["turn"] <= COUNT_LIMIT
            and 0 <= fields["elapsed_s"] <= MOMENT_LIMIT
            and _is_note(fields["note"])
            and is_json(message.payload))


def _is_note(note: dict[str, Any]) -> bool:
    at = note.get("at")
    return (not isinstance(at, float) or 0 <= at <= MOMENT_LIMIT) and len(orjson.dumps(note)) <= NOTE_LIMIT_BYTES


def _is_session(row: object) -> bool:
    return (isinstance(row, list) and [type(value) for value in row] in _SESSION_ROWS
            and SESSION_ID.fullmatch(row[0]) is not None and row[1] <= COUNT_LIMIT and row[2] <= MOMENT_LIMIT)


_SESSION_ROWS: list[list[Any]] = [[str, int, float, bool], [str, int, int, bool]]


def _array(payload: bytes) -> list[Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return []
    return value if isinstance(value, list) else []
