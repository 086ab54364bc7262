"""What becomes of state on the disk under a real daemon: damaged logs, clocks that jump, workspaces that vanish."""

import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.shims import built

NewDaemon = Callable[..., Daemon]
Damage = Callable[[Path, random.Random], None]
RUNS = 40


class Snapshot:
    """A daemon with runs in its log, whose files are kept as a kill leaves them (`crashed`) and a stop (`closed`)."""

    def __init__(self, folder: Path) -> None:
        self.daemon = Daemon(http=False)
        self.crashed, self.closed = folder / "crashed", folder / "closed"
        self.daemon.start()
        self.daemon.deploy(witness(folder / "quick", "def handler(_):\n    effect()\n    return 1"))
        for number in range(RUNS):
            self.daemon.call("run", agent="quick", input={"number": number, "padding": "x" * 500})
            # a commit of its own
            eventually(lambda number=number: self.log()["rows"] > number and not self.log()["pending_changes"])
        files = [path for path in self.daemon.state_dir.iterdir() if path.name.startswith("runs.db")]
        self.crashed.mkdir()
        for file in files:
            shutil.copy(file, self.crashed)
        self.daemon.stop()
        self.closed.mkdir()
        for file in self.daemon.state_dir.glob("runs.db*"):
            shutil.copy(file, self.closed)

    def log(self) -> dict[str, Any]:
        found: dict[str, Any] = self.daemon.call("status")["run_log"]
        return found

    def put_back(self, shape: str) -> Path:
        """The state directory with the log as it was."""
        state_dir = self.daemon.state_dir
        for file in state_dir.glob("runs.db*"):
            file.unlink()
        for file in (self.crashed if shape == "crashed" else self.closed).iterdir():
            shutil.copy(file, state_dir)
        return state_dir


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshot]:
    made = Snapshot(tmp_path_factory.mktemp("damage"))
    try:
        yield made
    finally:
        made.daemon.close()


def cut(name: str, below_bytes: int | None = None) -> Damage:
    def apply(state_dir: Path, chance: random.Random) -> None:
        os.truncate(state_dir / name, chance.randrange(below_bytes or (state_dir / name).stat().st_size))

    return apply


def flip(name: str) -> Damage:
    """64 bytes anywhere become others."""
    def apply(state_dir: Path, chance: random.Random) -> None:
        raw = bytearray((state_dir / name).read_bytes())
        for _ in range(64):
            raw[chance.randrange(len(raw))] ^= chance.randrange(1, 256)
        (state_dir / name).write_bytes(raw)

    return apply


def delete(name: str) -> Damage:
    return lambda state_dir, _chance: (state_dir / name).unlink()


#: Each on a log as a kill leaves it, or as a stop does; none of them spares what the log holds.
DAMAGES: dict[str, tuple[str, Damage]] = {
    "the WAL deleted": ("crashed", delete("runs.db-wal")),
    "the WAL cut": ("crashed", cut("runs.db-wal")),
    "the WAL flipped": ("crashed", flip("runs.db-wal")),
    "the log cut": ("closed", cut("runs.db")),
    "the log flipped": ("closed", flip("runs.db")),
    "the log deleted": ("closed", delete("runs.db")),
    "the mark deleted": ("closed", delete("runs.db.mark")),
    "the mark cut": ("closed", cut("runs.db.mark", 90)),
}  # fmt: skip


def is_told(snapshot: Snapshot, name: str, seed: int) -> None:
    """Start a daemon on the damage; hold what it says of it to the rule."""
    shape, damage = DAMAGES[name]
    state_dir = snapshot.put_back(shape)
    damage(state_dir, random.Random(seed))
    daemon = snapshot.daemon.start()
    try:
        status = daemon.call("status")
        assert status["run_log"]["damage"] is not None, f"{name}, seed {seed}: not noticed"
        kept = status["run_log"]["damage"]["kept_as"]
        (problem,) = status["problems"]
        assert problem.startswith("the run log was found damaged at this start (") and kept in problem
        assert any(path.name.startswith(kept) for path in state_dir.iterdir())
        assert daemon.call("run.list") == {"runs": []}
        assert "the run log was damaged and put aside" in daemon.log
    finally:
        daemon.kill()


@pytest.mark.parametrize("name", DAMAGES)
def test_a_daemon_that_finds_its_log_damaged_says_so(snapshot: Snapshot, name: str) -> None:
    # fault 49
    is_told(snapshot, name, seed=1)


@pytest.mark.slow
@pytest.mark.deadline(600)
def test_a_hundred_damages_are_each_found_and_told(snapshot: Snapshot) -> None:
    # fault 49, the long form
    for seed in range(100):
        is_told(snapshot, list(DAMAGES)[seed % len(DAMAGES)], seed)


