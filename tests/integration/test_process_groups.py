"""Control groups: who may divide one, what is written into it, and what it tells in the end.

Most boxes that tests run on hand out no memory controller, so the files of the kernel are plain ones here; the last
test has the kernel hold a real worker, where it can.
"""

import asyncio
import errno
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from orpheusd.process import groups
from orpheusd.process.groups import DAEMON_WEIGHT, TASKS_LIMIT, Groups, Spent, prepare
from orpheusd.process.limits import Limits
from orpheusd.process.pidfds import PidFd
from tests.daemon import Daemon, write_agent
from tests.eventually import eventually
from tests.integration.test_memory_limits import GREEDY, OOM

FILES = ("cgroup.controllers", "cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.swap.max",
         "memory.oom.group", "memory.events", "memory.peak", "pids.max", "cpu.weight", "cgroup.kill")


def group(path: Path, **files: str) -> Path:
    path.mkdir()
    for name in FILES:
        (path / name).write_text("")
    (path / "cgroup.controllers").write_text("cpu memory pids")
    for name, text in files.items():
        (path / name.replace("_", ".", 1)).write_text(text)
    return path


@pytest.mark.parametrize(("name", "files", "lacks"), [
    ("unit", {"cgroup_controllers": "cpu pids"}, "has no memory controller"),
    ("unit", {"cgroup_procs": f"{os.getpid()}\n1\n"}, "holds other processes too"),
    ("orpheusd.service", {"cgroup_procs": f"{os.getpid()}\n"}, "has no DelegateSubgroup=daemon"),
])
def test_a_group_that_cannot_be_divided_is_left_alone(
        tmp_path: Path, name: str, files: dict[str, str], lacks: str) -> None:
    own = group(tmp_path / name, **files)
    found, reason = prepare(own)
    assert found is None and lacks in reason
    assert not (own / "daemon").exists() and (own / "cgroup.subtree_control").read_text() == ""


def test_a_group_that_is_given_is_divided(tmp_path: Path) -> None:
    own = group(tmp_path / "unit", cgroup_procs=f"{os.getpid()}\n")
    for name in ("daemon", "workers"):
        group(own / name)
    found, reason = prepare(own)
    assert found is not None and reason == ""
    assert (own / "daemon/cgroup.procs").read_text() == "0", "whoever writes it moves"
    assert (own / "daemon/cpu.weight").read_text() == str(DAEMON_WEIGHT)
    assert (own / "workers/cgroup.subtree_control").read_text().startswith("+")
    again, _ = prepare(own / "daemon")
    assert again is not None, "the next daemon is there already"


def test_the_group_of_a_service_is_divided_when_the_service_is_in_a_part_of_it(tmp_path: Path) -> None:
    unit = group(tmp_path / "orpheusd.service")
    for name in ("daemon", "workers"):
        group(unit / name)
    found, reason = prepare(unit / "daemon")
    assert found is not None and reason == ""
    assert (unit / "daemon/cgroup.procs").read_text() == "", "systemd has put it there"


def test_a_worker_is_put_under_its_limit_and_its_group_tells_the_end(tmp_path: Path) -> None:
    made = Groups(tmp_path)
    ours = group(tmp_path / "w-1", memory_events="low 0\noom 1\noom_kill 3\noom_group_kill 1\n", memory_peak="777\n")
    made.begin("w-1", 4711, 1000)
    assert {name: (ours / name).read_text() for name in FILES[1:2] + FILES[3:6] + FILES[8:9]} == {
        "cgroup.procs": "4711", "memory.max": "1000", "memory.swap.max": "0", "memory.oom.group": "1",
        "pids.max": str(TASKS_LIMIT)}
    assert made.end("w-1") == Spent(killed=True, peak_bytes=777)
    assert (ours / "cgroup.kill").read_text() == "1"
    for path in ours.iterdir():
        path.unlink()
    assert made.end("w-2") == Spent(killed=False, peak_bytes=0)
    assert not ours.exists(), "what was not empty yet is removed with the next"


