"""What the HTTP door keeps out: browsers, other protocols, ambiguous requests, and too much of anything."""

import json
import resource
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.eventually import eventually
from tests.integration.door_peer import (
    DoorProcess,
    echo,
    first_answer,
    never,
    post,
    run_result,
    until_closed,
    until_quiet,
)

BODY = b'{"input":1}'
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoorProcess]:
    with DoorProcess(tmp_path_factory.mktemp("door") / "log", body_deadline_s=0.4) as one:
        yield one


def get(*headers: bytes, line: bytes = b"GET /v1/health HTTP/1.1") -> bytes:
    return b"\r\n".join([line, *headers]) + b"\r\n\r\n"


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer[9:12])


def refused(door: DoorProcess, request: bytes) -> int:
    """The status of an answer that is an error in JSON and had no effect."""
    door.peer.requests.clear()
    answer = door.exchange(request)
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["code"] and body["error"]
    assert door.peer.requests == []
    return status(answer)


@pytest.mark.parametrize("host", [
    b"localhost", b"localhost:7777", b"LOCALHOST:1", b"127.0.0.1", b"127.0.0.1:7777", b"127.0.0.2", b"[::1]",
    b"[::1]:7777"])
def test_hosts_of_this_machine_are_served(door: DoorProcess, host: bytes) -> None:
    # fault 68
    assert status(door.exchange(get(b"Host: " + host))) == 200


@pytest.mark.parametrize("host", [
    b"evil.example", b"localhost.", b"localhost:7777.evil.example", b"localhost@evil", b"evil@localhost", b"127.1",
    b"0.0.0.0", b"", b"\xff", b"::1", b"[::2]", b"localhost:", b"localhost:777777", b"localhost.evil.example",
    b"xn--localhost", b"127.0.0.1.evil.example", b"localhost, evil", b"2130706433"])
def test_other_hosts_are_refused(door: DoorProcess, host: bytes) -> None:
    # faults 68, 69
    assert refused(door, get(b"Host: " + host)) == 400


@pytest.mark.parametrize("header", [
    b"Origin: https://evil.example", b"Origin: null", b"Origin: http://localhost:3000", b"Origin: http://127.0.0.1",
    b"Origin: https://localhost", b"Sec-Fetch-Site: cross-site", b"Sec-Fetch-Site: same-site",
    b"Sec-Fetch-Site: Cross-Site"])
def test_pages_of_web_sites_are_refused(door: DoorProcess, header: bytes) -> None:
    # fault 68
    assert refused(door, get(b"Host: localhost", header)) == 403
    assert refused(door, post(BODY, header)) == 403
    assert refused(door, get(b"Host: localhost", header, b"Access-Control-Request-Method: POST",
                             line=b"OPTIONS /v1/agents/a/run HTTP/1.1")) == 403


@pytest.mark.parametrize("header", [
    b"Origin: http://localhost", b"Sec-Fetch-Site: none", b"Sec-Fetch-Site: same-origin"])
def test_what_a_browser_says_of_its_own_address_bar_is_served(door: DoorProcess, header: bytes) -> None:
    assert status(door.exchange(get(b"Host: localhost", header))) == 200


@pytest.mark.parametrize("media_type", [
    b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b"",
    b"application/jsonp", b"text/plain; application/json"])
def test_a_body_must_be_json(door: DoorProcess, media_type: bytes) -> None:
    # fault 68
    request = post(BODY).replace(b"Content-Type: application/json", b"Content-Type: " + media_type)
    assert refused(door, request) == 415
    assert refused(door, post(BODY).replace(b"Content-Type: application/json\r\n", b"")) == 415


@pytest.mark.parametrize("media_type", [b"application/json; charset=utf-8", b"Application/JSON"])
def test_json_may_be_said_in_its_ways(door: DoorProcess, media_type: bytes) -> None:
    assert status(door.exchange(post(BODY).replace(b"application/json", media_type))) == 200


