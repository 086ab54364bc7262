"""Control groups (cgroup v2) for workers: the kernel holds each to its memory and its number of processes.

They exist where the daemon's own group was given to it (`Delegate=` in the unit). The daemon is then in a group
beside the workers', where systemd puts it (`DelegateSubgroup=`) or it moves itself, because a group that hands out
controllers may hold no process of its own (cgroup-v2.rst, "No Internal Process Constraint"). A group that holds
anybody else is left alone. Where systemd starts templates in units of their own, each of these was given to the
daemon's user in the same way, and has the groups of its workers beside one for the template.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Processes and threads of one worker. Agents start browsers and compilers; a fork bomb is there in milliseconds.
TASKS_LIMIT = 512
#: Of processor time when it is short, beside 100 for all workers together: who keeps order comes first.
DAEMON_WEIGHT = 1000

_DAEMON, _TEMPLATE, _WORKERS = "daemon", "template", "workers"
#: Units with agents (systemd/orpheus-agents@.service).
_UNITS = "orpheus-agents@*.service"
#: Moving out of a unit's own group who is in there: one may fork meanwhile, and again.
_ROUNDS = 10
_NEEDED, _WANTED = "memory", ("pids", "cpu")


class Spent(NamedTuple):
    """What a worker's group tells in the end: whether the kernel killed there for memory, and the most it took."""

    killed: bool
    peak_bytes: int


