"""Builds the virtual environment of a requirements.txt: in a sandbox with network, once for each content.

An environment is known by the hash of what it is made from and lies at venvs/HASH; agents whose requirements
are alike share it. It is usable when it holds `.complete`, and only then: what built it is dead by then. Builds share
nothing else, no cache of pip either: packages run code as they are built, and whatever that could write to would
reach the packages of others. This file knows nothing of agents or versions.
"""

import asyncio
import hashlib
import importlib.util
import json
import os
import platform
import re
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from orpheusd.deploy import beneath
from orpheusd.deploy.pipconf import host_settings
from orpheusd.errors import OrpheusError
from orpheusd.process.launch import launch_template
from orpheusd.process.sandbox import SANDBOX_TAG, Interpreter, Isolation, build_argv, build_paths, find_interpreter

#: Change it when environments are built in another way, so that old ones are not taken for new.
FORMAT = 2

LIMIT_REQUIREMENTS_BYTES = 256 * 1024

#: How much of pip's output an error repeats.
TAIL_LINES = 40

#: An environment that was built or asked for so recently may belong to a deploy that has not noted it yet.
SPARED_S = 3600.0

#: Removing half an environment takes a second or two; a caller that was cancelled waits no longer than this.
CLEANUP_S = 10.0

#: Below an environment that is being built.
_SCRATCH = ".scratch"

_NOTHING: Mapping[str, str] = MappingProxyType({})
_COMMENT = re.compile(r"(^|\s+)#.*$")
_ELSEWHERE = re.compile(
    r"-[rce]\s*\S|--(requirement|constraint|editable)\b|[.~]{0,2}/|file:|[^#]*\s@\s*file:", re.ASCII)


async def ensure_venv(
    requirements: Path,
    store_dir: Path,
    isolation: Isolation,
    progress: Callable[[str], None],
    timeout_s: float,
    environ: Mapping[str, str] = _NOTHING,
) -> Path | None:
    """The virtual environment for `requirements` below `store_dir`/venvs, None when nothing is required.

    `progress` gets each line of the build; a caller that comes while it goes on joins it. `environ` is the
    daemon's environment, for PIP_* and proxy settings. Raises OrpheusError(invalid-request) with pip's last
    lines in `details["output"]`, (timed-out), or (internal) when this box cannot build at all.
    """
    text = read_requirements(requirements)
    if text is None:
        return None
    interpreter = find_interpreter()
    venv_dir = store_dir / "venvs" / _name(text, interpreter, isolation)
    while (build := _builds.get(venv_dir)) is not None and build.task.cancelling():
        await asyncio.wait([build.task])
    if build is None:
        if (venv_dir / ".complete").is_file():
            os.utime(venv_dir / ".complete", follow_symlinks=False)
            progress("requirements.txt: already installed")
            return venv_dir
        plan = _Plan(text, venv_dir, isolation, interpreter, dict(environ), timeout_s)
        build = _start(plan)
    build.listeners.append(progress)
    try:
        return await asyncio.shield(build.task)
    finally:
        build.listeners.remove(progress)
        if not build.listeners and not build.task.done():
            build.task.cancel()
            await asyncio.wait([build.task], timeout=CLEANUP_S)


