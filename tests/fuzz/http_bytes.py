"""Raw bytes to the HTTP door: requests to every route there is, with everything wrong that can be."""

import random
import re
import socket
from collections.abc import Sequence

import h11

from orpheusd.doors.http.head import read_head
from orpheusd.doors.http.limits import Limits
from orpheusd.doors.http.plain import read_plain
from orpheusd.doors.http.routes import query_params
from orpheusd.operations import BY_NAME, OPERATIONS, Operation
from tests.fuzz.control_frames import ECHO, VICTIM, exchanged
from tests.fuzz.house import Broken, House, short
from tests.fuzz.mutation import mutated
from tests.fuzz.target import ANSWER_S, packed

#: Stands for the token that makes changes.
TOKEN = b"TOKEN-0000000000000000000000000000000000000"

_HEADERS = (
    b"Host: localhost", b"Host: evil.example", b"Host: 127.0.0.1:99999", b"Content-Type: application/json",
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: " + b"9" * 40, b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip", b"Expect: 100-continue", b"Connection: close", b"Connection: keep-alive, x",
    b"Upgrade: h2c", b"Upgrade: websocket", b"Accept: text/event-stream", b"Prefer: respond-async",
    b"X-Session-ID: s-1", b"X-Session-ID: \xff", b"Mcp-Session-Id: s-2", b"X-Session-Overlap: queue",
    b"X-Session-Require: warm", b"Idempotency-Key: once", b"X-Orpheus-Cancel-On-Disconnect: true",
    b"X-Orpheus-Env: {\"A\": \"b\"}", b"Origin: null", b"Sec-Fetch-Site: cross-site",
    b"Authorization: Bearer " + TOKEN, b"Authorization: Basic x", b"Content-Type: application/gzip", b"Cookie: a=b",
    b"X: " + b"y" * 9000, b": empty", b"a b: c", b" folded", b"HTTP2-Settings: AAMAAABkAAQ", b"Range: bytes=0-1",
    b"TE: trailers", b"Trailer: x")
_WORDS = (
    *(header + b"\r\n" for header in _HEADERS), b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET", b"HEAD", b"POST", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE", b"*",
    b"http://localhost/", b"//", b"/../", b"%2f", b"%00", b"%ff", b"%zz", b"?", b"&", b"limit=1",
    b"before=99999999999999999", b"since=1e9", b"wait=0.5", b"state=completed", b"#", b"\r\n\r\n", b"0\r\n\r\n",
    b"ffffffffffffffff\r\n", b"-1\r\n", b"5\r\nhello\r\n", b'{"input": {}}', b'"session_id": "s-1"', b"\xe9")


class HttpBytes:
    name = "http"
    tries = 3

    def seeds(self) -> list[bytes]:
        plain = [_request(operation) for operation in OPERATIONS if operation.http]
        run = _request(BY_NAME["run"])
        host = b"Host: localhost\r\n"
        chunked = (b"POST /v1/agents/victim/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                   b"Transfer-Encoding: chunked\r\n\r\nc\r\n{\"input\": 1}\r\n0\r\n\r\n")
        deploy = packed({"agent.yaml": f"name: {VICTIM}\nruntime: python3\n", "agent.py": ECHO})
        return [
            *plain, run + run, chunked, chunked + run, b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n",
            *(run.replace(host, host + header + b"\r\n") for header in _HEADERS),
            b"POST /v1/deploy HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + TOKEN +
            b"\r\nContent-Type: application/gzip\r\nContent-Length: %d\r\n\r\n" % len(deploy) + deploy,
        ]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        # `reload` takes as long as hundreds of others
        return mutated(dice, data, others, _WORDS).replace(b"/v1/reload", b"/v1/health")

    def decode(self, data: bytes) -> None:
        plain = read_plain(data)
        if plain is not None:
            read_head(plain.scope(None, None), Limits())
            return
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=Limits().header_bytes)
        try:
            connection.receive_data(data)
            event = connection.next_event()
        except h11.RemoteProtocolError:
            return
        if isinstance(event, h11.Request):
            raw_path, _, query_string = event.target.partition(b"?")
            read_head({
                "type": "http", "http_version": event.http_version.decode(), "method": event.method.decode(),
                "raw_path": raw_path, "query_string": query_string, "headers": list(event.headers)}, Limits())
            query_params(BY_NAME["run.list"], query_string)

    def prepare(self, house: House) -> None:
        if VICTIM not in [row["name"] for row in house.daemon.call("agent.list")["agents"]]:
            house.deploy(VICTIM, ECHO)

    def send(self, house: House, data: bytes) -> set[str]:
        with socket.create_connection(("127.0.0.1", house.port), ANSWER_S) as client:
            said = exchanged(client, data.replace(TOKEN, house.token.encode()))
        if said and not said.startswith(b"HTTP/1.1 "):
            raise Broken(f"what it answered is not HTTP/1.1: {said[:80]!r}")
        answers = re.findall(rb"HTTP/1\.1 (\d{3}) \r\n.*?\r\n\r\n(.{0,400})", said, re.DOTALL)
        for status, body in answers:
            if status[:1] == b"5" and b'"code":"internal"' in body:
                raise Broken(f"answered {status.decode()}: {body.decode(errors='replace')}")
        return {f"{status.decode()} {_message(body)}" for status, body in answers}


def _message(body: bytes) -> str:
    error = re.search(rb'"error":"((?:[^"\\]|\\.)*)"', body)
    return short(error[1].decode(errors="replace")) if error else ""


def _request(operation: Operation) -> bytes:
    assert operation.http is not None
    method, path = operation.http
    path = path.format(agent=VICTIM, session_id="s-1", run_id="r-1")
    body = b'{"input": {"query": "step"}}' if operation.name == "run" else b""
    typed = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b""
    return b"%b %b HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\n%b\r\n%b" % (
        method.encode(), path.encode(), TOKEN, typed, body)
