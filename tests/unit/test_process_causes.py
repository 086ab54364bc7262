"""Why a worker is dead, in words: who ended it, and what the kernel tells."""

from pathlib import Path

import pytest

from orpheusd.process.causes import MB, WHY_LIMIT, Cause, OutOfMemory
from orpheusd.process.oom import LATELY_S, LOOK_EVERY_S, OomKills


@pytest.mark.parametrize(("cause", "text"), [
    (Cause(0), "exit 0"),
    (Cause(7, "it was told to leave"), "exit 7"),
    (Cause(-11), "signal 11 (SIGSEGV)"),
    (Cause(-11, "a run timed out"), "signal 11 (SIGSEGV)"),
    (Cause(-6), "signal 6 (SIGABRT)"),
    (Cause(-6, "a run timed out"), "signal 6 (SIGABRT), ended by orpheusd: a run timed out"),
    (Cause(-9), "signal 9 (SIGKILL), not sent by orpheusd"),
    (Cause(-9, "it closed its channel"), "signal 9 (SIGKILL), ended by orpheusd: it closed its channel"),
    (Cause(-9, "", OutOfMemory("the kernel")), "out of memory: killed by the kernel, signal 9 (SIGKILL)"),
    (Cause(-9, "its memory is over the limit", OutOfMemory("orpheusd", 64 * MB, 70 * MB)),
     "out of memory: killed by orpheusd, limit 64 MB, peak 70 MB, signal 9 (SIGKILL)"),
    (Cause(0, "", OutOfMemory("orpheusd", 64 * MB, 70 * MB)), "exit 0"),
    (Cause(-60), "signal 60"),
    (Cause(None), "cause unknown"),
    (Cause(None, "its version was refused"), "cause unknown, ended by orpheusd: its version was refused"),
    (Cause(-9, "x" * 10_000), f"signal 9 (SIGKILL), ended by orpheusd: {'x' * WHY_LIMIT}"),
])
def test_a_cause_in_words(cause: Cause, text: str) -> None:
    assert str(cause) == text


def test_a_kill_of_the_kernel_is_recent_for_a_while(tmp_path: Path) -> None:
    # fault 7
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("drop_slab 0\noom_kill 7\n")
    kills = OomKills(vmstat)
    assert not kills.lately(100.0), "what was counted before is nobody's of ours"
    vmstat.write_text("drop_slab 0\noom_kill 8\n")
    kills.look(100.0 + LOOK_EVERY_S)
    assert kills.lately(100.0 + LOOK_EVERY_S + LATELY_S)
    assert not kills.lately(100.0 + LOOK_EVERY_S + LATELY_S + 0.1)


def test_a_look_too_early_costs_nothing(tmp_path: Path) -> None:
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("drop_slab 0\noom_kill 7\n")
    kills = OomKills(vmstat)
    kills.look(100.0)
    vmstat.unlink()
    vmstat.mkdir()
    kills.look(100.0 + LOOK_EVERY_S / 2)
    assert not kills.lately(101.0), "and where the kernel does not tell, nothing is told"


def test_the_kernel_here_tells() -> None:
    assert "\noom_kill " in Path("/proc/vmstat").read_text()
    assert not OomKills().lately(0.0)
