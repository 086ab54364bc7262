"""Secrets that the tests plant by themselves, and the look for them wherever none may be.

Every agent that a test writes has two more variables, one with a value in agent.yaml and one whose value its deployer
gives. Both values begin with `MARK`, which is this process's own: one search finds them all, and another run of the
tests on the same box is not taken for this one. `tests/daemon.py` plants them, and looks around when a daemon ends;
`tests/conftest.py` fails the test after which something was found. What an agent prints or answers itself would be
found too, so no agent of the tests tells what was planted.
"""

import json
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import psutil

from orpheusd.errors import OrpheusError
from orpheusd.operations import OPERATIONS, Access

MARK = f"planted-{secrets.token_hex(4)}"
STATED, GIVEN = "PLANTED_STATED", "PLANTED_GIVEN"

#: Of each operation so many different questions, and of the run log so many runs.
QUESTIONS_LIMIT = 40
RUNS_LIMIT = 20
#: Files of the daemon's are smaller, but for a run log under load and what fills a disk.
FILE_LIMIT_BYTES = 32 * 1024 * 1024
#: What is printed around a finding.
EXCERPT_BYTES = 120

#: Where what was planted is kept, below the state directory; and the agents' own, where they may keep what they like.
KEPT = re.compile(
    r"(agents/[^/]+/versions/[0-9]+|tmp/stage-[0-9a-f]+)/(code/\.?agent\.yaml(\.[0-9a-f]+\.tmp)?|"
    r"\.?(env|manifest)\.json(\.tmp)?)|token")
#: The daemon takes no shorter one.
TOKEN_BYTES = 43
FOR_NOBODY_ELSE = re.compile(r".*/\.?env\.json(\.tmp)?|token")
THE_AGENTS_OWN = "workspaces"


_FIGURES = ("planted", "daemons", "asked", "unanswered", "places", "cost_s")


class Lookout:
    """What was looked at, and what was found there and not yet told. Tokens of daemons are secrets while these run."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.tokens: set[bytes] = set()
        self.planted = self.daemons = self.asked = self.unanswered = self.places = 0
        self.cost_s = 0.0

    def look(self, content: bytes | str, place: str) -> bool:
        """Whether there is a secret in it; then it is a finding."""
        self.places += 1
        data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        for secret in (MARK.encode(), *self.tokens):
            at = data.find(secret)
            if at >= 0:
                excerpt = data[max(0, at - EXCERPT_BYTES):at + EXCERPT_BYTES].decode(errors="replace")
                self.found.append(f"{place}: …{excerpt}…")
                return True
        return False

    def taken(self) -> list[str]:
        """What was found since the last time."""
        found, self.found = self.found, []
        return found

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.cost_s += time.monotonic() - began

    def figures(self) -> dict[str, float]:
        """What has been counted, for `add`."""
        return {name: getattr(self, name) for name in _FIGURES}

    def add(self, figures: Mapping[str, float]) -> None:
        """What another process of the same test run has counted."""
        for name, value in figures.items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return (f"{self.planted} secrets planted, and looked for in {self.places} places: in what callers were told "
                f"and at the ends of {self.daemons} daemons; {self.asked} were asked for all there is to read "
                f"({self.unanswered} did not answer); that took {self.cost_s:.1f} s")


LOOKOUT = Lookout()


def secret(agent: str) -> str:
    """A new one. It tells whose it is, and is short enough to be whole in whatever quotes it."""
    LOOKOUT.planted += 1
    return f"{MARK}-{agent}-{secrets.token_hex(4)}"


def sown(agent: str, env: Any) -> Any:
    """The `env` of an agent.yaml with what is planted."""
    if isinstance(env, Mapping):
        return {**env, STATED: secret(agent), GIVEN: None}
    return [*(env or []), f"{STATED}={secret(agent)}", GIVEN]


def sown_text(agent: str, manifest: str) -> str:
    """The same for a text that is one and says nothing of `env`; others are left as they are, and no line moves."""
    if "env" in manifest or "runtime" not in manifest:
        return manifest
    return f"{manifest.rstrip()}\nenv: {json.dumps(sown(agent, None))}\n"


def complete(agent: str, manifest: str) -> str:
    """The same agent.yaml, sown and in JSON, with a value for what its deployer had to give."""
    described = json.loads(manifest)
    stated = [f"{GIVEN}={secret(agent)}" if value == GIVEN else value for value in described["env"]]
    return json.dumps({**described, "env": stated})


def given(agent: str, manifest: str) -> dict[str, str]:
    """What its deployer has to give."""
    return {GIVEN: secret(agent)} if GIVEN in manifest else {}


def token(state_dir: Path) -> set[bytes]:
    """The token that lets HTTP change things, if there is one that a daemon takes."""
    path = state_dir / "token"
    if path.is_symlink() or not path.is_file() or path.stat().st_mode & 0o077:
        return set()
    return {found for found in (path.read_bytes().strip(),) if len(found) >= TOKEN_BYTES}


def look_at_processes(daemon: int, family: Iterable[psutil.Process]) -> None:
    """No command line holds a secret, and no environment but that of what its agent has started."""
    for pid in (daemon, *(process.pid for process in family)):
        LOOKOUT.look(_proc(pid, "cmdline"), f"/proc/{pid}/cmdline")
        environ = _proc(pid, "environ")
        own = next((entry[14:].decode() for entry in environ.split(b"\0") if entry.startswith(b"ORPHEUS_AGENT=")), "")
        hidden = f"{MARK}-{own}-".encode() if own and pid != daemon else b"\0"
        LOOKOUT.look(environ.replace(hidden, b""), f"/proc/{pid}/environ")


def look_at_files(state_dir: Path, runtime_dir: Path, log: Path) -> None:
    """No file of a daemon's holds a secret but those that keep it, and these are for its user alone."""
    for path in (log, *_files(runtime_dir), *_files(state_dir)):
        content = content_of(path)
        name = str(path.relative_to(state_dir)) if path.is_relative_to(state_dir) else ""
        if not KEPT.fullmatch(name):
            LOOKOUT.look(content, str(path))
        elif MARK.encode() in content or content.strip() in LOOKOUT.tokens:
            LOOKOUT.places += 1
            if wrong := _open_to_others(path, state_dir, bool(FOR_NOBODY_ELSE.fullmatch(name))):
                LOOKOUT.found.append(f"{path} keeps a secret and {wrong}")