def test_a_person_is_told_of_damage_until_the_copy_is_removed(snapshot: Snapshot) -> None:
    # fault 49
    state_dir = snapshot.put_back("closed")
    (state_dir / "runs.db.mark").unlink()
    daemon = snapshot.daemon.start()
    try:
        for said in ("damaged at this start (its high-water mark is missing)", "put aside at an earlier start"):
            status = daemon.ctl("status")
            assert status.returncode == 0
            assert "PROBLEM: " in status.stderr and said in status.stderr and "runs.db.damaged-" in status.stderr
            with Aftermath(daemon) as after:
                assert after.run("quick", {"n": 1}).code == ""
            daemon.restart()
        for copy in state_dir.glob("runs.db.damaged-*"):
            copy.unlink()
        assert daemon.ctl("status").stderr == "" and daemon.call("status")["problems"] == []
    finally:
        daemon.stop()


#: What makes the log's place unfit, and the one line that says so.
UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "read-only": (lambda log: log.chmod(0o400), "is read-only; make it writable"),
    "somebody else's": (lambda log: os.chown(log, 65534, 65534), "belongs to uid 65534 and this daemon runs as 0"),
    "a directory": (lambda log: (log.unlink(), log.mkdir()), "is not a regular file; move it away"),
    "a symlink": (lambda log: (log.rename(log.with_name("elsewhere")), log.symlink_to("elsewhere")),
                  "is not a regular file; move it away"),
}  # fmt: skip


@pytest.mark.root
@pytest.mark.parametrize(("spoil", "said"), UNFIT.values(), ids=UNFIT.keys())
def test_a_daemon_does_not_start_on_a_log_it_cannot_keep(
    new_daemon: NewDaemon, spoil: Callable[[Path], object], said: str
) -> None:
    # fault 50
    daemon = new_daemon(http=False)
    daemon.stop()
    before = daemon.log
    spoil(daemon.state_dir / "runs.db")
    with pytest.raises(AssertionError, match="exited with 70"):
        daemon.start()
    (line,) = daemon.log.removeprefix(before).splitlines()
    assert line.startswith("orpheusd: cannot keep the run log ") and said in line
    assert not daemon.control_socket.exists()


class Clock:
    """The wall clock of a daemon, and its clock that goes on during a suspend: `jump` moves both."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "ahead"
        self._file.write_bytes(struct.pack("q", 0))
        self.env = {"LD_PRELOAD": str(built("clock_jumps", folder)), "CLOCK_JUMPS": str(self._file)}

    def jump(self, ahead_s: int) -> None:
        with self._file.open("r+b") as stream:
            stream.write(struct.pack("q", ahead_s))


WAITS = """
import os, time

turns = [0]

def handler(input_data):
    while os.path.exists("/workspace/closed"):
        time.sleep(0.01)
    turns[0] += 1
    return turns[0]
"""
HOUR_S, DAY_S = 3600, 24 * 3600


@pytest.mark.parametrize("jumps", [(HOUR_S, 0), (-HOUR_S, HOUR_S), (-40 * DAY_S, 40 * DAY_S)],
                         ids=["an hour, as in a suspend", "back and forth", "forty days"])
def test_no_time_passes_by_a_clock_that_jumps(
    new_daemon: NewDaemon, tmp_path: Path, jumps: tuple[int, ...]
) -> None:
    # faults 51, 52: a suspend is a jump of every clock but the monotonic one
    clock = Clock(tmp_path)
    daemon = new_daemon(env=clock.env)
    daemon.deploy(write_agent(tmp_path / "waits", WAITS, timeout=60, session={"ttl": "30m"},
                              scaling={"idle_timeout_seconds": 600, "queue_timeout_seconds": 60}))
    closed = daemon.state_dir / "workspaces/waits/closed"
    ask = {"agent": "waits", "session_id": "s", "overlap": "queue"}
    with daemon.connect() as one, daemon.connect() as other:
        first = one.call("run", input={}, **ask)
        answers = [first]
        for ahead_s in jumps:
            closed.touch()
            for control in (one, other):
                control.send("run", input={}, **ask)
            eventually(lambda: daemon.call("session.show", agent="waits", session_id="s")["waiting"] == 1)
            clock.jump(ahead_s)
            assert daemon.call("health")["status"] == "ok"
            closed.unlink()
            answers += [control.receive()["result"] for control in (one, other)]
        used_bytes = daemon.call("status")["run_log"]["used_bytes"]
        answers.append(one.call("run", input={"padding": "x" * 200_000}, **ask))
    assert sorted(answer["result"] for answer in answers) == list(range(1, len(answers) + 1))
    assert {answer["worker_id"] for answer in answers} == {first["worker_id"]}
    assert [answer["session"]["context"] for answer in answers] == ["new"] + ["warm"] * (len(answers) - 1)
    # the padding is counted by the upkeep that would delete what is too old
    eventually(lambda: daemon.call("status")["run_log"]["used_bytes"] >= used_bytes + 200_000, 10.0, "the upkeep")
    runs = daemon.call("run.list", limit=100)["runs"]
    assert [run["seq"] for run in runs] == list(range(len(answers), 0, -1))
    assert (runs[-1]["run_id"], runs[0]["run_id"]) == (first["request_id"], answers[-1]["request_id"])
    assert all(run["state"] == "completed" and 0 <= run["duration_ms"] < 30_000 for run in runs)
    assert daemon.call("status")["problems"] == []


PRECIOUS = "nobody of Orpheus may touch this"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_text(PRECIOUS)
    yield folder
    assert [path.name for path in folder.iterdir()] == ["precious"] and (folder / "precious").read_text() == PRECIOUS


LISTS = """
import os

