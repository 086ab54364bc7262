"""What a handler returns, as one line of JSON in UTF-8; or a refusal that an agent's author can act upon.

Refused are NaN and infinities, bytes, cycles, lone surrogates, keys that are no strings or numbers, values
nested deeper than the supervisor reads, and results over the limit. The quick way is the C encoder; only when
it fails is the value walked to find the culprit (explain.py).
"""

import json
import re
from itertools import accumulate
from typing import Any

from orpheusd.worker.conversions import convert
from orpheusd.worker.explain import MAX_DEPTH, explain


class RefusedResult(ValueError):
    """A result that is not passed on. `code` is the error code of the run."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def encode(value: Any, name: str = "result", limit_bytes: int | None = None) -> bytes:
    """`value` as one line of JSON. Raises RefusedResult that names the culprit, such as `result.items[3]`."""
    if limit_bytes is not None and isinstance(value, str) and len(value) > limit_bytes:
        raise too_large(name, len(value), limit_bytes)
    try:
        data = _encoder.encode(value).encode()
    except MemoryError:
        raise
    except Exception as error:  # the agent's own objects may raise anything when they are read
        raise RefusedResult("unserialisable-result", explain(value, name, error)) from None
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise RefusedResult("unserialisable-result", explain(value, name, None))
    if limit_bytes is not None and len(data) > limit_bytes:
        raise too_large(name, len(data), limit_bytes)
    return data


def too_large(name: str, size_bytes: int, limit_bytes: int) -> RefusedResult:
    return RefusedResult("too-large", (
        f"{name} is {size_bytes} bytes of JSON, more than the {limit_bytes} allowed; "
        "save it with workspace.save() and return its path"))


class Pieces:
    """What a generator yielded so far, encoded, to become its result.

    Invariant: holds at most `limit_bytes`; beyond that it forgets the pieces and only `size_bytes` goes on.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.size_bytes = 2
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self._count = 0

    def add(self, value: Any) -> bytes:
        """The piece as JSON. Raises RefusedResult."""
        piece = encode(value, f"result[{self._count}]", self._limit_bytes)
        self._count += 1
        self.size_bytes += len(piece) + 1
        if self.overflowed:
            self._pieces.clear()
        else:
            self._pieces.append(piece)
        return piece

    @property
    def overflowed(self) -> bool:
        return self.size_bytes > self._limit_bytes

    def result(self) -> bytes:
        """All pieces as one list. Raises RefusedResult."""
        if self.overflowed:
            raise too_large("the list of yielded pieces", self.size_bytes, self._limit_bytes)
        return b"[" + b",".join(self._pieces) + b"]"


_encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=convert)

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def _depth(data: bytes) -> int:
    """How deep the containers in this JSON nest."""
    brackets = _STRINGS.sub(b"", data).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)
