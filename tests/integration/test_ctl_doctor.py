"""`orpheusctl doctor` with a daemon and without one."""

import json
from pathlib import Path

from orpheusd.doctor import CHECKS
from tests.daemon import Daemon

STATES = {"ok", "weaker", "missing"}


def test_a_daemon_tells_what_is_in_force(daemon: Daemon) -> None:
    done = daemon.ctl("doctor", "--json")
    told = json.loads(done.stdout)
    assert told["told_by"] == "daemon" and len(told["findings"]) == len(CHECKS)
    states = {one["check"]: one["state"] for one in told["findings"]}
    assert set(states.values()) <= STATES
    assert states["control socket"] == states["HTTP"] == states["SQLite"] == "ok"
    assert (states["bubblewrap"] == "ok") == (daemon.call("status")["isolation"] == "bwrap")
    assert (states["control groups"] == "ok") == (daemon.call("status")["memory_limit"] == "cgroup")
    assert done.returncode == ("missing" in states.values())
    text = daemon.ctl("doctor").stdout
    assert all(f"{one['state']:8}{one['check']}: " in text for one in told["findings"])


def test_without_a_daemon_it_tells_what_one_would_find(tmp_path: Path) -> None:
    nobody = Daemon(directory=tmp_path)
    env = {"ORPHEUS_STATE_DIR": str(tmp_path / "s"), "ORPHEUS_RUNTIME_DIR": str(tmp_path), "ORPHEUS_ISOLATION": "none"}
    done = nobody.ctl("doctor", env=env)
    assert done.returncode == 1, "no daemon, no isolation"
    assert "cannot reach the daemon" in done.stderr
    assert f"missing control socket: no daemon answers at {tmp_path}/ctl.sock" in done.stdout
    assert "missing bubblewrap: isolation is switched off" in done.stdout and "        fix: " in done.stdout
    assert json.loads(nobody.ctl("doctor", "--json", env=env).stdout)["told_by"] == "here"
    assert not (tmp_path / "s").exists(), "nothing was changed"


def test_settings_that_are_wrong_are_told(tmp_path: Path) -> None:
    done = Daemon(directory=tmp_path).ctl("doctor", env={"ORPHEUS_HTTP_DOORS": "many"})
    assert done.returncode == 70 and "ORPHEUS_HTTP_DOORS" in done.stderr
