"""A reload: the daemon executes itself anew in place, and callers see at most a pause."""

import asyncio
import itertools
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from orpheusd.core import events as ev
from orpheusd.errors import OrpheusError
from orpheusd.pending import Pending
from tests.daemon import Control, Daemon, command, write_agent
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.integration.engine_house import TIMEOUT_S, House, in_house

NewDaemon = Callable[..., Daemon]

COUNTING = """
import os
turns = {}

def handler(input_data):
    session = input_data.get("session_id")
    turns[session] = turns.get(session, 0) + 1
    return {"turn": turns[session], "pid": os.getpid()}
"""

SLOW = """
import threading

def handler(input_data):
    effect()
    threading.Event().wait(input_data.get("seconds", 0))
    while "until" in input_data and not os.path.exists(workspace.path(input_data["until"])):
        threading.Event().wait(0.005)
    return {"secret": secret(input_data)}
"""


def reloaded(daemon: Daemon) -> dict[str, Any]:
    """The answer of the next image, which has the daemon's pid and a younger life."""
    answer: dict[str, Any] = daemon.call("reload")
    assert answer["pid"] == daemon.pid == daemon.call("status")["pid"]
    assert daemon.call("status")["uptime_s"] < 5
    return answer


def zombies(daemon: Daemon) -> list[psutil.Process]:
    return [one for one in daemon.family() if one.status() == psutil.STATUS_ZOMBIE]


def row(daemon: Daemon, run_id: str) -> dict[str, Any]:
    shown: dict[str, Any] = daemon.call("run.show", run_id=run_id)
    return shown


@contextmanager
def callers(*asks: Callable[[], None]) -> Iterator[list[BaseException]]:
    """Each of `asks` again and again in a thread of its own; what one of them raises ends it and is kept."""
    over, failed = threading.Event(), list[BaseException]()

    def repeat(ask: Callable[[], None]) -> None:
        try:
            while not over.wait(0.005):
                ask()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(ask,)) for ask in asks]
    for thread in threads:
        thread.start()
    try:
        yield failed
    finally:
        over.set()
        for thread in threads:
            thread.join()


class Session:
    """One session's calls over one way in. Invariant: each finds the memory that the one before has left."""

    def __init__(self, ask: Callable[[str], Any], name: str) -> None:
        self.turns = 0
        self._name = name
        self._ask = ask
        self._pid = 0

    def __call__(self) -> None:
        answer = self._ask(self._name)
        self.turns += 1
        assert answer["session"]["context"] == ("new" if self.turns == 1 else "warm"), answer
        assert answer["result"]["turn"] == answer["session"]["turn"] == self.turns
        self._pid = self._pid or answer["result"]["pid"]
        assert answer["result"]["pid"] == self._pid


def over_http(client: httpx.Client, session: str) -> Any:
    answer = client.post("/v1/agents/counting/run", json={"input": {}}, headers={"X-Session-ID": session})
    assert answer.status_code == 200, answer.text
    return answer.json()


def over_control(control: Control, session: str) -> Any:
    return control.call("run", agent="counting", input={}, session_id=session)


def test_callers_see_no_more_than_a_pause(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "counting", COUNTING, scaling={"min_workers": 2, "max_workers": 2}))
    assert daemon.http is not None
    with httpx.Client(base_url=daemon.http, timeout=30) as kept, daemon.connect() as control:
        sessions = [
            Session(lambda name: over_http(kept, name), "http"),
            Session(lambda name: over_control(control, name), "ctl"),
            Session(lambda name: over_new_http(daemon, name), "new-http"),
            Session(lambda name: over_new_control(daemon, name), "new-ctl")]
        with callers(*sessions) as failed:
            await_turns(sessions, failed)
            family, fds = set(daemon.family()), psutil.Process(daemon.pid).num_fds()
            for _ in range(3):
                assert reloaded(daemon)["paused_s"] < 5
                await_turns(sessions, failed)
        assert not failed
        assert set(daemon.family()) == family, "doors, templates and workers are those of before"
        assert not zombies(daemon)
        eventually(lambda: psutil.Process(daemon.pid).num_fds() <= fds + 2, what="no descriptor to be left over")
    family = set(daemon.family())
    assert daemon.stop() == 0
    assert not [one for one in family if one.is_running()]
    assert "ERROR" not in daemon.log and "CRITICAL" not in daemon.log


def await_turns(sessions: list[Session], failed: list[BaseException]) -> None:
    """Returns when each caller was answered three times more, or one has failed."""
    goals = [session.turns + 3 for session in sessions]
    eventually(lambda: failed or all(one.turns >= goal for one, goal in zip(sessions, goals, strict=True)), 20)


def over_new_http(daemon: Daemon, session: str) -> Any:
    with httpx.Client(base_url=daemon.http or "", timeout=30) as client:
        return over_http(client, session)


def over_new_control(daemon: Daemon, session: str) -> Any:
    with daemon.connect() as control:
        return over_control(control, session)


