"""What this box can enforce and what it cannot, a finding each: `orpheusctl doctor`.

A finding says what is there, what that means and how to mend it. A daemon tells what is in force for itself; without
one, `python -m orpheusd.doctor` tells what a daemon of this user would find. It changes nothing.
"""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from orpheusd.config import Config, http_addresses, http_name, load
from orpheusd.doors.place import check_place
from orpheusd.doors.token import digest_of_token
from orpheusd.errors import OrpheusError
from orpheusd.process import abilities
from orpheusd.process.groups import lacking, own_group
from orpheusd.process.listeners import listener_on
from orpheusd.process.sandbox import Isolation, detect
from orpheusd.runlog.schema import OLDEST_SQLITE

OK, WEAKER, MISSING = "ok", "weaker", "missing"

#: Below the first the run log may soon have no room; below the second it has hardly any.
DISK_LOW_BYTES, DISK_LEAST_BYTES = 1024**3, 64 * 1024**2


class View(NamedTuple):
    """What is in force. `memory_reason` is why there are no control groups, "" when there are; `serves`: the doors are
    this daemon's own. `problems` are what somebody should look at, as `status` has them."""

    config: Config
    isolation: Isolation
    memory_reason: str
    serves: bool
    problems: tuple[str, ...] = ()


class Finding(NamedTuple):
    """`state` is `ok`, `weaker` (it works, and holds less) or `missing`; `means` and `fix` are "" when it is ok."""

    check: str
    state: str
    found: str
    means: str = ""
    fix: str = ""


def examine(view: View) -> list[Finding]:
    """Every finding, in the order of the table. May take a moment: it reads and tries."""
    return [check(view) for check in CHECKS]


def _user_namespaces(view: View) -> Finding:
    if abilities.user_namespaces():
        return Finding("user namespaces", OK, "users without rights may make them")
    return Finding("user namespaces", MISSING, "switched off in this kernel",
                   "agents of a daemon that is not root run without walls",
                   "sysctl user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1")


def _apparmor(view: View) -> Finding:
    if not abilities.apparmor_restricts():
        return Finding("AppArmor", OK, "does not restrict user namespaces")
    if view.isolation.mode == "bwrap":
        return Finding("AppArmor", OK, "restricts user namespaces, and lets bubblewrap have them")
    return Finding("AppArmor", MISSING, "restricts user namespaces", "bubblewrap cannot build a sandbox",
                   "give /usr/bin/bwrap a profile with `userns,` (docs/operations.md), or sysctl "
                   "kernel.apparmor_restrict_unprivileged_userns=0")


def _bubblewrap(view: View) -> Finding:
    if view.isolation.mode == "bwrap":
        return Finding("bubblewrap", OK, view.isolation.reason)
    return Finding("bubblewrap", MISSING, view.isolation.reason,
                   "agents can read and change whatever the daemon's user can",
                   "install bubblewrap, and do not switch `isolation` off")


def _control_groups(view: View) -> Finding:
    if not view.memory_reason:
        return Finding("control groups", OK, "the kernel holds each worker to its memory and its processes")
    return Finding("control groups", WEAKER, view.memory_reason,
                   "memory and processes of workers are held by looking at them: a worker is killed up to a second "
                   "after it crossed its limit, and memory that is in no process (memfd, sockets) is not seen",
                   "run orpheusd under its systemd unit (Delegate=cpu memory pids) on a box with cgroup v2 alone")


def _pidfd(view: View) -> Finding:
    if not abilities.pidfds():
        return Finding("pidfd", MISSING, "not in this kernel", "orpheusd does not start", "Linux 5.3 or later")
    if abilities.peer_pidfds():
        return Finding("pidfd", OK, "processes are held from the moment they connect")
    return Finding("pidfd", WEAKER, "not of the peers of sockets",
                   "a process that dies as it connects could be taken for the next with its number; its nonce tells",
                   "Linux 6.5 or later")