def handler(input_data):
    with open("/workspace/mine", "w") as stream:
        stream.write("x")
    return sorted(os.listdir("/workspace"))
"""


def test_a_workspace_that_became_a_symlink_is_followed_by_nobody(
    new_daemon: NewDaemon, tmp_path: Path, outside: Path
) -> None:
    # fault 54
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "lists", LISTS))
    daemon.deploy(write_agent(tmp_path / "other", LISTS))
    assert daemon.call("run", agent="lists", input={}, session_id="s")["result"] == ["mine"]
    workspace = daemon.state_dir / "workspaces/lists"
    shutil.rmtree(workspace)
    workspace.symlink_to(outside)
    for operation in ("workspace.info", "workspace.clean", "restart"):
        with pytest.raises(OrpheusError, match=r"[Nn]ot? a?\s?directory"):
            daemon.call(operation, agent="lists")
    with pytest.raises(OrpheusError, match="is no directory"):
        daemon.deploy(write_agent(tmp_path / "lists", LISTS))
    # its saved state is below it
    assert daemon.call("session.end", agent="lists", session_id="s")["ended"]
    # a template that has to be started anew
    (worker,) = daemon.call("agent.show", agent="lists")["workers"]
    psutil.Process(worker["pid"]).parent().kill()
    eventually(lambda: refusal(daemon, "lists") == "quarantined", 20.0, "its templates to be given up")
    with pytest.raises(OrpheusError, match=r"could not be started: .* Not a directory: '.*/workspaces/lists'"):
        daemon.call("run", agent="lists", input={})
    assert daemon.call("run", agent="other", input={})["result"] == ["mine"]
    daemon.restart()
    assert "cannot start lists: " in daemon.log
    assert [agent["name"] for agent in daemon.call("agent.list")["agents"]] == ["other"]


def refusal(daemon: Daemon, agent: str) -> str:
    """The code that a run is refused or ends with."""
    try:
        daemon.call("run", agent=agent, input={})
    except OrpheusError as error:
        return error.code
    return ""


def test_a_workspace_that_was_deleted_is_made_again_by_the_next_start(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 54
    daemon = new_daemon()
    daemon.deploy(write_agent(tmp_path / "lists", LISTS))
    workspace = daemon.state_dir / "workspaces/lists"
    for again in (lambda: daemon.call("restart", agent="lists"), daemon.restart,
                  lambda: daemon.deploy(tmp_path / "lists")):
        shutil.rmtree(workspace)
        with pytest.raises(OrpheusError, match="No such file or directory") as caught:
            daemon.call("run", agent="lists", input={})
        assert caught.value.code == "handler-failed"
        with pytest.raises(OrpheusError, match="has no workspace"):
            daemon.call("workspace.info", agent="lists")
        again()
        assert daemon.call("run", agent="lists", input={})["result"] == ["mine"]
        assert workspace.stat().st_mode & 0o777 == 0o700


#: As bytes, for some are no text.
HOSTILE_NAMES = [
    b"-rf", b"--", b"a\nb", b"\x1b[2Jcleared", b"a\tb", b" ", b"*", b"$(reboot)", b"\xff\xfe", "\u202egnp".encode(),
    b"n" * 255, b"CON", b"...",
]  # fmt: skip
HOSTILE = """
import os

def handler(input_data):
    for name in NAMES:
        os.makedirs(b"/workspace/dir-" + name[:250], exist_ok=True)
        for path in (b"/workspace/" + name, b"/workspace/dir-" + name[:250] + b"/" + name):
            with open(path, "wb") as stream:
                stream.write(b"12345")
        os.symlink(b"/etc/passwd", b"/workspace/link-" + name[:250])
    return len(NAMES)
"""


def test_hostile_names_in_a_workspace_are_counted_removed_and_never_printed_raw(
    new_daemon: NewDaemon, tmp_path: Path
) -> None:
    # fault 55
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "names", HOSTILE.replace("NAMES", repr(HOSTILE_NAMES))))
    count = daemon.call("run", agent="names", input={})["result"]
    info = daemon.ctl("workspace", "info", "names", "--json")
    assert info.returncode == 0 and f'"files": {3 * count}' in info.stdout.replace('":', '": ').replace("  ", " ")
    cleaned = daemon.ctl("workspace", "clean", "names", "--force")
    assert cleaned.returncode == 0 and cleaned.stdout.startswith(f"removed {3 * count} files")
    assert list((daemon.state_dir / "workspaces/names").iterdir()) == []
    for text in (info.stdout, info.stderr, cleaned.stdout, cleaned.stderr, daemon.log):
        assert "\x1b" not in text and "\u202e" not in text
    assert Path("/etc/passwd").exists()
