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

from orpheusd.remembered import Remembered
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


def known(path: Path, agent: str = "a", ttl_s: float = HOUR_S, most: int = 100) -> list[tuple[str, int]]:
    with remembered(path) as book:
        return [(seen.id, seen.turns) for seen in book.load(agent, ttl_s, most)]


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
    with remembered(path) as book:
        seen = book.load("a", HOUR_S, 100)
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


def test_a_table_that_has_gone_costs_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sessions.db"

    async def life() -> None:
        with remembered(path) as book:
            with closing(sqlite3.connect(path)) as database, database:
                database.execute("DROP TABLE sessions")
            book.seen("a", "s", 1)
            book.forget_agent("a")
            book.seen("a", "t", 1)
    run(life())
    eventually(lambda: "cannot be written down" in caplog.text)
    assert "the sessions of a cannot be forgotten" in caplog.text