def test_a_run_that_takes_longer_goes_on_and_is_told_by_its_id(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon("--config", str(settings(tmp_path, stop_timeout_s=0.3)))
    daemon.deploy(witness(tmp_path / "slow", SLOW, scaling={"min_workers": 1, "max_workers": 1}))
    with Aftermath(daemon) as after, daemon.connect() as control:
        kept = after.run("slow", {}, session_id="s").result
        control.send("run", agent="slow", input={"seconds": 3}, session_id="s")
        eventually(lambda: daemon.call("agent.stats", agent="slow")["queue"]["processing"] == 1)
        with daemon.connect() as second:
            second.send("run", agent="slow", input={}, session_id="s")
            eventually(lambda: daemon.call("agent.stats", agent="slow")["queue"]["depth"] == 1)
            detached = daemon.call("run", agent="slow", input={}, session_id="s", detach=True)["request_id"]
            reloaded(daemon)
            began, waited = control.receive()["error"]["data"], second.receive()["error"]["data"]
        assert began["code"] == waited["code"] == "draining"
        assert waited["state"] == row(daemon, waited["request_id"])["state"] == "cancelled"
        assert began["state"] == "started"
        shown = daemon.call("run.show", run_id=began["request_id"], wait=20)
        assert (shown["state"], shown["result"]) == ("completed", kept)
        shown = daemon.call("run.show", run_id=detached, wait=20)
        assert (shown["state"], shown["context"], shown["result"]) == ("completed", "warm", kept)
        assert after.run("slow", {}, session_id="s").context == "warm"


def test_detached_runs_are_executed_once_across_reloads(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "queue", SLOW, scaling={"min_workers": 1, "max_workers": 1, "queue_size": 200}))
    with Aftermath(daemon), daemon.connect() as control:
        runs = [control.call("run", agent="queue", input={"seconds": 0.02}, detach=True)["request_id"]
                for _ in range(100)]
        for _ in range(3):
            reloaded(daemon)
        eventually(lambda: row(daemon, runs[-1])["state"] == "completed", 30)
        assert {row(daemon, run)["state"] for run in runs} == {"completed"}


def test_those_who_only_watch_do_not_hold_it_up(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(witness(tmp_path / "watched", SLOW))
    with Aftermath(daemon), daemon.connect() as logs, daemon.connect() as shown, daemon.connect() as control:
        run = control.call("run", agent="watched", input={"seconds": 4}, detach=True)["request_id"]
        eventually(lambda: row(daemon, run)["state"] == "started")
        shown.send("run.show", run_id=run, wait=60)
        logs.send("logs", agent="watched", stream=True)
        logs.call("health")
        assert reloaded(daemon)["paused_s"] < 4
        assert shown.receive()["result"]["state"] == "started"
        assert logs.call("run.show", run_id=run, wait=20)["state"] == "completed", "its connection is there"


def test_what_was_read_in_part_is_handed_over(new_daemon: NewDaemon) -> None:
    daemon = new_daemon(http=False)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(daemon.control_socket))
        client.sendall(b'{"jsonrpc":"2.0","id":1,"method":"health"}\n{"jsonrpc":"2.0","id":2,"met')
        with client.makefile("rb") as lines:
            assert json.loads(lines.readline())["id"] == 1
            reloaded(daemon)
            client.sendall(b'hod":"health"}\n')
            assert json.loads(lines.readline())["id"] == 2


def test_requests_that_were_read_and_not_begun_are_handed_over(new_daemon: NewDaemon) -> None:
    daemon = new_daemon(http=False)
    numbers = itertools.count(1)
    with daemon.connect() as control:

        def ask_much() -> None:
            """More in one read than a turn serves, so that some of it waits when the daemon begins no more."""
            ids = list(itertools.islice(numbers, 1000))
            control.socket.sendall(b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"health"}\n' % id for id in ids))
            assert [control.receive()["id"] for _ in ids] == ids, "each is answered once, and in order"

        with callers(ask_much) as failed:
            for _ in range(3):
                reloaded(daemon)
    assert not failed


def settings(folder: Path, **values: Any) -> Path:
    file = folder / "orpheusd.toml"
    file.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items()))
    return file


@pytest.mark.parametrize(("text", "said"), [
    ("grace_s = ", "cannot read"), ("no_such_setting = 1", "unknown setting"),
    ("http_doors = 2", "http_doors would be 2"),
])
def test_settings_that_will_not_do_refuse_it_and_nothing_changes(
    new_daemon: NewDaemon, tmp_path: Path, text: str, said: str
) -> None:
    file = settings(tmp_path, grace_s=1.5)
    daemon = new_daemon("--config", str(file))
    assert httpx.get(f"{daemon.http}/v1/health").is_success, "the door is up, and all it is made of"
    uptime_s, family = daemon.call("status")["uptime_s"], daemon.family()
    file.write_text(text)
    with pytest.raises(OrpheusError, match=said):
        daemon.call("reload")
    assert daemon.call("status")["uptime_s"] > uptime_s
    assert daemon.family() == family
    file.write_text("grace_s = 1.0")
    reloaded(daemon)


