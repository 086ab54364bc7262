"""Deadlines that really stop a run: whatever its handler does, the caller is answered in time, the record shows where
it was stuck, and the slot serves the next run. A real daemon, real workers.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

HANDLERS = Path(__file__).resolve().parents[1] / "handlers"
GRACE_S = 0.5
TIMEOUT_S = 0.5
#: What the promise allows beyond timeout and grace.
BEYOND_S = 1.0
AGENTS = ("stuck", "stuck-async")


class Case(NamedTuple):
    """What a handler does, and how it is stopped: it obeys, its worker is aborted, or it has to be killed."""

    agent: str
    do: str
    how: str


CASES = [
    Case("stuck", "sleeps", "obeys"),
    Case("stuck", "spins", "obeys"),
    Case("stuck", "waits_in_c", "aborted"),
    Case("stuck", "computes_in_c", "aborted"),
    Case("stuck", "catches_everything", "aborted"),
    Case("stuck", "closes_output", "aborted"),
    Case("stuck", "ignores_abort", "killed"),
    Case("stuck", "handles_abort", "killed"),
    Case("stuck-async", "awaits", "obeys"),
    Case("stuck-async", "spins", "aborted"),
    Case("stuck-async", "catches_everything", "aborted"),
]
CAUSES = {
    "aborted": "signal 6 (SIGABRT), ended by orpheusd: a run {} and did not stop within 0.5 s",
    "killed": "signal 9 (SIGKILL), ended by orpheusd: a run {} and did not stop within 0.5 s",
}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a short grace, and an agent with one worker for each file of handlers."""
    daemon = Daemon(env={"ORPHEUS_GRACE_S": str(GRACE_S)}, http=False)
    try:
        daemon.start()
        for name in AGENTS:
            code = (HANDLERS / f"{name.replace('-', '_')}.py").read_text()
            daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / name, code, scaling={
                "min_workers": 1, "max_workers": 1}))
        yield daemon
    finally:
        daemon.close()


def refused(daemon: Daemon, agent: str, **input: Any) -> tuple[OrpheusError, float]:
    """The error of a run, and how many seconds it took."""
    began = time.monotonic()
    with pytest.raises(OrpheusError) as caught:
        daemon.call("run", agent=agent, input=input, timeout_s=TIMEOUT_S)
    return caught.value, time.monotonic() - began


def record_of(daemon: Daemon, run_id: str) -> dict[str, Any]:
    """The run as the log has it, once it is over there."""
    def ended() -> dict[str, Any] | None:
        try:
            shown: dict[str, Any] = daemon.call("run.show", run_id=run_id)
        except OrpheusError:
            return None  # not written yet
        return shown if shown["ended_at"] is not None else None

    found = eventually(ended, what="the run's record")
    assert found is not None
    return found


def logged(daemon: Daemon, agent: str, run_id: str) -> str:
    """What the agent's log has of a run."""
    lines = daemon.call("logs", agent=agent, run_id=run_id, limit=1000)["lines"]
    return "\n".join(line["text"] for line in lines)


def next_worker(daemon: Daemon, agent: str) -> str:
    """The worker that serves the agent's next run."""
    worker_id: str = daemon.call("run", agent=agent, input={"do": "echoes"})["worker_id"]
    return worker_id


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.agent}-{case.do}")
def test_a_run_is_stopped_in_time_and_shows_where_it_was(impatient: Daemon, case: Case) -> None:
    # fault 9, 11
    error, took_s = refused(impatient, case.agent, do=case.do)
    assert error.code == "timed-out" and TIMEOUT_S <= took_s < TIMEOUT_S + GRACE_S + BEYOND_S, took_s
    run_id = error.details["request_id"]
    record = record_of(impatient, run_id)
    assert record["state"] == "timed-out"
    if case.how == "obeys":
        assert record["exit_cause"] is None and f"in {case.do}" in record["traceback"]
    else:
        assert record["exit_cause"] == CAUSES[case.how].format("timed out")
        assert f"`orpheusctl show {run_id}`" in str(error)
        where = "(no stack: " if case.how == "killed" else f"in {case.do}"
        assert where in record["black_box"]["stack"] and where in logged(impatient, case.agent, run_id)
    same = next_worker(impatient, case.agent) == error.details["worker_id"]
    assert same == (case.how == "obeys"), "who obeys keeps its worker, and no other does"


@pytest.mark.parametrize("do", ["sleeps", "waits_in_c"])
def test_a_cancelled_run_is_stopped_likewise(impatient: Daemon, do: str) -> None:
    with impatient.connect() as control:
        id = control.send("run", agent="stuck", input={"do": do}, stream=True)
        run_id = ""
        for frame in iter(control.receive, None):
            params = frame.get("params", {})
            if params.get("event") == "accepted":
                run_id = params["data"]["request_id"]
            elif params.get("event") == "log" and params["data"]["text"] == f"in {do}":
                began = time.monotonic()
                impatient.call("run.cancel", run_id=run_id)
            elif frame.get("id") == id:
                assert frame["error"]["data"]["code"] == "cancelled"
                break
        assert time.monotonic() - began < GRACE_S + BEYOND_S
    record = record_of(impatient, run_id)
    assert record["exit_cause"] == (CAUSES["aborted"].format("was cancelled") if do == "waits_in_c" else None)
    assert next_worker(impatient, "stuck")


def test_a_crash_has_its_signal_and_its_stack(impatient: Daemon) -> None:
    # fault 2
    error, _ = refused(impatient, "stuck", do="crashes")
    run_id = error.details["request_id"]
    assert error.code == "worker-crashed" and "signal 11 (SIGSEGV)" in str(error)
    assert f"`orpheusctl show {run_id}`" in str(error)
    assert record_of(impatient, run_id)["exit_cause"] == "signal 11 (SIGSEGV)"
    assert "in crashes" in logged(impatient, "stuck", run_id)
    assert next_worker(impatient, "stuck") != error.details["worker_id"]


def test_the_place_of_a_stopped_worker_is_filled_before_it_is_dead(impatient: Daemon) -> None:
    # fault 10
    before = next_worker(impatient, "stuck")
    [stopped] = [worker["pid"] for worker in impatient.call("agent.show", agent="stuck")["workers"]]
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(refused, impatient, "stuck", do="sleeps")
        eventually(lambda: impatient.call("agent.stats", agent="stuck")["workers"]["busy"] == 1)
        os.kill(stopped, signal.SIGSTOP)
        after = next_worker(impatient, "stuck")
        assert after != before and not hanging.done(), "the next worker did not wait for the death of this one"
        error, took_s = hanging.result()
    assert error.code == "timed-out" and took_s < TIMEOUT_S + GRACE_S + BEYOND_S
    run_id = error.details["request_id"]
    assert record_of(impatient, run_id)["exit_cause"] == CAUSES["killed"].format("timed out")
    assert not Path(f"/proc/{stopped}").exists()


def test_one_agents_stuck_runs_do_not_delay_anothers(impatient: Daemon) -> None:
    stuck = threading.Thread(target=refused, args=(impatient, "stuck"), kwargs={"do": "waits_in_c"})
    stuck.start()
    took = []
    while stuck.is_alive():
        began = time.monotonic()
        impatient.call("run", agent="stuck-async", input={"do": "echoes"})
        took.append(time.monotonic() - began)
    stuck.join()
    assert len(took) > 10 and max(took) < BEYOND_S / 2, max(took)
