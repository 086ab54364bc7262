"""Reads what templates and workers that outlived a daemon say of themselves. They are not trusted to say it well."""

from typing import Any

import orjson

from orpheusd.operations import SESSION_ID

#: What one worker may claim: many times what agents may have by default, and a bounded amount of memory.
SESSIONS_LIMIT = 1_000_000
HELD_LIMIT = 10_000
WORKERS_LIMIT = 10_000


#: A session as a worker tells of it: id, runs finished, seconds since the last, whether it has saved state.
Session = tuple[str, int, float, bool]


def orphans_in(payload: bytes) -> list[tuple[str, str]]:
    """The workers in the payload of `workers`: id and nonce of each."""
    return [(row[0], row[1]) for row in _array(payload)[:WORKERS_LIMIT]
            if isinstance(row, list) and [type(value) for value in row] == [str, str]]


def sessions_in(payload: bytes) -> list[Session]:
    """The sessions in the payload of `sessions`."""
    return [(id, max(0, turns), max(0.0, float(idle_s)), saved)
            for id, turns, idle_s, saved in filter(_is_session, _array(payload))]


def _is_session(row: object) -> bool:
    return (isinstance(row, list) and [type(value) for value in row] in _SESSION_ROWS
            and SESSION_ID.fullmatch(row[0]) is not None)


_SESSION_ROWS: list[list[Any]] = [[str, int, float, bool], [str, int, int, bool]]


def _array(payload: bytes) -> list[Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return []
    return value if isinstance(value, list) else []
