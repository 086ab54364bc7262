"""A worker that takes more memory than its agent may have, or too many processes: real workers, held by looking."""

import asyncio
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.errors import OrpheusError
from orpheusd.process import limits, usage
from orpheusd.process.causes import MB
from orpheusd.process.groups import TASKS_LIMIT
from orpheusd.process.limits import LATEST_S
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.integration.engine_house import TIMEOUT_S, House, in_house

LIMIT_BYTES = 100 * MB

OOM = re.compile(r"out of memory: killed by (orpheusd|the kernel), limit (\d+) MB, peak (\d+) MB, signal 9 .SIGKILL.")


@pytest.mark.parametrize("do", ["grows", "child_grows"])
def test_a_worker_that_grows_over_its_limit_is_dead_within_a_second(do: str) -> None:
    # fault 7
    async def story(house: House) -> None:
        over = house.line("over")
        ended = house.start(do, bytes=110_000_000)
        await asyncio.wait_for(over, TIMEOUT_S)
        crossed_at = time.monotonic()
        outcome = await asyncio.wait_for(ended, TIMEOUT_S)
        assert time.monotonic() - crossed_at < LATEST_S + 0.5, "a second, and what death and its report take"
        told = OOM.fullmatch(outcome.cause)
        assert told is not None and outcome.state == "crashed", outcome.cause
        assert told[1] == "orpheusd" and told[2] == "100" and 100 <= int(told[3]) < 600
        assert outcome.black_box["cause"] == outcome.cause
        assert outcome.black_box["peak_rss_bytes"] // MB == int(told[3])
        assert (await house.run("takes_memory", bytes=1_000)).cause == "exit 0", "the next worker serves"

    in_house(story, memory_bytes=LIMIT_BYTES)


def test_memory_that_is_shared_is_counted_once() -> None:
    async def story(house: House) -> None:
        assert (await house.run("shares_memory", bytes=50_000_000)).result == b"50000000"

    in_house(story, memory_bytes=LIMIT_BYTES)


@pytest.mark.parametrize(("do", "memory_bytes"), [
    ("forks_without_end", 1000 * MB), ("doubles_without_end", 1000 * MB), ("doubles_without_end", LIMIT_BYTES)])
def test_a_fork_bomb_is_ended_and_told(do: str, memory_bytes: int) -> None:
    # fault 13: also where its pages are to be counted, for which the kernel waits for those that fork
    async def story(house: House) -> None:
        outcome = await house.run(do)
        assert outcome.state == "crashed"
        assert outcome.cause.endswith(f", ended by orpheusd: it has more than {TASKS_LIMIT} processes")

    in_house(story, memory_bytes=memory_bytes)


def test_many_processes_are_counted_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    # the kernel takes some 60 us for each of hundreds, and everybody's answers would wait for that
    looks: list[tuple[bool, int]] = []

    def counting(*args: Any) -> usage.Usage:
        used = usage.usage(*args)
        looks.append((threading.current_thread() is threading.main_thread(), used.processes))
        return used

    async def story(house: House) -> None:
        assert (await house.run("forks_without_end")).state == "crashed"

    monkeypatch.setattr(limits, "usage", counting)
    in_house(story, memory_bytes=1000 * MB)
    assert max(processes for in_loop, processes in looks if in_loop) <= limits.MANY_PROCESSES + 1
    assert max(processes for in_loop, processes in looks if not in_loop) > TASKS_LIMIT


def test_nothing_is_held_of_workers_that_are_gone() -> None:
    async def story(house: House) -> None:
        for _ in range(3):
            await house.run("exits", status=1)
        assert len(house.engine.processes.limits._held) <= 2, "a template, and perhaps its next worker"

    in_house(story, memory_bytes=LIMIT_BYTES)


#: What is imported in the template forks, and the child takes memory from when there is a file.
HOARDS = """
import os, time
if os.fork() == 0:
    while not os.path.exists("/tmp/go"):
        time.sleep(0.01)
    held = []
    while len(held) < 40:
        held.append(b"x" * 10_000_000)
        time.sleep(0.005)
    time.sleep(600)
def handler(input_data):
    open("/tmp/go", "w").close()
"""
AT_IMPORT = HOARDS + """
handler(None)
time.sleep(20)
"""


