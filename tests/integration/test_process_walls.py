"""What an agent can see and do from inside its sandbox: a table of probes, each an expression evaluated in there.

The whole table runs in one sandbox per way to set it up: as root, as an unprivileged user, and on an
interpreter that is not in /usr. The daemon's side of it is a script of its own, so that it can be anybody.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orpheusd.process import root, sandbox

NOBODY = 65534

#: Starts a template on the house below argv[1] with the program argv[3] and prints what it prints; or, with no
#: program, one that hangs, and kills it.
LAUNCHER = """
import asyncio, json, sys
from pathlib import Path
from orpheusd.process import sandbox
from orpheusd.process.launch import launch_template

async def main(top, network, code):
    spec = sandbox.TemplateSpec(
        "t-1-1", "my-agent", top / "code", top / "ws", None, top / "link", network == "open")
    program = code or "import time; time.sleep(60)"
    command = sandbox.template_argv(
        sandbox.detect("bwrap"), sandbox.find_interpreter(), spec, sandbox.find_runtime_lib(), program)
    lines = []
    template = await launch_template(command, sys.stdin.buffer.read(), lines.append)
    if not code:
        template.kill()
    code = await template.wait()
    print("".join(lines))
    sys.exit(code)

asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""

#: Evaluates each probe of the launch line and prints the values. An OSError is its name.
INSIDE = """
import ctypes, errno, getpass, json, os, socket, stat, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
def ls(path): return sorted(os.listdir(path))
def read(path):
    with open(path) as stream: return stream.read()
def write(path):
    with open(path, "a") as stream: stream.write("x")
    return "written"
def openable(path):  # and not written: should the wall be missing, the host stays as it is
    os.close(os.open(path, os.O_WRONLY))
    return "opened"
def call(name, *args):
    return "done" if getattr(libc, name)(*args) >= 0 else errno.errorcode[ctypes.get_errno()]
def status(*names):
    lines = dict(line.split(":", 1) for line in read("/proc/self/status").splitlines())
    return [lines[name].strip() for name in names]
def connect(family, address):
    with socket.socket(family) as s:
        s.settimeout(2)
        s.connect(address)
    return "connected"
def size(path): return os.statvfs(path).f_blocks * os.statvfs(path).f_frsize
def writable(*tops):
    found = []
    for top in tops:
        for folder, folders, files in os.walk(top):
            if folder == "/proc": folders[:] = [name for name in folders if not name.isdigit() and name != "self"]
            for name in files:
                path = os.path.join(folder, name)
                try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
                except OSError: continue
                found.append(path)
    return found
def tried(code):
    try: return eval(code)
    except OSError as error: return errno.errorcode.get(error.errno, str(error))
facts = json.loads(sys.stdin.readline())
globals().update(facts["names"])
print(json.dumps({name: tried(code) for name, code in facts["probes"].items()}))
"""


class Way(NamedTuple):
    """One way to be confined."""

    user: int
    network: str = "open"
    elsewhere: bool = False


class Probe(NamedTuple):
    """An expression for the inside, and what it must come to: a value, or a predicate over it."""

    code: str
    expected: object


def mounts_without(option: str) -> str:
    return f"[line for line in read('/proc/self/mounts').splitlines() if {option!r} not in line.split()[3].split(',')]"


def nothing_but_the_interpreter(*names: str, below: str) -> Callable[[Any], bool]:
    """There is no such directory, or no more in it than `names` and the way to an interpreter outside /usr."""
    binds = [path.relative_to(below).parts for path in sandbox.find_interpreter().binds if path.is_relative_to(below)]
    allowed = {*names, *(parts[0] for parts in binds if parts)}
    return lambda answer: answer == "ENOENT" or set(answer) <= allowed


