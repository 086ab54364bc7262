"""Questions to the run log: filters, pages, counts, limits."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.runlog import queries, schema
from orpheusd.runlog.queries import RunQueries, RunQuery
from tests.runlog_kit import Log, ended, queued, started, whole_run

#: Twelve runs, two agents in turn, three sessions in turn, every fourth failed, the last two not over.
COUNT = 12


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> RunQueries:
    """Over a log that nobody writes any more."""
    with Log(tmp_path_factory.mktemp("log")) as log:
        for number in range(COUNT):
            run_id = f"r-{number}"
            assert log.log.queued(queued(
                run_id, agent=f"agent-{number % 2}", session_id=None if number % 3 == 2 else f"s-{number % 3}",
                source="ctl" if number == 5 else "http", queued_at=1000.0 + number))
            if number < COUNT - 2:
                log.log.started(started(run_id))
                failed = number % 4 == 3
                log.log.ended(ended(run_id, state="failed" if failed else "completed"))
        log.settle(COUNT - 2)
        log.written()
    return log.queries


def found(asked: RunQueries, query: RunQuery) -> list[int]:
    return [int(run.run_id[2:]) for run in asked.find(query)]


@pytest.mark.parametrize(("query", "expected"), [
    (RunQuery(), list(range(11, -1, -1))),
    (RunQuery(limit=3), [11, 10, 9]),
    (RunQuery(limit=0), []),
    (RunQuery(limit=-1), []),
    (RunQuery(agent="agent-1"), [11, 9, 7, 5, 3, 1]),
    (RunQuery(agent="agent-1", limit=2), [11, 9]),
    (RunQuery(agent="agent-0", state="completed"), [8, 6, 4, 2, 0]),
    (RunQuery(agent="nobody"), []),
    (RunQuery(state="failed"), [7, 3]),
    (RunQuery(state="queued"), [11, 10]),
    (RunQuery(state="nonsense"), []),
    (RunQuery(session_id="s-0"), [9, 6, 3, 0]),
    (RunQuery(session_id="s-1", agent="agent-0"), [10, 4]),
    (RunQuery(source="ctl"), [5]),
    (RunQuery(since=1009.0), [11, 10, 9]),
    (RunQuery(until=1002.0), [1, 0]),
    (RunQuery(since=1002.0, until=1004.0), [3, 2]),
    (RunQuery(since=1e300), []),
    (RunQuery(until=-1e300), []),
    (RunQuery(before_seq=2**80), list(range(11, -1, -1))),
    (RunQuery(agent="\ud800"), []),
    (RunQuery(agent="' OR 1=1 --"), []),
], ids=str)  # fmt: skip
def test_filters(asked: RunQueries, query: RunQuery, expected: list[int]) -> None:
    assert found(asked, query) == expected


def test_pages_meet_and_do_not_overlap(asked: RunQueries) -> None:
    pages: list[int] = []
    query = RunQuery(limit=5)
    while runs := asked.find(query):
        pages += [int(run.run_id[2:]) for run in runs]
        query = query._replace(before_seq=runs[-1].seq)
    assert pages == list(range(11, -1, -1))


def test_a_listing_has_no_payloads_but_says_what_there_is(asked: RunQueries) -> None:
    run = asked.find(RunQuery(state="completed", limit=1))[0]
    assert (run.input_bytes, run.result_bytes) == (18, 10)
    assert not run.input_truncated and not run.result_truncated


def test_an_unknown_run_is_none(asked: RunQueries) -> None:
    assert asked.show("r-unknown") is None
    assert asked.show("\ud800") is None


def test_many_threads_may_ask_at_once(asked: RunQueries) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(map(tuple, pool.map(lambda _: found(asked, RunQuery()), range(50))))) == 1


def test_a_question_has_a_deadline(asked: RunQueries, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries, "_STEPS_BETWEEN_LOOKS", 1)
    with pytest.raises(OrpheusError, match="narrow the question") as refused:
        RunQueries(asked._path, deadline_s=0.0).find(RunQuery())
    assert refused.value.code == "timed-out"


def test_no_log_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OrpheusError, match=r"cannot read the run log .*runs\.db") as refused:
        RunQueries(tmp_path / "runs.db").find(RunQuery())
    assert refused.value.code == "internal"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("query", "index"), [
    (RunQuery(agent="agent-1"), "runs_by_agent"),
    (RunQuery(session_id="s-0"), "runs_by_session"),
    (RunQuery(state="failed"), "runs_by_state"),
])  # fmt: skip
def test_an_index_answers_in_order(asked: RunQueries, query: RunQuery, index: str) -> None:
    terms, values = queries._terms(query)
    connection = schema.connect_reader(asked._path)
    plan = [row[3] for row in connection.execute(
        f"EXPLAIN QUERY PLAN SELECT * FROM runs WHERE {' AND '.join(terms)} ORDER BY seq DESC LIMIT 5", values)]
    connection.close()
    assert len(plan) == 1 and index in plan[0], plan


def test_a_listing_goes_on_while_the_log_is_written(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        reader = sqlite3.connect(log.path, isolation_level=None)
        whole_run(log.log, "r-1")
        log.settle(1)
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        whole_run(log.log, "r-2")
        log.settle(2)
        assert reader.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        assert len(log.queries.find(RunQuery())) == 2
        reader.close()
