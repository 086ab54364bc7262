"""What a template reads from its workers' pipes: lines, and every byte either in one or counted."""

import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orpheusd.worker.budget import Allowance, TokenBucket
from orpheusd.worker.drains import BURST_BYTES, LINE_LIMIT_BYTES, PAUSE_S, PIPE_BYTES, Drain, Drains, Line, open_pipe

NOW = 100.0


@pytest.fixture
def pipe() -> Iterator[tuple[Drain, int]]:
    reader, writer = open_pipe()
    os.set_blocking(writer, False)
    try:
        yield Drain(reader, "w-1", "stdout", TokenBucket(BURST_BYTES, 1000, NOW)), writer
    finally:
        os.close(reader)
        try:
            os.close(writer)
        except OSError:
            pass  # the test closed it


def accounted(lines: list[Line]) -> int:
    return sum(len(line.text.encode()) + 1 + line.dropped_bytes for line in lines)


def test_lines_are_cut_where_they_end(pipe: tuple[Drain, int]) -> None:
    drain, writer = pipe
    os.write(writer, b"one\ntwo\nthr")
    assert drain.read(NOW, 4) == ([Line("one", 0), Line("two", 0)], False)
    os.write(writer, b"ee\n\n")
    assert drain.read(NOW, 4) == ([Line("three", 0), Line("", 0)], False)
    os.write(writer, b"last")
    os.close(writer)
    assert drain.read(NOW, 4) == ([], True)
    assert drain.rest(NOW) == [Line("last", 0)]


def test_bytes_that_are_no_text_are_shown(pipe: tuple[Drain, int]) -> None:
    drain, writer = pipe
    os.write(writer, b"caf\xc3\xa9 \xff\x00\n")
    assert drain.read(NOW, 4)[0] == [Line("café \\xff\0", 0)]


def test_a_long_line_comes_in_pieces(pipe: tuple[Drain, int]) -> None:
    drain, writer = pipe
    os.write(writer, b"x" * (2 * LINE_LIMIT_BYTES + 5) + b"\n")
    assert [len(line.text) for line in drain.read(NOW, 4)[0]] == [LINE_LIMIT_BYTES, LINE_LIMIT_BYTES, 5]


@pytest.mark.parametrize("line", [b"\n", b"y\n", b"y" * 99 + b"\n", b"y" * 100_000 + b"\n", b"y" * 4096])
def test_over_the_rate_every_byte_is_dropped_and_counted(pipe: tuple[Drain, int], line: bytes) -> None:
    drain, writer = pipe
    written, lines = 0, []
    while written < 3 * BURST_BYTES:
        try:
            written += os.write(writer, (line * (PIPE_BYTES // len(line) + 1))[:PIPE_BYTES])
        except BlockingIOError:
            pass
        lines += drain.read(NOW, 4)[0]
    assert drain.paused_until == NOW + PAUSE_S
    os.close(writer)
    while not (more := drain.read(NOW, 4))[1]:
        lines += more[0]
    lines += more[0] + drain.rest(NOW)
    kept = sum(len(piece.text) for piece in lines)
    dropped = sum(piece.dropped_bytes for piece in lines)
    ends = sum(1 for piece in lines if not piece.dropped_bytes or piece.text)
    assert kept + dropped <= written <= kept + dropped + ends
    assert kept < BURST_BYTES and dropped > BURST_BYTES


def test_after_a_pause_lines_begin_at_their_beginning(pipe: tuple[Drain, int]) -> None:
    drain, writer = pipe
    for _ in range(8):
        os.write(writer, b"z" * (PIPE_BYTES - 1) + b"\n")
        drain.read(NOW, 16)
    os.write(writer, b"half of one that is drop")
    drain.read(NOW, 4)
    os.write(writer, b"ped\nwhole\n")
    later = NOW + 1000
    drain.read(later, 4)
    os.write(writer, b"another\n")
    lines = drain.read(later, 4)[0]
    assert lines[-1].text == "another"
    assert all(line.text in ("whole", "another") for line in lines)


@given(st.lists(st.binary(max_size=50), max_size=10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_no_byte_is_lost_however_they_come(chunks: list[bytes]) -> None:
    reader, writer = open_pipe()
    drain = Drain(reader, "w", "stdout", TokenBucket(BURST_BYTES, 1, NOW))
    lines = []
    for chunk in chunks:
        if chunk:
            os.write(writer, chunk)
        lines += drain.read(NOW, 4)[0]
    os.close(writer)
    lines += drain.read(NOW, 4)[0] + drain.rest(NOW)
    os.close(reader)
    data = b"".join(chunks)
    expected = data.decode("utf-8", "backslashreplace").split("\n") if b"\xff" not in data else None
    if expected is not None and data.isascii():
        assert [line.text for line in lines] == (expected if expected[-1] else expected[:-1])


def test_a_paused_pipe_is_left_alone_and_taken_up_again() -> None:
    said: list[Line] = []
    poll = select.poll()
    drains = Drains(poll, lambda _worker, _stream, line: said.append(line) is None)
    (out, out_writer), (err, err_writer) = open_pipe(), open_pipe()
    os.set_blocking(out_writer, False)
    drains.add("w-1", out, err, NOW)
    while not drains.due():
        os.write(out_writer, b"y\n" * 30_000)
        drains.read(out, NOW)
    os.write(out_writer, b"y\n")
    assert poll.poll(0) == []
    drains.resume(NOW)
    assert poll.poll(0) == []
    drains.resume(NOW + PAUSE_S)
    assert poll.poll(0) == [(out, select.POLLIN)]
    assert drains.is_open("w-1") and not drains.is_open("w-2")
    drains.finish("w-1", NOW)
    assert not drains.is_open("w-1")
    os.close(out_writer)
    os.close(err_writer)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = TokenBucket(10_000, 100, NOW)
    assert bucket.take(10_000, NOW) and not bucket.take(1, NOW)
    assert bucket.take(100, NOW + 1) and not bucket.take(1, NOW + 1)
    assert not bucket.take(10_001, NOW + 1e6) and bucket.take(10_000, NOW + 1e6)
    assert not bucket.take(1, NOW), "a clock that goes back gives nothing"


def test_an_allowance_that_refused_once_refuses_for_ever() -> None:
    allowance = Allowance(100)
    assert allowance.take(60, NOW) and not allowance.exhausted(NOW)
    assert not allowance.take(60, NOW) and allowance.exhausted(NOW)
    assert not allowance.take(1, NOW)
