"""What a handler can do to get out of its sandbox: a table of probes, each an expression that a real worker evaluates.

The whole table runs against a daemon that is root, and against one that is not. After each probe another agent must
answer from the worker it had, and the daemon must hold what it held. `tests/handlers/escapes.py` is the attacker;
`test_process_walls.py` has what a sandbox looks like before any of our code is in it.
"""

import os
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from orpheusd.process import root, sandbox, syscalls
from orpheusd.worker import confinement
from tests.daemon import ROOT, Daemon, command, environment, write_agent
from tests.eventually import eventually

NOBODY = 65534
SECRET = "planted-by-the-test"
ATTACKER = (ROOT / "tests/handlers/escapes.py").read_text()
#: Only tests need them: a daemon of somebody else gets a copy of what it imports, not of everything there is.
NOT_NEEDED = shutil.ignore_patterns(
    "__pycache__", "mypy*", "ruff*", "hypothesis*", "pip*", "_pytest*", "pytest*", "setuptools*", "pygments*",
    "pkg_resources*", "librt*", "ast_serialize*", "*-stubs", "__editable__*")


class Probe(NamedTuple):
    """An expression for the inside, and what it must come to: one value, one of several (a set), or a predicate."""

    code: str
    expected: object
    agent: str = "attacker"


def refused(name: str) -> tuple[str, Probe]:
    return f"system call {name}", Probe(f"syscall(numbers[{name!r}])", {"EPERM"})


def only_the_interpreter(below: str) -> Callable[[Any], bool]:
    """There is no such directory, or nothing in it but the way to an interpreter outside /usr."""
    binds = [path.relative_to(below).parts for path in sandbox.find_interpreter().binds if path.is_relative_to(below)]
    allowed = {parts[0] for parts in binds if parts}
    return lambda found: found == "ENOENT" or set(found) <= allowed


CLOSED = {"EROFS", "EACCES", "EPERM"}

