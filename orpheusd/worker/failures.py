"""Exceptions as data: type, message and traceback, whatever the exception does to prevent it.

An agent's exception may have a `__str__` that raises, a message of many megabytes, or a traceback of a
thousand frames. Only three bounded, ASCII-safe strings leave this file; no object of the agent does.
"""

import json
import os
import traceback
from typing import Any

MESSAGE_LIMIT_BYTES = 8 * 1024
TRACEBACK_LIMIT_BYTES = 64 * 1024
TYPE_LIMIT_BYTES = 256

#: Frames of ours, which would tell an agent's author nothing.
_OWN_DIRECTORY = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
_MACHINERY = ("<frozen importlib._bootstrap", "<frozen importlib._bootstrap_external", "<frozen runpy")
_OUT_OF_MEMORY = b'{"type":"MemoryError","message":"out of memory","traceback":""}'


def describe(error: BaseException, message: str | None = None, type: str | None = None) -> bytes:
    """The payload for `error`: one line of JSON with `type`, `message` and `traceback`. Never raises.

    `message` and `type` replace the exception's own where we can say it better.
    """
    try:
        return _payload(
            type or _type_name(error),
            _message(error) if message is None else message,
            traceback_text(error),
        )
    except MemoryError:
        return _OUT_OF_MEMORY


def refusal(type: str, message: str) -> bytes:
    """The payload for a failure that is no exception of the agent's."""
    return _payload(type, message, "")


def traceback_text(error: BaseException) -> str:
    """The traceback as Python prints it, without our own frames. Never raises anything but MemoryError."""
    try:
        described = traceback.TracebackException(type(error), error, error.__traceback__)
        _keep_agent_frames(described, set())
        if not described.stack and isinstance(error, Exception) and type(error).__module__.startswith("orpheusd."):
            return ""  # ours alone: the message says it all
        return "".join(described.format())
    except MemoryError:
        raise
    except BaseException as second:
        return f"(no traceback: formatting it raised {_type_name(second)})"


def safe_repr(value: object) -> str:
    """`repr(value)`, or the name of its type when that raises."""
    try:
        return safe_text(repr(value), MESSAGE_LIMIT_BYTES)
    except Exception:  # a `__repr__` of the agent's
        return f"<{type(value).__name__}>"


def safe_text(value: str, limit_bytes: int) -> str:
    """`value` as plain text that UTF-8 can carry, cut to `limit_bytes`."""
    # str's own methods: a subclass may bring hostile ones.
    head = str.__getitem__(value, slice(limit_bytes + 1))
    data = str.encode(head, "utf-8", "backslashreplace")
    if len(data) <= limit_bytes:
        return data.decode()
    mark = b"... (cut)"
    return (data[: limit_bytes - len(mark)] + mark).decode("utf-8", "ignore")


def _payload(type: str, message: str, trace: str) -> bytes:
    if len(trace.encode("utf-8", "backslashreplace")) > TRACEBACK_LIMIT_BYTES:
        # Where it started and where it ended tell most; the middle of a recursion repeats itself.
        trace = safe_text(trace, 16 * 1024) + "\n...\n" + trace[-40 * 1024:]
    value = {
        "type": safe_text(type, TYPE_LIMIT_BYTES),
        "message": safe_text(message, MESSAGE_LIMIT_BYTES),
        "traceback": safe_text(trace, TRACEBACK_LIMIT_BYTES),
    }
    return json.dumps(value, ensure_ascii=True).encode("ascii")


def _type_name(error: BaseException) -> str:
    kind = error.__class__
    try:
        name = type.__dict__["__qualname__"].__get__(kind)
        module = kind.__module__
        return str(name) if module == "builtins" or kind.__module__.startswith("orpheusd.") else f"{module}.{name}"
    except BaseException:
        return "exception"


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except MemoryError:
        raise
    except BaseException as second:
        return f"(no message: its __str__ raised {_type_name(second)})"


def _keep_agent_frames(described: traceback.TracebackException, seen: set[int]) -> None:
    """Drop our own frames from a traceback and from everything that led to it."""
    waiting: list[Any] = [described]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        kept = [frame for frame in one.stack if not _is_ours(frame.filename)]
        one.stack = traceback.StackSummary.from_list(kept)
        waiting += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]


def _is_ours(filename: str) -> bool:
    return (
        filename.startswith(_MACHINERY)
        or os.path.dirname(filename) == _OWN_DIRECTORY  # noqa: PTH120
        or filename.endswith("/importlib/__init__.py")
    )
