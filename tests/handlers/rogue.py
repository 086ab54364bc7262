"""An agent that speaks for its worker, or its template, past the code that does: it writes into the channel what it
was deployed with, or is given. `when` beside this file says who speaks and at which moment, `frames` says what:

    worker starting      at import, before `ready`
    template starting    the same with `preload: true`, where the import is in the template
    template ready       from a thread of the template, once it can fork
    worker redial        behind `hello`, when the daemon has come back; of several parts each worker says another
    template redial      the same
    worker ready         from a run, whose input has the frames
    worker stranger      from a run, on a connection of its own to the agent's socket
"""

import functools
import gc
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import workspace

HERE = Path(__file__).parent
WHO, WHEN = (HERE / "when").read_text().split()
FRAMES = (HERE / "frames").read_bytes()

#: The run that was executed last.
last = {"RUN-ID": "r"}


def channel() -> Any:
    return next(one for one in gc.get_objects() if type(one).__name__ == "Channel" and not one.lost)


def says(one: Any, data: bytes, own: str = "[]") -> None:
    """Whoever listens may hang up in the middle of it."""
    address = one._address
    for word, value in {**last, '"OWN-WORKER"': own, "OWN-ID": address.id, "OWN-NONCE": address.nonce}.items():
        data = data.replace(word.encode(), value.encode())
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(one.fileno(), left):]
    except OSError:
        pass


def strange(one: Any, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(one._address.path)
        try:
            sock.sendall(data.replace(b"OWN-ID", one._address.id.encode()))
            sock.shutdown(socket.SHUT_WR)
            sock.recv(1)
        except OSError:
            pass


def when_ready(one: Any) -> None:
    while one.link.state.name != "READY":
        time.sleep(0.001)
    says(one, FRAMES)


@functools.cache
def my_part() -> bytes:
    """The first that no other process took: who makes the folder has it, however often it has to dial."""
    for number, part in enumerate(FRAMES.split(b"\n---\n")):
        try:
            workspace.path(f"part-{number}").mkdir()
        except FileExistsError:
            continue
        return part
    return b""


def lies_when_it_dials_again(kind: Any) -> None:
    honest = kind.redial

    def redial(self: Any) -> None:
        honest(self)
        if self._address.role.value == WHO:
            template = sys._getframe(1).f_locals["self"]
            says(self, my_part(), json.dumps(next(iter(getattr(template, "_nonces", {}).items()), [])))

    kind.redial = redial


if WHEN == "starting":
    says(channel(), FRAMES)
elif WHEN == "redial":
    lies_when_it_dials_again(type(channel()))
elif (WHO, WHEN) == ("template", "ready"):
    threading.Thread(target=when_ready, args=(channel(),), daemon=True).start()


def handler(input_data: dict[str, Any]) -> Any:
    last["RUN-ID"] = workspace.run.id
    if "frames" in input_data:
        speak = strange if WHEN == "stranger" else says
        speak(channel(), bytes.fromhex(input_data["frames"]))
    return os.getpid()
