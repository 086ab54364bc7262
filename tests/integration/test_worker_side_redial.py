"""A template and its workers when the supervisor is gone: they keep what they have, dial again, and tell it all."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.eventually import eventually
from tests.integration.worker_peer import End, Peer

#: Longer than any of these tests wait for the next supervisor.
TTL_S = 20.0


@pytest.fixture(params=["behaviours", "async_behaviours"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    with Peer(tmp_path, request.param, orphan_ttl_s=TTL_S) as peer:
        yield peer.start()
        peer.process.terminate()


def lose(end: End) -> None:
    """The supervisor's end of the connection is gone, as when it is killed."""
    end.sock.close()
    end.open = False


def id_of(end: End) -> str:
    assert end.hello is not None
    id: str = end.hello.fields["id"]
    return id


def again(peer: Peer, end: End) -> End:
    return peer.dialled(id_of(end))


def told(end: End) -> tuple[list[list[Any]], dict[str, dict[str, Any]]]:
    """The sessions and the held runs that a worker tells of, up to its `ready`."""
    end.take("ready")
    sessions: list[list[Any]] = []
    held = {}
    for message in list(end.inbox):
        if message.type == "sessions":
            sessions += json.loads(message.payload)
        elif message.type == "held":
            held[message.fields["run_id"]] = {**message.fields, "input": json.loads(message.payload)}
    return sessions, held


def test_an_idle_worker_dials_again_with_its_sessions_and_results(peer: Peer) -> None:
    peer.acknowledges = False
    worker = peer.worker()
    note = {"source": "ctl", "at": 1.5}
    for turn in (1, 2):
        ended = worker.call({"q": turn}, run_id=f"r-{turn}", session_id="s", turn=turn, timeout_s=60.0, note=note,
                            context="new" if turn == 1 else "warm")
        assert ended.state == "completed"
    worker.call("none", run_id="r-3")
    worker.call("elsewhere", run_id="r-4", session_id="t", turn=5, context="spilled")
    worker.send("acknowledged", {"run_ids": ["r-1", "r-3", "r-4", "r-of-nobody"]})
    worker.call("last", run_id="r-5")
    lose(worker)
    worker = again(peer, worker)
    sessions, held = told(worker)
    assert [row[:2] + row[3:] for row in sessions] == [["s", 2, False]] and 0 <= sessions[0][2] < 5
    assert set(held) == {"r-2", "r-5"}
    assert {name: held["r-2"][name] for name in ("session_id", "context", "turn", "timeout_s", "note", "over")} == {
        "session_id": "s", "context": "warm", "turn": 2, "timeout_s": 60.0, "note": note, "over": True}
    assert held["r-2"]["input"] == {"q": 2} and held["r-5"]["input"] == "last"
    assert [worker.ended(run_id).state for run_id in ("r-2", "r-5")] == ["completed"] * 2
    worker.send("acknowledged", {"run_ids": ["r-2", "r-5"]})
    assert worker.call("on it goes").state == "completed"
    lose(worker)
    assert set(told(again(peer, worker))[1]) == {"r-5"} - {"r-5"} | {f"r-{next(peer.numbers) - 1}"}


def test_a_session_that_ended_is_not_told(peer: Peer) -> None:
    worker = peer.worker()
    for id in ("s", "t"):
        worker.call(session_id=id, turn=1, context="new")
    worker.send("session_end", {"session_id": "s", "reason": "ended"})
    worker.call("read it")
    lose(worker)
    assert [row[0] for row in told(again(peer, worker))[0]] == ["t"]


def test_a_handler_is_not_disturbed_and_is_told_of_when_the_template_rings(peer: Peer) -> None:
    worker = peer.worker()
    run_id = worker.run({"do": "sleeps", "seconds": 1.5}, session_id="s", turn=1, context="new", timeout_s=30.0)
    peer.settle()
    lose(worker)
    lose(peer.template)
    template = peer.template = peer.dialled("t-1-1")
    assert json.loads(template.take("workers").payload) == [[id_of(worker), f"n-{id_of(worker)}"]]
    template.take("ready")
    template.send("ring", {})
    worker = again(peer, worker)
    sessions, held = told(worker)
    assert [row[0] for row in sessions] == ["s"]
    assert not held[run_id]["over"] and 0 < held[run_id]["elapsed_s"] < 1.5, "it was told while the handler ran"
    ended = worker.ended(run_id)
    assert ended.state == "completed" and ended.fields["duration_us"] >= 1_500_000


def test_a_run_can_be_cancelled_by_the_next_supervisor(peer: Peer) -> None:
    worker = peer.worker()
    run_id = worker.run({"do": "sleeps", "seconds": 60})
    peer.settle()
    lose(worker)
    lose(peer.template)
    peer.template = peer.dialled("t-1-1")
    peer.template.take("ready")
    peer.template.send("ring", {})
    worker = again(peer, worker)
    told(worker)
    worker.cancel(run_id)
    assert worker.ended(run_id).state == "cancelled"


def test_the_next_supervisor_can_fork_and_is_told_of_deaths(peer: Peer) -> None:
    first, second = peer.worker(), peer.worker()
    lose(peer.template)
    peer.template = peer.dialled("t-1-1")
    told = json.loads(peer.template.take("workers").payload)
    assert sorted(told) == sorted([id_of(one), f"n-{id_of(one)}"] for one in (first, second))
    peer.template.take("ready")
    third = peer.worker()
    peer.template.send("kill", {"worker_id": id_of(first)})
    assert peer.exited(id_of(first)) == -signal.SIGKILL
    assert second.call("alive").state == third.call("alive").state == "completed"
    first.open = False


