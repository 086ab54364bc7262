"""A worker lives and does what it must not: rows 16 to 26, 28 and 29 of docs/faults.md.

What a handler may return, raise and print is in `tests/integration/test_worker_side_runs.py` and its neighbours, on
the inside of the sandbox. Here the daemon is at the other end, and the agent forges what a worker would never say.
"""

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness

ROGUE = """
import ctypes, errno, json, locale, random, resource, signal, stat, sys, time

def handler(input_data):
    return globals()[input_data["do"]](input_data)

def echo(i):
    effect()
    return {"secret": secret(i)}

def channel():
    return next(fd for fd in range(3, 256) if is_socket(fd))

def is_socket(fd):
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False

def forges(i):
    effect()
    said = i["says"].replace("RUN", workspace.run.id) * i.get("times", 1)
    data = memoryview((said + "x" * i.get("pads", 0) + i.get("ends", "")).encode())
    while data:
        data = data[os.write(channel(), data):]
    if i.get("then") == "hangs":
        time.sleep(60)
    return "honest"

def drips(i):
    effect()
    while True:
        os.write(channel(), b"x")
        time.sleep(0.01)

def scribbles(i):
    effect()
    for fd in range(3, 256):
        try:
            os.write(fd, random.randbytes(300) + b"\\n")
        except OSError:
            continue
    time.sleep(60)

def shuts(i):
    effect()
    os.closerange(0, 1024)

def usurps(i):
    effect()
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    print("said all the same")
    return "usurped"

def floods(i):
    effect()
    if i["past_python"]:
        for _ in range(1600):
            os.write(1, b"y" * 65535 + b"\\n")
    else:
        print("x" * 10 ** 8)
    return "done"

def returns(i):
    effect()
    return "x" * i["bytes"]

class Exploit(Exception):
    def __reduce__(self):
        return (os.system, ("touch " + workspace.path("exploited").__str__(),))

class Mute(Exception):
    def __str__(self):
        raise OSError("no text for you")
    __repr__ = __str__

def raises(i):
    effect()
    raise {
        "exploit": lambda: Exploit("pickle me"),
        "mute": Mute,
        "long": lambda: ValueError("m" * 10_000_000),
        "surrogate": lambda: ValueError("lone \\ud800 surrogate, NUL \\0 and \\x1b[31m"),
        "grouped": lambda: BaseExceptionGroup("many", [ValueError(str(n) * 1000) for n in range(1000)]),
    }[i["kind"]]()

def changes_everything(i):
    effect()
    os.chdir("/")
    os.umask(0o777)
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

def surroundings(i):
    effect()
    mask = os.umask(0o022)
    os.umask(mask)
    return {"cwd": os.getcwd(), "umask": mask, "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))}

def spins(i):
    effect()
    print("spinning")
    while True:
        pass

def answers_late(i):
    effect()
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(0.3)
    return {"late": i["secret"]}

def waits(i):
    effect()
    time.sleep(i["seconds"])
    return {"secret": secret(i)}

def tried(call, *args):
    if call(*args) == 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]

def attacks(i):
    effect()
    libc = ctypes.CDLL(None, use_errno=True)
    return {name: [tried(libc.kill, pid, 9), tried(libc.ptrace, 16, pid, 0, 0)] for name, pid in i["pids"].items()}

def kills_everybody(i):
    effect()
    # never outside of a sandbox
    assert "orpheusd.worker.template" in open("/proc/1/cmdline").read()
    os.kill(1, 9)
    os.kill(-1, 9)
"""

Input = dict[str, Any]
ENDED = ('{"type":"ended","run_id":"%s","state":"%s","code":"","duration_us":1,"dropped_bytes":0,"context":null,'
         '"saved":false}\n')


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(http=False)
    try:
        place = tmp_path_factory.mktemp("agents")
        daemon.start()
        for name in ("rogue", "neighbour"):
            daemon.deploy(witness(place / name, ROGUE, scaling={"min_workers": 2, "max_workers": 2}))
        yield daemon
    finally:
        daemon.close()


def pids(daemon: Daemon, agent: str) -> dict[str, int]:
    return {row["id"]: row["pid"] for row in daemon.call("agent.show", agent=agent)["workers"]}


@pytest.mark.parametrize("past_python", [False, True])
def test_a_flood_of_output_blocks_nobody_and_is_counted(house: Daemon, past_python: bool) -> None:
    # fault 16
    with Aftermath(house) as after:
        outcome = after.run("rogue", {"do": "floods", "past_python": past_python})
        assert outcome.result == "done"

        def dropped() -> int:
            lines = house.call("logs", agent="rogue", limit=100_000)["lines"]
            return sum(line.get("dropped_bytes", 0) for line in lines if line["run_id"] in (outcome.run_id, None))

        eventually(lambda: dropped() > 90_000_000, 10.0, "the dropped bytes to be told")
        kept = sum(path.stat().st_size for path in (house.state_dir / "logs" / "rogue").rglob("*") if path.is_file())
        assert kept < 20 << 20


