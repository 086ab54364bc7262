"""What there is after a fault: the rows of the run log, by both ways, and what the kernel says the daemon holds."""

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.daemon import Control, Daemon, command
from tests.fault.callers import ANSWER_TIMEOUT_S
from tests.fault.invariants import Agent, Holdings, Row

#: The most rows one listing gives.
PAGE = 1000


def stored(daemon: Daemon, after_seq: int) -> tuple[Row, ...]:
    """The rows on the disk, read past the daemon."""
    connection = sqlite3.connect(f"file:{daemon.state_dir / 'runs.db'}?mode=ro", uri=True, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM runs WHERE seq > ? ORDER BY seq", (after_seq,)).fetchall()
    finally:
        connection.close()
    return tuple(_stored_row(row) for row in rows)


def _stored_row(row: sqlite3.Row) -> Row:
    words = [row[name] or "" for name in ("error_type", "error_message", "traceback", "exit_cause")]
    seconds = {name: None if row[name] is None else row[name] / 1e6 for name in ("started_at", "ended_at")}
    return Row(
        row["run_id"], row["agent"], row["session_id"], row["state"], row["code"], row["worker_id"], row["context"],
        seconds["started_at"], seconds["ended_at"], row["seq"], row["result"],
        row["result_bytes"] == len(row["result"] or b""), "\n".join(words).encode(errors="replace"))


def listed(control: Control, after_seq: int) -> Iterator[Row]:
    """The rows that `run.list` gives, page by page."""
    before: int | None = None
    while True:
        page = control.call("run.list", limit=PAGE, before=before)["runs"]
        yield from (row_of(row) for row in page if row["seq"] > after_seq)
        if len(page) < PAGE or page[-1]["seq"] <= after_seq:
            return
        before = page[-1]["seq"]


def row_of(row: dict[str, Any]) -> Row:
    return Row(row["run_id"], row["agent"], row["session_id"], row["state"], row["code"], row["worker_id"],
               row["context"], row["started_at"], row["ended_at"], row["seq"])


def printed(control: Control, agents: set[str]) -> Iterator[tuple[str, str | None, bytes]]:
    for name in sorted(agents):
        for line in control.call("logs", agent=name, limit=PAGE)["lines"]:
            yield name, line["session_id"], line["text"].encode(errors="replace")


def agents(daemon: Daemon) -> dict[str, Agent]:
    """Each deployed agent with its workers and sessions."""
    found = {}
    with daemon.connect(ANSWER_TIMEOUT_S) as control:
        for row in control.call("agent.list")["agents"]:
            shown = control.call("agent.show", agent=row["name"])
            sessions = control.call("session.list", agent=row["name"], limit=PAGE)["sessions"]
            found[row["name"]] = Agent(
                shown["state"], shown["min"], shown["max"], shown["queue"] + shown["runs"],
                {worker["id"]: worker["state"] for worker in shown["workers"]},
                tuple((session["id"], session["home"]) for session in sessions))
    return found


def state(daemon: Daemon, after_seq: int) -> dict[str, Any]:
    """Everything a refused request must leave alone."""
    kept = ("agents", "workspaces", "venvs", "tmp")
    with daemon.connect(ANSWER_TIMEOUT_S) as control:
        rows = control.call("agent.list")["agents"]
        sessions = {row["name"]: control.call("session.list", agent=row["name"], limit=PAGE)["sessions"]
                    for row in rows}
    return {
        "agents": [(row["name"], row["version"], row["state"], row["workers"]) for row in rows],
        "sessions": {name: [(row["id"], row["home"], row["turns"]) for row in rows]
                     for name, rows in sessions.items()},
        "runs": [row.run_id for row in stored(daemon, after_seq) if row.state != "rejected"],
        "files": sorted((str(path), path.lstat().st_size) for name in kept
                        for path in (daemon.state_dir / name).rglob("*")),
    }


def holdings(daemon: Daemon, agents: Mapping[str, Agent]) -> Holdings:
    """What the daemon holds while it serves `agents`."""
    workers = sum(len(agent.workers) for agent in agents.values())
    with daemon.connect(ANSWER_TIMEOUT_S) as control:
        control.call("health")  # by then it has closed the connections before this one
        templates = daemon.runtime_dir / "t"
        entries = [*daemon.runtime_dir.iterdir(), *(daemon.state_dir / "tmp").iterdir()]
        return Holdings(
            fds=_fds(daemon), processes=_processes(daemon, workers),
            templates=len(list(templates.iterdir())) if templates.exists() else 0, workers=workers,
            entries=frozenset(str(path.relative_to(daemon.directory)) for path in entries),
            rss_bytes=psutil.Process(daemon.pid).memory_info().rss, log_bytes=len(daemon.log))


def _fds(daemon: Daemon) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for path in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(OSError):
            kinds[_fd_kind(str(path.readlink()))] += 1
    return dict(kinds)


def _fd_kind(target: str) -> str:
    if target.startswith("/"):
        return "database" if ".db" in Path(target).name else "file"
    return target.removeprefix("anon_inode:").split(":")[0].strip("[]")


def _processes(daemon: Daemon, workers: int) -> dict[str, int]:
    """The daemon's family by kind, wherever it hangs in the tree; what is more than `workers` is called a stranger."""
    kinds: Counter[str] = Counter()
    for process in _family(daemon):
        with suppress(psutil.NoSuchProcess):
            kinds[_process_kind(process)] += 1
    kinds["stranger"] = max(0, kinds["worker"] - workers)
    return {kind: count for kind, count in kinds.items() if count}


def _family(daemon: Daemon) -> Iterator[psutil.Process]:
    """Everything below the daemon, and the orphans of its predecessors: they fell to this process, the subreaper, and
    those of them that are dead wait for nobody but us.
    """
    ours = psutil.Process()
    waiting = [ours]
    while waiting:
        parent = waiting.pop()
        for child in _children(parent):
            is_zombie, is_daemon = _is_zombie(child), _is_daemon(child)
            if (parent is ours and is_zombie) or (is_daemon and child.pid != daemon.pid):
                continue
            waiting.append(child)
            if not is_daemon:
                yield child


def _children(parent: psutil.Process) -> list[psutil.Process]:
    try:
        return parent.children()
    except psutil.NoSuchProcess:
        return []


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_daemon(process: psutil.Process) -> bool:
    return command(process)[1:3] == ["-m", "orpheusd"]


def _process_kind(process: psutil.Process) -> str:
    if process.status() == psutil.STATUS_ZOMBIE:
        return "zombie"
    if process.name() == "bwrap":
        return "sandbox of a door" if "orpheusd.doors.http" in command(process) else "sandbox"
    if not _is_agents(process):
        return f"{process.name()} {' '.join(command(process)[1:3])}"
    parent = process.parent()
    return "worker" if parent is not None and _is_agents(parent) else "template"


def _is_agents(process: psutil.Process) -> bool:
    """Whether it is a template or was forked by one."""
    return process.name() != "bwrap" and "orpheusd.worker.template" in " ".join(command(process))
