"""The daemon dies while a template is born: what bubblewrap has started by then leaves by itself."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from orpheusd.process import sandbox
from orpheusd.process.sandbox import TemplateSpec, make_lib_dir, template_argv
from tests import leaks

ROOT = Path(__file__).resolve().parents[2]

#: Starts a template and is killed before bubblewrap has said who its child is: nobody will ever read that.
DIES_AT_ONCE = """
import asyncio, os, pickle, sys
from orpheusd.process import launch

async def die(info_fd):
    os.kill(os.getpid(), 9)

launch._child_pid = die
asyncio.run(launch.launch_template(pickle.load(sys.stdin.buffer), b"", print))
"""


def test_a_template_whose_daemon_dies_while_it_is_born_is_not_left_waiting(tmp_path: Path) -> None:
    # fault 34: bubblewrap's child waits for bubblewrap, which must not die of having nobody to tell
    isolation = sandbox.detect("auto")
    if isolation.mode != "bwrap":
        pytest.skip(isolation.reason)
    for name in ("code", "ws", "link"):
        (tmp_path / name).mkdir()
    spec = TemplateSpec(f"t-{os.getpid()}-born", "my-agent", tmp_path / "code", tmp_path / "ws", None,
                        tmp_path / "link", network=False)
    command = template_argv(isolation, sandbox.find_interpreter(), spec, make_lib_dir(tmp_path / "lib"),
                            "raise SystemExit")
    before = leaks.census()
    for _ in range(5):
        died = subprocess.run([sys.executable, "-c", DIES_AT_ONCE], input=pickle.dumps(command), cwd=ROOT,
                              stderr=subprocess.PIPE, timeout=20, check=False)
        assert died.returncode == -9, died.stderr
        assert leaks.left_since(before) == []
