"""The architecture, held by tests: the never-rules on every file, the layout, and one path from operation to function.

Each rule is shown to be able to fail.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from orpheusd.operations import OPERATIONS
from tests.architecture import RULES, Source

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("orpheusd", "orpheusctl", "workspace", "bench", "examples", "tests")
TOP_LEVEL = {
    "orpheusd", "orpheusctl", "workspace", "tests", "systemd", "examples", "bench", "docs", "README.md",
    "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "setup.cfg", "pyproject.toml",
    ".ci", ".gitignore",
}
#: `systemd` is a folder for later; what a build or a tool leaves is nobody's layout.
NOT_YET = {"systemd"}
LEFT_BY_TOOLS = {"build", "dist", "__pycache__"}
ORPHEUSD_FOLDERS = {"core", "wire", "process", "deploy", "runlog", "doors", "worker"}

LONG = "\n".join(f"x{number} = {number}" for number in range(401))
LONG_FUNCTION = "def f():\n" + "\n".join(f"    x{number} = {number}" for number in range(60))
TIDY = '"""Doc."""\n'

#: For each rule, files that break it.
BROKEN = [
    ("pure", "orpheusd/core/agent.py", "import time"),
    ("pure", "orpheusd/core/agent.py", "from os import path"),
    ("pure", "orpheusd/wire/frames.py", "import asyncio.events as e"),
    ("pure", "orpheusd/core/agent.py", "from orpheusd.engine import Engine"),
    ("pure", "orpheusd/core/agent.py", "def f():\n    import logging"),
    ("pure", "orpheusd/core/agent.py", "async def f(): ..."),
    ("pure", "orpheusd/core/agent.py", "def f(): return open('x')"),
    ("pure", "orpheusd/core/agent.py", "x: int = 'a'  # type: ignore"),
    ("wire_alone", "orpheusd/wire/worker.py", "from orpheusd.errors import OrpheusError"),
    ("core_alone", "orpheusd/core/run.py", "from orpheusd.wire import worker"),
    ("core_alone", "orpheusd/wire/worker.py", "import orpheusd.core.run"),
    ("pids", "orpheusd/engine.py", "import psutil"),
    ("pids", "orpheusd/engine.py", "import os\nos.kill(1, 9)"),
    ("pids", "orpheusd/worker/main.py", "from os import waitpid as w\nw(1, 0)"),
    ("pids", "orpheusctl/client.py", "import signal as s\ns.pidfd_send_signal(1, 9)"),
    ("pids", "orpheusd/worker/template.py", "import psutil"),
    ("forks", "orpheusd/process/launch.py", "import os\nos.fork()"),
    ("forks", "orpheusd/engine.py", "from multiprocessing import Process"),
    ("forks", "orpheusd/worker/template.py", "import threading"),
    ("http_library", "orpheusd/doors/control.py", "from starlette.requests import Request"),
    ("http_library", "orpheusd/daemon.py", "import hypercorn"),
    ("rich_library", "orpheusctl/client.py", "import rich.table"),
    ("rich_library", "orpheusd/daemon.py", "from rich import print"),
    ("inside", "workspace/__init__.py", "import orjson"),
    ("inside", "workspace/__init__.py", "from orpheusd.wire import frames"),
    ("inside", "orpheusd/worker/main.py", "import orpheusd.errors"),
    ("inside", "orpheusd/worker/main.py", "from orpheusd.wire import control"),
    ("on_310", "orpheusd/worker/main.py", "from enum import StrEnum"),
    ("on_310", "workspace/__init__.py", "import asyncio\nasyncio.timeout(1)"),
    ("on_310", "orpheusd/wire/frames.py", "try:\n    pass\nexcept* ValueError:\n    pass"),
    ("client", "orpheusctl/client.py", "from orpheusd.config import load"),
    ("client", "orpheusctl/client.py", "from orpheusd import config"),
    ("client", "orpheusctl/client.py", "import orpheusd"),
    ("environment", "orpheusd/daemon.py", "import os\nx = os.environ['A']"),
    ("environment", "orpheusd/daemon.py", "from os import getenv"),
    ("one_decider", "orpheusd/daemon.py", "class D:\n    def f(self): self._supervisor.handle(1, 2)"),
    ("one_decider", "orpheusd/service.py", "decide = supervisor.handle"),
    ("locks", "orpheusd/engine.py", "import asyncio\nx = asyncio.Lock()"),
    ("locks", "orpheusd/runlog/queries.py", "from threading import RLock"),
    ("absolute_imports", "bench/http.py", "from . import control"),
    ("absolute_imports", "orpheusd/core/run.py", "from ..wire import frames"),
    ("telling_names", "orpheusd/utils.py", ""),
    ("telling_names", "tests/helpers/sockets.py", ""),
    ("short_files", "tests/unit/test_run.py", LONG),
    ("short_functions", "bench/control.py", LONG_FUNCTION),
    ("docstrings", "orpheusd/engine.py", "x = 1"),
    ("docstrings", "orpheusctl/client.py", TIDY + "class A:\n    def f(self): ..."),
    ("no_sleeping", "tests/unit/test_run.py", "import time\ntime.sleep(1)"),
    ("no_sleeping", "orpheusd/engine.py", "from time import sleep"),
]

#: Files that look like a violation and are none.
SOUND = [
    ("pure", "orpheusd/core/agent.py", "from collections.abc import Mapping\nfrom orpheusd.core.run import Run"),
    ("pure", "orpheusd/engine.py", "import time"),
    ("pure", "orpheusd/core/timers.py", "class T:\n    def open(self): self.opened = True"),
    ("pids", "orpheusd/process/pidfds.py", "import os\nos.pidfd_open(1)"),
    ("pids", "orpheusd/worker/template.py", "import os\nos.waitpid(-1, 0)"),
    ("pids", "orpheusd/engine.py", "import os\nos.getpid()"),
    ("forks", "orpheusd/worker/template.py", "import os\nos.fork()"),
    ("http_library", "orpheusd/doors/http/app.py", "from starlette.routing import Route"),
    ("inside", "orpheusd/worker/main.py", "import json, workspace\nfrom orpheusd.wire.worker import WorkerLink"),
    ("client", "orpheusctl/client.py", "from orpheusd import errors\nfrom orpheusd.wire import control"),
    ("environment", "orpheusd/worker/main.py", "import os\nos.environ.clear()"),
    ("one_decider", "orpheusd/engine.py", "supervisor.handle(1, 2)"),
    ("one_decider", "orpheusd/service.py", "request.handle(1, 2)"),
    ("locks", "orpheusd/runlog/writer.py", "import threading\nthreading.Condition()"),
    ("locks", "orpheusd/engine.py", "import asyncio\nasyncio.Event()"),
    ("docstrings", "orpheusd/core/events.py", TIDY + "class RunRequested:\n    run_id: str"),
    ("short_files", "tests/unit/test_run.py", LONG.split("\n", 1)[1]),
    ("short_functions", "bench/control.py", LONG_FUNCTION.rsplit("\n", 1)[0]),
]


def files() -> Iterator[Path]:
    """Every Python file of ours. The agents of the tests are not: they do what agents do, on purpose."""
    for folder in FOLDERS:
        yield from sorted(path for path in (ROOT / folder).rglob("*.py")
                          if ".venv" not in path.parts and not path.is_relative_to(ROOT / "tests" / "handlers"))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text()) for path in files()]


@pytest.mark.parametrize("rule", RULES)
def test_every_file_keeps_the_rule(rule: str, sources: list[Source]) -> None:
    found = [f"{source.path}:{violation}" for source in sources for violation in RULES[rule](source)]
    assert not found, f"{RULES[rule].__doc__}\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN)
def test_the_rule_can_fail(rule: str, path: str, text: str) -> None:
    assert list(RULES[rule](Source(path, text)))


@pytest.mark.parametrize(("rule", "path", "text"), SOUND)
def test_the_rule_can_hold(rule: str, path: str, text: str) -> None:
    assert list(RULES[rule](Source(path, text))) == []


def test_each_rule_is_shown_to_be_able_to_fail() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_the_rules_see_the_files(sources: list[Source]) -> None:
    seen = {source.path for source in sources}
    assert {"orpheusd/operations.py", "orpheusd/wire/worker.py", "tests/eventually.py"} <= seen


def test_the_top_level_is_the_documented_one() -> None:
    entries = {path.name for path in ROOT.iterdir()}
    unknown = {name for name in entries - TOP_LEVEL - LEFT_BY_TOOLS
               if not name.startswith(".") and not name.endswith(".egg-info")}
    assert not unknown
    assert not TOP_LEVEL - NOT_YET - entries


def test_the_daemon_has_the_documented_folders() -> None:
    folders = {path.name for path in (ROOT / "orpheusd").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == ORPHEUSD_FOLDERS


def test_every_operation_is_a_method_of_the_service() -> None:
    """One word, one path: operation `session.end` is `Service.session_end`."""
    methods = service_methods((ROOT / "orpheusd" / "service.py").read_text())
    missing = {operation.name for operation in OPERATIONS if operation.name.replace(".", "_") not in methods}
    assert not missing


def test_a_missing_method_of_the_service_would_be_seen() -> None:
    assert service_methods("class Service:\n    async def run(self): ...\ndef health(): ...") == {"run"}


def service_methods(text: str) -> set[str]:
    """The methods of the class Service in `text`."""
    service = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == "Service")
    return {node.name for node in service.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
