"""What systemd and the daemon tell each other, with real sockets and no systemd."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd import config
from orpheusd.config import FromSystemd
from orpheusd.errors import OrpheusError
from orpheusd.systemd import Listening, Notifier, Watchdog, handed_over
from tests.daemon import free_port


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that systemd would hear us on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.setblocking(False)
        yield heard


def given(family: int, address: object, listening: bool = True) -> int:
    """A descriptor as systemd hands it over."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(address)
        if listening:
            sock.listen()
        return os.dup(sock.fileno())


def closed(listening: Listening) -> None:
    for sock in (*listening.http, listening.control):
        if sock is not None:
            sock.close()


@pytest.fixture(autouse=True)
def _no_file_of_the_box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")


@pytest.mark.parametrize(("environ", "told"), [
    ({}, FromSystemd()),
    ({"LISTEN_PID": "{pid}", "LISTEN_FDS": "2"}, FromSystemd(listen_fds=(3, 4))),
    ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, FromSystemd()),
    ({"LISTEN_FDS": "2"}, FromSystemd()),
    ({"WATCHDOG_USEC": "30000000"}, FromSystemd(watchdog_s=30.0)),
    ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, FromSystemd()),
    ({"WATCHDOG_USEC": "0"}, FromSystemd()),
    ({"NOTIFY_SOCKET": "@x", "SERVICE_RESULT": "signal"}, FromSystemd(notify_socket="@x", service_result="signal")),
])  # fmt: skip
def test_what_is_said_to_another_process_is_not_believed(environ: dict[str, str], told: FromSystemd) -> None:
    pid = str(os.getpid())
    assert config.load({}, {name: value.format(pid=pid) for name, value in environ.items()}).systemd == told


def test_a_wrong_number_is_named() -> None:
    with pytest.raises(OrpheusError, match="WATCHDOG_USEC"):
        config.load({}, {"WATCHDOG_USEC": "soon"})


def test_doors_are_told_apart_by_what_they_are(tmp_path: Path) -> None:
    port = free_port()
    v4, v6 = given(socket.AF_INET, ("127.0.0.1", port)), given(socket.AF_INET6, ("::1", port))
    control = given(socket.AF_UNIX, str(tmp_path / "ctl.sock"))
    listening = handed_over((v6, control, v4))
    try:
        assert listening.control is not None
        assert ([sock.fileno() for sock in listening.http], listening.control.fileno()) == ([v6, v4], control)
        assert (listening.http_name, listening.kept) == (f"localhost:{port}", ("http", "control"))
        assert not any(os.get_inheritable(fd) for fd in (v4, v6, control))
    finally:
        closed(listening)


@pytest.mark.parametrize(("family", "host", "named"), [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")])
def test_one_address_is_that_address_alone(family: int, host: str, named: str) -> None:
    listening = handed_over([given(family, (host, 0))])
    try:
        assert listening.http_name == f"{named}:{listening.http[0].getsockname()[1]}"
        assert (listening.control, listening.kept) == (None, ("http",))
    finally:
        closed(listening)


def test_a_second_control_socket_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OrpheusError, match=r"other\.sock"):
        handed_over([given(socket.AF_UNIX, str(tmp_path / name)) for name in ("ctl.sock", "other.sock")])


def test_without_a_hand_over_the_daemon_makes_its_own() -> None:
    assert handed_over(()) == Listening((), None)


@pytest.mark.parametrize(("doors", "what"), [
    ([("0.0.0.0", True)], "loopback"),
    ([("127.0.0.1", True), ("127.0.0.1", True)], "none of ours"),
    ([("127.0.0.1", False)], "none of ours"),
])
def test_a_unit_may_not_open_what_a_setting_may_not(doors: list[tuple[str, bool]], what: str) -> None:
    with pytest.raises(OrpheusError, match=what):
        handed_over([given(socket.AF_INET, (host, 0), listening) for host, listening in doors])


def test_words_arrive(listener: socket.socket) -> None:
    notifier = Notifier(listener.getsockname())
    notifier.say("READY=1", "STATUS=well")
    assert listener.recv(4096) == b"READY=1\nSTATUS=well"
    notifier.close()


def test_an_abstract_address_is_an_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0orpheus-test-{os.getpid()}")
        notifier = Notifier(f"@orpheus-test-{os.getpid()}")
        notifier.say("READY=1")
        assert heard.recv(4096) == b"READY=1"
        notifier.close()


def test_nobody_who_listens_is_no_fault(tmp_path: Path) -> None:
    for address in (None, str(tmp_path / "nothing")):
        notifier = Notifier(address)
        notifier.say("READY=1")
        notifier.close()


def test_the_watchdog_hears_of_a_daemon_whose_engine_turns_and_of_no_other(listener: socket.socket) -> None:
    notifier = Notifier(listener.getsockname())
    looks: list[bool] = []

    async def live() -> None:
        enough = asyncio.Event()

        def turns() -> bool:
            looks.append(len(looks) < 3)
            if len(looks) == 6:
                enough.set()
            return looks[-1]

        watchdog = Watchdog(notifier, 0.04, turns)
        watchdog.start()
        await enough.wait()
        watchdog.stop()

    asyncio.run(asyncio.wait_for(live(), 10))
    notifier.close()
    assert [listener.recv(4096) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        listener.recv(4096)


def test_where_nobody_watches_nothing_is_said(listener: socket.socket) -> None:
    notifier = Notifier(listener.getsockname())

    async def live() -> None:
        Watchdog(notifier, None, lambda: True).start()

    asyncio.run(live())
    notifier.close()
    with pytest.raises(BlockingIOError):
        listener.recv(4096)