PROBES: dict[str, Probe] = {
    # files of others
    "/etc/shadow": Probe("read('/etc/shadow')", "ENOENT"),
    "/etc/ssh": Probe("ls('/etc/ssh')", "ENOENT"),
    "/root": Probe("ls('/root')", only_the_interpreter("/root")),
    "/home": Probe("ls('/home')", only_the_interpreter("/home")),
    "/var": Probe("ls('/var')", only_the_interpreter("/var")),
    "/boot": Probe("ls('/boot')", "ENOENT"),
    "/sys": Probe("ls('/sys')", "ENOENT"),
    "/run": Probe("ls('/run')", ["orpheus"]),
    "the state directory": Probe("ls(state)", "ENOENT"),
    "the run log": Probe("read(state + '/runs.db')", "ENOENT"),
    "the token": Probe("read(state + '/token')", "ENOENT"),
    "another's workspace": Probe("read(state + '/workspaces/neighbour/diary')", "ENOENT"),
    "another's code and secrets": Probe("ls(state + '/agents/neighbour')", "ENOENT"),
    "the logs": Probe("ls(state + '/logs')", "ENOENT"),
    "up from the workspace": Probe("ls('/workspace/..') == ls('/')", True),
    "up from the working directory": Probe("ls('/proc/self/cwd/../../..') == ls('/')", True),
    "the root of pid 1": Probe("ls('/proc/1/root') == ls('/')", True),
    "a symlink to the host": Probe("os.symlink(state, '/workspace/way') or ls('/workspace/way')", "ENOENT"),
    "a hard link to its code": Probe("os.link('/agent/agent.py', '/workspace/link')", {"EXDEV", "EPERM"}),
    "files of the host in /tmp": Probe("[n for n in ls('/tmp') if n.startswith('orpheus')]", []),
    "files of the host in /dev/shm": Probe("ls('/dev/shm')", []),
    "the mounts tell no place of the host": Probe("'neighbour' in read('/proc/self/mountinfo')", False),
    # files that are not its own to write
    **{f"write {path}": Probe(f"writable({path!r})", CLOSED) for path in (
        "/probe", "/usr/probe", "/etc/probe", "/etc/passwd", "/etc/hosts", "/agent/probe", "/agent/agent.py",
        "/dev/probe", "/run/probe", "/run/orpheus/link/probe", "/run/orpheus/lib/orpheusd/worker/probe",
        "/usr/bin/env")},
    "write the kernel's settings": Probe("writable('/proc/sys/kernel/core_pattern')", CLOSED),
    "write sysrq": Probe("writable('/proc/sysrq-trigger')", CLOSED | {"ENOENT"}),
    "map users": Probe("open('/proc/self/uid_map', 'w').write('0 0 1')", CLOSED),
    "be the last to be killed": Probe("open('/proc/self/oom_score_adj', 'w').write('-1000')", CLOSED),
    "change a mode": Probe("os.chmod('/usr/bin/env', 0o777)", CLOSED),
    "give away the workspace": Probe("os.chown('/workspace', 0, 0)", {"EPERM", "EINVAL"}),
    "move the workspace": Probe("os.rename('/workspace', '/elsewhere')", {"EBUSY", "EROFS", "EXDEV"}),
    "modes are private": Probe("made('/workspace/private') & 0o077", 0),
    # processes
    "processes of others": Probe("{str(pid) for pid in (daemon, neighbour, door)} & {*ls('/proc')} == set()", True),
    "signal the daemon": Probe("os.kill(daemon, signal.SIGKILL)", "ESRCH"),
    "signal another agent": Probe("os.kill(neighbour, signal.SIGKILL)", "ESRCH"),
    "signal the door": Probe("os.kill(door, signal.SIGKILL)", "ESRCH"),
    "signal another's group": Probe("os.killpg(neighbour, signal.SIGKILL)", "ESRCH"),
    "kill pid 1": Probe("os.kill(1, signal.SIGKILL) or ls('/proc').count('1')", 1),
    "hold the daemon": Probe("os.pidfd_open(daemon)", "ESRCH"),
    "take its descriptors": Probe("syscall(numbers['pidfd_getfd'], 0, 0, 0)", "EPERM"),
    "its memory": Probe("read(f'/proc/{daemon}/mem')", "ENOENT"),
    "its environment": Probe("read(f'/proc/{daemon}/environ')", "ENOENT"),
    "secrets in what it can see": Probe(
        "[file for n in ls('/proc') if n.isdigit() for file in ('environ', 'cmdline') "
        "if secret in read(f'/proc/{n}/{file}')]", []),
    "its limits": Probe("resource.prlimit(daemon, resource.RLIMIT_NOFILE, (8, 8))", "ESRCH"),
    "its priority": Probe("os.setpriority(os.PRIO_PROCESS, daemon, 19)", "ESRCH"),
    "go before others": Probe("os.setpriority(os.PRIO_PROCESS, 0, -20)", {"EACCES", "EPERM"}),
    "real time": Probe("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))", "EPERM"),
    "trace pid 1": Probe("syscall(numbers['ptrace'], 16, 1, 0, 0)", "EPERM"),
    "trace the daemon": Probe("syscall(numbers['ptrace'], 16, daemon, 0, 0)", "EPERM"),
    "descriptors": Probe("descriptors()", lambda found: {*found} <= {"/dev/null", "/memfd", "pipe", "socket"}),
    # rights
    "capabilities": Probe("status('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')", ["0" * 16] * 5),
    "no new privileges": Probe("status('NoNewPrivs')", ["1"]),
    "a filter of system calls": Probe("status('Seccomp')", ["2"]),
    "no filter any more": Probe("call('prctl', 22, 0, 0, 0, 0)", "EINVAL"),
    "new privileges again": Probe("call('prctl', 38, 0, 0, 0, 0)", "EINVAL"),
    "ambient capabilities": Probe("call('prctl', 47, 2, 21, 0, 0)", "EPERM"),
    "become root": Probe("os.setresuid(0, 0, 0)", {"EPERM", "EINVAL"}),
    "become of a group": Probe("os.setgroups([0])", "EPERM"),
    "a set-uid program of the host": Probe("runs_as_somebody(['su', '-c', 'id -u'])", {"failed", "ENOENT"}),
    "a set-uid program in memory": Probe("set_uid_program()", str(root.INSIDE_ID)),
    "mounts that honour set-uid": Probe("mounts_without('nosuid')", []),
    "a program with capabilities": Probe(
        "os.setxattr('/workspace/private', 'security.capability', bytes.fromhex('01000002' + 32 * '0'))",
        {"EPERM", "ENOTSUP", "EOPNOTSUPP"}),
    "a higher limit on files": Probe("raises_limit(resource.RLIMIT_FSIZE)", "EPERM"),
    "a core": Probe("raises_limit(resource.RLIMIT_CORE)", "EPERM"),
    "more processes": Probe("raises_limit(resource.RLIMIT_NPROC)", "EPERM"),
    # the kernel
    **dict(map(refused, syscalls.DENIED)),
    "a user namespace by unshare": Probe("syscall(numbers['unshare'], 0x10000000)", "EPERM"),
    "a network namespace by clone": Probe("syscall(numbers['clone'], 0x40000000 | 17, 0, 0, 0)", "EPERM"),
    "a user namespace by clone": Probe("syscall(numbers['clone'], 0x10000000 | 17, 0, 0, 0)", "EPERM"),
    "clone3": Probe("syscall(numbers['clone3'])", "ENOSYS"),
    "mount over its code": Probe("call('mount', b'tmpfs', b'/agent', b'tmpfs', 0, None)", "EPERM"),
    "make the system writable": Probe("call('mount', None, b'/usr', None, 32 | 4096, None)", "EPERM"),
    "uncover what is mounted over": Probe("call('umount2', b'/proc', 2)", "EPERM"),
    "type into a terminal": Probe("syscall(numbers['ioctl'], 0, 0x5412, 0)", "EPERM"),
    "calls of another architecture": Probe("syscall(0x40000000 | 39) if x86 else 'EPERM'", "EPERM"),
    "a disk": Probe("os.mknod('/workspace/disk', stat.S_IFBLK | 0o600, os.makedev(8, 0))", "EPERM"),
    "the memory of the box": Probe("os.mknod('/tmp/mem', stat.S_IFCHR | 0o600, os.makedev(1, 1))", "EPERM"),
    **{f"the device {name}": Probe(f"read('/dev/{name}', 1)", "ENOENT") for name in (
        "mem", "kmem", "kmsg", "port", "sda", "vda", "kvm", "fuse", "net/tun", "loop0")},
    "the kernel's log": Probe("read('/proc/kmsg', 1)", {"EACCES", "EPERM"}),
    "the kernel's memory": Probe("read('/proc/kcore', 1)", CLOSED | {"ENOENT"}),
    # sockets
    "the control socket": Probe("connect(socket.AF_UNIX, control)", "ENOENT"),
    "another agent's socket": Probe("connect(socket.AF_UNIX, others_link)", "ENOENT"),
    **{f"the socket {path}": Probe(f"connect(socket.AF_UNIX, {path!r})", "ENOENT") for path in (
        "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/dbus/system_bus_socket",
        "/run/systemd/private", "/run/systemd/notify")},
    "an abstract socket of the host": Probe("connect(socket.AF_UNIX, abstract)", "EPERM"),
    "an abstract datagram to the host": Probe(
        "connect(socket.AF_UNIX, abstract + '-datagram', socket.SOCK_DGRAM)", "EPERM"),
    "an abstract socket without a network": Probe("connect(socket.AF_UNIX, abstract)", {"ECONNREFUSED", "EPERM"},
                                                  "closed"),
    "dial home as another": Probe("impersonates(others_worker)", {"", "ECONNRESET"}),
    "dial home as a stranger": Probe("impersonates('w-nobody-1')", {"", "ECONNRESET"}),
    "descriptors for the daemon": Probe("sends_descriptors(200)", {"", "ECONNRESET", "EPIPE"}),
    "a raw socket": Probe("make_socket(socket.AF_INET, socket.SOCK_RAW, 1)", "EPERM"),
    "a packet socket": Probe("make_socket(socket.AF_PACKET, socket.SOCK_RAW)", {"EPERM", "EAFNOSUPPORT"}),
    "the hypervisor": Probe("make_socket(40, socket.SOCK_STREAM)", "EAFNOSUPPORT"),
    "the hypervisor without a network": Probe("make_socket(40, socket.SOCK_STREAM)", "EAFNOSUPPORT", "closed"),
    "the kernel's ciphers": Probe("make_socket(38, socket.SOCK_SEQPACKET)", "EAFNOSUPPORT"),
    "deploy over HTTP": Probe("asked(port, 'POST', '/v1/deploy')", 403),
    "remove another over HTTP": Probe("asked(port, 'DELETE', '/v1/agents/neighbour')", 403),
    "HTTP without a network": Probe("asked(port, 'GET', '/v1/status')", "ECONNREFUSED", "closed"),
    "the world without a network": Probe("connect(socket.AF_INET, ('192.0.2.1', 80))", "ENETUNREACH", "closed"),
    "routes without a network": Probe("read('/proc/net/route').splitlines()[1:]", [], "closed"),
    "the link to the metadata of a cloud": Probe(
        "connect(socket.AF_INET, ('169.254.169.254', 80))", "ENETUNREACH", "closed"),
    # what it could use up
    "fill /tmp": Probe("fills('/tmp/much', 1 << 30)", lambda found: found <= sandbox.TMP_LIMIT_BYTES),
    "fill /dev/shm": Probe("fills('/dev/shm/much', 1 << 30)", lambda found: found <= root.SHM_LIMIT_BYTES),
    "a file without end": Probe(
        f"writes_at('/workspace/much', {confinement.FILE_LIMIT_BYTES})", "EFBIG"),
    "a file in memory without end": Probe(
        f"os.ftruncate(os.memfd_create('much'), {confinement.FILE_LIMIT_BYTES + 1})", "EFBIG"),
    "print without end": Probe("prints(20_000)", "printed"),
    "fork a lot": Probe("forks(100)", "100"),
    "open files without end": Probe("opens(100_000)", "EMFILE"),
    # things left for later
    "a set-uid program for somebody outside": Probe("planted_program()", 0o4755),
}


