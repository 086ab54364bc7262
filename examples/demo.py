"""Three runs of one session, by CLI and by HTTP, answered by one process: what `make demo` shows.

Starts a daemon with directories of its own, deploys examples/conversation, runs the documented commands as they
stand in the README, and checks what it shows. Exits with 1 when a turn or the process is not the right one.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
PORT = 7777
#: A first start compiles every module; a loaded machine takes longer still.
READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 20.0
#: Between two looks at whether the daemon is up.
POLL_S = 0.02
RUN = """orpheus run my-agent '{"query": "step %d"}' --session user-123"""
CURL = """curl -X POST http://localhost:%d/v1/agents/my-agent/run -H "Content-Type: application/json" \
-H "X-Session-ID: user-123" -d '{"input": {"query": "step 3"}}'"""


class DemoFailed(Exception):
    """The demo did not show what it promises; the message says what was seen instead."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with daemon() as (control, port):
            show(control, port)
    except DemoFailed as error:
        print(f"\ndemo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the daemon is stopped", file=sys.stderr)
        return 130
    return 0


def show(control: Path, port: int) -> None:
    environment = {**os.environ, "ORPHEUS_SOCKET": str(control), "PATH": f"{BIN}:{os.environ.get('PATH', '')}"}
    status = ask(control, "status")
    why = f" ({status['isolation_reason']})" if status["isolation"] == "none" else ""
    print(f"orpheusd is ready, isolation {status['isolation']}{why}")
    shell("orpheus deploy examples/conversation", environment)

    homes = []
    for turn in (1, 2):
        check_turn(turn, decoded(shell(RUN % turn, environment)))
        homes.append(ask(control, "session.show", agent="my-agent", session_id="user-123")["home"])
    if shutil.which("curl", path=environment["PATH"]) is None:
        raise DemoFailed("curl is missing; install it (sudo apt-get install curl) to see the third run")
    answer = decoded(shell(CURL % port, environment))
    print()
    check_turn(3, answer.get("result"))
    homes.append(answer["worker_id"])

    pids = {worker["id"]: worker["pid"] for worker in ask(control, "agent.show", agent="my-agent")["workers"]}
    if len(set(homes)) != 1 or homes[0] not in pids:
        raise DemoFailed(f"the runs were answered by {homes}, and the living workers are {pids}")
    print(f"\nTurns 1, 2 and 3 came from one process: worker {homes[0]}, pid {pids[homes[0]]}.")


def decoded(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise DemoFailed(f"a JSON object should have come, not {text!r}")
    return value


def check_turn(turn: int, result: Any) -> None:
    if not isinstance(result, dict) or result.get("turn") != turn:
        raise DemoFailed(f"turn {turn} should have come, not {result!r}")


def shell(command: str, environment: dict[str, str]) -> str:
    """What the command printed on stdout, shown as well. Raises DemoFailed when it fails."""
    print(f"\n$ {command}", flush=True)
    # The command is shown as documented; curl's own progress is not part of the show.
    silent = command.replace("curl ", "curl -sS ", 1) if command.startswith("curl ") else command
    done = subprocess.run(["bash", "-c", silent], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise DemoFailed(f"`{shlex.split(command)[0]}` exited with {done.returncode}")
    return done.stdout


@contextmanager
def daemon() -> Iterator[tuple[Path, int]]:
    """The control socket and the HTTP port of a daemon that is ready; it is gone when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="orpheus-demo-"))
    port = free_port()
    if port != PORT:
        print(f"port {PORT} is taken: HTTP is on port {port} this time")
    argv = [sys.executable, "-m", "orpheusd", "--state-dir", str(directory / "state"),
            "--runtime-dir", str(directory / "run"), "--http", f"localhost:{port}"]
    log = directory / "orpheusd.log"
    try:
        with log.open("wb") as stream:
            # A session of its own: Ctrl-C reaches the demo, which then stops the daemon in order.
            process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                                       start_new_session=True)
        try:
            wait_until_ready(process, directory / "run" / "ctl.sock", log)
            yield directory / "run" / "ctl.sock", port
        finally:
            stop(process)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def wait_until_ready(process: "subprocess.Popen[bytes]", control: Path, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            ask(control, "health")
            return
        except (OSError, EOFError):
            if process.poll() is not None or time.monotonic() > deadline:
                why = f"exited with {process.returncode}" if process.poll() is not None else "did not become ready"
                raise DemoFailed(f"orpheusd {why}; it said:\n{log.read_text(errors='replace')}") from None
        time.sleep(POLL_S)


def stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ask(control: Path, method: str, **params: Any) -> Any:
    """The result of one operation: one line of JSON there, one line back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(READY_TIMEOUT_S)
        connection.connect(str(control))
        question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile("rb") as lines:
            line = lines.readline()
    if not line:
        raise EOFError("the daemon closed the connection")
    answer = json.loads(line)
    if "error" in answer:
        raise DemoFailed(f"{method}: {answer['error']['message']}")
    return answer["result"]


def free_port() -> int:
    """The documented port, or one the kernel picks when that is taken at any address."""
    both = socket.has_dualstack_ipv6()
    for port in (PORT, 0):
        with socket.socket(socket.AF_INET6 if both else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if both:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoFailed("no TCP port is free")


if __name__ == "__main__":
    sys.exit(main())
