"""Writes docs/lifecycles.md from the transition tables: `python -m orpheusd.diagrams`.

It knows how a table looks on a page, not what its moves are for; and it is not in the core, which may neither print
nor know of the wire.
"""

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, TypeVar

from orpheusd.core import agent, run, worker
from orpheusd.wire.worker import MESSAGES, TRANSITIONS, LinkState

S = TypeVar("S", bound=Enum)

HEAD = """# Lifecycles

<!-- Made by `python -m orpheusd.diagrams`; a test holds it equal to the code. Do not edit. -->

Every lifecycle is one table at the top of its file, and a move that the table does not have is an error of our own.
These are the tables.
"""


class Lifecycle(NamedTuple):
    """One table and what a reader should know first. `moves` has, for each state, its next states and their cause."""

    name: str
    says: str
    moves: dict[str, list[tuple[str, str]]]


def lifecycles() -> tuple[Lifecycle, ...]:
    """All there are, in the order of the page."""
    return (
        Lifecycle("Worker and template", "`orpheusd/core/worker.py`. One process each, born once, dead once: it only "
                  "goes forward. Busy is not a state, it is having runs; a restart is a new worker in the same slot.",
                  _moves(worker.TRANSITIONS)),
        Lifecycle("Run", "`orpheusd/core/run.py`. It is executed at most once and ends in exactly one of the terminal "
                  "states. It goes back from started to queued only with proof that its worker never read it.",
                  _moves(run.TRANSITIONS)),
        Lifecycle("Agent", "`orpheusd/core/agent.py`. A quarantined agent is refused for a while because its workers "
                  "keep dying; a new version that works ends the quarantine, and so does time.",
                  _moves(agent.TRANSITIONS)),
        Lifecycle("Link", "`orpheusd/wire/worker.py`. How far the conversation between the supervisor and a template "
                  "or a worker has come. Both ends compute it from the messages alone; see "
                  "[worker-protocol.md](worker-protocol.md).", _link_moves()),
    )  # fmt: skip


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(lifecycle) for lifecycle in lifecycles())])


def section(lifecycle: Lifecycle) -> str:
    """One lifecycle: what it says, its diagram, its table."""
    lines = [f"## {lifecycle.name}", "", lifecycle.says, "", "```mermaid", *diagram(lifecycle.moves), "```", ""]
    caused = any(cause for moves in lifecycle.moves.values() for _, cause in moves)
    lines += ["| state | may become |" + (" by |" if caused else ""), "|---|---|" + ("---|" if caused else "")]
    for state, moves in lifecycle.moves.items():
        row = f"| `{state}` | {', '.join(f'`{next}`' for next, _ in moves) or 'nothing: it is terminal'} |"
        lines.append(row + (f" {', '.join(f'`{cause}`' for _, cause in moves)} |" if caused else ""))
    return "\n".join(lines) + "\n"


def diagram(moves: dict[str, list[tuple[str, str]]]) -> list[str]:
    """The lines of a mermaid state diagram. The first state is where life begins."""
    names = {state: state.replace("-", "_") for state in moves}
    lines = ["stateDiagram-v2", f"    [*] --> {names[next(iter(moves))]}"]
    lines += [f"    {name} : {state}" for state, name in names.items() if name != state]
    for state, following in moves.items():
        lines += [f"    {names[state]} --> {names[to]}" + (f" : {cause}" if cause else "") for to, cause in following]
        if not following:
            lines.append(f"    {names[state]} --> [*]")
    return lines


def _moves(table: Mapping[S, tuple[S, ...]]) -> dict[str, list[tuple[str, str]]]:
    return {state.value: [(to.value, "") for to in following] for state, following in table.items()}


def _link_moves() -> dict[str, list[tuple[str, str]]]:
    moves: dict[str, list[tuple[str, str]]] = {state.value: [] for state in LinkState}
    for type, to in TRANSITIONS.items():
        for state in MESSAGES[type].states:
            moves[state.value].append((to.value, type))
    return moves


if __name__ == "__main__":
    print(page(), end="")
