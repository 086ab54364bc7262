"""`orpheusctl validate`'s checker: what a deploy would say, said on the author's machine."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orpheusd.deploy.validate import EXIT_INVALID, EXIT_VALID, check, main
from orpheusd.process.sandbox import find_interpreter

ROOT = Path(__file__).resolve().parents[2]
BASE = "name: my-agent\nruntime: python3\n"
GOOD = "def handler(input_data):\n    return input_data\n"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def write(place: Path, code: str | None = GOOD, settings: str = "", requirements: str | None = None) -> None:
    (place / "agent.yaml").write_text(BASE + settings)
    if code is not None:
        (place / "agent.py").write_text(textwrap.dedent(code))
    if requirements is not None:
        (place / "requirements.txt").write_text(requirements)


@pytest.mark.parametrize("code", [
    GOOD,
    "async def handler(input_data): yield input_data",
    "print('x' * 1_000_000)\n" + GOOD,
    "import sys\nassert sys.stdin.read() == ''\n" + GOOD,
    "import workspace\nassert str(workspace.path('x'))\n" + GOOD,
    "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n" + GOOD,
    "import atexit, os\natexit.register(os._exit, 9)\n" + GOOD,
    "import other\n" + GOOD,
    "import os\nassert os.environ['MODE'] == 'prod' and os.environ['WORKSPACE_DIR']\n" + GOOD,
    "import resource\nassert 0 < resource.getrlimit(resource.RLIMIT_FSIZE)[0] <= 1 << 30\n" + GOOD,
    "import os\nassert os.umask(0o077) == 0o077 and int(open('/proc/self/oom_score_adj').read()) >= 500\n" + GOOD,
])
def test_what_is_sound_is_valid(place: Path, code: str) -> None:
    write(place, code, "env: [MODE=prod]\n")
    (place / "other.py").write_text("")
    report = check(place)
    assert (report.problems, report.warnings, report.name) == ([], [], "my-agent")
    assert not list(place.rglob("__pycache__"))


@pytest.mark.parametrize(("code", "settings", "file", "line", "words"), [
    ("def handler(input_data) return 1", "", "agent.py", 1, "SyntaxError: expected ':'"),
    ("x = 1\n  y = 2", "", "agent.py", 2, "IndentationError"),
    ("\0", "", "agent.py", 0, "null byte"),
    ("import json\n\n\nraise ValueError('boom')", "", "agent.py", 4, "ValueError: boom"),
    ("import other", "", "other.py", 2, "ZeroDivisionError"),
    ("import bad_syntax", "", "bad_syntax.py", 1, "SyntaxError"),
    ("import no_such_package_here", "", "agent.py", 1, "no module no_such_package_here; name its package in"),
    ("import sys; sys.exit(3)", "", "agent.py", 1, "SystemExit: 3"),
    ("import os; os._exit(3)", "", "agent.yaml", 0, "ended the process (exit status 3)"),
    ("import os; os.abort()", "", "agent.yaml", 0, "ended the process (signal 6)"),
    ("x = 1", "", "agent.yaml", 0, "has no 'handler'"),
    ("handler = 1", "", "agent.yaml", 0, "cannot be called"),
    ("def handler(): pass", "", "agent.yaml", 0, "must take one argument"),
    (GOOD, "entrypoint: main\n", "agent.yaml", 0, "has no 'main'"),
    (GOOD, "concurrency: 2\n", "agent.yaml", 0, "concurrency is 2"),
    (GOOD, "module: main\n", "agent.yaml", 0, "the folder has no main.py; there is agent.py, bad_syntax.py, other.py"),
    (GOOD, "module: pkg.main\n", "agent.yaml", 0, "the folder has no pkg/main.py"),
    (GOOD, "memory: lots\n", "agent.yaml", 3, "`memory` must be a whole number"),
])
def test_what_would_not_deploy_is_invalid(
        place: Path, code: str, settings: str, file: str, line: int, words: str) -> None:
    # faults 73, 74
    write(place, code, settings)
    (place / "other.py").write_text("x = 1\n1 / 0\n")
    (place / "bad_syntax.py").write_text("def\n")
    report = check(place)
    problem, = report.problems
    assert words in problem["message"]
    assert (problem["file"], problem["line"]) == (file, line)


def test_a_module_that_hangs_is_stopped_with_all_it_started(place: Path) -> None:
    # fault 74
    write(place, """
        import subprocess, time
        child = subprocess.Popen(["sleep", "300"])
        open("pid", "w").write(str(child.pid))
        time.sleep(300)
    """)
    report = check(place, import_deadline_s=2)
    assert "importing agent is not done after 2 s" in report.problems[0]["message"]
    pid = (place / "pid").read_text()
    assert b"sleep" not in _cmdline(pid)


def _cmdline(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_what_only_the_daemon_has_installed_is_not_there(place: Path) -> None:
    command = [str(find_interpreter().executable), "-I", "-c", "import hypothesis"]
    if subprocess.run(command, capture_output=True, check=False).returncode == 0:
        pytest.skip("the plain interpreter has every package of this environment")
    write(place, "import hypothesis\n" + GOOD)
    assert "no module hypothesis; name its package" in check(place).problems[0]["message"]


def test_a_package_that_a_deploy_will_install_is_a_warning(place: Path) -> None:
    write(place, "import no_such_package_here\n" + GOOD, requirements="no-such-package-here\n")
    report = check(place)
    assert report.valid
    assert "no_such_package_here is not installed here" in report.warnings[0]


def test_a_variable_that_the_deployer_has_not_set_is_a_warning(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(place, "import os\nKEY = os.environ['VALIDATE_KEY']\n" + GOOD, "env: [VALIDATE_KEY]\n")
    report = check(place)
    assert report.valid and "perhaps because VALIDATE_KEY is not set" in report.warnings[0]
    monkeypatch.setenv("VALIDATE_KEY", "x")
    assert check(place).warnings == []


@pytest.mark.parametrize("line", ["-r other.txt", "-c limits.txt", "-e .", "./wheels/x.whl", "/opt/x", "x @ file:///opt/x"])
def test_requirements_that_refer_elsewhere_are_refused(place: Path, line: str) -> None:
    write(place, requirements=f"# first\n{line}\n")
    problem, = check(place).problems
    assert problem["file"] == "requirements.txt" and "line 2" in problem["message"]


def test_what_is_there_at_all(tmp_path: Path) -> None:
    assert "is not a folder" in check(tmp_path / "none").problems[0]["message"]
    assert "there is no such file" in check(tmp_path).problems[0]["message"]
    (tmp_path / "agent.yaml").write_bytes(b"name: \xff")
    assert "not UTF-8" in check(tmp_path).problems[0]["message"]
    write(tmp_path)
    assert check(tmp_path / "agent.yaml").valid


def test_the_command_speaks_text_and_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(place, settings="engine: ollama\n")
    assert main([str(place)]) == EXIT_VALID
    told = capsys.readouterr()
    assert told.out == "my-agent is valid\n" and told.err.startswith("warning: agent.yaml: `engine` is ignored")
    assert main([str(place), "--json"]) == EXIT_VALID
    told = capsys.readouterr()
    assert json.loads(told.out)["valid"] is True and told.err == ""
    write(place, settings="memory: 1\nmemry: 2\n")
    assert main([str(place)]) == EXIT_INVALID
    told = capsys.readouterr()
    assert told.out == ""
    assert [line.split(":")[0] for line in told.err.splitlines()] == ["agent.yaml, line 3", "agent.yaml, line 4"]
    assert main([str(place), "--json"]) == EXIT_INVALID
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is False and answer["warnings"] == []
    assert [problem["field"] for problem in answer["problems"]] == ["memory", "memry"]


@pytest.mark.parametrize("name", ["conversation", "durable-conversation", "streaming", "preloaded"])
def test_the_examples_are_valid_when_run_as_a_program(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "orpheusd.deploy.validate", str(ROOT / "examples" / name)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (EXIT_VALID, "")