class Elsewhere(Daemon):
    """A daemon of an unprivileged user, on a copy of the packages, as ours may be where he cannot go."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        site = self.directory / "site"
        shutil.copytree(Path(psutil.__file__).parents[1], site, ignore=NOT_NEEDED)
        for package in ("orpheusd", "workspace"):
            shutil.copytree(ROOT / package, site / package)
        os.chown(self.directory, NOBODY, NOBODY)

    def spawn(self) -> "subprocess.Popen[bytes]":
        argv = [str(sandbox.find_interpreter().executable), "-m", "orpheusd", "--state-dir", str(self.state_dir),
                "--runtime-dir", str(self.runtime_dir), *self._door, *self._flags]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                argv, cwd="/", env={**environment(), **self.env, "PYTHONPATH": str(self.directory / "site")},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                user=NOBODY, group=NOBODY, extra_groups=[])


class House(NamedTuple):
    """A daemon with the attacker, the attacker without a network, and the neighbour; what the attacker knows of it."""

    daemon: Daemon
    facts: dict[str, Any]

    def run(self, agent: str, **input: Any) -> Any:
        return self.daemon.call("run", agent=agent, input=input, session_id="one")["result"]

    def fds(self) -> int:
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))


@pytest.fixture(scope="module", params=["root", "unprivileged"])
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    if isolation.weaknesses:
        pytest.skip(isolation.weaknesses[0])
    if os.getuid() == 0 and request.param == "unprivileged" and sandbox.find_interpreter().binds:
        pytest.skip(f"the interpreter is in {sandbox.find_interpreter().binds[0]}, which may be closed to others")
    if os.getuid() != 0 and request.param == "root":
        pytest.skip("needs root")
    kind = Elsewhere if os.getuid() == 0 and request.param == "unprivileged" else Daemon
    daemon = kind(isolation="bwrap", env={"ORPHEUS_PLANTED": SECRET})
    try:
        with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
            stream.bind(f"\0{daemon.directory.name}")
            stream.listen()
            datagram.bind(f"\0{daemon.directory.name}-datagram")
            yield furnished(daemon.start())
    finally:
        daemon.close()


def furnished(daemon: Daemon) -> House:
    agents = daemon.directory / "agents"
    quiet = {"scaling": {"min_workers": 1, "max_workers": 1}, "timeout": 60}
    for name, settings in (("attacker", {}), ("closed", {"network": False}), ("neighbour", {})):
        daemon.deploy(write_agent(agents / name, ATTACKER, **quiet, **settings))
    (daemon.state_dir / "workspaces/neighbour/diary").write_text(SECRET)
    (daemon.state_dir / "token").write_text(SECRET)
    worker = daemon.call("agent.show", agent="neighbour")["workers"][0]
    children = psutil.Process(daemon.pid).children(recursive=True)
    door = next(process for process in children if "orpheusd.doors.http" in command(process))
    link = next((daemon.runtime_dir / "t").glob("*/worker.sock"))
    import pyseccomp  # only here: where there is no filter this is not reached

    numbers = {name: pyseccomp.resolve_syscall(pyseccomp.Arch.NATIVE, name)
               for name in (*syscalls.DENIED, "clone", "clone3", "ioctl")}
    return House(daemon, {
        "state": str(daemon.state_dir), "control": str(daemon.control_socket), "others_link": str(link),
        "others_worker": worker["id"], "neighbour": worker["pid"], "daemon": daemon.pid, "door": door.pid,
        "port": int(str(daemon.http).rpartition(":")[2]), "abstract": f"\0{daemon.directory.name}",
        "secret": SECRET, "numbers": numbers, "x86": os.uname().machine == "x86_64"})


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_denied_or_contained(house: House, name: str) -> None:
    # fault 29
    probe = PROBES[name]
    call = name.removeprefix("system call ")
    if house.facts["numbers"].get(call, 0) < 0:
        pytest.skip(f"this architecture has no {call}")
    before, fds = house.run("neighbour"), house.fds()
    found = house.run(probe.agent, code=probe.code, facts=house.facts)
    if callable(probe.expected):
        assert probe.expected(found), f"{probe.code} came to {found!r}"
    else:
        allowed = probe.expected if isinstance(probe.expected, set) else [probe.expected]
        assert found in allowed, f"{probe.code} came to {found!r}"
    assert house.run("neighbour") == before, "another agent lost its worker"
    eventually(lambda: house.fds() <= fds, what="the daemon to hold no more than before")
    assert stat.S_IMODE(house.daemon.state_dir.stat().st_mode) & 0o077 == 0, "what is in workspaces is for nobody else"


def test_there_are_sixty_probes() -> None:
    assert len(PROBES) >= 60


def test_the_kernel_counts_processes_by_sandbox(house: House) -> None:
    found = house.run("attacker", code="forks_under(40)", facts=house.facts)
    if psutil.Process(house.daemon.pid).uids().real == 0:
        assert found == "41", "the kernel has begun to hold root to its limit: say so in docs/security.md"
    else:
        assert found == "EAGAIN"


def test_what_is_left_behind_goes_with_its_worker(house: House) -> None:
    # fault 12
    assert house.run("attacker", code="leaves_behind()", facts=house.facts) == ""

    def left() -> list[psutil.Process]:
        return [process for process in psutil.Process(house.daemon.pid).children(recursive=True)
                if any("left-behind" in word for word in command(process))]

    eventually(lambda: len(left()) == 1, what="the process that got away from its parents")
    worker = house.daemon.call("agent.show", agent="attacker")["workers"][0]
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: not left(), what="the end of what the worker left behind")
