"""What a worker can tell a daemon that does not know it: the sessions it holds, and the runs whose end nobody has
acknowledged yet.

The daemon may die at any moment, and the next one knows only what is on disk. The memory is here, and so is every
result until the run log has it. This file keeps the books; it reads no channel and decides nothing.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orpheusd.wire.worker import Message

#: Sessions in one message: far below what a frame may hold, whatever the ids.
SESSIONS_AT_ONCE = 2000

#: Says a message: its type, fields and payload.
Say = Callable[[str, dict[str, Any], bytes], None]


@dataclass(slots=True)
class Held:
    """A run from its arrival until its end is acknowledged. `ended` is what was said of it when it was over."""

    message: Message
    arrived_at: float
    ended: tuple[dict[str, Any], bytes] | None = None


@dataclass(slots=True)
class Memory:
    """A session whose home this worker is. `turns` are the runs it has finished, as far as is known here."""

    turns: int
    used_at: float
    saved: bool = False


class Holdings:
    """Invariant: `runs` has every run that arrived and is not acknowledged, `sessions` all that live here."""

    def __init__(self) -> None:
        self.runs: dict[str, Held] = {}
        self.sessions: dict[str, Memory] = {}

    def heard(self, message: Message) -> None:
        """To be called with every message in the order on the wire, the moment it is read."""
        if message.type == "run":
            self._arrived(message)
        elif message.type == "acknowledged":
            for run_id in message.fields["run_ids"]:
                self.runs.pop(run_id, None)
        elif message.type == "session_end":
            self.sessions.pop(message.fields["session_id"], None)

    def ended(self, fields: dict[str, Any], payload: bytes) -> None:
        """The run is over; `fields` and `payload` are its `ended` message."""
        held = self.runs.get(fields["run_id"])
        if held is None:
            return  # a supervisor that had given the run up has acknowledged it already
        held.ended = fields, payload
        memory = self.sessions.get(held.message.fields["session_id"])
        if memory is not None:
            memory.turns += 1
            memory.used_at = time.monotonic()
            memory.saved |= fields["saved"]

    def tell(self, say: Say, form: str) -> None:
        """Say all of it, from after `hello` to the last `ended`; `form` is the handler's, as in every `ready`."""
        now = time.monotonic()
        rows = [[id, memory.turns, round(now - memory.used_at, 3), memory.saved]
                for id, memory in self.sessions.items()]
        for start in range(0, len(rows), SESSIONS_AT_ONCE):
            say("sessions", {}, json.dumps(rows[start : start + SESSIONS_AT_ONCE]).encode())
        held = list(self.runs.values())
        for run in held:
            told = run.message.fields
            say("held", {
                **{name: told[name] for name in ("run_id", "session_id", "context", "turn", "timeout_s", "note")},
                "elapsed_s": now - run.arrived_at, "over": run.ended is not None}, run.message.payload)  # fmt: skip
        say("ready", {"handler": form}, b"")
        for run in held:
            if run.ended is not None:
                say("ended", *run.ended)

    def _arrived(self, message: Message) -> None:
        now = time.monotonic()
        fields = message.fields
        self.runs[fields["run_id"]] = Held(message, now)
        session_id = fields["session_id"]
        if session_id is None or fields["context"] == "spilled":
            return
        memory = self.sessions.get(session_id)
        if memory is None:
            self.sessions[session_id] = Memory(fields["turn"] - 1, now)
        else:
            memory.turns = max(memory.turns, fields["turn"] - 1)
            memory.used_at = now
