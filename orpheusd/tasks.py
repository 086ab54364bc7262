"""Tasks that nobody awaits: what ends one of them is heard."""

import asyncio


def must_not_fail(task: "asyncio.Task[None]") -> None:
    """A done callback that raises what ended `task`, so that the loop's exception handler has it at once. By itself
    asyncio tells when the task is collected, and never while somebody holds it.
    """
    if not task.cancelled():
        task.result()
