"""Points at which a test makes the daemon die, fail or stand still: a table of names, and what is armed.

Nothing is armed unless ORPHEUS_FAILPOINTS says so: `deploy-built=kill,runlog-committed=kill:3`, where a number says
at which passing. It decides nothing, and nothing in the daemon asks whether a point is armed.
"""

import logging
import re
import signal
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

log = logging.getLogger(__name__)

#: Every point, and what is so when it is passed. docs/failpoints.md holds the same rows.
POINTS: dict[str, str] = {
    "daemon-locked": "the state directory is ours, and nothing is open yet",
    "daemon-log-open": "the run log is open, and no process has been started",
    "daemon-doors-open": "callers can connect, and the daemon has not said that it is ready",
    "daemon-closing": "the daemon was told to stop, and has told nobody",
    "deploy-unpacked": "the bundle lies unpacked in `tmp/`, and has no number",
    "deploy-staged": "the version has its number and its place",
    "deploy-env-written": "the version's environment is written",
    "deploy-built": "what `requirements.txt` asks for is there, and no worker has tried the version",
    "deploy-promoted": "the version serves, and `current` still names the one before",
    "deploy-switched": "`current` names the version, and older ones are still there",
    "file-written": "a small file of an agent (a number, an environment) is written, under its temporary name",
    "run-accepted": "a run was accepted, and the supervisor has not heard of it",
    "run-dispatching": "a run has its worker, which has not been told",
    "run-dispatched": "a run was said to its worker, and its start is not in the log",
    "run-ended": "a worker's word that a run is over was read, and nobody has been told",
    "run-answered": "the caller has the answer of a run, and its end is not in the log",
    "template-started": "a template's process runs, and it has not dialled",
    "session-ended": "a session was ended, and its home has not been told",
    "runlog-committing": "a commit of the run log is complete, and not made",
    "runlog-committed": "a commit is on the disk, and the high-water mark has not followed",
    "runlog-checkpointed": "the WAL was moved into the database",
    "runlog-trimming": "old runs are deleted in a transaction that is not committed",
    "runlog-given-back": "empty pages of the run log were given back",
}
ACTIONS = ("kill", "raise", "stall", "block")

_ORDER = re.compile(r"(?P<action>[a-z]+)(?::(?P<passing>[1-9][0-9]{0,8}))?")


class Failed(Exception):
    """What a point raises that is armed with `raise`."""


class Trap(NamedTuple):
    """What a point does at its `passing`-th passing.

    `kill` is SIGKILL to the daemon, `raise` a fault, and `stall` SIGSTOP: a test sees the daemon stand at the point,
    and has it go on with SIGCONT. `block` never lets the thread go on that is there; where that is the loop's, only a
    deadly signal helps.
    """

    action: str
    passing: int


_armed: dict[str, Trap] = {}
_passings: Counter[str] = Counter()


def reached(point: str) -> None:
    """To be called where the point is. Costs one truth test when nothing is armed."""
    if _armed:
        _pass(point)


def parse(text: str) -> dict[str, Trap]:
    """The traps in `POINT=ACTION[:N],…`. Raises ValueError that names the points, or the actions, there are."""
    traps: dict[str, Trap] = {}
    for item in filter(None, map(str.strip, text.split(","))):
        point, _, order = item.partition("=")
        if point not in POINTS:
            raise ValueError(f"there is no failpoint {point!r}; there are {', '.join(POINTS)}")
        stated = _ORDER.fullmatch(order)
        if stated is None or stated["action"] not in ACTIONS:
            raise ValueError(f"{item!r} must be {point}=ACTION or {point}=ACTION:N with N from 1; "
                             f"actions are {', '.join(ACTIONS)}")
        traps[point] = Trap(stated["action"], int(stated["passing"] or 1))
    return traps


def arm(traps: Mapping[str, Trap]) -> None:
    """From now on these points do what they are armed with, and no others do anything."""
    _armed.clear()
    _passings.clear()
    _armed.update(traps)
    for point, trap in traps.items():
        log.warning("failpoint %s is armed: %s at passing %d", point, trap.action, trap.passing)


def _pass(point: str) -> None:
    trap = _armed.get(point)
    if trap is None:
        return
    _passings[point] += 1
    if _passings[point] != trap.passing:
        return
    if trap.action == "raise":
        raise Failed(f"the failpoint {point} is armed")
    while trap.action == "block":
        signal.pause()
    signal.raise_signal(signal.SIGKILL if trap.action == "kill" else signal.SIGSTOP)
