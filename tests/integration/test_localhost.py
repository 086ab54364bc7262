"""`localhost` is both addresses of loopback, and both are the daemon's: neither is any agent's to take."""

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.doors import front
from orpheusd.errors import AddressInUse, OrpheusError
from tests.daemon import Daemon, command, free_port, write_agent

NewDaemon = Callable[..., Daemon]

#: Tries to have the daemon's port, wherever a client that looks for the daemon would come by.
GRASPING = """
import errno, socket

def handler(input_data):
    told = {}
    for host in ("127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if host == "::":
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((host, input_data["port"]))
                sock.listen()
                told[host] = "taken"
            except OSError as error:
                told[host] = errno.errorcode[error.errno]
    return told
"""

#: A network of its own whose loopback has no ::1, as on a host where IPv6 is switched off.
NO_IPV6 = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c",
           'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up && exec "$0" "$@"')


def port_of(daemon: Daemon) -> int:
    return int((daemon.http or "").rpartition(":")[2])


def answers(port: int) -> list[Any]:
    """What is answered at both, by whom."""
    return [httpx.get(f"http://{host}:{port}/v1/status").json()["pid"] for host in ("127.0.0.1", "[::1]")]


def test_both_addresses_are_the_daemons_also_after_a_reload(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon()
    port = port_of(daemon)
    daemon.deploy(write_agent(tmp_path / "grasping", GRASPING))
    for _ in range(2):
        assert answers(port) == [daemon.pid] * 2
        told = daemon.call("run", agent="grasping", input={"port": port})["result"]
        assert told == dict.fromkeys(("127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"), "EADDRINUSE")
        assert daemon.call("status")["http"] == f"localhost:{port}"
        assert daemon.call("reload")["pid"] == daemon.pid
    [_, door] = [one for one in daemon.family() if "orpheusd.doors.http" in command(one)]
    assert len([word for word in door.cmdline() if word.startswith("--listen-fd=")]) == 2


@pytest.mark.parametrize(("host", "other"), [("127.0.0.1", "[::1]"), ("[::1]", "127.0.0.1")])
def test_an_address_is_that_address_alone(new_daemon: NewDaemon, host: str, other: str) -> None:
    port = free_port()
    daemon = new_daemon("--http", f"{host}:{port}", isolation="none")
    assert httpx.get(f"http://{host}:{port}/v1/health").is_success
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://{other}:{port}/v1/health")
    assert daemon.call("status")["http"] == f"{host}:{port}"


def test_where_loopback_has_no_ipv6_localhost_is_the_other_alone_and_that_is_said_once(new_daemon: NewDaemon) -> None:
    daemon = new_daemon(isolation="none", wrapper=NO_IPV6)
    daemon.call("reload")
    said = f"this host has no IPv6: localhost:{port_of(daemon)} is 127.0.0.1 alone"
    assert daemon.log.count(said) == 1
    [http] = [found for found in daemon.call("doctor")["findings"] if found["check"] == "HTTP"]
    assert http["state"] == "ok"


def listening(setting: str, runtime_dir: Path) -> tuple[socket.socket, ...]:
    return asyncio.run(front.listen(setting, runtime_dir))


def test_a_kernel_without_ipv6_has_one_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a family that no kernel has
    monkeypatch.setattr(front.socket, "AF_INET6", socket.AF_UNSPEC)
    socks = listening("localhost:0", tmp_path)
    assert [sock.getsockname()[0] for sock in socks] == ["127.0.0.1"]
    for sock in socks:
        sock.close()
    with pytest.raises(OrpheusError, match=os.strerror(errno.EAFNOSUPPORT)):
        listening("[::1]:0", tmp_path)


def test_the_kernel_chooses_one_port_for_both(tmp_path: Path) -> None:
    v4, v6 = listening("localhost:0", tmp_path)
    try:
        assert v4.getsockname()[1] == v6.getsockname()[1] != 0
        assert (v4.getsockname()[0], v6.getsockname()[0]) == ("127.0.0.1", "::1")
        assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
    finally:
        v4.close()
        v6.close()


@pytest.mark.parametrize(("family", "host", "named"), [
    (socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")])
def test_one_of_both_that_is_somebody_elses_refuses_both(
        tmp_path: Path, family: socket.AddressFamily, host: str, named: str) -> None:
    with socket.create_server((host, 0), family=family) as theirs:
        port = theirs.getsockname()[1]
        with pytest.raises(AddressInUse) as refusal:
            listening(f"localhost:{port}", tmp_path)
    assert refusal.value.message.startswith(f"cannot listen on {named}:{port}: pid {os.getpid()} (")
    socks = listening(f"localhost:{port}", tmp_path)
    assert len(socks) == 2, "nothing was kept of what was refused"
    for sock in socks:
        sock.close()
