"""Every number that bounds the HTTP door, with the reason for it.

The defaults are the documented ones (docs/http.md). `--limit NAME=VALUE` overrides one of them; nothing else does.
"""

from typing import NamedTuple

from orpheusd.errors import OrpheusError
from orpheusd.operations import INPUT_LIMIT_BYTES

_KIB = 1024
_MIB = 1024 * 1024


class Limits(NamedTuple):
    """Sizes are bytes (`_bytes`), durations seconds (`_s`), the others counts."""

    #: The control protocol takes no larger input, so a larger body cannot be of use.
    body_bytes: int = INPUT_LIMIT_BYTES
    #: Of all bodies on their way in; 16 of the largest, far more of the usual ones.
    bodies_bytes: int = 128 * _MIB
    #: A local client needs milliseconds; a proxied one on a poor line still manages 8 MiB at 2 Mbit/s.
    body_deadline_s: float = 30.0
    #: What the daemon takes of a bundle, and a poor line's time for it.
    bundle_bytes: int = 64 * _MIB
    bundle_deadline_s: float = 300.0
    #: Request line and headers together; browsers and proxies send 1 to 4 KiB.
    header_bytes: int = 16 * _KIB
    header_count: int = 100
    #: From the first byte of a request, or from the start of a connection, to the end of the headers.
    header_deadline_s: float = 5.0
    #: Longer than common clients keep an idle connection (httpx 5 s, aiohttp 15 s): so they close, not we.
    keep_alive_s: float = 20.0
    #: For each 256 KiB that a client is to read.
    send_deadline_s: float = 30.0
    #: Of all answers that wait to be read: eight of the largest, far more of those that are read as they come.
    answers_bytes: int = 64 * _MIB
    #: How long what a refused client still sends is read and dropped, so that it sees the answer and not a reset.
    linger_s: float = 2.0
    #: About 32 KiB each; also kept below the limit of open files.
    connections: int = 2000
    #: Events of one stream that its client has not read, beyond what the kernel holds for it. With 64 KiB, a run that
    #: prints as fast as it can cuts off a client that was not scheduled for a few milliseconds.
    stream_queue_bytes: int = _MIB
    #: Of all streams together.
    streams_bytes: int = 64 * _MIB
    #: A run that is refused within this time gets a plain error; after it the stream has begun.
    stream_open_s: float = 0.5
    #: Below the 30 s or 60 s after which proxies drop a quiet connection.
    heartbeat_s: float = 15.0
    #: Reading never waits for a handler: the daemon answers in microseconds, or it is stuck.
    read_deadline_s: float = 30.0
    #: For requests in flight when the door is told to go. The daemon, which kills it later, states its own grace.
    grace_s: float = 10.0


def with_overrides(overrides: list[str]) -> Limits:
    """The defaults, changed by `NAME=VALUE` texts. Raises OrpheusError(invalid-request)."""
    limits = Limits()
    for text in overrides:
        name, _, value = text.partition("=")
        default = getattr(limits, name, None) if name in Limits._fields else None
        if default is None:
            raise OrpheusError(
                "invalid-request", f"there is no limit {name!r}; there are {', '.join(Limits._fields)}")
        try:
            number = type(default)(value)
        except ValueError:
            raise OrpheusError("invalid-request", f"--limit {name} needs a number, not {value!r}") from None
        if not number > 0:
            raise OrpheusError("invalid-request", f"--limit {name} must be above 0")
        limits = limits._replace(**{name: number})
    return limits
