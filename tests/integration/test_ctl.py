"""orpheusctl as people and scripts meet it: finding the daemon, answers in pipes and on terminals, starting fast."""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.wire import control
from tests.daemon import environment
from tests.eventually import eventually
from tests.integration.scripted import (
    TIMEOUT_S,
    Exchange,
    Params,
    ScriptedDaemon,
    argv,
    ctl,
    log_row,
    on_terminal,
    run_answer,
)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "ctl.sock") as daemon:
        yield daemon


def test_a_daemon_that_goes_away_in_a_run_is_told_with_the_run(door: ScriptedDaemon) -> None:
    def script(params: Params, exchange: Exchange) -> None:
        exchange.accepted()
        exchange.hang_up()

    door.script["run"] = script
    done = ctl(door, "run", "a")
    assert (done.stdout, done.returncode) == ("", 69)
    assert "went away" in done.stderr and "Run r-7 may have gone on" in done.stderr


def test_nobody_there_says_what_was_tried(tmp_path: Path) -> None:
    env = {**environment(), "XDG_RUNTIME_DIR": str(tmp_path)}
    (tmp_path / "orpheus").mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "orpheus" / "ctl.sock"))
    command = [sys.executable, "-m", "orpheusctl", "list"]
    for more, says in (([], f"{tmp_path}/orpheus/ctl.sock: nobody listens there"),
                       (["--socket", "/nowhere/ctl.sock"], "/nowhere/ctl.sock: no such socket"),
                       (["--socket", "/" + "x" * 120], "a socket's path can be 107 bytes, this is 121")):
        done = subprocess.run([*command, *more], env=env, capture_output=True, text=True, timeout=TIMEOUT_S,
                              check=False)
        assert (done.stdout, done.returncode) == ("", 69)
        assert says in done.stderr and "Is it running?" in done.stderr


def test_the_users_socket_comes_before_the_systems(door: ScriptedDaemon, tmp_path: Path) -> None:
    door.answers("workspace.info", {"path": "/w", "files": 0, "size_bytes": 0})
    (tmp_path / "orpheus").symlink_to(tmp_path)
    for env in ({"XDG_RUNTIME_DIR": str(tmp_path)}, {"ORPHEUS_SOCKET": str(door.path)}):
        done = subprocess.run([sys.executable, "-m", "orpheusctl", "workspace", "path", "a"], capture_output=True,
                              env={**environment(), **env}, text=True, timeout=TIMEOUT_S, check=False)
        assert (done.stdout, done.stderr) == ("/w\n", "")


@pytest.mark.root
def test_a_server_of_another_user_gets_nothing(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(str(tmp_path / "ctl.sock"))
        # The credentials a client sees are those at listen(): another process listens, this one looks at what comes.
        subprocess.run([sys.executable, "-c", f"import os, socket; os.setuid(65534); "
                        f"socket.socket(fileno=os.dup({listener.fileno()})).listen()"],
                       pass_fds=[listener.fileno()], check=True, timeout=TIMEOUT_S)
        command = [sys.executable, "-m", "orpheusctl", "--socket", str(tmp_path / "ctl.sock"), "run", "a", "1"]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S,
                              check=False)
        assert (done.stdout, done.returncode) == ("", 77)
        assert "runs as nobody (uid 65534)" in done.stderr and "Nothing was sent" in done.stderr
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b""


