"""Bytes to the control socket: lines of JSON-RPC for every operation there is, with everything wrong that can be."""

import base64
import json
import random
import socket
from collections.abc import Sequence

import orjson

from orpheusd.operations import BY_NAME, KINDS, OPERATIONS, Operation, Param, check_params
from orpheusd.wire.control import FRAME_LIMIT_BYTES, MalformedRequest, read_request
from orpheusd.wire.frames import FrameTooLong, LineBuffer
from tests.fuzz.house import Broken, House, short
from tests.fuzz.mutation import mutated_lines
from tests.fuzz.target import ANSWER_S, packed

VICTIM = "victim"
ECHO = "def handler(input_data):\n    print('echo')\n    return input_data\n"
_BUNDLE = base64.b64encode(packed({"agent.yaml": f"name: {VICTIM}\nruntime: python3\n", "agent.py": ECHO})).decode()
#: Stand for what only the daemon that is asked knows.
UPLOAD, RUN = "00000000000000000000000000000000", "RUN-ID"

#: A right value of each kind of parameter.
_VALUES = {
    "agent": VICTIM, "session": "s-1", "run": RUN, "upload": UPLOAD, "string": "text", "boolean": True, "count": 3,
    "seconds": 1.5, "wait": 0, "key": "once", "moment": "2026-01-31T12:00:00Z", "strings": {"x-my-id": "s-1"},
    "json": {"query": "step"}, "piece": "AAAA", "rows": 3, "lines": 3}
#: The daemon is executed anew, or the box examined: each takes as long as hundreds of others.
_SLOW = ("reload", "doctor")
_WORDS = [json.dumps(word).encode() for word in (*BY_NAME, *(p.name for o in OPERATIONS for p in o.params), "gone")]


class ControlFrames:
    name = "control"
    tries = 2

    def __init__(self) -> None:
        self._run = ""

    def seeds(self) -> list[bytes]:
        lines = [_frame(operation, operation.params) for operation in OPERATIONS if operation.name not in _SLOW]
        required = [_frame(operation, tuple(param for param in operation.params if param.required))
                    for operation in OPERATIONS if operation.name not in _SLOW]
        gone = b'{"jsonrpc":"2.0","method":"gone","params":{"id":1}}'
        put = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "bundle.put", "params": {
            "data": base64.b64encode(b"\x1f\x8b\x08\0").decode()}}).encode()
        return [*(line + b"\n" for line in (*lines, *required)), b"\n".join((*lines[:3], gone, *lines[3:6])) + b"\n",
                put + b"\n" + required[0]]

    def mutated(self, dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
        data = mutated_lines(dice, data, others, _WORDS)
        if dice.random() < 0.002:
            data += _frame(BY_NAME[dice.choice(_SLOW)], ()) + b"\n"
        # without its agent the rest of a batch asks in vain
        return data if dice.random() < 0.05 else data.replace(b'"undeploy"', b'"agent.show"')

    def decode(self, data: bytes) -> None:
        try:
            lines = LineBuffer(FRAME_LIMIT_BYTES).feed(data)
        except FrameTooLong:
            return
        for line in lines:
            try:
                request = read_request(orjson.loads(line))
            except (orjson.JSONDecodeError, MalformedRequest):
                continue
            if request.method in BY_NAME:
                check_params(BY_NAME[request.method], request.params)

    def prepare(self, house: House) -> None:
        if VICTIM not in [row["name"] for row in house.daemon.call("agent.list")["agents"]]:
            house.deploy(VICTIM, ECHO)
        self._run = house.daemon.call("run", agent=VICTIM, input={})["request_id"]

    def send(self, house: House, data: bytes) -> set[str]:
        answers: set[str] = set()
        for line in self._answers(house, data).splitlines():
            frame = json.loads(line)
            error = frame.get("error")
            if error is not None and error["data"]["code"] == "internal":
                raise Broken(f"answered with an internal error: {error['message']}")
            answers.add(short(f"{error['data']['code']}: {error['message']}") if error is not None else
                        f"{frame.get('method', 'result')} {short(sorted(frame.get('result') or ()))}")
        return answers

    def _answers(self, house: House, data: bytes) -> bytes:
        with house.daemon.connect(ANSWER_S) as control:
            if UPLOAD.encode() in data:
                upload = control.call("bundle.put", data=_BUNDLE)["upload_id"]
                data = data.replace(UPLOAD.encode(), upload.encode())
            if RUN.encode() in data:
                data = data.replace(RUN.encode(), self._run.encode())
            return exchanged(control.socket, data)


def exchanged(client: socket.socket, data: bytes) -> bytes:
    """All that comes back until the other side hangs up, which it must within ANSWER_S of its last word."""
    said = bytearray()
    client.settimeout(ANSWER_S)
    try:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(1 << 20):
            said += piece
    except (ConnectionResetError, BrokenPipeError):
        pass
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise Broken(
                f"neither answered nor hung up within {ANSWER_S:g} s; it said {bytes(said[-200:])!r}") from None
        if not said:  # hung up before we could say that this is all
            return b""
    return bytes(said)


def _frame(operation: Operation, params: Sequence[Param]) -> bytes:
    given = {param.name: param.choices[0] if param.choices else _VALUES[param.kind] for param in params}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": operation.name, "params": given}).encode()


assert _VALUES.keys() == KINDS.keys()
