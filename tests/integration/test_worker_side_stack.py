"""The stack sheet: what a dying worker leaves on it, whatever it was doing and whatever its agent did to it."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from orpheusd.worker.sheet import SHEET_BYTES
from tests.integration.worker_peer import End, Peer


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("stack"), "stuck") as peer:
        yield peer.start()


def started(worker: End, do: str, **more: Any) -> str:
    """Have the worker do it, and wait until it has begun. Returns its id."""
    assert worker.hello
    worker.run({"do": do, **more})
    worker.take("log", text=f"in {do}")
    worker_id: str = worker.hello.fields["id"]
    return worker_id


def aborted(peer: Peer, worker: End, do: str, *until: str) -> dict[str, Any]:
    """What is told of a worker that does this, says `until`, and is sent SIGABRT."""
    worker_id = started(worker, do)
    for text in until:
        worker.take("log", text=text)
    os.kill(worker.pid, signal.SIGABRT)
    told = peer.buried(worker_id)
    assert told["status"] == -signal.SIGABRT
    peer.end(worker)
    return told


@pytest.mark.parametrize("do", ["sleeps", "spins", "waits_in_c", "computes_in_c", "catches_everything"])
def test_a_worker_that_is_aborted_tells_where_it_was(peer: Peer, do: str) -> None:
    # fault 9
    stack = aborted(peer, peer.worker(), do)["stack"]
    assert stack.startswith("Fatal Python error: Aborted") and f"in {do}" in stack


def test_every_thread_is_told(peer: Peer) -> None:
    stack = aborted(peer, peer.worker(), "has_a_thread", "in waits_in_c")["stack"]
    assert "in waits_in_c" in stack and "in waits_in_a_thread" in stack


def test_the_stack_is_told_without_an_output(peer: Peer) -> None:
    assert "in waits_in_c" in aborted(peer, peer.worker(), "closes_output", "in waits_in_c")["stack"]


def test_a_crash_tells_its_stack(peer: Peer) -> None:
    # fault 2
    worker = peer.worker()
    told = peer.buried(started(worker, "crashes"))
    assert told["status"] == -signal.SIGSEGV
    assert told["stack"].startswith("Fatal Python error: Segmentation fault") and "in crashes" in told["stack"]
    peer.end(worker)


def test_an_async_worker_tells_its_stack(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Peer(tmp_path_factory.mktemp("astack"), "stuck_async") as peer:
        assert "in spins" in aborted(peer, peer.start().worker("async"), "spins")["stack"]


def test_an_async_worker_notes_where_a_run_was_that_does_not_stop(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Peer(tmp_path_factory.mktemp("notes"), "stuck_async", concurrency=2) as peer:
        worker = peer.start().worker("async")
        assert worker.hello
        obedient, stubborn = worker.run({"do": "awaits"}), worker.run({"do": "catches_everything"})
        worker.take("log", text="in awaits")
        worker.take("log", text="in catches_everything")
        worker.cancel(stubborn)
        worker.cancel(obedient)
        assert worker.ended(obedient).state == "cancelled"
        os.kill(worker.pid, signal.SIGABRT)
        stack = peer.buried(worker.hello.fields["id"])["stack"]
        assert stack.startswith("Fatal Python error: Aborted")
        _, told, note = stack.partition(f"Run {stubborn}, when it was told to stop (most recent call last):\n")
        assert told and "in catches_everything" in note and "in sleep" in note.splitlines()[-2]
        assert obedient not in stack, "the note of a run that has ended is taken back"
        peer.end(worker)


def test_a_worker_that_leaves_has_an_empty_sheet(peer: Peer) -> None:
    worker = peer.worker()
    assert worker.hello
    peer.end(worker)
    assert peer.buried(worker.hello.fields["id"])["stack"] == ""


def test_what_an_agent_scribbles_is_text_of_a_bounded_length(peer: Peer) -> None:
    worker = peer.worker()
    worker_id = started(worker, "scribbles")
    told = peer.buried(worker_id)
    worker.take("log", text=f"{SHEET_BYTES} 3")  # all of the sheet was written, and nothing else allowed
    assert told["status"] == 0
    assert set(told["stack"]) <= set("�scribble\n") and 50_000 < len(told["stack"]) <= SHEET_BYTES
    peer.end(worker)
    peer.end(peer.worker())


def test_a_child_of_the_agent_does_not_write_on_its_parents_sheet(peer: Peer) -> None:
    worker = peer.worker()
    assert worker.hello
    worker_id = worker.hello.fields["id"]
    assert worker.call({"do": "child_crashes"}).value == -signal.SIGSEGV
    peer.end(worker)
    assert peer.buried(worker_id)["stack"] == ""
    assert "Fatal Python error: Segmentation fault" in peer.template.logs(worker_id=worker_id, stream="stderr")


def test_the_most_memory_it_had_is_told(peer: Peer) -> None:
    worker = peer.worker()
    told = peer.buried(started(worker, "takes_memory", bytes=100_000_000))
    assert 100_000_000 < told["peak_rss_bytes"] < 200_000_000
    peer.end(worker)
