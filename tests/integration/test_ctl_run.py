"""`orpheusctl run` in pipes and on terminals: what goes where, output as it comes, Ctrl-C."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import CODES, OrpheusError
from tests.daemon import environment
from tests.eventually import eventually
from tests.integration.scripted import (
    TIMEOUT_S,
    Exchange,
    Params,
    Script,
    ScriptedDaemon,
    argv,
    ctl,
    interrupt,
    log_row,
    on_terminal,
    run_answer,
    started,
)


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "ctl.sock") as daemon:
        yield daemon


def test_run_prints_the_result_and_nothing_else(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer({"turn": 2, "text": "grüße"}))
    done = ctl(door, "run", "my-agent", '{"query": "step 2"}', "--session", "user-123", "--timeout", "3")
    assert (done.stdout, done.stderr, done.returncode) == ('{"turn": 2, "text": "grüße"}\n', "", 0)
    assert door.asked == [("run", {"agent": "my-agent", "input": {"query": "step 2"}, "session_id": "user-123",
                                   "timeout_s": 3.0, "stream": True})]


@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_a_run_can_be_piped_through_jq(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer({"turn": 2}))
    command = " ".join([*argv(door, "run", "a"), "-", "--session", "user-123", "-v", "|", "jq", ".turn"])
    done = subprocess.run(command, shell=True, input='{"query": "x"}', capture_output=True, text=True,
                          timeout=TIMEOUT_S, check=True, env=environment())
    assert done.stdout == "2\n"
    assert "session user-123: warm, turn 2, worker w-1-2, run r-7, 2 ms" in done.stderr


def test_run_json_is_what_the_http_route_answers(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer([1]))
    assert json.loads(ctl(door, "run", "a", "--json").stdout) == run_answer([1])
    assert door.asked[0][1]["input"] == {}


def test_a_terminal_gets_indented_json_and_the_context(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer({"turn": 2, "evil": "\x1b[2J\x9b\u202e"}))
    seen = on_terminal(door, "run", "a")
    assert '  "turn": 2,\r\n' in seen
    assert "session user-123: warm, turn 2, worker w-1-2" in seen
    assert not {"\x1b", "\x9b", "\u202e"} & set(seen)


@pytest.mark.parametrize(("context", "says"), [("lost", "lost (the worker that held its memory is gone"),
                                               ("spilled", "spilled (its worker was busy"), ("new", ""), ("warm", "")])
def test_bad_news_of_the_memory_is_always_told(door: ScriptedDaemon, context: str, says: str) -> None:
    door.answers("run", run_answer(1, context))
    done = ctl(door, "run", "a", "1")
    assert done.stdout == "1\n"
    assert bool(done.stderr) == bool(says) and says in done.stderr


def test_bad_news_is_told_of_a_failed_run_too(door: ScriptedDaemon) -> None:
    facts = run_answer(None, "lost")
    del facts["result"]
    door.refuses("run", "handler-failed", "boom", **facts)
    assert "session user-123: lost" in ctl(door, "run", "a").stderr
    door.refuses("run", "timed-out", "no worker was free", **{**facts, "worker_id": None})
    assert "session" not in ctl(door, "run", "a").stderr


def test_a_failed_handler_shows_its_traceback_on_stderr(door: ScriptedDaemon) -> None:
    door.refuses("run", "handler-failed", "no such city", request_id="r-9", error_type="KeyError",
                 traceback="Traceback (most recent call last):\n  File \"/agent/agent.py\"\nKeyError: \x1b[31m\n")
    done = ctl(door, "run", "a")
    assert (done.stdout, done.returncode) == ("", 1)
    assert done.stderr == (
        "orpheusctl: KeyError: no such city\nTraceback (most recent call last):\n  File \"/agent/agent.py\"\n"
        "KeyError: \\x1b[31m\n  (handler-failed, run r-9)\n")
    done = ctl(door, "run", "a", "--json")
    assert json.loads(done.stdout)["error"] == "no such city" and done.returncode == 1
    assert json.loads(done.stdout)["code"] == "handler-failed" and "KeyError" in done.stderr


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_has_its_exit_code(door: ScriptedDaemon, code: str) -> None:
    door.refuses("status", code, "because")
    done = ctl(door, "status")
    assert (done.stdout, done.returncode) == ("", CODES[code].exit_code)
    assert "orpheusctl: because" in done.stderr and code in done.stderr


def streaming(*pieces: Any, result: Any, dropped: bool = False) -> Script:
    def script(params: Params, exchange: Exchange) -> Params:
        exchange.accepted()
        exchange.say("log", {"stream": "stdout", "text": "thinking \x1b[0m"})
        for piece in pieces:
            exchange.say("output", piece)
        if dropped:
            exchange.say("dropped", {"count": 3})
        return run_answer(result)

    return script


@pytest.mark.parametrize(("script", "lines"), [
    (streaming("a", {"b": 1}, result=["a", {"b": 1}]), ['"a"', '{"b": 1}']),
    (streaming("a", "b", result={"done": True}), ['"a"', '"b"', '{"done": true}']),
    (streaming("a", result=None), ['"a"']),
    (streaming(result=None), ["null"]),
    (streaming(result=[]), ["[]"]),
    (streaming("a", result=["a", "b"], dropped=True), ['"a"', '["a", "b"]']),
])
def test_pieces_are_lines_and_the_result_follows_if_it_is_news(
    door: ScriptedDaemon, script: Script, lines: list[str]
) -> None:
    door.script["run"] = script
    done = ctl(door, "run", "a", "--stream")
    assert done.stdout.splitlines() == lines
    assert done.stderr.startswith("thinking \\x1b[0m\n")
    assert ("dropped" in done.stderr) == (lines[-1:] == ['["a", "b"]'])


def test_without_stream_the_pieces_and_logs_stay_away(door: ScriptedDaemon) -> None:
    door.script["run"] = streaming("a", "b", result=["a", "b"], dropped=True)
    done = ctl(door, "run", "a")
    assert (done.stdout, done.stderr) == ('["a", "b"]\n', "")


def test_a_json_stream_names_each_event(door: ScriptedDaemon) -> None:
    door.script["run"] = streaming("a", result=["a"])
    rows = [json.loads(line) for line in ctl(door, "run", "a", "--stream", "--json").stdout.splitlines()]
    assert [row["event"] for row in rows] == ["log", "output", "result"]
    assert rows[-1]["data"] == run_answer(["a"])
    door.refuses("run", "timed-out", "too slow")
    done = ctl(door, "run", "a", "--stream", "--json")
    assert json.loads(done.stdout) == {"event": "error", "data": {"error": "too slow", "code": "timed-out"}}
    assert done.returncode == 75


def test_a_piece_is_printed_when_it_comes(door: ScriptedDaemon) -> None:
    go_on = threading.Event()

    def script(params: Params, exchange: Exchange) -> Params:
        exchange.say("output", "first")
        go_on.wait(TIMEOUT_S)
        return run_answer(None)

    door.script["run"] = script
    with started(door, "run", "a", "--stream") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '"first"\n'
        go_on.set()
        assert process.wait(TIMEOUT_S) == 0


def test_a_reader_that_leaves_is_no_error(door: ScriptedDaemon) -> None:
    gone = threading.Event()

    def script(params: Params, exchange: Exchange) -> Params:
        exchange.say("output", "first")
        gone.wait(TIMEOUT_S)
        exchange.say("output", "second")
        return run_answer(None)

    door.script["run"] = script
    with started(door, "run", "a", "--stream") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        gone.set()
        assert process.wait(TIMEOUT_S) == 141
        assert process.stderr.read() == ""


def test_a_full_disk_is_an_error(door: ScriptedDaemon) -> None:
    door.answers("run", run_answer(1))
    with Path("/dev/full").open("w") as full, started(door, "run", "a", stdout=full) as process:
        assert process.wait(TIMEOUT_S) == 70
        assert process.stderr is not None and "No space left" in process.stderr.read()


class Cancellable:
    """A run that goes on until it is cancelled. `obeys` says whether a cancel ends it."""

    def __init__(self, door: ScriptedDaemon, obeys: bool = True, accept: bool = True) -> None:
        self.began = threading.Event()
        self.accept = threading.Event()
        self.cancelled = threading.Event()
        if accept:
            self.accept.set()
        self._obeys = obeys
        door.script["run"] = self._run
        door.script["run.cancel"] = self._cancel

    def _run(self, params: Params, exchange: Exchange) -> Any:
        self.began.set()
        self.accept.wait(TIMEOUT_S)
        exchange.accepted()
        exchange.say("output", "piece")
        self.cancelled.wait(TIMEOUT_S)
        raise OrpheusError("cancelled", "the run was cancelled", {"request_id": "r-7", "traceback": "where it was"})

    def _cancel(self, params: Params, exchange: Exchange) -> Params:
        if self._obeys:
            self.cancelled.set()
        return {"run_id": params["run_id"], "cancelled": True}


def test_ctrl_c_cancels_the_run(door: ScriptedDaemon) -> None:
    run = Cancellable(door)
    with started(door, "run", "a", "--stream") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        interrupt(process)
        assert process.wait(TIMEOUT_S) == 130
        assert door.asked[-1] == ("run.cancel", {"run_id": "r-7"})
        assert process.stderr.read() == (
            "cancelling; Ctrl-C again leaves at once\norpheusctl: the run was cancelled\n  (cancelled, run r-7)\n")
    assert run.cancelled.is_set()


def test_ctrl_c_before_the_run_has_an_id_cancels_it_when_it_has(door: ScriptedDaemon) -> None:
    run = Cancellable(door, accept=False)
    with started(door, "run", "a") as process:
        assert process.stderr is not None
        assert run.began.wait(TIMEOUT_S)
        interrupt(process)
        assert process.stderr.readline().startswith("cancelling")
        assert "run.cancel" not in door.methods()
        run.accept.set()
        assert process.wait(TIMEOUT_S) == 130
    assert door.methods() == ["run", "run.cancel"]


def test_a_second_ctrl_c_leaves_at_once(door: ScriptedDaemon) -> None:
    run = Cancellable(door, obeys=False)
    with started(door, "run", "a", "--stream") as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        interrupt(process)
        eventually(lambda: "run.cancel" in door.methods())
        interrupt(process)
        assert process.wait(2) == 130
        assert "Traceback" not in process.stderr.read()
    run.cancelled.set()


def test_a_run_that_ends_before_the_cancel_is_still_printed(door: ScriptedDaemon) -> None:
    def finish(params: Params, exchange: Exchange) -> Params:
        cancel.wait(TIMEOUT_S)
        return run_answer("done")

    def too_late(params: Params, exchange: Exchange) -> Params:
        cancel.set()
        raise OrpheusError("not-found", "no such run")

    cancel = threading.Event()
    Cancellable(door)
    door.script.update({"run.cancel": too_late})
    door.script["run"] = lambda params, exchange: (exchange.accepted(), exchange.say("output", 1),
                                                   finish(params, exchange))[-1]
    with started(door, "run", "a", "--stream") as process:
        assert process.stdout is not None
        process.stdout.readline()
        interrupt(process)
        assert process.wait(TIMEOUT_S) == 130
        assert process.stdout.read() == '"done"\n'


def test_ctrl_c_ends_other_commands_quietly(door: ScriptedDaemon) -> None:
    hold = threading.Event()
    door.script["logs"] = lambda params, exchange: (exchange.say("log", log_row("x")), hold.wait(TIMEOUT_S))[1]
    with started(door, "logs", "a", "-f") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().endswith("\tx\n")
        interrupt(process)
        assert process.wait(TIMEOUT_S) == 130
        assert process.stderr.read() == ""
    hold.set()
