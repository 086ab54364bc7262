"""Plays the supervisor for a real template: a listening socket, WorkerLink, and deadlines on everything.

The template runs as the daemon starts it without bubblewrap: isolated, from a directory of symlinks. Blocking
sockets and one thread: a test says what it sends, and waits for what must come.
"""

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from orpheusd.wire.worker import LinkState, Message, Role, WorkerLink
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = ROOT / "tests" / "handlers"
BOOTSTRAP = "import sys; sys.path.insert(0, {lib!r}); from orpheusd.worker.template import main; main()"
#: The interpreter of the agents; CI may name another one to show that the inside runs there.
PYTHON = os.environ.get("ORPHEUS_TEST_AGENT_PYTHON", sys.executable)
WAIT_S = 10.0
#: How often a wait looks whether the other side still lives.
LOOK_UP_S = 0.2

T = TypeVar("T")


class Ended(NamedTuple):
    """What a worker said of a run."""

    state: str
    code: str
    value: Any
    fields: dict[str, Any]


class End:
    """Our end of one connection: everything the other side said, in order, until a test takes it."""

    def __init__(self, peer: "Peer", sock: socket.socket) -> None:
        self.peer = peer
        self.sock = sock
        self.link = WorkerLink(Role.SUPERVISOR, json.loads, lambda value: json.dumps(value).encode())
        self.pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        self.inbox: list[Message] = []
        self.open = True
        self.reading = True
        self.said_at = 0.0
        self.hello: Message | None = None

    def send(self, type: str, fields: dict[str, Any], payload: bytes = b"") -> None:
        self.sock.sendall(self.link.send(type, fields, payload))

    def receive(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            self.open = False
            return
        self.said_at = time.perf_counter()
        messages = self.link.receive(data)
        self.inbox += messages
        over = [message.fields["run_id"] for message in messages if message.type == "ended"]
        if over and self.peer.acknowledges:
            # it may have left, or died, since
            with contextlib.suppress(ConnectionError):
                self.send("acknowledged", {"run_ids": over})

    def take(self, type: str, timeout_s: float = WAIT_S, **fields: Any) -> Message:
        """The next message of that type with those fields; others stay where they are."""
        def find() -> Message | None:
            for message in self.inbox:
                if message.type == type and all(message.fields[name] == value for name, value in fields.items()):
                    self.inbox.remove(message)
                    return message
            if not self.open:
                raise AssertionError(f"the peer left before it said {type} {fields}; it said {self.inbox}")
            return None

        return self.peer.until(find, timeout_s, f"{type} {fields}")

    def run(self, value: Any = None, *, raw: bytes | None = None, **fields: Any) -> str:
        """Start a run; its id."""
        run_id: str = fields.setdefault("run_id", f"r-{next(self.peer.numbers)}")
        facts = {"session_id": None, "context": None, "turn": 0, "timeout_s": None, "stream": False, "note": {},
                 **fields}
        self.send("run", facts, json.dumps(value).encode() if raw is None else raw)
        return run_id

    def ended(self, run_id: str, timeout_s: float = WAIT_S) -> Ended:
        message = self.take("ended", timeout_s, run_id=run_id)
        state, code = message.fields["state"], message.fields["code"]
        return Ended(state, code, json.loads(message.payload), message.fields)

    def call(self, value: Any = None, **fields: Any) -> Ended:
        return self.ended(self.run(value, **fields))

    def cancel(self, run_id: str, reason: str = "cancelled") -> None:
        """As the daemon does: the message, then the doorbell."""
        self.send("cancel", {"run_id": run_id, "reason": reason})
        os.kill(self.pid, signal.SIGUSR1)

    def logs(self, **fields: Any) -> list[str]:
        """The text of all log messages so far, taken."""
        found = [message for message in self.inbox if message.type == "log"
                 and all(message.fields[name] == value for name, value in fields.items())]
        self.inbox = [message for message in self.inbox if message not in found]
        return [message.fields["text"] for message in found]

    def gone(self, timeout_s: float = WAIT_S) -> None:
        """Wait for the end of the connection."""
        self.peer.until(lambda: not self.open, timeout_s, "the end of the connection")


class Peer:
    """A template and all that dials its socket.

    Invariant: after `close` the template is reaped, and nothing it started lives. While it `acknowledges`, every end
    of a run is acknowledged when it is heard.
    """

    def __init__(self, place: Path, module: str = "behaviours", entrypoint: str = "handler", **setup: Any) -> None:
        self.place = place
        self.acknowledges = True
        self.numbers = itertools.count(1)
        self.ends: list[End] = []
        self.setup: dict[str, Any] = {
            "agent": "probe", "version": 3, "module": module, "entrypoint": entrypoint, "concurrency": 1,
            "preload": False, "env": {}, "code_dir": str(HANDLERS), "workspace_dir": str(place / "workspace"),
            "result_limit_bytes": 8 << 20, "orphan_ttl_s": 0.0, "isolation": "none", **setup,
        }
        (place / "workspace").mkdir(exist_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(place / "worker.sock"))
        self.listener.listen(64)
        with (place / "template.out").open("wb") as output:
            self.process = subprocess.Popen(
                command(place), stdin=subprocess.PIPE, stdout=output, stderr=output,
                env={"ORPHEUS_SANDBOX": f"t-{place.name}"}, start_new_session=True)
        launch = {"template_id": "t-1-1", "nonce": "n0", "socket": str(place / "worker.sock")}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(launch).encode() + b"\n")
        self.process.stdin.close()
        try:
            self.template = self.dialled("t-1-1")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Give the setup, and wait until it can fork."""
        self.say_setup()
        self.template.take("ready")
        return self

    def say_setup(self) -> None:
        self.template.send("setup", {}, json.dumps(self.setup).encode())

    def fork(self, worker_id: str | None = None) -> End:
        """A worker that has said hello."""
        worker_id = worker_id or f"w-1-{next(self.numbers)}"
        self.template.send("fork", {"worker_id": worker_id, "nonce": f"n-{worker_id}"})
        return self.dialled(worker_id)

    def worker(self, form: str | None = None) -> End:
        """A worker that is ready."""
        end = self.fork()
        ready = end.take("ready")
        assert form in (None, ready.fields["handler"])
        return end

    def dialled(self, id: str) -> End:
        def find() -> End | None:
            for end in self.ends:
                for message in end.inbox:
                    if message.type == "hello" and message.fields["id"] == id:
                        end.inbox.remove(message)
                        end.hello = message
                        return end
            if self.process.poll() is not None:
                raise AssertionError(f"the template left with {self.process.returncode}: {self.output()}")
            return None

        return self.until(find, WAIT_S, f"{id} to dial")

    def exited(self, worker_id: str, timeout_s: float = WAIT_S) -> int:
        status: int = self.buried(worker_id, timeout_s)["status"]
        return status

    def buried(self, worker_id: str, timeout_s: float = WAIT_S) -> dict[str, Any]:
        """Everything the template tells of a worker's end."""
        return self.template.take("exited", timeout_s, worker_id=worker_id).fields

    def until(self, find: Callable[[], T], timeout_s: float, what: str) -> T:
        """Listen until `find` gives something."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = find()
            if found:
                return found
            left_s = deadline - time.monotonic()
            if not self.listen(min(left_s, LOOK_UP_S)) and left_s <= LOOK_UP_S:
                raise AssertionError(f"not within {timeout_s} s: {what}; the template printed {self.output()!r}")

    def listen(self, timeout_s: float) -> bool:
        """Take what comes; False when nothing came in time."""
        if timeout_s <= 0:
            return False
        watched = {end.sock: end for end in self.ends if end.open and end.reading}
        ready = select.select([self.listener, *watched], [], [], timeout_s)[0]
        for sock in ready:
            if sock is self.listener:
                self.ends.append(End(self, self.listener.accept()[0]))
            else:
                watched[sock].receive()
        return bool(ready)

    def settle(self, quiet_s: float = 0.05) -> None:
        """Listen until nothing comes any more."""
        while self.listen(quiet_s):
            pass

    def output(self) -> str:
        return (self.place / "template.out").read_text(errors="replace")

    def close(self) -> None:
        for end in self.ends:
            end.sock.close()
        self.listener.close()
        try:
            self.process.wait(WAIT_S / 2)
        finally:
            self.process.kill()
            self.process.wait()
        eventually(lambda: not tagged(f"ORPHEUS_SANDBOX=t-{self.place.name}"), what="nothing of the template lives")

    def end(self, *workers: End) -> None:
        """Tell these workers to leave, and wait until they did."""
        for worker in workers:
            if worker.open and worker.link.state in (LinkState.STARTING, LinkState.READY):
                with suppress(BrokenPipeError):  # it is dead, and we have not read so far
                    worker.send("stop", {})
            worker.gone()
            worker.sock.close()
            self.ends.remove(worker)


def command(place: Path) -> list[str]:
    """How a template is started, with the runtime's library laid out under `place`."""
    lib = place / "lib"
    if not lib.exists():
        (lib / "orpheusd").mkdir(parents=True)
        for name in ("orpheusd/__init__.py", "orpheusd/wire", "orpheusd/worker", "workspace"):
            (lib / name).symlink_to(ROOT / name)
    return [PYTHON, "-I", "-c", BOOTSTRAP.format(lib=str(lib))]


def tagged(tag: str) -> list[int]:
    """Processes that carry this in the environment they were started with."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if tag.encode() in path.read_bytes().split(b"\0") and not _is_zombie(path.parent):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def fds(pid: int) -> dict[int, str]:
    """What a process has open."""
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[int(path.name)] = str(path.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def _is_zombie(process: Path) -> bool:
    return (process / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "Z"
