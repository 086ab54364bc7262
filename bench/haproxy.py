"""What one would build without Orpheus: HAProxy that pins sessions, before two uvicorn workers.

One request at a time on each worker (`maxconn 1`), the rest queued in the proxy; a stick table on X-Session-ID.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import machine, peers
from tests.daemon import free_port

WORKERS = 2
#: What `pip install uvicorn` gives, and what `uvicorn[standard]` adds: HTTP parsed in C, and uvloop.
KINDS = {"uvicorn": ("--http", "h11", "--loop", "asyncio"),
         "uvicorn[standard]": ("--http", "httptools", "--loop", "uvloop")}
CONFIG = """\
global
    maxconn 1000
    nbthread 1
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
        config.write_text(CONFIG.format(port=front, servers=servers))
        stack.enter_context(peers.process([haproxy, "-f", str(config), "-db", "-q"], front))
        yield front