def test_a_program_that_does_not_start_refuses_it(new_daemon: NewDaemon, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif '--check' in sys.orig_argv:\n    raise SystemExit('the new version is broken')\n")
    daemon = new_daemon(http=False, env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"})
    uptime_s = daemon.call("status")["uptime_s"]
    with pytest.raises(OrpheusError, match="the new version is broken") as refused:
        daemon.call("reload")
    assert refused.value.code == "conflict"
    assert daemon.call("status")["uptime_s"] > uptime_s


def test_sighup_reloads_and_says_in_the_log_when_it_cannot(new_daemon: NewDaemon, tmp_path: Path) -> None:
    file = settings(tmp_path, grace_s=1.5)
    daemon = new_daemon("--config", str(file))
    daemon.deploy(write_agent(tmp_path / "counting", COUNTING))
    assert daemon.process is not None
    with daemon.connect() as control:
        assert over_control(control, "s")["result"]["turn"] == 1
        file.write_text("grace_s = ")
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: f"cannot read {file}" in daemon.log)
        assert daemon.call("health")["status"] == "ok"
        assert "reloading" not in daemon.log
        file.write_text("grace_s = 1.0\n")
        for _ in range(20):
            # all but the first while it reloads, or before it has noticed the one before
            daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: "reloaded: " in daemon.log, 10)
        assert over_control(control, "s")["result"]["turn"] == 2


def test_a_sigterm_while_the_new_image_starts_is_heard_by_it(new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    with daemon.connect() as control:
        control.send("reload")
        eventually(lambda: "reloading" in daemon.log, 10)
        assert daemon.stop() == 0
    assert not daemon.control_socket.exists()


def front_door(daemon: Daemon) -> list[psutil.Process]:
    """The door, after the sandbox around it if it has one."""
    return [process for process in daemon.family() if "orpheusd.doors.http" in command(process)]


def test_what_templates_of_before_leave_is_reaped(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "counting", COUNTING))
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    earlier = set(daemon.family())
    reloaded(daemon)
    daemon.call("undeploy", agent="counting")
    eventually(lambda: set(daemon.family()) & earlier == {*front_door(daemon)} and not zombies(daemon), 10,
               "the front door alone")


def test_a_front_door_of_before_is_reaped_and_replaced(new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    reloaded(daemon)
    before = front_door(daemon)
    before[-1].terminate()
    eventually(lambda: not {*before} & {*daemon.family()} and front_door(daemon) and not zombies(daemon), 10)
    assert httpx.get(f"{daemon.http}/v1/health").json()["status"] == "ok"


def test_over_http_it_is_refused_and_the_command_is_named(daemon: Daemon) -> None:
    answer = httpx.post(f"{daemon.http}/v1/reload")
    assert answer.status_code == 403
    assert "orpheusctl reload" in answer.json()["error"]


def test_the_command_tells_what_serves_now(new_daemon: NewDaemon) -> None:
    daemon = new_daemon(http=False)
    done = daemon.ctl("reload")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"reloaded: version {daemon.call('status')['version']}, pid {daemon.pid}, ")


@pytest.mark.slow
@pytest.mark.deadline(300)
def test_twenty_reloads_leave_nothing_open(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "counting", COUNTING))
    with daemon.connect() as control:
        reloaded(daemon)
        assert over_control(control, "s")["result"]["turn"] == 1
        fds = psutil.Process(daemon.pid).num_fds()
        for turn in range(2, 22):
            reloaded(daemon)
            answer = over_control(control, "s")
            assert answer["result"]["turn"] == turn, (answer, daemon.log)
        eventually(lambda: psutil.Process(daemon.pid).num_fds() <= fds)
        assert not zombies(daemon)


def test_a_detached_run_whose_turn_comes_while_nothing_begins_stays_queued() -> None:
    async def story(house: House) -> None:
        engine, loop = house.engine, asyncio.get_running_loop()
        written, ended = loop.create_future(), loop.create_future()
        began = house.line("in sleeps")
        for run, tell in (("r-1", lambda _outcome: None), ("r-2", ended.set_result)):
            engine.start_run(ev.RunRequested(run, "probe"), Pending(
                b'{"do": "sleeps"}', "ctl", "test", tell, None, detached=True))
        await asyncio.wait_for(began, TIMEOUT_S)
        await engine.hold(TIMEOUT_S)
        engine.ends.when("r-1", written.set_result)
        engine.feed(ev.CancelRequested("r-1"))
        assert await asyncio.wait_for(written, TIMEOUT_S), "its end is in the log, and the worker is free"
        states = {run: await house.recorder.detail(run) for run in ("r-1", "r-2")}
        assert [detail.run.state for detail in states.values() if detail is not None] == ["cancelled", "queued"]
        assert not ended.done()

    in_house(story)
