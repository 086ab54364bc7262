"""A channel on a real socket pair: what waits, what is dropped, and messages that are never torn."""

import itertools
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from orpheusd.wire.worker import Message, Role, WorkerLink
from orpheusd.worker.channel import LOG_BACKLOG_BYTES, Channel, ChannelClosed
from orpheusd.worker.launch import Launch, Setup


class Ends:
    """A worker's channel, and the supervisor's end of it."""

    def __init__(self) -> None:
        inner, self.outer = socket.socketpair()
        self.link = WorkerLink(Role.SUPERVISOR, json.loads, lambda value: json.dumps(value).encode())
        self.channel = Channel(
            inner, WorkerLink(Role.WORKER, json.loads, lambda value: json.dumps(value).encode()))
        self.heard: list[Message] = []
        self.channel.queue("hello", {"protocol": 1, "role": "worker", "id": "w", "nonce": "n"})
        self.channel.queue("ready", {"handler": "sync"})
        self.channel.begins("r")
        self.listen(2)

    def listen(self, count: int = 0) -> None:
        self.outer.settimeout(5 if count else None)
        while len(self.heard) < count or not count:
            try:
                data = self.outer.recv(1 << 20, 0 if count else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not data:
                return
            self.heard += self.link.receive(data)

    def close(self) -> None:
        self.outer.close()
        self.channel.abandon()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def line(text: str) -> dict[str, Any]:
    return {"worker_id": "w", "run_id": None, "session_id": None, "stream": "stdout", "text": text, "dropped_bytes": 0}


def test_logs_never_wait_and_are_refused_beyond_the_backlog(ends: Ends) -> None:
    count = 0
    while ends.channel.log(line("x" * 1000)):
        count += 1
        assert count < 2 * LOG_BACKLOG_BYTES // 1000
    assert count > LOG_BACKLOG_BYTES // 2000
    assert ends.channel.backlogged
    while ends.channel.backlogged:
        ends.listen()
        ends.channel.write()
    ends.listen()
    assert len([message for message in ends.heard if message.type == "log"]) == count
    assert ends.channel.log(line("again"))


def test_what_is_delivered_comes_after_the_logs_before_it(ends: Ends) -> None:
    reader = threading.Thread(target=ends.listen, args=(2003,))
    for number in range(2000):
        ends.channel.log(line(str(number)))
    reader.start()
    ends.channel.deliver("output", {"run_id": "r"}, b'"piece"', itertools.count())
    reader.join()
    assert [message.fields["text"] for message in ends.heard[2:-1]] == [str(number) for number in range(2000)]
    assert ends.heard[-1] == Message("output", {"run_id": "r", "seq": 0}, b'"piece"')


def test_threads_that_write_at_once_tear_nothing(ends: Ends) -> None:
    numbers = itertools.count()

    def work() -> None:
        for _ in range(200):
            ends.channel.deliver("output", {"run_id": "r"}, b'"' + b"x" * 3000 + b'"', numbers)

    threads = [threading.Thread(target=work) for _ in range(4)]
    reader = threading.Thread(target=ends.listen, args=(802,))
    for thread in [reader, *threads]:
        thread.start()
    for thread in [reader, *threads]:
        thread.join()
    assert [message.fields["seq"] for message in ends.heard[2:]] == list(range(800))


def test_a_signal_handler_that_writes_in_the_midst_of_writing_tears_nothing(ends: Ends) -> None:
    numbers, rung = itertools.count(), 0

    def ring(_number: int, _frame: object) -> None:
        nonlocal rung
        rung += 1
        ends.channel.log(line("rung"))
        ends.channel.deliver("output", {"run_id": "r"}, b"1", numbers)

    old = signal.signal(signal.SIGUSR2, ring)
    done, all_written = threading.Event(), threading.Event()

    def bell() -> None:
        while not done.wait(0.0005):
            os.kill(os.getpid(), signal.SIGUSR2)

    def read() -> None:
        while not all_written.wait(0.0005):
            ends.listen()

    ringer, reader = threading.Thread(target=bell), threading.Thread(target=read)
    try:
        reader.start()
        ringer.start()
        for _ in range(500):
            ends.channel.deliver("output", {"run_id": "r"}, b'"' + b"x" * 5000 + b'"', numbers)
    finally:
        done.set()
        ringer.join()
        signal.signal(signal.SIGUSR2, old)
        all_written.set()
        reader.join()
    ends.listen()
    assert not ends.channel.backlogged
    sequence = [message.fields["seq"] for message in ends.heard if message.type == "output"]
    assert sequence == list(range(500 + rung))


def test_a_supervisor_that_left_is_noticed(ends: Ends) -> None:
    ends.outer.close()
    ends.channel.write()
    assert ends.channel.log(line("into the void")), "a log does not care"
    with pytest.raises(ChannelClosed):
        ends.channel.deliver("output", {"run_id": "r", "seq": 0}, b"1")
    with pytest.raises(ChannelClosed):
        ends.channel.receive()


def test_an_fd_that_became_something_else_is_not_written(ends: Ends) -> None:
    fd = ends.channel.fileno()
    kept = os.dup(fd)
    one, other = socket.socketpair()
    os.dup2(one.fileno(), fd)
    with pytest.raises(ChannelClosed, match="the agent closed the channel"):
        ends.channel.deliver("output", {"run_id": "r", "seq": 0}, b"1")
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(1)
    os.dup2(kept, fd)
    os.close(kept)
    one.close()
    other.close()


def test_what_an_agents_signal_handler_raises_is_not_taken_for_the_end(ends: Ends) -> None:
    def fire(_number: int, _frame: object) -> None:
        raise TimeoutError("the agent's own")

    old = signal.signal(signal.SIGUSR2, fire)
    timer = threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGUSR2))
    timer.start()
    try:
        with pytest.raises(TimeoutError, match="the agent's own"):
            ends.channel.receive()
    finally:
        timer.join()
        signal.signal(signal.SIGUSR2, old)


