"""The short way of a plain request: what it reads is what h11 reads, and what it does not read is h11's."""

import asyncio
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.doors.http.plain import Exchange, PlainRequest, read_plain

BODY = b'{"input": 1}'
WHOLE = (b"POST /v1/agents/a/run?x=%41 HTTP/1.1\r\nHost: localhost:1\r\ncontent-TYPE:application/json\r\n"
         b"X-Session-ID: \t user 1 \t\r\nX-Empty:\r\nConnection: Keep-Alive\r\nContent-Length: 12\r\n\r\n" + BODY)
COMMON = b"date: now\r\n\r\n"

_NAMES = st.sampled_from([b"Host", b"X-A", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect", b"X-A ",
                          b" X-A", b"", b"X\x00", b"Accept", b"Upgrade", b"X-\xc3\xa4"])
_VALUES = st.sampled_from([b"localhost", b"12", b"+12", b"012", b"12, 12", b"13", b"chunked", b"close", b"keep-alive",
                           b"a\tb", b"a\x01b", b"a\rb", b"a\nb", b"\xe4", b"", b"100-continue", b"1_2"])
_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r\r\n", b"\r\n\t"])
_LINES = st.lists(st.tuples(_NAMES, st.sampled_from([b":", b": ", b" :", b":\t", b""]), _VALUES, _ENDS), max_size=4)
_FIRST = st.sampled_from([b"POST /run HTTP/1.1", b"POST /run?q HTTP/1.1", b"POST run HTTP/1.1", b"POST  /run HTTP/1.1",
                          b"POST /r\xe4 HTTP/1.1", b"POST /run HTTP/1.0", b"POST /run", b"GET /run HTTP/1.1"])


def test_a_plain_request_is_read() -> None:
    assert read_plain(WHOLE) == PlainRequest(b"/v1/agents/a/run?x=%41", [
        (b"host", b"localhost:1"), (b"content-type", b"application/json"), (b"x-session-id", b"user 1"),
        (b"x-empty", b""), (b"connection", b"Keep-Alive"), (b"content-length", b"12")], BODY)
    assert _by_h11(WHOLE) == read_plain(WHOLE)


@pytest.mark.parametrize("cut", range(len(WHOLE)))
def test_a_request_that_did_not_arrive_whole_is_not_plain(cut: int) -> None:
    assert read_plain(WHOLE[:cut]) is None


@pytest.mark.parametrize("line", [
    b"Transfer-Encoding: chunked", b"Content-Length: 12", b"Content-Length: 1", b"Host: localhost:1",
    b"Expect: 100-continue",
    b"Connection: close", b"Connection: keep-alive, upgrade", b"Upgrade: h2c", b"TE: trailers", b"Trailer: x",
    b"Accept: application/json, text/event-stream", b"X-A : 1", b" folded", b"\tfolded", b"X-A", b": 1", b"X-A: \xe4",
    b"X-A: a\x00b", b"X-A: a\rb", b"X-A: a\nb", b"X-A: 1\n", b"X-A: 1\r", b"",
])  # fmt: skip
def test_what_is_unusual_is_left_to_h11(line: bytes) -> None:
    assert read_plain(WHOLE.replace(b"\r\nHost", b"\r\n" + line + b"\r\nHost", 1)) is None


@pytest.mark.parametrize("data", [WHOLE + b"P", WHOLE + WHOLE, b"\r\n" + WHOLE, WHOLE.replace(b"12", b"-1"),
                                  WHOLE.replace(b"12", b"1_2"), WHOLE.replace(b": 12", b":"), b"", b"\r\n\r\n"])
def test_what_is_not_exactly_one_request_is_left_to_h11(data: bytes) -> None:
    assert read_plain(data) is None


@given(_FIRST, _LINES, st.binary(max_size=3))
def test_what_is_read_here_is_what_h11_reads(first: bytes, lines: list[tuple[bytes, ...]], more: bytes) -> None:
    data = first + b"\r\nHost: x\r\nContent-Length: 12\r\n" + b"".join(map(b"".join, lines)) + b"\r\n" + BODY + more
    for each in (data, data.replace(b"Host: x\r\n", b"", 1), data.replace(b"Content-Length: 12\r\n", b"", 1)):
        request = read_plain(each)
        assert request is None or request == _by_h11(each)


def test_the_scope_is_that_of_asgi() -> None:
    request = read_plain(WHOLE)
    assert request is not None
    scope = request.scope(("127.0.0.1", 1), ("127.0.0.1", 2))
    assert (scope["path"], scope["raw_path"]) == ("/v1/agents/a/run", b"/v1/agents/a/run")
    assert scope["query_string"] == b"x=%41"
    escaped = request._replace(target=b"/v1/%C3%A4").scope(None, None)
    assert (escaped["path"], escaped["raw_path"]) == ("/v1/\u00e4", b"/v1/%C3%A4")


@pytest.mark.parametrize("size_bytes", [0, 1, 64 * 1024, 64 * 1024 + 1])
def test_an_answer_is_what_h11_would_write(size_bytes: int) -> None:
    body = b"x" * size_bytes
    headers = [(b"content-length", b"%d" % size_bytes), (b"x-a", b"1")]
    exchange = _answered({"status": 200, "headers": headers}, {"body": body})
    written = b"HTTP/1.1 200 \r\ncontent-length: %d\r\nx-a: 1\r\ndate: now\r\n\r\n" % size_bytes + body
    assert b"".join(exchange.answer) == written
    assert len(exchange.answer) == (1 if size_bytes <= 64 * 1024 else 2)
    assert not exchange.hang_up
    assert _answered({"status": 400, "headers": [(b"connection", b"close")]}, {"body": b""}).hang_up


@pytest.mark.parametrize("value", [b"a\r\nx-b: 1", b"a\n", b"\x00", b" a", b"", b"\xe4"])
def test_a_header_that_would_be_two_is_not_written(value: bytes) -> None:
    with pytest.raises(ValueError, match="cannot have the value"):
        _answered({"status": 200, "headers": [(b"x-a", value)]}, {"body": b""})


def test_an_answer_is_given_once_and_whole() -> None:
    start: dict[str, Any] = {"status": 200, "headers": []}
    for messages in ([start, {"body": b"", "more_body": True}], [start, {"body": b""}, {"body": b""}]):
        with pytest.raises(RuntimeError, match="one answer"):
            _answered(*messages)


def _answered(*messages: dict[str, Any]) -> Exchange:
    async def play() -> Exchange:
        exchange = Exchange(PlainRequest(b"/", [], BODY), COMMON)
        assert await exchange.receive() == {"type": "http.request", "body": BODY, "more_body": False}
        for message in messages:
            await exchange.send(message)
        return exchange

    return asyncio.run(play())


def _by_h11(data: bytes) -> PlainRequest | None:
    """What h11 makes of `data` when it is exactly one POST, else None."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    body = b""
    try:
        request = connection.next_event()
        while isinstance(piece := connection.next_event(), h11.Data):
            body += bytes(piece.data)
    except h11.RemoteProtocolError:
        return None
    if not isinstance(request, h11.Request) or not isinstance(piece, h11.EndOfMessage) or connection.trailing_data[0]:
        return None
    assert request.method == b"POST"
    assert request.http_version == b"1.1"
    return PlainRequest(bytes(request.target), list(request.headers), body)
