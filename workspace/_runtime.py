"""The one seam between this library and the worker that runs the agent: the worker fills it, the library reads it.

Private: an agent that touches it has no promise. Outside Orpheus nobody fills it, and every reader copes.
"""

import os
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Where the workspace is when neither a worker nor `$WORKSPACE_DIR` says so: an agent's unit tests.
UNBOUND_ROOT = "workspace-data"


@dataclass(frozen=True)
class ActiveRun:
    """The facts of one run, as its handler may see them. `emit` takes one piece of output.

    `state` is the run's copy of its session's dict (`workspace.memory.State`), None without a session.
    """

    id: str
    agent: str
    version: int
    session: str | None
    context: str | None
    turn: int
    deadline: float | None
    deadline_monotonic_s: float | None
    emit: Callable[[Any], None]
    state: Any = None


#: The run that this task or thread works for. A context variable, so that runs which share a worker never mix.
active: ContextVar[ActiveRun | None] = ContextVar("workspace_active_run", default=None)

_bound_root: Path | None = None


def bind(root: str | Path) -> None:
    """Called once by the worker: the workspace is here, whatever the handler does to its environment."""
    global _bound_root  # noqa: PLW0603
    _bound_root = Path(root)


def root() -> Path:
    """The workspace's directory, absolute; it need not exist yet."""
    if _bound_root is not None:
        return _bound_root
    return Path(os.environ.get("WORKSPACE_DIR") or UNBOUND_ROOT).absolute()
