"""Fault 49: a log that was cut, changed or replaced is found out, put aside as it is, and replaced by a new one.

Every case ends in one of two ways: the damage is reported, or nothing is missing and nothing is different.
"""

import hashlib
import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orpheusd.runlog import recovery, upkeep, verify
from orpheusd.runlog.queries import RunQuery
from orpheusd.runlog.rows import RunDetail
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually
from tests.runlog_kit import Log, ended, fill, queued, started, whole_run

RUNS = 120
UNCHECKED = Settings(check_budget_s=0.0, reserve_bytes=4096)
Damage = Callable[[Path], None]


class Snapshot:
    """The files of one log: `crashed` as a killed daemon leaves them, `closed` as one that ended, `older` before.

    `twin` is the older one, gone on for longer than ours, with other runs.
    """

    def __init__(self, root: Path) -> None:
        self.crashed, self.closed, self.older, self.twin, self.other = (
            root / name for name in ("crashed", "closed", "old", "twin", "other"))
        live = root / "live"
        for folder in (live, self.other):
            folder.mkdir()
        with Log(live) as log:
            for number in range(RUNS):
                whole_run(log.log, f"r-{number}", result=b"%d" % number * 400)
                log.settle(number + 1)
                if number == RUNS // 2:
                    shutil.copytree(live, self.older)
            assert log.log.queued(queued("r-waiting"))
            log.log.queued(queued("r-going"))
            log.log.started(started("r-going"))
            log.written()
            shutil.copytree(live, self.crashed)
        shutil.copytree(live, self.closed)
        fill(self.other, RUNS + 10)
        shutil.copytree(self.older, self.twin)
        with Log(self.twin) as log:
            for number in range(RUNS):
                whole_run(log.log, f"r-twin-{number}")
                log.settle(number + 1)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    return Snapshot(tmp_path_factory.mktemp("logs"))


def contents(log: Log) -> dict[str, RunDetail]:
    runs = log.queries.find(RunQuery(limit=1000))
    return {run.run_id: log.show(run.run_id) for run in runs}


def fingerprints(folder: Path) -> dict[str, str]:
    """What must still be there after a quarantine, by kind of file."""
    kinds = {"runs.db": "db", "runs.db-wal": "wal", "runs.db.mark": "mark"}
    return {kinds[file.name]: hashlib.sha256(file.read_bytes()).hexdigest()
            for file in folder.iterdir() if file.name in kinds}


def outcome(folder: Path) -> str:
    """Open the log, hold it to the rule, and say how it was: `sound`, or the reason for which it was put aside."""
    before = fingerprints(folder)
    with Log(folder) as log:
        health = log.log.health()
        if health["damage"] is None:
            assert health["checked"] == "whole"
            runs = contents(log)
            assert len(runs) == RUNS + 2 and not any(detail.damaged for detail in runs.values())
            for number in range(RUNS):
                assert runs[f"r-{number}"].result == b"%d" % number * 400
            assert [left.run.run_id for left in log.log.unfinished()] == ["r-waiting", "r-going"]
            return "sound"
        assert log.queries.find(RunQuery()) == [] and log.log.unfinished() == []
        kept = folder / health["damage"]["kept_as"]
        assert health["damaged_copies"] == [kept.name]
        names = {"db": kept.name, "wal": f"{kept.name}-wal", "mark": f"{kept.name}.mark"}
        assert {kind: hashlib.sha256((folder / names[kind]).read_bytes()).hexdigest() for kind in before} == before
        whole_run(log.log, "r-new")
        log.settle(1)
    with Log(folder) as log:
        assert log.log.health()["damage"] is None and log.log.health()["rows"] == 1
        assert log.log.health()["damaged_copies"] == [kept.name]
    return str(health["damage"]["reason"])


def truncate(name: str, part: float, less_bytes: int = 0) -> Damage:
    def apply(folder: Path) -> None:
        file = folder / name
        with file.open("r+b") as stream:
            stream.truncate(max(0, int(file.stat().st_size * part) - less_bytes))

    return apply


