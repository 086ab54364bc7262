"""The worker protocol: what a template or a worker and the supervisor say to each other.

A message is one line of JSON with a `type`. A type marked `payload` is followed by one more line: a JSON
value (an input, a result, an error) that this layer carries as bytes and never decodes. The table below is
the whole protocol: who may say what, when, with which fields. `docs/worker-protocol.md` is its prose, and a
test holds the two equal.

Both ends are one class, `WorkerLink`. It owns no socket and no clock: bytes in, messages out, messages in,
bytes out. The JSON codec is handed in, because the daemon's is not available inside the sandbox.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from orpheusd.wire.frames import FrameTooLong, LineBuffer

PROTOCOL_VERSION = 3

#: A result may be 8 MiB; an error with its traceback and the envelope must fit as well.
FRAME_LIMIT_BYTES = 9 * 1024 * 1024

#: Characters of a text field but those of `LONG_FIELDS`: the longest there are is a session id, of 128.
NAME_LIMIT = 256
LONG_FIELDS = ("text", "stack")


class Role(Enum):
    """Who sits at an end of a link."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is Python code on the hot path

    SUPERVISOR = "supervisor"
    TEMPLATE = "template"
    WORKER = "worker"


class LinkState(Enum):
    """How far the conversation has come. Both ends compute it from the messages alone."""

    __hash__ = object.__hash__  # members are single; Enum's own hash is Python code on the hot path

    CONNECTED = "connected"  # nothing said yet
    STARTING = "starting"  # hello was said
    READY = "ready"  # the peer can do its work
    FAILED = "failed"  # the peer could not start, and will leave


class Message(NamedTuple):
    """One message: its type, its fields by name, and the payload line where the type has one."""

    type: str
    fields: dict[str, Any]
    payload: bytes = b""


class Row(NamedTuple):
    """A line of the protocol's table."""

    senders: tuple[Role, ...]
    states: tuple[LinkState, ...]
    fields: dict[str, tuple[type, ...]]
    payload: bool
    meaning: str


_TEMPLATE = (Role.TEMPLATE,)
_WORKER = (Role.WORKER,)
_INSIDE = (Role.TEMPLATE, Role.WORKER)
_SUPERVISOR = (Role.SUPERVISOR,)
_STR, _INT, _BOOL = (str,), (int,), (bool,)
_OPT_STR, _NUM, _OPT_NUM = (str, type(None)), (int, float), (int, float, type(None))
_LIST, _OBJECT = (list,), (dict,)
_STARTED = (LinkState.STARTING, LinkState.READY)
_ALIVE = (LinkState.STARTING, LinkState.READY, LinkState.FAILED)
_READY = (LinkState.READY,)

