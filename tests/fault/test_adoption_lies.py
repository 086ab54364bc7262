"""What templates and workers say to the next daemon is said by agents: too much, too early, or of others."""

from collections.abc import Callable
from pathlib import Path

from tests.daemon import Daemon, write_agent

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
