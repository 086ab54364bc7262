"""What one would build without Orpheus: HAProxy that pins sessions, before two uvicorn workers.

One request at a time on each worker (`maxconn 1`), the rest queued in the proxy; a stick table on X-Session-ID; kept
connections on both sides; no access log. What the proxy says of itself afterwards proves that it was so.
"""

import csv
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import machine, peers
from tests.daemon import free_port

WORKERS = 2
#: What `pip install uvicorn` gives, and what `uvicorn[standard]` adds: HTTP parsed in C, and uvloop.
PLAIN = "uvicorn"
KINDS = {PLAIN: ("--http", "h11", "--loop", "asyncio"),
         "uvicorn[standard]": ("--http", "httptools", "--loop", "uvloop")}
CONFIG = """\
global
    maxconn 1000
    nbthread 1
    stats socket {stats}
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout queue 30s
frontend front
    bind 127.0.0.1:{port}
    default_backend workers
backend workers
    balance leastconn
    stick-table type string len 128 size 1m expire 24h
    stick on req.hdr(X-Session-ID)
{servers}
"""


@contextmanager
def pinned_uvicorns(kind: str, directory: Path) -> Iterator[int]:
    """The port of a running proxy with its workers. Raises machine.Missing when something cannot be installed."""
    haproxy = machine.command("haproxy", "haproxy")
    python = machine.bench_python()
    with ExitStack() as stack:
        ports = []
        for _ in range(WORKERS):
            port = free_port()
            stack.enter_context(peers.process(
                [python, "-m", "uvicorn", "bench.echo_app:app", "--port", str(port), "--log-level", "error",
                 "--no-access-log", *KINDS[kind]], port))
            ports.append(port)
        front = free_port()
        servers = "\n".join(f"    server w{number} 127.0.0.1:{port} maxconn 1" for number, port in enumerate(ports))
        config = directory / "haproxy.cfg"
        config.write_text(CONFIG.format(port=front, servers=servers, stats=_stats(directory)))
        stack.enter_context(peers.process([haproxy, "-f", str(config), "-db", "-q"], front))
        yield front


def check_pinned(directory: Path, sessions: int) -> None:
    """Raises AssertionError unless so many sessions were pinned, and no worker ever had two requests at a time."""
    table = _ask(directory, "show table workers")
    # not the `used` of its first line, which counts what is about to be freed as well
    assert len(set(re.findall(r" key=(\S+)", table))) == sessions, table
    servers = [row for row in csv.DictReader(_ask(directory, "show stat").splitlines()) if row["svname"][:1] == "w"]
    assert [row["smax"] for row in servers] == ["1"] * WORKERS, servers
    # A connection of its own for each request would make the workers look slow.
    assert all(int(row["connect"]) * 20 < int(row["req_tot"]) for row in servers), servers


def _stats(directory: Path) -> Path:
    return directory / "stats.sock"


def _ask(directory: Path, command: str) -> str:
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(_stats(directory)))
        asking.sendall(f"{command}\n".encode())
        with asking.makefile() as said:
            return said.read()
