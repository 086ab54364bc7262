"""Deploys that go wrong in a real daemon: bundles and modules that are hostile, and kills at every step.

Whatever happens, what served before still does, nothing is half of one version and half of another, and nothing
of what failed is left.
"""

import base64
import select
import signal
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.deploy.bundle import LIMIT_MEMBERS
from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, bundle, given, write_agent
from tests.eventually import eventually
from tests.fault.aftermath import EFFECTS, Aftermath, witness
from tests.tars import END, header, member, packed, pax, snapshot

NewDaemon = Callable[..., Daemon]

#: What is one version: its code, its settings and its environment say the same number.
CODE = EFFECTS + """
STATED = {number}

def handler(input_data):
    effect()
    return [STATED, int(os.environ["STATED"])]
"""


def version(folder: Path, number: int) -> Path:
    return write_agent(folder, CODE.replace("{number}", str(number)), env=[f"STATED={number}"], timeout=number)


def serving(daemon: Daemon, name: str) -> int:
    """The version that serves, the same whomever one asks."""
    shown = daemon.call("agent.show", agent=name)
    code, environment = daemon.call("run", agent=name, input={})["result"]
    stated = {shown["version"], code, environment, shown["settings"]["timeout"]}
    assert len(stated) == 1, f"several versions at once: {stated}"
    (directory,) = (daemon.state_dir / "agents" / name / "versions").glob(f"{code}/code/agent.py")
    assert f"STATED = {code}\n" in directory.read_text()
    return int(code)


def left_over(daemon: Daemon, name: str, current: int) -> list[str]:
    """What a deploy may not leave: pieces in tmp/, and versions that never served."""
    versions = daemon.state_dir / "agents" / name / "versions"
    return [*(path.name for path in (daemon.state_dir / "tmp").iterdir()),
            *(f"version {path.name}" for path in versions.iterdir() if int(path.name) > current),
            *(f"trial of {path.parent.name}" for path in versions.glob("*/trial"))]  # fmt: skip


def die_deploying(daemon: Daemon, folder: Path) -> None:
    with pytest.raises((EOFError, ConnectionError)):
        daemon.deploy(folder)
    died(daemon)


def died(daemon: Daemon) -> None:
    process = daemon.process
    assert process is not None and process.wait(10) == -signal.SIGKILL
    daemon.kill()


#: Where a deploy that replaces a version is killed, and whether the new one serves afterwards. The small files are
#: the number, what was parsed, the mark of the trial, the environment, and `current`.
KILLS = {
    "deploy-unpacked": False, "file-written:1": False, "file-written:2": False, "file-written:3": False,
    "deploy-staged": False, "file-written:4": False, "deploy-env-written": False, "deploy-built": False,
    "deploy-promoted": False, "file-written:5": False, "deploy-switched": True,
}  # fmt: skip


