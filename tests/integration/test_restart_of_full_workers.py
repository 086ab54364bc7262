"""A worker whose agent has used up all descriptors finds the next daemon all the same, with what is in its memory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon import Daemon, write_agent

LEAKS = """
import os, resource
held, turns = [], []

def handler(input_data):
    turns.append(1)
    try:
        while True:
            held.append(os.open("/", os.O_RDONLY))
    except OSError as error:
        return [len(turns), error.strerror, resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
"""


# fault 36
@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_an_agent_that_leaks_descriptors_keeps_its_memory_when_the_daemon_dies(
        new_daemon: Callable[..., Daemon], tmp_path: Path, isolation: str) -> None:
    daemon = new_daemon(isolation=isolation)
    daemon.deploy(write_agent(tmp_path / "leaks", LEAKS))
    for turn in (1, 2, 3):
        answer = daemon.call("run", agent="leaks", input={}, session_id="s")
        assert answer["result"] == [turn, "Too many open files", 1024], "the limit is its own again"
        assert answer["session"]["context"] == ("new" if turn == 1 else "warm")
        daemon.crash()
        daemon.start()
