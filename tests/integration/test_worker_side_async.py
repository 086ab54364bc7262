"""Async handlers in a real worker: one loop, several runs at a time, none of them mixed up with another."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eventually import eventually
from tests.integration.worker_peer import End, Peer

CONCURRENCY = 4


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("async"), "async_behaviours", concurrency=CONCURRENCY) as peer:
        yield peer.start()


@pytest.fixture
def worker(peer: Peer) -> Iterator[End]:
    worker = peer.worker("async")
    yield worker
    peer.end(worker)
    peer.template.inbox.clear()


def test_one_loop_serves_all_runs(worker: End) -> None:
    for number in range(1, 4):
        facts = worker.call({"do": "facts"}, session_id="s").value
        assert facts["same_loop"] and facts["runs"] == number and facts["tasks"] == 1
        assert (facts["pid"], facts["session"]) == (worker.pid, "s")


def test_runs_overlap_and_are_not_mixed_up(worker: End) -> None:
    ids = {f"run-{number}": worker.run({"do": "meets", "name": f"run-{number}"}, stream=True, session_id=f"s{number}",
                                       run_id=f"r-run-{number}") for number in range(CONCURRENCY)}
    for name, run_id in ids.items():
        assert worker.ended(run_id).value == {"most": CONCURRENCY, "value": name, "run": run_id}
    for name, run_id in ids.items():
        assert worker.logs(run_id=run_id, session_id=f"s{name[-1]}") == [f"{name} {number}" for number in range(3)]
    for name, run_id in ids.items():
        pieces = [message for message in worker.inbox if message.fields["run_id"] == run_id]
        assert [(piece.fields["seq"], json.loads(piece.payload)) for piece in pieces] == [
            (number, f"{name} {number}") for number in range(3)]
    worker.inbox.clear()


def test_more_runs_than_the_concurrency_wait(worker: End) -> None:
    ids = [worker.run({"do": "meets", "name": str(number)}) for number in range(3 * CONCURRENCY)]
    assert {worker.ended(run_id).value["most"] for run_id in ids} <= set(range(1, CONCURRENCY + 1))


def test_a_cancel_ends_one_run_and_no_other(worker: End, peer: Peer) -> None:
    victim = worker.run({"do": "sleeps", "seconds": 30})
    other = worker.run({"do": "sleeps", "seconds": 0.1})
    worker.call("both are inside by now")
    worker.cancel(victim, "timed-out")
    ended = worker.ended(victim)
    assert (ended.state, ended.code, ended.value["type"]) == ("timed-out", "timed-out", "workspace.TimedOut")
    assert "in sleeps" in ended.value["traceback"]
    assert worker.ended(other).value == "slept"
    assert (peer.place / "workspace" / "cleaned").read_text() in (victim, other)


def test_a_cancel_that_overtakes_its_run_is_answered(worker: End) -> None:
    ids = [worker.run({"do": "sleeps", "seconds": 0.05}) for _ in range(CONCURRENCY)]
    first, waiting = worker.run({"do": "sleeps", "seconds": 30}), worker.run("next")
    worker.cancel(first)
    assert worker.ended(first).state == "cancelled"
    assert [worker.ended(run_id).state for run_id in [*ids, waiting]] == ["completed"] * (CONCURRENCY + 1)
    fields = {"session_id": None, "context": None, "turn": 0, "timeout_s": None, "stream": False, "note": {},
              "run_id": "r-both"}
    both = worker.link.send("run", fields, b"null") + worker.link.send(
        "cancel", {"run_id": "r-both", "reason": "cancelled"})
    worker.sock.sendall(both)
    assert worker.ended("r-both").state == "cancelled"


def test_a_handler_that_swallows_it_ends_as_told(worker: End) -> None:
    run_id = worker.run({"do": "swallows"})
    worker.call()
    worker.cancel(run_id)
    assert worker.ended(run_id).state == "cancelled"


def test_a_late_cancel_touches_nothing(worker: End) -> None:
    run_id = worker.run("done")
    worker.ended(run_id)
    for _ in range(20):
        worker.cancel(run_id)
    assert worker.call("on it goes").value == "on it goes"


@pytest.mark.parametrize(("do", "type"), [
    ("raises", "ValueError"), ("exits", "SystemExit"), ("cancels_itself", "asyncio.exceptions.CancelledError")])
def test_an_exception_becomes_data_and_the_worker_stays(worker: End, do: str, type: str) -> None:
    ended = worker.call({"do": do})
    assert (ended.state, ended.code, ended.value["type"]) == ("failed", "handler-failed", type)
    assert f"in {do}" in ended.value["traceback"] and "async_runs" not in ended.value["traceback"]
    assert worker.call("on it goes").state == "completed"


def test_what_a_run_leaves_in_the_loop_speaks_for_no_run(worker: End) -> None:
    # fault 15
    worker.call({"do": "leaves_task"}, stream=True)
    message = worker.take("log", text="after its run")
    assert message.fields["run_id"] is None
    assert [message for message in worker.inbox if message.type == "output"] == []


def test_a_background_task_that_exits_does_not_end_the_worker(worker: End) -> None:
    worker.call({"do": "leaves_exit"})
    worker.take("log", text="SystemExit: 9")
    assert worker.call("on it goes").state == "completed"


def test_threads_of_asyncio_print_for_their_run(worker: End) -> None:
    worker.call({"do": "prints_in_thread"}, run_id="r-t")
    assert worker.logs(run_id="r-t") == ["from a thread"]
    assert worker.logs(run_id=None) == ["without context"]


def test_an_async_lock_lets_one_in_at_a_time(worker: End) -> None:
    ids = [worker.run({"do": "locked", "timeout_s": 5}) for _ in range(CONCURRENCY)]
    assert [worker.ended(run_id).value for run_id in ids] == [1] * CONCURRENCY


def test_a_flood_in_one_run_is_counted_for_that_run(worker: End) -> None:
    noisy = worker.run({"do": "prints_much", "bytes": 50_000_000})
    quiet = worker.run({"do": "meets", "name": "quiet"})
    assert worker.ended(noisy).fields["dropped_bytes"] > 48_000_000
    assert worker.ended(quiet).fields["dropped_bytes"] == 0
    assert worker.logs(run_id=quiet) == ["quiet 0", "quiet 1", "quiet 2"]
    worker.logs()


def test_a_blocked_loop_hears_the_doorbell_without_harm(worker: End) -> None:
    run_id = worker.run({"do": "blocks", "seconds": 0.2})
    worker.cancel(run_id)
    os.kill(worker.pid, signal.SIGUSR1)
    assert worker.ended(run_id).state in ("cancelled", "completed")
    assert worker.call("on it goes").state == "completed"


def test_a_fork_that_returns_from_the_handler_says_nothing(worker: End) -> None:
    assert worker.call({"do": "forks_and_returns"}).value == "from the parent"
    assert worker.call("on it goes").state == "completed"
    assert worker.inbox == []


def test_a_worker_that_lost_its_fds_dies_at_once(peer: Peer) -> None:
    # fault 25
    worker = peer.worker()
    worker.run({"do": "closes_all"})
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == 70
    peer.end(worker)


def test_an_unfit_result_fails_the_run(worker: End) -> None:
    assert worker.call({"do": "unfit"}).code == "unserialisable-result"


def test_stop_lets_all_runs_finish(peer: Peer) -> None:
    worker = peer.worker()
    ids = [worker.run({"do": "sleeps", "seconds": 0.05}) for _ in range(CONCURRENCY + 1)]
    worker.send("stop", {})
    assert [worker.ended(run_id).value for run_id in ids] == ["slept"] * (CONCURRENCY + 1)
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == 0
    peer.end(worker)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    place = tmp_path_factory.mktemp("streams")
    with Peer(place, "async_behaviours", "pieces", concurrency=CONCURRENCY) as peer:
        yield peer.start()


@pytest.mark.parametrize("stream", [False, True])
def test_an_async_generator_streams_its_pieces(streams: Peer, stream: bool) -> None:
    worker = streams.worker("async-generator")
    ids = [worker.run({"pieces": 5, "pause_s": 0.001}, stream=stream) for _ in range(CONCURRENCY)]
    for run_id in ids:
        assert worker.ended(run_id).value == [{"piece": number} for number in range(5)]
        pieces = [message for message in worker.inbox
                  if message.type == "output" and message.fields["run_id"] == run_id]
        assert [(piece.fields["seq"], json.loads(piece.payload)) for piece in pieces] == [
            (number, {"piece": number}) for number in range(5 if stream else 0)]
        assert worker.logs(run_id=run_id) == [f"line {number}" for number in range(5)]
    streams.end(worker)


@pytest.mark.parametrize("read", [True, False])
def test_a_generator_that_never_waits_is_cancelled_and_holds_no_memory(
    tmp_path_factory: pytest.TempPathFactory, read: bool
) -> None:
    place = tmp_path_factory.mktemp("endless")
    with Peer(place, "async_behaviours", "endless", result_limit_bytes=200 << 20) as peer:
        worker = peer.start().worker()
        run_id = worker.run({"size": 10_000}, stream=True)
        worker.take("output", run_id=run_id)
        if not read:
            worker.reading = False
            before = resident_bytes(worker.pid)
            peer.settle(0.3)
            assert resident_bytes(worker.pid) - before < 8 << 20
        worker.cancel(run_id)
        worker.reading = True
        assert worker.ended(run_id).state == "cancelled"
        eventually((place / "workspace" / "told").exists)
        worker.inbox.clear()
        peer.end(worker)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
