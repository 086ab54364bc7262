"""Where the daemon's socket may be, which server there is to be trusted, and what to say when none answers.

It opens no connection. Trust is a matter of who could have made the socket: security is lost when an input,
or the value of a secret, is handed to a server that another user has put in the daemon's place.
"""

import errno
import grp
import os
import pwd
import stat
from typing import NamedTuple

from orpheusd.errors import OrpheusError

SYSTEM_SOCKET = "/run/orpheus/ctl.sock"
#: unix(7): sun_path is 108 bytes with its NUL.
PATH_LIMIT_BYTES = 107


class Attempt(NamedTuple):
    """A socket that could not be connected to."""

    path: str
    error: OSError


def candidates(stated: str | None) -> list[str]:
    """The sockets to try, in order: the one stated, else $ORPHEUS_SOCKET, else the user's and the system's."""
    if stated or (stated := os.environ.get("ORPHEUS_SOCKET")):
        return [stated]
    runtime_dir = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return [f"{runtime_dir}/orpheus/ctl.sock", SYSTEM_SOCKET]


def trusted(path: str, server_uid: int, own_uid: int) -> bool:
    """Whether a server that runs as `server_uid` may be sent anything by `own_uid`.

    Root and the caller may. A service account may if only root can have given it the directory of the socket:
    it owns that directory, and the directory above is root's and nobody else's to write.
    """
    if server_uid in (0, own_uid):
        return True
    from pathlib import Path  # noqa: PLC0415 - costs 3 ms, and most runs have returned

    try:
        directory = Path(path).resolve().parent
        inside, above = directory.stat(), directory.parent.stat()
    except OSError:
        return False
    return inside.st_uid == server_uid and above.st_uid == 0 and not above.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def distrusted(path: str, server_uid: int) -> OrpheusError:
    return OrpheusError(
        "permission-denied",
        f"refusing to use {path}: the server there runs as {_user(server_uid)}, which is not root, not you, and "
        f"not an account that root has given this directory. Nothing was sent. If this is your daemon, run "
        f"orpheusctl as that user, or let the daemon make its socket in a directory below /run")


def unreachable(tried: list[Attempt]) -> OrpheusError:
    """The error that says which sockets were tried, why each failed, and what to do."""
    denied = [attempt.path for attempt in tried if attempt.error.errno in (errno.EACCES, errno.EPERM)]
    full = any(attempt.error.errno == errno.EAGAIN for attempt in tried)
    reasons = "".join(f"\n  {attempt.path}: {_reason(attempt)}" for attempt in tried)
    if denied:
        advice = _group_advice(denied[-1])
    elif full:
        advice = "The daemon is there and accepts no connection: it is overloaded or stuck; its log says more."
    else:
        advice = ("Is it running? Start it with `systemctl start orpheusd`, or `orpheusd` in a terminal of your own; "
                  "or name its socket with --socket PATH or $ORPHEUS_SOCKET.")
    sockets = [attempt.path for attempt in tried]
    return OrpheusError("unreachable", f"cannot reach the daemon:{reasons}\n{advice}", {"sockets": sockets})


def _reason(attempt: Attempt) -> str:
    number = attempt.error.errno
    if number == errno.ENOENT:
        return "no such socket"
    if number == errno.ECONNREFUSED:
        return "nobody listens there (left behind by a daemon that was killed)"
    if number == errno.EAGAIN:
        return "too many connections are waiting"
    if number is None and len(os.fsencode(attempt.path)) > PATH_LIMIT_BYTES:
        return f"a socket's path can be {PATH_LIMIT_BYTES} bytes, this is {len(os.fsencode(attempt.path))}"
    return attempt.error.strerror or str(attempt.error)


def _group_advice(path: str) -> str:
    """Which group may use the socket, as the directory that guards it says."""
    from pathlib import Path  # noqa: PLC0415

    group = 0
    for place in (Path(path), Path(path).parent):
        try:
            group = place.stat().st_gid
            break
        except OSError:
            continue
    if group == 0:
        return "Only root may use it: try again with sudo."
    try:
        name = grp.getgrgid(group).gr_name
    except KeyError:
        name = str(group)
    return (f"It is for root and the group {name}: `sudo usermod -aG {name} $USER`, then log in again; "
            f"or try with sudo.")


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"
