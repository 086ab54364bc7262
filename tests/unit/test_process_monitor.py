"""Samples of real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from orpheusd.process.causes import MB
from orpheusd.process.monitor import Monitor, free_mb
from tests.eventually import eventually

#: Holds 64 MiB, two more threads and a child, burns processor time, and says when it is so far.
BUSY = """
import subprocess, sys, threading
held = bytearray(64 * 1024 * 1024)
child = subprocess.Popen(["sleep", "60"])
for _ in range(2): threading.Thread(target=threading.Event().wait, daemon=True).start()
print("so far", flush=True)
try:
    while True: sum(range(1000))
finally:
    child.kill()
"""


@pytest.fixture
def busy() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-S", "-c", BUSY], stdout=subprocess.PIPE, process_group=0)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"so far\n"
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_a_sample_tells_what_a_process_costs(busy: "subprocess.Popen[bytes]") -> None:
    monitor = Monitor()
    monitor.register("w-1", busy.pid)
    assert monitor.latest("w-1") is None
    assert monitor.sample_next(10.0) == "w-1"
    first = monitor.latest("w-1")
    assert first is not None
    assert 64 * 1024 * 1024 < first.rss_bytes < 200 * 1024 * 1024
    assert (first.cpu_percent, first.children, first.threads) == (0.0, 1, 3)

    def burnt() -> bool:
        monitor.sample_next(11.0)
        sample = monitor.latest("w-1")
        return sample is not None and sample.cpu_percent > 5

    eventually(burnt)
    assert monitor.peak_rss_bytes("w-1") >= first.rss_bytes


def test_one_process_a_call_and_each_in_turn(busy: "subprocess.Popen[bytes]") -> None:
    monitor = Monitor()
    assert monitor.sample_next(0.0) is None
    for name in ("a", "b", "c"):
        monitor.register(name, os.getpid())
    assert [monitor.sample_next(float(n)) for n in range(4)] == ["a", "b", "c", "a"]
    monitor.forget("b")
    monitor.forget("nobody")
    monitor.register("d", busy.pid)
    assert [monitor.sample_next(9.0) for _ in range(3)] == ["c", "a", "d"]
    assert monitor.latest("b") is None


@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "reaped"])
def test_the_dead_have_no_sample_and_keep_their_peak(reaped: bool) -> None:
    process = subprocess.Popen(["sleep", "60"])
    monitor = Monitor()
    monitor.register("w", process.pid)
    monitor.sample_next(1.0)
    peak = monitor.peak_rss_bytes("w")
    assert peak > 0
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        process.wait()
    assert monitor.sample_next(2.0) == "w"
    assert monitor.latest("w") is None
    assert monitor.peak_rss_bytes("w") == peak
    process.wait()


def test_who_is_gone_before_registration_is_no_error() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    monitor = Monitor()
    monitor.register("w", process.pid)
    assert monitor.sample_next(1.0) is None
    assert monitor.latest("w") is None
    assert monitor.peak_rss_bytes("w") == 0


def test_the_host_has_memory() -> None:
    assert 0 < free_mb() * MB < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