def test_what_an_agent_starts_at_import_is_held_to_its_memory(daemon: Daemon, tmp_path: Path) -> None:
    # fault 7
    folder = write_agent(tmp_path / "hoards", AT_IMPORT, memory=100, preload=True)
    with pytest.raises(OrpheusError, match="at import was killed: its memory is over the limit of 100 MB"):
        daemon.deploy(folder)
    eventually(lambda: not [one for one in daemon.family() if one.name().startswith("python") and _resident(one)],
               what="the end of what it started")


def test_a_template_is_held_to_its_memory_when_it_serves_and_its_workers_are_not_counted(
        daemon: Daemon, tmp_path: Path) -> None:
    # fault 7
    shares = "held = b'x' * 60_000_000\ndef handler(input_data):\n    return len(held)\n"
    daemon.deploy(write_agent(tmp_path / "shares", shares, memory=100, preload=True, scaling={"min_workers": 4}))
    daemon.deploy(write_agent(tmp_path / "hoards", HOARDS, memory=100, preload=True))
    daemon.call("run", agent="hoards", input={})
    eventually(lambda: "hoards" in daemon.log and "its memory is over the limit of 100 MB" in daemon.log, 10)
    assert daemon.call("run", agent="shares", input={})["result"] == 60_000_000
    assert daemon.call("agent.stats", agent="shares")["runs"]["crashed"] == 0


def _resident(process: psutil.Process) -> bool:
    try:
        return process.memory_info().rss > 150 * MB
    except psutil.NoSuchProcess:
        return False


GREEDY = """
import os, time
def handler(input_data):
    held = []
    while input_data.get("grow"):
        held.append(b"x" * 10_000_000)
        time.sleep(0.01)
    return os.getpid()
"""


def test_no_worker_is_started_that_the_box_has_no_memory_for(daemon: Daemon, tmp_path: Path) -> None:
    waits = "import time\ndef handler(input_data):\n    time.sleep(input_data['s'])\n"
    daemon.deploy(write_agent(tmp_path / "huge", waits, memory=1_048_576, scaling={"max_workers": 3}))
    with daemon.connect() as control:
        for _ in range(2):
            control.send("run", agent="huge", input={"s": 1})
        eventually(lambda: daemon.call("agent.show", agent="huge")["queue"] == 1)
        assert any("huge has" in problem for problem in daemon.call("status")["problems"])
        assert "huge has" in daemon.ctl("doctor").stdout
        answers = [control.receive() for _ in range(2)]
    assert len({answer["result"]["worker_id"] for answer in answers}) == 1, "the one there is has done both"
    assert daemon.call("agent.stats", agent="huge")["workers"]["current"] == 1


def test_one_that_takes_too_much_is_told_as_such_and_its_siblings_live(daemon: Daemon, tmp_path: Path) -> None:
    # faults 7, 8: contained before the box feels it
    daemon.deploy(write_agent(tmp_path / "greedy", GREEDY, memory=80, scaling={"min_workers": 2, "max_workers": 2}))
    shown = daemon.call("agent.show", agent="greedy")
    status = daemon.call("status")
    assert shown["memory_limit"] == status["memory_limit"]
    assert (status["memory_limit"] == "cgroup") == (status["memory_limit_reason"] == "")
    eventually(lambda: daemon.call("agent.stats", agent="greedy")["workers"]["healthy"] == 2)
    sibling = daemon.call("run", agent="greedy", input={}, session_id="calm")["result"]
    answered = daemon.ctl("run", "greedy", '{"grow": true}', "--session", "wild", "--json")
    assert answered.returncode == 70 and "out of memory" in answered.stdout + answered.stderr
    [row] = daemon.call("run.list", agent="greedy", session="wild")["runs"]
    box = daemon.call("run.show", run_id=row["run_id"])["black_box"]
    told = OOM.fullmatch(box["cause"])
    assert told is not None and told[2] == "80" and box["peak_rss_bytes"] >= 80 * MB, box
    again = daemon.call("run", agent="greedy", input={}, session_id="calm")
    assert (again["result"], again["session"]["context"]) == (sibling, "warm")
    os.kill(daemon.pid, 0)
