"""Templates started, heard and ended for good: real bubblewrap and none, on both event loops.

The stand-in for a template is a few lines of Python handed to `template_argv`.
"""

import asyncio
import ctypes
import json
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
import uvloop

from orpheusd.process import launch, sandbox, survivors
from orpheusd.process.launch import TemplateProcess, launch_template
from orpheusd.process.pidfds import peer_of
from orpheusd.process.sandbox import Command, Isolation, RuntimeLib, TemplateSpec

T = TypeVar("T")
LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}
#: libuv makes a pipe for its signals with the first loop and keeps it: before any test counts descriptors.
uvloop.new_event_loop().close()

SUBREAPER = "import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
SAY = "import json, os, sys, time\ndef say(*what): print(json.dumps(what), flush=True)\n"
STAY = "time.sleep(60)\n"
#: Four that hide: setsid + double fork with the environment and without, exec'd and not.
HIDE = """
def hide(env, execs):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            if not execs: time.sleep(60)
            os.execve("/bin/sh", ["sh", "-c", "exec sleep 60"], env)
        os._exit(0)
    os.wait()
for env in (os.environ, {}):
    for execs in (True, False): hide(env, execs)
"""


class House(NamedTuple):
    """What a template needs of the host, made in a temporary directory."""

    isolation: Isolation
    lib: RuntimeLib
    spec: TemplateSpec
    run: Callable[[Awaitable[T]], T]

    def command(self, code: str) -> Command:
        return sandbox.template_argv(self.isolation, sandbox.find_interpreter(), self.spec, self.lib, code)


@pytest.fixture(params=["bwrap", "none"])
def mode(request: pytest.FixtureRequest) -> str:
    if request.param == "bwrap" and (isolation := sandbox.detect("auto")).mode != "bwrap":
        pytest.skip(isolation.reason)
    return str(request.param)


@pytest.fixture(params=LOOPS)
def house(request: pytest.FixtureRequest, mode: str, tmp_path: Path) -> House:
    for name in ("code", "ws", "link"):
        (tmp_path / name).mkdir()
    spec = TemplateSpec(
        f"t-{os.getpid()}-{tmp_path.name}", "my-agent", tmp_path / "code", tmp_path / "ws", None, tmp_path / "link",
        network=False)

    def run(coroutine: Awaitable[T]) -> T:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(asyncio.wait_for(coroutine, 20))

    return House(sandbox.detect(mode), sandbox.make_lib_dir(tmp_path / "lib"), spec, run)