PROBES: dict[str, Probe] = {
    # nothing of the host
    "the root": Probe("ls('/')", nothing_but_the_interpreter(
        "agent", "bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr",
        "workspace", below="/")),
    "/home": Probe("ls('/home')", nothing_but_the_interpreter(below="/home")),
    "/root": Probe("ls('/root')", nothing_but_the_interpreter(below="/root")),
    "/var": Probe("ls('/var')", nothing_but_the_interpreter(below="/var")),
    "/sys": Probe("ls('/sys')", "ENOENT"),
    "/tmp": Probe("[name for name in ls('/tmp') if name != elsewhere]", []),
    "/run": Probe("ls('/run') + ls('/run/orpheus')", ["orpheus", "lib", "link"]),
    "/etc/shadow": Probe("read('/etc/shadow')", "ENOENT"),
    "private keys": Probe("ls('/etc/ssl/private')", "ENOENT"),
    "host users": Probe("[line.split(':')[0] for line in read('/etc/passwd').splitlines()]", ["agent", "nobody"]),
    "state directory": Probe("ls(house)", "ENOENT"),
    "another workspace": Probe("read(house + '/other/secret')", "ENOENT"),
    "the control socket": Probe("connect(socket.AF_UNIX, house + '/ctl.sock')", "ENOENT"),
    "out of the workspace": Probe("ls('/workspace/..') == ls('/')", True),
    "out by a symlink": Probe("read('/workspace/way-out')", "ENOENT"),
    "the daemon's code": Probe("ls('/run/orpheus/lib') + ls('/run/orpheus/lib/orpheusd')", [
        "orpheusd", "workspace", "__init__.py", "wire", "worker"]),
    "/dev": Probe("ls('/dev')", lambda names: set(names) <= {
        "console", "core", "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero"}),
    "secrets in the mount table": Probe(
        "[line for line in read('/proc/self/mountinfo').splitlines() if '/other' in line]", []),
    # processes
    "pids": Probe("[name for name in ls('/proc') if name.isdigit()]", ["1"]),
    "it is pid 1": Probe("[os.getpid(), os.getppid(), os.getsid(0)]", [1, 0, 1]),
    "signal to the daemon": Probe("os.kill(daemon_pid, 0)", "ESRCH"),
    "the daemon's memory": Probe("read(f'/proc/{daemon_pid}/environ')", "ENOENT"),
    "descriptors": Probe("ls('/proc/self/fd')", ["0", "1", "2", "3"]),
    "environment": Probe("dict(os.environ)", {
        "LANG": "C.UTF-8", "ORPHEUS_SANDBOX": "t-1-1", "PATH": "/usr/local/bin:/usr/bin:/bin", "PWD": "/agent"}),
    "command line": Probe("'house' in read('/proc/1/cmdline').split(chr(0))", False),
    # rights
    "capabilities": Probe("status('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb')", ["0" * 16] * 5),
    "no new privileges": Probe("status('NoNewPrivs')", ["1"]),
    "uids": Probe("[*os.getresuid(), *os.getresgid()]", [1000] * 6),
    "become root": Probe("os.setuid(0)", lambda answer: answer in ("EPERM", "EINVAL")),
    "mount": Probe("call('mount', b'tmpfs', b'/tmp', b'tmpfs', 0, None)", "EPERM"),
    "remount": Probe("call('mount', None, b'/usr', None, 32 | 4096, None)", "EPERM"),
    "unmount": Probe("call('umount2', b'/proc/sys', 2)", lambda answer: answer != "done"),
    "chroot": Probe("call('chroot', b'/tmp')", "EPERM"),
    "make a device": Probe("os.mknod('/workspace/sda', stat.S_IFBLK | 0o600, os.makedev(8, 0))", "EPERM"),
    "set the host's name": Probe("socket.sethostname('evil')", "EPERM"),
    "set-uid programs": Probe(mounts_without("nosuid"), []),
    "devices of its own": Probe(
        f"[line for line in {mounts_without('nodev')} if not line.split()[1].startswith('/dev/')]", []),
    # writing
    "write /": Probe("write('/x')", "EROFS"),
    "write /usr": Probe("write('/usr/x')", lambda answer: answer in ("EROFS", "EACCES")),
    "write /etc": Probe("write('/etc/x')", "EROFS"),
    "write /etc/passwd": Probe("write('/etc/passwd')", lambda answer: answer in ("EROFS", "EACCES")),
    "write /dev": Probe("write('/dev/x')", "EROFS"),
    "write /agent": Probe("write('/agent/agent.py')", "EROFS"),
    "write its link": Probe("write('/run/orpheus/link/x')", "EROFS"),
    "write the runtime": Probe("write('/run/orpheus/lib/orpheusd/worker/x')", "EROFS"),
    "write /workspace": Probe("write('/workspace/x')", "written"),
    "write /tmp": Probe("write('/tmp/x')", "written"),
    "write /dev/shm": Probe("write('/dev/shm/x')", "written"),
    "write core_pattern": Probe(
        "openable('/proc/sys/kernel/core_pattern')", lambda answer: answer in ("EROFS", "EACCES")),
    "write anything of the kernel": Probe("writable('/proc')", []),
    "sizes": Probe("[size('/tmp'), size('/dev/shm')]", [sandbox.TMP_LIMIT_BYTES, root.SHM_LIMIT_BYTES]),
    # and it is a place to live in
    "who am I": Probe("[getpass.getuser(), os.path.expanduser('~'), socket.gethostname(), os.getcwd()]", [
        "agent", "/workspace", "my-agent", "/agent"]),
    "a shell": Probe("subprocess.run(['sh', '-c', 'echo hi'], capture_output=True).stdout.decode()", "hi\n"),
    "localhost": Probe("[*map(socket.gethostbyname, ('localhost', 'my-agent'))]", ["127.0.0.1", "127.0.1.1"]),
    "certificates": Probe("__import__('ssl').create_default_context().cert_store_stats()['x509_ca']", lambda count: (
        count > 0 or not Path("/etc/ssl/certs/ca-certificates.crt").exists())),
    "its code": Probe("read('/agent/agent.py')", "# the agent\n"),
    "the protocol": Probe("sys.path.insert(0, {lib!r}) or __import__('orpheusd.wire.worker').__name__".replace(
        "{lib!r}", repr(sandbox.LIB_DIR)), "orpheusd"),
}

