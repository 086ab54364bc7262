"""A real `orpheusd` for tests: directories of its own, ready when `start` returns, gone when `stop` returns.

It talks to the daemon as any caller would, over the control socket, HTTP and `orpheusctl`, and knows nothing of
what is inside. Secrets are planted in what it deploys, and looked for in all it says and whenever it ends
(tests/planted.py).
"""

import base64
import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil

from orpheusd.wire.control import read_error, request
from tests import planted
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parent.parent
#: A cold start imports, makes directories and starts the door: well under 2 s; a loaded machine takes longer.
READY_TIMEOUT_S = 20.0
#: Beyond the daemon's own grace and stop timeouts.
STOP_TIMEOUT_S = 20.0
#: A run of the slowest kind a test asks for (a venv build) stays below this.
CALL_TIMEOUT_S = 120.0
#: A daemon that is well tells in milliseconds whatever there is to read of it; of another nothing is asked.
LOOK_TIMEOUT_S = 2.0
#: The daemon takes pieces of at most 4 MiB.
PIECE_BYTES = 3 * 1024 * 1024


class Control:
    """One connection to the control socket. Invariant: nothing on it waits longer than `timeout_s` seconds."""

    def __init__(self, path: Path, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        try:
            eventually(lambda: self._connects(path), timeout_s, f"room in the queue of {path}")
        except OSError:
            self.socket.close()
            raise
        self._lines = self.socket.makefile("rb")
        self._last_id = 0

    def _connects(self, path: Path) -> bool:
        """False while too many wait to be accepted (unix(7): EAGAIN)."""
        try:
            self.socket.connect(str(path))
        except BlockingIOError:
            return False
        return True

    def send(self, method: str, **params: Any) -> int:
        """The id of the request that was sent."""
        self._last_id += 1
        self.socket.sendall(json.dumps(request(self._last_id, method, params)).encode() + b"\n")
        return self._last_id

    def receive(self) -> dict[str, Any]:
        """The next frame: an answer or an event. Raises EOFError when the daemon closed the connection."""
        line = self._lines.readline()
        if not line.endswith(b"\n"):
            raise EOFError("the daemon closed the control connection")
        planted.LOOKOUT.look(line, "an answer at the control socket")
        frame: dict[str, Any] = json.loads(line)
        return frame

    def call(self, method: str, **params: Any) -> Any:
        """The result of one request; events on the way are skipped. Raises OrpheusError when it is refused."""
        for frame in self.stream(method, **params):
            if "result" in frame:
                return frame["result"]
        raise AssertionError("the stream ended without an answer")

    def stream(self, method: str, **params: Any) -> Iterator[dict[str, Any]]:
        """Each event of one request, then its answer. Raises OrpheusError when it is refused."""
        id = self.send(method, **params)
        while True:
            frame = self.receive()
            if "error" in frame and frame.get("id") == id:
                raise read_error(frame["error"])
            yield frame
            if "result" in frame and frame.get("id") == id:
                return

    def close(self) -> None:
        self._lines.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Daemon:
    """One daemon and its directories.

    Invariant: after `stop` or `kill` none of its processes is left; after `close` its directories are gone too.
    """

    def __init__(self, *flags: str, http: bool = True, isolation: str = "auto", env: dict[str, str] | None = None,
                 directory: Path | None = None, wrapper: tuple[str, ...] = ()) -> None:
        # Not pytest's tmp_path: with a socket's name after it, that is often over the 107 bytes a path may have.
        self.directory = directory or Path(tempfile.mkdtemp(prefix="orpheus-", dir="/tmp"))
        self.state_dir = self.directory / "state"
        self.runtime_dir = self.directory / "run"
        self.control_socket = self.runtime_dir / "ctl.sock"
        self.http = f"http://127.0.0.1:{free_port()}" if http else None
        self._door = ("--http", f"localhost:{self.http.rpartition(':')[2]}") if self.http else ("--no-http",)
        self._flags = ("--isolation", isolation, *flags)
        self._wrapper = wrapper
        self.env = env or {}
        self._log = self.directory / "orpheusd.log"
        self._token: set[bytes] = set()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, "the daemon was not started"
        return self.process.pid

    @property
    def log(self) -> str:
        """What the daemon wrote to stderr, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self) -> Self:
        """Returns when the daemon answers `health`. Raises AssertionError with its log when it does not."""
        assert self.process is None, "the daemon is running"
        self.process = self.spawn()
        try:
            eventually(self._answers, READY_TIMEOUT_S, "the daemon to be ready")
        except AssertionError as error:
            self.kill()
            raise AssertionError(f"{error}; its log:\n{self.log[-4000:]}") from None
        planted.LOOKOUT.daemons += 1
        self._token = planted.token(self.state_dir)
        planted.LOOKOUT.tokens |= self._token
        return self

    def spawn(self) -> "subprocess.Popen[bytes]":
        """A process of the daemon, on its way up, for a test that looks after it."""
        argv = [*self._wrapper, sys.executable, "-m", "orpheusd", "--state-dir", str(self.state_dir),
                "--runtime-dir", str(self.runtime_dir), *self._door, *self._flags]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C in the tests reaches the tests, which then stop the daemon in order.
            return subprocess.Popen(
                argv, cwd=ROOT, env={**environment(), **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True)

    def stop(self) -> int:
        """Its exit code after SIGTERM. Raises AssertionError when it did not leave in time; it is killed then."""
        assert self.process is not None, "the daemon is not running"
        process, family = self.process, self.family()
        self._look_at(family)
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"no exit within {STOP_TIMEOUT_S} s of SIGTERM; its log:\n{self.log[-4000:]}") from None
        self.process = None
        self._bury(family)
        self._look_around()
        return code

    def kill(self) -> None:
        """SIGKILL to the daemon and to all that it would leave to the next one."""
        if self.process is None:
            return
        family = self.family()
        self._look_at(family)
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        self._bury(family, patience_s=0.0)
        self._look_around()

    def crash(self) -> None:
        """SIGKILL to the daemon alone: what it started is left to the next one, which `start` starts."""
        assert self.process is not None, "the daemon is not running"
        self.process.kill()
        self.died()

    def died(self) -> int:
        """Wait for a daemon that ends by itself; what it started is left. Its exit code."""
        assert self.process is not None, "the daemon is not running"
        code = self.process.wait(STOP_TIMEOUT_S)
        self.process = None
        self._look_around()
        return code

    def sweep(self) -> None:
        """Kill what a daemon that died has left."""
        self._bury(self.orphans())

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def close(self) -> None:
        try:
            if self.process is not None:
                self._ask_around()
                self.stop()
            self.sweep()
        finally:
            self._look_around()
            planted.LOOKOUT.tokens -= self._token
            shutil.rmtree(self.directory, ignore_errors=True)

    def family(self) -> list[psutil.Process]:
        """Every process below the daemon: door, templates, workers and what these started."""
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def connect(self, timeout_s: float = CALL_TIMEOUT_S) -> Control:
        """Raises OSError, with how it ended if it was not to end."""
        try:
            return Control(self.control_socket, timeout_s)
        except OSError as error:
            if self.process is not None and self.process.poll() is not None:
                ended = f"the daemon exited with {self.process.returncode}"
                raise OSError(f"{ended}; its log:\n{self.log[-4000:]}") from error
            raise

    def call(self, method: str, **params: Any) -> Any:
        """The result of one operation over the control socket. Raises OrpheusError when it is refused."""
        with self.connect() as control:
            return control.call(method, **params)

    def ctl(self, *args: str, input: str | None = None, cwd: Path = ROOT,
            env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """What `orpheusctl ARGS` printed and its exit code, sent to this daemon."""
        done = subprocess.run(
            [sys.executable, "-m", "orpheusctl", *args], cwd=cwd, env={**self.ctl_env, **(env or {})},
            input=input or "", capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False)
        planted.LOOKOUT.look(done.stdout + done.stderr, f"what orpheusctl {' '.join(args)} printed")
        return done

    @property
    def ctl_env(self) -> dict[str, str]:
        """An environment in which `orpheusctl` and `orpheus` find this daemon."""
        return {**environment(), "ORPHEUS_SOCKET": str(self.control_socket), planted.GIVEN: planted.secret("by-ctl")}

    def deploy(self, folder: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
        """The answer of `deploy` for the agent in `folder`, which must be up and serving by then."""
        return self.deploy_bundle(bundle(folder), {**given(folder), **(env or {})})

    def deploy_bundle(self, data: bytes, env: dict[str, str] | None = None) -> dict[str, Any]:
        """The same for any bytes."""
        with self.connect() as control:
            upload: dict[str, str] = {}
            for start in range(0, len(data), PIECE_BYTES):
                piece = base64.b64encode(data[start:start + PIECE_BYTES]).decode()
                upload = {"upload_id": control.call("bundle.put", data=piece, **upload)["upload_id"]}
            deployed: dict[str, Any] = control.call("deploy", env=env or {}, **upload)
            return deployed

    def _look_at(self, family: list[psutil.Process]) -> None:
        """For what was planted, in what the kernel tells everybody of these processes."""
        with planted.LOOKOUT.timed():
            planted.look_at_processes(self.pid, family)

    def _ask_around(self) -> None:
        """For what was planted, in what can be read of a daemon. Before its last end: no test's own end is late."""
        with planted.LOOKOUT.timed():
            planted.ask_around(lambda: self.connect(LOOK_TIMEOUT_S))

    def _look_around(self) -> None:
        """For what was planted, in what it has left."""
        with planted.LOOKOUT.timed():
            planted.look_at_files(self.state_dir, self.runtime_dir, self._log)

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the daemon exited with {self.process.returncode}")
        try:
            with self.connect(timeout_s=READY_TIMEOUT_S) as control:
                control.call("health")
        except (OSError, EOFError):
            return False
        return True

    def orphans(self) -> list[psutil.Process]:
        """What a daemon that was killed has left to a next one that did not come."""
        tags = {f"ORPHEUS_SANDBOX={path.stem}".encode() for path in (self.runtime_dir / "born").glob("*.json")}
        found = []
        for process in psutil.process_iter() if tags else ():
            with suppress(OSError):
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
                if not tags.isdisjoint(environ.split(b"\0")):
                    found.append(process)
        return found

    def _bury(self, family: list[psutil.Process], patience_s: float = 2.0) -> None:
        _, alive = psutil.wait_procs(family, timeout=patience_s)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=2)