MESSAGES: dict[str, Row] = {
    "hello": Row(
        _INSIDE, (LinkState.CONNECTED,), {"protocol": _INT, "role": _STR, "id": _STR, "nonce": _STR}, False,
        "the first message of every link: who dials, and the nonce that proves it"),
    "setup": Row(
        _SUPERVISOR, (LinkState.STARTING,), {}, True,
        "to a template: the settings of the agent, its environment included (payload: an object)"),
    "workers": Row(
        _TEMPLATE, (LinkState.STARTING,), {}, True,
        "said by a template that dials again: the workers it has (payload: an array of `[id, nonce]`)"),
    "sessions": Row(
        _WORKER, (LinkState.STARTING,), {}, True,
        "said by a worker that dials again: sessions it holds (payload: an array of `[id, turns, idle_s, saved]`)"),
    "held": Row(
        _WORKER, (LinkState.STARTING,),
        {"run_id": _STR, "session_id": _OPT_STR, "context": _OPT_STR, "turn": _INT, "timeout_s": _OPT_NUM,
         "note": _OBJECT, "elapsed_s": _NUM, "over": _BOOL}, True,
        "said by a worker that dials again: a run whose end was not acknowledged; `over` tells that its `ended` "
        "follows (payload: the input)"),
    "ready": Row(
        _INSIDE, (LinkState.STARTING,), {"handler": _STR}, False,
        "a template can fork; a worker has imported the handler (`handler` names its form, empty from a template)"),
    "failed": Row(
        _INSIDE, (LinkState.STARTING,), {"code": _STR}, True,
        "the sender cannot start and will exit (payload: the error)"),
    "fork": Row(
        _SUPERVISOR, _READY, {"worker_id": _STR, "nonce": _STR}, False,
        "to a template: fork a worker that dials home with this nonce"),
    "ring": Row(
        _SUPERVISOR, _READY, {}, False,
        "to a template that dialled again: wake its workers, which are to dial again too"),
    "kill": Row(
        _SUPERVISOR, _READY, {"worker_id": _STR}, False,
        "to a template: kill a worker that has not been seen here"),
    "exited": Row(
        _TEMPLATE, _READY, {"worker_id": _STR, "status": _INT, "peak_rss_bytes": _INT, "stack": _STR}, False,
        "a worker was reaped; `status` is its exit code, negative for the signal that killed it; `stack` what it left "
        "on its stack sheet"),
    "run": Row(
        _SUPERVISOR, _READY,
        {"run_id": _STR, "session_id": _OPT_STR, "context": _OPT_STR, "turn": _INT, "timeout_s": _OPT_NUM,
         "stream": _BOOL, "note": _OBJECT}, True,
        "to a worker: execute the handler with the payload as input; `note` is the supervisor's own, to be given back "
        "in `held`"),
    "cancel": Row(
        _SUPERVISOR, _READY, {"run_id": _STR, "reason": _STR}, False,
        "to a worker: raise in that run's handler; `reason` is `cancelled` or `timed-out`"),
    "output": Row(
        _WORKER, _READY, {"run_id": _STR, "seq": _INT}, True,
        "a piece of output of a run that is still going on, counted from 0 (payload: the piece)"),
    "ended": Row(
        _WORKER, _READY,
        {"run_id": _STR, "state": _STR, "code": _STR, "duration_us": _INT, "dropped_bytes": _INT,
         "context": _OPT_STR, "saved": _BOOL}, True,
        "a run is over (payload: the result when `state` is `completed`, else the error); `context` is what the run "
        "was told, or `restored` instead of `lost`; `saved` tells that the session has state in the workspace"),
    "acknowledged": Row(
        _SUPERVISOR, _READY, {"run_ids": _LIST}, False,
        "to a worker: the ends of these runs are in the run log, it may forget them"),
    "log": Row(
        _INSIDE, _ALIVE,
        {"worker_id": _STR, "run_id": _OPT_STR, "session_id": _OPT_STR, "stream": _STR, "text": _STR,
         "dropped_bytes": _INT}, False,
        "a line on stdout or stderr; from a template, one that a worker wrote past Python"),
    "session_end": Row(
        _SUPERVISOR, _READY, {"session_id": _STR, "reason": _STR}, False,
        "to a worker: a session it holds is over"),
    "stop": Row(
        _SUPERVISOR, _STARTED, {}, False,
        "leave: a worker finishes the run it has, a template its workers"),
}

#: What saying a message does to the link; every other message leaves it where it is.
TRANSITIONS: dict[str, LinkState] = {
    "hello": LinkState.STARTING,
    "ready": LinkState.READY,
    "failed": LinkState.FAILED,
}

#: The terminal states a worker may report for a run, with the error codes that go with each.
ENDED_STATES: dict[str, tuple[str, ...]] = {
    "completed": ("",),
    "failed": ("handler-failed", "unserialisable-result", "too-large", "invalid-request", "conflict"),
    "timed-out": ("timed-out",),
    "cancelled": ("cancelled",),
}


class ProtocolViolation(Exception):
    """Someone broke the protocol: the peer when receiving, we ourselves when sending."""


