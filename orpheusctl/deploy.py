"""`orpheusctl deploy`: pack, upload, then the daemon's own steps, each shown while it goes on.

Values of variables are read here, from the deployer's environment, and go nowhere but into the one request
that needs them.
"""

import base64
import os
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orpheusctl import client
from orpheusctl.client import Client, Event
from orpheusctl.output import Output, PlainSteps
from orpheusctl.pack import Bundle, pack
from orpheusctl.parser import Call
from orpheusctl.units import size
from orpheusd.errors import OrpheusError

if TYPE_CHECKING:
    from orpheusctl import render

#: The daemon takes 4 MiB a piece; smaller ones keep its loop free for runs in between.
PIECE_BYTES = 1024 * 1024
#: Between two messages of a deployment lies at most a whole build, for which the daemon has its own deadline.
SILENCE_S = 3600
#: Enough of a build's last words to see why it failed.
TAIL_LINES = 40


def execute(call: Call, output: Output) -> int:
    steps = output.steps()
    deployment = _Deployment(steps)
    try:
        answer = deployment.carry_out(Path(call.arguments.path), call.arguments.socket)
    except BaseException as failure:
        steps.end(ok=False)
        if isinstance(failure, OrpheusError) and not output.verbose:
            for line in deployment.tail:
                output.note(f"  {line}")
        if isinstance(failure, KeyboardInterrupt) and deployment.asked:
            output.note(f"the daemon goes on with this deploy; `{output.prog} list` shows the version when it serves")
        raise
    steps.end(ok=True)
    for warning in answer.get("warnings", ()):
        output.note(f"warning: {warning}")
    if output.json_wanted:
        output.json(answer)
    else:
        output.line(f"deployed {answer['name']} version {answer['version']} (isolation {answer['isolation']})")
    return 0


class _Deployment:
    """One deployment. Invariant: `tail` holds the latest lines of the step that is going on. `asked`: the daemon has
    the bundle and was told to deploy it."""

    def __init__(self, steps: "PlainSteps | render.Steps") -> None:
        self.asked = False
        self._steps = steps
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def carry_out(self, path: Path, socket: str | None) -> dict[str, Any]:
        self._steps.begin("pack", str(path))
        bundle = pack(path)
        with bundle.stream, client.connect(socket) as daemon:
            self._steps.begin("upload", _described(bundle))
            upload_id = self._upload(daemon, bundle)
            needed = daemon.call("bundle.inspect", {"upload_id": upload_id})["env_needed"]
            params = {"upload_id": upload_id, "env": _values(needed), "stream": True}
            self.asked = True
            answer: dict[str, Any] = daemon.stream("deploy", params, self._happened, SILENCE_S)
            return answer

    def _upload(self, daemon: Client, bundle: Bundle) -> str:
        params: dict[str, Any] = {}
        while piece := bundle.stream.read(PIECE_BYTES):
            params["data"] = base64.b64encode(piece).decode()
            params["upload_id"] = daemon.call("bundle.put", params)["upload_id"]
        if "upload_id" not in params:
            raise OrpheusError("invalid-request", "the bundle is empty")
        return str(params["upload_id"])

    def _happened(self, event: Event) -> None:
        data = event.data if isinstance(event.data, dict) else {}
        text = str(data.get("text") or "")
        if event.name == "step":
            self.tail.clear()
            self._steps.begin(str(data.get("step", "")), text)
        elif event.name == "log":
            self.tail.extend(text.splitlines())
            self._steps.log(text)


def _values(names: list[str]) -> dict[str, str]:
    """The deployer's values of the variables that agent.yaml names. Raises OrpheusError naming the unset ones."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        settings = " ".join(f"{name}=…" for name in missing)
        raise OrpheusError(
            "invalid-request",
            f"agent.yaml takes {', '.join(missing)} from the deployer's environment, and that is not set here. Set it "
            f"for this command, `{settings} orpheusctl deploy PATH`, or give a value in agent.yaml (NAME=value)",
            {"missing": missing})
    return {name: os.environ[name] for name in names}


def _described(bundle: Bundle) -> str:
    files = f"{bundle.files} files, " if bundle.files is not None else ""
    return f"{files}{size(bundle.size_bytes)}"
