"""The daemon that is fuzzed, a bystander in it, and the judge that looks whether both are as they were.

The bystander is an agent that no input names: its session must stay warm in its process whatever comes through the
doors. What comes, and what a right answer to it is, is the targets' business.
"""

import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from orpheusd.errors import OrpheusError
from tests.daemon import ROOT, STOP_TIMEOUT_S, Control, Daemon, command, environment, write_agent
from tests.eventually import eventually
from tests.tars import Snapshot, snapshot

MIB = 1024 * 1024
#: `health` takes a fraction of a millisecond; on a machine where everything else is busy, some of these.
HEALTH_S = 10.0
#: What was asked for may go on for a while after the last answer: processes are buried, connections closed.
SETTLE_S = 15.0
#: Buffers, caches of the run log, what is remembered of runs, each bounded.
RSS_GROWTH_LIMIT_BYTES = 128 * MIB
FDS_GROWTH_LIMIT = 24
PROCESSES_GROWTH_LIMIT = 12

#: Of the log of one that hangs: its last lines and the stacks of all its threads.
LOG_SHOWN = 6000

BYSTANDER = "bystander"
#: Where members of hostile bundles want to go; nothing of these may ever be there.
CANARIES = (Path("/tmp/orpheus-canary"), Path("/orpheus-canary"), Path("/etc/orpheus-canary"))

COUNTS = """
import os
turns = {}
def handler(input_data):
    turns[input_data["session_id"]] = turns.get(input_data["session_id"], 0) + 1
    return {"turn": turns[input_data["session_id"]], "pid": os.getpid()}
"""

#: A line of the daemon's log, its own or a door's; what stands between such lines are tracebacks.
_LINE = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(,\d{3} http door)? (?P<level>[A-Z]+)( [\w.]+)?: .*")
#: What is an error to whoever runs the box, and right all the same when an agent or its bundle is hostile.
_RIGHT = ("keeps losing its workers and is rolled back",)


class Broken(Exception):
    """An input did what no input may."""


class Holdings(NamedTuple):
    """What the daemon and its doors have at one moment."""

    pids: tuple[int, ...]
    fds: int
    rss_bytes: int
    processes: int


class House:
    """Invariant: between `start` and `close` there is one daemon, `daemon`, and in it the bystander."""

    def __init__(self, prepare: Callable[["House"], None] = lambda _house: None) -> None:
        """`prepare` deploys what inputs will be about, so that it is there before the judge looks first."""
        self.prepare = prepare
        self._place = tempfile.TemporaryDirectory(prefix="orpheus-fuzz-", dir="/tmp")
        self.place = Path(self._place.name)
        self.daemon = Daemon("--http-admin", "--debug", directory=self.place / "d")
        self.token = ""
        self.judge: Judge

    def __enter__(self) -> Self:
        try:
            self.daemon.state_dir.mkdir(mode=0o700, parents=True)
            subprocess.run([sys.executable, "-m", "orpheusd", "--make-token", "--state-dir", self.daemon.state_dir],
                           cwd=ROOT, env=environment(), capture_output=True, timeout=60, check=True)
            self.token = (self.daemon.state_dir / "token").read_text().strip()
            self.daemon.start()
            self.deploy(BYSTANDER, COUNTS)
            self.prepare(self)
            self.judge = Judge(self.daemon, self.place)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        try:
            self.daemon.close()
        finally:
            self._place.cleanup()

    def deploy(self, name: str, code: str, files: dict[str, bytes] | None = None, **settings: object) -> None:
        with tempfile.TemporaryDirectory() as folder:
            agent = write_agent(Path(folder) / name, code, **{"scaling": {"max_workers": 2}, **settings})
            for path, data in (files or {}).items():
                (agent / path).write_bytes(data)
            self.daemon.deploy(agent)

    def bystanders_worker(self) -> str:
        return str(self.daemon.call("agent.show", agent=BYSTANDER)["workers"][0]["id"])

    def stop(self) -> list[str]:
        """End the daemon in order; a sentence for each thing that was not."""
        process = self.daemon.process
        if process is None or process.poll() is not None:
            return ["the daemon was gone before it was told to go"]
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return [f"no exit within {STOP_TIMEOUT_S:g} s of SIGTERM; {self.judge.where_it_stands()}"]
        return [f"it ended with {code} on SIGTERM"] if code else []

    @property
    def alive(self) -> bool:
        return self.daemon.process is not None and self.daemon.process.poll() is None

    @property
    def port(self) -> int:
        return int((self.daemon.http or "").rpartition(":")[2])


