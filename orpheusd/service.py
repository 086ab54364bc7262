"""The operations, carried out: one method for each row of `orpheusd.operations`, named after it.

A method gets the call and its checked parameters. It returns the result, or a coroutine of it for what takes
time, or None when it will answer through the call later. It knows nothing of sockets.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from datetime import datetime
from functools import partial
from typing import Any

import orpheusd
from orpheusd import views
from orpheusd.answers import Call
from orpheusd.config import Config
from orpheusd.core import events as ev
from orpheusd.core.agent import Agent
from orpheusd.deploy.versions import VersionStore
from orpheusd.deployments import Deployments
from orpheusd.doctor import View, examine
from orpheusd.engine import Engine
from orpheusd.errors import OrpheusError
from orpheusd.lag import LoopLag
from orpheusd.logs import AgentLogs, Row
from orpheusd.operations import KINDS, SESSION_ID
from orpheusd.process.sandbox import Isolation
from orpheusd.quotas import Quotas
from orpheusd.recorder import Recorder
from orpheusd.reload import RELOADING, Reload
from orpheusd.remembered import Remembered
from orpheusd.runlog.queries import RunQuery
from orpheusd.runs import Runs

#: What clients of the Model Context Protocol send their session's id in; every agent is asked by it.
FALLBACK_HEADER = "mcp-session-id"

Params = dict[str, Any]
Later = Coroutine[Any, Any, dict[str, Any] | None]


class Service:
    """Invariant: every accepted call is answered or refused exactly once, unless its caller leaves."""

    def __init__(
        self, config: Config, isolation: Isolation, engine: Engine, deployments: Deployments, store: VersionStore,
        logs: AgentLogs, recorder: Recorder, remembered: Remembered, runs: Runs, lag: LoopLag, quotas: Quotas,
        reload: Reload,
    ) -> None:  # fmt: skip
        self._config = config
        self._isolation = isolation
        self._engine = engine
        self._deployments = deployments
        self._store = store
        self._logs = logs
        self._recorder = recorder
        self._remembered = remembered
        self._runs = runs
        self._lag = lag
        self._quotas = quotas
        self._reload = reload
        self._followers: set[Call] = set()
        self._started_at = time.monotonic()

    # Runs

    def run(self, call: Call, params: Params) -> Later | None:
        session_id = params["session_id"]
        if params["session_headers"]:
            session_id = self._session_id(params)
        return self._runs.run(call, params, session_id)

    def run_retry(self, call: Call, params: Params) -> Later:
        return self._runs.retry(call, params["run_id"], params["stream"])

    def run_cancel(self, call: Call, params: Params) -> dict[str, Any]:
        run_id = params["run_id"]
        if run_id not in self._engine.supervisor.runs:
            raise OrpheusError("not-found", f"there is no run {run_id} waiting or going on; it may be over already")
        self._engine.feed(ev.CancelRequested(run_id))
        return {"run_id": run_id, "cancelled": True}

    def run_list(self, call: Call, params: Params) -> Later:
        return self._run_list(RunQuery(
            params["agent"], params["state"], params["session"], params["source"], _moment(params["since"]),
            _moment(params["until"]), params["before"], params["limit"]))

    def run_why(self, call: Call, params: Params) -> dict[str, Any]:
        return self._engine.explanations.of(params["run_id"])

    def run_show(self, call: Call, params: Params) -> Later:
        return self._runs.show(call, params["run_id"], params["wait"])

    # Agents

    def agent_list(self, call: Call, params: Params) -> dict[str, Any]:
        agents = self._engine.supervisor.agents
        deployed = sorted(self._deployments.deployed.keys() & agents.keys())
        rolled_back = self._deployments.rolled_back
        return {"agents": [views.agent_row(agents[name], rolled_back.get(name)) for name in deployed]}

    def agent_show(self, call: Call, params: Params) -> dict[str, Any]:
        agent = self._agent(params["agent"])
        version = self._deployments.known(agent.id)
        now = self._engine.now()
        return {
            **views.agent_row(agent, self._deployments.rolled_back.get(agent.id)),
            "workers": [views.worker_row(w, self._engine.processes, now) for w in agent.workers.values()],
            "handler": f"{version.manifest.module_name}:{version.manifest.entrypoint}",
            "isolation": self._isolation.mode,
            "memory_limit": self._engine.processes.limits.mode,
            "deployed_at": version.deployed_at,
            "settings": version.manifest.settings(),
        }

    def agent_stats(self, call: Call, params: Params) -> dict[str, Any]:
        return views.agent_stats(self._agent(params["agent"]), self._engine.processes)

    # Sessions

    def session_list(self, call: Call, params: Params) -> dict[str, Any]:
        agent = self._agent(params["agent"])
        now = self._engine.now()
        rows = [views.session_row(agent, id, session, now) for id, session in agent.sessions.newest(params["limit"])]
        return {"sessions": rows, "total": len(agent.sessions)}

    def session_show(self, call: Call, params: Params) -> dict[str, Any]:
        agent, id = self._agent(params["agent"]), params["session_id"]
        session = agent.sessions.get(id)
        if session is None:
            raise OrpheusError("not-found", f"{agent.id} has no session {id}; it has not been seen, or it has ended")
        return {"agent": agent.id, **views.session_row(agent, id, session, self._engine.now())}

    def session_end(self, call: Call, params: Params) -> Later:
        shown = self.session_show(call, params)
        if shown["running"] or shown["waiting"]:
            raise OrpheusError("session-busy", f"session {shown['id']} has a run in progress; cancel it first")
        agent = self._agent(params["agent"])
        session = agent.sessions.get(shown["id"])
        if agent.adoption is not None or (session is not None and session.unheard):
            raise OrpheusError("session-busy", f"the worker of session {shown['id']} has not been heard since the "
                               "daemon started; try again in a moment")
        self._engine.feed(ev.SessionEndRequested(shown["agent"], shown["id"]))
        return self._session_ended(shown["id"])

    async def _session_ended(self, id: str) -> dict[str, Any]:
        if not await self._remembered.written():
            raise OrpheusError("internal", f"session {id} is ended, and the disk does not take that now; it is "
                               "written as soon as it does, and a daemon that dies before does not know of it")
        return {"id": id, "ended": True}

    # Changes

    async def bundle_put(self, call: Call, params: Params) -> dict[str, Any]:
        uploads = self._store.uploads
        upload_id = params["upload_id"] or uploads.begin()
        try:
            size_bytes = await uploads.append(upload_id, params["data"])
        except OrpheusError:
            if params["upload_id"] is None:  # whoever began it does not know its id
                uploads.drop(upload_id)
            raise
        if params["upload_id"] is None and call.source != "http":
            # a door drops by itself what does not arrive, and its connection has no end
            call.at_end(partial(uploads.abandon, upload_id))
        return {"upload_id": upload_id, "size_bytes": size_bytes}

    def bundle_drop(self, call: Call, params: Params) -> dict[str, Any]:
        self._store.uploads.abandon(params["upload_id"])
        return {"upload_id": params["upload_id"]}

    def bundle_inspect(self, call: Call, params: Params) -> Later:
        return self._deployments.inspect(params["upload_id"])

    def deploy(self, call: Call, params: Params) -> Later:
        def step(event: str, name: str, text: str) -> None:
            if params["stream"]:
                call.event({"event": event, "data": {"step": name, "text": text}})

        return self._deployments.deploy(params["upload_id"], params["env"], step)

    async def undeploy(self, call: Call, params: Params) -> dict[str, Any]:
        name, purge = params["agent"], params["purge"]
        result = await self._deployments.undeploy(name, purge)
        if purge:
            await self._logs.forget(name)
        return result

    def restart(self, call: Call, params: Params) -> Later:
        return self._deployments.restart(params["agent"])

    def rollback(self, call: Call, params: Params) -> Later:
        return self._deployments.rollback(params["agent"], params["version"])

    # Logs and workspaces

    async def logs(self, call: Call, params: Params) -> dict[str, Any] | None:
        name, run_id, session_id = params["agent"], params["run_id"], params["session_id"]
        self._deployments.known(name)

        def tell(row: Row) -> None:
            if run_id in (None, row["run_id"]) and session_id in (None, row["session_id"]):
                call.event({"event": "log", "data": row})

        if not params["stream"]:
            return {"lines": await self._logs.read(name, params["limit"], run_id, session_id)}
        unfollow = await self._logs.tail(name, params["limit"], run_id, session_id, tell)
        self._followers.add(call)
        call.on_gone(partial(self._unfollow, call, unfollow))
        return None

    def _unfollow(self, call: Call, unfollow: Callable[[], None]) -> None:
        self._followers.discard(call)
        unfollow()

    def let_followers_go(self) -> None:
        """Nobody may wait for a reload as long as they would."""
        for call in list(self._followers):
            call.refuse(OrpheusError("draining", RELOADING))

    async def workspace_info(self, call: Call, params: Params) -> dict[str, Any]:
        name = params["agent"]
        info = await asyncio.to_thread(self._store.workspace_info, name)
        return {"path": str(self._store.workspace_dir(name)), **info._asdict(),
                "limit_bytes": self._quotas.limit_bytes(name), "full": self._quotas.full(name)}

    async def workspace_clean(self, call: Call, params: Params) -> dict[str, Any]:
        done = await self._deployments.clean(params["agent"])
        if self._quotas.limit_bytes(params["agent"]) is not None:
            await self._quotas.measure(params["agent"])
        return {"path": str(self._store.workspace_dir(params["agent"])), "removed_files": done.files,
                "removed_bytes": done.size_bytes, "left": done.left}  # fmt: skip

    # The daemon

    async def reload(self, call: Call, params: Params) -> None:
        """Answered by the next image."""
        await self._reload.ask()

    def status(self, call: Call, params: Params) -> dict[str, Any]:
        return {
            "version": orpheusd.__version__,
            "pid": os.getpid(),
            "uptime_s": self._uptime_s(),
            "isolation": self._isolation.mode,
            "isolation_reason": self._isolation.reason,
            "memory_limit": self._engine.processes.limits.mode,
            "memory_limit_reason": self._engine.processes.limits.reason,
            "isolation_weaknesses": list(self._isolation.weaknesses),
            "state_dir": str(self._config.state_dir),
            "runtime_dir": str(self._config.runtime_dir),
            "http": self._config.http,
            "agents": len(self._engine.supervisor.agents),
            "workers": len(self._engine.supervisor.pool.workers),
            "ready": not self._engine.supervisor.stopping,
            "problems": self._problems(),
            "run_log": self._recorder.health(),
        }

    async def doctor(self, call: Call, params: Params) -> dict[str, Any]:
        limits = self._engine.processes.limits
        reason = limits.reason if limits.mode == "sampling" else ""
        view = View(self._config, self._isolation, reason, True, tuple(self._problems()))
        return {"findings": [finding._asdict() for finding in await asyncio.to_thread(examine, view)]}

    def health(self, call: Call, params: Params) -> dict[str, Any]:
        supervisor = self._engine.supervisor
        state = "draining" if supervisor.stopping else "ok"
        return {"status": state, "uptime_s": self._uptime_s(), "agents": len(supervisor.agents),
                "workers": len(supervisor.pool.workers)}  # fmt: skip

    def metrics(self, call: Call, params: Params) -> dict[str, Any]:
        text = views.metrics_text(
            self._engine.supervisor, self._engine.processes, self._uptime_s(), self._lag.worst_s)
        return {"text": text}

    def _problems(self) -> list[str]:
        shortages = views.shortages(self._engine.supervisor, self._engine.now())
        return [*self._walls_missing(), *self._recorder.problems(), *shortages, *self._quotas.problems()]

    def _walls_missing(self) -> list[str]:
        """Unless nobody wants any."""
        missing = self._isolation.mode == "none" and self._config.isolation != "none"
        return [f"agents run without walls: {self._isolation.reason}"] if missing else []

    async def _run_list(self, query: RunQuery) -> dict[str, Any]:
        return {"runs": await self._recorder.find(query)}

    def _session_id(self, params: Params) -> str | None:
        """The id beside the input, or the one in a header that this agent's callers send it in."""
        session_id: str | None = params["session_id"]
        header = self._deployments.known(params["agent"]).manifest.session.header
        for name in (header.lower(), FALLBACK_HEADER) if header else (FALLBACK_HEADER,):
            value = params["session_headers"].get(name)
            if value is not None and session_id not in (None, value):
                raise OrpheusError("invalid-request", f"the header {name} and another session id of this request "
                                                      "differ; send one of them")
            session_id = session_id if value is None else value
        if session_id is not None and not SESSION_ID.fullmatch(session_id):
            raise OrpheusError("invalid-request", f"the session id in a header must be {KINDS['session'].says}")
        return session_id

    def _agent(self, name: str) -> Agent:
        self._deployments.known(name)
        agent = self._engine.supervisor.agents.get(name)
        if agent is None:
            raise OrpheusError("draining", f"{name} is going away: the daemon is stopping, or the agent is undeployed")
        return agent

    def _uptime_s(self) -> float:
        return round(time.monotonic() - self._started_at, 3)


def _moment(stated: float | str | None) -> float | None:
    """A parameter of the kind `moment`, in seconds since 1970."""
    if not isinstance(stated, str):
        return stated
    try:
        return datetime.fromisoformat(stated).timestamp()
    except ValueError as error:
        raise OrpheusError("invalid-request", f"there is no moment {stated}: {error}") from None
