"""A worker dies, in every way a process can, at every point of a run; rows 1 to 8 and 12 to 15 of docs/faults.md.

What is inside the sandbox alone (exit statuses, last words, orphans of a template without a daemon) is in
`tests/integration/test_worker_side.py`. Here a daemon, a caller and the run log must agree about it.
"""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon import Daemon
from tests.eventually import eventually
from tests.fault.aftermath import Aftermath, witness
from tests.fault.callers import Going

#: What faults.md allows between the death and the caller's answer.
DETECTION_S = 0.1

VICTIM = """
import contextvars, ctypes, resource, subprocess, sys, threading, time

def handler(input_data):
    return globals()[input_data["do"]](input_data)

def echo(i):
    effect()
    return {"secret": secret(i), "pid": os.getpid()}

def steps(i):
    for step in range(i["steps"]):
        if step == i["steps"] // 2:
            effect()
        workspace.emit(step)
        if step == i["stop_at"]:
            time.sleep(60)

def segfaults(i):
    effect()
    ctypes.string_at(0)

def exits(i):
    effect()
    os._exit(i["status"])

def raises_exit(i):
    effect()
    sys.exit(i["status"])

def replies_and_dies(i):
    # the thread looks on until the run has been answered, and ends the process then
    def look(main=threading.main_thread().ident):
        while any(f.f_code.co_name == "_execute" for f in stack(sys._current_frames()[main])):
            time.sleep(0.001)
        os._exit(0)
    effect()
    threading.Thread(target=look).start()
    with open(workspace.path("go")) as fifo:
        fifo.read()
    return "replied"

def stack(frame):
    while frame is not None:
        yield frame
        frame = frame.f_back

class Deadly:
    def model_dump(self, mode):
        os.kill(os.getpid(), 9)

def dies_of_its_result(i):
    effect()
    return Deadly()

def replies_much(i):
    effect()
    with open(workspace.path("go")) as fifo:
        fifo.read()
    return "x" * i["bytes"]

def allocates(i):
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    effect()
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
    try:
        return len(bytearray(2 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

def daemonises(i):
    effect()
    for _ in range(i["count"]):
        subprocess.run(["setsid", "sh", "-c", "exec setsid sleep 600 >/dev/null 2>&1 &"], check=True)
    if i["then"] == "dies":
        os.kill(os.getpid(), 9)
    return subprocess.run(["pgrep", "-c", "sleep"], capture_output=True, text=True).stdout

def bombs(i):
    effect()
    for _ in range(i["doublings"]):
        os.fork()
    time.sleep(600)

def orphans(i):
    effect()
    for _ in range(i["count"]):
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                os._exit(0)
            os._exit(0)
        os.waitpid(pid, 0)
    return "all dead"

def leaves_thread(i):
    # in the context of its run, and outside of any
    def speak():
        for _ in range(200):
            print("left behind:", i["secret"])
            workspace.emit(i["secret"])
            time.sleep(0.002)
    effect()
    threading.Thread(target=contextvars.copy_context().run, args=(speak,)).start()
    threading.Thread(target=speak).start()
    return "gone on"

def waits(i):
    effect()
    time.sleep(0.5)
    return {"secret": secret(i)}

def limits(i):
    effect()
    return {"core": resource.getrlimit(resource.RLIMIT_CORE)[0]}
"""

