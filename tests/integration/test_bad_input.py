"""Bad input at the doors of a real daemon: a clear error each, and no change of state."""

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from orpheusd.errors import CODES, OrpheusError
from orpheusd.operations import OPERATIONS
from tests.daemon import Daemon, bundle, write_agent
from tests.eventually import eventually

GOOD = "def handler(input_data):\n    return {'ok': True}\n"


def state_of(daemon: Daemon) -> Any:
    """What must not change: agents, versions and processes."""
    agents = daemon.call("agent.list")["agents"]
    return [(agent["name"], agent["version"], agent["state"]) for agent in agents]


@pytest.mark.parametrize(("name", "code", "settings", "says"), [
    ("syntax", "def handler(:\n", {}, "SyntaxError"),
    ("raises", "raise RuntimeError('no luck')\n", {}, "RuntimeError: no luck"),
    ("imports", "import no_such_module\n", {}, "no_such_module"),
    ("exits", "import os\nos._exit(3)\n", {}, "exit 3"),
    ("sysexit", "import sys\nsys.exit('bye')\n", {}, "bye"),
    ("no-entry", "x = 1\n", {}, "handler"),
    ("not-callable", "handler = 5\n", {}, "callable"),
    ("sync-many", GOOD, {"concurrency": 3}, "async"),
    ("no-module", GOOD, {"module": "missing"}, "missing"),
    ("preloads", "raise ValueError('at preload')\n", {"preload": True}, "at preload"),
])
def test_an_agent_that_does_not_start_is_refused(
    daemon: Daemon, tmp_path: Path, name: str, code: str, settings: dict[str, Any], says: str
) -> None:
    # faults 73, 74
    before = state_of(daemon)
    with pytest.raises(OrpheusError) as refused:
        daemon.deploy(write_agent(tmp_path / name, code, **settings))
    assert says in refused.value.message + str(refused.value.details), refused.value.message
    assert refused.value.code in ("handler-failed", "invalid-request")
    eventually(lambda: state_of(daemon) == before, what="the refused agent is forgotten")
    assert not (daemon.state_dir / "agents" / name / "versions" / "1").exists()


def test_an_import_that_hangs_is_refused_at_the_deadline(new_daemon: Any, tmp_path: Path) -> None:
    # fault 74
    daemon = new_daemon(http=False, env={"ORPHEUS_START_TIMEOUT_S": "1"})
    with pytest.raises(OrpheusError, match="not ready within 1 s"):
        daemon.deploy(write_agent(tmp_path / "hangs", "import time\ntime.sleep(3600)\n"))
    assert state_of(daemon) == []


def test_a_broken_redeploy_leaves_the_old_version_serving(daemon: Daemon, tmp_path: Path) -> None:
    # fault 73
    folder = write_agent(tmp_path / "steady", "def handler(input_data):\n    return 1\n")
    daemon.deploy(folder)
    home = daemon.call("run", agent="steady", input={}, session_id="s")["worker_id"]
    write_agent(folder, "1/0\n")
    with pytest.raises(OrpheusError, match=r"ZeroDivisionError.*still does"):
        daemon.deploy(folder)
    answer = daemon.call("run", agent="steady", input={}, session_id="s")
    assert (answer["result"], answer["worker_id"], answer["session"]["context"]) == (1, home, "warm")


@pytest.mark.parametrize(("yaml", "says"), [
    (None, "agent.yaml"),
    ("", "empty"),
    ("- just\n- a list\n", "key: value"),
    ("name: [unclosed\n", "YAML"),
    ("name: my-agent\nruntime: python3\nmemroy: 12\n", "memory"),
    ("name: My_Agent\nruntime: python3\n", "name"),
    ("name: my-agent\nruntime: python3\ntimeout: soon\n", "timeout"),
    ("name: my-agent\nruntime: ruby\n", "python3"),
])
def test_a_bad_agent_yaml_is_refused(daemon: Daemon, tmp_path: Path, yaml: str | None, says: str) -> None:
    before = state_of(daemon)
    folder = write_agent(tmp_path / "my-agent", GOOD)
    (folder / "agent.yaml").unlink()
    if yaml is not None:
        (folder / "agent.yaml").write_text(yaml)
    with pytest.raises(OrpheusError) as refused:
        daemon.deploy(folder)
    assert refused.value.code == "invalid-request"
    assert says in refused.value.message
    assert state_of(daemon) == before


