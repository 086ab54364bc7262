"""Named locks: one holder at a time among processes, threads and tasks; deadlines; nothing left behind."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import workspace

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
import workspace
with workspace.lock("shared"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKSPACE_DIR", str(tmp_path))
    return tmp_path


class Other:
    """Another process that holds the lock `shared` until it is told to let go, or killed."""

    def __init__(self) -> None:
        place = str(Path(workspace.__file__).parents[1])
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, place], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def let_go(self) -> None:
        self.process.communicate("\n", timeout=10)

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_another_process_waits_until_it_is_let_go() -> None:
    with Other() as other:
        with pytest.raises(TimeoutError, match="'shared' did not become free"):
            workspace.lock("shared", timeout_s=0.05).__enter__()
        other.let_go()
        with workspace.lock("shared", timeout_s=5):
            pass


def test_a_holder_that_is_killed_lets_go() -> None:
    with Other() as other:
        other.process.kill()
        with workspace.lock("shared", timeout_s=5):
            pass


def test_nothing_is_left_behind(root: Path) -> None:
    for name in ("a", "b", "user:1@x"):
        with workspace.lock(name):
            assert len(list((root / ".locks").iterdir())) == 1
    assert list((root / ".locks").iterdir()) == []


def test_threads_take_turns() -> None:
    inside, most, counter = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, counter
        for _ in range(20):
            with workspace.lock("threads", timeout_s=20):
                inside += 1
                most = max(most, inside)
                counter += 1
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, counter) == (1, 100)


def test_tasks_take_turns_and_the_loop_goes_on() -> None:
    inside, most, ticks = 0, 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with workspace.lock("tasks", timeout_s=20):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.002)
            inside -= 1

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def main() -> None:
        ticker = asyncio.ensure_future(tick())
        await asyncio.gather(*(work() for _ in range(10)))
        ticker.cancel()

    asyncio.run(main())
    assert most == 1 and ticks > 5


def test_one_lock_object_may_be_shared() -> None:
    lock = workspace.lock("shared object", timeout_s=0.05)
    with lock, pytest.raises(TimeoutError), lock:
        pass
    with lock:
        pass


def test_an_async_wait_has_its_deadline() -> None:
    async def main() -> None:
        async with workspace.lock("deadline", timeout_s=0.05):
            pass

    with workspace.lock("deadline"):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(main())
        assert 0.04 < time.monotonic() - started < 2


def test_a_cancelled_wait_leaves_the_lock_alone() -> None:
    async def main() -> None:
        async def wait() -> None:
            async with workspace.lock("held"):
                raise AssertionError

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with workspace.lock("held"):
        asyncio.run(main())
    with workspace.lock("held", timeout_s=0.5):
        pass


def test_an_exception_inside_lets_go() -> None:
    with pytest.raises(KeyError), workspace.lock("failing"):
        raise KeyError
    with workspace.lock("failing", timeout_s=0.5):
        pass


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "", ".hidden", "x" * 500, "with space", "\n", "\udcff"])
def test_any_name_will_do_and_none_leads_out(root: Path, name: str) -> None:
    with workspace.lock(name), pytest.raises(TimeoutError), workspace.lock(name, timeout_s=0.01):
        pass
    assert sorted(path.name for path in root.iterdir()) == [".locks"]


def test_the_holder_of_a_removed_file_does_not_remove_its_successors(root: Path) -> None:
    first, second = workspace.lock("name"), workspace.lock("name")
    first.__enter__()
    (root / ".locks" / "name.lock").unlink()
    with second:
        first.__exit__()
        assert (root / ".locks" / "name.lock").exists()
        with pytest.raises(TimeoutError), workspace.lock("name", timeout_s=0.01):
            pass


def test_the_fd_is_not_inherited() -> None:
    with workspace.lock("fd"):
        listing = subprocess.run(["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True,
                                 close_fds=False).stdout
    assert ".lock" not in listing
