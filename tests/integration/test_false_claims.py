"""A template that was taken over tells the next daemon of workers that are another agent's, and is not believed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.daemon import ROOT, Daemon, command, write_agent
from tests.eventually import eventually

NewDaemon = Callable[..., Daemon]

ROGUE = (ROOT / "tests" / "handlers" / "rogue.py").read_text()
COUNTS = """
turns = []
def handler(input_data):
    turns.append(input_data)
    return len(turns)
"""


def claiming(folder: Path, claims: list[Any]) -> Path:
    """An agent whose template claims these when it dials again, and then says it is ready."""
    said = ({"type": "workers"}, claims, {"type": "ready", "handler": ""})
    rogue = write_agent(folder, ROGUE, preload=True)
    (rogue / "when").write_text("template redial")
    (rogue / "frames").write_text("".join(f"{json.dumps(line)}\n" for line in said))
    return rogue


def templates(daemon: Daemon, agent: str) -> list[psutil.Process]:
    """The agent's processes but for its workers: parents of these, as the kernel has it."""
    worker = psutil.Process(daemon.call("agent.show", agent=agent)["workers"][0]["pid"])
    return [parent for parent in worker.parents() if "orpheusd.worker.template" in " ".join(command(parent))]


def test_another_agents_worker_cannot_be_claimed(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "owner", COUNTS, scaling={"max_workers": 1}))
    assert daemon.call("run", agent="owner", input={}, session_id="s")["result"] == 1
    [owned] = daemon.call("agent.show", agent="owner")["workers"]
    claims = [owned["id"], [owned["id"], "0" * 32], [owned["id"]], [1, 2], owned["id"] * 1000]
    daemon.deploy(claiming(tmp_path / "rogue", claims))
    # The owner's template is slow, so that the claim comes first. The honest list comes behind it, when it must not be
    # said any more, and the daemon tells of that.
    slow = templates(daemon, "owner")
    for process in slow:
        process.suspend()
    try:
        daemon.call("reload")
        eventually(lambda: "the template broke the protocol" in daemon.log, 4.0, "what is not honest to be heard")
    finally:
        for process in slow:
            process.resume()
    answer = daemon.call("run", agent="owner", input={}, session_id="s")
    assert (answer["result"], answer["session"]["context"], answer["worker_id"]) == (2, "warm", owned["id"])
