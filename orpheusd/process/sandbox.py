"""What a sandbox is made of: the exact command lines that start templates and builds, confined or not.

It decides what is visible inside and turns that into arguments; it starts nothing itself (but the probe of
`detect`) and knows nothing of workers, sockets or messages. Everything bubblewrap is told goes through
`--args FD`, so that /proc/*/cmdline shows no path and no name.
"""

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import orpheusd
from orpheusd.errors import OrpheusError
from orpheusd.process import syscalls
from orpheusd.process.root import INSIDE_ID, TMP_DIR, WORKSPACE_DIR, etc_files, root_of, sealed
from orpheusd.worker import landlock

CODE_DIR = "/agent"
VENV_DIR = "/venv"
LIB_DIR = "/run/orpheus/lib"
LINK_DIR = "/run/orpheus/link"
SOCKET_NAME = "worker.sock"

#: The environment variable that marks every process of a template, for the sweep of survivors. An agent can erase it
#: from its own memory, but not from the bubblewrap around it, which the sweep finds with all that is below it.
SANDBOX_TAG = "ORPHEUS_SANDBOX"

#: What a template runs. `{lib!r}` becomes the directory of the runtime's own code as seen by the template.
BOOTSTRAP = "import sys; sys.path.insert(0, {lib!r}); from orpheusd.worker.template import main; main()"

#: What each part of a build runs, with its command as arguments: the template's own confinement, then the command.
BUILD_BOOTSTRAP = ("import sys; sys.path.append({lib!r}); from orpheusd.worker.confinement import become; "
                   "become({sandboxed}, sys.argv[1:])")

#: Private /tmp of an agent: room for temporary files, too little to starve the box of memory.
TMP_LIMIT_BYTES = 256 * 1024 * 1024

#: Private /tmp of a build: pip unpacks and compiles there, and the largest wheels are near 1 GB.
BUILD_TMP_LIMIT_BYTES = 2 * 1024 * 1024 * 1024

#: What a door imports and is not ours; where these are is what else it depends on.
DOOR_LIBRARIES = ("hypercorn", "starlette", "uvloop", "orjson")

#: A working bubblewrap answers in 40 ms; one that has not by now hangs.
PROBE_TIMEOUT_S = 2.0

#: Where bubblewrap is looked for: never in the daemon's own PATH, which is its caller's.
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"

NO_WALLS = (
    "isolation is off: agents can read and change whatever the daemon's user can, and /workspace is not mapped "
    "(use WORKSPACE_DIR or workspace.path)"
)


class Isolation(NamedTuple):
    """How agents are confined: `mode` is "bwrap" or "none", `reason` a sentence that says why.

    `weaknesses` has a sentence for each wall that this host cannot give; `seccomp` is the filter of system calls;
    `units` is the socket at which systemd gives each template a unit of its own (`spawn.py`).
    """

    mode: str
    reason: str
    bwrap_path: str | None
    weaknesses: tuple[str, ...] = ()
    seccomp: bytes = b""
    units: Path | None = None


@dataclass(frozen=True, slots=True)
class Interpreter:
    """The Python that agents run on, and the directories outside /usr that it needs at their own place."""

    executable: Path
    binds: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class RuntimeLib:
    """The runtime's own code: (path below the lib directory, where it is installed).

    `directory` holds the same layout as symlinks, for templates that see the host's own paths.
    """

    parts: tuple[tuple[str, Path], ...]
    directory: Path | None = None


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """One agent version's template. `link_dir` is the host directory that holds its worker.sock."""

    template_id: str
    agent: str
    code_dir: Path
    workspace_dir: Path
    venv_dir: Path | None
    link_dir: Path
    network: bool