@pytest.mark.root
def test_a_directory_that_may_not_be_entered_says_who_may(tmp_path: Path) -> None:
    place = tmp_path / "orpheus"
    place.mkdir(mode=0o750)
    for parent in (one for one in (tmp_path, *tmp_path.parents) if "pytest-of-" in str(one)):
        parent.chmod(0o755)
    os.chown(place, 0, 4)
    code = f"import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); sys.argv[1:] = " \
           f"['--socket', '{place}/ctl.sock', 'list']; from orpheusctl.__main__ import main; sys.exit(main())"
    # From a copy: the checkout may be out of reach of another user.
    for package in ("orpheusctl", "orpheusd"):
        shutil.copytree(Path(__file__).parents[2] / package, tmp_path / "lib" / package,
                        ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(["/usr/bin/python3", "-B", "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S,
                          check=False, env={"PYTHONPATH": str(tmp_path / "lib")}, cwd="/")
    assert done.returncode == 69
    assert "Permission denied" in done.stderr and "usermod -aG adm" in done.stderr


def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    # fault 71
    path = tmp_path / "ctl.sock"
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        waiting = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect(str(path))
                waiting += 1
        command = [sys.executable, "-m", "orpheusctl", "--socket", str(path), "list", "--json"]
        process = stack.enter_context(subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True))
        eventually(lambda: any(str(fd.readlink()).startswith("socket:") for fd in
                               Path(f"/proc/{process.pid}/fd").iterdir() if fd.is_symlink()))
        for _ in range(waiting + 1):
            connection = stack.enter_context(listener.accept()[0])
        connection.recv(65536)
        connection.sendall(json.dumps(control.answer(1, {"agents": []})).encode() + b"\n")
        assert process.communicate(timeout=TIMEOUT_S)[0] == '{"agents": []}\n'
        assert process.returncode == 0


def test_what_is_too_large_or_malformed_is_not_sent(door: ScriptedDaemon, tmp_path: Path) -> None:
    (tmp_path / "big.json").write_text('"' + "x" * (8 * 1024 * 1024) + '"')
    for args, says in ((("run", "a", f"@{tmp_path}/big.json"), "over the limit"),
                       (("run", "a", "{x"), "single quotes"),
                       (("run", "a", "--session", "../x"), "a session id"), (("stats", "A"), "an agent name"),
                       (("run", "a", "--timeout", "0"), "above 0")):
        done = ctl(door, *args)
        assert (done.stdout, done.returncode) == ("", 2)
        assert says in done.stderr
    assert door.asked == []


AGENT = {"name": "my-agent", "version": 3, "state": "active", "workers": 2, "min": 1, "max": 10, "sessions": 5,
         "queue": 0, "runs": 7}
STATS = {"workers": {"current": 1, "healthy": 1}, "queue": {"depth": 0},
         "processes": [{"worker_id": "w-1", "pid": 42, "rss_bytes": 3_400_000, "cpu_percent": 1.5}]}


@pytest.mark.parametrize(("args", "method", "answer", "stdout"), [
    (["list"], "agent.list", {"agents": [AGENT]},
     "name\tversion\tstate\tworkers\tmin\tmax\tsessions\tqueue\truns\nmy-agent\t3\tactive\t2\t1\t10\t5\t0\t7\n"),
    (["list"], "agent.list", {"agents": []}, "name\tversion\tstate\tworkers\tmin\tmax\tsessions\tqueue\truns\n"),
    (["list", "my-agent"], "agent.show", {**AGENT, "workers": [{"id": "w-1", "pid": 42, "busy": False}]},
     "name\tmy-agent\nversion\t3\nstate\tactive\nworkers.w-1.pid\t42\nworkers.w-1.busy\tfalse\nmin\t1\nmax\t10\n"
     "sessions\t5\nqueue\t0\nruns\t7\n"),
    (["stats", "my-agent"], "agent.stats", STATS,
     "workers.current\t1\nworkers.healthy\t1\nqueue.depth\t0\nprocesses.w-1.pid\t42\n"
     "processes.w-1.rss_bytes\t3400000\nprocesses.w-1.cpu_percent\t1.5\n"),
    (["sessions", "my-agent"], "session.list", {"total": 1, "sessions": [
        {"id": "user-1", "home": None, "turns": 2, "running": 0, "waiting": 0, "idle_s": 1.5}]},
     "id\thome\tturns\trunning\twaiting\tidle_s\nuser-1\t-\t2\t0\t0\t1.5\n"),
    (["session", "show", "my-agent", "user-1"], "session.show", {"id": "user-1", "home": "w-1"},
     "id\tuser-1\nhome\tw-1\n"),
    (["session", "end", "my-agent", "user-1"], "session.end", {"id": "user-1", "ended": True}, "ended user-1\n"),
    (["status"], "status", {"version": "0.1.0", "ready": True}, "version\t0.1.0\nready\ttrue\n"),
    (["cancel", "r-7"], "run.cancel", {"run_id": "r-7", "cancelled": True}, "cancelled r-7\n"),
    (["restart", "my-agent"], "restart", {"name": "my-agent", "version": 3}, "restarted my-agent (version 3)\n"),
    (["rollback", "my-agent"], "rollback", {"name": "my-agent", "version": 2, "from": 3},
     "rolled my-agent back from version 3 to 2\n"),
    (["undeploy", "my-agent"], "undeploy", {"name": "my-agent", "purged": False},
     "undeployed my-agent; its workspace stays\n"),
    (["undeploy", "my-agent", "--purge"], "undeploy", {"name": "my-agent", "purged": True},
     "undeployed my-agent; its workspace and logs are deleted\n"),
    (["workspace", "path", "my-agent"], "workspace.info", {"path": "/w/my-agent", "files": 1, "size_bytes": 2},
     "/w/my-agent\n"),
    (["workspace", "info", "my-agent"], "workspace.info", {"path": "/w", "files": 1}, "path\t/w\nfiles\t1\n"),
    (["workspace", "clean", "my-agent", "--force"], "workspace.clean",
     {"path": "/w", "removed_files": 2, "removed_bytes": 3000}, "removed 2 files (3.0 kB) from /w\n"),
])
def test_answers_in_pipes(door: ScriptedDaemon, args: list[str], method: str, answer: Params, stdout: str) -> None:
    door.answers(method, answer)
    done = ctl(door, *args)
    assert (done.stdout, done.stderr, done.returncode) == (stdout, "", 0)
    assert door.methods() == [method]
    assert json.loads(ctl(door, *args, "--json").stdout) == answer


def test_answers_on_a_terminal(door: ScriptedDaemon) -> None:
    door.answers("agent.list", {"agents": [{**AGENT, "state": "quarantined"}]})
    door.answers("agent.stats", STATS)
    seen = on_terminal(door, "list")
    assert "NAME" in seen and "my-agent" in seen and "\x1b[1;31mquarantined\x1b[0m" in seen
    seen = on_terminal(door, "stats", "my-agent", "--no-color")
    assert "3.4 MB" in seen and "1.5 %" in seen and "\x1b" not in seen
    assert "\x1b" not in on_terminal(door, "list", NO_COLOR="1")
    assert on_terminal(door, "list", TERM="dumb").startswith("name\tversion")
    door.answers("agent.list", {"agents": []})
    assert "orpheusctl deploy PATH" in on_terminal(door, "list")


def test_names_cannot_draw_on_the_terminal(door: ScriptedDaemon) -> None:
    # fault 67
    door.answers("agent.list", {"agents": [{**AGENT, "state": "[red]\x1b]0;owned\x07"}]})
    assert "[red]\\x1b]0;owned\\x07" in on_terminal(door, "list", COLUMNS="200")
    assert "[red]\\x1b]0;owned\\x07" in ctl(door, "list").stdout


def test_a_rollback_is_told_with_the_list(door: ScriptedDaemon) -> None:
    note = {"version": 3, "reason": "its worker ended (exit 7)", "at": 0.0}
    door.answers("agent.list", {"agents": [{**AGENT, "rolled_back": note}, {**AGENT, "rolled_back": None}]})
    done = ctl(door, "list")
    assert len(done.stdout.splitlines()) == 3
    [told] = done.stderr.splitlines()
    assert "my-agent: version 3" in told and "rolled back 1970-01-01" in told and "its worker ended (exit 7)" in told


def test_a_run_that_had_ended_cannot_be_cancelled(door: ScriptedDaemon) -> None:
    door.answers("run.cancel", {"run_id": "r-7", "cancelled": False})
    done = ctl(door, "cancel", "r-7")
    assert (done.stdout, done.returncode) == ("", 1)
    assert "already ended" in done.stderr


def test_more_sessions_than_shown_are_mentioned(door: ScriptedDaemon) -> None:
    door.answers("session.list", {"sessions": [{"id": "u"}], "total": 9})
    assert "1 of 9 sessions" in ctl(door, "sessions", "a", "-n", "1").stderr
    assert door.asked[0][1] == {"agent": "a", "limit": 1}


def test_logs(door: ScriptedDaemon) -> None:
    door.answers("logs", {"lines": [log_row("tick \x1b[31m\ttock")]})
    done = ctl(door, "logs", "a", "-n", "5", "--run", "r-7", "--session", "u")
    assert done.stdout == "2023-11-14T22:13:20.500Z\tw-1\tr-7\t-\tstderr\ttick \\x1b[31m\\x09tock\n"
    assert door.asked == [("logs", {"agent": "a", "limit": 5, "run_id": "r-7", "session_id": "u"})]
    assert json.loads(ctl(door, "logs", "a", "--json").stdout) == log_row("tick \x1b[31m\ttock")
    seen = on_terminal(door, "logs", "a", TZ="UTC")
    assert "11-14 22:13:20.500" in seen and "tick \\x1b[31m\\x09tock" in seen


def test_logs_are_followed_until_the_agent_is_gone(door: ScriptedDaemon) -> None:
    def script(params: Params, exchange: Exchange) -> Params:
        assert params["stream"] is True
        exchange.say("log", log_row("one"))
        exchange.say("log", log_row("two"))
        return {"lines": []}

    door.script["logs"] = script
    done = ctl(door, "logs", "a", "-f")
    assert [line.split("\t")[-1] for line in done.stdout.splitlines()] == ["one", "two"]
    assert done.returncode == 0


def test_version_and_help_need_no_daemon() -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "orpheusctl", *args], env=environment(), capture_output=True,
                              text=True, timeout=TIMEOUT_S, check=False)

    assert run("--version").stdout.startswith("orpheusctl ")
    assert "COMMANDS" in run("--help").stdout
    assert run("run", "--help").stdout.startswith("orpheusctl run - ")
    done = run("rum")
    assert (done.stdout, done.returncode) == ("", 2) and "did you mean run?" in done.stderr


def test_run_starts_fast(door: ScriptedDaemon) -> None:
    def took_s(command: list[str]) -> float:
        """Processor time, which is nearly all of it, and does not depend on who else is busy here."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, env=environment(), stdout=subprocess.DEVNULL, check=True, timeout=TIMEOUT_S)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    door.answers("run", run_answer({"turn": 1}))
    command = argv(door, "run", "my-agent", "{}", "--session", "user-123")
    took_s(command)  # compiles
    extra_s = min(took_s(command) for _ in range(7)) - min(took_s([sys.executable, "-c", "pass"]) for _ in range(7))
    assert extra_s <= 0.060


def test_run_imports_nothing_heavy(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer({"turn": 1}))
    code = "import sys; from orpheusctl.__main__ import main; main(sys.argv[1:]); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, *argv(door, "run", "a")[3:]], env=environment(),
                          capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"rich", "asyncio", "pydantic", "yaml", "orjson", "tarfile", "shutil", "textwrap"}