Input = dict[str, Any]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(http=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # as generous as a box may be
        daemon.start()
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
        daemon.deploy(witness(tmp_path_factory.mktemp("agents") / "victim", VICTIM, scaling={
            "min_workers": 2, "max_workers": 2}))
        yield daemon
    finally:
        daemon.close()


def worker_of(daemon: Daemon, going: Going) -> psutil.Process:
    """The process that executes a run."""
    assert going.run_id

    def found() -> int | None:
        busy = [row["pid"] for row in daemon.call("agent.show", agent="victim")["workers"] if row["busy"]]
        return busy[0] if len(busy) == 1 else None

    return psutil.Process(eventually(found, what="one busy worker"))


def seen(going: Going, seq: int) -> bool:
    """Whether the caller has got this piece of output."""
    return any(event.get("seq") == seq for event in going.events)


def cause_of(daemon: Daemon, run_id: str | None) -> tuple[str, str | None]:
    """The run's end in the log, which comes a moment after the caller's answer."""

    def ended() -> dict[str, Any] | None:
        rows = [row for row in daemon.call("run.list", agent="victim")["runs"] if row["run_id"] == run_id]
        return rows[0] if rows and rows[0]["ended_at"] is not None else None

    row = eventually(ended, what=f"the end of {run_id} in the log")
    return row["state"], row["exit_cause"]


@pytest.mark.parametrize("points", [
    (0, 4, 9), pytest.param(tuple(range(10)) * 3, marks=pytest.mark.slow)], ids=["three points", "ten points"])
def test_a_killed_worker_crashes_its_run(house: Daemon, points: tuple[int, ...]) -> None:
    # fault 1
    took = []
    with Aftermath(house) as after:
        for point in points:
            after.run("victim", {"do": "echo"}, session_id="s")
            going = after.run_in_background("victim", {"do": "steps", "steps": 10, "stop_at": point}, session_id="s")
            worker = worker_of(house, going)
            eventually(partial(seen, going, point), what=f"step {point}")
            started = time.monotonic()
            worker.kill()
            outcome = going.outcome()
            took.append(time.monotonic() - started)
            assert outcome.code == "worker-crashed" and "signal 9" in outcome.message, outcome
            assert cause_of(house, outcome.run_id) == (
                "crashed", "signal 9 (SIGKILL), not sent by orpheusd")
            assert after.run("victim", {"do": "echo"}, session_id="s").context == "lost"
    assert min(took) < DETECTION_S, took


def test_a_run_that_no_worker_had_read_goes_to_another(house: Daemon) -> None:
    # fault 1: killed before the first byte of the run was read, so that nothing can have happened
    with Aftermath(house) as after:
        home = after.run("victim", {"do": "echo"}, session_id="unread")
        workers = {row["id"]: row["pid"] for row in house.call("agent.show", agent="victim")["workers"]}
        stopped = psutil.Process(workers[home.worker or ""])
        stopped.suspend()
        going = after.run_in_background("victim", {"do": "echo"}, session_id="unread")
        worker_of(house, going)
        stopped.kill()
        outcome = going.outcome()
        assert (outcome.code, outcome.context) == ("", "lost")
        assert outcome.worker != home.worker


@pytest.mark.parametrize(("what", "cause"), [
    pytest.param({"do": "segfaults"}, "signal 11 (SIGSEGV)", id="fault 2"),
    pytest.param({"do": "exits", "status": 0}, "exit 0", id="fault 3"),
    pytest.param({"do": "exits", "status": 7}, "exit 7", id="fault 4"),
])
def test_a_worker_that_dies_by_itself_never_completes_its_run(house: Daemon, what: Input, cause: str) -> None:
    # faults 2, 3, 4
    with Aftermath(house) as after:
        outcome = after.run("victim", what, session_id="suicide")
        assert outcome.code == "worker-crashed" and cause.split()[1] in outcome.message, outcome
        assert cause_of(house, outcome.run_id) == ("crashed", cause)
        assert after.run("victim", {"do": "echo"}, session_id="suicide").context == "lost"


def test_no_core_is_written(house: Daemon) -> None:
    # fault 2: a core is as large as the worker, and has the secrets of all its sessions in it
    with Aftermath(house) as after:
        assert after.run("victim", {"do": "limits"}).result["core"] == 0


@pytest.mark.parametrize("status", [0, 3])
def test_sys_exit_fails_the_run_and_keeps_the_worker(house: Daemon, status: int) -> None:
    # fault 4
    with Aftermath(house) as after:
        first = after.run("victim", {"do": "echo"}, session_id=f"exit-{status}")
        assert after.run("victim", {"do": "raises_exit", "status": status},
                         session_id=f"exit-{status}").code == "handler-failed"
        again = after.run("victim", {"do": "echo"}, session_id=f"exit-{status}")
        assert (again.context, again.worker) == ("warm", first.worker)


def go_file(daemon: Daemon) -> Path:
    """A fifo in the workspace; the handler goes on when something is written to it."""
    fifo = daemon.state_dir / "workspaces" / "victim" / "go"
    fifo.unlink(missing_ok=True)
    os.mkfifo(fifo)
    fifo.chmod(0o666)
    return fifo


@contextmanager
def goes_on_unheard(house: Daemon, fifo: Path) -> Iterator[None]:
    """The handler that waits for the fifo goes on, and the daemon stands still meanwhile."""
    daemon = psutil.Process(house.pid)
    with fifo.open("w") as go:
        daemon.suspend()
        try:
            go.write("on")
            go.close()
            yield
        finally:
            daemon.resume()


def test_a_reply_that_was_written_counts_although_the_worker_is_gone(house: Daemon) -> None:
    # fault 5
    fifo = go_file(house)
    with Aftermath(house) as after:
        going = after.run_in_background("victim", {"do": "replies_and_dies"})
        worker = worker_of(house, going)
        with goes_on_unheard(house, fifo):
            eventually(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        assert going.outcome().result == "replied"


def test_a_worker_that_dies_before_its_answer_has_crashed(house: Daemon) -> None:
    # fault 6: the handler is done, its effect is there, and the answer is not
    with Aftermath(house) as after:
        outcome = after.run("victim", {"do": "dies_of_its_result"})
        assert outcome.code == "worker-crashed", outcome
        after.run("victim", {"do": "echo"})


def test_half_an_answer_is_none(house: Daemon) -> None:
    # fault 6: killed while it writes what the daemon does not read
    fifo = go_file(house)
    with Aftermath(house) as after:
        going = after.run_in_background("victim", {"do": "replies_much", "bytes": 4 << 20})
        worker = worker_of(house, going)
        with goes_on_unheard(house, fifo):
            # it has encoded its result and waits in the write, with more in the socket than is there now
            eventually(lambda: _waits_for_room(worker), 10.0, "the worker to fill its socket")
            worker.kill()
        assert going.outcome().code == "worker-crashed"
        assert after.run("victim", {"do": "replies_much", "bytes": 10}, timeout_s=0.2).code == "timed-out"


def _waits_for_room(worker: psutil.Process) -> bool:
    """Whether it sleeps after it has used the processor for its result, and not in the fifo."""
    wchan = Path(f"/proc/{worker.pid}/wchan").read_text()
    return "poll" in wchan or "unix_stream" in wchan or "sock_alloc" in wchan


def test_a_worker_out_of_memory_fails_the_run_and_lives(house: Daemon) -> None:
    # fault 7, as far as it goes without a control group: the kernel's killer is `signal 9` until a group tells more
    with Aftermath(house) as after:
        first = after.run("victim", {"do": "echo"}, session_id="hungry")
        outcome = after.run("victim", {"do": "allocates"}, session_id="hungry")
        assert outcome.code == "handler-failed" and "MemoryError" in outcome.message, outcome
        again = after.run("victim", {"do": "echo"}, session_id="hungry")
        assert (again.context, again.worker) == ("warm", first.worker)


def test_the_kernel_takes_a_worker_before_the_daemon(house: Daemon) -> None:
    # fault 8, as far as it goes without a control group that could be filled
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    def pids() -> list[int | None]:
        return [row["pid"] for row in house.call("agent.show", agent="victim")["workers"]]

    # one that has just been forked is known when it has said hello
    for pid in eventually(lambda: None not in (found := pids()) and found):
        assert score(pid) >= score(house.pid) + 500


@pytest.mark.parametrize("then", ["dies", "stays"])
def test_what_a_worker_started_dies_with_it(house: Daemon, then: str) -> None:
    # fault 12
    with Aftermath(house) as after:
        outcome = after.run("victim", {"do": "daemonises", "count": 3, "then": then}, session_id="parent")
        if then == "stays":
            assert outcome.code == "", outcome
            pids = {row["id"]: row["pid"] for row in house.call("agent.show", agent="victim")["workers"]}
            os.kill(pids[outcome.worker or ""], signal.SIGKILL)
        eventually(lambda: after.run("victim", {"do": "echo"}, session_id="parent").context == "lost")


def test_a_fork_bomb_ends_with_its_worker(house: Daemon) -> None:
    # fault 13, as far as it goes without a control group: it is not kept small, but it is swept away
    with Aftermath(house) as after:
        going = after.run_in_background("victim", {"do": "bombs", "doublings": 7})
        worker = worker_of(house, going)
        eventually(lambda: len(worker.children(recursive=True)) == 127, what="128 processes")
        assert after.run("victim", {"do": "echo"}).code == "", "the other worker serves meanwhile"
        worker.kill()
        assert going.outcome().code == "worker-crashed"
        after.run("victim", {"do": "echo"})


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_zombies_are_buried(house: Daemon, count: int) -> None:
    # fault 14
    with Aftermath(house) as after:
        assert after.run("victim", {"do": "orphans", "count": count}).result == "all dead"

        def zombies() -> list[psutil.Process]:
            return [one for one in house.family() if one.is_running() and one.status() == psutil.STATUS_ZOMBIE]

        eventually(lambda: not zombies(), 1.0, "no zombies after a second")


def test_what_a_run_left_running_speaks_to_no_other(house: Daemon) -> None:
    # fault 15
    with Aftermath(house) as after:
        first = after.run("victim", {"do": "leaves_thread"}, session_id="talker")
        going = after.run_in_background("victim", {"do": "waits"}, session_id="listener")
        next = after.run_in_background("victim", {"do": "waits"}, session_id="another")
        assert first.worker in (going.outcome().worker, next.outcome().worker)
        heard = [event for one in (going, next) for event in one.events if event["event"] != "accepted"]
        assert heard == []
        lines = house.call("logs", agent="victim", limit=1000)["lines"]
        left = [line for line in lines if line["text"].startswith("left behind:")]
        assert left and {line["session_id"] for line in left} <= {"talker", None}
