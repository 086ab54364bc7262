"""What a worker or template that was taken over says to the daemon: from inside real ones, at each moment of its life.

The first line of an input says who speaks and when, as tests/handlers/rogue.py knows it; the rest are the bytes.
"""

import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import orjson

from orpheusd.errors import OrpheusError
from orpheusd.process.causes import error_text
from orpheusd.process.holdings import orphans_in, sessions_in
from orpheusd.said import believable, read_error
from orpheusd.wire.worker import MESSAGES, PROTOCOL_VERSION, ProtocolViolation, Role, WorkerLink
from tests.daemon import ROOT
from tests.fuzz.agent_yaml import refused
from tests.fuzz.house import Broken, House, short
from tests.fuzz.mutation import mutated_lines
from tests.fuzz.target import ANSWER_S

ROGUE = (ROOT / "tests" / "handlers" / "rogue.py").read_text()

#: Each with the share of inputs that are spoken then: in a run is cheap, after a reload of the daemon is not.
MOMENTS = {
    "worker ready": 0.85, "worker stranger": 0.1, "worker starting": 0.02, "template starting": 0.011,
    "template ready": 0.011, "worker redial": 0.005, "template redial": 0.003}
#: Those that are spoken in runs of agents that stay, and how many of these take turns: a worker that died is replaced
#: after a while. For the others one is deployed each.
_IN_RUNS = {"worker ready": 6, "worker stranger": 1}
#: A reload takes seconds, so a worker each says these parts of an input that is spoken then.
REDIALLERS = 6
_PART = b"\n---\n"

_VALUES: dict[type, Any] = {
    str: "text", int: 1, float: 1.5, bool: False, type(None): None, dict: {"at": 1.5}, list: ["r"]}
_RIGHT = {
    "run_id": "RUN-ID", "worker_id": "OWN-ID", "id": "OWN-ID", "nonce": "OWN-NONCE", "protocol": PROTOCOL_VERSION,
    "state": "completed", "code": "", "session_id": "s", "context": "new", "stream": "stdout", "handler": "sync"}
_PAYLOADS = {
    "sessions": [["s", 1, 0.5, False]], "workers": ["OWN-WORKER", ["OTHER-ID", "OWN-NONCE"], "OWN-ID"],
    "failed": {"type": "E", "message": "m", "traceback": "t"}, "held": {"a": 1}, "output": 1,
    "ended": {"type": "E", "message": "m", "traceback": "t"}}
_WORDS = [json.dumps(word).encode() for word in (
    *MESSAGES, *(name for row in MESSAGES.values() for name in row.fields), "RUN-ID", "OWN-ID", "OWN-NONCE",
    "OWN-WORKER", "OTHER-ID", "template", "worker", "completed", "failed", "timed-out", "cancelled", "handler-failed",
    "too-large", "restored", "lost", "spilled")]


