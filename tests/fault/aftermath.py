"""The one look back after every fault: runs go through it, and on leaving it I1 to I9 of docs/faults.md must hold.

    with Aftermath(daemon) as after:
        going = after.run_in_background("my-agent", session_id="s")
        os.kill(...)
        assert going.outcome().code == "worker-crashed"

It collects what the callers were told, what the run log has (asked for, and read from the disk), what the handlers
themselves say they did (`EFFECTS`), and what the kernel says the daemon holds; `tests/fault/invariants.py` judges.
The daemon may be killed and started again inside the `with`.
"""

import secrets
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.fault.callers import ANSWER_TIMEOUT_S, Going, Line, Outcome
from tests.fault.holdings import agents, holdings, listed, printed, row_of, state, stored
from tests.fault.invariants import (
    LOG_GROWTH_LIMIT_BYTES,
    RSS_GROWTH_LIMIT_BYTES,
    Effect,
    Facts,
    Refusal,
    Said,
    pools_at_target,
    violations,
)

#: The pool's target of I7; everything else is faster.
SETTLE_S = 5.0
#: Before the fault there is no promise to hold, only a machine that may be busy.
REST_S = 30.0
#: Beyond this many runs `run.show` is asked about the last ones only.
SHOWN_LIMIT = 200

#: What a handler under test begins with. `effect()` says on the disk that this run executes, `secret(input_data)` is
#: what this process remembers of the session's first run here: each handler calls the first before it returns.
EFFECTS = '''\
import os, workspace

_remembered = {}

def effect():
    fd = os.open(workspace.path("effects"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(fd, f"{workspace.run.id} {os.getpid()}\\n".encode())
    os.close(fd)

def secret(input_data):
    return _remembered.setdefault(workspace.run.session, input_data.get("secret"))
'''


def witness(folder: Path, body: str, **settings: Any) -> Path:
    """An agent in `folder` whose handler can leave effects: `body` after `EFFECTS`."""
    return write_agent(folder, EFFECTS + textwrap.dedent(body), **settings)


class Aftermath:
    """Invariant: on leaving without an error, I1 to I9 held within `SETTLE_S`, and no caller still waits."""

    def __init__(self, daemon: Daemon, *, rss_growth_bytes: int = RSS_GROWTH_LIMIT_BYTES,
                 log_growth_bytes: int = LOG_GROWTH_LIMIT_BYTES, settle_s: float = SETTLE_S) -> None:
        self.daemon = daemon
        self.said: list[Said] = []
        self._going: list[Going] = []
        self._refusals: list[Refusal] = []
        self._forgotten: list[tuple[str, str | None, float]] = []
        self._secrets: dict[tuple[str, str], str] = {}
        self._limits = {"rss_growth_bytes": rss_growth_bytes, "log_growth_bytes": log_growth_bytes}
        self._settle_s = settle_s

    def __enter__(self) -> Self:
        eventually(self._at_rest, REST_S, "workers that are ready and a log that is written before the fault")
        self._first_seq = max((row.seq for row in stored(self.daemon, 0)), default=0)
        self._effects_from = {path: path.stat().st_size for path in self._effect_files()}
        self._log_from = len(self.daemon.log)
        self._before = holdings(self.daemon, agents(self.daemon))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        deadline = time.monotonic() + self._settle_s
        for going in self._going if kind is None else ():
            going.join(max(0.0, deadline - time.monotonic()))
        unanswered = tuple(repr(going) for going in self._going if not going.answered)
        for going in self._going:
            going.hang_up()
            going.join(ANSWER_TIMEOUT_S)
        if kind is None:
            self._judge(unanswered, max(0.0, deadline - time.monotonic()))

    # What a test does

    def run(self, agent: str, input: dict[str, Any] | None = None, **params: Any) -> Outcome:
        """Execute one run and wait for what becomes of it."""
        return self.run_in_background(agent, input, stream=False, **params).outcome()

    def run_in_background(self, agent: str, input: dict[str, Any] | None = None, *, stream: bool = True,
                          **params: Any) -> Going:
        """Execute one run; with `stream` its id is known as soon as the daemon accepts it."""
        session = params.get("session_id")
        told = {**(input or {}), **({"secret": self._secret(agent, session)} if session else {})}
        connection = Line(self.daemon.control_socket, ANSWER_TIMEOUT_S)
        going = Going(agent, session, connection, {"input": told, "stream": stream, **params}, self.said.append)
        self._going.append(going)
        return going

    def refuses(self, code: str, method: str, **params: Any) -> None:
        """Ask for what must be refused with `code` and change nothing."""
        before = state(self.daemon, self._first_seq)
        try:
            self.daemon.call(method, **params)
            got = ""
        except OrpheusError as error:
            got = error.code
        self._refusals.append(Refusal(method, code, got, before, state(self.daemon, self._first_seq)))

    def forget(self, agent: str, session: str | None = None) -> None:
        """From now on the session, or each of the agent's, may be new again: it was ended, the agent undeployed."""
        self._forgotten.append((agent, session, time.time()))

    # What it looks at

    def facts(self, unanswered: tuple[str, ...] = ()) -> Facts:
        facts = Facts(
            said=tuple(self.said), stored=stored(self.daemon, self._first_seq), effects=tuple(self._effects()),
            before=self._before, refusals=tuple(self._refusals),
            secrets={secret.encode(): owner for owner, secret in self._secrets.items()},
            daemon_log=self.daemon.log[self._log_from:].encode(), forgotten=tuple(self._forgotten),
            unanswered=unanswered, **self._limits)
        if self.daemon.process is None:
            return facts
        known = agents(self.daemon)
        facts = facts._replace(agents=known, after=holdings(self.daemon, known))
        with self.daemon.connect(ANSWER_TIMEOUT_S) as control:
            wanted = [said.run_id for said in self.said if said.run_id is not None][-SHOWN_LIMIT:]
            return facts._replace(
                listed=tuple(listed(control, self._first_seq)),
                shown=tuple(row_of(control.call("run.show", run_id=run_id)) for run_id in wanted),
                printed=tuple(printed(control, {said.agent for said in self.said} & known.keys())))

    def _at_rest(self) -> bool:
        if self.daemon.http is not None and not _answers(self.daemon.http):
            return False  # its door is on the way
        log = self.daemon.call("status")["run_log"]
        return not (log["pending_changes"] or list(pools_at_target(Facts(agents=agents(self.daemon)))))

    def _judge(self, unanswered: tuple[str, ...], timeout_s: float) -> None:
        broken = ["nobody looked"]

        def nothing_broken() -> bool:
            try:
                broken[:] = violations(self.facts(unanswered))
            except OrpheusError as error:
                broken[:] = [f"the daemon could not be asked: {error.code}: {error.message}"]
            return not broken

        try:
            eventually(nothing_broken, timeout_s)
        except AssertionError:
            raise AssertionError("after the fault:\n  " + "\n  ".join(broken[:40])) from None

    def _secret(self, agent: str, session: str) -> str:
        return self._secrets.setdefault((agent, session), f"secret-{secrets.token_hex(16)}")

    def _effect_files(self) -> list[Path]:
        return sorted((self.daemon.state_dir / "workspaces").glob("*/effects"))

    def _effects(self) -> Iterator[Effect]:
        for path in self._effect_files():
            for line in path.read_bytes()[self._effects_from.get(path, 0):].decode().splitlines():
                run_id, pid = line.split()
                yield Effect(path.parent.name, run_id, int(pid))


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/v1/health", timeout=ANSWER_TIMEOUT_S).status_code == 200
    except httpx.TransportError:
        return False
