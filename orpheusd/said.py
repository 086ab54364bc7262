"""What a worker says of a run, as far as it can be passed on: it is not trusted to say it well."""

from typing import Any

import msgspec
import orjson

from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.process.causes import MESSAGE_LIMIT, TRACEBACK_LIMIT, TYPE_LIMIT
from orpheusd.wire.worker import ENDED_STATES, Message

#: What is kept of an error a worker tells: characters. A worker cuts by itself; a lying one is cut here.
ERROR_LIMITS = {"type": TYPE_LIMIT, "message": MESSAGE_LIMIT, "traceback": TRACEBACK_LIMIT}
#: What no error of an honest worker reaches, each of its characters written as an escape.
ERROR_LIMIT_BYTES = 8 * sum(ERROR_LIMITS.values())

#: Looks through JSON text and makes nothing of it.
_skim = msgspec.json.Decoder(msgspec.Raw).decode


def believable(message: Message) -> Message:
    """An `ended` that can be passed on: a worker is not trusted to send states that exist or JSON that is JSON."""
    fields = message.fields
    if fields["code"] not in ENDED_STATES.get(fields["state"], ()):
        return _failed(message, "handler-failed", "the worker reported an end that does not exist")
    if len(message.payload) > RESULT_LIMIT_BYTES and fields["state"] == "completed":
        return _failed(message, "too-large", f"the result is over the limit of {RESULT_LIMIT_BYTES} bytes")
    if not is_json(message.payload):
        return _failed(message, "unserialisable-result", "the result is not JSON that can be passed on")
    return message


def _failed(message: Message, code: str, text: str) -> Message:
    fields = {**message.fields, "state": "failed", "code": code}
    return Message(message.type, fields, orjson.dumps({"type": "", "message": text, "traceback": ""}))


def is_json(payload: bytes) -> bool:
    """Whether it is strict JSON in UTF-8, and one line wherever it goes: in a stream of events a carriage return ends
    one too. To make objects of it would take the loop up to a second: of a large result there may be millions."""
    if b"\r" in payload:
        return False
    try:
        _skim(payload)
        return payload.isascii() or bool(payload.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False


def read_error(payload: bytes) -> dict[str, Any]:
    """The error a worker reported, reduced to the three texts it may have. Of what no worker reports, nothing."""
    try:
        error = orjson.loads(payload) if len(payload) <= ERROR_LIMIT_BYTES else None
    except orjson.JSONDecodeError:
        error = None
    if not isinstance(error, dict):
        return {}
    return {name: error[name][:limit] for name, limit in ERROR_LIMITS.items() if isinstance(error.get(name), str)}


def sentence(code: str, error: dict[str, Any]) -> str:
    """One line that says what went wrong, as the agent put it."""
    message = str(error.get("message", ""))
    if code == "handler-failed" and error.get("type"):
        return f"{error['type']}: {message}" if message else str(error["type"])
    return message
