"""What templates and workers say to the next daemon is said by agents: too much, too early, or of others."""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.daemon import Daemon, write_agent
from tests.eventually import eventually

NewDaemon = Callable[..., Daemon]

COUNTER = """
import os
turns = {}
def handler(input_data):
    turns["s"] = turns.get("s", 0) + 1
    return {"turn": turns["s"], "pid": os.getpid()}
"""
#: Preloaded, so that it is in the template: what that does when the daemon is gone is another's business from here on.
IN_TEMPLATE = """
import json, os, time
from orpheusd.worker.template import Template
redial = Template._redial
def late(self, now):
    if not hasattr(self, "dial_at"):
        self.dial_at = now + 0.5
    if now >= self.dial_at:
        return redial(self, now)
    self._redial_at = self.dial_at
"""
LATE = IN_TEMPLATE + "Template._redial = late\n"
THIEF = IN_TEMPLATE + """
def claims(self, now):
    try:
        self._channel.redial()
    except OSError:
        self._redial_at = now + 0.02
        return
    self._redial_at = None
    self._poll.register(self._channel.fileno(), 1)
    own = [[id, self._nonces[id]] for id in self._children.workers.values()]
    self._channel.queue("workers", {}, json.dumps([["VICTIM", own[0][1]], *own]).encode())
    self._channel.queue("ready", {"handler": ""})
Template._redial = claims
"""
#: Its `ready` comes long after its `workers`: those dial in between.
SLOW = IN_TEMPLATE + """
def slow(self, now):
    queue = self._channel.queue
    def pauses(type, *rest):
        queue(type, *rest)
        if type == "workers":
            self._channel.flush(1.0)
            time.sleep(0.5)
    self._channel.queue = pauses
    redial(self, now)
    self._channel.queue = queue
Template._redial = slow
"""
#: It tells what TELLS makes of what an honest worker would, and nothing else.
LIAR = """
import json, os
from orpheusd.worker.holdings import Holdings
from orpheusd.wire.worker import LinkState

def message(type, payload=None, **fields):
    rest = b"" if payload is None else json.dumps(payload).encode() + b"\\n"
    return json.dumps({"type": type, **fields}).encode() + b"\\n" + rest

def held(**fields):
    note = {"source": "ctl", "caller": "nobody", "at": 1.5}
    return message("held", {}, **{"run_id": "r-1", "session_id": "s", "context": "new", "turn": 1, "timeout_s": 1.0,
                                  "note": note, "elapsed_s": 0.5, "over": True, **fields})

READY = message("ready", handler="sync")
ENDED = message("ended", 1, run_id="r-1", state="completed", code="", duration_us=1, dropped_bytes=0, context="new",
                saved=False)

def tell(self, say, form):
    channel = say.__self__
    channel.flush(1.0)
    try:
        for said in TELLS:
            left = memoryview(said)
            while left:
                left = left[os.write(channel.fileno(), left):]
    except OSError:
        return
    channel.link.state = LinkState.READY
Holdings.tell = tell

def handler(input_data):
    return "honest"
"""


def test_a_template_cannot_claim_workers_of_another_agent(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 29
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "victim", LATE + COUNTER, preload=True))
    before = daemon.call("run", agent="victim", input={}, session_id="s")
    daemon.deploy(write_agent(
        tmp_path / "thief", THIEF.replace("VICTIM", before["worker_id"]) + COUNTER, preload=True))
    own = daemon.call("run", agent="thief", input={}, session_id="s")
    daemon.crash()
    daemon.start()
    after = daemon.call("run", agent="victim", input={}, session_id="s")
    assert after["session"]["context"] == "warm" and after["worker_id"] == before["worker_id"]
    assert after["result"] == {"turn": 2, "pid": before["result"]["pid"]}
    again = daemon.call("run", agent="thief", input={}, session_id="s")
    assert again["worker_id"] == own["worker_id"], "it was heard, and has its own"


def test_a_worker_that_dials_before_its_template_has_said_all_is_heard(new_daemon: NewDaemon, tmp_path: Path) -> None:
    # fault 30
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "slow", SLOW + COUNTER, preload=True))
    before = daemon.call("run", agent="slow", input={}, session_id="s")
    daemon.crash()
    daemon.start()
    after = daemon.call("run", agent="slow", input={}, session_id="s")
    assert after["session"]["context"] == "warm" and after["result"]["turn"] == 2
    assert after["result"]["pid"] == before["result"]["pid"]


@pytest.mark.parametrize("tells", [
    pytest.param("held(elapsed_s=1e308), READY, ENDED", id="longer than there is time"),
    pytest.param("held(turn=2**64 - 1), READY, ENDED", id="more turns than can be counted"),
    pytest.param("held(note={'at': 1e308}), READY, ENDED", id="after all time"),
    pytest.param("held(run_id='../r'), READY, ENDED", id="no run id"),
    pytest.param('held().replace(b"{}", b\'1,"state":2\'), READY, ENDED', id="an input that is no JSON"),
    pytest.param("*(held(note={'caller': 'x' * 8_000_000}) for _ in range(25)), READY", id="a note of megabytes"),
])
def test_a_run_that_there_cannot_be_is_not_believed(new_daemon: NewDaemon, tmp_path: Path, tells: str) -> None:
    # fault 29
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "victim", COUNTER))
    daemon.deploy(write_agent(tmp_path / "liar", LIAR.replace("TELLS", f"({tells})"), scaling={"min_workers": 1}))
    before = daemon.call("run", agent="victim", input={}, session_id="s")
    daemon.crash()
    daemon.start()
    eventually(lambda: "it holds a run that there cannot be" in daemon.log, what="the end of the one that lied")
    after = daemon.call("run", agent="victim", input={}, session_id="s")
    assert after["session"]["context"] == "warm" and after["result"]["pid"] == before["result"]["pid"]
    daemon.call("run.show", run_id=after["request_id"])  # the log has it, and what came before
    assert {run["agent"] for run in daemon.call("run.list")["runs"]} == {"victim"}
    assert daemon.call("run", agent="liar", input={})["result"] == "honest"
    assert psutil.Process(daemon.pid).memory_info().rss < 160 << 20


@pytest.mark.parametrize("row", ['["t", 2**63 - 1, 0.5, False]', '["t", 1, 1e308, False]'])
def test_a_count_that_there_cannot_be_keeps_no_session_from_being_remembered(
    new_daemon: NewDaemon, tmp_path: Path, row: str,
) -> None:
    # fault 29: another run of that session would be more than the database can hold
    daemon = new_daemon(http=False)
    daemon.deploy(write_agent(tmp_path / "victim", COUNTER))
    tells = f'(message("sessions", [{row}]), READY)'
    daemon.deploy(write_agent(tmp_path / "liar", LIAR.replace("TELLS", tells), scaling={"min_workers": 1}))
    daemon.crash()
    daemon.start()
    assert daemon.call("run", agent="liar", input={}, session_id="t")["session"]["turn"] == 1
    assert daemon.call("run", agent="victim", input={}, session_id="s")["session"]["context"] == "new"
    daemon.restart()
    assert daemon.call("run", agent="victim", input={}, session_id="s")["session"]["context"] == "lost"
