"""The guard that every test runs under must itself be able to fail."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests import leaks
from tests.eventually import eventually


def test_nothing_left_is_no_complaint() -> None:
    assert leaks.left_since(leaks.census()) == []


def test_an_open_socket_is_seen() -> None:
    before = leaks.census()
    left = socket.socket()
    assert [line for line in leaks.left_since(before) if f"fd {left.fileno()}: socket:" in line]
    left.close()
    assert leaks.left_since(before) == []


def test_an_orphan_far_below_is_seen_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "LEAVE_TIMEOUT_S", 0.5)
    before = leaks.census()
    # A grandchild in a session of its own, whose parents have left: a daemon's worst habit.
    shell = "setsid sleep 321 >/dev/null 2>&1 & echo $!"
    pid = int(subprocess.run(["bash", "-c", f"({shell})"], check=True, stdout=subprocess.PIPE, timeout=5).stdout)
    left = leaks.left_since(before)
    assert [line for line in left if line.startswith(f"process {pid}: ")]
    assert not Path(f"/proc/{pid}").exists()


def test_a_dead_child_nobody_waited_for_is_no_leak() -> None:
    before = leaks.census()
    pid = os.posix_spawn("/bin/true", ["true"], {})
    eventually(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    assert leaks.left_since(before) == []


def test_a_thread_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "LEAVE_TIMEOUT_S", 0.05)
    before = leaks.census()
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="lingering")
    thread.start()
    assert leaks.left_since(before) == ["thread lingering"]
    over.set()
    thread.join()
