"""From the order to fork to READY: the real template in the real sandbox, beside a fresh interpreter.

A fresh interpreter that imports the same agent is what a worker costs where nothing is forked.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvloop

from bench import peers
from bench.measure import Row, milliseconds, times, verdict
from orpheusd.core import events as ev
from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.process.plan import Plan
from orpheusd.process.processes import Processes
from orpheusd.process.sandbox import detect, find_interpreter, make_lib_dir
from orpheusd.process.sinks import Sinks

AGENTS = {"empty agent": (peers.AGENTS / "echo", False),
          "preloaded agent": (peers.ROOT / "examples" / "preloaded", True)}
MOST_S = 5e-3
#: Nothing here takes more than a fraction of this.
TIMEOUT_S = 30.0


def rows(quick: bool) -> Iterator[Row]:
    forks, fresh = (20, 3) if quick else (200, 15)
    with tempfile.TemporaryDirectory(prefix="forks-", dir="/tmp") as directory:
        forked = uvloop.run(_measure(Path(directory), forks))
    for name, (folder, _) in AGENTS.items():
        ours = statistics.median(forked[name])
        beside = statistics.median(_fresh_interpreter_s(folder) for _ in range(fresh))
        yield Row(f"fork to READY, {name}, p50", milliseconds(ours), f"fresh interpreter {milliseconds(beside)}",
                  times(ours / beside), f"≤ {milliseconds(MOST_S)}", verdict(ours <= MOST_S))


def _fresh_interpreter_s(folder: Path) -> float:
    begun = time.perf_counter()
    script = f"import sys; sys.path.insert(0, {str(folder)!r}); import agent; print('ready', flush=True)"
    with subprocess.Popen([sys.executable, "-I", "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        return time.perf_counter() - begun


class _Herd:
    """Templates and workers without a supervisor. Invariant: each awaited event is awaited once, with a deadline."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._awaited: dict[tuple[type[Any], str], asyncio.Future[ev.Event]] = {}
        ignored: Callable[..., None] = lambda *_: None  # noqa: E731
        lib = make_lib_dir(directory / "run" / "lib")
        self.processes = Processes(directory / "run", detect("auto"), find_interpreter(), lib,
                                   Sinks(self._hear, *[ignored] * (len(Sinks._fields) - 1)))

    async def template(self, id: str, folder: Path, preload: bool) -> None:
        workspace = self._directory / id
        workspace.mkdir()
        setup = {"agent": id, "version": 1, "module": "agent", "entrypoint": "handler", "concurrency": 1,
                 "preload": preload, "env": {}, "result_limit_bytes": RESULT_LIMIT_BYTES, "orphan_ttl_s": 60.0}
        ready = self._expect(ev.TemplateReady, id)
        self.processes.start_template(id, Plan(id, 1, folder, workspace, None, True, 0, setup))
        await asyncio.wait_for(ready, TIMEOUT_S)

    async def fork(self, template: str, worker: str) -> float:
        """Seconds from the order to READY. The worker is stopped again, and gone when this returns."""
        ready, exited = self._expect(ev.WorkerReady, worker), self._expect(ev.WorkerExited, worker)
        begun = time.perf_counter()
        self.processes.fork(template, worker)
        await asyncio.wait_for(ready, TIMEOUT_S)
        taken_s = time.perf_counter() - begun
        self.processes.stop(worker)
        await asyncio.wait_for(exited, TIMEOUT_S)
        return taken_s

    def _expect(self, kind: type[Any], id: str) -> "asyncio.Future[ev.Event]":
        future = self._awaited[kind, id] = asyncio.get_running_loop().create_future()
        return future

    def _hear(self, event: ev.Event) -> None:
        who = getattr(event, "worker", getattr(event, "template", ""))
        awaited = self._awaited.pop((type(event), who), None)
        if awaited is not None:
            awaited.set_result(event)


async def _measure(directory: Path, forks: int) -> dict[str, list[float]]:
    directory.joinpath("run").mkdir()
    herd = _Herd(directory)
    ids = {name: f"t-bench-{number}" for number, name in enumerate(AGENTS)}
    try:
        for name, (folder, preload) in AGENTS.items():
            await herd.template(ids[name], folder, preload)
        taken: dict[str, list[float]] = {name: [] for name in AGENTS}
        for number in range(forks):
            for name, id in ids.items():
                taken[name].append(await herd.fork(id, f"w-{id}-{number}"))
        return taken
    finally:
        await herd.processes.kill_all(TIMEOUT_S)
