"""What becomes of runs and sessions when a worker is gone: what it never read waits again, the rest has crashed."""

from typing import TYPE_CHECKING

from orpheusd.core.routing import Router
from orpheusd.core.run import Run, RunState
from orpheusd.core.worker import Worker

if TYPE_CHECKING:
    from orpheusd.core.agent import Agent

_STATE_OF_STOPPED = {"timed-out": RunState.TIMED_OUT, "cancelled": RunState.CANCELLED}
_MESSAGE_OF_STOPPED = {
    "timed-out": "the run took longer than its timeout, and its worker ended with it",
    "cancelled": "the run was cancelled, and its worker ended with it",
}


def mourn(
    router: Router, agent: "Agent", worker: Worker, cause: str, undelivered: frozenset[str], now: float
) -> None:
    """`worker` has exited. Each of its runs waits again or is resolved, and its sessions are homeless."""
    for run in [run for run in reversed(worker.runs.values()) if run.id in undelivered and not run.stopping]:
        router.take_back(agent, run)
    resolve_lost(router, agent, worker, cause, now)
    router.home_died(agent, worker, now)


def resolve_lost(router: Router, agent: "Agent", worker: Worker, cause: str, now: float) -> None:
    """Nothing more will be heard of the runs that `worker` has."""
    for run in list(worker.runs.values()):
        router.ended(agent, run, now)
        router.resolve(agent, run, *_end_of(run, cause), now, cause)


def _end_of(run: Run, cause: str) -> tuple[RunState, str, str]:
    if run.stopping:
        return _STATE_OF_STOPPED[run.stopping], run.stopping, (
            f"{_MESSAGE_OF_STOPPED[run.stopping]} ({cause}); `orpheusctl show {run.id}` shows where it was stuck")
    return RunState.CRASHED, "worker-crashed", (
        f"the worker died while it ran this ({cause}); `orpheusctl show {run.id}` has its stack and its last lines")
