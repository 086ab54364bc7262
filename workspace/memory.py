"""`workspace.session`: a dict that belongs to a session and outlives the worker that filled it.

It is loaded from the workspace when a run first touches it and saved, whole and durably, when that run succeeds;
a run that fails leaves what was there. Every run works on its own copy. Two runs of one session that both change
it are told apart by a generation number: the one that saves second fails with a conflict, and nothing is lost
silently. It knows nothing of workers or homes.
"""

import hashlib
import json
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from workspace import _runtime
from workspace.files import write_whole
from workspace.locks import lock

#: One session's state as JSON. A conversation fits many times; documents belong into files of their own.
LIMIT_BYTES = 1024 * 1024
DIRECTORY = ".sessions"


class NoSession(LookupError):
    """`workspace.session` was used in a run that came without a session id."""


class SessionConflict(Exception):
    """Another run of the session has saved its state since this one loaded it."""


class SessionTooLarge(ValueError):
    """The session's state is more than may be saved."""


NoSession.__module__ = SessionConflict.__module__ = SessionTooLarge.__module__ = "workspace"


class State:
    """One run's copy of its session's dict.

    Invariant: `data` is None until it is touched; `_generation` is that of the file it was loaded from, 0 for none;
    `saved` tells, once it was touched, whether there is a file.
    """

    def __init__(self, session_id: str) -> None:
        self.data: dict[str, Any] | None = None
        self.saved = False
        self._session_id = session_id
        self._generation = 0
        self._loaded = b"{}"

    def touch(self) -> dict[str, Any]:
        """The dict, loaded now if it was not."""
        if self.data is None:
            record = read(self._session_id)
            self._generation, self.data = record["generation"], record["data"]
            self._loaded = _encode(record["data"])
            self.saved = self._generation > 0
        return self.data

    def commit(self) -> None:
        """Save what has changed. Raises SessionConflict, SessionTooLarge, TypeError or ValueError; then nothing is."""
        if self.data is None:
            return
        encoded = _encode(self.data)
        if encoded == self._loaded:
            return
        if len(encoded) > LIMIT_BYTES:
            raise SessionTooLarge(
                f"workspace.session has {len(encoded)} bytes of JSON, at most {LIMIT_BYTES} are saved: put large data "
                "into files with workspace.save and keep their names here")
        file = file_of(self._session_id)
        with lock(f"session {file.stem}"):
            if read(self._session_id)["generation"] != self._generation:
                raise SessionConflict(
                    "another run of this session has changed workspace.session since this one loaded it; nothing of "
                    "this run's is saved (set `session.overlap: queue` to have the session's runs one at a time)")
            head = json.dumps({"session": self._session_id, "generation": self._generation + 1})
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, head.encode() + b"\n" + encoded)
        self.saved = True


class SessionDict(MutableMapping[str, Any]):
    """The session's dict of whoever asks. Outside Orpheus one dict in memory stands in for it, for unit tests.

    Invariant: it holds nothing of a run; every access goes to the state of the caller's own run.
    """

    __slots__ = ("_unbound",)

    def __init__(self) -> None:
        self._unbound: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self._data()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._data()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._data()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._data())

    def __len__(self) -> int:
        return len(self._data())

    def __repr__(self) -> str:
        return repr(self._data())

    def _data(self) -> dict[str, Any]:
        active = _runtime.active.get()
        if active is None:
            return self._unbound
        if active.state is None:
            raise NoSession("this run has no session id, so it has no workspace.session; send one with --session or "
                            "X-Session-ID")
        data: dict[str, Any] = active.state.touch()
        return data


def file_of(session_id: str) -> Path:
    """Where a session's state is kept. The id itself is never part of a path."""
    digest = hashlib.sha256(session_id.encode()).hexdigest()
    return _runtime.root() / DIRECTORY / digest[:2] / f"{digest}.json"


def saved(session_id: str) -> bool:
    """Whether there is saved state of this session."""
    return file_of(session_id).exists()


def forget(session_id: str) -> None:
    """Delete a session's saved state."""
    file_of(session_id).unlink(missing_ok=True)


def read(session_id: str) -> dict[str, Any]:
    """The saved record: `generation` and `data`, 0 and empty when there is none. Raises ValueError when damaged."""
    file = file_of(session_id)
    try:
        head, _, data = file.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return {"generation": 0, "data": {}}
    try:
        record = {"generation": int(json.loads(head)["generation"]), "data": json.loads(data)}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the saved state of this session is damaged ({file}: {error}); move it away") from error
    return record


def _encode(data: dict[str, Any]) -> bytes:
    """As JSON. Raises TypeError or ValueError with what to do."""
    try:
        return json.dumps(data, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise type(error)(f"workspace.session cannot be saved: {error}; it holds JSON values only") from None


session = SessionDict()