def test_what_a_thread_says_too_late_is_not_said_of_the_run_that_has_ended(ends: Ends) -> None:
    numbers = itertools.count()
    late = {**line("late"), "run_id": "r", "session_id": "s"}
    ends.channel.log({**late, "text": "in time"})
    ends.channel.deliver("output", {"run_id": "r"}, b"1", numbers)
    ends.channel.deliver("ended", {
        "run_id": "r", "state": "completed", "code": "", "duration_us": 1, "dropped_bytes": 0, "context": None,
        "saved": False}, b"1")
    ends.channel.deliver("output", {"run_id": "r"}, b"2", numbers)
    ends.channel.log(late)
    ends.listen(6)
    said = [(message.type, message.fields.get("run_id"), message.fields.get("session_id"))
            for message in ends.heard[2:]]
    assert said == [("log", "r", "s"), ("output", "r", None), ("ended", "r", None), ("log", None, None)]


def test_nothing_there_is_none(ends: Ends) -> None:
    assert ends.channel.receive(socket.MSG_DONTWAIT) is None
    ends.outer.sendall(ends.link.send("stop", {})[:5])
    assert ends.channel.receive(socket.MSG_DONTWAIT) == []


GOOD_SETUP: dict[str, Any] = {
    "agent": "a", "version": 1, "module": "agent", "entrypoint": "handler", "concurrency": 1, "preload": False,
    "env": {}, "code_dir": "/agent", "workspace_dir": "/workspace", "result_limit_bytes": 1, "orphan_ttl_s": 1.0,
    "isolation": "bwrap"}


def test_a_setup_may_say_more_than_we_know() -> None:
    assert Setup.read(json.dumps({**GOOD_SETUP, "news": 1}).encode()).agent == "a"


@pytest.mark.parametrize(("key", "value"), [
    ("agent", 1), ("version", "1"), ("version", True), ("preload", 1), ("env", []), ("concurrency", None)])
def test_a_setup_of_wrong_types_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"Setup.*'{key}'"):
        Setup.read(json.dumps({**GOOD_SETUP, key: value}).encode())


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"template_id": "t", "nonce": "n"}', b"\xff"])
def test_a_launch_line_that_lacks_something_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):
        Launch.read(line)
