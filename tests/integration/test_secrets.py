"""What an agent is told in confidence is in no error, whatever is wrong with it.

tests/planted.py looks everywhere else, and test_deploy_faults.py and test_bad_input.py deploy modules that break.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from orpheusd.errors import OrpheusError
from tests import planted
from tests.daemon import Daemon, bundle, write_agent
from tests.planted import GIVEN, MARK, STATED

NewDaemon = Callable[..., Daemon]

ONE = "def handler(input_data):\n    return 1\n"
#: Values that an environment cannot have, and names that are none.
WRONG = {
    "a NUL": {GIVEN: f"{MARK}\0"},
    "too long": {GIVEN: MARK * 4000},
    "a name that nobody asked for": {GIVEN: MARK, "OTHER": MARK},
    "a name with its value": {f"{GIVEN}={MARK}": ""},
    "nothing": {},
    "a list": {GIVEN: [MARK]},
    "a number beside it": {GIVEN: MARK, "OTHER": 7},
}


@pytest.mark.parametrize("env", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_environment_is_refused_without_its_values(
        daemon: Daemon, tmp_path: Path, env: dict[str, Any]) -> None:
    folder = write_agent(tmp_path / "confided", ONE)
    with pytest.raises(OrpheusError) as refused:
        daemon.deploy_bundle(bundle(folder), env)
    assert refused.value.code == "invalid-request"
    assert MARK not in refused.value.message + json.dumps(refused.value.details)


@pytest.mark.parametrize("broken", [
    "{text}  SPOILT: !{secret}\n", "{text}  SPOILT: *{secret}\n", '{text}  SPOILT: "{secret}\n',
    "{text}  - {secret}\n", "{text}  'SPOILT:{secret}': x\n", "{text}  SPOILT: [{secret}]\n",
    "{text}SPOILT: {secret}\n",
])
def test_an_agent_yaml_that_is_wrong_is_refused_without_its_values(
        daemon: Daemon, tmp_path: Path, broken: str) -> None:
    folder = write_agent(tmp_path / "misspelt", ONE)
    text = f"name: misspelt\nruntime: python3\nenv:\n  {STATED}: {MARK}\n"
    (folder / "agent.yaml").write_text(broken.format(text=text, secret=f"{MARK}-misspelt"))
    with pytest.raises(OrpheusError) as refused:
        daemon.deploy(folder)
    assert refused.value.code == "invalid-request"
    assert MARK not in refused.value.message + json.dumps(refused.value.details)
    for words in (["deploy", str(folder)], ["validate", str(folder)]):
        done = daemon.ctl(*words)
        assert done.returncode != 0 and MARK not in done.stdout + done.stderr, words


def test_a_value_that_is_no_text_for_the_system_is_refused_without_it(daemon: Daemon, tmp_path: Path) -> None:
    folder = write_agent(tmp_path / "halved", ONE)
    (folder / "agent.yaml").write_text(f'name: halved\nruntime: python3\nenv: {{KEY: "{MARK}\\ud800"}}\n')
    with pytest.raises(OrpheusError, match=r"env\.KEY") as refused:
        daemon.deploy(folder)
    assert refused.value.code == "invalid-request"
    assert MARK not in refused.value.message + json.dumps(refused.value.details)


def test_a_fault_in_the_middle_of_a_deploy_is_logged_without_values(new_daemon: NewDaemon, tmp_path: Path) -> None:
    daemon = new_daemon("--log-level", "debug", http=False, env={"ORPHEUS_FAILPOINTS": "deploy-env-written=raise"})
    with pytest.raises(OrpheusError) as refused:
        daemon.deploy(write_agent(tmp_path / "interrupted", ONE))
    assert refused.value.code == "internal"
    assert "Traceback" in daemon.log and MARK not in daemon.log


@pytest.mark.parametrize(("file", "damage"), [
    ("manifest.json", lambda text: text.replace('"memory": 512', '"memory": "much"')),
    ("manifest.json", lambda text: text[:-10]),
    ("env.json", lambda text: text[:-10]),
    ("env.json", lambda text: json.dumps([text])),
    ("env.json", lambda text: json.dumps({STATED: [text]})),
], ids=["a wrong setting", "a cut manifest", "a cut environment", "no environment", "no text"])
def test_a_damaged_version_is_told_of_without_its_values(
        new_daemon: NewDaemon, tmp_path: Path, file: str, damage: Callable[[str], str]) -> None:
    daemon = new_daemon(http=False)
    for name in ("damaged", "damaged", "well"):  # the first has an older version to go back to
        daemon.deploy(write_agent(tmp_path / name, ONE))
    daemon.stop()
    for number in (1, 2):
        path = daemon.state_dir / f"agents/damaged/versions/{number}" / file
        assert MARK in path.read_text() and damage(path.read_text()) != path.read_text()
        path.write_text(damage(path.read_text()))
    daemon.start()
    assert daemon.call("run", agent="well", input={})["result"] == 1
    assert [agent["name"] for agent in daemon.call("agent.list")["agents"]] == ["well"]
    with pytest.raises(OrpheusError):
        daemon.call("rollback", agent="damaged", version=1)
    assert "damaged" in daemon.log and MARK not in daemon.log
    assert daemon.deploy(write_agent(tmp_path / "damaged", ONE))["version"] == 3
    with pytest.raises(OrpheusError) as refused:
        daemon.call("rollback", agent="damaged", version=1)
    assert MARK not in refused.value.message + json.dumps(refused.value.details) + daemon.log


class Index:
    """A package index that asks for a password and has nothing. While it is asked, it looks at every command line."""

    def __init__(self, password: str) -> None:
        self.asked: list[str] = []
        self.seen: list[bytes] = []
        index = self

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.headers.get("Authorization", ""))
                index.seen += [line for path in Path("/proc").glob("[0-9]*/cmdline") if password.encode() in (
                    line := planted.content_of(path))]
                self.send_error(404)

            def log_message(self, *_said: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://builder:{password}@127.0.0.1:{self.server.server_port}/simple"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def password() -> str:
    """The daemon's own secret: it may be in its environment, and in that of a build."""
    return f"confided-{secrets.token_hex(8)}"


@pytest.fixture
def index(password: str) -> Iterator[Index]:
    one = Index(password)
    try:
        yield one
    finally:
        one.close()


@pytest.mark.parametrize("isolation", ["auto", "none"])
def test_a_build_that_fails_tells_no_password_of_the_index(
        new_daemon: NewDaemon, tmp_path: Path, index: Index, password: str, isolation: str) -> None:
    daemon = new_daemon(http=False, isolation=isolation, env={
        "PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "PIP_RETRIES": "0"})
    folder = write_agent(tmp_path / "wanting", ONE)
    (folder / "requirements.txt").write_text("no-such-package==1.0\n")
    done = daemon.ctl("deploy", str(folder), "-v")
    assert done.returncode != 0 and "no-such-package" in done.stderr
    assert password not in done.stdout + done.stderr + daemon.log
    with pytest.raises(OrpheusError, match="no-such-package") as refused:
        daemon.deploy(folder)
    assert password not in refused.value.message + json.dumps(refused.value.details)
    assert any(index.asked), "the index was asked without the password"
    assert index.seen == []
    assert [path for path in daemon.directory.rglob("*") if path.is_file() and password.encode() in
            planted.content_of(path)] == []