def test_what_was_printed_meanwhile_is_not_lost(peer: Peer) -> None:
    worker = peer.worker()
    run_id = worker.run({"do": "sleeps", "seconds": 0.3, "then_prints": "meanwhile"})
    peer.settle()
    lose(worker)
    worker = again(peer, worker)
    told(worker)
    worker.ended(run_id)
    assert worker.logs(run_id=run_id) == ["meanwhile"]


def test_a_worker_told_to_stop_stays_until_its_results_are_acknowledged(peer: Peer) -> None:
    peer.acknowledges = False
    worker = peer.worker()
    worker.call("last", run_id="r-1")
    worker.send("stop", {})
    peer.settle()
    assert worker.open
    worker.send("acknowledged", {"run_ids": ["r-1"]})
    worker.gone()
    assert peer.exited(id_of(worker)) == 0


def test_a_worker_told_to_stop_brings_what_it_holds_to_the_next_supervisor(peer: Peer) -> None:
    # fault 33
    peer.acknowledges = False
    worker = peer.worker()
    worker.call("last", run_id="r-1", session_id="s", turn=1, context="new")
    worker.send("stop", {})
    peer.settle()
    lose(worker)
    worker = again(peer, worker)
    sessions, held = told(worker)
    assert [row[0] for row in sessions] == ["s"] and held["r-1"]["over"]
    assert worker.ended("r-1").value == "last"
    worker.send("acknowledged", {"run_ids": ["r-1"]})
    assert worker.call("the next counts on it", run_id="r-2").state == "completed"
    worker.send("stop", {})
    worker.send("acknowledged", {"run_ids": ["r-2"]})
    worker.gone()
    assert peer.exited(id_of(worker)) == 0


def test_a_worker_told_to_stop_that_holds_nothing_waits_for_nobody(peer: Peer) -> None:
    worker = peer.worker()
    worker.call("last")
    peer.settle()
    worker.send("stop", {})
    lose(worker)
    assert peer.exited(id_of(worker)) in (0, 70), "long before it would have given up"


def test_a_ring_just_before_it_dials_by_itself_is_enough(tmp_path: Path) -> None:
    (tmp_path / "rung.py").write_text(
        "import os, signal\n"
        "from orpheusd.worker.sync_runs import SyncRuns\n"
        "wait = SyncRuns._wait_for_supervisor\n"
        "def rung_first(self):\n"
        "    os.kill(os.getpid(), signal.SIGUSR1)\n"
        "    wait(self)\n"
        "SyncRuns._wait_for_supervisor = rung_first\n"
        "def handler(x): return x\n")
    with Peer(tmp_path, "rung", code_dir=str(tmp_path), orphan_ttl_s=TTL_S) as peer:
        peer.start()
        worker = peer.worker()
        lose(worker)
        worker = again(peer, worker)
        assert told(worker) == ([], {})
        assert worker.call("here").value == "here", "on the connection that the ring has made"
        lose(peer.template)
        peer.process.terminate()


def test_they_leave_when_no_supervisor_comes(tmp_path: Path) -> None:
    with Peer(tmp_path, orphan_ttl_s=0.2) as peer:
        peer.start()
        worker = peer.worker()
        (tmp_path / "worker.sock").unlink()
        lose(worker)
        assert peer.exited(id_of(worker)) == 70
        lose(peer.template)
        assert peer.process.wait(10) == 0


def test_a_supervisor_that_hangs_up_again_and_again_is_no_supervisor(tmp_path: Path) -> None:
    with Peer(tmp_path, orphan_ttl_s=0.5) as peer:
        peer.start()
        worker = peer.worker()
        lose(worker)
        dials = 0

        def hangs_up() -> bool:
            nonlocal dials
            for end in [end for end in peer.ends if end.open and end is not peer.template]:
                dials += 1
                lose(end)
            return any(message.type == "exited" for message in peer.template.inbox)

        peer.until(hangs_up, 10.0, "the worker to give up")
        assert peer.exited(id_of(worker)) == 70
        assert 1 <= dials <= 30, "it pauses between two tries"


def test_a_template_without_its_setup_leaves_at_once(tmp_path: Path) -> None:
    # fault 34
    with Peer(tmp_path, orphan_ttl_s=TTL_S) as peer:
        lose(peer.template)
        assert peer.process.wait(10) == 0


def test_a_worker_whose_supervisor_dies_during_import_dials_again(tmp_path: Path) -> None:
    # fault 34
    (tmp_path / "slow.py").write_text(
        "import pathlib, select\n"
        f"while not pathlib.Path({str(tmp_path / 'go')!r}).exists(): select.select((), (), (), 0.01)\n"
        "def handler(x): return x\n")
    with Peer(tmp_path, "slow", code_dir=str(tmp_path), orphan_ttl_s=TTL_S) as peer:
        peer.start()
        worker = peer.fork()
        lose(worker)
        (tmp_path / "go").touch()
        worker = again(peer, worker)
        assert told(worker) == ([], {})
        assert worker.call("here").value == "here"
        os.kill(worker.pid, signal.SIGKILL)
        eventually(lambda: not worker.open or not peer.listen(0.01))
        peer.process.terminate()
