"""Failpoints: off unless armed, refused when unknown, and each of them really in the code."""

import ast
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd import config, failpoints
from orpheusd.errors import OrpheusError
from orpheusd.failpoints import Trap
from tests.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    failpoints.arm({})


def test_nothing_happens_at_a_point_that_is_not_armed() -> None:
    failpoints.reached("deploy-built")
    failpoints.arm({"deploy-staged": Trap("raise", 1)})
    failpoints.reached("deploy-built")


def test_a_point_acts_at_the_passing_it_was_armed_for_and_once() -> None:
    failpoints.arm(failpoints.parse("deploy-built=raise:3"))
    acted: list[int] = []
    for passing in range(1, 6):
        try:
            failpoints.reached("deploy-built")
        except failpoints.Failed:
            acted.append(passing)
    assert acted == [3]


def at_the_point(action: str) -> "subprocess.Popen[bytes]":
    code = (f"from orpheusd import failpoints as f; f.arm(f.parse('daemon-locked={action}')); "
            "f.reached('daemon-locked'); print('went on')")
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def test_kill_is_sigkill() -> None:
    with at_the_point("kill") as process:
        assert process.communicate(timeout=20)[0] == b""
        assert process.returncode == -signal.SIGKILL


def test_stall_stands_still_until_sigcont() -> None:
    with at_the_point("stall") as process:
        def stopped() -> bool:
            found = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
            return found is not None and found.si_code == os.CLD_STOPPED

        eventually(stopped, 20.0, "the process to stand still")
        process.send_signal(signal.SIGCONT)
        assert process.communicate(timeout=20)[0] == b"went on\n"


@pytest.mark.parametrize(("text", "traps"), [
    ("", {}),
    ("deploy-built=kill", {"deploy-built": Trap("kill", 1)}),
    (" deploy-built=stall , file-written=kill:12,",
     {"deploy-built": Trap("stall", 1), "file-written": Trap("kill", 12)}),
])
def test_what_is_armed(text: str, traps: dict[str, Trap]) -> None:
    loaded = config.load({"state_dir": Path("/s"), "runtime_dir": Path("/r")}, {"ORPHEUS_FAILPOINTS": text})
    assert loaded.failpoints == traps


@pytest.mark.parametrize(("text", "said"), [
    ("deploy-bilt=kill", r"no failpoint 'deploy-bilt'; there are daemon-locked, .*runlog-committed"),
    ("=kill", "no failpoint ''"),
    ("deploy-built", "actions are kill, raise, stall"),
    ("deploy-built=explode", "actions are kill, raise, stall"),
    ("deploy-built=kill:0", "N from 1"),
    ("deploy-built=kill:", "N from 1"),
    ("deploy-built=kill:x", "N from 1"),
])
def test_what_is_refused(text: str, said: str) -> None:
    with pytest.raises(OrpheusError, match=f"ORPHEUS_FAILPOINTS: .*{said}"):
        config.load({}, {"ORPHEUS_FAILPOINTS": text})


def test_a_settings_file_cannot_arm_one(tmp_path: Path) -> None:
    (tmp_path / "orpheusd.toml").write_text('failpoints = "deploy-built=kill"')
    with pytest.raises(OrpheusError, match="unknown setting 'failpoints'"):
        config.load({"config": tmp_path / "orpheusd.toml"}, {})


def test_every_point_is_in_the_code_once_and_every_call_names_one() -> None:
    called: Counter[str] = Counter()
    for path in sorted((ROOT / "orpheusd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "reached":
                (point,) = node.args
                assert isinstance(point, ast.Constant), f"{path}:{node.lineno}"
                called[point.value] += 1
    assert called == Counter(list(failpoints.POINTS))


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", (ROOT / "docs/failpoints.md").read_text(), re.MULTILINE)
    assert rows == list(failpoints.POINTS.items())