def test_a_deploy_killed_at_any_step_leaves_the_old_version_or_the_new(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 78
    folder = tmp_path / "steps"
    first = new_daemon(http=False)
    assert first.deploy(version(folder, 1))["version"] == 1
    assert serving(first, "steps") == 1
    first.stop()
    current = number = 1
    has_served = False
    for point, switched in KILLS.items():
        where, _, passing = point.partition(":")
        # each is armed for its own kill and finds what the one before left
        daemon = new_daemon(http=False, directory=first.directory,
                            env={"ORPHEUS_FAILPOINTS": f"{where}=kill:{passing or 1}"})
        assert serving(daemon, "steps") == current, point
        if has_served:
            daemon.restart()  # it stays as long as its processes
        assert left_over(daemon, "steps", current) == [], point
        number = _next_number(daemon)
        die_deploying(daemon, version(folder, number))
        current = number if switched else current
        has_served = point in ("deploy-promoted", "file-written:5")
    last = new_daemon(http=False, directory=first.directory)
    assert serving(last, "steps") == current and left_over(last, "steps", current) == []
    number = _next_number(last)
    assert last.deploy(version(folder, number))["version"] == number and serving(last, "steps") == number


WAITS = """
import time, workspace
VERSION = {number}

def handler(input_data):
    while not os.path.exists(workspace.path(input_data["until"])):
        time.sleep(0.01)
    effect()
    return VERSION
"""


def test_what_a_new_version_has_begun_outlives_a_kill_before_the_switch(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 78: a run that waited is begun by the first worker of the new version, and so is its session
    daemon = new_daemon(http=False, env={"ORPHEUS_FAILPOINTS": "deploy-promoted=kill:2"})
    folder, one_worker = tmp_path / "waits", {"min_workers": 1, "max_workers": 1}
    daemon.deploy(write_agent(folder, EFFECTS + WAITS.format(number=1), scaling=one_worker))
    place = Path(daemon.call("workspace.info", agent="waits")["path"])
    with daemon.connect() as busy, daemon.connect() as waits:
        busy.send("run", agent="waits", input={"until": "one"}, session_id="a")
        eventually(lambda: daemon.call("agent.stats", agent="waits")["queue"]["processing"] == 1)
        waits.send("run", agent="waits", input={"until": "two"}, session_id="b")
        eventually(lambda: len(daemon.call("run.list")["runs"]) == 2, what="both to be in the log")
        with pytest.raises((EOFError, ConnectionError)):
            daemon.deploy(write_agent(folder, EFFECTS + WAITS.format(number=2), scaling=one_worker))
    assert daemon.died() == -signal.SIGKILL
    daemon.env = {}
    daemon.start()
    for name in ("one", "two"):
        (place / name).touch()
    runs = [daemon.call("run.show", run_id=run["run_id"], wait=20) for run in daemon.call("run.list")["runs"]]
    assert [(run["session_id"], run["state"], run["result"]) for run in runs] == [
        ("b", "completed", 2), ("a", "completed", 1)]
    again = daemon.call("run", agent="waits", input={"until": "two"}, session_id="b")
    assert (again["result"], again["session"]["context"]) == (2, "warm")
    assert daemon.call("agent.show", agent="waits")["version"] == 1
    daemon.restart()
    assert left_over(daemon, "waits", 1) == []


@pytest.mark.parametrize("point", ["deploy-unpacked", "file-written:2", "deploy-env-written", "deploy-promoted"])
def test_a_first_deploy_that_was_killed_never_was(new_daemon: NewDaemon, tmp_path: Path, point: str) -> None:
    # fault 78
    where, _, passing = point.partition(":")
    first = new_daemon(http=False, env={"ORPHEUS_FAILPOINTS": f"{where}=kill:{passing or 1}"})
    die_deploying(first, version(tmp_path / "first", 1))
    again = new_daemon(http=False, directory=first.directory)
    assert again.call("agent.list") == {"agents": []}
    assert list((again.state_dir / "tmp").iterdir()) == []
    assert list((again.state_dir / "agents").glob("*/versions/*")) == []
    assert again.deploy(version(tmp_path / "first", 2))["version"] in (1, 2)
    assert again.call("run", agent="first", input={})["result"] == [2, 2]


def test_an_upload_of_which_the_daemon_died_is_gone(new_daemon: NewDaemon) -> None:
    # fault 78
    first = new_daemon(http=False)
    with first.connect() as control:
        upload_id = control.call("bundle.put", data="AAAA")["upload_id"]
        assert [path.name for path in (first.state_dir / "tmp").iterdir()] == [f"upload-{upload_id}.tar.gz"]
        first.kill()
    again = new_daemon(http=False, directory=first.directory)
    assert list((again.state_dir / "tmp").iterdir()) == []


@pytest.mark.slow
@pytest.mark.deadline(300)
def test_a_deploy_killed_at_thirty_moments(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 78, the long form
    folder = tmp_path / "steps"
    daemon = new_daemon(http=False)
    daemon.deploy(version(folder, 1))
    current = 1
    for moment in range(30):
        number = _next_number(daemon)
        process = daemon.process
        assert process is not None
        data = base64.b64encode(bundle(version(folder, number))).decode()
        with daemon.connect() as control:
            upload_id = control.call("bundle.put", data=data)["upload_id"]
            control.send("deploy", upload_id=upload_id, env=given(folder))
            # a deploy takes about 60 ms
            select.select([control.socket], [], [], moment * 0.003)
            daemon.kill()
        daemon = new_daemon(http=False, directory=daemon.directory)
        serves = serving(daemon, "steps")
        assert serves in (current, number), moment
        current = serves
        assert left_over(daemon, "steps", current) == [], moment


#: Modules that do as they please when they are imported, and what the deployer is told.
MODULES = {
    "never comes back": ("import time\ntime.sleep(3600)", r"not ready within 1\.5 s"),
    "never comes back, in C": ("import ctypes\nctypes.PyDLL(None).pause()", r"not ready within 1\.5 s"),
    "exits": ("import os\nos._exit(0)", "exit 0"),
    "exits politely": ("raise SystemExit(0)", r"called sys\.exit\(0\)"),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "signal 9"),
    "crashes": ("import ctypes\nctypes.string_at(0)", "signal 11"),
    "asks on stdin": ("input()", "EOFError"),
}


@pytest.fixture(scope="module")
def impatient() -> Iterator[Daemon]:
    """A daemon that waits for a worker no longer than a test wants to, with an agent that serves."""
    daemon = Daemon(http=False, env={"ORPHEUS_START_TIMEOUT_S": "1.5"})
    try:
        yield daemon.start()
    finally:
        daemon.close()


@pytest.mark.parametrize(("code", "told"), MODULES.values(), ids=MODULES.keys())
def test_a_hostile_module_is_refused_and_the_old_version_serves(
    impatient: Daemon, tmp_path: Path, code: str, told: str
) -> None:
    # fault 74
    folder = tmp_path / "hostile"
    number = impatient.deploy(version(folder, 1))["version"]
    with Aftermath(impatient) as after:
        with pytest.raises(OrpheusError, match=f"hostile does not start: .*{told}.*; what served before still does"):
            impatient.deploy(write_agent(tmp_path / "bad/hostile", f"{code}\ndef handler(input_data): return 0\n"))
        assert after.run("hostile").result == [1, 1]
    assert impatient.call("agent.show", agent="hostile")["version"] == number
    assert left_over(impatient, "hostile", number) == []


def test_a_module_that_starts_threads_and_reads_to_the_end_of_stdin_serves(impatient: Daemon, tmp_path: Path) -> None:
    # fault 74: it does no harm
    impatient.deploy(witness(tmp_path / "threads", """
        import sys, threading
        threading.Thread(target=threading.Event().wait).start()
        FOUND = sys.stdin.read()

        def handler(input_data):
            effect()
            return FOUND
        """))
    with Aftermath(impatient) as after:
        assert after.run("threads").result == ""
    assert impatient.call("undeploy", agent="threads", purge=True) == {"name": "threads", "purged": True}


OTHER = member("agent.yaml", b"name: bad\nruntime: python3\n") + member("agent.py", b"def handler(_): return 0")

#: Bundles of the three shapes tar readers have fallen for, and others; tests/unit/test_deploy_bundle.py has them all.
BUNDLES = {
    "out of the folder": member("../../agents/a/current", b"7"),
    "absolute": member("/tmp/orpheus-was-here", b"x"),
    "through a link": member("d", kind=tarfile.SYMTYPE, linkname="/tmp") + member("d/orpheus-was-here", b"x"),
    "a hard link": member("shadow", kind=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "a device": member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a pipe": member("pipe", kind=tarfile.FIFOTYPE),
    "a file twice": member("agent.py", b"import os"),
    "a name cut by NUL": pax(path=b"agent.py\0.txt") + member("x", b"import os"),
    "a negative size": header("n", size=-512),
    "sparse": pax(GNU__sparse__name=b"/etc/x") + member("x"),
    "a bomb": member("zeros", b"\0" * 3_000_000),
    "too many": b"".join(member(f"f{number}") for number in range(LIMIT_MEMBERS)),
}


@pytest.mark.parametrize("tar", BUNDLES.values(), ids=BUNDLES.keys())
def test_a_hostile_bundle_is_refused_as_a_whole(daemon: Daemon, tmp_path: Path, tar: bytes) -> None:
    # fault 77
    before = snapshot(daemon.state_dir / "agents")
    bundle = packed(tmp_path / "b.tgz", OTHER + tar + END).read_bytes()
    with pytest.raises(OrpheusError) as caught:
        daemon.deploy_bundle(bundle)
    assert caught.value.code in ("invalid-request", "too-large")
    assert snapshot(daemon.state_dir / "agents") == before
    assert list((daemon.state_dir / "tmp").iterdir()) == []
    assert not (daemon.state_dir / "workspaces/bad").exists() and not Path("/tmp/orpheus-was-here").exists()


def _next_number(daemon: Daemon) -> int:
    """What the next deploy of `steps` will be given."""
    return int((daemon.state_dir / "agents/steps/last").read_text()) + 1
