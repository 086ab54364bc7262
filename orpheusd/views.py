"""What callers see of agents, workers and sessions: the shapes of docs/operations.md, made from the core.

It reads the supervisor's objects and changes nothing.
"""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orpheusd.core.agent import Agent
from orpheusd.core.sessions import Session
from orpheusd.core.supervisor import Supervisor
from orpheusd.core.worker import ProcessState, Worker
from orpheusd.deploy.versions import RolledBackFrom
from orpheusd.operations import CONTEXTS
from orpheusd.process.processes import Processes

RUN_STATES = ("completed", "failed", "timed-out", "cancelled", "crashed", "rejected", "expired")
_HEALTHY = (ProcessState.READY, ProcessState.DRAINING)


def agent_row(agent: Agent, rolled_back: RolledBackFrom | None) -> dict[str, Any]:
    current = agent.current
    return {
        "name": agent.id,
        "version": current.version if current else None,
        "state": agent.state.value,
        "workers": len(agent.workers),
        "min": agent.settings.min_workers,
        "max": agent.settings.max_workers,
        "sessions": len(agent.sessions),
        "queue": len(agent.waiting),
        "runs": agent.going_on,
        "rolled_back": rolled_back._asdict() if rolled_back is not None else None,
    }


def worker_row(worker: Worker, processes: Processes, now: float) -> dict[str, Any]:
    return {
        "id": worker.id,
        "pid": processes.pid(worker.id),
        "version": worker.version,
        "state": worker.state.value,
        "outdated": worker.outdated,
        "busy": len(worker.runs),
        "sessions": worker.sessions,
        "runs": worker.served,
        "uptime_s": round(now - worker.started_at, 3),
        **_sample(worker, processes),
    }


def agent_stats(agent: Agent, processes: Processes) -> dict[str, Any]:
    workers = list(agent.workers.values())
    return {
        "workers": {
            "current": len(workers),
            "healthy": sum(w.state in _HEALTHY for w in workers),
            "busy": sum(bool(w.runs) for w in workers),
            "min": agent.settings.min_workers,
            "max": agent.settings.max_workers,
        },
        "queue": {"depth": len(agent.waiting), "processing": agent.going_on, "max": agent.settings.queue_size},
        "sessions": {
            "count": len(agent.sessions), "homeless": agent.sessions.homeless, "max": agent.settings.session_max},
        "runs": {state.replace("-", "_"): agent.counts[state] for state in RUN_STATES},
        "contexts": {context: agent.contexts[context] for context in CONTEXTS},
        "processes": [
            {"worker_id": w.id, "pid": processes.pid(w.id), **_sample(w, processes)} for w in workers],
    }  # fmt: skip


def shortages(supervisor: Supervisor, now: float) -> list[str]:
    """A sentence for each agent that has fewer workers than it wants because the box has no memory for them."""
    return [f"{name} has {len(agent.vacant)} workers fewer than it wants: the box has not the "
            f"{agent.settings.memory_mb} MB that one may use"
            for name, agent in sorted(supervisor.agents.items()) if agent.short_until > now]


def session_row(agent: Agent, id: str, session: Session, now: float) -> dict[str, Any]:
    home = session.live_home
    lane = agent.lanes.get(id)
    return {
        "id": id,
        "home": home.id if home else None,
        "turns": session.turns,
        "running": session.running,
        "waiting": len(lane.runs) if lane else 0,
        "saved": session.saved,
        "idle_s": round(now - session.last_used, 3),
    }


def metrics_text(supervisor: Supervisor, processes: Processes, uptime_s: float, lag_s: float) -> str:
    """The counts in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(supervisor, processes, uptime_s, lag_s))
    return generate_latest(registry).decode()


class _Collector:
    """Invariant: labels are agent names, states and contexts only, so that the number of series is bounded."""

    def __init__(self, supervisor: Supervisor, processes: Processes, uptime_s: float, lag_s: float) -> None:
        self._supervisor = supervisor
        self._processes = processes
        self._uptime_s = uptime_s
        self._lag_s = lag_s

    def collect(self) -> list[Metric]:
        gauges = {
            "workers": GaugeMetricFamily("orpheus_workers", "Worker processes", labels=["agent"]),
            "busy": GaugeMetricFamily("orpheus_workers_busy", "Workers with a run", labels=["agent"]),
            "queue": GaugeMetricFamily("orpheus_queue_depth", "Runs that wait", labels=["agent"]),
            "sessions": GaugeMetricFamily("orpheus_sessions", "Sessions known", labels=["agent"]),
            "homeless": GaugeMetricFamily("orpheus_sessions_homeless", "Sessions without a home", labels=["agent"]),
            "rss": GaugeMetricFamily("orpheus_workers_rss_bytes", "Memory of all workers", labels=["agent"]),
        }
        runs = CounterMetricFamily("orpheus_runs", "Runs that ended", labels=["agent", "state"])
        contexts = CounterMetricFamily("orpheus_contexts", "Runs by what memory they met", labels=["agent", "context"])
        for name, agent in sorted(self._supervisor.agents.items()):
            stats = agent_stats(agent, self._processes)
            gauges["workers"].add_metric([name], stats["workers"]["current"])
            gauges["busy"].add_metric([name], stats["workers"]["busy"])
            gauges["queue"].add_metric([name], stats["queue"]["depth"])
            gauges["sessions"].add_metric([name], stats["sessions"]["count"])
            gauges["homeless"].add_metric([name], stats["sessions"]["homeless"])
            gauges["rss"].add_metric([name], sum(p["rss_bytes"] or 0 for p in stats["processes"]))
            for state, count in stats["runs"].items():
                runs.add_metric([name, state], count)
            for context, count in stats["contexts"].items():
                contexts.add_metric([name, context], count)
        uptime = GaugeMetricFamily("orpheus_uptime_seconds", "Time since the daemon started", value=self._uptime_s)
        lag = GaugeMetricFamily(
            "orpheus_loop_lag_seconds", "How late the event loop was at worst in the last minute", value=self._lag_s)
        ignored = CounterMetricFamily(
            "orpheus_ignored_events", "Facts about the dead", value=float(self._supervisor.ignored))
        return [*gauges.values(), runs, contexts, uptime, lag, ignored]


def _sample(worker: Worker, processes: Processes) -> dict[str, Any]:
    """What the monitor last saw of it; null where it has not looked yet."""
    sample = processes.monitor.latest(worker.id)
    return {
        "rss_bytes": sample.rss_bytes if sample else None,
        "cpu_percent": round(sample.cpu_percent, 1) if sample else None,
        "children": sample.children if sample else None,
        "threads": sample.threads if sample else None,
    }
