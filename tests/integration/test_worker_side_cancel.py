"""Telling a run to stop: the message, the doorbell, and everything that may come in between."""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import workspace
from tests.eventually import eventually
from tests.integration.worker_peer import End, Peer

#: A sync handler notices a cancel in microseconds; this only has to tell it from a wait.
PROMPT_S = 2.0
#: The number of recvfrom(2), in which a worker waits for its next run.
RECVFROM = {"x86_64": "45", "aarch64": "207"}.get(platform.machine(), "")


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("cancel")) as peer:
        yield peer.start()


@pytest.fixture
def worker(peer: Peer) -> Iterator[End]:
    worker = peer.worker()
    yield worker
    peer.end(worker)
    peer.template.inbox.clear()


@pytest.fixture
def held(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lock that the handler will wait for."""
    monkeypatch.setenv("WORKSPACE_DIR", str(peer.place / "workspace"))
    with workspace.lock("held"):
        yield


def in_handler(worker: End) -> None:
    """Wait until the worker sleeps in its handler."""
    def inside() -> bool:
        return Path(f"/proc/{worker.pid}/syscall").read_text().split()[0] not in ("running", RECVFROM)

    eventually(inside, what="the handler is inside")


def spinning(worker: End) -> None:
    worker.take("log", text="spinning")


@pytest.mark.parametrize("reason", ["cancelled", "timed-out"])
@pytest.mark.parametrize("what", [
    {"do": "sleeps", "seconds": 30}, {"do": "spins"}, {"do": "retries_for_ever"}, {"do": "waits_for_lock"}])
@pytest.mark.usefixtures("held")
def test_a_running_handler_is_told_to_stop(worker: End, what: dict[str, Any], reason: str) -> None:
    run_id = worker.run(what)
    if what["do"] == "spins":
        spinning(worker)
    else:
        in_handler(worker)
    started = time.monotonic()
    worker.cancel(run_id, reason)
    ended = worker.ended(run_id)
    assert time.monotonic() - started < PROMPT_S
    assert (ended.state, ended.code) == (reason, reason)
    assert ended.value["type"] == ("workspace.TimedOut" if reason == "timed-out" else "workspace.Cancelled")
    assert f"in {what['do']}" in ended.value["traceback"], "it shows where the handler was"
    assert worker.call("on it goes").value == "on it goes"


def test_finally_blocks_run(worker: End, peer: Peer) -> None:
    run_id = worker.run({"do": "sleeps", "seconds": 30})
    in_handler(worker)
    worker.cancel(run_id)
    assert worker.ended(run_id).state == "cancelled"
    assert (peer.place / "workspace" / "cleaned").read_text() == run_id


def test_a_handler_that_swallows_it_ends_as_cancelled_all_the_same(worker: End) -> None:
    run_id = worker.run({"do": "swallows_once"})
    in_handler(worker)
    worker.cancel(run_id, "timed-out")
    ended = worker.ended(run_id)
    assert ended.state == "timed-out" and "returned all the same" in ended.value["message"]


def test_a_cancel_of_another_run_touches_nothing(worker: End) -> None:
    run_id = worker.run({"do": "sleeps", "seconds": 0.2})
    in_handler(worker)
    worker.cancel("r-of-somebody-else")
    assert worker.ended(run_id).value == "slept"


def test_a_cancel_that_comes_with_its_run_is_heard(worker: End) -> None:
    run_id = worker.run({"do": "spins"})
    worker.cancel(run_id)
    assert worker.ended(run_id).state == "cancelled"


def test_a_cancel_of_a_run_that_waits_in_the_channel_is_heard(worker: End) -> None:
    first = worker.run({"do": "sleeps", "seconds": 0.2})
    second = worker.run({"do": "spins"})
    third = worker.run("third")
    in_handler(worker)
    worker.cancel(second)
    assert [worker.ended(run_id).state for run_id in (first, second, third)] == ["completed", "cancelled", "completed"]


def test_a_late_cancel_never_hits_the_next_run(worker: End) -> None:
    """The race of races: a cancel is written while its run ends and the next begins."""
    # fault 28
    states = {"completed": 0, "cancelled": 0}
    for number in range(400):
        first = worker.run({"number": number})
        if number % 3:
            worker.ended(first)
        worker.send("cancel", {"run_id": first, "reason": "cancelled"})
        second = worker.run({"number": -number})
        os.kill(worker.pid, signal.SIGUSR1)
        if number % 3 == 0:
            states[worker.ended(first).state] += 1
        ended = worker.ended(second)
        assert (ended.state, ended.value) == ("completed", {"number": -number})
    assert states["completed"] + states["cancelled"] == 134


def test_a_ringing_storm_disturbs_nobody(worker: End) -> None:
    # faults 43, 45
    for number in range(200):
        run_id = worker.run({"do": "prints", "text": f"{number}", "number": number})
        for _ in range(10):
            os.kill(worker.pid, signal.SIGUSR1)
        assert worker.ended(run_id).state == "completed"
    assert len(worker.logs(stream="stdout")) == 200


def test_a_cancel_in_the_midst_of_sending_breaks_no_message(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Peer(tmp_path_factory.mktemp("sending"), "generators", "stubborn") as peer:
        worker = peer.start().worker()
        for size in (1, 100, 100_000) * 5:
            run_id = worker.run({"size": size}, stream=True)
            worker.take("output", run_id=run_id)
            worker.cancel(run_id)
            assert worker.ended(run_id).state == "cancelled"
            worker.inbox.clear()
            assert (peer.place / "workspace" / "told").read_text() == "Cancelled"
        peer.end(worker)


def test_a_cancel_gets_through_although_the_supervisor_does_not_read(worker: End) -> None:
    run_id = worker.run({"do": "emits_for_ever"}, stream=True)
    worker.take("output", run_id=run_id)
    worker.reading = False
    in_handler(worker)
    worker.cancel(run_id)
    worker.reading = True
    ended = worker.ended(run_id)
    assert (ended.state, ended.value["type"]) == ("cancelled", "workspace.Cancelled")
    sequence = [message.fields["seq"] for message in worker.inbox if message.type == "output"]
    assert sequence == list(range(1, len(sequence) + 1))
    worker.inbox.clear()


def test_an_agent_that_takes_the_signal_loses_it_at_the_next_run(worker: End) -> None:
    # fault 26
    worker.call({"do": "changes_everything"})
    run_id = worker.run({"do": "spins"})
    spinning(worker)
    worker.cancel(run_id)
    assert worker.ended(run_id).state == "cancelled"


def test_the_doorbell_is_harmless_while_a_module_is_imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("slow")
    (place / "slow.py").write_text("import time\ntime.sleep(0.2)\ndef handler(x):\n    return x\n")
    with Peer(place, "slow", code_dir=str(place)) as peer:
        worker = peer.start().fork()
        for _ in range(20):
            os.kill(worker.pid, signal.SIGUSR1)
        worker.take("ready")
        assert worker.call(1).value == 1
        peer.end(worker)


def test_generator_pieces_before_a_cancel_arrive(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Peer(tmp_path_factory.mktemp("pieces"), "generators", "stubborn") as peer:
        worker = peer.start().worker("generator")
        run_id = worker.run({"pause_s": 0.01}, stream=True)
        for number in range(3):
            assert json.loads(worker.take("output", run_id=run_id, seq=number).payload) == "x"
        worker.cancel(run_id, "timed-out")
        ended = worker.ended(run_id)
        assert ended.state == "timed-out" and "in stubborn" in ended.value["traceback"]
        peer.end(worker)
