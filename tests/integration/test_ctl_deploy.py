"""`orpheusctl deploy` and `validate`: what is sent, the steps that are shown, and what stops it before."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from tests.daemon import Daemon, environment, write_agent
from tests.eventually import eventually
from tests.integration.scripted import TIMEOUT_S, Exchange, Params, ScriptedDaemon, ctl, on_terminal


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ScriptedDaemon]:
    with ScriptedDaemon(tmp_path / "ctl.sock") as daemon:
        yield daemon


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "my-agent"
    place.mkdir()
    (place / "agent.yaml").write_text("name: my-agent\nruntime: python3\nmodule: agent\nentrypoint: handler\n")
    (place / "agent.py").write_text("def handler(input_data):\n    return {}\n")
    return place


class Deployment:
    """The daemon's side of a deployment: what was uploaded, and a deploy that tells its steps."""

    def __init__(self, door: ScriptedDaemon, env_needed: list[str], fails: bool = False) -> None:
        self.data = b""
        self.fails = fails
        door.script.update({"bundle.put": self._put, "deploy": self._deploy})
        door.answers("bundle.inspect", {"name": "my-agent", "env_needed": env_needed, "requirements": False})

    def names(self) -> list[str]:
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            return archive.getnames()

    def _put(self, params: Params, exchange: Exchange) -> Params:
        assert params.get("upload_id") == ("ab" * 16 if self.data else None)
        self.data += b64decode(params["data"])
        return {"upload_id": "ab" * 16, "size_bytes": len(self.data)}

    def _deploy(self, params: Params, exchange: Exchange) -> Params:
        assert params["upload_id"] == "ab" * 16 and params["stream"] is True
        exchange.say("step", {"step": "unpack", "text": ""})
        exchange.say("step", {"step": "build", "text": "2 requirements"})
        exchange.say("log", {"step": "build", "text": "ERROR: No matching distribution\x1b[K"})
        if self.fails:
            raise OrpheusError("invalid-request", "the requirements cannot be installed")
        exchange.say("step", {"step": "canary", "text": ""})
        exchange.say("step", {"step": "switch", "text": "version 3"})
        return {"name": "my-agent", "version": 3, "isolation": "none", "warnings": ["no isolation on this host"]}


def test_deploy_packs_uploads_and_tells_its_steps(door: ScriptedDaemon, folder: Path) -> None:
    (folder / "big.bin").write_bytes(os.urandom(2_500_000))
    deployment = Deployment(door, ["API_KEY"])
    done = ctl(door, "deploy", str(folder), API_KEY="s3cret")
    assert (done.stdout, done.returncode) == ("deployed my-agent version 3 (isolation none)\n", 0)
    steps = [line.split(":")[0] for line in done.stderr.splitlines()]
    assert steps == ["pack", "upload", "unpack", "build", "canary", "switch", "warning"]
    assert "3 files, 2.5 MB" in done.stderr and "s3cret" not in done.stderr
    assert deployment.names() == ["agent.py", "agent.yaml", "big.bin"]
    assert door.methods() == ["bundle.put", "bundle.put", "bundle.put", "bundle.inspect", "deploy"]
    assert door.asked[-1][1]["env"] == {"API_KEY": "s3cret"}
    assert "No matching distribution" not in done.stderr


def test_deploy_json_and_verbose(door: ScriptedDaemon, folder: Path) -> None:
    Deployment(door, [])
    done = ctl(door, "deploy", str(folder), "--json", "-v")
    assert json.loads(done.stdout)["version"] == 3
    assert "  ERROR: No matching distribution\\x1b[K\n" in done.stderr


def test_a_value_that_is_not_set_stops_the_deployment(door: ScriptedDaemon, folder: Path) -> None:
    Deployment(door, ["API_KEY", "OTHER"])
    done = ctl(door, "deploy", str(folder), OTHER="")
    assert (done.stdout, done.returncode) == ("", 2)
    assert "API_KEY" in done.stderr and "`API_KEY=… orpheusctl deploy PATH`" in done.stderr
    assert "deploy" not in door.methods()


def test_a_failed_build_shows_its_last_lines(door: ScriptedDaemon, folder: Path) -> None:
    Deployment(door, [], fails=True)
    done = ctl(door, "deploy", str(folder))
    assert (done.stdout, done.returncode) == ("", 2)
    assert "  ERROR: No matching distribution\\x1b[K\norpheusctl: the requirements cannot be installed" in done.stderr


def test_deploy_on_a_terminal_marks_each_step(door: ScriptedDaemon, folder: Path) -> None:
    deployment = Deployment(door, [])
    seen = on_terminal(door, "deploy", str(folder))
    assert seen.count("✓") == 6 and "✗" not in seen
    assert "deployed my-agent version 3" in seen
    deployment.fails, deployment.data = True, b""
    seen = on_terminal(door, "deploy", str(folder), "--no-color")
    assert seen.count("✓") == 3 and "✗ build" in seen and "No matching distribution\\x1b[K" in seen


def test_ctrl_c_says_that_the_daemon_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    code = "import time, workspace\nwhile not workspace.path('go').exists():\n    time.sleep(0.01)\n" \
           "def handler(input_data):\n    return 1\n"
    folder = write_agent(tmp_path / "interrupted", code)
    with subprocess.Popen([sys.executable, "-m", "orpheusctl", "deploy", str(folder)], env=daemon.ctl_env,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "canary" not in (line := process.stderr.readline()):
            assert line, "it ended before its worker was started"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out) == (130, "") and said == (
        "the daemon goes on with this deploy; `orpheusctl list` shows the version when it serves\n")
    (daemon.state_dir / "workspaces" / "interrupted" / "go").touch()
    rows = eventually(lambda: [row for row in daemon.call("agent.list")["agents"] if row["name"] == "interrupted"],
                      what="the version to serve")
    assert rows[0]["version"] == 1


def test_nothing_is_sent_without_an_agent_yaml(door: ScriptedDaemon, tmp_path: Path) -> None:
    done = ctl(door, "deploy", str(tmp_path / "my-agent"))
    assert done.returncode == 2 and "No such file" in done.stderr
    (tmp_path / "my-agent").mkdir()
    done = ctl(door, "deploy", str(tmp_path / "my-agent"), "--json")
    assert done.returncode == 2 and "agent.yaml" in json.loads(done.stdout)["error"]
    assert door.asked == []


def test_validate_runs_the_checker_and_passes_its_exit_code(folder: Path) -> None:
    def validate(*args: str) -> subprocess.CompletedProcess[str]:
        # In the agent's own folder, with files that would be imported in place of the checker's modules.
        return subprocess.run([sys.executable, "-P", "-m", "orpheusctl", "validate", *args], cwd=folder,
                              env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False)

    (folder / "json.py").write_text("raise SystemExit('the agent was imported as a library')")
    assert validate(".").returncode == 0, validate(".").stderr
    (folder / "agent.yaml").write_text("name: my-agent\nruntime: python3\nmodul: agent\n")
    done = validate(str(folder), "--json")
    assert done.returncode == 2
    assert "modul" in done.stdout and json.loads(done.stdout)


def test_ctrl_c_in_an_import_that_takes_long_leaves_without_a_word(folder: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    (folder / "agent.py").write_text(
        f"import pathlib, time\npathlib.Path({str(begun)!r}).touch()\ntime.sleep(60)\ndef handler(i): return 1\n")
    with subprocess.Popen([sys.executable, "-m", "orpheusctl", "validate", str(folder)], env=environment(), text=True,
                          start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        eventually(begun.exists, TIMEOUT_S, "the import to have begun")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, *said) == (130, "", "")
