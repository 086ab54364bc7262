"""What is remembered of sessions: it survives in a real file, is bounded, and damage costs knowledge only."""

import asyncio
import logging
import sqlite3
import stat
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from orpheusd import remembered as module
from orpheusd.errors import OrpheusError
from orpheusd.remembered import Remembered, Seen
from tests.eventually import eventually

HOUR_S = 3600.0
Forgotten = list[tuple[str, str]]


@contextmanager
def remembered(path: Path, forget: Callable[[str, str], None] = lambda _agent, _id: None) -> Iterator[Remembered]:
    book = Remembered(path, forget)
    try:
        yield book
    finally:
        book.close(5.0)


def tell(path: Path, *facts: tuple[str, str, int | None], forget: Callable[[str, str], None] | None = None) -> None:
    """A daemon's life in which this happened: agent, session, runs finished; None when it ended."""
    async def life() -> None:
        with remembered(path, forget or (lambda _agent, _id: None)) as book:
            for agent, id, turns in facts:
                if turns is None:
                    book.ended(agent, id)
                else:
                    book.seen(agent, id, turns)
    run(life())


def run(life: Coroutine[Any, Any, None]) -> None:
    asyncio.run(life)


def loaded(path: Path, agent: str = "a", ttl_s: float = HOUR_S, most: int = 100) -> list[Seen]:
    async def life() -> list[Seen]:
        with remembered(path) as book:
            return book.load(agent, ttl_s, most)
    return asyncio.run(life())


def known(path: Path, agent: str = "a", ttl_s: float = HOUR_S, most: int = 100) -> list[tuple[str, int]]:
    return [(seen.id, seen.turns) for seen in loaded(path, agent, ttl_s, most)]


def age(path: Path, id: str, seconds: float) -> None:
    """The session was used that much earlier."""
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE sessions SET last_used = last_used - ? WHERE id = ?", (seconds, id))


def rows(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as database:
        return {id for (id,) in database.execute("SELECT id FROM sessions")}


def test_a_new_file_knows_nothing_and_is_private(tmp_path: Path) -> None:
    assert known(tmp_path / "sessions.db") == []
    assert stat.S_IMODE((tmp_path / "sessions.db").stat().st_mode) == 0o600


def test_what_was_seen_is_known_to_the_next_daemon(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, ("a", "s", 1), ("a", "s", 2), ("a", "t", 7), ("b", "s", 3))
    assert set(known(path)) == {("s", 2), ("t", 7)}
    assert known(path, "b") == [("s", 3)]
    assert known(path, "c") == []


def test_it_says_how_long_ago_least_recently_used_first(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, ("a", "young", 1), ("a", "old", 1), ("a", "middle", 1))
    age(path, "old", 200.0)
    age(path, "middle", 100.0)
    seen = loaded(path)
    assert [session.id for session in seen] == ["old", "middle", "young"]
    assert [session.idle_s for session in seen] == [pytest.approx(idle_s, abs=50.0) for idle_s in (200.0, 100.0, 0.0)]
    assert all(session.idle_s >= 0 for session in seen)


def test_of_too_many_the_latest_are_known(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, *(("a", f"s{number}", 1) for number in range(10)))
    for number in range(10):
        age(path, f"s{number}", 100.0 - number)
    assert [id for id, _ in known(path, most=3)] == ["s7", "s8", "s9"]


def test_what_has_expired_is_not_known_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, ("a", "old", 1), ("a", "young", 1), ("b", "old of another", 1))
    age(path, "old", 2 * HOUR_S)
    age(path, "old of another", 2 * HOUR_S)
    assert known(path, ttl_s=HOUR_S) == [("young", 1)]
    assert rows(path) == {"young", "old of another"}


def test_an_ended_session_is_forgotten_with_its_state(tmp_path: Path) -> None:
    path, forgotten = tmp_path / "sessions.db", Forgotten()
    tell(path, ("a", "s", 1), ("a", "t", 1))
    tell(path, ("a", "s", None), forget=lambda agent, session, _before: forgotten.append((agent, session)))
    assert known(path) == [("t", 1)]
    assert forgotten == [("a", "s")]


def test_the_last_word_about_a_session_counts(tmp_path: Path) -> None:
    path, forgotten = tmp_path / "sessions.db", Forgotten()
    tell(path, ("a", "over", 3), ("a", "over", None), ("a", "back", None), ("a", "back", 1),
         forget=lambda agent, session, _before: forgotten.append((agent, session)))
    assert known(path) == [("back", 1)]
    assert forgotten == [("a", "over")]


