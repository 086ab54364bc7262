"""What the record of a run has when its worker's death ended it: real workers under a real engine."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from orpheusd.blackbox import KEPT_LINES, LINE_LIMIT
from orpheusd.outcome import Outcome
from orpheusd.process.oom import OomKills
from tests.integration.engine_house import GRACE_S, TIMEOUT_S, House, in_house

TOLD = f"a run timed out and did not stop within {GRACE_S:g} s"


def texts(outcome: Outcome) -> list[str]:
    return [line["text"] for line in outcome.black_box["log"]]


async def killed(house: House, number: int) -> Outcome:
    """A run whose worker somebody sends this signal."""
    begun = house.line("in sleeps")
    ended = house.start("sleeps")
    await asyncio.wait_for(begun, TIMEOUT_S)
    [pid] = house.pids.values()
    os.kill(pid, number)
    return await asyncio.wait_for(ended, TIMEOUT_S)


def test_a_crash_is_told_with_its_signal_and_its_stack() -> None:
    # fault 2
    async def story(house: House) -> None:
        outcome = await house.run("crashes")
        assert (outcome.state, outcome.code, outcome.cause) == ("crashed", "worker-crashed", "signal 11 (SIGSEGV)")
        assert outcome.black_box["cause"] == outcome.cause and "in crashes" in outcome.black_box["stack"]
        assert texts(outcome) == ["in crashes"] and outcome.black_box["peak_rss_bytes"] > 1_000_000
        assert f"orpheusctl show {outcome.run_id}" in outcome.message
        assert not any(row["text"] == "in crashes" and row["run_id"] is None for row in house.logged)
        [first, *_] = [row for row in house.logged if row["stream"] == "stderr"]
        assert first["text"] == "Fatal Python error: Segmentation fault" and first["run_id"] == outcome.run_id

    in_house(story)


@pytest.mark.parametrize("status", [0, 7])
def test_an_exit_is_told_with_its_code(status: int) -> None:
    # faults 3, 4
    async def story(house: House) -> None:
        outcome = await house.run("exits", status=status)
        assert (outcome.state, outcome.cause) == ("crashed", f"exit {status}")
        assert outcome.black_box["stack"] == ""

    in_house(story)


@pytest.mark.parametrize(("number", "cause"), [
    (signal.SIGKILL, "signal 9 (SIGKILL), not sent by orpheusd"), (signal.SIGTERM, "signal 15 (SIGTERM)")])
def test_a_signal_that_somebody_else_sent_is_told_as_such(number: int, cause: str) -> None:
    # fault 1
    async def story(house: House) -> None:
        outcome = await killed(house, number)
        assert (outcome.state, outcome.cause) == ("crashed", cause)

    in_house(story)


def test_a_kill_while_the_kernel_counts_one_for_want_of_memory_is_out_of_memory(tmp_path: Path) -> None:
    # fault 7
    vmstat = tmp_path / "vmstat"
    vmstat.write_text("pgfault 1\noom_kill 3\nswap_ra 0\n")

    async def story(house: House) -> None:
        house.engine.processes.monitor.oom_kills = OomKills(vmstat)
        assert (await killed(house, signal.SIGKILL)).cause == "signal 9 (SIGKILL), not sent by orpheusd"
        vmstat.write_text("pgfault 1\noom_kill 4\nswap_ra 0\n")
        assert (await killed(house, signal.SIGKILL)).cause == "out of memory: killed by the kernel, signal 9 (SIGKILL)"

    in_house(story)


def test_a_worker_that_closes_its_channel_is_killed_for_that() -> None:
    # fault 25
    async def story(house: House) -> None:
        outcome = await house.run("closes_channel")
        assert (outcome.state, outcome.cause) == (
            "crashed", "signal 9 (SIGKILL), ended by orpheusd: it closed its channel")

    in_house(story)


def test_a_worker_that_breaks_the_protocol_is_killed_for_that() -> None:
    # fault 17
    async def story(house: House) -> None:
        outcome = await house.run("breaks_the_protocol")
        assert outcome.state == "crashed"
        assert outcome.cause.startswith("signal 9 (SIGKILL), ended by orpheusd: protocol violation: the peer sent a")

    in_house(story)


@pytest.mark.parametrize("do", ["waits_in_c", "catches_everything"])
def test_a_run_that_does_not_stop_leaves_its_stack(do: str) -> None:
    # fault 9
    async def story(house: House) -> None:
        outcome = await house.run(do, timeout_s=0.3)
        assert (outcome.state, outcome.cause) == ("timed-out", f"signal 6 (SIGABRT), ended by orpheusd: {TOLD}")
        assert f"in {do}" in outcome.black_box["stack"] and texts(outcome) == [f"in {do}"]
        assert f"`orpheusctl show {outcome.run_id}` shows where it was stuck" in outcome.message

    in_house(story)


@pytest.mark.parametrize("do", ["ignores_abort", "handles_abort"])
def test_a_worker_that_does_not_take_an_abort_is_killed_and_that_is_said(do: str) -> None:
    # fault 11
    async def story(house: House) -> None:
        outcome = await house.run(do, timeout_s=0.3)
        assert (outcome.state, outcome.cause) == ("timed-out", f"signal 9 (SIGKILL), ended by orpheusd: {TOLD}")
        assert outcome.black_box["stack"].startswith("(no stack:")

    in_house(story)


def test_the_other_runs_of_an_aborted_worker_crash_and_say_why() -> None:
    async def story(house: House) -> None:
        begun = house.line("in awaits")
        beside = house.start("awaits")
        await asyncio.wait_for(begun, TIMEOUT_S)
        outcome = await house.run("catches_everything", timeout_s=0.3)
        assert outcome.state == "timed-out"
        crashed = await asyncio.wait_for(beside, TIMEOUT_S)
        assert crashed.state == "crashed" and TOLD in crashed.message and TOLD in crashed.black_box["cause"]

    in_house(story, "stuck_async", concurrency=2)


def test_a_run_that_stops_when_told_to_has_its_traceback_and_no_box() -> None:
    async def story(house: House) -> None:
        outcome = await house.run("sleeps", timeout_s=0.3)
        assert (outcome.state, outcome.cause, outcome.black_box) == ("timed-out", "", {})
        assert "in sleeps" in outcome.error["traceback"] and len(house.pids) == 1

    in_house(story)


def test_the_last_lines_are_kept_and_no_more() -> None:
    async def story(house: House) -> None:
        outcome = await house.run("talks_and_exits", lines=60, width=1100)
        kept = texts(outcome)
        assert [text.partition(":")[0] for text in kept] == [f"line {number}" for number in range(10, 60)]
        assert len(kept) == KEPT_LINES and {len(text) for text in kept} == {LINE_LIMIT}
        assert sum(row["text"].startswith("line") for row in house.logged) == 60
        assert (await house.run("exits", status=3)).black_box["log"] == [{"stream": "stdout", "text": "in exits"}]

    in_house(story)


def test_the_most_memory_it_had_is_kept() -> None:
    async def story(house: House) -> None:
        box: dict[str, Any] = (await house.run("takes_memory", bytes=100_000_000)).black_box
        assert 100_000_000 < box["peak_rss_bytes"] < 200_000_000

    in_house(story)


def test_nothing_is_kept_of_workers_that_are_gone() -> None:
    async def story(house: House) -> None:
        for _ in range(3):
            await house.run("crashes")
        boxes = house.engine._relay.black_boxes
        assert not boxes._lines and not boxes._remains

    in_house(story)
