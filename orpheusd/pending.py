"""A run under way as its caller sees it: what it was given, and how to tell of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

from orpheusd.outcome import Outcome
from orpheusd.recorder import Key


class Pending(NamedTuple):
    """A run whose caller waits: its input, and what to call with pieces of output and with the outcome.

    `source` is the door it came through, `caller` who sent it, for the run log. `detached`: nobody waits for its end.
    """

    payload: bytes
    source: str
    caller: str
    on_outcome: Callable[[Outcome], None]
    on_event: Callable[[str, dict[str, Any]], None] | None
    detached: bool = False
    key: Key | None = None

    @property
    def whole(self) -> bool:
        """Whether somebody may ask the log for the whole result; no worker gets it before the log has its start."""
        return self.detached or self.key is not None

    def reply(self, outcome: Outcome, committed: bool) -> None:
        """Tell the outcome to a caller who was promised that the disk has it."""
        if not committed:
            text = (f"the run is over ({outcome.state}), and that cannot be recorded: the run log has failed, see "
                    "`orpheusctl status`")
            outcome = outcome._replace(code="internal", message=text, error={})
        self.on_outcome(outcome)
