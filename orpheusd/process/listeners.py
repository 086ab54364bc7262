"""Who listens on a TCP port: for the sentence that says why the daemon cannot."""

import psutil


def listener_on(port: int) -> str:
    """`pid 12 (nginx)`, or "" when nobody does or the kernel does not tell us."""
    try:
        found = [one.pid for one in psutil.net_connections("tcp") if one.pid is not None
                 and one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port]
        return f"pid {found[0]} ({psutil.Process(found[0]).name()})" if found else ""
    except (psutil.Error, OSError):
        return ""
