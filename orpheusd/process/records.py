"""What is written down of each template, so that the next daemon can find it and believe it.

A template and its workers outlive the daemon; the file tells whose they are, and the secret from which their nonces
are made. It lies in the runtime directory, outside of what any sandbox sees, and goes with the template.
"""

import hmac
import json
import os
import secrets
from pathlib import Path
from typing import NamedTuple

from orpheusd.process.plan import Plan

_WRITTEN, _UNFINISHED = ".json", ".new"


class Record(NamedTuple):
    """One template: which version of which agent it forks, the secret behind every nonce of its sandbox, and the
    memory that one of its workers may use (0: any)."""

    template: str
    agent: str
    version: int
    secret: str
    memory_bytes: int = 0

    def nonce(self, id: str) -> str:
        """What the template or worker `id` proves itself with, to this daemon and to the next."""
        return hmac.new(bytes.fromhex(self.secret), id.encode(), "sha256").hexdigest()[:32]


def new_record(template: str, plan: Plan) -> Record:
    return Record(template, plan.agent, plan.version, secrets.token_hex(32), plan.memory_bytes)


class Records:
    """The directory of them. Invariant: a record is whole or not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, record: Record) -> None:
        """Raises OSError."""
        path = self._path(record.template)
        temporary = path.with_suffix(_UNFINISHED)
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            json.dump(record._asdict(), stream)
        temporary.rename(path)

    def forget(self, template: str) -> None:
        self._path(template).unlink(missing_ok=True)

    def all(self) -> list[Record]:
        """Every record, the oldest first: of two templates of one version the later serves, the other was replaced by
        it. What is malformed is removed: nobody could be believed by it.

        Raises OSError when one cannot be read: its template may live, and without it would get a rival.
        """
        found = []
        for template in self.templates():
            try:
                record = Record(**json.loads(self._path(template).read_bytes()))
                found.append(record._replace(version=int(record.version), memory_bytes=int(record.memory_bytes)))
            except (ValueError, TypeError):
                self.forget(template)
        return found

    def templates(self) -> list[str]:
        """Whom there are records of, whatever is in them, the oldest first. What was not written to its end goes: a
        template is started after that. Raises OSError.
        """
        paths = list(self._directory.iterdir())  # not glob(), to which a directory that cannot be read is empty
        for path in paths:
            if path.suffix == _UNFINISHED:
                path.unlink(missing_ok=True)
        written = [path for path in paths if path.suffix == _WRITTEN]
        return [path.stem for path in sorted(written, key=lambda path: (path.lstat().st_mtime_ns, path.name))]

    def _path(self, template: str) -> Path:
        return self._directory / f"{template}{_WRITTEN}"
