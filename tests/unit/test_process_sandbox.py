"""The command lines: what they say, and what they keep to themselves. Nothing is started here but `detect`'s probe."""

import os
import sys
from pathlib import Path

import pytest

import orpheusd
from orpheusd.errors import OrpheusError
from orpheusd.process import sandbox
from orpheusd.process.sandbox import (
    ARGS_FD,
    SECCOMP_FD,
    Command,
    Interpreter,
    Isolation,
    TemplateSpec,
    build_argv,
    build_paths,
    detect,
    door_argv,
    find_interpreter,
    find_runtime_lib,
    make_lib_dir,
    template_argv,
)

BWRAP = Isolation("bwrap", "for the test", "/usr/bin/bwrap")
NONE = Isolation("none", "for the test", None)
PYTHON = Interpreter(Path("/opt/python/bin/python3.12"), (Path("/opt/python"),))


def spec(venv_dir: Path | None = None, network: bool = True) -> TemplateSpec:
    return TemplateSpec(
        "t-1-1", "my-agent", Path("/state/code"), Path("/state/ws"), venv_dir, Path("/state/link"), network)


def words(command: Command) -> list[str]:
    return command.args_data.decode().split("\0")


def binds(command: Command) -> dict[str, tuple[str, str]]:
    """Destination -> (option, source)."""
    args = words(command)
    return {args[at + 2]: (word, args[at + 1]) for at, word in enumerate(args) if word in ("--bind", "--ro-bind")}


def test_a_sandboxed_command_line_names_nothing_of_the_host() -> None:
    command = template_argv(BWRAP, PYTHON, spec(Path("/state/venv")), find_runtime_lib())
    assert command.argv[:4] == ["/usr/bin/bwrap", "--args", ARGS_FD, "--"]
    assert not any("/state" in word or "my-agent" in word or "t-1-1" in word for word in command.argv)
    assert command.env == {"ORPHEUS_SANDBOX": "t-1-1"}, "what the bubblewrap is found by"


def test_what_is_bound_where() -> None:
    found = binds(template_argv(BWRAP, PYTHON, spec(Path("/state/venv")), find_runtime_lib()))
    assert found["/agent"] == ("--ro-bind", "/state/code")
    assert found["/workspace"] == ("--bind", "/state/ws")
    assert found["/venv"] == ("--ro-bind", "/state/venv")
    assert found["/run/orpheus/link"] == ("--ro-bind", "/state/link")
    assert found["/opt/python"] == ("--ro-bind", "/opt/python")
    assert [place for place, (option, _) in found.items() if option == "--bind"] == ["/workspace"]
    assert "/venv" not in binds(template_argv(BWRAP, PYTHON, spec(), find_runtime_lib()))


def test_only_the_workers_share_of_the_runtime_is_inside() -> None:
    found = binds(template_argv(BWRAP, PYTHON, spec(), find_runtime_lib()))
    parts = {place.removeprefix("/run/orpheus/lib/") for place in found if place.startswith("/run/orpheus/lib/")}
    assert parts == {"orpheusd/__init__.py", "orpheusd/wire", "orpheusd/worker", "workspace"}


def test_namespaces_and_what_is_never_asked() -> None:
    open_args = words(template_argv(BWRAP, PYTHON, spec(), find_runtime_lib()))
    closed_args = words(template_argv(BWRAP, PYTHON, spec(network=False), find_runtime_lib()))
    assert "--unshare-net" in closed_args
    assert "--unshare-net" not in open_args
    assert {f"--unshare-{kind}" for kind in ("user", "pid", "ipc", "uts", "cgroup-try")} <= set(open_args)
    assert {"--new-session", "--as-pid-1", "--clearenv"} <= set(open_args)
    assert "--die-with-parent" not in open_args
    assert "/etc/resolv.conf" not in binds(template_argv(BWRAP, PYTHON, spec(network=False), find_runtime_lib()))