class Judge:
    """Looks at a daemon as it should be, and later at what has become of it.

    Invariant: what `verdict` has told of the log it does not tell again.
    """

    def __init__(self, daemon: Daemon, place: Path) -> None:
        self._daemon = daemon
        self._place = place
        self._turn = self._asked_bystander()
        self._read = len(daemon.log)
        self.before = self.holdings()
        self._outside = self._elsewhere()
        self.most = self.before

    def verdict(self) -> list[str]:
        """A sentence for each thing that is not as it was. It waits for what goes away by itself."""
        found = [*self._pids(), *self.told()]
        if not found:
            found = [*self._bystander(), *self._growth(), *self._changed(), *self.told()]
        return found

    def _pids(self) -> Iterator[str]:
        process = self._daemon.process
        if process is None or process.poll() is not None:
            yield f"the daemon is gone: exit code {process and process.returncode}"
            return
        try:
            with self._daemon.connect(HEALTH_S) as control:
                status = control.call("health")["status"]
        except (OSError, EOFError, AssertionError, OrpheusError) as error:
            yield (f"`health` was not answered within {HEALTH_S:g} s: {type(error).__name__}: {error}; "
                   f"{self.where_it_stands()}")
            return
        if status != "ok":
            yield f"`health` says {status}"
        if doors(self._daemon) != self.before.pids:
            yield f"the HTTP door is another process: {doors(self._daemon)}, and was {self.before.pids}"

    def _bystander(self) -> Iterator[str]:
        try:
            turn, pid = self._asked_bystander()
        except (OSError, EOFError, AssertionError, OrpheusError) as error:
            yield f"a good run of another agent was not answered: {type(error).__name__}: {error}"
            return
        if (turn, pid) != (self._turn[0] + 1, self._turn[1]):
            yield f"another agent's session is at turn {turn} in process {pid}, after {self._turn}"
        self._turn = turn, pid

    def _growth(self) -> Iterator[str]:
        before = self.before

        def grown() -> list[str]:
            now = self.holdings()
            self.most = Holdings(now.pids, max(now.fds, self.most.fds), max(now.rss_bytes, self.most.rss_bytes),
                                 max(now.processes, self.most.processes))
            return [f"{what} grew from {was} to {number}" for what, was, number, limit in (
                ("descriptors", before.fds, now.fds, FDS_GROWTH_LIMIT),
                ("memory in bytes", before.rss_bytes, now.rss_bytes, RSS_GROWTH_LIMIT_BYTES),
                ("processes", before.processes, now.processes, PROCESSES_GROWTH_LIMIT)) if number - was > limit]

        with suppress(AssertionError):
            eventually(lambda: not grown(), SETTLE_S)
            return
        yield from grown()

    def _changed(self) -> Iterator[str]:
        now = self._elsewhere()
        for path in sorted(now.keys() | self._outside.keys()):
            if now.get(path) != self._outside.get(path):
                yield f"{path} was {self._outside.get(path)} and is {now.get(path)}: no input may change that"

    def told(self) -> list[str]:
        """What the log has said since that no input may make it say: a traceback, or an error of the daemon's own."""
        new = self._daemon.log[self._read:]
        self._read += len(new)
        found: list[str] = []
        for line in new.splitlines():
            match = _LINE.fullmatch(line)
            if match is None and found:
                found[-1] += f"\n{line}"
            elif match is None or (match["level"] in ("ERROR", "CRITICAL")
                                   and not any(right in line for right in _RIGHT)):
                found.append(f"the log has: {line}")
        return found

    def where_it_stands(self) -> str:
        """The end of its log, with the stacks of its threads, which cost it its life."""
        process = self._daemon.process
        if process is not None:
            process.send_signal(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_TIMEOUT_S)
        return f"the end of its log:\n{self._daemon.log[-LOG_SHOWN:]}"

    def holdings(self) -> Holdings:
        """Of the daemon and its doors together."""
        pids = doors(self._daemon)
        fds = rss_bytes = 0
        for pid in (self._daemon.pid, *pids):
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                fds += process.num_fds()
                rss_bytes += process.memory_info().rss
        return Holdings(pids, fds, rss_bytes, len(self._daemon.family()))

    def _asked_bystander(self) -> tuple[int, int]:
        with Control(self._daemon.control_socket, 30.0) as control:
            answer = control.call("run", agent=BYSTANDER, input={}, session_id="kept")
            shown = control.call("agent.show", agent=BYSTANDER)
        pids = {worker["id"]: worker["pid"] for worker in shown["workers"]}
        return answer["result"]["turn"], pids[answer["worker_id"]]

    def _elsewhere(self) -> Snapshot:
        """What is beside the daemon's directories, and in those that belong to the bystander."""
        daemon = self._daemon
        facts: Snapshot = {str(path): (0, 0, 0, "") for path in (*self._place.iterdir(), *daemon.directory.iterdir())}
        facts |= {str(path): (0, 0, 0, "there") for path in CANARIES if path.exists()}
        for folder in (daemon.state_dir / "agents" / BYSTANDER, daemon.state_dir / "workspaces" / BYSTANDER):
            facts |= {f"{folder}/{path}": fact for path, fact in snapshot(folder).items()}
        return facts


def doors(daemon: Daemon) -> tuple[int, ...]:
    """The processes that speak HTTP, with the sandbox around them."""
    return tuple(sorted(process.pid for process in daemon.family() if "orpheusd.doors.http" in command(process)))


def short(value: object) -> str:
    """An answer as what tells it from others: its words, without numbers, signs and what it quotes."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return re.sub(r"`[^`]*`|'[^']*'|\"[^\"]*\"|\S*\d\S*|[^a-zA-Z]+", " ", text)[:40]
