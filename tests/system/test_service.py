"""The service on a real systemd: installed, started by its socket, watched, killed, restarted, upgraded, removed."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.daemon import ROOT, command, write_agent
from tests.eventually import eventually
from tests.planted import GIVEN, LOOKOUT, MARK, secret
from tests.system.box import SYSTEMD, Box
from tests.system.callers import AGENT, Callers, ask

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not installed"),
]

SERVICE, SOCKET = "orpheusd.service", "orpheusd.socket"
AGENTS_SOCKET, AGENTS = "orpheus-agents.socket", "orpheus-agents@*.service"
USER = "orpheus"
SESSIONS = [f"s{number}" for number in range(6)]
CONNECT_TIMEOUT_S = 10.0
#: A restart after a crash takes about a second.
BACK_TIMEOUT_S = 20.0

HANDLER = """
import ctypes, os

turns = {}

def handler(input_data):
    session = input_data["session_id"]
    turns[session] = turns.get(session, 0) + 1
    return {"turn": turns[session], "environ": sorted(os.environ), "uid": os.getuid(), "openat2": openat2()}

def openat2():
    libc, how = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(24)
    opened = libc.syscall(437, -100, b"/", how, 24)
    if opened < 0:
        return os.strerror(ctypes.get_errno())
    os.close(opened)
    return True
"""


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A box with the service installed as docs/operations.md says, and one agent deployed."""
    one = Box().boot()
    try:
        one.run("make", "-C", "/src", "install", network=True)
        one.run("systemd-sysusers")
        one.run("systemd-tmpfiles", "--create", "orpheus.conf")
        one.systemctl("daemon-reload")
        one.systemctl("start", SOCKET)
        folder = write_agent(tmp_path_factory.mktemp("agents") / AGENT, HANDLER)
        inside = one.path("/tmp") / AGENT
        inside.mkdir()
        for file in folder.iterdir():
            (inside / file.name).write_bytes(file.read_bytes())
        # its deployer's secret comes by the environment, and is in no command line of ours either
        one.run("sh", "-c", f"read -r {GIVEN}; export {GIVEN}; exec orpheusctl deploy /tmp/{AGENT}",
                input=secret(AGENT) + "\n")
        yield one
    finally:
        one.close()


@pytest.fixture(autouse=True)
def _started(box: Box) -> Iterator[None]:
    """Every test begins with the service as it is installed, well, and not near its limit of starts.

    After it no secret is to be found.
    """
    box.systemctl("reset-failed")
    box.systemctl("start", SOCKET, SERVICE)
    answer = ask(box, "begin")
    assert answer.status == 200, f"{answer}; journal:\n{box.journal()}"
    yield
    box.look_around([SERVICE, SOCKET, AGENTS_SOCKET, AGENTS], USER)


@pytest.fixture
def changed(box: Box) -> Iterator[Callable[..., None]]:
    """A function that gives the service other settings until the test is over. They hold from its next start."""
    def change(*lines: str) -> None:
        box.drop_in(SERVICE, lines)

    yield change
    box.drop_in(SERVICE, [])
    box.systemctl("restart", SERVICE)


def test_the_units_are_good(box: Box) -> None:
    said = box.run("systemd-analyze", "verify", SERVICE, SOCKET, AGENTS_SOCKET, "orpheus-agents@1.service")
    assert said == ""


def test_it_says_when_it_is_ready_and_how_it_is(box: Box) -> None:
    assert box.property("SubState") == "running"
    assert box.property("StatusText").startswith("ready: control socket /run/orpheus/ctl.sock, http localhost:7777")
    assert "isolation bwrap" in box.property("StatusText")
    assert box.property("WatchdogUSec") == "30s"


def test_both_addresses_of_localhost_are_its_own(box: Box) -> None:
    for host in ("127.0.0.1", "::1"):
        with box.connect(CONNECT_TIMEOUT_S, host) as client:
            client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert client.recv(64).startswith(b"HTTP/1.1 200 "), host


def test_where_ipv6_is_switched_off_it_starts_all_the_same(box: Box) -> None:
    def switch(off: str) -> None:
        with box.network():
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text(off)

    try:
        switch("1")
        box.systemctl("stop", SOCKET, SERVICE)
        box.systemctl("start", SOCKET)
        assert ask(box, "without").status == 200
        with pytest.raises(OSError, match="assign requested address"):
            box.connect(CONNECT_TIMEOUT_S, "::1")
    finally:
        switch("0")
    with box.connect(CONNECT_TIMEOUT_S, "::1"):
        pass  # it was kept for when it comes


@pytest.mark.parametrize("door", ["http", "control"])
def test_the_first_request_starts_it(box: Box, door: str) -> None:
    box.systemctl("stop", SERVICE)
    assert box.property("ActiveState") == "inactive"
    if door == "http":
        assert ask(box, "first").status == 200
    else:
        with box.control() as control:
            assert control.call("health")["status"] == "ok"
    assert box.property("ActiveState") == "active"