def ask_around(connect: Callable[[], Any]) -> None:
    """Ask a daemon for whatever can be read of it, unless it is none that answers. `tests.daemon.Control` does the
    looking."""
    LOOKOUT.asked += 1
    try:
        with connect() as control:
            ask_for_all(control)
    except (OSError, EOFError, OrpheusError, AssertionError):
        LOOKOUT.unanswered += 1


def ask_for_all(control: Any) -> None:
    """Returns when everything was answered, or refused."""
    facts = [{"agent": agent["name"]} for agent in control.call("agent.list")["agents"]]
    for row in control.call("run.list", limit=RUNS_LIMIT)["runs"]:
        told = {"agent": row["agent"], "run_id": row["run_id"], "session_id": row["session_id"]}
        facts.append({name: value for name, value in told.items() if value is not None})
    waiting = {control.send(name, **params) for name, params in questions(facts)}
    while waiting:
        waiting.discard(control.receive().get("id"))


def questions(facts: Iterable[dict[str, str]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each operation that reads, with what it needs to be told from each of the `facts` that has it."""
    known = list(facts)
    for operation in OPERATIONS:
        if operation.access is Access.READ:
            needed = [param.name for param in operation.params if param.required]
            asked = {json.dumps({name: fact[name] for name in needed}, sort_keys=True): None
                     for fact in (*known, {}) if fact.keys() >= set(needed)}
            for params in islice(asked, QUESTIONS_LIMIT):
                yield operation.name, json.loads(params)


def look_at_http() -> None:
    """From now on, what an httpx client of this process reads is looked at. (It has a hook only for whole answers.)"""
    raw = httpx.Response.iter_raw

    def looked(response: httpx.Response, chunk_size: int | None = None) -> Iterator[bytes]:
        LOOKOUT.look(repr(response.headers.raw), f"the headers of {response.url}")
        for piece in raw(response, chunk_size):
            LOOKOUT.look(piece, f"what {response.url} answered")
            yield piece

    httpx.Response.iter_raw = looked


def _files(directory: Path) -> Iterator[Path]:
    """Every plain file below it that may tell of a secret."""
    try:
        entries = list(os.scandir(directory))
    except OSError:  # gone, or made so that nobody can read it
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != THE_AGENTS_OWN:
                yield from _files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def content_of(path: Path) -> bytes:
    """As much of a file as is looked at, nothing when it is gone."""
    try:
        with path.open("rb") as stream:
            return stream.read(FILE_LIMIT_BYTES)
    except OSError:  # a daemon that ends removes some
        return b""


def _open_to_others(path: Path, state_dir: Path, strictly: bool) -> str:
    """What is wrong with how it lies there, or nothing."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if strictly and mode != 0o600:
        return f"has the mode {mode:o}"
    way = [directory for directory in path.parents if directory.is_relative_to(state_dir)]
    if mode & 0o077 and all(directory.stat().st_mode & 0o011 for directory in way):
        return "others can read it"
    return ""


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it has left, or is a zombie
        return b""
