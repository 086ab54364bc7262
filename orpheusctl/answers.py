"""How the answer of each simple command reads, for people and for scripts that do not ask for JSON.

One function a command, named for its words. It asks the daemon nothing and writes through `Output` only.
"""

from argparse import Namespace
from typing import Any

from orpheusctl.output import Output
from orpheusctl.units import clock, iso, size

Result = dict[str, Any]

_AGENT_COLUMNS = ("name", "version", "state", "workers", "min", "max", "sessions", "queue", "runs")
_RUN_COLUMNS = ("when", "run_id", "agent", "session_id", "context", "state", "code", "duration_ms", "source", "seq")
#: On a terminal: what fits, and what the next command needs.
_FEW_RUN_COLUMNS = ("when", "run_id", "session_id", "context", "state", "duration_ms")
_SESSION_COLUMNS = ("id", "home", "turns", "running", "waiting", "idle_s")


def show(words: str, answer: Result, arguments: Namespace, output: Output) -> None:
    _SHOW[words](answer, arguments, output)


def exit_code(words: str, answer: Result) -> int:
    """0, but for a command whose answer says that nothing was done."""
    return 1 if words == "cancel" and not answer.get("cancelled") else 0


def _list(answer: Result, arguments: Namespace, output: Output) -> None:
    if arguments.agent is not None:
        output.facts(answer)
        return
    agents = answer["agents"]
    if not agents and output.draws:
        output.note("no agents yet: deploy one with `orpheusctl deploy PATH`")
        return
    output.table(_AGENT_COLUMNS, agents)
    for agent in agents:
        if rolled_back := agent.get("rolled_back"):
            output.note(f"{agent['name']}: version {rolled_back['version']} kept losing its workers and was rolled "
                        f"back {iso(rolled_back['at'])}: {rolled_back['reason']}")


def _sessions(answer: Result, arguments: Namespace, output: Output) -> None:
    sessions = answer["sessions"]
    if not sessions and output.draws:
        output.note(f"{arguments.agent} has no sessions")
        return
    output.table(_SESSION_COLUMNS, sessions)
    total = answer.get("total", len(sessions))
    if total > len(sessions):
        output.note(f"{len(sessions)} of {total} sessions; -n N shows more")


def _runs(answer: Result, _: Namespace, output: Output) -> None:
    if not answer["runs"] and output.draws:
        output.note("the run log has no such runs")
        return
    moment, columns = (clock, _FEW_RUN_COLUMNS) if output.draws else (iso, _RUN_COLUMNS)
    output.table(columns, [{**row, "when": moment(row["queued_at"])} for row in answer["runs"]])


def _show(answer: Result, _: Namespace, output: Output) -> None:
    output.facts(answer)


def _why(answer: Result, _: Namespace, output: Output) -> None:
    for sentence in answer["because"]:
        output.line(sentence)


def _cancel(answer: Result, _: Namespace, output: Output) -> None:
    if answer["cancelled"]:
        output.line(f"cancelled {answer['run_id']}")
    else:
        output.note(f"run {answer['run_id']} has already ended; there is nothing to cancel")


def _undeploy(answer: Result, _: Namespace, output: Output) -> None:
    rest = "its workspace and logs are deleted" if answer["purged"] else "its workspace stays"
    output.line(f"undeployed {answer['name']}; {rest}")


def _restart(answer: Result, _: Namespace, output: Output) -> None:
    output.line(f"restarted {answer['name']} (version {answer['version']})")


def _rollback(answer: Result, _: Namespace, output: Output) -> None:
    output.line(f"rolled {answer['name']} back from version {answer['from']} to {answer['version']}")


def _reload(answer: Result, _: Namespace, output: Output) -> None:
    after = "" if answer["before"] == answer["version"] else f" after {answer['before']}"
    output.line(f"reloaded: version {answer['version']}{after}, pid {answer['pid']}, "
                f"callers waited {answer['paused_s']} s")


def _session_end(answer: Result, _: Namespace, output: Output) -> None:
    output.line(f"ended {answer['id']}")


def _workspace_path(answer: Result, _: Namespace, output: Output) -> None:
    output.line(answer["path"])


def _workspace_clean(answer: Result, _: Namespace, output: Output) -> None:
    output.line(f"removed {answer['removed_files']} files ({size(answer['removed_bytes'])}) from {answer['path']}")
    if answer.get("left"):
        output.note(f"{answer['left']} could not be removed; the daemon's user may not, or they came back meanwhile")


def _status(answer: Result, _: Namespace, output: Output) -> None:
    output.facts(answer)
    for problem in answer.get("problems", ()):
        output.note(f"PROBLEM: {problem}")
    for weakness in answer.get("isolation_weaknesses", ()):
        output.note(f"weaker than it could be: {weakness}")


def _facts(answer: Result, _: Namespace, output: Output) -> None:
    output.facts(answer)


_SHOW = {
    "list": _list,
    "sessions": _sessions,
    "runs": _runs,
    "show": _show,
    "why": _why,
    "cancel": _cancel,
    "undeploy": _undeploy,
    "restart": _restart,
    "rollback": _rollback,
    "reload": _reload,
    "session show": _facts,
    "session end": _session_end,
    "stats": _facts,
    "status": _status,
    "workspace path": _workspace_path,
    "workspace info": _facts,
    "workspace clean": _workspace_clean,
}
