"""What agents print: kept in bounded files, found again by run and session, and heard by whoever follows."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from orpheusd import logs
from orpheusd.logs import AgentLogs, Row


def line(text: str, run_id: str | None = None, session_id: str | None = None) -> Row:
    return {"time": 1.5, "worker_id": "w-b-1", "run_id": run_id, "session_id": session_id, "stream": "stdout",
            "text": text}


def texts(rows: list[Row]) -> list[str]:
    return [row["text"] for row in rows]


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[AgentLogs]:
    agents = AgentLogs(folder)
    try:
        yield agents
    finally:
        agents.close(5.0)


def run(life: Coroutine[Any, Any, None]) -> None:
    asyncio.run(life)


def test_lines_are_read_as_they_were_said(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as agents:
            said = [line("one"), line("two", "r-1", "s"), line("drei: \N{SNOWMAN} \x00")]
            for row in said:
                agents.append("a", row)
            assert await agents.read("a", 100, None, None) == said
            assert await agents.read("other", 100, None, None) == []
    run(life())


def test_the_latest_are_read_oldest_first(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as agents:
            for number in range(50):
                agents.append("a", line(str(number)))
            assert texts(await agents.read("a", 3, None, None)) == ["47", "48", "49"]
    run(life())


@pytest.mark.parametrize(("run_id", "session_id", "expected"), [
    ("r-1", None, ["one"]),
    (None, "s", ["one", "two"]),
    ("r-2", "s", ["two"]),
    ("r-2", "t", []),
    ("r-9", None, []),
])
def test_they_are_found_by_run_and_session(
    run_id: str | None, session_id: str | None, expected: list[str], tmp_path: Path,
) -> None:  # fmt: skip
    async def life() -> None:
        async with opened(tmp_path) as agents:
            for row in (line("one", "r-1", "s"), line("two", "r-2", "s"), line("three", "r-3", "t"), line("none")):
                agents.append("a", row)
            for number in range(100):
                agents.append("a", line(str(number)))
            assert texts(await agents.read("a", 5, run_id, session_id)) == expected
    run(life())

def test_what_was_said_outlives_the_daemon(tmp_path: Path) -> None:
    async def first() -> None:
        async with opened(tmp_path) as agents:
            agents.append("a", line("one"))

    async def second() -> None:
        async with opened(tmp_path) as agents:
            agents.append("a", line("two"))
            assert texts(await agents.read("a", 100, None, None)) == ["one", "two"]
    run(first())
    run(second())


def test_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as agents:
            agents.append("a", line("one"))
            assert await agents.read("a", 100, None, None)
            with (tmp_path / "a" / "log.jsonl").open("ab") as stream:
                stream.write(orjson.dumps(line("cut"))[:20] + b"\n[1]\n")
            agents.append("a", line("two"))
            assert texts(await agents.read("a", 100, None, None)) == ["one", "two"]
    run(life())


def test_two_files_of_a_bounded_size_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_LIMIT_BYTES", 10_000)
    batch = 20

    async def life() -> None:
        async with opened(tmp_path) as agents:
            for number in range(1000):
                agents.append("a", line(str(number)))
                if number % batch == 0:
                    await agents.read("a", 1, None, None)  # a batch is written
            rows = texts(await agents.read("a", 1000, None, None))
            assert rows == [str(number) for number in range(1000 - len(rows), 1000)]
            assert 100 < len(rows) < 1000
    run(life())
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == ["log.1.jsonl", "log.jsonl"]
    longest = len(orjson.dumps(line("999"))) + 1
    assert all(file.stat().st_size <= 10_000 + batch * longest for file in files)


def test_an_agent_that_floods_loses_lines_not_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BACKLOG_LINES", 10)

    async def life() -> None:
        async with opened(tmp_path) as agents:
            for number in range(25):
                agents.append("a", line(str(number)))
            rows = await agents.read("a", 100, None, None)
            assert texts(rows) == [*map(str, range(10)), "(15 lines were dropped here)"]
            agents.append("a", line("again"))
            assert texts(await agents.read("a", 1, None, None)) == ["again"]
    run(life())


def test_lines_that_are_being_written_count_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BACKLOG_LINES", 10)
    go_on = threading.Event()

    async def life() -> None:
        async with opened(tmp_path) as agents:
            write = agents._write_piece
            monkeypatch.setattr(agents, "_write_piece", lambda piece: go_on.wait(5) and write(piece))
            for number in range(7):
                agents.append("a", line(str(number)))
            reading = asyncio.ensure_future(agents.read("a", 100, None, None))
            await asyncio.sleep(0)  # these go to the disk, which takes its time
            for number in range(7, 25):
                agents.append("a", line(str(number)))
            go_on.set()
            await reading
            rows = await agents.read("a", 100, None, None)
            assert texts(rows) == [*map(str, range(10)), "(15 lines were dropped here)"]
    run(life())


def test_long_lines_are_held_by_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BACKLOG_BYTES", 1000)

    async def life() -> None:
        async with opened(tmp_path) as agents:
            for number in range(5):
                agents.append("a", line(f"{number}" * 400))
            rows = texts(await agents.read("a", 9, None, None))
            assert [row[0] for row in rows] == ["0", "1", "2", "("]
            agents.append("a", line("there is room again"))
            assert texts(await agents.read("a", 1, None, None)) == ["there is room again"]
    run(life())


def test_lines_that_wait_for_a_disk_that_hangs_are_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads: to open it for writing waits, as a disk does that hangs."""
    monkeypatch.setattr(logs, "BACKLOG_LINES", 10)
    file = tmp_path / "a" / "log.jsonl"
    file.parent.mkdir()
    os.mkfifo(file)

    async def life() -> None:
        async with opened(tmp_path) as agents:
            handed_over = []
            for number in range(10):
                for part in range(3):
                    agents.append("a", line(f"{number}.{part}"))
                handed_over.append(asyncio.ensure_future(agents.forget("b")))
                await asyncio.sleep(0)
            pipe = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
            try:
                await asyncio.wait_for(asyncio.gather(*handed_over), 10)
                written = os.read(pipe, 1 << 16).splitlines()
            finally:
                os.close(pipe)
            first = [f"{number}.{part}" for number in range(4) for part in range(3)][:10]
            assert [orjson.loads(each)["text"] for each in written] == [*first, "(2 lines were dropped here)"]
            file.unlink()
            agents.append("a", line("again"))
            assert texts(await agents.read("a", 9, None, None)) == ["again", "(18 lines were dropped here)"]
    run(life())


