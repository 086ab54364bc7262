"""The state directory's agents: versions and which is current, their environment, their workspaces.

Everything here is files, done at once and without waiting; a step that was interrupted leaves the old state or
the new. It starts no process and knows nothing of workers.

    agents/NAME/current             the number of the version in use
    agents/NAME/last                the highest number ever given; numbers are never given twice
    agents/NAME/rolled-back         which version the current one was put in place of by itself, and why
    agents/NAME/versions/N/         code/  manifest.json  env.json (0600)  venv (the name of one below venvs/)  served
                                    trial (until the version serves; what a killed daemon left on trial is removed,
                                    once no process of it is left)
    venvs/  workspaces/NAME/  logs/NAME/  tmp/ (emptied at start)
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from orpheusd.agents import Manifest, parse_manifest
from orpheusd.deploy import beneath
from orpheusd.deploy.bundle import MANIFEST, REQUIREMENTS, sync_directory, unpack
from orpheusd.deploy.uploads import Uploads
from orpheusd.errors import OrpheusError
from orpheusd.failpoints import reached
from orpheusd.operations import AGENT_NAME

#: Versions kept beside the current one, to go back to.
KEPT_VERSIONS = 5

#: Where `workspace.session` saves, by the hash of the session id (see workspace/memory.py).
SESSIONS_DIR = ".sessions"
LOCKS_DIR = ".locks"

_DIRECTORIES = ("agents", "venvs", "workspaces", "logs", "tmp")


class StoredVersion(NamedTuple):
    """One version on disk. `venv` is the name of its virtual environment below venvs/, "" when it has none."""

    name: str
    number: int
    manifest: Manifest
    deployed_at: float
    directory: Path
    venv: str = ""

    @property
    def code_dir(self) -> Path:
        return self.directory / "code"

    @property
    def requirements(self) -> Path:
        return self.code_dir / REQUIREMENTS


class RolledBackFrom(NamedTuple):
    """A version that was rolled back by itself: it kept losing its workers in its first minute. `at` is a date."""

    version: int
    reason: str
    at: float


class Listing(NamedTuple):
    """The current version of every agent, and a sentence for each folder that could not be read."""

    versions: list[StoredVersion]
    problems: list[str]


class VersionStore:
    """The files of one state directory.

    Invariant: `current` names a version that is whole and on disk, and so is every version without a `trial` mark.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.uploads = Uploads(state_dir / "tmp")

    def prepare(self) -> None:
        """Makes the directories and empties tmp/. Call once, when the daemon holds the state directory."""
        for name in _DIRECTORIES:
            (self.state_dir / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        beneath.empty(self.state_dir / "tmp")
        with suppress(OSError):  # builds of earlier versions shared it
            beneath.remove(self.state_dir / "pip-cache")

    def settle_trials(self, lives: Callable[[str, int], bool]) -> None:
        """Removes versions that a deploy which was killed left on trial, but for one that `lives`, as name and number:
        it may have served for a moment, and have runs and sessions. It goes at a later deploy or start."""
        for mark in (self.state_dir / "agents").glob("*/versions/*/trial"):
            # what cannot be read here is reported by `list_agents`
            with suppress(OSError, OrpheusError, ValueError):
                self._settle(mark.parts[-4], int(mark.parent.name), lives)

    def stage(self, name: str, bundle: Path) -> StoredVersion:
        """The next version of agent `name`, unpacked from `bundle` and on disk, but not current.

        Raises OrpheusError for a bundle or agent.yaml that is refused; then nothing has changed.
        """
        agent_dir = self._agent_dir(name)
        stage_dir = self.state_dir / "tmp" / f"stage-{secrets.token_hex(8)}"
        stage_dir.mkdir(mode=0o700)
        try:
            unpack(bundle, stage_dir / "code")
            reached("deploy-unpacked")
            manifest = parse_manifest((stage_dir / "code" / MANIFEST).read_text("utf-8-sig"))
            if manifest.name != name:
                raise OrpheusError(
                    "invalid-request", f"cannot deploy as {name}: the bundle's agent.yaml names {manifest.name}")
            record = {"deployed_at": time.time(), "manifest": manifest.model_dump(mode="json")}
            _write(stage_dir / "manifest.json", json.dumps(record, indent=1))
            _write(stage_dir / "trial", "")
            (agent_dir / "versions").mkdir(mode=0o700, parents=True, exist_ok=True)
            self.make_workspace(name)
            number = self._next_number(name)
            stage_dir.rename(agent_dir / "versions" / str(number))
            sync_directory(agent_dir / "versions")
            reached("deploy-staged")
        except BaseException:
            beneath.remove(stage_dir)
            raise
        return self.load(name, number)

    def write_env(self, name: str, number: int, env: Mapping[str, str]) -> None:
        """Stores the version's environment, readable by the daemon's user alone."""
        _write(self._version_dir(name, number) / "env.json", json.dumps(dict(env)))

    def read_env(self, name: str, number: int) -> dict[str, str]:
        """What `write_env` was given, nothing before that. Raises ValueError if it is damaged, without a value."""
        try:
            env = json.loads((self._version_dir(name, number) / "env.json").read_text("utf-8"))
        except FileNotFoundError:
            return {}
        if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
            raise ValueError("its environment is no object of strings")
        return env

    def set_venv(self, name: str, number: int, venv: str) -> StoredVersion:
        """Notes which virtual environment the version uses."""
        _write(self._version_dir(name, number) / "venv", venv)
        return self.load(name, number)

    def set_current(self, name: str, number: int, rolled_back: RolledBackFrom | None = None) -> None:
        """Makes a version the one that is used from now on, and after a restart; `rolled_back` is why, if it is an
        older one that took its place again by itself."""
        if not self._version_dir(name, number).is_dir():
            raise OrpheusError("not-found", f"{name} has no version {number}")
        _write(self._version_dir(name, number) / "served", "")
        _write(self._agent_dir(name) / "current", str(number))
        (self._version_dir(name, number) / "trial").unlink(missing_ok=True)
        sync_directory(self._version_dir(name, number))
        note = self._agent_dir(name) / "rolled-back"
        if rolled_back is not None:
            _write(note, json.dumps(rolled_back._asdict()))
        else:
            note.unlink(missing_ok=True)

    def rolled_back(self, name: str) -> RolledBackFrom | None:
        """What `set_current` was told last. A note that cannot be read is none."""
        try:
            return RolledBackFrom(**json.loads(_read(self._agent_dir(name) / "rolled-back") or "null"))
        except (OSError, ValueError, TypeError):
            return None

    def current(self, name: str) -> int | None:
        """The number of the version in use, None when there is none."""
        return _number(self._agent_dir(name) / "current")

    def versions(self, name: str) -> list[int]:
        """The numbers of the versions on disk, ascending."""
        try:
            names = [path.name for path in (self._agent_dir(name) / "versions").iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(each) for each in names if each.isascii() and each.isdecimal())

    def served(self, name: str) -> list[int]:
        """The numbers of the versions on disk that have been current, ascending: those that can be gone back to."""
        return [number for number in self.versions(name) if (self._version_dir(name, number) / "served").exists()]

    def load(self, name: str, number: int) -> StoredVersion:
        """One version as it is on disk. Raises OrpheusError(not-found), or (internal) when it is damaged."""
        directory = self._version_dir(name, number)
        try:
            record = json.loads((directory / "manifest.json").read_text("utf-8"))
            manifest = Manifest.model_validate(record["manifest"])
            if not (directory / "code").is_dir():
                raise FileNotFoundError("its code is missing")
            self.read_env(name, number)
            venv = _read(directory / "venv")
            return StoredVersion(name, number, manifest, float(record["deployed_at"]), directory, venv)
        except (OSError, ValueError, TypeError, KeyError, ValidationError) as error:
            if not directory.is_dir():
                raise OrpheusError("not-found", f"{name} has no version {number}") from None
            why = f"{error.error_count()} settings are not understood" if isinstance(error, ValidationError) else error
            raise OrpheusError(
                "internal", f"version {number} of {name} is damaged ({why}); deploy it again") from error

    def list_agents(self) -> Listing:
        """Every agent that has a current version. A folder that cannot be read is reported, and stops nothing."""
        found = Listing([], [])
        for path in sorted((self.state_dir / "agents").iterdir()):
            if not AGENT_NAME.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
                found.problems.append(f"{path.name!a} in {path.parent} is not an agent's folder; remove it")
                continue
            try:
                number = self.current(path.name)
                if number is not None:
                    version = self.load(path.name, number)
                    if version.venv and not (self.state_dir / "venvs" / version.venv).is_dir():
                        raise OrpheusError("internal", "its installed packages are missing; deploy it again")
                    self.make_workspace(path.name)
                    found.versions.append(version)
            except OrpheusError as error:
                found.problems.append(f"cannot start {path.name}: {error.message}")
            except OSError as error:
                found.problems.append(f"cannot start {path.name}: {error}")
        return found

    def discard(self, name: str, number: int) -> None:
        """Removes a version that did not become current."""
        if self.current(name) == number:
            raise ValueError(f"version {number} of {name} is current")
        beneath.remove(self._version_dir(name, number))
        if not self.versions(name) and self.current(name) is None:
            try:
                self.workspace_dir(name).rmdir()
            except OSError:  # somebody has put something there: it stays
                pass

    def prune(self, name: str, in_use: Collection[int] = ()) -> list[int]:
        """Removes old versions: all but the current, the `KEPT_VERSIONS` newest others that have served, and those
        `in_use`. What never served is left of a deploy that was interrupted."""
        current = self.current(name)
        others = [number for number in self.served(name) if number != current]
        kept = {current, *others[-KEPT_VERSIONS:], *in_use}
        old = [number for number in self.versions(name) if number not in kept]
        for number in old:
            beneath.remove(self._version_dir(name, number))
        return old

    def remove_agent(self, name: str, purge: bool) -> None:
        """Forgets an agent's versions; with `purge` its workspace, logs and numbering too."""
        agent_dir = self._agent_dir(name)
        if agent_dir.is_dir():
            (agent_dir / "current").unlink(missing_ok=True)
            (agent_dir / "rolled-back").unlink(missing_ok=True)
            sync_directory(agent_dir)
            beneath.remove(agent_dir / "versions")
        if purge:
            for path in (agent_dir, self.workspace_dir(name), self.logs_dir(name)):
                beneath.remove(path)

    def venvs_in_use(self) -> set[str]:
        """The names of the virtual environments that some version refers to."""
        found = (self.state_dir / "agents").glob("*/versions/*/venv")
        return {text for text in map(_read, found) if text}

    def workspace_dir(self, name: str) -> Path:
        return self.state_dir / "workspaces" / _checked(name)

    def make_workspace(self, name: str) -> Path:
        """The agent's workspace, made when it is missing. Raises OrpheusError when something else is in its place.

        A sandbox that is given a symlink shows its agent where that leads.
        """
        path = self.workspace_dir(name)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if path.is_symlink() or not path.is_dir():
                raise OrpheusError(
                    "internal", f"{path} is no directory, so it is no workspace for {name}; move it away") from None
        return path

    def logs_dir(self, name: str) -> Path:
        return self.state_dir / "logs" / _checked(name)

    def workspace_info(self, name: str) -> beneath.Measured:
        """What the workspace holds, counted up to a million entries. Raises OrpheusError(not-found)."""
        try:
            return beneath.measure(self.workspace_dir(name))
        except OSError as error:
            raise self._no_workspace(name, error) from error

    def workspace_clean(self, name: str) -> beneath.Emptied:
        """Removes what the workspace holds, but for the sessions' saved state: that ends with its session.

        The directory itself stays: running workers have it mounted.
        """
        try:
            return beneath.empty(self.workspace_dir(name), keep=(SESSIONS_DIR, LOCKS_DIR))
        except OSError as error:
            raise self._no_workspace(name, error) from error

    def forget_session_state(self, name: str, session_id: str, before: float) -> None:
        """Deletes what `workspace.session` has saved for a session before that moment (seconds since the epoch).

        What is younger belongs to the session's next life. Nothing happens when there is nothing.
        """
        digest = hashlib.sha256(session_id.encode()).hexdigest()
        try:
            beneath.unlink(self.workspace_dir(name), f"{SESSIONS_DIR}/{digest[:2]}", f"{digest}.json", before)
        except FileNotFoundError:
            pass

    def _settle(self, name: str, number: int, lives: Callable[[str, int], bool]) -> None:
        """End the trial of a version whose deploy was killed: it had become current, or it goes."""
        if self.current(name) == number:
            self.set_current(name, number)
        elif self.current(name) is None or not lives(name, number):
            self.discard(name, number)

    def _no_workspace(self, name: str, error: OSError) -> OrpheusError:
        if isinstance(error, FileNotFoundError):
            return OrpheusError("not-found", f"{name} has no workspace; it gets one with its first deploy")
        return OrpheusError("internal", f"cannot open the workspace of {name}: {error.strerror}")

    def _agent_dir(self, name: str) -> Path:
        return self.state_dir / "agents" / _checked(name)

    def _version_dir(self, name: str, number: int) -> Path:
        return self._agent_dir(name) / "versions" / str(int(number))

    def _next_number(self, name: str) -> int:
        last = self._agent_dir(name) / "last"
        number = max([_number(last) or 0, *self.versions(name)]) + 1
        _write(last, str(number))
        return number


def _checked(name: str) -> str:
    if not AGENT_NAME.fullmatch(name):
        raise OrpheusError("invalid-request", f"{name[:80]!a} is not an agent's name")
    return name


def _write(path: Path, text: str) -> None:
    """Replaces a small file at once: readers, and a restart after a loss of power, see the old text or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(fd)
    reached("file-written")
    temporary.rename(path)
    sync_directory(path.parent)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""


def _number(path: Path) -> int | None:
    text = _read(path)
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise OrpheusError("internal", f"{path} should hold a number; deploy the agent again")
    return int(text)