def unlink(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def flip(name: str, seed: int, count: int = 64) -> Damage:
    """Change `count` random bytes."""
    def apply(folder: Path) -> None:
        raw = bytearray((folder / name).read_bytes())
        chance = random.Random(seed)
        for _ in range(count):
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(raw)

    return apply


def sql(*statements: str) -> Damage:
    """Changes made with SQLite itself: the database is in perfect order afterwards."""
    def apply(folder: Path) -> None:
        connection = sqlite3.connect(folder / "runs.db", isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    return apply


def zero_page(number: int) -> Damage:
    def apply(folder: Path) -> None:
        with (folder / "runs.db").open("r+b") as stream:
            stream.seek(number * 4096)
            stream.write(bytes(4096))

    return apply


def swap(folder_name: str, *names: str) -> Damage:
    """Put another log's files in the place of ours."""
    def apply(folder: Path) -> None:
        for name in names:
            (folder / name).unlink(missing_ok=True)
            there = folder.parent / folder_name / name
            if there.exists():
                shutil.copy(there, folder / name)

    return apply


DROP_TRIGGERS = ("DROP TRIGGER runs_end_once", "DROP TRIGGER runs_stay_until_ended")

#: What is done to which shape of log, and what is said about it. "sound" where nothing is lost; None: either.
CASES: dict[str, tuple[str, Damage, str | None]] = {
    "nothing, crashed": ("crashed", lambda folder: None, "sound"),
    "nothing, closed": ("closed", lambda folder: None, "sound"),
    "the WAL deleted": ("crashed", unlink("runs.db-wal"), "its tables|was cut"),
    "the WAL emptied": ("crashed", truncate("runs.db-wal", 0), "its tables|was cut"),
    "half of the WAL": ("crashed", truncate("runs.db-wal", 0.5), "was cut"),
    "the WAL less a byte": ("crashed", truncate("runs.db-wal", 1, 1), "was cut"),
    "the WAL less a frame": ("crashed", truncate("runs.db-wal", 1, 4096 + 24), "was cut"),
    "a bit of the WAL": ("crashed", flip("runs.db-wal", 1, 1), "was cut|its tables"),
    "bits of the WAL": ("crashed", flip("runs.db-wal", 2), "was cut|its tables"),
    "the shared memory deleted": ("crashed", unlink("runs.db-shm"), "sound"),
    "bits of the shared memory": ("crashed", flip("runs.db-shm", 3), "sound"),
    "an older WAL": ("crashed", swap("old", "runs.db-wal"), "was cut"),
    "an older log": ("crashed", swap("old", "runs.db", "runs.db-wal"), r"was cut.* \(61 runs are missing\)"),
    "an older log, closed": ("closed", swap("old", "runs.db", "runs.db-wal"), "was cut"),
    "the same log with another history": ("closed", swap("twin", "runs.db"), "is not the one its high-water mark"),
    "another log": ("closed", swap("other", "runs.db"), "another log"),
    "the mark of another log": ("closed", swap("other", "runs.db.mark"), "another log"),
    "an older mark": ("closed", swap("old", "runs.db.mark"), "sound"),
    "the database deleted": ("closed", unlink("runs.db"), "the database is missing"),
    "the database deleted, crashed": ("crashed", unlink("runs.db"), "the database is missing"),
    "the database emptied": ("closed", truncate("runs.db", 0), "its tables"),
    "half of the database": ("closed", truncate("runs.db", 0.5), "SQLite"),
    "the database less a page": ("closed", truncate("runs.db", 1, 4096), "SQLite"),
    "the database less a byte": ("closed", truncate("runs.db", 1, 1), "SQLite|not as it was written"),
    "the first page zeroed": ("closed", zero_page(0), "SQLite"),
    "a page zeroed": ("closed", zero_page(7), "SQLite|chain|not as it was written|holds"),
    "noise instead of a database": ("closed", flip("runs.db", 4, 200_000), "SQLite"),
    "bits of the database": ("closed", flip("runs.db", 5), ""),
    "more bits of the database": ("closed", flip("runs.db", 6), ""),
    "one bit": ("closed", flip("runs.db", 7, 1), None),
    "another bit": ("closed", flip("runs.db", 8, 1), None),
    "the mark deleted": ("closed", unlink("runs.db.mark"), "mark is missing"),
    "the mark emptied": ("closed", truncate("runs.db.mark", 0), "mark is unreadable"),
    "bits of the mark": ("closed", flip("runs.db.mark", 9, 1000), "mark is unreadable"),
    "a run deleted": ("closed", sql("DELETE FROM runs WHERE run_id = 'r-7'"), "holds 121 runs where .* left 122"),
    "a run added": ("closed", sql(
        "CREATE TEMP TABLE forged AS SELECT * FROM runs WHERE seq = 1",
        "UPDATE forged SET seq = 100, run_id = 'r-forged'",
        "DELETE FROM runs WHERE seq = 100",
        "INSERT INTO runs SELECT * FROM forged"), "not as it was written"),
    "a run changed": ("closed", sql("UPDATE runs SET turn = 99 WHERE run_id = 'r-going'"), "not as it was written"),
    "the triggers dropped": ("closed", sql(*DROP_TRIGGERS), "its tables"),
    "all runs deleted": ("closed", sql("DELETE FROM runs WHERE ended_at IS NOT NULL"), "holds 2 runs"),
    "the chain rewound": ("closed", sql("UPDATE chain SET commit_no = commit_no - 1024 WHERE commit_no > 100"),
                          "chain|cut"),
}  # fmt: skip


@pytest.mark.parametrize(("shape", "damage", "expected"), CASES.values(), ids=CASES.keys())
def test_damage_is_found_or_there_is_none(
    snapshot: Snapshot, shape: str, damage: Damage, expected: str | None
) -> None:
    # fault 49
    folder = snapshot.crashed.parent / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(getattr(snapshot, shape), folder)
    damage(folder)
    said = outcome(folder)
    if expected == "sound":
        assert said == "sound"
    elif expected is not None:
        assert said != "sound" and re.search(expected, said), said


@pytest.mark.slow
@pytest.mark.deadline(900)
@pytest.mark.parametrize("shape", ["crashed", "closed"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_flips_anywhere(snapshot: Snapshot, tmp_path: Path, shape: str, count: int) -> None:
    # fault 49, the long form
    for seed in range(100):
        name = "runs.db" if shape == "closed" or seed % 2 else "runs.db-wal"
        folder = tmp_path / f"{seed}"
        shutil.copytree(getattr(snapshot, shape), folder)
        flip(name, seed, count)(folder)
        said = outcome(folder)
        # A few bits may hit what nothing refers to, and a WAL may cover all of the database.
        assert said != "sound" or count < 64 or (shape == "crashed" and name == "runs.db"), f"seed {seed}"


def test_a_torn_slot_of_the_mark_is_mended_and_mentioned(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    raw = bytearray((tmp_path / "runs.db.mark").read_bytes())
    raw[50] ^= 1
    (tmp_path / "runs.db.mark").write_bytes(raw)
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is None and log.log.health()["rows"] == 20
        assert "mark was unreadable" in log.log.health()["note"]
    with Log(tmp_path) as log:
        assert log.log.health()["note"] == ""


def test_a_log_whose_making_was_interrupted_is_made_again(tmp_path: Path) -> None:
    fill(tmp_path, 0)
    for interrupted in (unlink("runs.db"), truncate("runs.db", 0)):
        interrupted(tmp_path)
        with Log(tmp_path) as log:
            assert log.log.health()["damage"] is None
    assert recovery.damaged_copies(tmp_path / "runs.db") == []


def test_damaged_logs_are_kept_apart_and_their_number_is_bounded(tmp_path: Path) -> None:
    kept: list[str] = []
    for _ in range(recovery.KEPT_DAMAGED + 3):
        fill(tmp_path, 1)
        unlink("runs.db.mark")(tmp_path)
        with Log(tmp_path) as log:
            kept.append(log.log.health()["damage"]["kept_as"])
    assert len(set(kept)) == len(kept)
    assert recovery.damaged_copies(tmp_path / "runs.db") == kept[3:]
    assert not any(file.name.startswith(kept[0] + suffix) for file in tmp_path.iterdir() for suffix in ("-", ".m"))


def test_a_clock_set_back_does_not_make_the_newest_damaged_log_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fault 51
    kept: list[str] = []
    for year in (2031, 2001):
        monkeypatch.setattr(recovery.time, "gmtime", lambda year=year: (year, 1, 2, 3, 4, 5, 0, 2, 0))
        fill(tmp_path, 1)
        unlink("runs.db.mark")(tmp_path)
        with Log(tmp_path) as log:
            kept.append(log.log.health()["damage"]["kept_as"])
    assert recovery.damaged_copies(tmp_path / "runs.db") == kept


def test_a_log_too_large_to_check_at_start_says_so_and_is_checked_by_verify(tmp_path: Path) -> None:
    fill(tmp_path, 300, at_a_time=100)
    with Log(tmp_path, UNCHECKED) as log:
        assert log.log.health()["checked"] == "newest runs"
        whole_run(log.log, "r-new")
        log.settle(1)
        # In use, from another process.
        done = subprocess.run(
            [sys.executable, "-m", "orpheusd.runlog.verify", str(log.path)], stdout=subprocess.PIPE, timeout=60,
            check=False)
        assert (done.returncode, json.loads(done.stdout)) == (0, {"whole": True, "problem": "", "rows": 301})
    # The oldest run, which a start that has no time does not look at.
    sql(*DROP_TRIGGERS, "UPDATE runs SET turn = 99 WHERE seq = 1")(tmp_path)
    found = verify.verify(tmp_path / "runs.db")
    assert "its tables" in found.problem
    assert verify.main([str(tmp_path / "runs.db")]) == 1
    assert verify.main([str(tmp_path / "none.db")]) == verify.main([]) == 2


def test_damage_that_shows_while_in_use_stops_the_log_and_condemns_it(tmp_path: Path) -> None:
    fill(tmp_path, 300, at_a_time=100)
    connection = sqlite3.connect(tmp_path / "runs.db")
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'runs_by_agent'").fetchall()
    connection.close()
    zero_page(page - 1)(tmp_path)
    with Log(tmp_path, UNCHECKED) as log:
        assert log.log.health()["damage"] is None
        whole_run(log.log, "r-new")
        eventually(lambda: log.failures, what="the failure to be told")
        assert "malformed" in log.failures[0] and log.acknowledged == []
        assert log.log.health()["state"] == "failed" and not log.log.accepting
        log.log.ended(ended("r-new"))  # harmless
    with Log(tmp_path, UNCHECKED) as log:
        assert "while it was in use" in log.log.health()["damage"]["reason"]


@pytest.mark.parametrize("name", ["runs.db", "runs.db-wal", "runs.db.mark"])
def test_a_file_deleted_while_in_use_is_noticed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOOK_S", 0.01)
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
        (tmp_path / name).unlink()
        whole_run(log.log, "r-2")
        eventually(lambda: log.failures, what="the failure to be told")
        assert "deleted or replaced" in log.failures[0]
    with Log(tmp_path) as log:
        assert log.log.health()["damage"] is not None


def test_another_writer_is_noticed_before_it_is_overwritten(tmp_path: Path) -> None:
    # fault 56, should the lock on the state directory ever fail
    with Log(tmp_path) as log:
        whole_run(log.log, "r-1")
        log.settle(1)
        connection = sqlite3.connect(log.path)
        with connection:
            connection.execute("UPDATE chain SET commit_no = commit_no + 1024 WHERE commit_no < 0")
        connection.close()
        whole_run(log.log, "r-2")
        eventually(lambda: log.failures, what="the failure to be told")
        assert "somebody else" in log.failures[0] and log.acknowledged == ["r-1"]


def test_a_damaged_run_is_shown_as_one(tmp_path: Path) -> None:
    fill(tmp_path, 300, at_a_time=100)
    connection = sqlite3.connect(tmp_path / "runs.db")
    schema = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'runs_end_once'").fetchone()[0]
    with connection:
        connection.execute("DROP TRIGGER runs_end_once")
        connection.execute("UPDATE runs SET result = x'00' WHERE run_id = 'r-3'")
        connection.execute(schema)
    connection.close()
    with Log(tmp_path, UNCHECKED) as log:
        assert log.show("r-3").damaged and not log.show("r-4").damaged