def test_nothing_of_it_is_root(box: Box) -> None:
    answer = ask(box, "who")
    assert answer.status == 200, answer
    uid = int(box.run("id", "-u", USER))
    ours = box.processes(USER)
    assert {"python", "bwrap"} <= {process.name() for process in ours}
    (main,) = [process for process in ours if command(process)[-2:] == ["-m", "orpheusd"]]
    for process in ours:
        group = Path(f"/proc/{process.pid}/cgroup").read_text().strip()
        assert "/orpheusd.service" in group or "/orpheus-agents@" in group, process
    for process in ours:
        status = _status(process)
        assert status["Uid"].split() == [str(uid)] * 4, process
        assert status["NoNewPrivs"] == "1", process
    assert int(_status(main)["CapEff"], 16) == 0


def test_workers_hear_nothing_of_systemd(box: Box) -> None:
    seen = ask(box, "environ").body["result"]["environ"]
    assert not [name for name in seen if name.startswith(("NOTIFY_", "LISTEN_", "WATCHDOG_", "CREDENTIALS_"))]


def test_the_units_leave_bubblewrap_what_it_needs(box: Box) -> None:
    # 0.12 opens everything with openat2, which RestrictSUIDSGID= answers with ENOSYS
    assert ask(box, "opens").body["result"]["openat2"] is True
    for unit in (SERVICE, "orpheus-agents@1.service"):
        assert box.property("RestrictSUIDSGID", unit) == "no"


def test_a_secret_in_the_journal_or_in_what_systemd_shows_is_found(box: Box, changed: Callable[..., None]) -> None:
    box.run("systemd-cat", input=f"{MARK}\n")
    eventually(lambda: MARK in box.run("journalctl", "-n", "50"), 5, "the line to be in the journal")
    assert LOOKOUT.taken()
    box.run("journalctl", "--rotate", "--vacuum-size=1")
    LOOKOUT.taken()
    changed(f"Environment=KEY={MARK}")
    box.look_around([SERVICE], USER)
    assert [line for line in LOOKOUT.taken() if "systemctl show" in line]


def test_its_log_is_in_the_journal(box: Box) -> None:
    lines = box.run("journalctl", "-u", SERVICE, "-o", "json", "--grep", "ready: control socket").splitlines()
    entry = json.loads(lines[-1])
    assert entry["SYSLOG_IDENTIFIER"] == "orpheusd"
    assert entry["_SYSTEMD_UNIT"] == SERVICE
    assert entry["_UID"] == box.run("id", "-u", USER).strip()


def test_who_is_not_an_admin_cannot_reach_the_control_socket(box: Box) -> None:
    assert "ermission denied" in box.run("orpheusctl", "status", user="nobody", check=False)
    box.run("usermod", "-aG", "orpheus-admin", "nobody")
    assert "isolation" in box.run("orpheusctl", "status", user="nobody")


# fault 36
def test_a_killed_daemon_loses_no_session_memory(box: Box) -> None:
    with Callers(box, SESSIONS) as callers:
        callers.go_on()
        for kills in range(1, 4):
            box.systemctl("kill", "--signal=KILL", SERVICE)
            eventually(lambda kills=kills: int(box.property("NRestarts")) >= kills, BACK_TIMEOUT_S, "a restart")
            callers.go_on()
    for session in SESSIONS:
        served = [answer for answer in callers.of(session) if answer.status == 200]
        assert {answer.context for answer in served[1:]} == {"warm"}, session
        turns = [answer.turn for answer in served]
        assert turns == sorted(set(turns)), session


def test_who_is_killed_with_everything_is_told_so(box: Box) -> None:
    assert ask(box, "killed").context == "new"
    box.systemctl("kill", "--signal=KILL", SERVICE, AGENTS)
    eventually(lambda: box.property("NRestarts") == "1", BACK_TIMEOUT_S, "a restart")
    assert ask(box, "killed").context == "lost"


def test_each_version_of_an_agent_has_a_unit_of_its_own(box: Box) -> None:
    served = ask(box, "unit")
    assert served.status == 200
    (unit,) = box.run("systemctl", "list-units", "--plain", "--no-legend", "--state=running", AGENTS).split()[:1]
    with box.control() as control:
        pids = [worker["pid"] for worker in control.call("agent.show", agent=AGENT)["workers"]]
    groups = {(box.path("/proc") / str(pid) / "cgroup").read_text().strip() for pid in pids}
    assert len(groups) == 1 and groups.pop().endswith(f"/{unit}")
    box.run("orpheusctl", "restart", AGENT)
    eventually(lambda: box.property("ActiveState", unit) == "inactive", BACK_TIMEOUT_S, "the end of the unit")
    assert ask(box, "unit").context == "lost"


