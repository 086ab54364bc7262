"""What the doctor finds: on this box, and on boxes that have less."""

import os
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from orpheusd import doctor
from orpheusd.config import Config
from orpheusd.doctor import MISSING, OK, WEAKER, Finding, View, examine
from orpheusd.process import abilities
from orpheusd.process.sandbox import Isolation
from tests.daemon import free_port

WALLS = Isolation("bwrap", "bubblewrap works here with every namespace", "/usr/bin/bwrap")
NO_WALLS = Isolation("none", "bubblewrap is not installed", None)


def view(tmp_path: Path, **changed: Any) -> View:
    config = Config(tmp_path / "state/not/there/yet", tmp_path, http=f"127.0.0.1:{free_port()}")
    return View(config, WALLS, "", True)._replace(**changed)


def finding(check: str, seen: View) -> Finding:
    [found] = [one for one in examine(seen) if one.check == check]
    return found


def test_every_finding_says_what_it_means_and_how_to_mend_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in (("user_namespaces", False), ("apparmor_restricts", True), ("pidfds", False),
                         ("seccomp_filters", False), ("can_listen", False)):
        monkeypatch.setattr(abilities, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(doctor, "OLDEST_SQLITE", (99, 0, 0))
    monkeypatch.setattr(doctor, "DISK_LEAST_BYTES", 1 << 62)
    monkeypatch.setattr(doctor, "DISK_LOW_BYTES", 1 << 62)
    seen = view(tmp_path, isolation=NO_WALLS, memory_reason="not delegated", serves=False, problems=("it is full",))
    found = examine(seen)
    assert {one.check: one.state for one in found if one.state != MISSING} == {
        "control groups": WEAKER, "at work": WEAKER}
    assert all(one.found and one.means and one.fix for one in found)


def test_what_is_there_is_ok_and_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("seccomp_library", "user_namespaces", "peer_pidfds"):
        monkeypatch.setattr(abilities, name, lambda: True)
    found = examine(view(tmp_path))
    assert [one.check for one in found if one.state != OK] == []
    assert not any(one.means or one.fix for one in found)


@pytest.mark.parametrize(("name", "check"), [("seccomp_library", "seccomp"), ("peer_pidfds", "pidfd")])
def test_what_holds_less_is_weaker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, check: str) -> None:
    monkeypatch.setattr(abilities, name, lambda: False)
    assert finding(check, view(tmp_path)).state == WEAKER


def test_apparmor_that_lets_bubblewrap_be_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities, "apparmor_restricts", lambda: True)
    assert finding("AppArmor", view(tmp_path)).state == OK


@pytest.mark.parametrize(("free_bytes", "state"), [(2 << 30, OK), (1 << 29, WEAKER), (1 << 20, MISSING)])
def test_a_disk_that_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int, state: str) -> None:
    usage = namedtuple("usage", "free")(free_bytes)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _path: usage)
    assert finding("disk", view(tmp_path)).state == state


def test_an_address_that_another_has_is_told_with_who_it_is(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        seen = view(tmp_path, serves=False, config=Config(tmp_path, tmp_path, http=f"127.0.0.1:{port}"))
        found = finding("HTTP", seen)
    assert found.state == MISSING and "pid" in found.found
    assert finding("HTTP", seen).state == OK, "free again"


def test_of_localhost_it_is_told_which_address_another_has(tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        seen = view(tmp_path, serves=False, config=Config(tmp_path, tmp_path, http=f"localhost:{port}"))
        found = finding("HTTP", seen)
    assert found.state == MISSING and found.found.startswith(f"[::1]:{port} is taken by pid {os.getpid()}")
    assert finding("HTTP", seen).found == f"localhost:{port} is free"


def test_of_localhost_an_address_that_the_host_has_not_is_no_matter(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(abilities, "can_listen", lambda host, _port: host == "127.0.0.1")
    for http, state in (("localhost:1", OK), ("127.0.0.1:1", OK), ("[::1]:1", MISSING)):
        seen = view(tmp_path, serves=False, config=Config(tmp_path, tmp_path, http=http))
        assert finding("HTTP", seen).state == state


def test_a_door_that_is_switched_off_is_no_fault(tmp_path: Path) -> None:
    assert finding("HTTP", view(tmp_path, config=Config(tmp_path, tmp_path, http=None))).found == "switched off"


def test_a_socket_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "ctl.sock").write_text("no socket")
    assert "is not a socket" in finding("control socket", view(tmp_path)).found


def test_this_kernel_is_asked() -> None:
    assert abilities.pidfds() and abilities.setting("kernel/pid_max")
    assert abilities.setting("kernel/no_such_setting") is None
    assert abilities.seccomp_filters() == ("errno" in Path("/proc/sys/kernel/seccomp/actions_avail").read_text())