ON_THE_NETWORK: dict[str, dict[str, Probe]] = {
    "open": {
        "the host's loopback": Probe("connect(socket.AF_INET, ('127.0.0.1', port))", "connected"),
        "resolver": Probe("read('/etc/resolv.conf')", lambda text: text == Path("/etc/resolv.conf").read_text()),
    },
    "closed": {
        "the host's loopback": Probe("connect(socket.AF_INET, ('127.0.0.1', port))", "ECONNREFUSED"),
        "routes": Probe("read('/proc/net/route').splitlines()[1:]", []),
        "the world": Probe("connect(socket.AF_INET, ('192.0.2.1', 80))", "ENETUNREACH"),
        "the host's abstract sockets": Probe("connect(socket.AF_UNIX, chr(0) + abstract)", "ECONNREFUSED"),
        "resolver": Probe("read('/etc/resolv.conf')", "ENOENT"),
    },
}

WAYS = {
    "root": Way(0),
    "nobody": Way(NOBODY),
    "root, no network": Way(0, "closed"),
    "nobody, no network": Way(NOBODY, "closed"),
    "interpreter elsewhere": Way(NOBODY, elsewhere=True),
}


@pytest.fixture(scope="module", params=WAYS)
def seen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What each probe came to, with the name of the way under ''."""
    way = WAYS[request.param]
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    if way.user != os.getuid() and os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    return {"": request.param, **_probed(way)}


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_meets_the_wall(seen: dict[str, Any], name: str) -> None:
    # fault 29
    _judge(PROBES[name], seen[name])


@pytest.mark.parametrize("name", sorted({*ON_THE_NETWORK["open"], *ON_THE_NETWORK["closed"]}))
def test_the_network_is_there_or_not(seen: dict[str, Any], name: str) -> None:
    probe = ON_THE_NETWORK[WAYS[seen[""]].network].get(name)
    if probe is not None:
        _judge(probe, seen[name])


@pytest.mark.root
def test_an_unprivileged_daemon_can_kill_its_template() -> None:
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    house = Path(tempfile.mkdtemp(prefix="orpheus-walls-"))
    try:
        _furnish(house, WAYS["nobody"])
        done = _launched(_interpreter(house, WAYS["nobody"]), house, WAYS["nobody"], "", "")
        assert (done.returncode, done.stdout, done.stderr) == (256 - 9, b"\n", b"")
    finally:
        shutil.rmtree(house)


def _judge(probe: Probe, answer: Any) -> None:
    if callable(probe.expected):
        assert probe.expected(answer), f"{probe.code} came to {answer!r}"
    else:
        assert answer == probe.expected, probe.code


def _probed(way: Way) -> dict[str, Any]:
    """Run the table. The houses are in /tmp, which an unprivileged user can reach and a sandbox must not show."""
    house = Path(tempfile.mkdtemp(prefix="orpheus-walls-"))
    elsewhere = Path(tempfile.mkdtemp(prefix="orpheus-python-"))
    try:
        _furnish(house, way)
        with socket.create_server(("127.0.0.1", 0)) as door, socket.socket(socket.AF_UNIX) as abstract:
            abstract.bind(f"\0{house.name}")
            abstract.listen()
            names = {"house": str(house), "daemon_pid": os.getpid(), "port": door.getsockname()[1],
                     "abstract": house.name, "elsewhere": elsewhere.name}
            probes = {**PROBES, **ON_THE_NETWORK[way.network]}
            line = {"names": names, "probes": {name: probe.code for name, probe in probes.items()}}
            done = _launched(_interpreter(elsewhere, way), house, way, INSIDE, json.dumps(line))
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        answers: dict[str, Any] = json.loads(done.stdout)
        return answers
    finally:
        shutil.rmtree(house)
        shutil.rmtree(elsewhere)


def _launched(python: str, house: Path, way: Way, program: str, line: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [python, "-c", LAUNCHER, str(house), way.network, program], input=line.encode(), capture_output=True,
        timeout=60, check=False, cwd="/", env={"PYTHONPATH": str(house / "site")},
        user=way.user, group=way.user, extra_groups=[])


def _furnish(house: Path, way: Way) -> None:
    for name in ("code", "ws", "link", "other", "site"):
        (house / name).mkdir()
    (house / "code/agent.py").write_text("# the agent\n")
    (house / "other/secret").write_text("of another agent")
    (house / "ws/way-out").symlink_to(house / "other/secret")
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(str(house / "ctl.sock"))
    installed = Path(sandbox.__file__).parents[2]
    for package in ("orpheusd", "workspace"):
        shutil.copytree(installed / package, house / "site" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (house, *house.rglob("*")):
        os.chown(path, way.user, way.user, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o755)


def _interpreter(prefix: Path, way: Way) -> str:
    """The base interpreter, or a copy of it in a prefix of its own."""
    base = sandbox.find_interpreter()
    if not way.elsewhere:
        if way.user == NOBODY and base.binds:
            pytest.skip(f"the interpreter is in {base.binds[0]}, which may be closed to others")
        return str(base.executable)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (prefix / "bin").mkdir()
    (prefix / "lib").mkdir()
    shutil.copy(base.executable, prefix / "bin" / version)
    (prefix / "lib" / version).symlink_to(Path(os.__file__).parent)
    prefix.chmod(0o755)
    return str(prefix / "bin" / version)