def read_requirements(requirements: Path) -> str | None:
    """What a requirements.txt asks for, line by line, None for nothing. Raises OrpheusError that names the line.

    An environment is built from this and named after it, so that files of one name are files that pip reads alike.
    """
    try:
        with requirements.open("rb") as stream:
            raw = stream.read(LIMIT_REQUIREMENTS_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OrpheusError("invalid-request", f"cannot read requirements.txt: {error}") from error
    if len(raw) > LIMIT_REQUIREMENTS_BYTES:
        raise OrpheusError("too-large", f"requirements.txt is longer than {LIMIT_REQUIREMENTS_BYTES} bytes")
    for number, stated in enumerate(_lines(text), 1):
        if stated.endswith("\\"):
            raise OrpheusError(
                "invalid-request", f"requirements.txt, line {number}: {stated[:80]!r} ends with a backslash that "
                "joins no line to it; take it away, or what comes after it")
        if _ELSEWHERE.match(stated):
            raise OrpheusError(
                "invalid-request", f"requirements.txt, line {number}: {stated[:80]!r} refers to another file, which a "
                "build does not see; name the package itself, or put its code into the agent's folder")
    return "\n".join(_lines(text)) if _stated(text) else None


def prune_venvs(store_dir: Path, in_use: Collection[str]) -> list[str]:
    """Removes environments that nobody refers to, and what interrupted builds left; their names.

    May run in a thread: a build that starts meanwhile is spared because it is young.
    """
    building = {path.name for path in list(_builds)}
    removed = []
    for path in sorted((store_dir / "venvs").iterdir()):
        name = path.name.removeprefix(".").partition(".")[0]
        if name in building or path.name in in_use or _is_recent(path):
            continue
        beneath.remove(path)
        removed.append(path.name)
    return removed


@dataclass(frozen=True, slots=True)
class _Plan:
    """All that one build is made from."""

    text: str
    venv_dir: Path
    isolation: Isolation
    interpreter: Interpreter
    environ: Mapping[str, str]
    timeout_s: float


@dataclass(slots=True)
class _Build:
    """A build that goes on. Invariant: it ends, at the latest, when nobody listens any more."""

    task: asyncio.Task[Path]
    listeners: list[Callable[[str], None]] = field(default_factory=list)


#: The builds that go on, by the directory they will end up at.
_builds: dict[Path, _Build] = {}


def _start(plan: _Plan) -> _Build:
    def tell(line: str) -> None:
        for listener in tuple(build.listeners):
            listener(line)

    def forget(task: asyncio.Task[Path]) -> None:
        del _builds[plan.venv_dir]
        if not task.cancelled():
            task.exception()  # whoever waited has it; when nobody did, there is nobody to tell

    build = _Build(asyncio.get_running_loop().create_task(_build(plan, tell)))
    _builds[plan.venv_dir] = build
    build.task.add_done_callback(forget)
    return build


async def _build(plan: _Plan, tell: Callable[[str], None]) -> Path:
    if importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise OrpheusError(
            "internal", f"cannot install requirements.txt: {plan.interpreter.executable} cannot make virtual "
            f"environments (no ensurepip); install it (apt install python{version}-venv) and deploy again")
    # without a sandbox the path is written into scripts, so it must be the final one from the start
    final = plan.isolation.mode != "bwrap"
    place = plan.venv_dir if final else plan.venv_dir.with_name(f".{plan.venv_dir.name}.{secrets.token_hex(4)}.tmp")
    loop = asyncio.get_running_loop()
    try:
        await loop.run_in_executor(None, _prepare, plan, place)
        try:
            async with asyncio.timeout(plan.timeout_s):
                await _install(plan, place, tell)
        except TimeoutError:
            raise OrpheusError(
                "timed-out", f"cannot install requirements.txt: not done within {plan.timeout_s:g} s; ask for less, "
                "or raise build_timeout_s in the daemon's settings") from None
        await loop.run_in_executor(None, _finish, plan, place)
    except BaseException:
        await asyncio.shield(loop.run_in_executor(None, _remove, place))
        raise
    return plan.venv_dir


async def _install(plan: _Plan, place: Path, tell: Callable[[str], None]) -> None:
    inside = build_paths(plan.isolation, place, place / "requirements.txt")
    python = str(plan.interpreter.executable)
    await _run(plan, place, [python, "-I", "-m", "venv", inside.venv_dir], "make a virtual environment", tell)
    await _run(plan, place, [
        f"{inside.venv_dir}/bin/python", "-I", "-m", "pip", "install", "--no-input", "--disable-pip-version-check",
        "--progress-bar", "off", "--no-cache-dir", "-r", inside.requirements,
    ], "install requirements.txt", tell)


async def _run(
    plan: _Plan, place: Path, command: list[str], purpose: str, tell: Callable[[str], None]
) -> None:
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    def listen(line: str) -> None:
        if line.strip():
            tail.append(line)
            tell(line)

    settings = host_settings(plan.environ)
    env = {
        SANDBOX_TAG: f"build-{secrets.token_hex(8)}",
        **settings.env,
        "PIP_CONFIG_FILE": os.devnull,  # what it says is in the variables
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    if plan.isolation.mode != "bwrap":  # no private /tmp, no home of its own: what is left there goes with the build
        env.update({"TMPDIR": str(place / _SCRATCH), "HOME": str(place / _SCRATCH)})
    process = await launch_template(
        build_argv(plan.isolation, plan.interpreter, place, place / "requirements.txt", settings.binds, env, command),
        b"", listen)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await asyncio.wait([asyncio.ensure_future(process.wait())], timeout=CLEANUP_S)
        raise
    if code != 0:
        raise OrpheusError(
            "invalid-request", f"cannot {purpose}: {_reason(tail, code)}", {"output": "\n".join(tail)})


def _reason(tail: Collection[str], code: int | None) -> str:
    errors = [line.removeprefix("ERROR: ") for line in tail if line.startswith("ERROR: ")]
    return "\n".join(errors[-5:] or list(tail)[-5:]) or f"pip ended with status {code} and said nothing"


def _lines(text: str) -> list[str]:
    """As pip reads them: what a backslash joins is in the first line, and comments are nothing."""
    read: list[str] = []
    first: int | None = None
    for number, line in enumerate(text.splitlines()):
        read.append("")
        at = number if first is None else first
        is_comment = _COMMENT.match(line) is not None
        joins = line.endswith("\\") and not is_comment
        read[at] += line.strip("\\") if joins else f" {line}" if is_comment else line
        first = at if joins else None
    return [_COMMENT.sub("", line).strip() for line in read]


def _stated(text: str) -> list[str]:
    return [line for line in _lines(text) if line]


def _name(text: str, interpreter: Interpreter, isolation: Isolation) -> str:
    made_from = [
        FORMAT, _stated(text), sys.implementation.cache_tag, list(sys.version_info[:3]), str(interpreter.executable),
        isolation.mode, platform.machine(),
    ]
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]


def _prepare(plan: _Plan, place: Path) -> None:
    beneath.remove(place)
    place.mkdir(mode=0o755, parents=True)
    (place / _SCRATCH).mkdir(mode=0o700)
    (place / "requirements.txt").write_text(plan.text, "utf-8")


def _finish(plan: _Plan, place: Path) -> None:
    beneath.remove(place / _SCRATCH)
    mark = place / ".complete"
    beneath.remove(mark)  # packages write here too: nothing of theirs is followed
    os.sync()  # the mark must not survive a loss of power that the files do not
    os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
    if place != plan.venv_dir:
        beneath.remove(plan.venv_dir)
        place.rename(plan.venv_dir)


def _remove(place: Path) -> None:
    with suppress(OSError):
        beneath.remove(place)


def _is_recent(path: Path) -> bool:
    for made in (path / ".complete", path):
        try:
            return time.time() - made.lstat().st_mtime < SPARED_S
        except OSError:
            continue
    return False