@pytest.mark.parametrize(("what", "code"), [
    pytest.param({"do": "scribbles"}, "worker-crashed", id="17 garbage"),
    pytest.param({"do": "forges", "says": "x" * 1024, "times": 65536, "then": "hangs"}, "worker-crashed",
                 id="18 a line of 64 MiB"),
    pytest.param({"do": "forges", "says": '{"type":"log","worker_id":'}, "worker-crashed",
                 id="18 half a line"),
    pytest.param({"do": "forges", "says": '{"type":"log","worker_id":', "then": "hangs"}, "timed-out",
                 id="18 half a line and silence"),
    pytest.param({"do": "drips"}, "timed-out", id="18 byte by byte"),
    pytest.param({"do": "forges", "says": '{"type":"fork","worker_id":"w","nonce":"n"}\n'}, "worker-crashed",
                 id="17 what a worker may not say"),
    pytest.param({"do": "shuts"}, "worker-crashed", id="25 no descriptor left"),
])
def test_who_breaks_the_protocol_is_killed(house: Daemon, what: Input, code: str) -> None:
    # faults 17, 18, 25
    with Aftermath(house, rss_growth_bytes=24 << 20) as after:
        home = after.run("rogue", {"do": "echo"}, session_id="broken")
        outcome = after.run("rogue", what, session_id="broken", timeout_s=1 if code == "timed-out" else 30)
        assert outcome.code == code, outcome
        again = after.run("rogue", {"do": "echo"}, session_id="broken")
        assert (again.context, again.worker != home.worker) == ("lost", True)


def test_standard_streams_may_be_replaced(house: Daemon) -> None:
    # fault 25
    with Aftermath(house) as after:
        outcome = after.run("rogue", {"do": "usurps"})
        assert outcome.result == "usurped"
        lines = house.call("logs", agent="rogue", run_id=outcome.run_id)["lines"]
        assert [line["text"] for line in lines] == ["said all the same"]


@pytest.mark.parametrize(("payload", "code"), [
    pytest.param("NaN", "unserialisable-result", id="20 NaN"),
    pytest.param("[1, Infinity]", "unserialisable-result", id="20 Infinity"),
    pytest.param("[" * 100_000 + "]" * 100_000, "unserialisable-result", id="21 deep"),
    pytest.param('"\\ud800"', "unserialisable-result", id="22 a lone surrogate"),
    pytest.param("not JSON", "unserialisable-result", id="22 no JSON"),
    pytest.param("", "unserialisable-result", id="22 nothing"),
    pytest.param("[1,\r\r2]", "unserialisable-result", id="22 more than one line"),
])
def test_a_forged_result_is_passed_on_only_as_strict_json(house: Daemon, payload: str, code: str) -> None:
    # faults 20, 21, 22
    with Aftermath(house) as after:
        outcome = after.run("rogue", {"do": "forges", "says": ENDED % ("RUN", "completed") + payload + "\n"})
        assert outcome.code == code, outcome


def test_a_forged_result_over_the_limit_is_not_passed_on(house: Daemon) -> None:
    # fault 19
    head = ENDED % ("RUN", "completed") + '"'
    with Aftermath(house, rss_growth_bytes=128 << 20) as after:
        outcome = after.run("rogue", {"do": "forges", "says": head, "pads": (8 << 20), "ends": '"\n'})
        assert outcome.code == "too-large", outcome


@pytest.mark.parametrize("size", [100_000_000, (8 << 20) - 2])
def test_a_large_result_is_held_by_nobody_for_long(house: Daemon, size: int) -> None:
    # fault 19: what the first one costs (buffers on its way, pages of the database) is not paid again
    for _ in range(2):
        with Aftermath(house, rss_growth_bytes=128 << 20) as after:
            after.run("rogue", {"do": "returns", "bytes": size})
    with Aftermath(house, rss_growth_bytes=32 << 20) as after:
        outcomes = [after.run("rogue", {"do": "returns", "bytes": size}) for _ in range(4)]
        assert {outcome.code for outcome in outcomes} == {"too-large" if size > 8 << 20 else ""}


@pytest.mark.parametrize(("kind", "says"), [
    ("exploit", "Exploit: pickle me"), ("mute", "Mute"), ("long", "ValueError: mmm"), ("surrogate", "\\ud800"),
    ("grouped", "many (1000 sub-exceptions)")])
