"""Plain data for the values that agents return and JSON has no word for.

Dataclasses, pydantic models (anything with `model_dump`), datetimes, dates, times, UUIDs, paths, Decimals (as
text, no digit lost), enums (their value) and sets (sorted where possible). One step at a time: what is inside
is converted when the encoder comes to it. It does not encode, and does not know limits.
"""

import dataclasses
import datetime
import decimal
import enum
import pathlib
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Unfit(TypeError):
    """A value that has no plain form. The message goes on a sentence whose subject is the value's path."""


def convert(value: Any) -> Any:
    """A plainer value, one level down. Raises Unfit, or whatever the value's own code raises."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    for kind, plain in _CONVERSIONS:
        if isinstance(value, kind):
            return plain(value)
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    name = type(value).__name__
    raise Unfit(_HINTS.get(name) or f"is of type {name}, which JSON cannot carry")


def _decimal_text(value: decimal.Decimal) -> str:
    if not value.is_finite():
        raise Unfit(f"is {value}, which JSON cannot carry")
    return str(value)


def _set_items(value: Iterable[Any]) -> list[Any]:
    items = list(value)
    try:
        return sorted(items)
    except TypeError:
        return items


_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: value.value),
    ((datetime.datetime, datetime.date, datetime.time), lambda value: value.isoformat()),
    ((uuid.UUID, pathlib.PurePath), str),
    (decimal.Decimal, _decimal_text),
    ((set, frozenset), _set_items),
)

_FILE_HINT = "which JSON cannot carry; return base64 text, or save a file in the workspace and return its path"
_HINTS = {
    "bytes": f"is bytes, {_FILE_HINT}",
    "bytearray": f"is a bytearray, {_FILE_HINT}",
    "memoryview": f"is a memoryview, {_FILE_HINT}",
    "ndarray": "is an array, which JSON cannot carry; return its .tolist()",
    "coroutine": "is a coroutine, which JSON cannot carry; an `await` is missing",
    "generator": "is a generator, which JSON cannot carry; return list(...) of it",
    "type": "is a class, which JSON cannot carry",
}
