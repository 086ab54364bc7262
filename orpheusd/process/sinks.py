"""Where what is heard of templates and workers goes."""

from collections.abc import Callable
from typing import NamedTuple

from orpheusd.core import events as ev
from orpheusd.process.holdings import Session
from orpheusd.process.remains import Remains
from orpheusd.wire.worker import Message


class Sinks(NamedTuple):
    """Where things go that are heard: events of the core, and what belongs to runs.

    `died` comes before the event. `log` is also told whether the line was written past Python, so that the worker
    could not say whose it is.
    """

    event: Callable[[ev.Event], None]
    died: Callable[[str, Remains], None]
    adopted: Callable[[str, list[Session], list[Message]], None]
    ended: Callable[[str, Message], None]
    output: Callable[[str, Message], None]
    log: Callable[[str, Message, bool], None]
    note: Callable[[str, str], None]