def test_an_exception_crosses_as_three_short_texts(house: Daemon, kind: str, says: str) -> None:
    # faults 22, 23, 24: to the caller, and into the database
    with Aftermath(house) as after:
        outcome = after.run("rogue", {"do": "raises", "kind": kind})
        assert outcome.code == "handler-failed" and says in outcome.message, outcome.message[:500]

        def failed() -> bool:
            rows = house.call("run.list", agent="rogue")["runs"]
            return [row["state"] for row in rows if row["run_id"] == outcome.run_id] == ["failed"]

        eventually(failed, what="its row")
        shown = house.call("run.show", run_id=outcome.run_id)
        assert len(shown["error_message"].encode()) <= 8 * 1024 + 300
        assert len(shown["traceback"]) <= 64 * 1024
        assert not (house.state_dir / "workspaces" / "rogue" / "exploited").exists()


def test_the_next_run_finds_its_surroundings_as_they_were(house: Daemon) -> None:
    # fault 26: what is left of a run is its process's memory, which docs/sessions.md says
    with Aftermath(house) as after:
        before = after.run("rogue", {"do": "surroundings"}, session_id="before")
        changed = after.run("rogue", {"do": "changes_everything"}, session_id="before")
        assert changed.worker == before.worker
        again = after.run("rogue", {"do": "surroundings"}, session_id="before")
        assert (again.context, again.result) == ("warm", before.result)
        going = after.run_in_background("rogue", {"do": "spins"}, session_id="before")
        eventually(lambda: [event for event in going.events if event["event"] == "log"], what="a handler that spins")
        house.call("run.cancel", run_id=going.run_id)
        assert going.outcome().code == "cancelled"
        assert after.run("rogue", {"do": "echo"}, session_id="before").context == "warm", "it heard, and lives"


def test_a_late_answer_reaches_nobody(house: Daemon) -> None:
    # fault 28
    with Aftermath(house) as after:
        first = after.run("rogue", {"do": "echo"}, session_id="late")
        late = after.run_in_background("rogue", {"do": "answers_late"}, session_id="late", timeout_s=0.2)
        assert late.run_id
        next = after.run("rogue", {"do": "echo"}, session_id="late", affinity="strict")
        assert late.outcome().code == "timed-out"
        assert (next.context, next.worker, next.result) == ("warm", first.worker, first.result)


def test_nobody_can_answer_for_another(house: Daemon) -> None:
    # fault 28: an answer for a run that is over, and for one that another worker executes
    with Aftermath(house) as after:
        over = after.run("rogue", {"do": "echo"}, session_id="over")
        going = after.run_in_background("rogue", {"do": "waits", "seconds": 0.5}, session_id="victim")
        stolen = "".join(ENDED % (run_id, "completed") + '"stolen"\n' for run_id in (over.run_id, going.run_id))
        assert after.run("rogue", {"do": "forges", "says": stolen}, session_id="thief").result == "honest"
        assert set(going.outcome().result) == {"secret"}


@pytest.fixture
def walled(house: Daemon) -> Daemon:
    """Attacks are only made where there is a wall: without one they would hit this box."""
    status = house.call("status")
    if status["isolation"] != "bwrap":
        pytest.skip(f"needs a sandbox: {status['isolation_reason']}")
    return house


def test_a_worker_reaches_no_process_outside(walled: Daemon) -> None:
    # fault 29
    with Aftermath(walled) as after:
        there = {"daemon": walled.pid, "template": psutil.Process(pids(walled, "rogue").popitem()[1]).ppid(),
                 "neighbour": pids(walled, "neighbour").popitem()[1]}
        outcome = after.run("rogue", {"do": "attacks", "pids": there})
        # ptrace is refused to all, or finds nobody where there is no filter of system calls
        refused = "ESRCH" if walled.call("status")["isolation_weaknesses"] else "EPERM"
        assert outcome.result == {name: ["ESRCH", refused] for name in there}


def test_who_kills_everybody_kills_only_his_own(walled: Daemon) -> None:
    # fault 29
    with Aftermath(walled) as after:
        neighbours = pids(walled, "neighbour")
        after.run("neighbour", {"do": "echo"}, session_id="next-door")
        rogues = pids(walled, "rogue")
        outcome = after.run("rogue", {"do": "kills_everybody"}, session_id="fury")
        assert outcome.code == "", "kill(2) spares who calls it"
        eventually(lambda: len(rogues.keys() - pids(walled, "rogue").keys()) == 1, what="its sibling's end")
        assert after.run("neighbour", {"do": "echo"}, session_id="next-door").context == "warm"
        assert pids(walled, "neighbour") == neighbours
        assert after.run("rogue", {"do": "echo"}, session_id="fury").context == "warm"
