"""Sync and generator handlers in a real worker: input, result, failure, and what an agent does in bad moments."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.eventually import eventually
from tests.integration.worker_peer import HANDLERS, End, Peer

RESULT_LIMIT_BYTES = 1 << 20


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    place = tmp_path_factory.mktemp("runs")
    with Peer(place, result_limit_bytes=RESULT_LIMIT_BYTES) as peer:
        yield peer.start()


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    place = tmp_path_factory.mktemp("generators")
    with Peer(place, "generators", result_limit_bytes=100_000) as peer:
        yield peer.start()


@pytest.fixture
def worker(peer: Peer) -> Iterator[End]:
    worker = peer.worker("sync")
    yield worker
    peer.end(worker)
    peer.template.inbox.clear()


@pytest.fixture
def generator(generators: Peer) -> Iterator[End]:
    worker = generators.worker("generator")
    yield worker
    generators.end(worker)
    generators.template.inbox.clear()


@pytest.mark.parametrize("value", [None, 0, 1.5, "é\u2028\0\n", [], {}, [1, [2, {"a": None}]], True])
def test_input_comes_and_result_goes_as_it_is(worker: End, value: Any) -> None:
    ended = worker.call(value)
    assert (ended.state, ended.code, ended.value) == ("completed", "", value)
    assert ended.fields["duration_us"] > 0 and ended.fields["dropped_bytes"] == 0


@pytest.mark.parametrize(("value", "session", "got"), [
    ({"query": 1}, "user-1", {"query": 1, "session_id": "user-1"}),
    ({"session_id": "mine"}, "user-1", {"session_id": "mine"}),
    ({"session_id": None}, "user-1", {"session_id": None}),
    ({}, None, {}),
    ([1], "user-1", [1]),
    ("text", "user-1", "text"),
])
def test_the_session_id_is_put_into_an_object_that_lacks_it(
    worker: End, value: Any, session: str | None, got: Any
) -> None:
    assert worker.call(value, session_id=session).value == got


def test_memory_lives_as_long_as_the_worker(worker: End) -> None:
    turns = [worker.call({"do": "count"}, session_id=name).value for name in ("a", "b", "a", "a")]
    assert [turn["turn"] for turn in turns] == [1, 1, 2, 3]
    assert {turn["pid"] for turn in turns} == {worker.pid}


def test_runs_that_wait_in_the_channel_are_done_in_order(worker: End) -> None:
    ids = [worker.run({"number": number}) for number in range(50)]
    assert [worker.ended(run_id).value["number"] for run_id in ids] == list(range(50))


def test_a_run_knows_itself(worker: End) -> None:
    before = time.time()
    facts = worker.call({"do": "facts"}, session_id="s", context="lost", turn=4, timeout_s=10, run_id="r-77").value
    assert 9 < facts.pop("remaining_s") <= 10
    assert before + 10 <= facts.pop("deadline") <= time.time() + 10
    assert facts == {"id": "r-77", "agent": "probe", "version": 3, "session": "s", "turn": 4, "context": "lost"}
    assert worker.call({"do": "facts"}).value["deadline"] is None


def test_large_inputs_and_results_pass(worker: End) -> None:
    value = {"do": "returns_much", "bytes": RESULT_LIMIT_BYTES - 2, "filler": "y" * (7 << 20)}
    assert len(worker.call(value).value) == RESULT_LIMIT_BYTES - 2


@pytest.mark.parametrize("what", [
    {"do": "returns_much", "bytes": RESULT_LIMIT_BYTES - 1},
    {"do": "returns_much", "bytes": 100_000_000},
    {"do": "returns_many", "count": 1100},
])
def test_a_result_over_the_limit_fails(worker: End, what: dict[str, Any]) -> None:
    # fault 19
    ended = worker.call(what)
    assert (ended.state, ended.code) == ("failed", "too-large")
    assert "workspace.save" in ended.value["message"] and ended.value["traceback"] == ""


def test_rich_values_become_json(worker: End) -> None:
    assert worker.call({"do": "rich_values"}).value == {
        "point": {"x": 1, "when": "2024-01-02T03:04:05"}, "day": "2024-01-02", "time": "03:04:00",
        "uuid": "00000000-0000-0000-0000-000000000007", "path": "/a/b", "decimal": "1.10", "colour": "red",
        "set": [1, 2, 3], "tuple": [1, 2], "model": {"mode": "json"}, "number_key": {"1": 2, "null": 3},
        "text": "é\u2028\0", "frozen": ["a"],
    }


@pytest.mark.parametrize(("kind", "says"), [
    ("nan", "result.items[1].price is nan"),
    ("infinity", "result[1] is -inf"),
    ("bytes", "result.data is bytes"),
    ("cycle", "result[1].again contains itself"),
    ("deep", "result is nested deeper than 500 levels"),
    ("very deep", "result is nested deeper than 500 levels"),
    ("surrogate", "result[1] holds a lone surrogate"),
    ("key", "result has a key that is a tuple"),
    ("object", "result is of type object"),
    ("huge integer", "result is an integer with more digits"),
    ("decimal", "result is NaN"),
    ("hostile", "result[0] is of type Hostile"),
])
def test_a_result_that_json_cannot_carry_fails_and_says_where(worker: End, kind: str, says: str) -> None:
    # faults 20, 21, 22, 23
    ended = worker.call({"do": "unfit", "kind": kind})
    assert (ended.state, ended.code) == ("failed", "unserialisable-result")
    assert ended.value["message"].startswith(says)
    assert worker.call("on it goes").state == "completed"


def test_the_deepest_result_is_one_the_supervisor_reads(worker: End) -> None:
    run_id = worker.run({"do": "nests", "levels": 500})
    payload = worker.take("ended", run_id=run_id).payload
    assert payload == b"[" * 500 + b"]" * 500
    orjson.loads(payload)


@pytest.mark.parametrize(("what", "type", "message"), [
    ({"do": "raises", "text": "wrong"}, "ValueError", "wrong"),
    ({"do": "raises_from"}, "RuntimeError", "while counting"),
    ({"do": "raises_hostile"}, "behaviours.Hostile", "(no message: its __str__ raised OSError)"),
    ({"do": "raises_surrogate"}, "ValueError", "lone \\ud800 surrogate, and a line\nbreak \0"),
    ({"do": "recurses"}, "RecursionError", "maximum recursion depth exceeded"),
    ({"do": "runs_out_of_memory"}, "MemoryError", ""),
    ({"do": "interrupts"}, "KeyboardInterrupt", ""),
    ({"do": "generator_exit"}, "GeneratorExit", ""),
    ({"do": "exits"}, "SystemExit", "the handler called sys.exit(3); return a result instead"),
    ({"do": "no such"}, "KeyError", "'no such'"),
])
def test_an_exception_becomes_data_and_the_worker_stays(
    worker: End, what: dict[str, Any], type: str, message: str
) -> None:
    # faults 4, 23, 24
    ended = worker.call(what)
    assert (ended.state, ended.code, ended.value["type"]) == ("failed", "handler-failed", type)
    assert ended.value["message"] == message or (message and ended.value["message"].startswith(message))
    assert len(ended.value["traceback"]) <= 64 * 1024
    assert worker.call("on it goes").state == "completed"


def test_a_traceback_shows_the_agents_code_and_not_ours(worker: End) -> None:
    trace = worker.call({"do": "raises_from"}).value["traceback"]
    assert "behaviours.py" in trace and "in raises_from" in trace and 'int("x")' in trace
    assert "direct cause" in trace
    assert "orpheusd" not in trace and "sync_runs" not in trace


def test_a_message_of_ten_megabytes_is_cut(worker: End) -> None:
    # fault 23
    run_id = worker.run({"do": "raises_long"})
    payload = worker.take("ended", run_id=run_id).payload
    assert len(payload) < 100_000 and payload.isascii()
    value = orjson.loads(payload)
    assert len(value["message"]) <= 8192 and len(value["traceback"]) <= 65536


@pytest.mark.parametrize("raw", [b"[" * 100_000 + b"]" * 100_000, b"1" * 5000, b"{not json"])
def test_an_input_that_python_cannot_read_fails_the_run(worker: End, raw: bytes) -> None:
    # faults 21, 22
    run_id = worker.run(raw=raw)
    ended = worker.ended(run_id)
    assert (ended.state, ended.code, ended.value["type"]) == ("failed", "invalid-request", "InvalidInput")


def test_the_working_directory_is_the_agents_again_after_each_run(worker: End) -> None:
    # fault 26
    worker.call({"do": "changes_everything"})
    assert worker.call({"do": "environment"}).value["cwd"] == str(HANDLERS)


@pytest.mark.parametrize("do", ["closes_all", "replaces_channel"])
def test_an_agent_that_breaks_its_channel_is_soon_dead(peer: Peer, do: str) -> None:
    # fault 25
    worker = peer.worker()
    worker.run({"do": do})
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == 70
    peer.end(worker)


def test_what_an_agent_writes_into_its_channel_is_found_out(peer: Peer) -> None:
    # fault 17: the supervisor then kills it
    worker = peer.worker()
    worker.run({"do": "writes_garbage"})
    with pytest.raises(Exception, match=r"not JSON|not a message"):
        worker.take("ended")
    os.kill(worker.pid, signal.SIGKILL)
    worker.open = False
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == -signal.SIGKILL
    peer.end(worker)


def test_an_agent_that_closes_its_output_goes_on(worker: End) -> None:
    # fault 25
    assert worker.call({"do": "closes_output"}).value == "closed"
    assert worker.logs(stream="stdout") == ["printed all the same"]


def test_a_fork_that_returns_from_the_handler_says_nothing(worker: End) -> None:
    ended = worker.call({"do": "forks_and_returns"})
    assert ended.value == "from the parent"
    assert worker.call("on it goes").state == "completed"
    assert [message for message in worker.inbox if message.type == "ended"] == []
    assert worker.logs() == []
    peer = worker.peer
    eventually(lambda: peer.settle() or "the child prints" in peer.template.logs())


def test_a_fork_that_emits_says_nothing(worker: End) -> None:
    run_id = worker.run({"do": "forks_and_emits"}, stream=True)
    worker.ended(run_id)
    pieces = [message for message in worker.inbox if message.type == "output"]
    assert [json.loads(piece.payload) for piece in pieces] == ["from the parent"]
    worker.inbox.clear()


def test_multiprocessing_works(worker: End) -> None:
    assert worker.call({"do": "multiprocesses"}).value == [1, 2, 3]
    assert worker.call({"do": "threads"}).value == 1


def test_subprocesses_carry_the_workers_tag(worker: End) -> None:
    assert worker.hello
    assert worker.call({"do": "subprocess_prints"}).value.strip() == worker.hello.fields["id"]


def test_an_alarm_that_was_left_behind_does_not_kill_the_worker(worker: End) -> None:
    worker.call({"do": "leaves_alarm"})
    worker.peer.until(lambda: "TimeoutError: an alarm left behind" in worker.logs(), 5, "the alarm between two runs")
    assert worker.call("on it goes").state == "completed"


def test_stop_lets_the_run_finish(peer: Peer) -> None:
    worker = peer.worker()
    run_id = worker.run({"do": "sleeps", "seconds": 0.1})
    worker.send("stop", {})
    assert worker.ended(run_id).value == "slept"
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"]) == 0
    peer.end(worker)


def test_a_worker_leaves_in_order(peer: Peer, tmp_path: Path) -> None:
    worker = peer.worker()
    worker.call({"do": "registers_exit", "file": str(tmp_path / "left")})
    peer.end(worker)
    eventually((tmp_path / "left").exists)
    assert (tmp_path / "left").read_text() == "left in order"


def test_a_thread_that_never_ends_does_not_keep_a_worker(peer: Peer) -> None:
    # fault 15
    worker = peer.worker()
    worker.call({"do": "leaves_thread"})
    worker.send("stop", {})
    assert worker.hello
    assert peer.exited(worker.hello.fields["id"], timeout_s=6) == -14
    peer.end(worker)


@pytest.mark.parametrize(("value", "result", "pieces"), [
    ({}, [], 0),
    ({"pieces": 3}, [{"piece": 0}, {"piece": 1}, {"piece": 2}], 3),
    ({"pieces": 2, "returns": {"sum": 2}}, {"sum": 2}, 2),
    ({"pieces": 2, "returns": None}, [{"piece": 0}, {"piece": 1}], 2),
])
@pytest.mark.parametrize("stream", [False, True])
def test_a_generator_streams_its_pieces(generator: End, value: Any, result: Any, pieces: int, stream: bool) -> None:
    ended = generator.call(value, stream=stream)
    assert (ended.state, ended.value) == ("completed", result)
    sent = [message for message in generator.inbox if message.type == "output"]
    assert [(piece.fields["seq"], json.loads(piece.payload)) for piece in sent] == [
        (number, {"piece": number}) for number in range(pieces if stream else 0)]
    generator.inbox.clear()


def test_emitted_and_yielded_pieces_share_one_count(generator: End) -> None:
    generator.call({"pieces": 2, "emits": True}, stream=True)
    sent = [(message.fields["seq"], json.loads(message.payload)) for message in generator.inbox]
    assert sent == [(0, {"between": 0}), (1, {"piece": 0}), (2, {"between": 1}), (3, {"piece": 1})]
    generator.inbox.clear()


def test_a_generator_that_fails_keeps_what_it_sent(generator: End) -> None:
    ended = generator.call({"pieces": 5, "fails_at": 2}, stream=True)
    assert (ended.state, ended.value["message"]) == ("failed", "piece 2 failed")
    assert len([message for message in generator.inbox if message.type == "output"]) == 2
    generator.inbox.clear()


@pytest.mark.parametrize(("entrypoint", "value", "code", "says"), [
    ("unfit", None, "unserialisable-result", "result[1] is nan"),
    ("large", {"pieces": 200}, "too-large", "the list of yielded pieces"),
])
def test_pieces_are_held_to_the_rules_of_results(
    tmp_path: Path, entrypoint: str, value: Any, code: str, says: str
) -> None:
    with Peer(tmp_path, "generators", entrypoint, result_limit_bytes=100_000) as peer:
        worker = peer.start().worker("generator")
        ended = worker.call(value)
        assert (ended.state, ended.code) == ("failed", code)
        assert ended.value["message"].startswith(says)
        if entrypoint == "large":
            assert worker.call({"pieces": 200, "returns": True}).value == "a short answer"
        peer.end(worker)


def test_a_plain_function_may_return_a_generator(tmp_path: Path) -> None:
    with Peer(tmp_path, "generators", "plain") as peer:
        worker = peer.start().worker("sync")
        assert worker.call(stream=True).value == [0, 1, 2]
        peer.end(worker)


def test_a_worker_is_single_threaded_and_holds_one_socket(worker: End) -> None:
    worker.call()
    assert len(list(Path(f"/proc/{worker.pid}/task").iterdir())) == 1