def test_the_venv_decides_which_python_runs() -> None:
    lib = find_runtime_lib()
    assert template_argv(BWRAP, PYTHON, spec(), lib).argv[4] == "/opt/python/bin/python3.12"
    assert template_argv(BWRAP, PYTHON, spec(Path("/state/venv")), lib).argv[4] == "/venv/bin/python"


def test_without_a_sandbox_everything_has_its_own_path(tmp_path: Path) -> None:
    command = template_argv(NONE, PYTHON, spec(Path("/state/venv")), make_lib_dir(tmp_path / "lib"))
    assert command.argv[:3] == ["/state/venv/bin/python", "-I", "-c"]
    assert str(tmp_path / "lib") in command.argv[3]
    assert (command.socket, command.code_dir, command.workspace_dir, command.cwd) == (
        "/state/link/worker.sock", "/state/code", "/state/ws", "/state/code")
    assert command.env == {
        "PATH": "/state/venv/bin:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "ORPHEUS_SANDBOX": "t-1-1"}
    assert not command.sandboxed
    with pytest.raises(ValueError, match="lib directory"):
        template_argv(NONE, PYTHON, spec(), find_runtime_lib())


def test_the_lib_dir_is_made_anew_each_time(tmp_path: Path) -> None:
    (tmp_path / "lib/orpheusd").mkdir(parents=True)
    (tmp_path / "lib/orpheusd/stale.py").touch()
    for _ in range(2):
        lib = make_lib_dir(tmp_path / "lib")
    assert lib.directory == tmp_path / "lib"
    assert sorted(path.name for path in (tmp_path / "lib").iterdir()) == ["orpheusd", "workspace"]
    assert sorted(path.name for path in (tmp_path / "lib/orpheusd").iterdir()) == ["__init__.py", "wire", "worker"]
    assert (tmp_path / "lib/orpheusd/wire/worker.py").is_file()


def test_an_opened_command_holds_its_descriptors_only_meanwhile() -> None:
    command = template_argv(BWRAP, PYTHON, spec(), find_runtime_lib())
    with command.opened("--info-fd", "9") as (argv, fds):
        assert argv[:3] == ["/usr/bin/bwrap", "--info-fd", "9"]
        told = Path(f"/proc/self/fd/{argv[4]}").read_bytes().split(b"\0")
        assert int(argv[4]) in fds
        assert not any(os.get_inheritable(fd) for fd in fds)
        for name, content in command.data.items():
            place = b"/etc/" + name[4:-1].encode()
            fd = int(told[told.index(place) - 1])
            assert fd in fds
            assert Path(f"/proc/self/fd/{fd}").read_bytes() == content
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_nul_cannot_smuggle_an_option_in() -> None:
    bad = TemplateSpec("t", "a\0--bind\0/\0/host", Path("/c"), Path("/w"), None, Path("/l"), True)
    with pytest.raises(ValueError, match="NUL"):
        template_argv(BWRAP, PYTHON, bad, find_runtime_lib())


def test_the_base_interpreter_is_found_and_not_the_daemons_environment() -> None:
    found = find_interpreter()
    assert found.executable == Path(sys.executable).resolve()
    assert not any(path == Path(sys.prefix) for path in found.binds) or sys.prefix == sys.base_prefix
    assert not any(path.is_relative_to("/usr") for path in found.binds)


def test_an_interpreter_elsewhere_brings_its_own_prefix_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/root/.pyenv/versions/x/bin/python3")
    monkeypatch.setattr(sys, "base_prefix", "/root/.pyenv/versions/x")
    monkeypatch.setattr(sys, "base_exec_prefix", "/root/.pyenv/versions/x")
    assert find_interpreter().binds == (Path("/root/.pyenv/versions/x"),)


def test_a_build_sees_its_own_things_only() -> None:
    paths = build_paths(BWRAP, Path("/state/venv"), Path("/state/req.txt"))
    command = build_argv(
        BWRAP, PYTHON, Path("/state/venv"), Path("/state/req.txt"), [Path("/srv/wheels")],
        {"PIP_NO_INPUT": "1"}, [f"{paths.venv_dir}/bin/python", "-m", "pip", "install", "-r", paths.requirements])
    found = binds(command)
    assert found["/venv"] == ("--bind", "/state/venv")
    assert [place for place, (option, _) in found.items() if option == "--bind"] == ["/venv"]
    assert found["/build/requirements.txt"] == ("--ro-bind", "/state/req.txt")
    assert found["/srv/wheels"] == ("--ro-bind", "/srv/wheels")
    assert "--die-with-parent" in words(command)
    assert "--unshare-net" not in words(command)
    assert command.argv[4:8] == ["/opt/python/bin/python3.12", "-I", "-S", "-c"]
    assert command.argv[9:] == ["/venv/bin/python", "-m", "pip", "install", "-r", "/build/requirements.txt"]


def test_the_filter_of_system_calls_is_in_every_sandbox() -> None:
    filtered = BWRAP._replace(seccomp=b"filter")
    build = build_argv(filtered, PYTHON, Path("/v"), Path("/r"), [], {}, ["true"])
    for command in (template_argv(filtered, PYTHON, spec(), find_runtime_lib()), build):
        told = words(command)
        assert told[told.index("--seccomp") + 1] == SECCOMP_FD
        assert command.data[SECCOMP_FD] == b"filter"
    without = template_argv(BWRAP, PYTHON, spec(), find_runtime_lib())
    assert "--seccomp" not in words(without)
    assert SECCOMP_FD not in without.data


def test_a_door_is_bound_its_code_and_nothing_else() -> None:
    program = [sys.executable, "-m", "orpheusd.doors.http"]
    command = door_argv(BWRAP, program, "ORPHEUS_DOOR_OF=/run/orpheus")
    assert command.argv[-len(program):] == program
    code = Path(str(orpheusd.__file__)).resolve().parent
    places = {Path(place) for place in binds(command)}
    assert code in places
    assert not {path for path in places if code.is_relative_to(path) and path != code}, "what is beside the package"
    assert {option for option, _ in binds(command).values()} == {"--ro-bind"}
    told = words(command)
    assert {"--unshare-user", "--unshare-pid", "--unshare-ipc", "--clearenv", "--as-pid-1"} <= set(told)
    assert not {"--unshare-net", "--new-session"} & set(told), "it serves the network, and is killed as a group"
    assert told[told.index("ORPHEUS_DOOR_OF") + 1] == "/run/orpheus"
    assert door_argv(NONE, program, "ORPHEUS_DOOR_OF=/run/orpheus").argv == program


def test_what_a_kernel_cannot_close_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.landlock, "has_scopes", lambda: False)
    found = detect("auto")
    if found.mode != "bwrap":
        pytest.skip(found.reason)
    assert any("abstract Unix sockets" in weakness for weakness in found.weaknesses)
    assert detect("none").weaknesses == (sandbox.NO_WALLS,)


def test_detect_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert detect("none").mode == "none"
    monkeypatch.setattr(sandbox, "SEARCH_PATH", str(tmp_path))
    missing = detect("auto")
    assert (missing.mode, missing.bwrap_path) == ("none", None)
    assert "not installed" in missing.reason
    assert "apt install bubblewrap" in missing.reason
    with pytest.raises(OrpheusError, match="isolation is set to bwrap, but bubblewrap is not installed") as caught:
        detect("bwrap")
    assert caught.value.code == "invalid-request"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create"),
        ("#!/bin/sh\nexit 3", "exit status 3"),
        ("#!/bin/sh\nexec sleep 30", "did not answer within 0.2 s"),
        ("not a program", "cannot be started"),
    ],
)
def test_detect_tells_what_a_broken_bubblewrap_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, expected: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(script)
    fake.chmod(0o755)
    monkeypatch.setattr(sandbox, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(sandbox, "PROBE_TIMEOUT_S", 0.2)
    found = detect("auto")
    assert found.mode == "none"
    assert expected in found.reason
    assert "user namespaces" in found.reason
    with pytest.raises(OrpheusError, match=expected):
        detect("bwrap")
