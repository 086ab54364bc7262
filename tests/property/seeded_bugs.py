"""Seeds bugs into the core and shows that the world finds each: `python -m tests.property.seeded_bugs [NAME...]`.

A test that cannot fail shows nothing. A bug is seeded by compiling the function again from its changed text and
giving the running function that code, so that whoever holds the function runs the bug.
"""

import importlib
import inspect
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.property.machine import Life
from tests.property.seeds import SEEDS, Seed

#: The rarest of them needs some hundreds of stories.
MOST_STORIES = 4000


@contextmanager
def seeded(seed: Seed) -> Iterator[None]:
    """While it lasts, the core has this bug."""
    function = _function(seed)
    right = function.__code__
    function.__code__ = _wrong_code(function, seed)
    try:
        yield
    finally:
        function.__code__ = right


def finding(seed: Seed, stories: int = MOST_STORIES) -> str | None:
    """What the world says of the core with this bug; None when `stories` stories do not show it."""
    profile = settings(max_examples=stories, stateful_step_count=60, deadline=None, derandomize=True, database=None,
                       phases=[Phase.generate], suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
                       print_blob=False)
    with seeded(seed):
        try:
            run_state_machine_as_test(Life, settings=profile)
        except Exception as error:  # whatever a bug makes of the core, it is found
            return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _function(seed: Seed) -> FunctionType:
    module, _, path = seed.function.partition(":")
    found: Any = importlib.import_module(f"orpheusd.core.{module}")
    for name in path.split("."):
        found = inspect.getattr_static(found, name)
    return _plain(found)


def _plain(found: object) -> FunctionType:
    function = found.fget if isinstance(found, property) else found
    assert isinstance(function, FunctionType)
    return function


def _wrong_code(function: FunctionType, seed: Seed) -> CodeType:
    text = textwrap.dedent(inspect.getsource(function))
    if text.count(seed.right) != 1:
        raise LookupError(f"{seed.name!r}: {seed.right!r} is not in {seed.function} exactly once; correct the seed")
    made: dict[str, Any] = {}
    exec(compile(text.replace(seed.right, seed.wrong), f"<{seed.name}>", "exec"), dict(function.__globals__), made)
    wrong = made[function.__name__]
    return _plain(wrong).__code__


def main() -> int:
    missed = 0
    for name in sys.argv[1:] or SEEDS:
        began = time.monotonic()
        found = finding(SEEDS[name])
        missed += found is None
        verdict = "MISSED" if found is None else "found "
        print(f"{verdict} {time.monotonic() - began:6.1f} s  {name}: {found or ''}"[:160], flush=True)
    print(f"{missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
