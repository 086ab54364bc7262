"""A build in its sandbox: a shell in the place of pip."""

import subprocess
from pathlib import Path

import pytest

from orpheusd.process import sandbox


def test_a_build_writes_where_it_may_and_dies_with_its_launcher(tmp_path: Path) -> None:
    isolation = sandbox.detect("auto")
    if isolation.mode != "bwrap":
        pytest.skip(isolation.reason)
    for name in ("venv", "wheels"):
        (tmp_path / name).mkdir()
    (tmp_path / "requirements.txt").write_text("one\n")
    (tmp_path / "wheels/a.whl").touch()
    interpreter = sandbox.find_interpreter()
    script = (
        "cat /build/requirements.txt; touch /venv/made /tmp/made; touch /usr/no /build/no; ls $W;"
        " echo $A $HOME; echo over; sleep 60 & wait")
    command = sandbox.build_argv(
        isolation, interpreter, tmp_path / "venv", tmp_path / "requirements.txt",
        [tmp_path / "wheels"], {"A": "b", "W": str(tmp_path / "wheels")}, ["/bin/sh", "-c", script])

    with command.opened() as (argv, fds):
        process = subprocess.Popen(
            argv, pass_fds=fds, env=command.env, cwd=command.cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout as stdout, process.stderr as stderr:
        assert [stdout.readline() for _ in range(4)] == [b"one\n", b"a.whl\n", b"b /tmp\n", b"over\n"]
        process.kill()
        process.wait()
        assert stdout.read() == b"", "everything that held the pipe is gone"
        assert stderr.read().count(b"Read-only file system") == 2
    assert (tmp_path / "venv/made").exists()
