"""Who waits for the disk is told once: that it has the end of a run, or that it never will."""

import asyncio

from orpheusd.commits import Commits


def test_each_is_told_once_of_its_own_run() -> None:
    commits, told = Commits(), list[tuple[str, bool]]()
    for name, run_id in (("a", "r-1"), ("b", "r-1"), ("c", "r-2")):
        commits.when(run_id, lambda committed, name=name: told.append((name, committed)))  # type: ignore[misc]
    commits.committed(["r-0", "r-1"])
    assert told == [("a", True), ("b", True)]
    commits.committed(["r-1"])
    commits.never("r-2")
    commits.committed(["r-2"])
    assert told == [("a", True), ("b", True), ("c", False)]


def test_who_forgets_is_not_told() -> None:
    commits, told = Commits(), list[bool]()
    commits.when("r-1", told.append)
    commits.forget("r-1", told.append)
    commits.forget("r-1", told.append)
    commits.forget("r-2", told.append)
    commits.committed(["r-1"])
    assert told == [] and asyncio.run(commits.quiet(0.01))


def test_a_log_that_failed_lets_nobody_wait() -> None:
    commits, told = Commits(), list[bool]()
    commits.when("r-1", told.append)
    commits.failed()
    commits.when("r-2", told.append)
    assert told == [False, False]


def test_quiet_is_when_nobody_waits_any_more() -> None:
    async def scene() -> None:
        commits = Commits()
        assert await commits.quiet(1.0)
        commits.when("r-1", lambda committed: None)
        assert not await commits.quiet(0.01)
        waiting = asyncio.create_task(commits.quiet(5.0))
        asyncio.get_running_loop().call_soon(commits.committed, ["r-1"])
        assert await waiting

    asyncio.run(scene())


def test_a_waiter_may_wait_again() -> None:
    commits, told = Commits(), list[bool]()
    commits.when("r-1", lambda _: commits.when("r-2", told.append))
    commits.committed(["r-1", "r-2"])
    assert told == [True]
