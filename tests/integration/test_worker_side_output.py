"""What a handler prints and emits: lines with the right names on them, caps, and never a wait."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orpheusd.wire.worker import Message
from tests.integration.worker_peer import End, Peer

RUN_LIMIT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with Peer(tmp_path_factory.mktemp("output")) as peer:
        yield peer.start()


@pytest.fixture
def worker(peer: Peer) -> Iterator[End]:
    worker = peer.worker()
    yield worker
    peer.end(worker)
    peer.template.inbox.clear()


def logs_of(worker: End) -> list[Message]:
    found = [message for message in worker.inbox if message.type == "log"]
    worker.inbox = [message for message in worker.inbox if message.type != "log"]
    return found


def test_each_line_carries_its_run_and_session(worker: End) -> None:
    worker.call({"do": "prints", "text": "one\ntwo"}, session_id="s-1", run_id="r-a")
    assert worker.hello
    names = {"worker_id": worker.hello.fields["id"], "run_id": "r-a", "session_id": "s-1", "dropped_bytes": 0}
    assert [message.fields for message in logs_of(worker)] == [
        {**names, "stream": "stdout", "text": "one"}, {**names, "stream": "stdout", "text": "two"},
        {**names, "stream": "stderr", "text": "to stderr"}]


def test_lines_come_while_the_run_goes_on(worker: End) -> None:
    run_id = worker.run({"do": "spins"})
    worker.take("log", text="spinning", run_id=run_id)
    worker.cancel(run_id)
    worker.ended(run_id)


def test_the_streams_behave_like_streams(worker: End) -> None:
    value = worker.call({"do": "prints_oddly"}).value
    assert value == {"fileno": 1, "stderr": 2, "tty": False, "encoding": "utf-8"}
    assert worker.logs() == ["one line", "two", "bytés", "a", "b", "lone \\ud800",
                             "z" * 16384, "z" * 16384, "z" * (40_000 - 32768), "no newline"]


def test_loggers_and_warnings_go_there_too(worker: End) -> None:
    worker.call({"do": "logs"}, run_id="r-b")
    texts = [message.fields["text"] for message in logs_of(worker) if message.fields["run_id"] == "r-b"]
    assert texts[0] == "INFO:agent:a log line"
    assert any("UserWarning: a warning" in text for text in texts)


def test_threads_print_for_their_run_as_far_as_contexts_go(worker: End) -> None:
    worker.call({"do": "prints_in_thread"}, run_id="r-c")
    assert {message.fields["text"]: message.fields["run_id"] for message in logs_of(worker)} == {
        "with context": "r-c", "without context": None}


def test_threads_that_print_at_once_tear_no_line(worker: End) -> None:
    worker.call({"do": "prints_in_threads", "threads": 4, "lines": 500})
    texts = worker.logs()
    assert sorted(texts) == sorted(f"t{thread} {number}" for thread in range(4) for number in range(500))
    for thread in range(4):
        mine = [text for text in texts if text.startswith(f"t{thread} ")]
        assert mine == [f"t{thread} {number}" for number in range(500)]


def test_a_signal_handler_that_prints_in_the_midst_of_printing_loses_nothing(worker: End) -> None:
    ended = worker.call({"do": "prints_from_alarm", "lines": 2000})
    assert ended.state == "completed"
    text = "".join(worker.logs(stream="stdout"))
    assert "alarm" in text
    assert text.replace("alarm", "") == "".join(f"line {number}" for number in range(2000))


@pytest.mark.parametrize("what", [{"bytes": 100_000_000}, {"bytes": 20_000_000, "lines": True}])
def test_a_flood_is_cut_counted_and_fast(worker: End, what: dict[str, Any]) -> None:
    # fault 16
    started = time.monotonic()
    ended = worker.call({"do": "prints_much", **what})
    assert time.monotonic() - started < 5
    assert ended.state == "completed"
    kept = sum(len(message.fields["text"]) for message in logs_of(worker))
    assert RUN_LIMIT_BYTES * 0.95 < kept <= RUN_LIMIT_BYTES
    assert what["bytes"] - RUN_LIMIT_BYTES <= ended.fields["dropped_bytes"] <= what["bytes"] - kept + 1


def test_after_a_flood_the_next_run_prints_again(worker: End) -> None:
    worker.call({"do": "prints_much", "bytes": 5_000_000})
    worker.logs()
    ended = worker.call({"do": "prints", "text": "clean"})
    assert ended.fields["dropped_bytes"] == 0 and worker.logs() == ["clean", "to stderr"]


def test_empty_lines_are_no_way_around_the_cap(worker: End) -> None:
    worker.call({"do": "prints_empty_lines", "count": 1_000_000})
    assert len(worker.logs()) == RUN_LIMIT_BYTES // 64


def test_a_supervisor_that_does_not_read_does_not_stop_printing(worker: End) -> None:
    worker.reading = False
    run_id = worker.run({"do": "prints_much", "bytes": 20_000_000, "lines": True})
    worker.peer.settle(0.2)
    worker.reading = True
    ended = worker.ended(run_id)
    assert ended.value < 5
    kept = sum(len(message.fields["text"]) + 1 for message in logs_of(worker))
    assert kept + ended.fields["dropped_bytes"] == 20_000_000
    assert kept > RUN_LIMIT_BYTES * 0.95


def test_output_at_import_belongs_to_no_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    with Peer(tmp_path_factory.mktemp("import"), "import_prints") as peer:
        worker = peer.start().worker()
        assert [(message.fields["text"], message.fields["run_id"]) for message in logs_of(worker)] == [
            ("while importing", None), ("an open line", None)]
        peer.end(worker)


def test_emitted_events_are_counted_from_zero(worker: End) -> None:
    ended = worker.call({"do": "emits", "count": 3}, stream=True)
    assert ended.value == "done"
    assert [(message.type, message.fields["seq"], json.loads(message.payload)) for message in worker.inbox] == [
        ("output", number, {"step": number}) for number in range(3)]
    worker.inbox.clear()


def test_emit_says_nothing_to_a_caller_that_does_not_stream(worker: End) -> None:
    assert worker.call({"do": "emits", "count": 3}).value == "done"
    assert worker.inbox == []
    assert worker.call({"do": "emits_unfit"}).state == "completed"


def test_an_event_that_json_cannot_carry_fails_where_it_is_emitted(worker: End) -> None:
    ended = worker.call({"do": "emits_unfit"}, stream=True)
    assert (ended.state, ended.code) == ("failed", "unserialisable-result")
    assert ended.value["message"].startswith("event.data is bytes")
    assert "in emits_unfit" in ended.value["traceback"]


def test_events_of_many_threads_are_numbered_in_order(worker: End) -> None:
    run_id = worker.run({"do": "emits_in_threads", "count": 300}, stream=True)
    worker.ended(run_id)
    assert [message.fields["seq"] for message in worker.inbox] == list(range(1200))
    worker.inbox.clear()