def command(process: psutil.Process) -> list[str]:
    """Its command line; of one that is gone, or dead and not buried yet, there is none."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def write_agent(folder: Path, code: str, **settings: Any) -> Path:
    """`folder` with an agent in it: `code` as agent.py, `settings` as agent.yaml; its name is the folder's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agent.py").write_text(code)
    described = {"name": folder.name, "runtime": "python3", "module": "agent", "entrypoint": "handler", **settings,
                 "env": planted.sown(folder.name, settings.get("env"))}
    (folder / "agent.yaml").write_text(json.dumps(described))  # JSON is YAML
    return folder


def bundle(folder: Path, complete: bool = False) -> bytes:
    """The tar.gz that `deploy` takes, with `given(folder)` as the least of its environment; one that is `complete`
    needs none."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            if path == folder / "agent.yaml":
                manifest = _manifest(folder)
                text = (planted.complete(folder.name, manifest) if complete else manifest).encode()
                about = archive.gettarinfo(path, path.name)
                about.size = len(text)
                archive.addfile(about, io.BytesIO(text))
            elif "__pycache__" not in path.parts:
                archive.add(path, str(path.relative_to(folder)), recursive=False)
    return data.getvalue()


def given(folder: Path) -> dict[str, str]:
    """What was planted in the bundle of `folder` and needs a value from its deployer."""
    return planted.given(folder.name, _manifest(folder))


def _manifest(folder: Path) -> str:
    """The agent.yaml that is deployed, "" when there is none."""
    path = folder / "agent.yaml"
    return planted.sown_text(folder.name, path.read_text()) if path.exists() else ""


def free_port() -> int:
    """One on which nobody listens at any address, and that no client is given for itself before it is used."""
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = [port for port in range(10_000, 65_536) if not first <= port <= last]
    for port in random.sample(ports, 100):
        with socket.socket(socket.AF_INET6) as probe, suppress(OSError):
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", port))
            return port
    raise AssertionError("of a hundred ports none is free")


def environment() -> dict[str, str]:
    """Ours, without what would point a daemon or a client at somebody else's directories."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("ORPHEUS_") and name not in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY")}
    return {**kept, "PYTHONPATH": str(ROOT)}

