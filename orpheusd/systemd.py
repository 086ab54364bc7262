"""What systemd and the daemon tell each other: the sockets it listens on for us, and how we are.

Where systemd did not start us nothing is given and nothing is said. It knows neither doors nor engine; what the
environment says of all this was read by config.py.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

from orpheusd.config import http_address
from orpheusd.errors import OrpheusError

log = logging.getLogger(__name__)

#: A watchdog is told this often in its period: that two words are late or lost costs nothing.
WORDS_A_PERIOD = 4


class Listening(NamedTuple):
    """The listening sockets that the daemon was given or has bound, each None where it is still to make its own.

    Those that systemd has too are in `kept`: whoever connects while no daemon accepts waits for the next one. The
    others this or an earlier image of the daemon has made.
    """

    http: socket.socket | None = None
    control: socket.socket | None = None
    kept: Sequence[str] = ()

    @classmethod
    def again(cls, http: int | None, control: int, kept: Sequence[str]) -> "Listening":
        """What an earlier image of the daemon listened on."""
        return cls(socket.socket(fileno=http) if http is not None else None, socket.socket(fileno=control), kept)

    @property
    def http_name(self) -> str | None:
        """HOST:PORT of the HTTP door that was given."""
        return None if self.http is None else _name_of(self.http)


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
    given: dict[str, socket.socket] = {}
    for sock in socks:
        sock.set_inheritable(False)
        sock.setblocking(False)
        door = "control" if sock.family == socket.AF_UNIX else "http"
        if door in given or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OrpheusError("invalid-request", f"the socket {sock.getsockname()!r} that systemd hands over is none "
                                                  "of ours; orpheusd.socket may have one ListenStream= for each door")
        given[door] = sock
    listening = Listening(**given, kept=tuple(given))
    if listening.http_name is not None:
        http_address(listening.http_name)  # a unit may not open what a setting may not
    return listening


def _name_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if sock.family == socket.AF_INET6 else f"{host}:{port}"


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