def test_a_follower_hears_every_line_of_its_agent_until_it_goes(tmp_path: Path) -> None:
    async def life() -> None:
        heard: list[Row] = []
        others: list[Row] = []
        async with opened(tmp_path) as agents:
            agents.append("a", line("before"))
            unfollow = agents.follow("a", heard.append)
            agents.follow("a", others.append)
            agents.append("a", line("one"))
            agents.append("b", line("another agent's"))
            unfollow()
            unfollow()
            agents.append("a", line("after"))
        assert texts(heard) == ["one"]
        assert texts(others) == ["one", "after"]
    run(life())


def test_who_reads_and_follows_misses_nothing_and_hears_nothing_twice(tmp_path: Path) -> None:
    async def life() -> None:
        heard: list[Row] = []
        async with opened(tmp_path) as agents:
            agents.append("a", line("before"))
            tail = asyncio.ensure_future(agents.tail("a", 100, None, None, heard.append))
            await asyncio.sleep(0)
            agents.append("a", line("while it is read"))
            unfollow = await tail
            agents.append("a", line("after"))
            unfollow()
            agents.append("a", line("not any more"))
        assert texts(heard) == ["before", "while it is read", "after"]
    run(life())


def test_who_cannot_be_read_to_does_not_follow(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as agents:
            with pytest.raises(ValueError, match="negative"):
                await agents.tail("a", -1, None, None, lambda _row: None)
            assert agents._followers == {}
    run(life())


def test_a_follower_hears_what_is_too_much_to_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BACKLOG_LINES", 1)

    async def life() -> None:
        heard: list[Row] = []
        async with opened(tmp_path) as agents:
            agents.follow("a", heard.append)
            for text in ("one", "two", "three"):
                agents.append("a", line(text))
        assert texts(heard) == ["one", "two", "three"]
    run(life())


def test_a_forgotten_agent_leaves_no_lines(tmp_path: Path) -> None:
    async def life() -> None:
        async with opened(tmp_path) as agents:
            agents.append("a", line("one"))
            agents.append("b", line("kept"))
            await agents.forget("a")
            assert await agents.read("a", 100, None, None) == []
            assert texts(await agents.read("b", 100, None, None)) == ["kept"]
            await agents.forget("never")
    run(life())
    assert list(tmp_path.glob("a/*")) == []


def test_a_disk_that_refuses_costs_lines_and_says_so_later(tmp_path: Path) -> None:
    async def life() -> None:
        (tmp_path / "a").write_text("a file where the folder should be")
        async with opened(tmp_path) as agents:
            agents.append("a", line("lost"))
            assert await agents.read("a", 100, None, None) == []
            (tmp_path / "a").unlink()
            agents.append("a", line("kept"))
            assert texts(await agents.read("a", 100, None, None)) == ["kept", "(1 lines were dropped here)"]
    run(life())
