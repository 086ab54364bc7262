"""Unpacks a bundle: the tar.gz of an agent's folder, sent by somebody who may be hostile.

All headers are read and judged before anything is written; then the members are written below a temporary
name, and the whole is renamed into place. What is refused leaves nothing behind. This file knows nothing of
what the files mean, but that agent.yaml is at the top.
"""

import os
import re
import secrets
import unicodedata
from pathlib import Path
from typing import BinaryIO, NamedTuple

from orpheusd.deploy.beneath import DIRECTORY, open_beneath, remove
from orpheusd.deploy.tarhead import Member, Tape, invalid, members, too_large
from orpheusd.deploy.yamldoc import LIMIT_BYTES as LIMIT_MANIFEST_BYTES
from orpheusd.errors import OrpheusError

MANIFEST = "agent.yaml"
REQUIREMENTS = "requirements.txt"

#: What one part of a name may be: nothing that a shell, a terminal or a log trips over.
NAME_PART = re.compile(r"[\w.@+-][\w .@+-]{0,240}")

#: The kernel's limit for one part of a name.
LIMIT_PART_BYTES = 255
LIMIT_NAME_BYTES = 1024
LIMIT_DEPTH = 16
LIMIT_MEMBERS = 10_000
LIMIT_BYTES = 256 * 1024 * 1024

#: Everything inflated: the files, and for each member its headers and padding.
LIMIT_INFLATED_BYTES = LIMIT_BYTES + LIMIT_MEMBERS * 4096


class Survey(NamedTuple):
    """What a bundle holds, as told by its headers."""

    manifest_text: str
    requirements: bool
    files: int
    size_bytes: int


def survey(bundle: Path) -> Survey:
    """Judges every header of `bundle` without writing anything.

    Raises OrpheusError(invalid-request | too-large) that names the member and the rule it breaks.
    """
    with bundle.open("rb") as stream:
        return _survey(stream)


def read_manifest_text(bundle: Path) -> str:
    """The text of the bundle's agent.yaml. Raises as `survey` does."""
    return survey(bundle).manifest_text


def unpack(bundle: Path, target: Path) -> None:
    """Writes the members of `bundle` below `target`, which must not exist yet: all of them, on disk, or nothing.

    Raises OrpheusError(invalid-request | too-large) that names the member and the rule it breaks.
    """
    if os.path.lexists(target):
        raise FileExistsError(f"{target} exists")
    with bundle.open("rb") as stream:
        _survey(stream)
        stream.seek(0)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        temporary.mkdir(mode=0o755)
        try:
            root = os.open(temporary, DIRECTORY)
            try:
                _write(stream, root)
            finally:
                os.close(root)
            temporary.rename(target)
            sync_directory(target.parent)
        except BaseException as error:
            remove(temporary)
            if isinstance(error, OSError):
                raise OrpheusError("internal", f"cannot unpack: {error.strerror}") from error
            raise


