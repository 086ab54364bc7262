"""The one waiting tool of the tests: poll a predicate until it holds or a deadline passes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Short enough not to slow a test, long enough not to steal the processor from what is awaited.
POLL_S = 0.005


def eventually(predicate: Callable[[], T], timeout_s: float = 5.0, what: str = "") -> T:
    """The first true value of `predicate`. Raises AssertionError when `timeout_s` seconds brought none."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(POLL_S)
