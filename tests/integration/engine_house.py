"""A real engine with real processes, in the process of the test: what no door tells can be seen here."""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from orpheusd.core import events as ev
from orpheusd.core.agent import Settings
from orpheusd.core.pool import Policy
from orpheusd.engine import Engine, Pending
from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.outcome import Outcome
from orpheusd.process.plan import Plan
from orpheusd.process.sandbox import detect, find_interpreter, make_lib_dir
from orpheusd.recorder import Recorder
from orpheusd.remembered import Remembered
from orpheusd.runlog.settings import Settings as RunLogSettings

HANDLERS = Path(__file__).resolve().parents[1] / "handlers"
#: Beyond anything a test waits for by itself here.
TIMEOUT_S = 20.0
#: Short, so that a worker that does not obey is soon over.
GRACE_S = 0.3

Row = dict[str, Any]


class House:
    """One agent, whose module is one of tests/handlers, and the engine that runs it.

    `logged` is everything that went into the agent's log.
    """

    def __init__(self, directory: Path, module: str, settings: Settings, memory_bytes: int = 0) -> None:
        runtime_dir, workspace_dir = directory / "run", directory / "workspace"
        runtime_dir.mkdir()
        workspace_dir.mkdir()
        self.logged: list[Row] = []
        self._awaited: list[tuple[str, asyncio.Future[Row]]] = []
        self.recorder = Recorder(directory / "runs.db", RunLogSettings(), lambda _reason: None)
        self.remembered = Remembered(directory / "sessions.db", lambda *_: None)
        isolation = detect("auto")
        self.engine = Engine(
            runtime_dir, isolation, find_interpreter(), make_lib_dir(runtime_dir / "lib"),
            Policy(grace_s=GRACE_S), "b", self.recorder, self.remembered, self._log, lambda _who, _text: None,
            lambda _: None,
            debug=True)
        setup = {"agent": "probe", "version": 1, "module": module, "entrypoint": "handler",
                 "concurrency": settings.concurrency, "preload": False, "env": {},
                 "result_limit_bytes": RESULT_LIMIT_BYTES, "orphan_ttl_s": 60.0}
        self.engine.plans["probe", 1] = Plan("probe", 1, HANDLERS, workspace_dir, None, True, memory_bytes, setup)
        self.engine.feed(ev.AgentLoaded("probe", 1, settings))

    def start(self, do: str, timeout_s: float | None = None, **more: Any) -> "asyncio.Future[Outcome]":
        """A run that does this; its outcome."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        event = ev.RunRequested(f"r-{random.getrandbits(40):010x}", "probe", timeout_s=timeout_s)
        self.engine.start_run(
            event, Pending(orjson.dumps({"do": do, **more}), "ctl", "test", ended.set_result, None))
        return ended

    async def run(self, do: str, timeout_s: float | None = None, **more: Any) -> Outcome:
        return await asyncio.wait_for(self.start(do, timeout_s, **more), TIMEOUT_S)

    def line(self, text: str) -> "asyncio.Future[Row]":
        """The next line of the agent's log that is this."""
        self._awaited.append((text, asyncio.get_running_loop().create_future()))
        return self._awaited[-1][1]

    def _log(self, _agent: str, row: Row) -> None:
        self.logged.append(row)
        for text, future in self._awaited:
            if text == row["text"] and not future.done():
                future.set_result(row)

    @property
    def pids(self) -> dict[str, int]:
        """The workers that live, and their pids."""
        pids = {id: self.engine.processes.pid(id) for id in self.engine.supervisor.pool.workers}
        return {id: pid for id, pid in pids.items() if pid is not None}


@asynccontextmanager
async def house(module: str = "stuck", memory_bytes: int = 0, **settings: Any) -> AsyncIterator[House]:
    """A house that is left clean: every process ended, every file closed."""
    with tempfile.TemporaryDirectory(prefix="orpheus-") as name:  # a short one: sockets are in it
        built = House(Path(name), module, Settings(**{"min_workers": 1, "max_workers": 1, **settings}),
                      memory_bytes)
        try:
            yield built
        finally:
            built.engine.feed(ev.ShutdownRequested())
            await built.engine.processes.kill_all(TIMEOUT_S)
            await asyncio.wait_for(built.engine.stopped.wait(), TIMEOUT_S)
            built.remembered.close(5.0)
            built.recorder.close(TIMEOUT_S)


def in_house(story: Callable[[House], Any], module: str = "stuck", **settings: Any) -> None:
    """Run an async test in a house of its own."""
    async def told() -> None:
        async with house(module, **settings) as built:
            await story(built)

    asyncio.run(told())