class Groups:
    """The groups of workers, a directory each. Invariant: a worker is in its group before it has a run; a group is
    removed when its worker is dead, as soon as nobody is in it. `directory` has those of workers without a unit."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._elsewhere: dict[str, Path] = {}
        self._dying: set[Path] = set(directory.iterdir() if directory.exists() else ())
        self._dying = {group for group in self._dying if group.is_dir()}
        self._sweep()

    def begin(self, worker_id: str, pid: int, limit_bytes: int) -> None:
        """Put a process, and what it will start, under the limit. May be said again. Raises OSError."""
        unit = _unit_of(pid)
        if unit is not None:
            _divide_unit(unit)
            self._elsewhere[worker_id] = unit / _WORKERS / worker_id
        group = self._group(worker_id)
        self._dying.discard(group)
        group.mkdir(exist_ok=True)
        for name, value in (("memory.max", limit_bytes), ("memory.swap.max", 0), ("memory.oom.group", 1),
                            ("pids.max", TASKS_LIMIT)):
            # a kernel without swap has no memory.swap.max, a unit may not hand out pids
            if name == "memory.max" or (group / name).exists():
                _write(group / name, value)
        _write(group / "cgroup.procs", pid)

    def end(self, worker_id: str) -> Spent:
        """Its worker is dead: whoever is left in the group dies, and the group goes."""
        group = self._group(worker_id)
        self._elsewhere.pop(worker_id, None)
        spent = Spent(_count(group / "memory.events", "oom_kill") > 0, _number(group / "memory.peak"))
        with suppress(OSError):
            _write(group / "cgroup.kill", 1)
        self._dying.add(group)
        self._sweep()
        return spent

    def _group(self, worker_id: str) -> Path:
        return self._elsewhere.get(worker_id, self._directory / worker_id)

    def _sweep(self) -> None:
        """Remove what is empty. The kernel needs a moment to let the dead go: the rest is removed next time."""
        for group in list(self._dying):
            try:
                group.rmdir()
            except FileNotFoundError:
                self._dying.discard(group)
            except OSError:
                continue
            else:
                self._dying.discard(group)


def delegated(units: bool) -> tuple[Groups | None, str]:
    """Groups below what was given to this process, or None and the reason why there are none. `units`: templates are
    in units of their own, and what is to be divided is theirs."""
    own = own_group()
    if own is None:
        return None, "cgroup v2 is not mounted here"
    if not units:
        return prepare(own)
    lacks = _lacks_controller(own)
    return (None, lacks) if lacks else (Groups(own / _WORKERS), "")


def prepare(own: Path) -> tuple[Groups | None, str]:
    """The same for `own`, the group that this process is in."""
    home = own.parent if own.name == _DAEMON else own
    if (lacks := lacking(own)) is not None:
        return None, lacks
    try:
        if home == own:
            (own / _DAEMON).mkdir(exist_ok=True)
            _write(own / _DAEMON / "cgroup.procs", 0)  # 0: whoever writes
        _divide(home)
        with suppress(OSError):
            _write(home / _DAEMON / "cpu.weight", DAEMON_WEIGHT)
        return Groups(home / _WORKERS), ""
    except OSError as error:
        with suppress(OSError):
            _write(own / "cgroup.procs", 0)
        return None, f"the control group {home} cannot be divided: {error.strerror}"


def own_group() -> Path | None:
    """The directory of the cgroup v2 that this process is in."""
    return _group_of("self")


def lacking(own: Path) -> str | None:
    """Why the group `own` cannot be divided among workers; None when it can. Changes nothing."""
    home = own.parent if own.name == _DAEMON else own
    if lacks := _lacks_controller(home):
        return lacks
    try:
        others = [pid for pid in (home / "cgroup.procs").read_text().split() if pid != str(os.getpid())]
    except OSError as error:
        return f"the control group {home} cannot be read: {error.strerror}"
    if not os.access(home, os.W_OK) or not os.access(home / "cgroup.subtree_control", os.W_OK):
        return f"the control group {home} is not delegated to this user"
    if others:
        return f"the control group {home} holds other processes too"
    if own.suffix == ".service":
        # a divided group takes no process: systemd, which starts a service in its own group, could not restart us
        return f"{own.name} has no DelegateSubgroup={_DAEMON} (systemd 254), without which it could not restart"
    return None


def _lacks_controller(home: Path) -> str:
    try:
        controllers = (home / "cgroup.controllers").read_text().split()
    except OSError as error:
        return f"the control group {home} cannot be read: {error.strerror}"
    return "" if _NEEDED in controllers else f"the control group {home} has no {_NEEDED} controller"


def _divide_unit(unit: Path) -> None:
    """A unit that systemd has started, with a template in it, if it is not divided yet. Raises OSError."""
    if (unit / _WORKERS).is_dir():
        return
    (unit / _TEMPLATE).mkdir(exist_ok=True)
    for _ in range(_ROUNDS):
        for pid in (unit / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                _write(unit / _TEMPLATE / "cgroup.procs", pid)
    _divide(unit)


def _divide(home: Path) -> None:
    """Let the kernel hold the parts of a group to limits of their own. Raises OSError."""
    controllers = (home / "cgroup.controllers").read_text().split()
    for parent in (home, home / _WORKERS):
        parent.mkdir(exist_ok=True)
        for controller in (_NEEDED, *(name for name in _WANTED if name in controllers)):
            _write(parent / "cgroup.subtree_control", f"+{controller}")


def _unit_of(pid: int) -> Path | None:
    """The group of the unit for agents that this process is in, if it is in one."""
    try:
        group = _group_of(str(pid))
    except OSError:
        return None
    return next((one for one in (group, *group.parents) if one.match(_UNITS)), None) if group is not None else None


def _group_of(process: str) -> Path | None:
    """Raises OSError when there is no such process."""
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            mount = _mount()
            return None if mount is None else mount / line[3:].lstrip("/")
    return None


def _mount() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    return None


def _write(path: Path, value: object) -> None:
    """One write(2), not buffered: the kernel takes a value whole or refuses it. Makes no file."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, f"{value}".encode())
    finally:
        os.close(fd)


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0


def _count(path: Path, name: str) -> int:
    """A row of a file of `name value` lines; 0 where there is none."""
    try:
        rows = dict(line.split() for line in path.read_text().splitlines())
        return int(rows.get(name, 0))
    except (OSError, ValueError):
        return 0
