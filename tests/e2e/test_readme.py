"""Every command that a document shows is run, in order, against a real daemon, and does what the document says.

A code block that begins with `# FOLDER/FILE` is that file. A remark beside a command that names a turn (`# turn 3`)
is held to be true. Documents other than READMEs speak of agents that are already there: two of the examples.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.console import run, steps
from tests.daemon import ROOT, Daemon

DOCUMENTS = [path.relative_to(ROOT).as_posix() for path in
             (ROOT / "README.md", *sorted(ROOT.glob("examples/*/README.md")), *sorted(ROOT.glob("docs/*.md")))
             if list(steps(path.read_text()))]
FILE = re.compile(r"^```\w+\n# (?P<name>[\w./-]+/[\w.-]+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TURN = re.compile(r'\bturn"?:?\s+(\d+)')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: the examples are there, and the files that the document tells to write."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def test_the_readme_is_among_them() -> None:
    assert {"README.md", "examples/conversation/README.md", "docs/sessions.md"} <= set(DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_do_what_the_document_says(
        document: str, folder: Path, new_daemon: Callable[..., Daemon]) -> None:
    daemon = new_daemon()
    text = (ROOT / document).read_text()
    if not document.endswith("README.md"):
        for example in ("conversation", "streaming"):
            daemon.deploy(ROOT / "examples" / example)
    for name, content in files(text):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    assert daemon.http is not None
    environment = {**daemon.ctl_env, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for step in steps(text):
        if step.command.startswith("make "):
            check_target(step.command.split()[1])
            continue
        command = step.command.replace("http://localhost:7777", daemon.http)
        command = command.replace("/run/orpheus/ctl.sock", str(daemon.control_socket))
        printed = run(step._replace(command=command), environment, folder)
        for turn in TURN.findall(step.command.partition("  #")[2]):
            assert re.search(rf'"turn":\s*{turn}\b', printed), f"$ {step.command}\n{printed}"


def test_make_demo_shows_three_turns_of_one_process() -> None:
    done = subprocess.run(["make", "-s", "demo"], cwd=ROOT, env={**os.environ, "VENV": sys.prefix}, text=True,
                          capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Turns 1, 2 and 3 came from one process: worker \S+, pid \d+\.", done.stdout)


def files(document: str) -> Iterator[tuple[str, str]]:
    """The name and content of each file that the document shows."""
    for block in FILE.finditer(document):
        yield block["name"], block["text"]


def check_target(target: str) -> None:
    """The other tests are what `make test` runs; that the target is there is what is left to see."""
    subprocess.run(["make", "-n", target], cwd=ROOT, env={**os.environ, "VENV": sys.prefix}, check=True,
                   capture_output=True, timeout=20)
