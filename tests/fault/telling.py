"""What the tests of signals share: a daemon that stops soon, a handler that does not, and how to tell and to wait."""

import signal
import time

from tests.daemon import Daemon

STOP_TIMEOUT_S = 0.5
GRACE_S = 1.0
QUICK = {"ORPHEUS_STOP_TIMEOUT_S": str(STOP_TIMEOUT_S), "ORPHEUS_GRACE_S": str(GRACE_S)}

#: Works as long as it is told, whoever tells it to stop, and however often.
STUBBORN = """
import time

def handler(input_data):
    effect()
    end = time.monotonic() + input_data["seconds"]
    while time.monotonic() < end:
        try:
            time.sleep(0.1)
        except BaseException:
            pass
    return secret(input_data)
"""


def tell(daemon: Daemon, number: signal.Signals) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(number)


def exit_of(daemon: Daemon, timeout_s: float) -> tuple[int, float]:
    """Exit code and seconds of a daemon that was told to stop; it is not waited for longer than `timeout_s`."""
    assert daemon.process is not None
    started = time.monotonic()
    code = daemon.process.wait(timeout_s)
    daemon.process = None
    return code, time.monotonic() - started


def running(daemon: Daemon, agent: str) -> int:
    processing: int = daemon.call("agent.stats", agent=agent)["queue"]["processing"]
    return processing
