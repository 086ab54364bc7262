"""What the process of an HTTP door can see and do: nothing of the state, the workspaces, or other processes."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from orpheusd.doors import front
from orpheusd.doors.front import tag_of
from orpheusd.process import sandbox, survivors
from tests.daemon import Daemon, command

NewDaemon = Callable[..., Daemon]


@pytest.fixture
def door(daemon: Daemon) -> psutil.Process:
    status = daemon.call("status")
    if status["isolation"] != "bwrap":
        pytest.skip(status["isolation_reason"])
    return serving(daemon)[-1]


def serving(daemon: Daemon) -> list[psutil.Process]:
    """The door that answers, after the sandbox around it."""
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    return [process for process in daemon.family() if "orpheusd.doors.http" in command(process)]


def test_a_door_sees_neither_state_nor_sockets(daemon: Daemon, door: psutil.Process) -> None:
    inside = Path(f"/proc/{door.pid}/root")
    for hidden in (daemon.state_dir, daemon.runtime_dir, daemon.control_socket, Path("/etc/shadow"), Path("/sys")):
        assert hidden.exists()
        assert not inside.joinpath(*hidden.parts[1:]).exists(), hidden
    code = Path(sandbox.__file__).resolve().parents[1]
    assert [path.name for path in inside.joinpath(*code.parent.parts[1:]).iterdir() if path.name == "tests"] == []


def test_a_door_sees_no_process_but_itself(door: psutil.Process) -> None:
    numbers = [path.name for path in Path(f"/proc/{door.pid}/root/proc").iterdir() if path.name.isdigit()]
    assert numbers == ["1"]


def test_a_door_has_no_rights_and_can_write_nothing_that_stays(door: psutil.Process) -> None:
    lines = Path(f"/proc/{door.pid}/status").read_text().splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    if not sandbox.detect("auto").weaknesses:
        assert status["Seccomp"] == "2"
    mounts = [line.split() for line in Path(f"/proc/{door.pid}/mounts").read_text().splitlines()]
    own = {mount[1] for mount in mounts if "rw" in mount[3].split(",") and not mount[1].startswith("/dev")}
    assert own == {"/tmp"}


def test_a_door_without_its_sandbox_goes_and_another_comes(new_daemon: NewDaemon) -> None:
    daemon = new_daemon()
    if (status := daemon.call("status"))["isolation"] != "bwrap":
        pytest.skip(status["isolation_reason"])
    outer, door = serving(daemon)
    outer.kill()
    psutil.wait_procs([door], timeout=10)
    assert not door.is_running()
    assert door not in serving(daemon)


def test_the_next_door_comes_after_the_first_delay_and_the_one_after_it_after_twice_that(
        new_daemon: NewDaemon) -> None:
    daemon = new_daemon(isolation="none")
    for _ in range(2):
        serving(daemon)[-1].kill()
    serving(daemon)
    delays = [float(told) for told in re.findall(r"the next one starts in (\S+) s", daemon.log)]
    assert delays == [front.RESTART_FIRST_S, 2 * front.RESTART_FIRST_S]


def test_without_isolation_a_door_serves_as_well(new_daemon: NewDaemon) -> None:
    assert len(serving(new_daemon(isolation="none"))) == 1


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_a_door_is_found_by_its_tag_however_much_its_daemon_was_given(new_daemon: NewDaemon, isolation: str) -> None:
    daemon = new_daemon(isolation=isolation, env={"LARGE": "x" * 100_000})
    assert httpx.get(f"{daemon.http}/v1/health").is_success
    assert survivors.tagged(tag_of(daemon.runtime_dir))