@pytest.fixture(scope="module")
def echo(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> str:
    daemon.deploy(write_agent(tmp_path_factory.mktemp("agents") / "misfit", HANDLERS))
    return "misfit"


HANDLERS = """
import math, os, sys

def handler(input_data):
    return globals()[input_data["do"]](input_data)

def nothing(i): return None
def echo(i): return i
def nan(i): return [1.0, math.nan]
def raw(i): return {"b": b"bytes"}
def cycle(i):
    a = []
    a.append(a)
    return a
def huge(i): return "x" * (9 * 1024 * 1024)
def raises(i): raise KeyError("the key")
def exits(i): os._exit(7)
def leaves(i): sys.exit("so long")
def dies(i): os.kill(os.getpid(), 9)
def spams(i):
    print("x" * 100_000_000)
    return "done"
def spams_raw(i):
    for _ in range(1600):
        os.write(1, b"y" * 65535 + b"\\n")
    return "done"
def shuts(i): os.closerange(0, 1024)
def garbage(i):
    for fd in range(3, 64):
        try: os.write(fd, b"\\x00garbage\\n")
        except OSError: pass
    return "done"
"""

#: What the handler does, and the error code that its caller gets through both doors ("" for a result).
MISBEHAVIOUR = [
    ("nan", "unserialisable-result"),
    ("raw", "unserialisable-result"),
    ("cycle", "unserialisable-result"),
    ("huge", "too-large"),
    ("raises", "handler-failed"),
    ("leaves", "handler-failed"),
    ("exits", "worker-crashed"),
    ("dies", "worker-crashed"),
    ("shuts", "worker-crashed"),
    ("garbage", "worker-crashed"),
    ("spams", ""),
    ("spams_raw", ""),
]


@pytest.mark.parametrize(("do", "code"), MISBEHAVIOUR)
def test_misbehaviour_is_told_the_same_at_both_doors(daemon: Daemon, echo: str, do: str, code: str) -> None:
    # faults 1, 4, 16, 17, 19, 20, 21, 22, 25
    with daemon.connect(timeout_s=20) as control:
        if code:
            with pytest.raises(OrpheusError) as refused:
                control.call("run", agent=echo, input={"do": do})
            assert refused.value.code == code
            assert refused.value.details["request_id"].startswith("r-")
        else:
            assert control.call("run", agent=echo, input={"do": do})["result"] == "done"
    response = httpx.post(f"{daemon.http}/v1/agents/{echo}/run", json={"input": {"do": do}}, timeout=20)
    assert response.status_code == (CODES[code].http_status if code else 200), response.text[:300]
    assert response.json().get("code", "") == code
    with daemon.connect(timeout_s=20) as control:
        assert control.call("run", agent=echo, input={"do": "echo"})["result"]["do"] == "echo", "the slot serves again"


def test_bad_requests_change_nothing(daemon: Daemon, echo: str) -> None:
    runs = daemon.call("agent.stats", agent=echo)["runs"]
    route = f"{daemon.http}/v1/agents/{echo}/run"
    bodies: list[tuple[Any, int]] = [
        (b"not json", 400), (b"", 400), (b"[]", 400), (b"{}", 400), (b'{"input": NaN}', 400),
        (b'{"input": {}, "session_id": "a/b"}', 400), (b'{"input": {}, "sesion_id": "a"}', 400),
        (b'{"input": "' + b"x" * 20_000_000 + b'"}', 413),
    ]
    for body, status in bodies:
        response = httpx.post(route, content=body, headers={"Content-Type": "application/json"}, timeout=20)
        assert response.status_code == status, (body[:60], response.text[:200])
        assert response.json()["error"]
    clash = httpx.post(route, json={"input": {}, "session_id": "a"}, headers={"X-Session-ID": "b"})
    assert clash.status_code == 400
    inside = httpx.post(route, json={"input": {"session_id": "b"}}, headers={"X-Session-ID": "a"})
    assert inside.status_code == 400
    unknown = httpx.post(f"{daemon.http}/v1/agents/nobody/run", json={"input": {}})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not-found")
    assert daemon.call("agent.stats", agent=echo)["runs"] == runs


@pytest.mark.parametrize("levels", [200, 251, 252, 253, 254, 255, 256, 900, 5000])
def test_what_is_nested_too_deeply_is_refused_and_harms_nobody(daemon: Daemon, echo: str, levels: int) -> None:
    """Either it is executed or it is the caller's fault, at both doors; about 250 levels are too many."""
    text = '{"do":"nothing","x":' + "[" * levels + "]" * levels + "}"
    deep, told = b'{"input":%b}' % text.encode(), {200} if levels == 200 else {400} if levels >= 255 else {200, 400}
    for headers in ({}, {"Idempotency-Key": f"deep-{levels}"}, {"Prefer": "respond-async"}):
        answer = httpx.post(f"{daemon.http}/v1/agents/{echo}/run", content=deep, timeout=20,
                            headers={"Content-Type": "application/json", **headers})
        assert answer.status_code in (told if "Prefer" not in headers else told | {202}), answer.text
        assert answer.status_code != 400 or answer.json()["code"] == "invalid-request"
    for method, params in (
        ("run", f'{{"agent":"{echo}","input":{text}}}'),
        ("run", f'{{"agent":"{echo}","idempotency_key":"ctl-{levels}","input":{text}}}'),
        *[(one.name, f'{{"agent":{text}}}') for one in OPERATIONS],
    ):
        with daemon.connect(timeout_s=20) as control:
            control.socket.sendall(f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}\n'.encode())
            frame = control.receive()
            assert "result" in frame or frame["error"]["data"]["code"] == "invalid-request", (method, frame)
    assert daemon.call("health")["status"] == "ok"


def test_the_command_line_refuses_bad_input(daemon: Daemon, echo: str, tmp_path: Path) -> None:
    for args, exit_code in (
        (["run", echo, "{not json"], 2), (["run", "nobody", "{}"], 1), (["run", echo, "{}", "--session", "a b"], 2),
        (["run", echo, "@/no/such/file"], 2), (["deploy", str(tmp_path / "nowhere")], 2),
    ):
        done = daemon.ctl(*args)
        assert done.returncode == exit_code, (args, done.stderr)
        assert done.stdout == ""
        assert done.stderr.strip()


def test_uploads_that_are_no_bundles_are_refused(daemon: Daemon, tmp_path: Path) -> None:
    good = bundle(write_agent(tmp_path / "cut", GOOD))
    for data in (b"", b"not a tar", good[: len(good) // 2]):
        with daemon.connect() as control:
            upload = control.call("bundle.put", data=base64.b64encode(data).decode())["upload_id"]
            with pytest.raises(OrpheusError) as refused:
                control.call("deploy", upload_id=upload)
            assert refused.value.code == "invalid-request"


def test_frames_that_are_no_requests_are_refused(daemon: Daemon) -> None:
    # fault 71
    with daemon.connect() as control:
        for frame in (b"nonsense", b"[]", b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","id":2,"method":"no.such"}',
                      b'{"jsonrpc":"2.0","id":3,"method":"run","params":[]}'):
            control.socket.sendall(frame + b"\n")
            answer = control.receive()
            assert answer["error"]["data"]["code"] == "invalid-request", answer
            assert json.dumps(answer)
        assert control.call("health")["status"] == "ok"
