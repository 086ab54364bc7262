"""From changes to row tuples in the order of `schema.COLUMNS`, and back. It reads no database and no clock.

A body is a row without its checksum, `sealed` adds it.
"""

from collections.abc import Sequence
from typing import Any

from orpheusd.runlog.batch import Story
from orpheusd.runlog.chain import checksum
from orpheusd.runlog.rows import Ended, Run, RunDetail
from orpheusd.runlog.schema import ADDED, COLUMNS, UNFINISHED

Row = tuple[Any, ...]

#: Characters kept of what a handler's failure says; the same caps as at the doors.
MESSAGE_CHARS = 8 * 1024
TRACEBACK_CHARS = 64 * 1024
NAME_CHARS = 256
#: A black box holds a worker's last lines and counts; one that is larger is not that, and only its size is kept.
BLACK_BOX_CHARS = 256 * 1024

_CUT = "… (cut)"
_AT = {name: number for number, name in enumerate(COLUMNS)}
_STATE, _INPUT, _RESULT, _KEY = _AT["state"], _AT["input"], _AT["result"], _AT["idempotency_key"]
_FIRST_MUTABLE = _AT["version"]
_NOT_STARTED = (None, None, None, None, None)
_NOT_ENDED = (None, None, None, 0, None, None, None, None)
_NOTHING_TOLD = (None, None, None, None)
_INT64 = 2**63 - 1


def fresh(seq: int, story: Story) -> Row:
    """The body of a run that is not in the log yet."""
    queued = story.queued
    if queued is None:
        raise ValueError("a row begins with `queued`")
    stored, size = queued.input, queued.input_bytes
    first = (
        seq, queued.run_id, queued.agent, queued.session_id, queued.source, queued.caller, int(queued.detached),
        queued.options, _micros(queued.queued_at), int(size) if size is not None else len(stored or b""))  # fmt: skip
    return _body(first, _NOT_STARTED, "queued", story, stored, (queued.idempotency_key, queued.fingerprint))


def moved(row: Row, story: Story) -> Row:
    """The body of a row after what the story adds. Raises ValueError when the run has ended.

    A run that is started starts again when its worker was gone before it had read the run.
    """
    if row[_STATE] not in UNFINISHED:
        raise ValueError(f"the run is {row[_STATE]} already")
    return _body(
        row[:_FIRST_MUTABLE], row[_FIRST_MUTABLE:_STATE], row[_STATE], story, row[_INPUT], row[_KEY : _KEY + 2])


def sealed(body: Row) -> Row:
    """Raises UnicodeEncodeError for text with lone surrogates."""
    return (*body, checksum(body))


def cleaned(body: Row) -> Row:
    """The body with what SQLite cannot hold made harmless: lone surrogates escaped, numbers within 64 bits."""
    return tuple(_clean(value) for value in body)


def run_of(row: Sequence[Any]) -> Run:
    """A row as read for a listing: the columns of `LISTED`."""
    (seq, run_id, agent, session_id, source, caller, detached, queued_at, input_bytes, version, worker_id, context,
     turn, started_at, state, code, ended_at, duration_us, result_bytes, error_type, error_message, exit_cause,
     input_kept, result_kept) = row  # fmt: skip
    return Run(
        seq, run_id, agent, session_id, source, caller, bool(detached), queued_at / 1e6, input_bytes,
        (input_kept or 0) < input_bytes, version, worker_id, context, turn, _seconds(started_at), state, code,
        _seconds(ended_at), duration_us, result_bytes, (result_kept or 0) < result_bytes, error_type, error_message,
        exit_cause)  # fmt: skip


def detail_of(row: Row) -> RunDetail:
    """A whole row as read from the database."""
    body = row[: _AT["input"]]
    listed = [value for name, value in zip(COLUMNS, body, strict=False) if name not in ("options", "traceback")]
    kept = [None if value is None else len(value) for value in (row[_INPUT], row[_RESULT])]
    return RunDetail(
        run_of([*listed, *kept]), row[_AT["options"]], row[_AT["traceback"]], row[_INPUT], row[_RESULT],
        checksum(row[:-1]) != row[-1], *row[_KEY : _KEY + len(ADDED)])  # fmt: skip


#: The columns a listing reads: no payload, only how much of it is there.
LISTED = ", ".join(
    name for name in COLUMNS if name not in ("options", "traceback", "input", "result", *ADDED, "checksum")
) + ", length(input), length(result)"


def _body(first: Row, middle: Row, state: str, story: Story, stored: bytes | None, asked: Row) -> Row:
    started, ended = story.started, story.ended
    if started is not None:
        state = "started"
        middle = (int(started.version), started.worker_id, started.context, int(started.turn),
                  _micros(started.started_at))
    if ended is None:
        return (*first, *middle, state, *_NOT_ENDED, stored, None, *asked, None)
    if ended.context is not None or ended.turn is not None:
        version, worker_id, context, turn, started_at = middle
        context = ended.context if ended.context is not None else context
        turn = int(ended.turn) if ended.turn is not None else turn
        middle = (version, worker_id, context, turn, started_at)
    return (*first, *middle, *_end(ended), stored, ended.result, *asked, _black_box(ended.black_box))


def _end(ended: Ended) -> Row:
    size = ended.result_bytes if ended.result_bytes is not None else len(ended.result or b"")
    told: Row = _NOTHING_TOLD
    if (ended.error_type, ended.error_message, ended.traceback, ended.exit_cause) != _NOTHING_TOLD:
        traceback = ended.traceback
        if traceback is not None and len(traceback) > TRACEBACK_CHARS:
            # Its end says what happened.
            traceback = _CUT + traceback[len(_CUT) - TRACEBACK_CHARS :]
        told = (_cut(ended.error_type, NAME_CHARS), _cut(ended.error_message, MESSAGE_CHARS), traceback,
                _cut(ended.exit_cause, NAME_CHARS))
    return (ended.state, ended.code, _micros(ended.ended_at), int(ended.duration_us), int(size), *told)


def _black_box(text: str | None) -> str | None:
    if text is None or len(text) <= BLACK_BOX_CHARS:
        return text
    return f'{{"dropped_chars":{len(text)}}}'


def _cut(text: str | None, limit_chars: int) -> str | None:
    if text is None or len(text) <= limit_chars:
        return text
    return text[: limit_chars - len(_CUT)] + _CUT


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, int):
        return max(-_INT64 - 1, min(_INT64, int(value)))
    return value


def _micros(seconds: float) -> int:
    return int(seconds * 1_000_000)


def _seconds(micros: int | None) -> float | None:
    return None if micros is None else micros / 1e6
