"""A box of its own for tests: a real systemd, booted on an overlay of this system's root in namespaces of its own.

What is done in it is done to nothing outside: it has its own processes, mounts, /tmp, /run, users and network, and its
changes of files lie in memory. `boot.sh` is what makes it so.
"""

import ctypes
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from tests import planted
from tests.daemon import LOOK_TIMEOUT_S, ROOT, Control
from tests.eventually import eventually

SYSTEMD = Path("/usr/lib/systemd/systemd")
#: A quiet box is up in a second.
BOOT_TIMEOUT_S = 30.0
#: pip and the build of the package are the slowest of what is done in a box.
COMMAND_TIMEOUT_S = 110.0
#: After the kill of pid 1 nothing is left but what the kernel has to take apart.
GONE_TIMEOUT_S = 10.0

HTTP_PORT = 7777
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000


class Box:
    """Invariant: between `boot` and `close` systemd runs as the box's pid 1; after `close` nothing of it is left."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="orpheus-box-", dir="/tmp"))
        self._cgroup = self._directory.name
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0

    def boot(self) -> Self:
        """Returns when the box has started all it starts. Raises AssertionError with what it said when it does not."""
        with (self._directory / "log").open("wb") as log:
            (self._directory / "root").mkdir()
            self._process = subprocess.Popen(
                ["unshare", "--mount", "--", ROOT / "tests/system/boot.sh", "prepare", self._cgroup, ROOT,
                 self._directory / "root"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            self._init = eventually(self._systemd, BOOT_TIMEOUT_S, "systemd to be pid 1 of the box")
            eventually(lambda: self.run("systemctl", "is-system-running", check=False).strip() == "running",
                       BOOT_TIMEOUT_S, "the box to be up")
        except AssertionError as error:
            said = (self._directory / "log").read_text(errors="replace")
            self.close()
            raise AssertionError(f"{error}; it said:\n{said[-4000:]}") from None
        return self

    def close(self) -> None:
        if self._process is not None:
            for process in psutil.Process(self._process.pid).children(recursive=True)[:1]:
                process.kill()  # pid 1 of a pid namespace: all others go with it
            self._process.wait(GONE_TIMEOUT_S)
        self._remove_cgroups()
        shutil.rmtree(self._directory)

    def run(self, *argv: str, check: bool = True, network: bool = False, input: str = "", user: str = "root") -> str:
        """What a command in the box printed. `network` gives it ours. Raises AssertionError with it when it fails."""
        spaces = ("-m", "-p", "-u", "-i", "-C") if network else ("-a",)
        drop = () if user == "root" else ("runuser", "-u", user, "--")
        done = subprocess.run(
            ["nsenter", "-t", str(self._init), *spaces, "--", *drop, *argv], input=input, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=COMMAND_TIMEOUT_S, cwd="/")
        planted.LOOKOUT.look(done.stdout, f"what {' '.join(argv)} printed in the box")
        assert not check or done.returncode == 0, f"{' '.join(argv)} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def systemctl(self, *argv: str) -> str:
        """Raises AssertionError with what the journal has when it fails."""
        try:
            return self.run("systemctl", *argv)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.journal()}") from None

    def journal(self, *options: str) -> str:
        return self.run("journalctl", "--no-pager", "-n", "60", *options)

    def property(self, name: str, unit: str = "orpheusd.service") -> str:
        return self.run("systemctl", "show", "--value", "--property", name, unit).strip()

    def path(self, inside: str) -> Path:
        """A path in the box, as seen from outside."""
        return Path(f"/proc/{self._init}/root/{inside.lstrip('/')}")

    def control(self) -> Control:
        return Control(self.path("/run/orpheus/ctl.sock"))

    def look_around(self, units: Sequence[str], user: str) -> None:
        """For what was planted, in all that this box tells of a service; what it prints, `run` looks at."""
        with planted.LOOKOUT.timed():
            planted.LOOKOUT.daemons += 1
            self.run("journalctl", "--no-pager", "-o", "verbose")
            for words in ("show", "status"):
                self.run("systemctl", words, "--no-pager", *units, check=False)
            planted.look_at_processes(self._init, self.processes(user))
            planted.look_at_files(
                self.path("/var/lib/orpheus"), self.path("/run/orpheus"), self._directory / "log")
            # what is stopped has no socket; where only the service is, this starts it, as the next test would
            planted.ask_around(lambda: Control(self.path("/run/orpheus/ctl.sock"), LOOK_TIMEOUT_S))

    def processes(self, user: str) -> list[psutil.Process]:
        """The living processes in the box that belong to this user of the box."""
        uid = int(self.run("id", "-u", user))
        found = []
        for process in psutil.Process(self._init).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.uids().real == uid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    @contextmanager
    def network(self) -> Iterator[None]:
        """The sockets that this thread makes in here are the box's."""
        with Path("/proc/thread-self/ns/net").open() as ours, Path(f"/proc/{self._init}/ns/net").open() as theirs:
            _enter_network(theirs.fileno())
            try:
                yield
            finally:
                _enter_network(ours.fileno())

    def connect(self, timeout_s: float, host: str = "127.0.0.1") -> socket.socket:
        """A connection to the HTTP door."""
        with self.network():
            return socket.create_connection((host, HTTP_PORT), timeout_s)

    def drop_in(self, unit: str, lines: Sequence[str]) -> None:
        """Change a service by these lines of [Service], or back by none."""
        directory = self.path(f"/etc/systemd/system/{unit}.d")
        shutil.rmtree(directory, ignore_errors=True)
        if lines:
            directory.mkdir()
            (directory / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        self.systemctl("daemon-reload")

    def _systemd(self) -> int:
        """The pid of the box's pid 1, once it is systemd; 0 before. Raises AssertionError when there will be none."""
        assert self._process is not None
        assert self._process.poll() is None, f"the box ended with {self._process.returncode}"
        children = psutil.Process(self._process.pid).children()
        with suppress(psutil.NoSuchProcess):
            return next((child.pid for child in children if child.name() == "systemd"), 0)
        return 0

    def _remove_cgroups(self) -> None:
        """The kernel keeps them until somebody removes them, the innermost first."""
        mount = self._directory / "root"
        script = 'mount -t cgroup2 cgroup2 "$1" && if [ -d "$1/$2" ]; then find "$1/$2" -depth -type d -delete; fi'
        subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", mount, self._cgroup], check=True,
                       timeout=GONE_TIMEOUT_S)


def _enter_network(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns(CLONE_NEWNET)")
