"""What is known of each template and each worker as a process. Facts only; `processes` says what they mean."""

from collections import deque
from typing import Any, Protocol

from orpheusd.process.allowance import PAST_PYTHON_RATE_BYTES_S, Allowance, Excess
from orpheusd.process.channel import Channel
from orpheusd.process.holdings import (
    HELD_LIMIT,
    HELD_LIMIT_BYTES,
    Session,
    is_held,
    sessions_in,
)
from orpheusd.process.pidfds import PidFd
from orpheusd.process.records import Record
from orpheusd.process.remains import Ending
from orpheusd.wire.worker import Message

#: What a template prints before it can speak is kept for the error that its failure becomes.
KEPT_OUTPUT_LINES = 20


class TemplateHandle(Protocol):
    """A template's processes: those that this daemon started, or those of an earlier one."""

    def kill(self) -> None: ...

    async def wait(self) -> int | None: ...


class TemplateMember:
    """Invariant: its server, directory and record exist until the process is gone. `orphaned`: an earlier daemon
    started it, and it has not dialled again yet. `sessions_left`: so many more its workers may tell that they hold."""

    def __init__(self, record: Record, orphaned: bool, sessions_limit: int = 0) -> None:
        self.id = record.template
        self.agent = record.agent
        self.record = record
        self.orphaned = orphaned
        self.channel: Channel | None = None
        self.process: TemplateHandle | None = None
        self.output: deque[str] = deque(maxlen=KEPT_OUTPUT_LINES)
        self.setup: dict[str, Any] = {}
        self.orphans: list[str] = []
        self.allowance = Allowance()
        self.sessions_left = sessions_limit
        self.kill_wanted = False

    @property
    def nonce(self) -> str:
        return self.record.nonce(self.id)

    def awaited(self, home: str, nonce: str) -> bool:
        """Whether somebody who dials at the socket of template `home` with this nonce is the one."""
        return home == self.id and nonce == self.nonce


class WorkerMember:
    """Invariant: `eof` and `dead` are facts; it is reported as exited once both are, and then forgotten. `orphaned`:
    an earlier daemon knew it, and it has not dialled again yet; `sessions` and `held` are what it told since.
    `_acknowledged` are runs whose ends are in the log, and which it has not been told of."""

    def __init__(self, id: str, template: TemplateMember, orphaned: bool = False) -> None:
        self.id = id
        self.template = template
        self.orphaned = orphaned
        self.channel: Channel | None = None
        self.ending = Ending()
        self.sessions: list[Session] = []
        self.held: list[Message] = []
        self._held_bytes = 0
        self.allowance = Allowance()
        self.past_python = Allowance(PAST_PYTHON_RATE_BYTES_S)
        self._acknowledged: list[str] = []
        self.eof = False
        self.dead = False
        self.waited = False
        self.kill_wanted = ""
        self.told_to_stop = False

    @property
    def process(self) -> PidFd | None:
        return self.channel.process if self.channel is not None else None

    @property
    def nonce(self) -> str:
        return self.template.record.nonce(self.id)

    def awaited(self, home: str, nonce: str) -> bool:
        """As for a template. One that outlived a daemon is heard when its template has said all that it has: earlier,
        nobody but us would know of it. It dials again."""
        return home == self.template.id and nonce == self.nonce and not self.template.orphaned

    def holds(self, message: Message) -> None:
        """It tells of sessions, or of a run, that it has; beyond a bound it is not believed. Raises Excess when it
        keeps telling all the same, of what there cannot be, or was born to this daemon, which knows what it has."""
        template = self.template
        if message.type == "sessions" and self.orphaned and template.sessions_left > 0:
            told = sessions_in(message.payload)[: template.sessions_left]
            template.sessions_left -= len(told)
            self.sessions += told
        elif message.type == "held" and self.orphaned and len(self.held) < HELD_LIMIT:
            if not is_held(message):
                raise Excess("it holds a run that there cannot be")
            self._held_bytes += len(message.payload)
            self.held.append(message if self._held_bytes <= HELD_LIMIT_BYTES else message._replace(payload=b""))
            self.allowance.begin(message.fields["run_id"], streams=True)
        else:
            self.allowance.stray(message.type)

    def says_line(self, run_id: str | None, text: str) -> None:
        """It said `log`. Until it has told what it executes, any run will do. Raises Excess."""
        if run_id is None or self.orphaned:
            self.allowance.line(text)
        else:
            self.allowance.run_line(run_id, text)

    def heard_out(self) -> tuple[list[Session], list[Message]]:
        """It has told everything: the sessions, and the `held` of its runs. It is no orphan any more."""
        self.orphaned = False
        told = self.sessions, self.held
        self.sessions, self.held = [], []
        return told

    def acknowledge(self, run_ids: list[str]) -> None:
        """Tell it that these ends are in the log, once it has read the run that it was sent last: said behind that, it
        would hide that a worker which dies has never read it."""
        self._acknowledged += run_ids
        if self.channel is not None and self.channel.last_run is None:
            self._say_acknowledged(self.channel)

    def has_read(self, run_id: str) -> None:
        """It has said something of the run."""
        if self.channel is not None:
            self.channel.has_read(run_id)
            if self._acknowledged:
                self._say_acknowledged(self.channel)

    def _say_acknowledged(self, channel: Channel) -> None:
        run_ids, self._acknowledged = self._acknowledged, []
        channel.say("acknowledged", {"run_ids": run_ids})