def sync_directory(path: Path) -> None:
    """Makes what was created, renamed or removed in the directory `path` last through a loss of power."""
    fd = os.open(path, DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Names:
    """The names admitted so far. Invariant: no two of them are one on a file system that folds case or accents."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.size_bytes = 0
        self._folders: set[str] = set()
        self._members: set[str] = set()
        self._count = 0
        self._spelled: dict[str, str] = {}

    def admit(self, member: Member) -> str:
        """The path of `member` below the top, "" for the top itself. Raises OrpheusError for a broken rule."""
        self._count += 1
        if self._count > LIMIT_MEMBERS:
            raise too_large(member.name, f"the bundle holds more than {LIMIT_MEMBERS} files and folders")
        self.size_bytes += member.size_bytes
        if self.size_bytes > LIMIT_BYTES:
            raise too_large(member.name, f"the files of the bundle are more than {LIMIT_BYTES} bytes")
        path = member.name.removeprefix("./")
        if member.directory:
            path = path.removesuffix("/")
            if path in ("", "."):
                return ""
        parts = _parts(path)
        for depth in range(1, len(parts)):
            self._admit_folder("/".join(parts[:depth]), path)
        if path in self._members or path in (self.files if member.directory else self._folders):
            raise invalid(path, "is in the bundle twice")
        self._members.add(path)
        if member.directory:
            self._admit_folder(path, path)
        else:
            self._spell(path)
            self.files.add(path)
        return path

    def _admit_folder(self, folder: str, path: str) -> None:
        if folder in self._folders:
            return
        if folder in self.files:
            raise invalid(path, "lies in something that is a file")
        self._spell(folder)
        self._folders.add(folder)

    def _spell(self, path: str) -> None:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        first = self._spelled.setdefault(folded, path)
        if first != path:
            raise invalid(path, f"is in the bundle twice, spelled differently ({first!a})")


def _parts(path: str) -> list[str]:
    parts = path.split("/")
    try:
        length_bytes = len(path.encode())
        longest_bytes = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        raise invalid(path, "is not a UTF-8 name") from None
    if path.startswith("/"):
        raise invalid(path, "is an absolute path")
    if ".." in parts:
        raise invalid(path, "leads out of the folder")
    if "" in parts or "." in parts:
        raise invalid(path, "has an empty part in its name")
    if len(parts) > LIMIT_DEPTH:
        raise invalid(path[:100], f"is more than {LIMIT_DEPTH} folders deep")
    if length_bytes > LIMIT_NAME_BYTES or longest_bytes > LIMIT_PART_BYTES:
        raise invalid(path[:100], "has too long a name")
    for part in parts:
        if not NAME_PART.fullmatch(part):
            raise invalid(path, f"has a name that is not allowed ({ascii(part)[:80]}); "
                          "letters, digits, _ . @ + - and inner spaces are, at most 241 in a part; rename it")
    return parts


def _survey(stream: BinaryIO) -> Survey:
    names = _Names()
    tape = Tape(stream, LIMIT_INFLATED_BYTES)
    manifest: bytes | None = None
    for member in members(tape):
        path = names.admit(member)
        if path == MANIFEST and not member.directory:
            if member.size_bytes > LIMIT_MANIFEST_BYTES:
                raise too_large(path, f"is {member.size_bytes} bytes; at most {LIMIT_MANIFEST_BYTES} are allowed")
            manifest = b"".join(tape.data_of(member))
        else:
            for _ in tape.data_of(member):
                pass
    if manifest is None:
        raise _no_manifest(names.files)
    try:
        text = manifest.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = manifest[: error.start].count(b"\n") + 1
        raise invalid(MANIFEST, f"line {line} is not UTF-8 text; save it as UTF-8") from None
    return Survey(text, REQUIREMENTS in names.files, len(names.files), names.size_bytes)


def _no_manifest(files: set[str]) -> OrpheusError:
    if not files:
        return invalid("", "the bundle holds no files")
    inner = sorted(path for path in files if path.endswith(f"/{MANIFEST}"))
    where = f" (there is {inner[0]}: pack the content of that folder, not the folder)" if inner else ""
    return invalid("", f"the bundle has no {MANIFEST} at its top{where}")


def _write(stream: BinaryIO, root: int) -> None:
    """The members of a surveyed bundle below `root`. Every rule is applied again: the file may have changed."""
    names = _Names()
    tape = Tape(stream, LIMIT_INFLATED_BYTES)
    made = {""}
    for member in members(tape):
        path = names.admit(member)
        _make_folders(root, path if member.directory else path.rpartition("/")[0], made)
        if member.directory:
            continue
        fd = open_beneath(root, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            for piece in tape.data_of(member):
                _write_all(fd, piece)
            os.fchmod(fd, 0o755 if member.executable else 0o644)
            os.fsync(fd)
        finally:
            os.close(fd)
    for folder in sorted(made, reverse=True):
        fd = open_beneath(root, folder, DIRECTORY) if folder else os.dup(root)
        try:
            os.fchmod(fd, 0o755)
            os.fsync(fd)
        finally:
            os.close(fd)


def _make_folders(root: int, path: str, made: set[str]) -> None:
    """Makes `path` and every folder above it that is not yet in `made`."""
    if path in made:
        return
    above, _, leaf = path.rpartition("/")
    _make_folders(root, above, made)
    fd = open_beneath(root, above, DIRECTORY) if above else os.dup(root)
    try:
        os.mkdir(leaf, 0o755, dir_fd=fd)
    finally:
        os.close(fd)
    made.add(path)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
