"""The sweep, on real processes that hide as well as they can."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvloop

from orpheusd.process import survivors
from tests.eventually import eventually

#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()

#: Leaves its parent, its session and its group, then says its pid and stays.
HIDE = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sh", ["sh", "-c", "echo $$ >> " + sys.argv[1] + "; exec sleep 60"], os.environ)
os._exit(0)
"""


def sweep(tag: str) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(survivors.kill_tagged(tag))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def running(*argv: str, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(argv, env={"PATH": "/usr/bin:/bin", **env})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_only_the_tagged_die() -> None:
    with running("sleep", "60", ORPHEUS_SANDBOX="t-1-1") as mine, \
            running("sleep", "60", ORPHEUS_SANDBOX="t-1-10") as other:
        eventually(lambda: survivors.tagged("ORPHEUS_SANDBOX=t-1-10"))
        assert eventually(lambda: survivors.tagged("ORPHEUS_SANDBOX=t-1-1")) == [mine.pid]
        assert sweep("ORPHEUS_SANDBOX=t-1-1") == 1
        assert mine.wait() == -9
        assert other.poll() is None
        assert sweep("ORPHEUS_SANDBOX=t-1-1") == 0


def test_the_tag_is_the_whole_of_a_variable() -> None:
    near = {"NOTE": "see ORPHEUS_WORKER=w-7-7", "ORPHEUS_WORKER": "w-7-77", "X_ORPHEUS_WORKER": "w-7-7"}
    with running("sleep", "60", **near) as other:
        eventually(lambda: survivors.tagged("ORPHEUS_WORKER=w-7-77"))
        assert survivors.tagged("ORPHEUS_WORKER=w-7-7") == []
        assert sweep("ORPHEUS_WORKER=w-7-7") == 0
        assert other.poll() is None


def test_only_the_beginning_of_an_environment_is_read() -> None:
    large = {"LARGE": "x" * 100_000}
    with running("sleep", "60", ORPHEUS_WORKER="w-8-8", **large) as first, \
            running("sleep", "60", **large, ORPHEUS_WORKER="w-8-8") as last:
        for process in (first, last):
            eventually(lambda process=process: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes())
        assert survivors.tagged("ORPHEUS_WORKER=w-8-8") == [first.pid]


@pytest.mark.parametrize("tag", ["", "=", "ORPHEUS_WORKER=", "=w-1", "ORPHEUS_WORKER"])
def test_a_tag_that_would_find_strangers_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="strangers"):
        survivors.kill_once(tag)


def test_it_does_not_kill_the_caller() -> None:
    caller = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from orpheusd.process.survivors import kill_once\n"
        "print(kill_once('ORPHEUS_SANDBOX=t-5-5'))")
    done = subprocess.run(
        [sys.executable, "-c", caller, str(Path(survivors.__file__).parents[2])], env={"ORPHEUS_SANDBOX": "t-5-5"},
        capture_output=True, check=True, timeout=20)
    assert done.stdout == b"0\n"


def test_who_double_forked_into_a_session_of_his_own_is_found(tmp_path: Path) -> None:  # fault 12
    said = tmp_path / "pids"
    with running(sys.executable, "-S", "-c", HIDE, str(said), ORPHEUS_WORKER="w-2-2"):
        pid = int(eventually(lambda: said.exists() and said.read_text()))
    assert alive(pid)
    assert sweep("ORPHEUS_WORKER=w-2-2") == 1
    assert not alive(pid)


def test_descendants_that_lost_the_tag_are_found_through_their_parents(tmp_path: Path) -> None:
    said = tmp_path / "pids"
    script = f"env -i sh -c 'echo $$ >> {said}; env -i sleep 60 & echo $! >> {said}; wait' & wait"
    with running("/bin/sh", "-c", script, ORPHEUS_SANDBOX="t-3-3") as parent:
        eventually(lambda: said.exists() and len(said.read_text().split()) == 2)
        assert sweep("ORPHEUS_SANDBOX=t-3-3") == 3
        assert parent.wait() == -9
    assert not any(alive(int(pid)) for pid in said.read_text().split())


def test_whose_a_process_is_shows_above_it(tmp_path: Path) -> None:
    said = tmp_path / "pids"
    with running("/bin/sh", "-c", f"env -i sleep 60 & echo $! >> {said}; wait", ORPHEUS_SANDBOX="t-6-6") as parent:
        child = int(eventually(lambda: said.exists() and said.read_text()))
        eventually(lambda: b"sleep" in Path(f"/proc/{child}/cmdline").read_bytes())
        ours = {"ORPHEUS_SANDBOX=t-6-6", "ORPHEUS_SANDBOX=t-6-7"}
        assert survivors.owner(parent.pid, ours) == survivors.owner(child, ours) == "ORPHEUS_SANDBOX=t-6-6"
        assert survivors.owner(child, {"ORPHEUS_SANDBOX=t-6-7"}) is None
        assert sweep("ORPHEUS_SANDBOX=t-6-6") == 2


def test_one_that_keeps_forking_is_caught_up_with(tmp_path: Path) -> None:  # fault 13
    said = tmp_path / "ready"
    code = (
        "import os, sys, time\n"
        "for _ in range(3): os.fork()\n"
        "open(sys.argv[1], 'a').write('x')\n"
        "while True:\n"
        "    if os.fork(): os._exit(0)\n"
        "    time.sleep(0.05)\n")
    with running(sys.executable, "-S", "-c", code, str(said), ORPHEUS_SANDBOX="t-4-4"):
        eventually(lambda: said.exists() and len(said.read_text()) == 8)
    assert sweep("ORPHEUS_SANDBOX=t-4-4") > 0
    assert survivors.tagged("ORPHEUS_SANDBOX=t-4-4") == []
