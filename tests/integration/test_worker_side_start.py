"""Agents that cannot start: each says why, in words its author understands, and leaves."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.worker_peer import HANDLERS, Peer


def other_pythons() -> list[Path]:
    """Interpreters of this box, of the versions we promise, beside the one that runs the tests."""
    named = [path for minor in range(10, 14) if (path := shutil.which(f"python3.{minor}"))]
    named += map(str, sorted(Path.home().glob(".pyenv/versions/3.1[0-3].*/bin/python")))
    ask = ("-c", "import sys; print(sys.executable)")
    answers = [subprocess.run([path, *ask], capture_output=True, text=True, check=False) for path in named]
    found = {Path(answer.stdout.strip()).resolve() for answer in answers if answer.returncode == 0}
    return sorted(found - {Path(sys.executable).resolve()})


def refusal(place: Path, module: str, entrypoint: str = "handler", **setup: Any) -> dict[str, str]:
    """What a worker of this agent says instead of ready."""
    with Peer(place, module, entrypoint, **setup) as peer:
        worker = peer.start().fork()
        failed = worker.take("failed")
        assert failed.fields == {"code": "handler-failed"}
        assert worker.hello
        assert peer.exited(worker.hello.fields["id"]) == 1
        peer.end(worker)
        payload: dict[str, str] = json.loads(failed.payload)
        return payload


def test_an_exception_at_import_comes_with_its_traceback(tmp_path: Path) -> None:
    # fault 73
    payload = refusal(tmp_path, "import_raises")
    assert (payload["type"], payload["message"]) == ("ValueError", "bad at import")
    assert "import_raises.py" in payload["traceback"] and "in inner" in payload["traceback"]
    assert "importlib" not in payload["traceback"] and "orpheusd" not in payload["traceback"]


def test_a_syntax_error_shows_the_line(tmp_path: Path) -> None:
    # fault 73
    (tmp_path / "agent.py").write_text("def handler(input_data):\n    return (\n")
    payload = refusal(tmp_path, "agent.py", code_dir=str(tmp_path))
    assert payload["type"] == "SyntaxError" and "never closed" in payload["message"]
    assert "agent.py" in payload["traceback"] and "return (" in payload["traceback"]


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    payload = refusal(tmp_path, "import_missing")
    assert payload["type"] == "ModuleNotFoundError" and "a_package_that_is_not_there" in payload["message"]
    assert "import_missing.py" in payload["traceback"]


def test_sys_exit_at_import_is_a_failure(tmp_path: Path) -> None:
    payload = refusal(tmp_path, "import_exits")
    assert payload["type"] == "SystemExit"
    assert payload["message"] == "the module called sys.exit(2) while it was imported"


def test_a_missing_module_is_no_riddle(tmp_path: Path) -> None:
    payload = refusal(tmp_path, "no_such_module.py")
    assert payload["message"].startswith("there is no module 'no_such_module': the agent's folder has no")
    assert payload["traceback"] == ""


def test_concurrency_needs_an_async_handler(tmp_path: Path) -> None:
    payload = refusal(tmp_path, "behaviours", concurrency=4)
    assert payload["type"] == "UnusableHandler" and "make it `async def`" in payload["message"]


def test_a_process_that_ends_itself_at_import_is_reported_as_dead(tmp_path: Path) -> None:
    # fault 74
    with Peer(tmp_path, "import_exits_at_once") as peer:
        worker = peer.start().fork("w-dead")
        assert peer.exited("w-dead") == 7
        peer.end(worker)


def test_a_missing_code_directory_fails_the_template(tmp_path: Path) -> None:
    with Peer(tmp_path, code_dir=str(tmp_path / "nowhere")) as peer:
        peer.say_setup()
        assert b"nowhere" in peer.template.take("failed").payload
        assert peer.process.wait(5) == 1


def test_a_module_in_a_package_is_found(tmp_path: Path) -> None:
    with Peer(tmp_path, "package.inner.agent", code_dir=str(HANDLERS)) as peer:
        worker = peer.start().worker()
        assert worker.call(1).value == ["package.inner.agent", 1]
        peer.end(worker)


@pytest.mark.parametrize("python", other_pythons(), ids=lambda path: path.name)
def test_the_inside_runs_on_every_python_we_promise(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.integration.worker_peer.PYTHON", str(python))
    for name, module in (("sync", "behaviours"), ("async", "async_behaviours"), ("async-generator", "pieces")):
        place = tmp_path / name
        place.mkdir()
        entrypoint = "pieces" if module == "pieces" else "handler"
        with Peer(place, "async_behaviours" if module == "pieces" else module, entrypoint) as peer:
            worker = peer.start().worker(name)
            assert worker.call({"pieces": 2} if module == "pieces" else "hello", stream=True).state == "completed"
            if module != "pieces":
                run_id = worker.run({"do": "sleeps", "seconds": 30})
                worker.cancel(run_id, "timed-out")
                assert worker.ended(run_id).state == "timed-out"
                assert worker.call({"do": "raises"}).value["type"] == "ValueError"
            peer.end(worker)
            peer.template.send("stop", {})
            assert peer.process.wait(5) == 0