class BuildPaths(NamedTuple):
    """Where a build sees its things."""

    venv_dir: str
    requirements: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command ready to start through `opened()`.

    Invariant: `argv` and `args_data` name a file descriptor only as a key of `data` or as ARGS_FD; `opened`
    makes the descriptors. Without a sandbox `args_data` is empty. `socket`, `code_dir` and `workspace_dir`
    are as seen by the command (empty for a build).
    """

    argv: list[str]
    args_data: bytes
    env: dict[str, str]
    cwd: str
    socket: str = ""
    code_dir: str = ""
    workspace_dir: str = ""
    data: dict[str, bytes] = field(default_factory=dict)

    @property
    def sandboxed(self) -> bool:
        return bool(self.args_data)

    @contextmanager
    def opened(self, *options: str) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """The final argv and the descriptors to pass; start the process inside the `with`, which closes them.

        `options` are further bubblewrap options. Pass `env` and `cwd` of the command to the process as well.
        """
        numbers: dict[str, str] = {}
        fds: list[int] = []
        try:
            for name, content in self.data.items():
                fds.append(_memory_file(content))
                numbers[name] = str(fds[-1])
            if self.args_data:
                words = self.args_data.decode("utf-8", "surrogateescape").split("\0")
                known = "\0".join(numbers.get(word, word) for word in words)
                fds.append(_memory_file(known.encode("utf-8", "surrogateescape")))
                numbers[ARGS_FD] = str(fds[-1])
            argv = [numbers.get(word, word) for word in self.argv]
            yield [argv[0], *options, *argv[1:]] if self.args_data else argv, tuple(fds)
        finally:
            for fd in fds:
                os.close(fd)


#: Stand for the descriptors that carry `args_data` and the filter of system calls.
ARGS_FD = "{fd:args}"
SECCOMP_FD = "{fd:seccomp}"


def detect(wanted: str) -> Isolation:
    """The isolation in force for the setting `wanted` ("auto", "bwrap" or "none"); really tries bubblewrap.

    Raises OrpheusError(invalid-request) when bubblewrap is demanded and does not work.
    """
    if wanted == "none":
        return Isolation("none", "isolation is switched off in the settings", None, (NO_WALLS,))
    path = shutil.which("bwrap", path=SEARCH_PATH)
    found = _walls(path)
    problem = f"bubblewrap is not installed (no bwrap in {SEARCH_PATH})" if path is None else _probe(found)
    if problem is None:
        return found
    if wanted == "bwrap":
        raise OrpheusError("invalid-request", f"isolation is set to bwrap, but {problem}; {_remedy(path, problem)}")
    return Isolation("none", f"{problem}; {_remedy(path, problem)}", None, (NO_WALLS,))


def find_interpreter() -> Interpreter:
    """The base interpreter of the running one: not the daemon's own virtual environment."""
    executable = Path(os.path.realpath(sys.executable))
    needed = {Path(os.path.realpath(prefix)) for prefix in (sys.base_prefix, sys.base_exec_prefix)}
    if not any(executable.is_relative_to(prefix) for prefix in needed):
        needed.add(executable.parent)
    return Interpreter(executable, tuple(sorted(path for path in needed if not path.is_relative_to("/usr"))))


def find_runtime_lib() -> RuntimeLib:
    """The parts of the installed runtime that the inside needs: nothing of the daemon's own."""
    package = Path(str(orpheusd.__file__)).resolve().parent
    inside = ("__init__.py", "wire", "worker")
    parts = [(f"orpheusd/{name}", package / name) for name in inside]
    return RuntimeLib((*parts, ("workspace", package.parent / "workspace")))


def make_lib_dir(path: Path) -> RuntimeLib:
    """The runtime's code with `path` made to hold its layout as symlinks; what was there is replaced."""
    lib = find_runtime_lib()
    shutil.rmtree(path, ignore_errors=True)
    for name, source in lib.parts:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).symlink_to(source)
    return replace(lib, directory=path)


