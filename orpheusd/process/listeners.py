"""Who listens on a TCP port where the daemon wants to: their name, or their end when they are agents of ours."""

from collections.abc import Container
from pathlib import Path

import psutil

from orpheusd.process import survivors
from orpheusd.process.records import Records
from orpheusd.process.sandbox import SANDBOX_TAG

#: A socket that is bound to all addresses is reached at each, and one of IPv6 at those of IPv4 too.
EVERYWHERE = ("0.0.0.0", "::")
MAPPED = "::ffff:"


def listener_on(host: str, port: int) -> str:
    """`pid 12 (nginx)`, or "" when nobody listens where `host` is reached or the kernel does not tell us."""
    try:
        pids = _listening(port, (host, *EVERYWHERE))
        return next((f"pid {pid} ({psutil.Process(pid).name()})" for pid in pids), "")
    except psutil.Error:
        return ""


async def evict(host: str, port: int, runtime_dir: Path) -> list[str]:
    """Kill the templates that an earlier daemon has left here, with all below them, of which somebody listens where
    `host` is reached. Their ids: each is named once, as its record goes. The caller holds the directory's lock.
    """
    records = Records(runtime_dir / "born")
    templates = {f"{SANDBOX_TAG}={template}": template for template in records.templates()}
    pids = _listening(port, (host, *EVERYWHERE))
    found = {tag for pid in pids if (tag := survivors.owner(pid, templates)) is not None}
    for tag in found:
        await survivors.kill_tagged(tag)
        records.forget(templates[tag])
    return sorted(templates[tag] for tag in found)


def _listening(port: int, hosts: Container[str]) -> list[int]:
    """The pids of who does, at one of `hosts`."""
    try:
        return [one.pid for one in psutil.net_connections("tcp") if one.pid is not None
                and one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port
                and one.laddr.ip.removeprefix(MAPPED) in hosts]
    except (psutil.Error, OSError):
        return []
