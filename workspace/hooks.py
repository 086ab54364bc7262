"""Functions an agent wants called at turning points: when its worker starts, and when a session ends.

A decorator registers, the worker calls. It knows neither when nor how: that is the worker's part.
"""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

start_hooks: list[Callable[..., Any]] = []
session_end_hooks: list[Callable[..., Any]] = []


def on_start(function: F) -> F:
    """Call `function()` once in each worker, after the agent's module is imported and before the first run.

    A worker whose hook raises does not start. An async hook runs on the loop that async handlers will run on.
    """
    start_hooks.append(function)
    return function


def on_session_end(function: F) -> F:
    """Call `function(session_id, reason)` in the session's home when the session ends while that lives.

    `reason` is `ttl`, `evicted`, `ended`, or `drain` when the worker itself has to go. The call has a deadline of a
    few seconds; what it raises is logged.
    """
    session_end_hooks.append(function)
    return function