def template_argv(
    isolation: Isolation, interpreter: Interpreter, spec: TemplateSpec, lib: RuntimeLib, bootstrap: str = BOOTSTRAP
) -> Command:
    """The command that starts a template. `bootstrap` is its Python code, `{lib!r}` in it the lib directory."""
    venv_dir = VENV_DIR if isolation.mode == "bwrap" else str(spec.venv_dir)
    python = str(interpreter.executable) if spec.venv_dir is None else f"{venv_dir}/bin/python"
    tag = {SANDBOX_TAG: spec.template_id}
    env = {
        **tag,
        "PATH": f"{venv_dir}/bin:{SEARCH_PATH}" if spec.venv_dir is not None else SEARCH_PATH,
        "LANG": "C.UTF-8",
    }
    if isolation.mode != "bwrap":
        if lib.directory is None:
            raise ValueError("without a sandbox the runtime needs its lib directory; see make_lib_dir")
        return Command(
            [python, "-I", "-c", bootstrap.replace("{lib!r}", repr(str(lib.directory)))], b"", env,
            str(spec.code_dir), f"{spec.link_dir}/{SOCKET_NAME}", str(spec.code_dir), str(spec.workspace_dir))
    args = [*_namespaces(isolation, spec.network), "--new-session", "--as-pid-1", "--hostname", spec.agent]
    args += root_of(interpreter.binds, spec.network, TMP_LIMIT_BYTES)
    args += ["--ro-bind", str(spec.code_dir), CODE_DIR, "--bind", str(spec.workspace_dir), WORKSPACE_DIR]
    if spec.venv_dir is not None:
        args += ["--ro-bind", str(spec.venv_dir), VENV_DIR]
    args += _lib_binds(lib)
    args += ["--ro-bind", str(spec.link_dir), LINK_DIR, *sealed(), "--chdir", CODE_DIR, *_environment(env)]
    return Command(
        [str(isolation.bwrap_path), "--args", ARGS_FD, "--", python, "-I", "-c",
         bootstrap.replace("{lib!r}", repr(LIB_DIR))],
        _joined(args), tag, "/", f"{LINK_DIR}/{SOCKET_NAME}", CODE_DIR, WORKSPACE_DIR,
        _data(isolation, spec.agent, spec.network))


def build_paths(isolation: Isolation, venv_dir: Path, requirements: Path) -> BuildPaths:
    """The paths to use in the `command` of `build_argv`."""
    if isolation.mode == "bwrap":
        return BuildPaths(VENV_DIR, "/build/requirements.txt")
    return BuildPaths(str(venv_dir), str(requirements))


def build_argv(
    isolation: Isolation,
    interpreter: Interpreter,
    venv_dir: Path,
    requirements: Path,
    extra_ro_binds: Sequence[Path],
    env: Mapping[str, str],
    command: Sequence[str],
) -> Command:
    """The command that runs `command` (whose paths come from `build_paths`) to build a virtual environment.

    It has the network, and writes to the venv and a private /tmp only. `extra_ro_binds` are
    bound at their own path. In a sandbox everything dies with the bubblewrap process, and that with the daemon.
    It is confined as an agent is, before it runs: the walls of agents stand around packages too.
    """
    sandboxed = isolation.mode == "bwrap"
    lib_dir = LIB_DIR if sandboxed else str(Path(str(orpheusd.__file__)).resolve().parents[1])
    bootstrap = BUILD_BOOTSTRAP.replace("{lib!r}", repr(lib_dir)).replace("{sandboxed}", repr(sandboxed))
    command = [str(interpreter.executable), "-I", "-S", "-c", bootstrap, *command]
    whole_env = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", **env}
    if not sandboxed:
        return Command(command, b"", whole_env, str(venv_dir))
    inside = build_paths(isolation, venv_dir, requirements)
    args = [*_namespaces(isolation, network=True), "--new-session", "--die-with-parent", "--hostname", "build"]
    args += root_of(interpreter.binds, network=True, tmp_limit_bytes=BUILD_TMP_LIMIT_BYTES)
    args += ["--bind", str(venv_dir), inside.venv_dir, "--ro-bind", str(requirements), inside.requirements]
    args += _lib_binds(find_runtime_lib())
    for path in extra_ro_binds:
        args += ["--ro-bind", str(path), str(path)]
    args += [*sealed(), "--chdir", TMP_DIR, *_environment({"HOME": TMP_DIR, **whole_env})]
    return Command(
        [str(isolation.bwrap_path), "--args", ARGS_FD, "--", *command], _joined(args), {}, "/",
        data=_data(isolation, "build", network=True))


def door_argv(isolation: Isolation, program: Sequence[str], tag: str) -> Command:
    """The command that runs `program`, a Python of ours with arguments, where it sees its own code and nothing else.

    It keeps the network, what descriptors it is passed, and its process group, as which it must be killed:
    bubblewrap stays in there, and leaves when it has, but not for a SIGTERM to all of them, which the program may have
    a better answer to. `tag` is `NAME=value`.
    """
    if isolation.mode != "bwrap":
        return Command(list(program), b"", {}, "/")
    code = Path(str(orpheusd.__file__)).resolve().parent
    libraries = sorted({Path(str(spec.origin)).parents[1] for name in DOOR_LIBRARIES
                        if (spec := importlib.util.find_spec(name)) is not None})
    ours = [Path(sys.prefix), *find_interpreter().binds, *libraries, code]
    binds = [path for path in ours if not path.is_relative_to("/usr")]
    name, _, value = tag.partition("=")
    env = {name: value, "LANG": "C.UTF-8", "PYTHONPATH": ":".join(map(str, [code.parent, *libraries]))}
    args = [*_namespaces(isolation, network=True), "--as-pid-1", "--hostname", "door"]
    args += root_of(binds, network=True, tmp_limit_bytes=TMP_LIMIT_BYTES)
    args += [*sealed(), "--chdir", "/", *_environment(env)]
    return Command(
        ["/usr/bin/env", "--ignore-signal=TERM", str(isolation.bwrap_path), "--args", ARGS_FD, "--", *program],
        _joined(args), {}, "/", data=_data(isolation, "door", network=True))


