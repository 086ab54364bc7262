"""A template that an earlier daemon started: held by a pidfd once it has dialled, and until then found by its tag.

It is nobody's child here, so there is no status to be had. It knows nothing of what is said to it, and does not
believe who dials: any process of an agent can do that in the template's name.
"""

import asyncio

from orpheusd.process import survivors
from orpheusd.process.pidfds import PidFd
from orpheusd.process.sandbox import SANDBOX_TAG


def is_there(template_id: str) -> bool:
    """Whether a process of it is left. Reads all of /proc."""
    return bool(survivors.tagged(_tag_of(template_id)))


class AdoptedTemplate:
    """Invariant: `wait` returns when its sandbox is empty, as its first process is dead, or else when no process that
    carries its tag is left, nor one below these."""

    def __init__(self, template_id: str) -> None:
        self._tag = _tag_of(template_id)
        self._loop = asyncio.get_running_loop()
        self._process: PidFd | None = None
        self._outer: int | None = None
        self._over = asyncio.Event()

    def meet(self, process: PidFd) -> None:
        """It has dialled; `process` is held from now on."""
        if self._process is not None:
            process.close()  # it has dialled before and is to die
            return
        self._process = process
        self._outer = survivors.around(process, self._tag)
        process.watch(self._loop, self._over.set)

    def kill(self) -> None:
        """SIGKILL to all of it; `wait` tells when it is gone."""
        self._over.set()

    async def wait(self) -> int | None:
        await self._over.wait()
        proved = False
        if self._process is not None:
            self._process.send_signal(9)
            proved = await self._process.wait(survivors.DEADLINE_S)
            self._process.close()
        # bubblewrap reaps the first process inside and leaves by itself
        if self._outer is None or not proved or not await survivors.gone(self._outer, self._tag, survivors.DEADLINE_S):
            await survivors.kill_tagged(self._tag)
        return None


def _tag_of(template_id: str) -> str:
    return f"{SANDBOX_TAG}={template_id}"
