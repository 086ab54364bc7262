"""Finding the agent's handler: import its module, take its entrypoint, see which form it has.

Everything that can be wrong with an agent before its first run is found here and said plainly. It does not
run the handler.
"""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

from orpheusd.worker.failures import safe_repr
from orpheusd.worker.launch import Setup

SYNC = "sync"
ASYNC = "async"
GENERATOR = "generator"
ASYNC_GENERATOR = "async-generator"

_ANY_FORM = (
    inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE | inspect.CO_ASYNC_GENERATOR)


class UnusableHandler(Exception):
    """The module or entrypoint that agent.yaml names cannot serve. The message says what to change."""


class Handler(NamedTuple):
    """The agent's entrypoint and its form: one of the four names above."""

    function: Callable[[Any], Any]
    form: str

    @property
    def is_async(self) -> bool:
        return self.form in (ASYNC, ASYNC_GENERATOR)


def load(setup: Setup) -> Handler:
    """The agent's handler. Raises UnusableHandler, or whatever the module raises at import."""
    module = import_module(setup)
    function = _entrypoint(module, setup)
    _check_argument(function, setup.entrypoint)
    handler = Handler(function, _form(function))
    if setup.concurrency > 1 and not handler.is_async:
        raise UnusableHandler(
            f"concurrency is {setup.concurrency}, but {setup.entrypoint!r} is a {handler.form} handler and runs "
            "one at a time; make it `async def`, or set concurrency to 1 and raise scaling.max_workers")
    return handler


def import_failure_text(error: BaseException) -> str | None:
    """What to say of an exception at import beside its own message; None when that is enough."""
    if isinstance(error, SystemExit):
        return f"the module called sys.exit({safe_repr(error.code)}) while it was imported"
    return None


def import_module(setup: Setup) -> ModuleType:
    """The agent's module; in a worker of a preloaded template the one that is already there."""
    name = setup.module.removesuffix(".py")
    taken = sys.modules.get(name)
    if taken is not None and not _comes_from(taken, setup.code_dir) and _exists(name, setup.code_dir):
        raise UnusableHandler(
            f"module {name!r} has the name of a module that Python itself uses; rename the file and agent.yaml's "
            "`module`")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name.split(".", maxsplit=1)[0]:
            raise UnusableHandler(
                f"there is no module {name!r}: the agent's folder has no {name.replace('.', '/')}.py; "
                "correct `module` in agent.yaml") from None
        raise


def look_up(setup: Setup) -> None:
    """Let the import system see the agent's folder without importing anything, so that workers find it seen."""
    name = setup.module.removesuffix(".py")
    if "." not in name and name not in sys.modules:
        with contextlib.suppress(ImportError, ValueError):
            importlib.util.find_spec(name)


def _entrypoint(module: ModuleType, setup: Setup) -> Callable[[Any], Any]:
    function = getattr(module, setup.entrypoint, None)
    if function is None and not hasattr(module, setup.entrypoint):
        raise UnusableHandler(
            f"module {module.__name__!r} has no {setup.entrypoint!r}; define it, or correct `entrypoint` in "
            "agent.yaml")
    if not callable(function):
        raise UnusableHandler(
            f"{setup.entrypoint!r} in module {module.__name__!r} is a {type(function).__name__}, which cannot be "
            "called; `entrypoint` must name a function")
    result: Callable[[Any], Any] = function
    return result


def _check_argument(function: Any, name: str) -> None:
    if _is_plain(function) and function.__code__.co_argcount == 1 and not function.__code__.co_kwonlyargcount:
        return
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # written in C: the first run will tell
    try:
        signature.bind(None)
    except TypeError:
        raise UnusableHandler(
            f"{name!r} must take one argument, the input: it is {name}{signature}; write def {name}(input_data)"
        ) from None


def _form(function: Any) -> str:
    if _is_plain(function) and not function.__code__.co_flags & _ANY_FORM:
        return SYNC
    while isinstance(function, functools.partial):
        function = function.func
    for candidate in (function, getattr(type(function), "__call__", None)):  # noqa: B004 - its type, not whether
        if inspect.isasyncgenfunction(candidate):
            return ASYNC_GENERATOR
        if inspect.iscoroutinefunction(candidate):
            return ASYNC
        if inspect.isgeneratorfunction(candidate):
            return GENERATOR
    return SYNC


def _is_plain(function: Any) -> bool:
    """A `def` that nothing was wrapped around and no mark set on: `inspect` need not be asked, which takes longer
    than the rest of a worker's start."""
    return isinstance(function, FunctionType) and not function.__dict__


def _comes_from(module: ModuleType, code_dir: str) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).is_relative_to(code_dir) for place in places)


def _exists(name: str, code_dir: str) -> bool:
    target = Path(code_dir, *name.split("."))
    return target.is_dir() or target.with_name(f"{target.name}.py").exists()