def _namespaces(isolation: Isolation, network: bool) -> list[str]:
    """What is taken from a process, rather than from its sight."""
    kinds = ["user", "pid", "ipc", "uts", "cgroup-try"] + ([] if network else ["net"])
    ids = ["--uid", str(INSIDE_ID), "--gid", str(INSIDE_ID)]
    seccomp = ["--seccomp", SECCOMP_FD] if isolation.seccomp else []
    unshared = [f"--unshare-{kind}" for kind in kinds]
    return [*unshared, *ids, "--clearenv", "--cap-drop", "ALL", *seccomp]


def _lib_binds(lib: RuntimeLib) -> list[str]:
    return [word for name, source in lib.parts for word in ("--ro-bind", str(source), f"{LIB_DIR}/{name}")]


def _environment(env: Mapping[str, str]) -> list[str]:
    return [word for name, value in env.items() for word in ("--setenv", name, value)]


def _data(isolation: Isolation, hostname: str, network: bool) -> dict[str, bytes]:
    """Everything that goes to bubblewrap in a descriptor, by its name."""
    return {**etc_files(hostname, network), **({SECCOMP_FD: isolation.seccomp} if isolation.seccomp else {})}


def _joined(args: Sequence[str]) -> bytes:
    if any("\0" in word for word in args):
        raise ValueError("an argument of a sandbox holds a NUL")
    return "\0".join(args).encode("utf-8", "surrogateescape")


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("orpheus", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _walls(bwrap_path: str | None) -> Isolation:
    """What there is beside bubblewrap, should that work."""
    weaknesses: list[str] = []
    seccomp = b""
    try:
        seccomp = syscalls.compiled()
    except syscalls.NoFilter as error:
        weaknesses.append(f"agents can make every system call: {error}; install it (apt install libseccomp2)")
    if not landlock.has_scopes():
        weaknesses.append("agents that have the network reach the host's abstract Unix sockets: this kernel cannot "
                          "close them (Landlock of Linux 6.12 or newer does)")
    return Isolation("bwrap", "bubblewrap works here with every namespace", bwrap_path, tuple(weaknesses), seccomp)


def _probe(isolation: Isolation) -> str | None:
    """What is wrong with bubblewrap here, or None. Runs the agents' own interpreter in the agents' own root."""
    interpreter = find_interpreter()
    args = [*_namespaces(isolation, network=False), "--new-session", "--as-pid-1", "--die-with-parent"]
    args += [*root_of(interpreter.binds, False, TMP_LIMIT_BYTES), *sealed()]
    command = Command(
        [str(isolation.bwrap_path), "--args", ARGS_FD, "--", str(interpreter.executable), "-I", "-S", "-c", ""],
        _joined(args), {}, "/", data=_data(isolation, "probe", network=False))
    try:
        with command.opened() as (argv, fds):
            done = subprocess.run(
                argv, pass_fds=fds, env={}, cwd="/", timeout=PROBE_TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        return f"bubblewrap did not answer within {PROBE_TIMEOUT_S:g} s"
    except OSError as error:
        return f"bubblewrap cannot be started ({error})"
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return f"bubblewrap does not work here ({said[-1] if said else f'exit status {done.returncode}'})"


def _remedy(bwrap_path: str | None, problem: str) -> str:
    if bwrap_path is None:
        return "install it (apt install bubblewrap)"
    if os.strerror(errno.ENOSYS) in problem:
        return "take away what answers openat2(2) with ENOSYS (RestrictSUIDSGID= of a unit does)"
    return (
        "allow unprivileged user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns) and use bubblewrap 0.7 or newer")
