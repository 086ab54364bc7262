"""Why JSON cannot carry a value: the path to the first culprit, and what is wrong with it.

Runs only after encoding failed, so it may be slow; it must not trust the value, nor recurse into it.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from orpheusd.worker.conversions import Unfit, convert

#: The supervisor's decoder stops at 1024, and a result is a part of larger answers; nobody's data are this deep.
MAX_DEPTH = 500
#: A conversion adds a level that JSON does not see; a value that converts for ever must end somewhere.
_MAX_STEPS_DOWN = 3 * MAX_DEPTH
_PATH_LIMIT = 400


class _Level(NamedTuple):
    """A container on the way down: what is left of it, and how deep JSON would nest inside."""

    items: Iterator[tuple[str, Any]]
    value: Any
    depth: int


def explain(value: Any, name: str, error: Exception | None) -> str:
    """One sentence for the agent's author. `error` is what the encoder raised, None if it only nests too deep."""
    try:
        found = _first_fault(value, name)
    except Exception as second:  # the agent's own objects may raise anything when they are read
        found = f"{name} cannot be read: {type(second).__name__} was raised"
    return found or f"{name} cannot be written as JSON: {type(error).__name__} was raised"


def _first_fault(value: Any, name: str) -> str | None:
    levels = [_Level(iter([(name, value)]), None, 0)]
    above: set[int] = set()
    while levels:
        level = levels[-1]
        step = next(level.items, None)
        if step is None:
            above.discard(id(level.value))
            levels.pop()
            continue
        path, item = step
        if isinstance(item, str | int | float | None):
            wrong = _scalar_fault(item)
        elif id(item) in above:
            wrong = "contains itself"
        elif level.depth >= MAX_DEPTH or len(levels) > _MAX_STEPS_DOWN:
            return f"{name} is nested deeper than {MAX_DEPTH} levels"
        else:
            wrong = _key_faults(item)
            if wrong is None:
                inside = _inside(path, item, level.depth)
                if isinstance(inside, _Level):
                    above.add(id(item))
                    levels.append(inside)
                else:
                    wrong = inside
        if wrong is not None:
            return f"{_short(path)} {wrong}"
    return None


def _inside(path: str, item: Any, depth: int) -> _Level | str:
    """The level below `item`, or what is wrong with `item`."""
    if isinstance(item, dict):
        return _Level(((_step(path, key), below) for key, below in item.items()), item, depth + 1)
    if isinstance(item, list | tuple):
        return _Level(((f"{path}[{index}]", below) for index, below in enumerate(item)), item, depth + 1)
    try:
        return _Level(iter([(path, convert(item))]), item, depth)
    except Unfit as unfit:
        return str(unfit)
    except Exception as error:  # likewise
        return f"is a {type(item).__name__} that cannot be converted: {type(error).__name__} was raised"


def _scalar_fault(value: str | int | float | None) -> str | None:
    if isinstance(value, str):
        try:
            str.encode(value)
        except UnicodeEncodeError as error:
            return f"holds a lone surrogate at character {error.start}, which UTF-8 cannot carry"
    elif isinstance(value, int):
        try:
            int.__repr__(value)
        except ValueError:
            return "is an integer with more digits than Python writes out; return it as text"
    elif value is not None and not math.isfinite(value):
        return f"is {float.__repr__(value)}, which JSON cannot carry"
    return None


def _key_faults(item: Any) -> str | None:
    for key in item if isinstance(item, dict) else ():
        if not isinstance(key, str | int | float | None):
            return f"has a key that is a {type(key).__name__}; keys must be strings or numbers"
        wrong = _scalar_fault(key)
        if wrong is not None:
            return f"has a key that {wrong}"
    return None


def _step(path: str, key: Any) -> str:
    if isinstance(key, str) and str.isidentifier(key):
        return f"{path}.{str.__getitem__(key, slice(80))}"
    return f"{path}[{ascii(key)[:80]}]"


def _short(path: str) -> str:
    if len(path) <= _PATH_LIMIT:
        return path
    return f"{path[:_PATH_LIMIT // 2]}...{path[-_PATH_LIMIT // 2:]}"
