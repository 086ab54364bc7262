"""A template that an earlier daemon started: held by a pidfd once it has dialled, and until then found by its tag.

It is nobody's child here, so there is no status to be had. It knows nothing of what is said to it.
"""

import asyncio

from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd
from orpheusd.process.sandbox import SANDBOX_TAG


class AdoptedTemplate:
    """Invariant: `wait` returns when no process that carries the template's tag is left."""

    def __init__(self, template_id: str) -> None:
        self._tag = f"{SANDBOX_TAG}={template_id}"
        self._loop = asyncio.get_running_loop()
        self._process: PidFd | None = None
        self._over = asyncio.Event()

    def meet(self, process: PidFd) -> None:
        """It has dialled; `process` is held from now on."""
        self._process = process
        process.watch(self._loop, self._over.set)

    def kill(self) -> None:
        """SIGKILL to all of it; `wait` tells when it is gone."""
        self._over.set()

    async def wait(self) -> int | None:
        await self._over.wait()
        if self._process is not None:
            self._process.send_signal(9)
            await self._process.wait(survivors.DEADLINE_S)
            self._process.close()
        await survivors.kill_tagged(self._tag)
        return None
