"""`orpheusctl run`: one run, its output as it comes, its result, and the way out when somebody presses Ctrl-C.

The daemon keeps the deadline of the run; this file only bounds the wait after it has asked for a cancel.
"""

import time
from typing import Any

from orpheusctl import client, inputs
from orpheusctl.ask import given
from orpheusctl.client import Answer, Client, Event
from orpheusctl.interrupts import Interrupts
from orpheusctl.output import Output, error_body
from orpheusctl.parser import Call
from orpheusctl.units import duration
from orpheusd.errors import CODES, OrpheusError
from orpheusd.operations import BY_NAME, RESULT_LIMIT_BYTES, check_params

INTERRUPTED_EXIT = CODES["cancelled"].exit_code
#: A handler has 2 s to end after a cancel before its worker is killed; the rest is for a busy machine.
CANCEL_WAIT_S = 10.0


def execute(call: Call, output: Output) -> int:
    arguments = call.arguments
    operation = call.command.operation
    params = given(call.command, arguments)
    if operation == "run":
        params["input"] = inputs.read(arguments.input)
    check_params(BY_NAME[operation], params)
    if params.get("detach"):
        return _detached(client.connect(arguments.socket), params, output)
    listener = _Streaming(output) if arguments.stream else Quiet(output)
    # Always as a stream: only so is the run's id known while it goes on, and a cancel needs it.
    params["stream"] = True
    with client.connect(arguments.socket) as daemon, Interrupts() as interrupts:
        try:
            answer = _Waiting(daemon, daemon.send(operation, params), interrupts, listener, output).until_answered()
        except OrpheusError as error:
            listener.failed(error)
            return INTERRUPTED_EXIT if interrupts.count else error.outcome.exit_code
        listener.finished(answer)
        return INTERRUPTED_EXIT if interrupts.count else 0


def _detached(daemon: Client, params: dict[str, Any], output: Output) -> int:
    with daemon:
        answer = daemon.call("run", params)
    if output.json_wanted:
        output.json(answer)
    else:
        output.line(answer["request_id"])
    output.note(f"accepted; `{output.prog} attach {answer['request_id']}` waits for its result")
    return 0


class Quiet:
    """Prints the result alone."""

    def __init__(self, output: Output) -> None:
        self.output = output

    def happened(self, event: Event) -> None:
        pass

    def finished(self, answer: dict[str, Any]) -> None:
        _tell_context(answer, self.output)
        self.output.json(answer if self.output.json_wanted else answer.get("result"))

    def failed(self, error: OrpheusError) -> None:
        _tell_context(error.details, self.output)
        self.output.error(error)


class _Streaming(Quiet):
    """Prints pieces as they come.

    Invariant: `_pieces` is all that was printed, or None once that is larger than any result.
    """

    def __init__(self, output: Output) -> None:
        super().__init__(output)
        self._pieces: list[Any] | None = []
        self._pieces_bytes = 0
        self._printed = False

    def happened(self, event: Event) -> None:
        if self.output.json_wanted:
            self.output.json_line({"event": event.name, "data": event.data})
        elif event.name == "output":
            self.output.json_line(event.data)
            self._printed = True
            self._keep(event.data)
        elif event.name == "log" and isinstance(event.data, dict):
            self.output.note(str(event.data.get("text", "")).rstrip("\n"))
        elif event.name == "dropped":
            self.output.note(f"some output was dropped, it came faster than it was read: {event.data}")

    def finished(self, answer: dict[str, Any]) -> None:
        _tell_context(answer, self.output)
        result = answer.get("result")
        if self.output.json_wanted:
            self.output.json_line({"event": "result", "data": answer})
        elif not self._printed or (result is not None and result != self._pieces):
            self.output.json_line(result)

    def failed(self, error: OrpheusError) -> None:
        if self.output.json_wanted:
            self.output.json_line({"event": "error", "data": error_body(error)})
            self.output.json_wanted = False
        super().failed(error)

    def _keep(self, piece: Any) -> None:
        if self._pieces is None:
            return
        self._pieces_bytes += len(client.encode(piece))
        if self._pieces_bytes > RESULT_LIMIT_BYTES:
            self._pieces = None
        else:
            self._pieces.append(piece)


class _Waiting:
    """The wait for one run's answer. Invariant: a cancel is sent at most once, and after it the wait is bounded."""

    def __init__(
        self, daemon: Client, request_id: int, interrupts: Interrupts, listener: Quiet, output: Output
    ) -> None:
        self._daemon = daemon
        self._request_id = request_id
        self._interrupts = interrupts
        self._listener = listener
        self._output = output
        self._run_id: str | None = None
        self._cancel_sent = False
        self._leave_at: float | None = None

    def until_answered(self) -> dict[str, Any]:
        """The run's answer. Raises its error, or `unreachable` when the daemon goes away."""
        while True:
            message = self._next()
            if isinstance(message, Answer) and message.id == self._request_id:
                answer: dict[str, Any] = message.value()
                return answer
            if isinstance(message, Event):
                if message.name == "accepted":
                    self._run_id = str((message.data or {}).get("request_id", "")) or None
                else:
                    self._listener.happened(message)
            if self._interrupts.count:
                self._interrupted()

    def _next(self) -> Event | Answer | None:
        within_s = None if self._leave_at is None else self._leave_at - time.monotonic()
        try:
            return self._daemon.receive(within_s, self._interrupts.fd)
        except OrpheusError as error:
            if self._run_id is None:
                raise
            raise OrpheusError(error.code, f"{error.message}. Run {self._run_id} may have gone on without this "
                                           f"command", {"request_id": self._run_id}) from None

    def _interrupted(self) -> None:
        self._interrupts.clear()
        if self._leave_at is None:
            self._leave_at = time.monotonic() + CANCEL_WAIT_S
            self._output.note("cancelling; Ctrl-C again leaves at once")
        if self._run_id is not None and not self._cancel_sent:
            self._cancel_sent = True
            self._daemon.send("run.cancel", {"run_id": self._run_id})
        if time.monotonic() >= self._leave_at:
            named = self._run_id or "the run"
            raise OrpheusError("cancelled", f"the daemon has not confirmed within {CANCEL_WAIT_S:.0f} s that {named} "
                                            f"is cancelled; it may still be going on")


def _tell_context(answer: dict[str, Any], output: Output) -> None:
    """Says what became of the session's memory: always when there is bad news, else to those who watch.

    `answer` is a run's answer, or the details of its error: both have the session.
    """
    session = answer.get("session")
    watched = output.verbose or output.stderr.isatty()
    where = f"worker {answer.get('worker_id')}"
    if output.verbose:
        took_s = float(answer.get("duration_ms") or 0) / 1000
        where += f", run {answer.get('request_id')}, {duration(took_s)}"
    if answer.get("worker_id") is None:
        return  # it never ran
    if session is None:
        if output.verbose:
            output.note(where)
        return
    context = session.get("context")
    if watched or context in _BAD_NEWS:
        news = _BAD_NEWS.get(context, "")
        output.note(f"session {session.get('id')}: {context}{news}, turn {session.get('turn')}, {where}")


_BAD_NEWS = {
    "lost": " (the worker that held its memory is gone, and `workspace.session` had saved nothing)",
    "spilled": " (its worker was busy: this run went elsewhere, without its memory)",
}
