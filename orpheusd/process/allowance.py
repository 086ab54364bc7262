"""What may be heard on a channel: of runs, while they go on, and beside that no more than an honest worker ever says.

A worker cuts what its agent prints (`worker/output.py`), and so does a template (`worker/drains.py`); but an agent can
write to the channel itself. The limits here cannot be reached by what is cut, although a line counts for more here
than there, text may grow when it is made printable, and what waited while the daemon did not read comes all at once.
"""

import time

from orpheusd.worker import drains, output
from orpheusd.worker.budget import TokenBucket
from orpheusd.worker.channel import ENVELOPE_BYTES, LOG_BACKLOG_BYTES

#: What one run may print. A line counts for its text and 200 bytes here, and for 64 at least there; lone surrogates
#: become twice their length: an honest run can get to 5.3 MiB.
RUN_LIMIT_BYTES = 8 * output.RUN_LIMIT_BYTES
#: All else that one worker says, or that is said of it: at first, and then per second. Honest are a full backlog and
#: 5.3 MiB at once, and then at most two thirds of these a second.
BURST_BYTES = 2 * LOG_BACKLOG_BYTES
IDLE_RATE_BYTES_S = 8 * output.IDLE_RATE_BYTES_S
PAST_PYTHON_RATE_BYTES_S = 8 * drains.RATE_BYTES_S
#: What a message counts for that means nothing here, such as the end of a run that is over: a thousand are much.
STRAY_COST_BYTES = 16 * 1024


class Excess(Exception):
    """The peer said what no honest worker says. The text tells what."""


class Allowance:
    """What one worker may say. Invariant: `_printed` has the runs it was told of and has not ended."""

    def __init__(self, rate_bytes_s: int = IDLE_RATE_BYTES_S) -> None:
        self._printed: dict[str, int] = {}
        self._streaming: set[str] = set()
        self._bucket = TokenBucket(BURST_BYTES, rate_bytes_s, time.monotonic())

    def begin(self, run_id: str, streams: bool) -> None:
        """It was told to execute this run, or it told that it does."""
        self._printed[run_id] = 0
        if streams:
            self._streaming.add(run_id)

    def piece(self, run_id: str) -> None:
        """It said `output`. Raises Excess unless the run goes on and its caller streams."""
        if run_id not in self._streaming:
            raise Excess(f"it said 'output' of run {run_id[:80]!r}, and executes no such run for a stream")

    def run_line(self, run_id: str, text: str) -> None:
        """It said `log` of a run. Raises Excess unless the run goes on, and when it prints too much."""
        printed = self._printed.get(run_id)
        if printed is None:
            raise Excess(f"it said 'log' of run {run_id[:80]!r}, which it does not execute")
        self._printed[run_id] = printed = printed + len(text) + ENVELOPE_BYTES
        if printed > RUN_LIMIT_BYTES:
            raise Excess(f"it said more than {RUN_LIMIT_BYTES} bytes of 'log' of one run")

    def line(self, text: str) -> None:
        """A `log` of no run was said of it. Raises Excess when these become too many."""
        self._charge(len(text) + ENVELOPE_BYTES, "log")

    def end(self, run_id: str) -> None:
        """It said `ended`. Raises Excess when it keeps saying that of runs which do not go on here."""
        if self._printed.pop(run_id, None) is None:
            self._charge(STRAY_COST_BYTES, "ended")
        self._streaming.discard(run_id)

    def stray(self, type: str) -> None:
        """It said something that means nothing here. Raises Excess when it keeps doing that."""
        self._charge(STRAY_COST_BYTES, type)

    def _charge(self, cost_bytes: int, type: str) -> None:
        if not self._bucket.take(cost_bytes, time.monotonic()):
            raise Excess(f"it said {type!r} faster than any worker does")