def test_a_stop_leaves_no_process(box: Box) -> None:
    for session in SESSIONS:
        assert ask(box, session).status == 200
    assert box.processes(USER)
    box.systemctl("stop", SOCKET, SERVICE)
    assert box.processes(USER) == []
    assert box.property("Result") == "success"


def test_a_stop_of_a_daemon_that_hangs_leaves_no_process(box: Box, changed: Callable[..., None]) -> None:
    changed("TimeoutStopSec=1s", "Environment=ORPHEUS_FAILPOINTS=daemon-closing=block")
    box.systemctl("restart", SERVICE)
    assert ask(box, "hanging").status == 200
    box.systemctl("stop", SOCKET, SERVICE)
    assert box.property("Result") == "timeout"
    assert box.processes(USER) == []


def test_a_restart_fails_no_request(box: Box) -> None:
    with Callers(box, SESSIONS) as callers:
        for _ in range(3):
            callers.go_on()
            box.systemctl("restart", SERVICE)
        callers.go_on()
    assert [answer for answer in callers.answers if answer.status != 200] == []


def test_a_reload_fails_no_request_and_keeps_memory(box: Box) -> None:
    pid = box.property("MainPID")
    with Callers(box, SESSIONS) as callers:
        for reloads in range(1, 4):
            callers.go_on()
            box.systemctl("reload", SERVICE)
            eventually(lambda reloads=reloads: box.run("journalctl", "-u", SERVICE).count("reloaded: ") == reloads,
                       BACK_TIMEOUT_S, "a reload")
        callers.go_on()
    assert [answer for answer in callers.answers if answer.status != 200] == []
    for session in SESSIONS:
        # two that share a home and have both waited: one may run elsewhere, and is told so
        at_home = [answer for answer in callers.of(session) if answer.context != "spilled"]
        assert {answer.context for answer in at_home[1:]} == {"warm"}, session
        assert [answer.turn for answer in at_home] == list(range(at_home[0].turn, at_home[0].turn + len(at_home)))
    assert (box.property("MainPID"), box.property("NRestarts")) == (pid, "0")
    box.systemctl("stop", SERVICE)
    assert ask(box, "after").status == 200, "systemd does not hold the doors any more"
    assert "isolation" in box.run("orpheusctl", "status")


# fault 41
def test_the_watchdog_restarts_a_daemon_whose_loop_is_blocked(box: Box, changed: Callable[..., None]) -> None:
    changed("WatchdogSec=1s", "Environment=ORPHEUS_FAILPOINTS=run-accepted=block:2")
    box.systemctl("restart", SERVICE)
    assert ask(box, "watched").context == "new"
    assert ask(box, "watched").body["code"] == "unreachable"  # that one blocked the loop
    eventually(lambda: box.property("NRestarts") == "1", BACK_TIMEOUT_S, "the watchdog to act")
    again = ask(box, "watched")
    assert (again.context, again.turn) == ("warm", 2)
    journal = box.run("journalctl", "-u", SERVICE, "-n", "200")
    assert "Watchdog timeout" in journal
    assert "in _pass" in journal, "the journal has no stack of the daemon"


def test_a_backup_brings_everything_back(box: Box) -> None:
    assert ask(box, "backed-up").status == 200
    documented = (ROOT / "docs/operations.md").read_text().partition("## Back up and restore")[2]
    back_up, restore = re.findall(r"^```sh\n(.*?)^```$", documented.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    box.run("sh", "-ec", f"cd /root\n{back_up}")
    box.run("orpheusctl", "undeploy", AGENT)
    box.run("sh", "-ec", f"cd /root\n{restore}")
    assert ask(box, "backed-up").context == "lost"
    with box.control() as control:
        eventually(lambda: len(control.call("run.list", session="backed-up")["runs"]) == 2, 5, "both runs in the log")


def test_a_second_install_is_an_upgrade(box: Box) -> None:
    module = box.path("/src/orpheusd/__init__.py")
    module.write_text(module.read_text().replace('"0.', '"9.'))
    box.run("make", "-C", "/src", "install", network=True)
    with Callers(box, SESSIONS) as callers:
        callers.go_on(10)
        box.systemctl("daemon-reload")
        box.systemctl("restart", SERVICE)
        callers.go_on(10)
    assert [answer for answer in callers.answers if answer.status != 200] == []
    with box.control() as control:
        assert control.call("status")["version"].startswith("9.")


def test_an_uninstall_leaves_what_agents_made_and_nothing_else(box: Box) -> None:
    box.systemctl("stop", SOCKET, SERVICE)
    box.run("make", "-C", "/src", "uninstall")
    left = box.run("find", "/usr/local", "/etc/systemd", "-iname", "*orpheus*").split()
    assert left == []
    assert box.path("/var/lib/orpheus/runs.db").exists()


def _status(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