class WorkerFrames:
    name = "worker"
    tries = 6

    def __init__(self) -> None:
        self._deployed = 0
        self._staying: dict[str, deque[str]] = {moment: deque() for moment in _IN_RUNS}

    def seeds(self) -> list[bytes]:
        found = []
        for moment in MOMENTS:
            who = moment.split()[0]
            said = [_frame(type) for type, row in MESSAGES.items() if any(role.value == who for role in row.senders)]
            found += [b"%b\n%b" % (moment.encode(),
            frame) for frame in (said if moment in _IN_RUNS else [b"".join(said)])]
        return [*found, *(b"%b\n%b" % (moment.encode(), said) for moment, said in _TOLD.items()),
                b"worker ready\n" + _frame("log") * 3 + _frame("output") + _frame("ended")]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        moment = dice.choices([*MOMENTS], MOMENTS.values())[0]
        _, said = _parted(data)
        rest = [_parted(other)[1] for other in others]
        if moment not in _TOLD:
            return moment.encode() + b"\n" + mutated_lines(dice, said, rest, _WORDS)
        return moment.encode() + b"\n" + _PART.join(
            mutated_lines(dice, dice.choice((_TOLD[moment], _TOLD[moment], said)), rest, _WORDS)
            for _ in range(REDIALLERS))

    def decode(self, data: bytes) -> bool:
        """Whether it breaks the protocol."""
        moment, said = _parted(data)
        who, when = moment.split()
        return max(self._decode(who, when, part) for part in said.split(_PART))

    def _decode(self, who: str, when: str, said: bytes) -> bool:
        link = WorkerLink(Role.SUPERVISOR, orjson.loads, orjson.dumps)
        hello = {"type": "hello", "protocol": PROTOCOL_VERSION, "role": who, "id": "i", "nonce": "n"}
        before = [] if when == "stranger" else [hello, {"type": "ready", "handler": ""}][:2 if when == "ready" else 1]
        try:
            link.receive(b"".join(json.dumps(one).encode() + b"\n" for one in before))
            messages = link.receive(said)
        except ProtocolViolation:
            return True
        for message in messages:
            if message.type == "ended":
                read_error(believable(message).payload)
            elif message.type == "failed":
                error_text(message.payload)
            elif message.type == "workers":
                orphans_in(message.payload, lambda _: "n")
            elif message.type == "sessions":
                sessions_in(message.payload)
        return False

    def prepare(self, house: House) -> None:
        """The agents that stay are there, and not refused for what their workers did."""
        rows = {row["name"]: row["state"] for row in house.daemon.call("agent.list")["agents"]}
        for moment, names in self._staying.items():
            for name in [name for name in names if rows.get(name) != "active"]:
                names.remove(name)
                if name in rows:
                    house.daemon.call("undeploy", agent=name, purge=True)
            while len(names) < _IN_RUNS[moment]:
                names.append(self._deploy(house, moment, b""))

    def send(self, house: House, data: bytes) -> set[str]:
        moment, said = _parted(data)
        said = said.replace(b"OTHER-ID", house.bystanders_worker().encode())
        if moment in _IN_RUNS:
            return {self._in_run(house, moment, said, self.decode(data))}
        return {f"{moment}: {self._when_deployed(house, moment, said)}"}

    def _in_run(self, house: House, moment: str, said: bytes, breaks: bool) -> str:
        self._staying[moment].rotate()
        name = self._staying[moment][0]
        with house.daemon.connect(ANSWER_S) as control:
            try:
                control.call("run", agent=name, input={"frames": said.hex()}, session_id="s", timeout_s=5)
                told = "believed"
            except OrpheusError as error:
                cause = control.call("run.show", run_id=error.details["request_id"])["exit_cause"] or ""
                told = f"{refused(error)}; {short(cause.rpartition('orpheusd')[2])}"
                if breaks and moment == "worker ready" and b'"ended"' not in said:
                    self._must_be_told(error, cause)
            else:
                if breaks and moment == "worker ready" and b'"ended"' not in said:
                    raise Broken("the daemon believed a worker that breaks the protocol")
            # The record of an agent that does its work again is clear: it is not refused for what was said.
            answer = control.call("run", agent=name, input={}, timeout_s=ANSWER_S)
        if type(answer["result"]) is not int:
            raise Broken(f"the next run was answered with {answer['result']!r}")
        return f"{moment}: {told}"

    @staticmethod
    def _must_be_told(error: OrpheusError, cause: str) -> None:
        if error.code != "worker-crashed" or "protocol violation" not in cause:
            raise Broken(f"who broke the protocol ended with {error.code}, cause {cause!r}")

    def _when_deployed(self, house: House, moment: str, said: bytes) -> str:
        try:
            name = self._deploy(house, moment, said)
        except OrpheusError as error:
            return refused(error)
        with house.daemon.connect(ANSWER_S) as control:
            told = []
            if moment in _TOLD:
                for number in range(REDIALLERS):
                    control.call("run", agent=name, input={}, session_id=f"s{number}")
                control.call("reload")
            for method in ("agent.show", "session.list", "agent.stats", "run.list"):
                control.call(method, agent=name)
            try:
                control.call("run", agent=name, input={}, session_id="s", timeout_s=5)
                told.append("ran")
            except OrpheusError as error:
                told.append(refused(error))
            control.call("undeploy", agent=name, purge=True)
        return " ".join(told)

    def _deploy(self, house: House, moment: str, said: bytes) -> str:
        self._deployed += 1
        name = f"rogue-{self._deployed}"
        workers = REDIALLERS if moment == "worker redial" else 2 if moment in _IN_RUNS else 1
        house.deploy(name, ROGUE, {"when": moment.encode(), "frames": said}, preload=moment.startswith("template"),
                     scaling={"min_workers": workers, "max_workers": workers})
        return name


def _parted(data: bytes) -> tuple[str, bytes]:
    """Who speaks and when, and what. What is no moment is the usual one."""
    first, _, said = data.partition(b"\n")
    moment = first.decode(errors="replace")
    return (moment if moment in MOMENTS else "worker ready"), said


def _frame(type: str) -> bytes:
    row = MESSAGES[type]
    fields = {name: _RIGHT.get(name, _VALUES[kinds[0]]) for name, kinds in row.fields.items()}
    if type == "hello":
        fields["role"] = "worker"
    line = json.dumps({"type": type, **fields}).encode() + b"\n"
    return line + (json.dumps(_PAYLOADS[type]).encode() + b"\n" if row.payload else b"")


#: What is said behind `hello` by those who dial again.
_TOLD = {
    "worker redial": _frame("sessions") + _frame("held") + _frame("ready") + _frame("ended"),
    "template redial": _frame("workers") + _frame("ready")}
