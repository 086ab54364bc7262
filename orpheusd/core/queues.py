"""How much may wait: runs of one agent by their number, and the inputs of all that wait by their size.

The daemon holds the input of a run that waits in memory. An agent may have so much of it waiting as is left for all:
alone it gets to a half of the limit, beside another that does the same to a third, and some is left for the next.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from orpheusd.core.run import Run

if TYPE_CHECKING:
    from orpheusd.core.agent import Agent

MIB = 1024 * 1024


class Queues:
    """Invariant: an agent's `waiting_bytes` is the size of the inputs of its `waiting`, `held_bytes` that of all."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.held_bytes = 0

    def add(self, agent: "Agent", run: Run) -> None:
        """The run waits from now on, behind those that do."""
        agent.waiting[run.id] = run
        self._count(agent, run.input_bytes)

    def add_first(self, agent: "Agent", run: Run) -> None:
        self.add(agent, run)
        agent.waiting.move_to_end(run.id, last=False)

    def remove(self, agent: "Agent", run: Run) -> None:
        del agent.waiting[run.id]
        self._count(agent, -run.input_bytes)

    def refusal(self, agent: "Agent", run: Run, instead_of: Collection[Run] = ()) -> str:
        """Why the run may not wait, also when those it is there instead of do no more; "" when it may. What an earlier
        daemon accepted may."""
        most = agent.settings.queue_size
        if run.readmitted:
            return ""
        if len(agent.waiting) - len(instead_of) >= most:
            return f"{most} runs of {agent.id} are waiting already; try again later"
        freed = sum(other.input_bytes for other in instead_of)
        own, all = agent.waiting_bytes - freed, self.held_bytes - freed
        if own + run.input_bytes <= self._limit_bytes - all:
            return ""
        return (f"the inputs of waiting runs hold {all / MIB:.0f} MiB of {self._limit_bytes / MIB:.0f} MiB, those of "
                f"{agent.id} {own / MIB:.0f} MiB, and another {run.input_bytes / MIB:.1f} MiB is too much; try again "
                "later, or put large data into the workspace and send its name")

    def _count(self, agent: "Agent", input_bytes: int) -> None:
        agent.waiting_bytes += input_bytes
        self.held_bytes += input_bytes
