"""A worker says more than any honest one does, past the runtime: it is killed for that, and little of it is held.

What the runtime cuts before it is said is in `test_worker_misbehaves.py`; how those who say much take turns is in
`tests/integration/test_shares.py`.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness

FLOODER = """
import socket, stat, time

def handler(input_data):
    effect()
    return globals()[input_data["do"]](input_data)

def echo(i):
    return "echo"

def channel():
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            continue

def says(i):
    '''Say it so many times, unless that is the end of us.'''
    said = (i["says"].replace("RUN", workspace.run.id).replace("TEXT", "x" * i.get("text", 5)) + "\\n").encode()
    at_once = max(1, 60_000 // len(said))
    for _ in range(i["times"] // at_once + 1):
        data = memoryview(said * min(at_once, i["times"]))
        while data:
            data = data[os.write(channel(), data):]
    if i.get("then") == "hangs":
        time.sleep(60)
    return "honest"

def dials(i):
    path = "/run/orpheus/link/worker.sock"
    for number in range(i["times"]):
        with socket.socket(socket.AF_UNIX) as one:
            one.connect(path)
    return number + 1
"""

OUTPUT = '{"type":"output","run_id":"%s","seq":0}\n1'
LOG = ('{"type":"log","worker_id":"w","run_id":%s,"session_id":null,"stream":"stdout","text":"TEXT",'
       '"dropped_bytes":0}')
ENDED = ('{"type":"ended","run_id":"r-nobody","state":"completed","code":"","duration_us":1,"dropped_bytes":0,'
         '"context":null,"saved":false}\n1')
#: No name is as long, and what would hold it counts names as nothing.
LONG = "x" * 1000
#: More than is ever allowed: the worker dies long before it has said all of it.
FOR_EVER = 3_000_000


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(http=False)
    try:
        place = tmp_path_factory.mktemp("agents")
        daemon.start()
        daemon.deploy(witness(place / "flooder", FLOODER, scaling={"min_workers": 1, "max_workers": 1}))
        yield daemon
    finally:
        daemon.close()


def cause(daemon: Daemon, run_id: str | None) -> str:
    """Why the worker of a run died, as the log has it."""
    def row() -> dict[str, Any] | None:
        shown = daemon.call("run.show", run_id=run_id)
        return shown if shown["exit_cause"] else None

    return str(eventually(row, what="the cause in the run's record")["exit_cause"])


@pytest.mark.parametrize(("says", "times", "told"), [
    pytest.param(OUTPUT % "r-nobody", 1, "'output' of run 'r-nobody'", id="output of nobody's run"),
    pytest.param(OUTPUT % "RUN", 1, "no such run for a stream", id="output that nobody asked for"),
    pytest.param(LOG % '"r-nobody"', 1, "'log' of run 'r-nobody'", id="a line of nobody's run"),
    pytest.param(LOG % '"RUN"', FOR_EVER, "bytes of 'log' of one run", id="lines of its run"),
    pytest.param(LOG % "null", FOR_EVER, "'log' faster than any worker", id="lines of no run"),
    pytest.param(ENDED, FOR_EVER, "'ended' faster than any worker", id="ends of nobody's run"),
    pytest.param(LOG.replace("stdout", LONG) % "null", 1, "1000 characters of 'stream'", id="a stream's name"),
    pytest.param(ENDED.replace("r-nobody", LONG), 1, "1000 characters of 'run_id'", id="a run's id"),
])
def test_who_says_what_no_honest_worker_says_is_killed_for_that(
    house: Daemon, says: str, times: int, told: str,
) -> None:
    # fault 16
    with Aftermath(house) as after:
        outcome = after.run("flooder", {"do": "says", "says": says, "times": times, "then": "hangs"})
        assert outcome.code == "worker-crashed", outcome
        assert told in cause(house, outcome.run_id)
        assert after.run("flooder", {"do": "echo"}).result == "echo"


def test_lines_of_a_flood_are_not_held_in_memory(house: Daemon) -> None:
    # fault 16: the longest lines there are
    with Aftermath(house, rss_growth_bytes=48 << 20) as after:
        for _ in range(3):
            outcome = after.run("flooder", {
                "do": "says", "says": LOG % "null", "times": FOR_EVER, "text": 16_000, "then": "hangs"})
            assert outcome.code == "worker-crashed", outcome
            assert after.run("flooder", {"do": "echo"}).result == "echo"


@pytest.mark.parametrize("run_id", ["null", '"RUN"'])
def test_as_much_as_an_honest_worker_prints_at_once_is_heard(house: Daemon, run_id: str) -> None:
    # fault 16: the shortest lines, for which the runtime's allowance is spent last
    with Aftermath(house) as after:
        what = {"do": "says", "says": LOG % run_id, "text": 0, "times": (1 << 20) // 64}
        assert after.run("flooder", what).result == "honest"


def test_who_dials_all_the_time_is_let_in_now_and_then(house: Daemon) -> None:
    # fault 16: more than the daemon lets in before it counts; a worker that dials meanwhile is one of the queue
    if house.call("status")["isolation"] != "bwrap":
        pytest.skip("the path of the socket is that of the sandbox")
    with Aftermath(house) as after:
        assert after.run("flooder", {"do": "dials", "times": 700}).result == 700
        outcome = after.run("flooder", {"do": "says", "says": OUTPUT % "r-nobody", "times": 1, "then": "hangs"})
        assert outcome.code == "worker-crashed"
        assert after.run("flooder", {"do": "echo"}).result == "echo"