@pytest.mark.parametrize(("request_bytes", "expected"), [
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (get(b"Host: localhost", line=b"GET /v1/health HTTP/1.0"), 505),
    (get(b"Host: localhost", b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13",
         b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
    (get(b"Host: localhost", line=b"GET http://localhost/v1/health HTTP/1.1"), 400),
    (get(b"Host: localhost", line=b"CONNECT localhost:80 HTTP/1.1"), 400),
    (get(b"Host: localhost", line=b"OPTIONS * HTTP/1.1"), 400),
    (get(b"Host: localhost", line=b"TRACE /v1/health HTTP/1.1"), 405),
    (get(line=b"GET /v1/health HTTP/1.1"), 400),
    (get(b"Host: localhost", b"Host: localhost2"), 400),
    (get(b"Host: localhost", b"Content-Length: 3", b"Content-Length: 4"), 400),
    (get(b"Host: localhost", b"Content-Length: -1"), 400),
    (get(b"Host: localhost", b"Content-Length: 3") + b"abc", 400),
    (get(b"Host: localhost", b"X-Session-ID: caf\xc3\xa9"), 400),
    (get(b"Host: localhost", b"X-Any: \xff"), 400),
    (get(b"Host: localhost", b"X Any: 1"), 400),
    (post(BODY, b"Transfer-Encoding: chunked"), 400),
    (post(BODY, b"Transfer-Encoding: chunked").replace(b"Content-Length: 11\r\n", b"") + b"\r\n", 400),
    (post(BODY, b"Transfer-Encoding: gzip, chunked").replace(b"Content-Length: 11\r\n", b""), 501),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 TLS\r\n\r\n", 400),
    (b"GET\r\n\r\n", 400),
    (get(b"Host: localhost", *[b"X-%d: 1" % n for n in range(150)]), 431),
    (get(b"Host: localhost", b"X-Long: " + b"a" * 17_000), 431),
    (get(b"Host: localhost", line=b"GET /" + b"a" * 17_000 + b" HTTP/1.1"), 431),
    (b"GET /" + b"a" * 100_000, 431),
], ids=lambda value: value[:30].decode("latin1") if isinstance(value, bytes) else str(value))
def test_other_protocols_and_ambiguous_requests_are_refused(
        door: DoorProcess, request_bytes: bytes, expected: int) -> None:
    # faults 62, 69, 70
    assert refused(door, request_bytes) == expected


def test_an_offer_of_http2_is_answered_in_http1(door: DoorProcess) -> None:
    # fault 70
    answer = door.exchange(get(b"Host: localhost", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c",
                               b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"))
    assert status(answer) == 200


def test_a_refused_request_hides_no_second_one(door: DoorProcess) -> None:
    """Smuggling: what follows a refused request on its connection is never taken for a request."""
    # fault 70
    door.peer.requests.clear()
    hidden = post(b'{"input":"hidden"}')
    with door.connect(3.0) as client:
        client.sendall(post(hidden, b"Transfer-Encoding: chunked"))
        received = until_closed(client)
    assert received.count(b"\r\ncontent-length:") == 1
    assert status(received) == 400
    assert door.peer.requests == []


def test_a_body_above_the_limit_is_refused_while_it_is_sent(door: DoorProcess) -> None:
    # fault 62
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB

    before = door.rss_bytes()
    for body in (b"x" * (20 * MIB), chunks()):
        answer = httpx.post(f"{door.url}/v1/agents/a/run", content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, "too-large")
        assert answer.headers["connection"] == "close"
    assert door.rss_bytes() - before < 16 * MIB


def test_the_limit_is_counted_not_believed(door: DoorProcess) -> None:
    # fault 62
    fits = b'{"input":"%b"}' % (b"x" * (8 * MIB - 12))
    assert len(fits) == 8 * MIB
    assert status(door.exchange(post(fits))) == 200
    assert refused(door, post(fits + b" ")) == 413
    # one that does not say how long it is, and never ends
    assert refused(door, get(b"Host: localhost", b"Content-Type: application/json", b"Transfer-Encoding: chunked",
                             line=b"POST /v1/agents/a/run HTTP/1.1") + b"800001\r\n" + fits + b" ") == 413


def test_a_slow_body_gets_a_deadline(door: DoorProcess) -> None:
    # fault 62
    started = time.monotonic()
    assert refused(door, post(BODY)[:-1]) == 408
    assert 0.3 < time.monotonic() - started < 3
    assert refused(door, get(b"Host: localhost", b"Content-Type: application/json", b"Transfer-Encoding: chunked",
                             line=b"POST /v1/agents/a/run HTTP/1.1") + b"5\r\nabc") == 408


def test_a_body_that_ends_early_is_no_request(door: DoorProcess) -> None:
    # fault 62
    door.peer.requests.clear()
    with door.connect() as client:
        client.sendall(post(BODY)[:-1])
        client.shutdown(1)
        until_closed(client)
    assert httpx.get(f"{door.url}/v1/health").status_code == 200
    assert [one["method"] for one in door.peer.requests] == ["health"]


def test_bodies_together_have_a_limit(tmp_path: Path) -> None:
    # fault 62
    large = b'{"input":"%b"}' % (b"x" * 2 * MIB)
    with DoorProcess(tmp_path / "log", bodies_bytes=3 * MIB) as door:
        with door.clients(3) as slow:
            for client in slow:
                client.sendall(post(large)[:MIB + 1000])
            refused = eventually(lambda: select.select(slow, [], [], 0)[0])
            assert len(refused) == 1
            assert status(first_answer(refused[0])) == 503
        eventually(lambda: status(door.exchange(post(large))) == 200, what="room after the others left")


def test_slow_headers_and_idle_connections_are_closed(tmp_path: Path) -> None:
    # fault 63
    with DoorProcess(tmp_path / "log", header_deadline_s=0.2, keep_alive_s=1.0) as door:
        with door.clients(3) as (silent, slow, idle):
            slow.sendall(b"GET /v1/health HTTP/1.1\r\nHo")
            idle.sendall(get(b"Host: localhost"))
            assert status(first_answer(idle)) == 200
            started = time.monotonic()
            assert until_closed(silent) == b"" and until_closed(slow) == b""
            assert time.monotonic() - started < 0.9
            assert until_closed(idle) == b""
            assert time.monotonic() - started > 0.8


def test_the_time_of_a_run_is_not_idle_time(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", header_deadline_s=0.1, keep_alive_s=0.3) as door:
        door.peer.scripts["run"] = never
        with door.connect(0.7) as client:
            for number in (1, 2):
                client.sendall(post(BODY))
                call = door.peer.awaited("run", number)[-1]["id"]
                assert until_quiet(client) == b"", "twice as long as an idle connection may last"
                door.peer.answer(call, run_result())
                assert status(first_answer(client)) == 200
            answered = time.monotonic()
            assert until_closed(client) == b""
            assert time.monotonic() - answered > 0.2


def test_a_client_that_sends_on_and_on_is_not_listened_to_while_it_is_answered(tmp_path: Path) -> None:
    with DoorProcess(tmp_path / "log", grace_s=0.2) as door:
        door.peer.scripts["run"] = never
        with door.connect(0.5) as client:
            client.sendall(post(BODY))
            door.peer.awaited("run")
            before = door.rss_bytes()
            with pytest.raises(TimeoutError):
                client.sendall(post(BODY) * (64 * MIB // len(post(BODY))))
            assert door.rss_bytes() - before < 8 * MIB
            assert len(door.peer.requests) == 1


def test_a_full_house_lets_the_longest_idle_go(tmp_path: Path) -> None:
    # fault 63
    with DoorProcess(tmp_path / "log", connections=4) as door, door.clients(4) as clients:
        for client in clients:
            client.sendall(get(b"Host: localhost"))
            assert status(first_answer(client)) == 200
        assert httpx.get(f"{door.url}/v1/health", timeout=4).status_code == 200
        assert until_closed(clients[0]) == b"", "the first was idle the longest"
        clients[3].sendall(get(b"Host: localhost"))
        assert status(first_answer(clients[3])) == 200


def test_a_thousand_slow_clients_do_not_keep_a_new_one_out(tmp_path: Path) -> None:
    # fault 63
    with DoorProcess(tmp_path / "log", connections=200, header_deadline_s=0.3) as door, door.clients(1000) as slow:
        for client in slow:
            client.sendall(b"GET /")
        assert httpx.get(f"{door.url}/v1/health", timeout=10).status_code == 200


def test_running_out_of_files_is_survived_and_said_briefly(tmp_path: Path) -> None:
    # fault 64
    with DoorProcess(tmp_path / "log") as door:
        assert status(door.exchange(get(b"Host: localhost"))) == 200
        files = len(_open_files(door)) + 10
        resource.prlimit(door.process.pid, resource.RLIMIT_NOFILE, (files, files))
        with door.clients(100):
            eventually(lambda: "cannot accept connections" in door.log)
        eventually(lambda: status(door.exchange(get(b"Host: localhost"))) == 200, timeout_s=8)
        assert len(door.log) < 10_000


def test_a_client_that_does_not_read_is_dropped(tmp_path: Path) -> None:
    # fault 61
    with DoorProcess(tmp_path / "log", send_deadline_s=0.3) as door:
        assert status(door.exchange(post(BODY))) == 200
        before = eventually(lambda: _open_sockets(door))
        door.peer.on("run", run_result(result="x" * (8 * MIB)))
        with door.clients(3, receive_bytes=4096) as stuck:
            for client in stuck:
                client.sendall(post(BODY))
            door.peer.awaited("run", 4)
            door.peer.scripts["run"] = echo
            assert status(door.exchange(post(BODY))) == 200
            eventually(lambda: _open_sockets(door) <= before, what="the stuck clients to be dropped")
        assert door.log == ""


def _open_files(door: DoorProcess) -> list[str]:
    links = []
    for path in Path(f"/proc/{door.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since it was listed
            links.append(str(path.readlink()))
    return links


def _open_sockets(door: DoorProcess) -> int:
    return sum(link.startswith("socket:") for link in _open_files(door))
