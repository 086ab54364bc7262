"""What systemd and the daemon tell each other: the sockets it listens on for us, and how we are.

Where systemd did not start us nothing is given and nothing is said. It knows neither doors nor engine; what the
environment says of all this was read by config.py.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orpheusd.config import http_addresses, http_name
from orpheusd.errors import OrpheusError

log = logging.getLogger(__name__)

#: A watchdog is told this often in its period: that two words are late or lost costs nothing.
WORDS_A_PERIOD = 4


class Listening(NamedTuple):
    """The listening sockets that the daemon was given or has bound, none for a door of which it is still to make them.

    Those that systemd has too are in `kept`: whoever connects while no daemon accepts waits for the next one. The
    others this or an earlier image of the daemon has made.
    """

    http: tuple[socket.socket, ...] = ()
    control: socket.socket | None = None
    kept: Sequence[str] = ()

    @classmethod
    def again(cls, http: Sequence[int], control: int, kept: Sequence[str]) -> "Listening":
        """What an earlier image of the daemon listened on."""
        return cls(tuple(socket.socket(fileno=fd) for fd in http), socket.socket(fileno=control), kept)

    @property
    def http_name(self) -> str | None:
        """HOST:PORT of the HTTP door that was given; None when there is none, or no setting means all of it."""
        return http_name([sock.getsockname()[:2] for sock in self.http]) if self.http else None


def handed_over(fds: Sequence[int]) -> Listening:
    """The doors behind these descriptors, told apart by what they are. Raises OrpheusError for anything else."""
    socks = [socket.socket(fileno=fd) for fd in fds]
    try:
        return _told_apart(socks)
    except OrpheusError:
        for sock in socks:
            sock.close()
        raise


def _told_apart(socks: Sequence[socket.socket]) -> Listening:
    given: dict[str, list[socket.socket]] = {"http": [], "control": []}
    for sock in socks:
        sock.set_inheritable(False)
        sock.setblocking(False)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _none_of_ours(sock)
        given["control" if sock.family == socket.AF_UNIX else "http"].append(sock)
    listening = Listening(
        tuple(given["http"]), next(iter(given["control"]), None), tuple(door for door, its in given.items() if its))
    if len(given["control"]) > 1:
        raise _none_of_ours(given["control"][-1])
    if listening.http and listening.http_name is None:
        raise _none_of_ours(listening.http[-1])
    if listening.http_name is not None:
        http_addresses(listening.http_name)  # a unit may not open what a setting may not
    return listening


def _none_of_ours(sock: socket.socket) -> OrpheusError:
    return OrpheusError(
        "invalid-request", f"the socket {sock.getsockname()!r} that systemd hands over is none of ours; "
                           "orpheusd.socket may have one ListenStream= for the control socket, and for HTTP one "
                           "address on loopback, or 127.0.0.1 and [::1] with the same port")


class Notifier:
    """Says to systemd what sd_notify(3) lists. Never waits and never fails: without us the service goes on."""

    def __init__(self, address: str | None) -> None:
        """`address` is $NOTIFY_SOCKET; None: nobody listens."""
        self._address = f"\0{address[1:]}" if address and address.startswith("@") else address
        self._socket: socket.socket | None = None
        if self._address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def say(self, *words: str) -> None:
        """One message, such as `READY=1` and `STATUS=...`."""
        if self._socket is not None and self._address:
            try:
                self._socket.sendto("\n".join(words).encode(), self._address)
            except OSError as error:
                log.warning("systemd was not told %s: %s", words[0], error)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class Watchdog:
    """Invariant: between `start` and `stop`, systemd hears of us WORDS_A_PERIOD times a period, as long as the loop
    runs and the engine turns; a daemon that does not is killed and started again, and its workers wait for that.
    """

    def __init__(self, notifier: Notifier, period_s: float | None, turns: Callable[[], bool]) -> None:
        """`turns` makes the engine turn, and says whether it did. `period_s` is None when nobody watches."""
        self._notifier = notifier
        self._period_s = period_s
        self._turns = turns
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._period_s is not None:
            self._timer = asyncio.get_running_loop().call_later(self._period_s / WORDS_A_PERIOD, self.start)
            if self._turns():
                self._notifier.say("WATCHDOG=1")

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
