"""Workspace quotas: how much each agent's workspace holds, and a refusal for runs of one that holds too much.

A workspace is a directory like any other, so nothing stops a handler from writing: it is measured, in a thread, while
its agent has runs, soon after, and now and then in any case. Workers that write on when it is full are ended. It
decides nothing about what is in a workspace.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

from orpheusd.deploy.versions import StoredVersion, VersionStore
from orpheusd.engine import Engine
from orpheusd.errors import OrpheusError
from orpheusd.process.causes import MB
from orpheusd.tasks import must_not_fail

log = logging.getLogger(__name__)

#: With and after runs, and while a workspace is full: whoever made space does not wait long, and a handler that writes
#: without end gets some gigabytes far.
SOON_S = 1.0
#: Whether a run that is going on in a workspace that was found full writes on.
AGAIN_S = 0.5
#: Without runs: what a run left behind may still write.
SELDOM_S = 60.0
#: A large workspace takes long to measure; so much of the time, as a share, goes into one agent's at most.
SHARE = 0.1


class Quotas:
    """Invariant: `_held_bytes` has the last measure of each agent that has a quota, `_used` those that had runs since,
    and `_rested_at` when each may be measured again.
    """

    def __init__(self, store: VersionStore, deployed: Mapping[str, StoredVersion], engine: Engine) -> None:
        self._store = store
        self._deployed = deployed
        self._engine = engine
        self._held_bytes: dict[str, int] = {}
        self._used: set[str] = set()
        self._rested_at: dict[str, float] = {}
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        self._keeper.add_done_callback(must_not_fail)

    def stop(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()

    def admit(self, name: str) -> None:
        """A run of the agent is asked for. Raises OrpheusError(conflict) while its workspace is full."""
        if self.limit_bytes(name) is None:
            return
        self._used.add(name)
        if self.full(name):
            raise OrpheusError("conflict", f"{self._sentence(name)}, so it takes no runs; make space in it "
                                           f"(`orpheusctl workspace path {name}` tells where), or raise the limit")

    def limit_bytes(self, name: str) -> int | None:
        version = self._deployed.get(name)
        max_mb = version.manifest.workspace.max_mb if version is not None else None
        return None if max_mb is None else max_mb * MB

    def full(self, name: str) -> bool:
        limit = self.limit_bytes(name)
        return limit is not None and self._held_bytes.get(name, 0) > limit

    def problems(self) -> list[str]:
        return [f"{self._sentence(name)}: its runs are refused"
                for name in sorted(self._held_bytes) if self.full(name)]

    async def measure(self, name: str) -> None:
        """Know now what the workspace holds. What cannot be counted to its end counts as far as it was."""
        if not self._engine.busy(name):
            self._used.discard(name)
        began = time.monotonic()
        was_full = self.full(name)
        try:
            self._held_bytes[name] = (await asyncio.to_thread(self._store.workspace_info, name)).size_bytes
        except OrpheusError as error:
            log.warning("the workspace of %s cannot be measured: %s", name, error)
        now = time.monotonic()
        self._rested_at[name] = now + (now - began) / SHARE
        if self.full(name) and not was_full:
            log.warning("%s: its runs are refused", self._sentence(name))

    async def _keep(self) -> None:
        while True:
            limited = [name for name in self._deployed if self.limit_bytes(name) is not None]
            for name in self._held_bytes.keys() - set(limited):
                del self._held_bytes[name]
                self._used.discard(name)
                self._rested_at.pop(name, None)
            for name in limited:
                if self._is_due(name):
                    await self.measure(name)
                    if self.full(name) and self._engine.busy(name):
                        await self._stop_growth(name)
            await asyncio.sleep(SOON_S)

    async def _stop_growth(self, name: str) -> None:
        """End those that have a run when the workspace, which is full, holds more in a moment."""
        held_bytes = self._held_bytes[name]
        await asyncio.sleep(AGAIN_S)
        await self.measure(name)
        agent = self._engine.supervisor.agents.get(name)
        if agent is not None and self.full(name) and self._held_bytes[name] > held_bytes:
            for worker in [worker for worker in agent.workers.values() if worker.runs]:
                self._engine.processes.kill(worker.id, self._sentence(name))

    def _is_due(self, name: str) -> bool:
        rested_s = time.monotonic() - self._rested_at.get(name, -SELDOM_S)
        return rested_s >= (0.0 if name in self._used or self.full(name) else SELDOM_S)

    def _sentence(self, name: str) -> str:
        held, limit = self._held_bytes[name], self.limit_bytes(name) or 0
        return f"the workspace of {name} holds {held / MB:.4g} MB, more than its `workspace.max_mb` of {limit // MB}"
