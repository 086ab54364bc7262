"""A process that writes a run log until it is killed, or until the disk fails; the fault tests run it.

`python -m tests.runlog_child endless FOLDER FIRST [busy]` prints the id of each run when its end is acknowledged. It
ends when it is killed, perhaps by a failpoint.
`python -m tests.runlog_child failing FOLDER FLAG` makes the file FLAG after some runs, and prints one line of JSON.
"""

import itertools
import json
import os
import sys
import threading
from pathlib import Path

from orpheusd import failpoints
from orpheusd.runlog import store, upkeep
from orpheusd.runlog.log import RunLog
from orpheusd.runlog.settings import Settings
from tests.eventually import eventually
from tests.runlog_kit import Log, ended, queued, started, whole_run

#: Runs under way at a time.
OUTSTANDING = 200


def endless(folder: Path, first: int, busy: bool) -> None:
    settings = Settings(linger_s=0.0005, check_budget_s=30.0, reserve_bytes=4096)
    if busy:
        # Checkpoints and deletes all the time, and gives pages back when a large part of the file is empty.
        settings = Settings(linger_s=0.0, max_bytes=400_000, check_budget_s=30.0, reserve_bytes=4096)
        upkeep.LOOK_S = 0.0
        upkeep.CHECKPOINT_PAGES = 50
        upkeep.GIVE_BACK_PAGES = 4
        store.PAGES_PER_COMMIT = 20
    room = threading.Semaphore(OUTSTANDING)

    def acknowledged(run_ids: list[str]) -> None:
        os.write(1, "".join(f"{run_id}\n" for run_id in run_ids).encode())
        room.release(len(run_ids))

    log = RunLog.open(folder / "runs.db", settings, acknowledged, lambda problem: os._exit(3))
    damage = log.health()["damage"]
    assert damage is None, damage
    for left in log.unfinished():
        log.ended(ended(left.run.run_id, state="crashed", code="worker-crashed", result=None))
    for number in itertools.count(first):
        assert room.acquire(timeout=30)
        run_id = f"r-{number}"
        assert log.queued(queued(run_id, input=b"%d" % number * 100))
        # Some are still queued or started at the kill, whenever that is.
        if number % 7:
            log.started(started(run_id))
            if number % 5:
                log.ended(ended(run_id, result=b"%d" % number))
                continue
        room.release()


def failing(folder: Path, flag: Path) -> None:
    with Log(folder) as log:
        for number in range(20):
            whole_run(log.log, f"r-{number}")
        log.settle(20)
        os.write(2, b"the disk fails now\n")
        flag.touch()
        for number in range(20, 40):
            whole_run(log.log, f"r-{number}")
        eventually(lambda: log.failures, what="the failure to be told")
        closed = log.log.close(5.0)
        print(json.dumps({
            "failures": log.failures, "acknowledged": len(log.acknowledged), "accepting": log.log.accepting,
            "state": log.log.health()["state"], "closed": closed}))


if __name__ == "__main__":
    failpoints.arm(failpoints.parse(os.environ.get("ORPHEUS_FAILPOINTS", "")))
    if sys.argv[1] == "endless":
        endless(Path(sys.argv[2]), int(sys.argv[3]), "busy" in sys.argv)
    else:
        failing(Path(sys.argv[2]), Path(sys.argv[3]))