class WorkerLink:
    """One end of a link between the supervisor and a template or a worker.

    Invariant: `state` is what both ends compute from the messages said so far; `_lines` are those that have come and
    were not asked for yet. After a ProtocolViolation the link is of no use and must be closed.
    """

    __slots__ = ("_awaiting_payload", "_buffer", "_dumps", "_lines", "_loads", "peer", "role", "state")

    def __init__(
        self,
        role: Role,
        loads: Callable[[bytes], Any],
        dumps: Callable[[Any], bytes],
        limit_bytes: int = FRAME_LIMIT_BYTES,
    ) -> None:
        self.role = role
        self.peer: Role | None = None if role is Role.SUPERVISOR else Role.SUPERVISOR
        self.state = LinkState.CONNECTED
        self._loads = loads
        self._dumps = dumps
        self._buffer = LineBuffer(limit_bytes)
        self._lines: deque[bytes] = deque()
        self._awaiting_payload: Message | None = None

    def send(self, type: str, fields: dict[str, Any], payload: bytes = b"") -> bytes:
        """The bytes that say this message. `payload` must be one line of JSON where the type has one."""
        row = self._allowed(type, self.role, "we")
        self._check_fields(type, row, fields, "we")
        self._advance(type, self.role, fields)
        line = self._dumps({"type": type, **fields})
        return b"%b\n%b\n" % (line, payload) if row.payload else b"%b\n" % line

    @property
    def behind(self) -> bool:
        """Whether lines have come that were not asked for yet."""
        return bool(self._lines)

    def receive(self, data: bytes, most: int | None = None) -> list[Message]:
        """The messages that are complete with `data`: all, or the first `most`, and the next call has more.

        Raises ProtocolViolation when the peer breaks the rules.
        """
        lines = self._lines
        try:
            lines.extend(self._buffer.feed(data))
        except FrameTooLong as error:
            raise ProtocolViolation(str(error)) from error
        messages: list[Message] = []
        while lines and len(messages) != most:
            line = lines.popleft()
            if self._awaiting_payload is not None:
                messages.append(self._awaiting_payload._replace(payload=line))
                self._awaiting_payload = None
                continue
            message, has_payload = self._decode(line)
            if has_payload:
                self._awaiting_payload = message
            else:
                messages.append(message)
        return messages

    @property
    def pending_bytes(self) -> int:
        """Bytes of a line that has begun to arrive and not ended."""
        return self._buffer.pending_bytes

    def _decode(self, line: bytes) -> tuple[Message, bool]:
        try:
            fields = self._loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolViolation(f"the peer sent a line that is not JSON: {line[:80]!r}") from error
        type = fields.pop("type", None) if isinstance(fields, dict) else None
        if not isinstance(type, str):
            raise ProtocolViolation(f"the peer sent a line that is not a message: {line[:80]!r}")
        sender = self.peer
        if sender is None:
            sender = self._introduced(type, fields)
        row = self._allowed(type, sender, "the peer")
        self._check_fields(type, row, fields, "the peer")
        self._advance(type, sender, fields)
        return Message(type, fields), row.payload

    def _introduced(self, type: str, fields: dict[str, Any]) -> Role:
        if type == "hello":
            for role in _INSIDE:
                if fields.get("role") == role.value:
                    return role
        raise ProtocolViolation(f"the first message must be a hello, not {type[:40]!r}")

    def _allowed(self, type: str, sender: Role | None, who: str) -> Row:
        row = MESSAGES.get(type)
        if row is None:
            raise ProtocolViolation(f"{who} said {type[:40]!r}, which is not a message of this protocol")
        if sender not in row.senders:
            raise ProtocolViolation(f"{who} said {type!r}, which a {sender.value if sender else '?'} may not say")
        if self.state not in row.states:
            raise ProtocolViolation(f"{who} said {type!r} while the link was {self.state.value}")
        return row

    def _check_fields(self, type: str, row: Row, fields: dict[str, Any], who: str) -> None:
        if len(fields) == len(row.fields):
            for name, types in row.fields.items():
                if name not in fields or (kind := fields[name].__class__) not in types:
                    break
                if kind is str and len(fields[name]) > NAME_LIMIT and name not in LONG_FIELDS:
                    raise ProtocolViolation(f"{who} said {type!r} with {len(fields[name])} characters of {name!r}")
            else:
                return
        raise ProtocolViolation(f"{who} said {type!r} with fields that are not {sorted(row.fields)}")

    def _advance(self, type: str, sender: Role | None, fields: dict[str, Any]) -> None:
        state = TRANSITIONS.get(type)
        if state is not None:
            self.state = state
            if type == "hello" and self.role is Role.SUPERVISOR:
                self.peer = sender