@pytest.mark.root
def test_who_is_in_a_unit_for_agents_has_its_group_below_the_unit(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where systemd started it; the process and its group are real, the files that hold it to limits are not."""
    mount = groups._mount()
    if mount is None:
        pytest.skip("cgroup v2 is not mounted here")
    name = f"orpheus-test-{os.getpid()}/orpheus-agents@1-2-3.service"
    real = mount / name
    (real / "template").mkdir(parents=True)
    (tmp_path / "own").mkdir()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        (real / "template/cgroup.procs").write_text(str(sleeper.pid))
        monkeypatch.setattr(groups, "_mount", lambda: tmp_path)
        (tmp_path / name).parent.mkdir()
        unit = group(tmp_path / name)
        (unit / "cgroup.procs").write_text(f"{sleeper.pid}\n")
        (unit / "template").mkdir()
        (unit / "template/cgroup.procs").write_text("")
        made = Groups(tmp_path / "own")
        with pytest.raises(FileNotFoundError):
            made.begin("w-1", sleeper.pid, 1000)  # the kernel has its files there as soon as there is a directory
        assert (unit / "template/cgroup.procs").read_text() == str(sleeper.pid), "who was born there is moved out"
        for name in FILES:
            (unit / "workers" / name).write_text("")
        ours = group(unit / "workers/w-1", memory_peak="777\n")
        made.begin("w-1", sleeper.pid, 1000)
        assert (ours / "cgroup.procs").read_text() == str(sleeper.pid) and (ours / "memory.max").read_text() == "1000"
        assert (unit / "cgroup.subtree_control").read_text().startswith("+")
        assert made.end("w-1") == Spent(killed=False, peak_bytes=777) and (ours / "cgroup.kill").read_text() == "1"
        assert list((tmp_path / "own").iterdir()) == [] and made.end("w-1") == Spent(killed=False, peak_bytes=0)
    finally:
        sleeper.kill()
        sleeper.wait()
        for path in (real / "template", real, real.parent):
            path.rmdir()


def test_a_group_that_cannot_be_made_means_looking(tmp_path: Path) -> None:
    limits = Limits(lambda _worker_id, _why: None)
    limits.use(Groups(tmp_path), "")
    assert limits.mode == "cgroup"
    process = PidFd(os.getpid())

    async def begin() -> None:
        limits.begin("w-1", process, 1 << 40)
        assert limits.mode == "sampling" and "w-1 cannot be made" in limits.reason
        assert limits.end("w-1") == (None, 0)

    try:
        asyncio.run(begin())
    finally:
        process.close()


def test_a_worker_that_died_before_its_group_was_made_costs_nobody_theirs(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers ESRCH for a process that is gone."""
    write = groups._write

    def refuse(path: Path, value: object) -> None:
        if path.name == "cgroup.procs" and value == os.getpid():
            raise ProcessLookupError(errno.ESRCH, "No such process")
        write(path, value)

    monkeypatch.setattr(groups, "_write", refuse)
    limits = Limits(lambda _worker_id, _why: None)
    limits.use(Groups(tmp_path), "")
    dead = group(tmp_path / "w-1")
    with closing(PidFd(os.getpid())) as process:
        limits.begin("w-1", process, 1000)
        assert limits.mode == "cgroup"
        assert limits.end("w-1") == (None, 0) and (dead / "cgroup.kill").read_text() == "1"


def test_who_has_a_group_keeps_it_when_there_can_be_no_more(tmp_path: Path) -> None:
    limits = Limits(lambda _worker_id, _why: None)
    limits.use(Groups(tmp_path), "")
    group(tmp_path / "w-1", memory_events="oom_kill 1\n", memory_peak="777\n")

    async def life() -> None:
        with closing(PidFd(os.getpid())) as process:
            limits.begin("w-1", process, 1000)
            limits.begin("w-2", process, 1000)
            assert limits.mode == "sampling"
            assert limits.end("w-1") == (("the kernel", 1000, 777), 777)

    asyncio.run(life())


def test_who_is_let_go_before_its_end_is_told_is_not_looked_at() -> None:
    """As a template whose channel has closed: it is being killed, and nobody holds it any more."""
    faults: list[object] = []

    async def life() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        limits = Limits(lambda _id, _why: None)
        process = PidFd(os.getpid())
        limits.begin("t-1", process, 1 << 40)
        process.close()
        async with asyncio.timeout(10):
            while limits._due:
                await asyncio.sleep(0.01)
        assert process.exited()

    asyncio.run(life())
    assert faults == []


@pytest.mark.root
def test_the_kernel_holds_a_real_worker(tmp_path: Path) -> None:
    # faults 7, 13
    mount = groups._mount()
    if mount is None or "memory" not in (mount / "cgroup.controllers").read_text().split():
        pytest.skip("the memory controller is not on the unified hierarchy of this box")
    own = mount / f"orpheus-test-{os.getpid()}"
    own.mkdir()
    (mount / "cgroup.subtree_control").write_text("+memory +pids")
    house = Daemon(wrapper=("sh", "-c", f'echo $$ > {own}/cgroup.procs; exec "$0" "$@"'))
    try:
        house.start()
        assert house.call("status")["memory_limit"] == "cgroup", house.call("status")
        house.deploy(write_agent(tmp_path / "greedy", GREEDY, memory=80))
        house.ctl("run", "greedy", '{"grow": true}')
        cause = eventually(lambda: house.call("run.list", agent="greedy")["runs"][0]["exit_cause"], what="its record")
        told = OOM.fullmatch(cause)
        assert told is not None and told[1] == "the kernel" and told[2] == "80", cause
    finally:
        house.close()
        for path in sorted(own.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        own.rmdir()
