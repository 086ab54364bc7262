"""The filter of system calls, loaded into a process that has every other right its user has, and no sandbox."""

import ctypes.util
import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orpheusd.process import sandbox, syscalls

#: Takes the filter and a table of calls on stdin, loads the one, makes the others, and prints errno by name.
#: The arguments are nonsense (-1), so that a call which is let through fails as well, but with another error.
CALLER = """
import ctypes, json, sys
facts = json.load(sys.stdin)
code = bytes.fromhex(facts["filter"])
libc = ctypes.CDLL(None, use_errno=True)

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]

program = Program(len(code) // 8, code)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
told = {}
for name, (number, *args) in facts["calls"].items():
    ctypes.set_errno(0)
    result = libc.syscall(*map(ctypes.c_long, (number, *args)))
    told[name] = ctypes.get_errno() if result == -1 else 0
print(json.dumps(told))
"""

#: What ordinary programs do all the time.
EVERYDAY = """
import asyncio, concurrent.futures, multiprocessing, os, socket, subprocess, sys, tempfile, threading, time

def square(number):
    return number * number

async def both():
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=subprocess.PIPE)
    said, _ = await process.communicate()
    return int(said) + await asyncio.to_thread(square, 3)

def main():
    assert asyncio.run(both()) == 16
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        assert list(pool.map(square, range(3))) == [0, 1, 4]
    for method in ("fork", "forkserver", "spawn"):
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.map(square, [5]) == [25]
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    assert subprocess.run("echo hi | cat", shell=True, capture_output=True).stdout == b"hi\\n"
    socket.getaddrinfo("localhost", 80)
    a, b = socket.socketpair()
    with tempfile.TemporaryFile() as file:
        socket.send_fds(a, [b"x"], [file.fileno()])
        os.close(socket.recv_fds(b, 1, 1)[1][0])
    os.sched_getaffinity(0), os.getloadavg(), os.getrandom(8), os.memfd_create("m"), time.clock_gettime(0)
    os.posix_spawn("/bin/true", ["true"], {}), os.wait()
    print("well")

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def seccomp() -> Any:
    return pytest.importorskip("pyseccomp", reason="needs libseccomp", exc_type=(ImportError, RuntimeError))


def told(seccomp: Any, calls: dict[str, tuple[str, int, int, int]]) -> dict[str, str]:
    """By name: the error that a call with these arguments ends with under the filter, "" for none."""
    numbered = {name: (seccomp.resolve_syscall(seccomp.Arch.NATIVE, call), *args)
                for name, (call, *args) in calls.items()}
    # a number below zero is a call that this architecture does not have
    facts = {"filter": syscalls.compiled().hex(), "calls": {n: c for n, c in numbered.items() if c[0] >= 0}}
    done = subprocess.run([sys.executable, "-I", "-c", CALLER], input=json.dumps(facts).encode(), capture_output=True,
                          timeout=30, check=False, start_new_session=True)
    assert done.returncode == 0, done.stderr.decode()
    return {name: errno.errorcode.get(number, "") for name, number in json.loads(done.stdout).items()}


def test_what_is_denied_is_denied_to_root_too(seccomp: Any) -> None:
    found = told(seccomp, {name: (name, -1, -1, -1) for name in syscalls.DENIED})
    assert len(found) > 40
    assert {name: error for name, error in found.items() if error != "EPERM"} == {}


def test_no_flag_of_clone_makes_a_namespace(seccomp: Any) -> None:
    flags = {name: ("clone", flag | 0x11, 0, 0) for name, flag in syscalls.NAMESPACE_FLAGS.items()}
    assert set(told(seccomp, flags).values()) == {"EPERM"}
    assert told(seccomp, {"clone3": ("clone3", 0, 0, 0)}) == {"clone3": "ENOSYS"}


def test_calls_that_are_denied_for_what_they_ask(seccomp: Any) -> None:
    found = told(seccomp, {
        **{name: ("ioctl", -1, request, 0) for name, request in syscalls.DENIED_IOCTLS.items()},
        "TIOCSTI with more bits": ("ioctl", -1, 0x5412 | 1 << 32, 0),
        "another ioctl": ("ioctl", -1, 0x5401, 0),
        "no address randomisation": ("personality", 0x0040000, 0, 0),
        "the usual personality": ("personality", 0, 0, 0),
    })
    assert found == {**dict.fromkeys((*syscalls.DENIED_IOCTLS, "TIOCSTI with more bits"), "EPERM"),
                     "another ioctl": "EBADF", "no address randomisation": "EPERM", "the usual personality": ""}


def test_only_the_families_of_sockets_that_programs_need(seccomp: Any) -> None:
    found = told(seccomp, {str(family): ("socket", family, 2, 0) for family in [*range(50), 40 | 1 << 32, 1 << 31]})
    assert {int(family) for family, error in found.items() if error == ""} == set(map(int, syscalls.FAMILIES))
    assert {error for error in found.values() if error} == {"EAFNOSUPPORT"}


def test_ordinary_programs_notice_nothing(tmp_path: Path) -> None:
    if (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    if not isolation.seccomp:
        pytest.skip(isolation.weaknesses[0])
    for name in ("code", "ws", "link"):
        (tmp_path / name).mkdir()
    (tmp_path / "code/everyday.py").write_text(EVERYDAY)
    spec = sandbox.TemplateSpec(
        "t-everyday", "my-agent", tmp_path / "code", tmp_path / "ws", None, tmp_path / "link", network=True)
    command = sandbox.template_argv(
        isolation, sandbox.find_interpreter(), spec, sandbox.find_runtime_lib(),
        "import runpy; runpy.run_path('/agent/everyday.py', run_name='__main__')")
    with command.opened() as (argv, fds):
        done = subprocess.run(argv, pass_fds=fds, env={}, cwd="/", capture_output=True, timeout=60, check=False,
                              stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"well\n", b"")


def test_no_libseccomp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pyseccomp", raising=False)
    find = ctypes.util.find_library
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None if name == "seccomp" else find(name))
    with pytest.raises(syscalls.NoFilter, match="libseccomp is not installed"):
        syscalls.compiled()
    found = sandbox.detect("auto")
    if found.mode != "bwrap":
        pytest.skip(found.reason)
    assert found.seccomp == b""
    assert any("apt install libseccomp2" in weakness for weakness in found.weaknesses)


def test_a_name_that_libseccomp_does_not_know_is_no_silent_hole(monkeypatch: pytest.MonkeyPatch, seccomp: Any) -> None:
    monkeypatch.setattr(syscalls, "DENIED", (*syscalls.DENIED, "a_call_of_tomorrow"))
    with pytest.raises(syscalls.NoFilter, match="cannot make the filter"):
        syscalls.compiled()
