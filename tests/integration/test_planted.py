"""The look for what was planted (tests/planted.py) finds it, in each kind of place, when it is there."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from orpheusd.errors import OrpheusError
from orpheusd.operations import OPERATIONS, Access
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.planted import GIVEN, LOOKOUT, MARK, ask_for_all, secret

NewDaemon = Callable[..., Daemon]

#: It tells what it was told in confidence, in the way it is asked to.
TALKER = f"""
import os, subprocess, sys

def start(*words, **more):
    subprocess.Popen(["sh", "-c", "echo up; sleep 60; :", *words], env={{**os.environ, **more}})

def handler(input_data):
    return {{
        "answer": lambda: os.environ[{GIVEN!r}],
        "raise": lambda: {{}}[os.environ[{GIVEN!r}]],
        "print": lambda: print("printed", os.environ[{GIVEN!r}]),
        "start it with an argument": lambda: start(os.environ[{GIVEN!r}]),
        "start it with a neighbour's": lambda: start(KEY={MARK[:9]!r} + "{MARK[9:]}-neighbour-1"),
        "start it": start,
    }}[input_data]()
"""


def ask(daemon: Daemon, what: str) -> None:
    with suppress(OrpheusError):
        daemon.call("run", agent="talker", input=what)
    if what.startswith("start"):
        eventually(lambda: any(line["text"] == "up" for line in daemon.call("logs", agent="talker")["lines"]))


def ask_over_http(daemon: Daemon) -> None:
    httpx.post(f"{daemon.http}/v1/agents/talker/run", json={"input": "answer"})


def append(path: Path, text: str) -> None:
    with path.open("a") as stream:
        stream.write(text)


def open_to_all(daemon: Daemon, name: str) -> None:
    path = daemon.state_dir / "agents/talker/versions/1" / name
    path.chmod(0o644)
    if name != "env.json":
        for directory in path.parents[:5]:
            directory.chmod(0o755)


#: How it gets there, and where it is found.
LEAKS: dict[str, tuple[Callable[[Daemon], object], str]] = {
    "the log": (lambda daemon: append(daemon.directory / "orpheusd.log", MARK), "orpheusd.log: …"),
    "the audit log": (lambda daemon: append(daemon.state_dir / "audit.log", MARK), "audit.log: …"),
    "the run log": (lambda daemon: ask(daemon, MARK), "runs.db"),
    "the runtime directory": (lambda daemon: append(daemon.runtime_dir / "x", MARK), "run/x: …"),
    "an answer": (lambda daemon: ask(daemon, "answer"), "an answer at the control socket: …"),
    "an error": (lambda daemon: ask(daemon, "raise"), "an answer at the control socket: …"),
    "a listing": (lambda daemon: ask(daemon, "print"), "an answer at the control socket: …"),
    "the client": (lambda daemon: daemon.ctl("run", "talker", '"answer"'), "what orpheusctl run talker"),
    "HTTP": (ask_over_http, "/v1/agents/talker/run answered: …"),
    "a command line": (lambda daemon: ask(daemon, "start it with an argument"), "/cmdline: …"),
    "another's environment": (lambda daemon: ask(daemon, "start it with a neighbour's"), "/environ: …"),
    "a file for all": (lambda daemon: open_to_all(daemon, "env.json"), "env.json keeps a secret and has the mode 644"),
    "a way for all": (lambda daemon: open_to_all(daemon, "manifest.json"), "keeps a secret and others can read it"),
}


@pytest.mark.parametrize(("leak", "place"), LEAKS.values(), ids=LEAKS.keys())
def test_a_secret_that_got_out_is_found(
        new_daemon: NewDaemon, tmp_path: Path, leak: Callable[[Daemon], object], place: str) -> None:
    daemon = new_daemon(http=place.startswith("/v1/"))
    daemon.deploy(write_agent(tmp_path / "talker", TALKER))
    assert LOOKOUT.taken() == []
    leak(daemon)
    daemon.close()
    found = LOOKOUT.taken()
    assert [line for line in found if place in line], found


@pytest.mark.parametrize("end", ["stop", "kill", "crash", "close"])
def test_every_end_is_looked_at(new_daemon: NewDaemon, end: str) -> None:
    daemon = new_daemon(http=False)
    append(daemon.directory / "orpheusd.log", MARK)
    getattr(daemon, end)()
    assert [line for line in LOOKOUT.taken() if "orpheusd.log: …" in line]
    (daemon.directory / "orpheusd.log").unlink(missing_ok=True)


def test_the_daemons_own_environment_is_looked_at(new_daemon: NewDaemon) -> None:
    daemon = new_daemon(http=False, env={"KEY": secret("stranger")})
    pid = daemon.pid
    daemon.stop()
    assert [line.partition(":")[0] for line in LOOKOUT.taken()] == [f"/proc/{pid}/environ"]


def test_a_token_is_a_secret_while_its_daemon_runs(new_daemon: NewDaemon) -> None:
    before = set(LOOKOUT.tokens)
    daemon = new_daemon("--http-admin")
    assert LOOKOUT.tokens == before, "there is none yet"
    daemon.stop()
    (daemon.state_dir / "token").write_text("t0ken" * 10)
    (daemon.state_dir / "token").chmod(0o600)
    daemon.start()
    append(daemon.directory / "orpheusd.log", "t0ken" * 10)
    (daemon.state_dir / "token").chmod(0o640)
    daemon.close()
    found = "\n".join(LOOKOUT.taken())
    assert "orpheusd.log: …" in found and "token keeps a secret and has the mode 640" in found
    assert LOOKOUT.tokens == before


def test_nothing_is_found_where_nothing_got_out(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "talker", TALKER))
    ask(daemon, "start it")  # in its environment is what its agent has
    daemon.close()
    assert LOOKOUT.taken() == []


class Asked:
    """A control connection that notes what is asked."""

    def __init__(self, daemon: Daemon) -> None:
        self.control = daemon.connect()
        self.names: set[str] = set()

    def send(self, method: str, **params: object) -> int:
        self.names.add(method)
        return self.control.send(method, **params)

    def __getattr__(self, name: str) -> object:
        return getattr(self.control, name)


def test_every_operation_that_reads_is_asked(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "talker", TALKER))
    daemon.call("run", agent="talker", input="start it", session_id="s")
    asked = Asked(daemon)
    with asked.control:
        eventually(lambda: asked.control.call("run.list")["runs"])
        ask_for_all(asked)
    assert asked.names == {one.name for one in OPERATIONS if one.access is Access.READ}
