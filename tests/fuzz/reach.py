"""Which lines of the project a decoder executes, here in this process: what tells an input that leads somewhere new.

Lines of libraries do not count. It costs a trace function, which a daemon could not afford and a decoder can. A fuzzer
that instruments (atheris, 35 MB) would be faster at this; but most of the time goes into asking the daemon.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from orpheusd.errors import OrpheusError

PROJECT = str(Path(__file__).resolve().parents[2] / "orpheusd")

Line = tuple[str, int, int]


class Reach:
    """Invariant: `seen` are all lines, each with the line before it, that were executed in any call of `new`."""

    def __init__(self) -> None:
        self.seen: set[Line] = set()

    def new(self, decode: Callable[[bytes], object], data: bytes) -> int:
        """How many steps `decode(data)` takes that were never taken before. What it refuses it may refuse by
        OrpheusError alone; anything else it raises is passed on."""
        lines: set[Line] = set()

        def local(file: str) -> Callable[[FrameType, str, Any], Any]:
            before = 0

            def trace(frame: FrameType, event: str, _arg: Any) -> Any:
                nonlocal before
                if event == "line":
                    lines.add((file, before, frame.f_lineno))
                    before = frame.f_lineno
                return trace

            return trace

        def call(frame: FrameType, _event: str, _arg: Any) -> Any:
            file = frame.f_code.co_filename
            return local(file) if file.startswith(PROJECT) else None

        earlier = sys.gettrace()
        sys.settrace(call)
        try:
            decode(data)
        except OrpheusError:
            pass
        finally:
            sys.settrace(earlier)
        fresh = len(lines - self.seen)
        self.seen |= lines
        return fresh