class Heard:
    """The lines of a template, and a way to wait for one."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str] = asyncio.Queue()

    def __call__(self, line: str) -> None:
        self.lines.put_nowait(line)

    async def next(self) -> str:
        return await asyncio.wait_for(self.lines.get(), 10)

    def rest(self) -> list[str]:
        return [self.lines.get_nowait() for _ in range(self.lines.qsize())]


def running(tag: str, namespace: str) -> list[str]:
    """The living processes that carry the tag, or are in that pid namespace when it is not our own."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
                continue
            inside = str((entry / "ns/pid").readlink()) == namespace != str(Path("/proc/self/ns/pid").readlink())
            if inside or tag.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(f"{entry.name} {(entry / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found


def where(template: TemplateProcess) -> str:
    return str(Path(f"/proc/{template.inner_pid or template.pid}/ns/pid").readlink())


def test_the_launch_line_is_all_of_the_input(house: House) -> None:
    async def scenario() -> None:
        heard = Heard()
        nothing = await launch_template(house.command(SAY + "say(sys.stdin.read())"), b"", heard)
        assert await nothing.wait() == 0
        assert json.loads(await heard.next()) == [""]
        code = SAY + "say(sys.stdin.readline(), sys.stdin.read(), os.getcwd(), os.environ['ORPHEUS_SANDBOX'])"
        command = house.command(code)
        template = await launch_template(command, b'{"nonce":"n"}', heard)
        assert await template.wait() == 0
        assert await template.wait() == 0
        assert json.loads(await heard.next()) == ['{"nonce":"n"}\n', "", command.code_dir, house.spec.template_id]
        assert heard.rest() == []
        template.kill()

    house.run(scenario())


def test_it_dials_home_and_is_known_by_its_pid(house: House) -> None:
    """Also after the socket was made anew: the directory is bound, not the socket."""
    dial = (
        SAY + "import socket\n"
        "for line in range(2):\n"
        "    with socket.socket(socket.AF_UNIX) as s: s.connect({socket!r}); s.recv(1)\n")

    async def scenario() -> None:
        path = house.spec.link_dir / "worker.sock"
        listener = _listening(path)
        command = house.command("")
        template = await launch_template(house.command(dial.replace("{socket!r}", repr(command.socket))), b"", print)
        for last in (False, True):
            accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
            assert peer_of(accepted) == (template.inner_pid or template.pid, os.getuid(), os.getgid())
            listener.close()
            path.unlink()
            listener = listener if last else _listening(path)
            accepted.close()
        assert await template.wait() == 0

    house.run(scenario())


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    listener.setblocking(False)
    return listener


def test_only_its_three_descriptors_are_open(house: House) -> None:
    """Nothing the daemon left inheritable gets through, whatever the loop (uvloop's own launcher lets it)."""

    async def scenario() -> None:
        stray = os.open("/etc/passwd", os.O_RDONLY)
        os.set_inheritable(stray, True)
        heard = Heard()
        template = await launch_template(house.command(SAY + "say(os.listdir('/proc/self/fd'))"), b"", heard)
        assert await template.wait() == 0
        os.close(stray)
        assert json.loads(await heard.next()) == [["0", "1", "2", "3"]]  # the 3rd is the listing itself

    house.run(scenario())


def test_a_template_that_hangs_before_its_hello_is_killed_at_once(house: House) -> None:
    async def scenario() -> None:
        template = await launch_template(house.command("import time\n" + STAY), b"", print)
        namespace = where(template)
        template.kill()
        template.kill()
        assert await template.wait() == -9
        assert running(f"ORPHEUS_SANDBOX={house.spec.template_id}", namespace) == []

    house.run(scenario())


@pytest.mark.parametrize("how", ["kill", "outer-killed", "leaves-by-itself"])
def test_nothing_of_a_template_outlives_it(house: House, how: str) -> None:  # fault 12
    async def scenario() -> None:
        heard = Heard()
        ending = "sys.stdin = open(0); say('hidden'); " + (STAY if how != "leaves-by-itself" else "os._exit(3)\n")
        # a template that is gone has no descendants: without a sandbox only the tag can find them then
        hide = HIDE if how == "kill" else HIDE.replace("(os.environ, {})", "(os.environ,)")
        template = await launch_template(house.command(SUBREAPER + SAY + hide + ending), b"", heard)
        namespace = where(template) if how != "leaves-by-itself" else "gone before one can look"
        tag = f"ORPHEUS_SANDBOX={house.spec.template_id}"
        assert json.loads(await heard.next()) == ["hidden"]
        if how == "kill":
            assert len(running(tag, namespace)) >= 4
            template.kill()
        elif how == "outer-killed":
            os.kill(template.pid, 9)
        assert await template.wait() == (3 if how == "leaves-by-itself" else -9)
        assert running(tag, namespace) == []
        assert _children() == set(), "orphans came to the test process, which is the reaper of all below it"

    house.run(scenario())


#: Children of this process that the test did not start, such as a daemon that several tests share.
_strangers: set[int] = set()


@pytest.fixture(autouse=True)
def _meet_strangers() -> None:
    _strangers.clear()
    _strangers.update(_child_pids())


def _child_pids() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


def _children() -> set[int]:
    """Living children that came with the test: the dead among them are reaped, as an init would."""
    living: set[int] = set()
    for pid in _child_pids() - _strangers:
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            living.add(pid)
    return living


def test_a_bubblewrap_killed_while_it_starts_leaves_no_child(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its child waits for a word from it, which then never comes. The kill walks through all of the start."""
    delay_s = 0.0

    class Doomed(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            asyncio.get_running_loop().call_later(delay_s, os.kill, self.pid, 9)

    monkeypatch.setattr(subprocess, "Popen", Doomed)

    async def scenario() -> None:
        nonlocal delay_s
        for step in range(25):
            delay_s = step * 0.0003
            template = await launch_template(house.command("import time\n" + STAY), b"", lambda _line: None)
            assert await template.wait() == -9
            assert _children() == set(), f"killed {delay_s} s after the start"

    house.run(scenario())


@pytest.mark.parametrize(
    ("ending", "code"),
    [("os._exit(7)", 7), ("import ctypes; ctypes.string_at(0)", -11), ("raise SystemExit(0)", 0), ("1/0", 1)])
def test_the_exit_code_is_the_templates_own(house: House, ending: str, code: int) -> None:
    async def scenario() -> None:
        template = await launch_template(house.command(SAY + ending), b"", lambda _line: None)
        assert await template.wait() == code

    house.run(scenario())


def test_what_it_prints_is_bounded(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "OUTPUT_LIMIT_BYTES", 100_000)

    async def scenario() -> None:
        heard = Heard()
        code = SAY + (
            "sys.stderr.write('one\\ntw'); sys.stderr.flush()\n"
            "sys.stderr.write('o\\n\\xff\\n' + 'x' * 20000 + '\\n'); sys.stderr.flush()\n"
            "try:\n"
            "    while True: os.write(1, b'y' * 4095 + b'\\n')\n"
            "except BrokenPipeError: os._exit(5)\n")
        template = await launch_template(house.command(code), b"", heard)
        assert await template.wait() == 5
        lines = heard.rest()
        assert lines[:3] == ["one", "two", "\xff"]
        assert [len(line) for line in lines[3:6]] == [8192, 8192, 20000 - 2 * 8192]
        assert lines[-1] == "(more than 100000 bytes of output: the rest is not read)"
        assert sum(len(line) + 1 for line in lines[:-1]) <= 100_100

    house.run(scenario())


def test_the_last_words_need_no_newline(house: House) -> None:
    async def scenario() -> None:
        heard = Heard()
        command = house.command("import os; os.write(2, b'why I die'); os._exit(1)")
        template = await launch_template(command, b"", heard)
        assert await template.wait() == 1
        assert heard.rest() == ["why I die"]

    house.run(scenario())


def test_a_stray_that_holds_the_output_open_does_not_hold_up_the_end(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "SETTLE_S", 0.05)

    async def scenario() -> None:
        theirs, ours = os.pipe()
        template = await launch_template(house.command("import time\n" + STAY), b"", print)
        held = os.open(f"/proc/{template.pid}/fd/1", os.O_WRONLY)
        template.kill()
        assert await template.wait() == -9
        for fd in (held, theirs, ours):
            os.close(fd)

    house.run(scenario())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 10])
def test_a_cancelled_launch_leaves_nothing(house: House, turns: int) -> None:
    async def scenario() -> None:
        before = asyncio.all_tasks()
        launching = asyncio.create_task(launch_template(house.command("import time\n" + STAY), b"", print))
        for _ in range(turns):
            await asyncio.sleep(0)
        if launching.done():
            launching.result().kill()
            await launching.result().wait()
        launching.cancel()
        await asyncio.wait([launching])
        others = asyncio.all_tasks() - before
        if others:
            await asyncio.wait(others)  # the reaper, who is not tied to the caller
        assert survivors.tagged(f"ORPHEUS_SANDBOX={house.spec.template_id}") == []
        assert _children() == set()

    house.run(scenario())


def test_what_cannot_start_says_why(house: House) -> None:
    house.spec.code_dir.rmdir()

    async def scenario() -> None:
        heard = Heard()
        if house.isolation.mode == "none":
            with pytest.raises(FileNotFoundError, match="code"):
                await launch_template(house.command(""), b"", heard)
            return
        template = await launch_template(house.command(""), b"", heard)
        assert await template.wait() == 1
        assert "code" in heard.rest()[0]

    house.run(scenario())


def test_a_launch_line_that_does_not_fit_is_refused(house: House) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="does not fit"):
            await launch_template(house.command(""), b"x" * 40_000, print)

    house.run(scenario())


def test_command_lines_tell_no_names(house: House) -> None:
    async def scenario() -> None:
        heard = Heard()
        template = await launch_template(house.command(SAY + "say('here')\n" + STAY), b'{"nonce":"secret"}', heard)
        await heard.next()
        for pid in filter(None, (template.pid, template.inner_pid)):
            told = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
            assert "secret" not in told
            assert str(house.spec.link_dir.parent) not in told
        template.kill()
        await template.wait()

    house.run(scenario())


def test_the_test_process_is_the_reaper() -> None:
    """What `_children` relies on."""
    found = ctypes.c_int(0)
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(found), 0, 0, 0) == 0
    assert found.value == 1
