"""Runs that the log could not take: nobody is told that such a run is accepted."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orpheusd.deploy.versions import VersionStore
from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, check_params
from orpheusd.quotas import Quotas
from orpheusd.runs import Runs
from tests.integration.engine_house import TIMEOUT_S, House, in_house


class Caller:
    """Somebody at a door, and what he is told."""

    source = "ctl"
    caller = "test"

    def __init__(self) -> None:
        self.told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def answer(self, result: Any) -> None:
        self.told.set_result(result)

    def refuse(self, error: OrpheusError) -> None:
        self.told.set_result(error)

    def event(self, params: dict[str, Any]) -> None:
        pass

    def on_gone(self, callback: Callable[[], None]) -> None:
        pass

    def at_end(self, callback: Callable[[], None]) -> None:
        pass


def test_who_asks_again_is_not_told_of_a_run_that_the_log_has_not(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        runs = Runs(house.engine, house.recorder, Quotas(VersionStore(tmp_path), {}, house.engine.busy))
        params = check_params(BY_NAME["run"], {
            "agent": "probe", "input": {"do": "returns"}, "detach": True, "idempotency_key": "k"})
        # whoever writes holds the only lock, so that the log can be read and takes nothing
        lock = sqlite3.connect(house.recorder.health()["path"], isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        callers, asking = [Caller(), Caller()], []
        for caller in callers:
            later = runs.run(caller, params, None)
            assert later is not None
            asking.append(asyncio.ensure_future(later))
            await asyncio.sleep(0)
        async with asyncio.timeout(TIMEOUT_S):
            await asking[0]
            run_id, = house.engine.supervisor.runs
            while len(house.engine.acceptances._waiters[run_id]) < 2:
                await asyncio.sleep(0.005)
            house.engine.log_failed()
            told = [await caller.told for caller in callers]
            await asking[1]
        lock.close()
        assert [(error.code, error.details) for error in told] == [("internal", {"request_id": run_id})] * 2

    in_house(story)