def test_a_forgotten_agent_has_no_sessions_not_even_those_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, ("a", "written", 1), ("b", "s", 1))

    async def life() -> None:
        with remembered(path) as book:
            book.seen("a", "pending", 1)
            book.forget_agent("a")
    run(life())
    assert known(path) == [] and known(path, "b") == [("s", 1)]


def test_a_change_is_on_the_disk_soon_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"

    async def life() -> None:
        with remembered(path) as book:
            book.seen("a", "s", 1)
            assert rows(path) == set()
            await asyncio.to_thread(eventually, lambda: rows(path))
    run(life())


def test_state_that_cannot_be_deleted_is_said_and_costs_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "sessions.db"

    def fail(_agent: str, _id: str, _before: float) -> None:
        raise PermissionError("no")
    tell(path, ("a", "s", 1))
    tell(path, ("a", "s", None), ("a", "t", 1), forget=fail)
    assert known(path) == [("t", 1)]
    assert "saved state of a session of a cannot be deleted" in caplog.text


@pytest.mark.parametrize("damage", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_damaged_file_is_put_aside(damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sessions.db"
    path.write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        assert known(path) == []
    [aside] = tmp_path.glob("sessions.db.damaged-*")
    assert aside.read_bytes() == damage
    assert str(aside) in caplog.text and "earlier sessions are not known" in caplog.text
    caplog.clear()  # the record holds the error, the error its frame, and that the connection
    tell(path, ("a", "s", 1))
    assert known(path) == [("s", 1)]


def test_damage_that_shows_while_in_use_costs_what_was_known_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "sessions.db"

    async def life() -> None:
        with remembered(path) as book:
            book.begun("a", "s", 0, "w-1")
            assert [seen.id for seen in book.load("a", HOUR_S, 100)] == ["s"]
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE sessions")
            book.begun("a", "t", 0, "w-1")
            assert [seen.id for seen in book.load("a", HOUR_S, 100)] == ["t"]
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE sessions")
            assert book.load("a", HOUR_S, 100) == []
            book.begun("b", "s", 0, "w-1")
    run(life())
    assert known(path, "b") == [("s", 0)]
    # the latest of two
    assert len(list(tmp_path.glob("sessions.db.damaged-*[0-9]"))) == 1
    assert caplog.text.count("earlier sessions are not known") == 2


def test_pages_that_are_damaged_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    tell(path, *(("a", f"s{number:04}", 1) for number in range(1000)))
    with path.open("r+b") as stream:
        stream.seek(2 * 4096)
        stream.write(b"\xff" * 4096 * 4)
    assert known(path, most=1000) == []
    tell(path, ("a", "new", 1))
    assert known(path) == [("new", 1)]


def test_what_the_disk_does_not_take_is_kept_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    # fault 47: a session must not be new after it was seen
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    path, forgotten = tmp_path / "sessions.db", Forgotten()
    tell(path, ("a", "over", 1))

    async def life() -> None:
        with remembered(path, lambda agent, session, _before: forgotten.append((agent, session))) as book:
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                # stands for a full disk, which a test below has: SQLite waits for a lock before it gives up
                book._connection.execute("PRAGMA busy_timeout = 1")
                other.execute("BEGIN IMMEDIATE")
                book.begun("a", "s", 0, "w-1")
                book.seen("a", "s", 1)
                book.ended("a", "over")
                await asyncio.to_thread(eventually, lambda: "cannot be written down now" in caplog.text)
                other.execute("ROLLBACK")
            await asyncio.to_thread(eventually, lambda: rows(path) == {"s"})
    run(life())
    assert known(path) == [("s", 1)] and forgotten == [("a", "over")]
    assert caplog.text.count("cannot be written down now") == 1


def test_who_asks_is_told_whether_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sessions.db"
    tell(path, ("a", "s", 1))

    async def life() -> None:
        with remembered(path) as book:
            book.ended("a", "s")
            assert await book.written() and rows(path) == set()
            book.seen("a", "t", 1)
            monkeypatch.setattr(module, "WRITTEN_S", 0.05)
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert not await book.written()
                other.execute("ROLLBACK")
            monkeypatch.setattr(module, "WRITTEN_S", 5.0)
            assert await book.written() and rows(path) == {"t"}
    run(life())


def test_a_disk_that_fails_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # fault 47: a sound file must not be given up for that
    path = tmp_path / "sessions.db"
    tell(path, ("a", "s", 1))

    def full(*_: object, **__: object) -> sqlite3.Connection:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error
    with monkeypatch.context() as patched:
        patched.setattr(module.sqlite3, "connect", full)
        with pytest.raises(OrpheusError, match=r"cannot open .*sessions\.db, where sessions are remembered: .*full"):
            known(path)
    assert known(path) == [("s", 1)]