def _seccomp(view: View) -> Finding:
    if not abilities.seccomp_filters():
        return Finding("seccomp", MISSING, "not in this kernel", "no system call is kept from agents",
                       "a kernel with CONFIG_SECCOMP_FILTER")
    if abilities.seccomp_library():
        return Finding("seccomp", OK, f"the kernel filters, and {abilities.SECCOMP_LIBRARY} is there")
    return Finding("seccomp", WEAKER, f"{abilities.SECCOMP_LIBRARY} is not installed",
                   "agents may make system calls that they have no use for; the other walls stand",
                   "install libseccomp2 (Debian, Ubuntu) or libseccomp")


def _sqlite(view: View) -> Finding:
    if sqlite3.sqlite_version_info >= OLDEST_SQLITE:
        return Finding("SQLite", OK, sqlite3.sqlite_version)
    oldest = ".".join(map(str, OLDEST_SQLITE))
    return Finding("SQLite", MISSING, sqlite3.sqlite_version, "the run log cannot be opened", f"SQLite {oldest}")


def _disk(view: View) -> Finding:
    place = _existing(view.config.state_dir)
    free_bytes = shutil.disk_usage(place).free
    found = f"{free_bytes / 1024**3:.1f} GiB free for {view.config.state_dir}"
    if free_bytes >= DISK_LOW_BYTES:
        return Finding("disk", OK, found)
    return Finding("disk", WEAKER if free_bytes >= DISK_LEAST_BYTES else MISSING, found,
                   "runs are refused while the run log has no room", "make space there, or choose another --state-dir")


def _http(view: View) -> Finding:
    if view.config.http is None:
        return Finding("HTTP", OK, "switched off")
    addresses = http_addresses(view.config.http)
    for host, port in () if view.serves else addresses:
        # of two, one that this host does not have is no matter
        if not abilities.can_listen(host, port) and (len(addresses) == 1 or abilities.can_listen(host, 0)):
            by = listener_on(host, port) or "another process"
            return Finding("HTTP", MISSING, f"{http_name([(host, port)])} is taken by {by}", "orpheusd does not start",
                           "end that process, choose another address with --http, or --no-http")
    if view.serves and (view.config.http_admin or view.config.http_require_token):
        try:
            digest_of_token(view.config.state_dir)
        except OrpheusError as error:
            return Finding("HTTP", MISSING, error.message,
                           "all requests are refused" if view.config.http_require_token else "changes are refused",
                           "do what it says")
    needs = ", with the token alone" if view.config.http_require_token else ""
    return Finding("HTTP", OK, f"{view.config.http} {'is served' if view.serves else 'is free'}{needs}")


def _control_socket(view: View) -> Finding:
    path = view.config.control_socket
    try:
        check_place(path)
    except OrpheusError as error:
        return Finding("control socket", MISSING, error.message, "orpheusd does not start",
                       "do what it says, or choose another --runtime-dir")
    if view.serves:
        return Finding("control socket", OK, f"{path} is served")
    return Finding("control socket", MISSING, f"no daemon answers at {path}",
                   "nothing can be deployed or run", "start orpheusd, or name its socket with --socket")


def _problems(view: View) -> Finding:
    if not view.problems:
        return Finding("at work", OK, "no problems")
    return Finding("at work", WEAKER, "; ".join(view.problems), "something is refused or lost",
                   "each says what to do; `orpheusctl status` has them too")


CHECKS: tuple[Callable[[View], Finding], ...] = (
    _user_namespaces, _apparmor, _bubblewrap, _control_groups, _pidfd, _seccomp, _sqlite, _disk, _http,
    _control_socket, _problems,
)


def _existing(path: Path) -> Path:
    return next(place for place in _upwards(path) if place.exists())


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents


def main() -> int:
    """Findings without a daemon, as JSON. Exits as `orpheusd` would when the settings are wrong."""
    try:
        config = load({})
    except OrpheusError as error:
        print(f"orpheusd.doctor: {error.message}", file=sys.stderr)
        return error.outcome.exit_code
    try:
        isolation = detect(config.isolation)
    except OrpheusError as error:
        isolation = Isolation("none", error.message, None)
    own = own_group()
    reason = "cgroup v2 is not mounted here" if own is None else lacking(own) or ""
    print(json.dumps([finding._asdict() for finding in examine(View(config, isolation, reason, False))]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
