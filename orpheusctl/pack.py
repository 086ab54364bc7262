"""An agent's folder as one tar.gz, the same bytes for the same files. It reads nothing outside the folder.

The daemon checks again what it unpacks; the limits here are its own, met before anything is sent.
"""

import fnmatch
import gzip
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

from orpheusd.errors import OrpheusError

#: The daemon unpacks no more than this; an agent's code is smaller, a home directory is not.
FILES_LIMIT = 10_000
SIZE_LIMIT_BYTES = 256 * 1024 * 1024
#: A packed agent of usual size stays in memory.
_SPOOL_BYTES = 8 * 1024 * 1024

_ALWAYS_IGNORED = (".git", "__pycache__", ".venv", "*.pyc")
_MANIFEST = "agent.yaml"
_IGNORE_FILE = ".orpheusignore"


class Bundle(NamedTuple):
    """A packed agent, open at its beginning. `files` is None for one that somebody else has packed."""

    stream: IO[bytes]
    size_bytes: int
    files: int | None


class Member(NamedTuple):
    """One thing to pack: its name in the bundle and the file it is read from."""

    name: str
    path: Path
    facts: os.stat_result


def pack(path: Path) -> Bundle:
    """The bundle of a folder, or the ready one in a file. Raises OrpheusError with what is wrong and where."""
    try:
        facts = path.stat()
    except OSError as error:
        raise OrpheusError("invalid-request", f"cannot deploy {path}: {error.strerror}") from None
    if stat.S_ISDIR(facts.st_mode):
        return _pack_folder(path)
    return _open_ready(path)


def members(folder: Path) -> Iterator[Member]:
    """What is packed of `folder`, sorted, parents first."""
    root = folder.resolve()
    patterns = [*_ALWAYS_IGNORED, *_read_patterns(folder / _IGNORE_FILE)]
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise _cannot(inside or ".", error.strerror or "unreadable") from None
        folders = []
        for entry in reversed(entries):
            name = f"{inside}/{entry.name}" if inside else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            if ignored(name, is_folder, patterns):
                continue
            yield _member(name, Path(entry.path), root)
            if is_folder:
                folders.append(name)
        waiting.extend(reversed(folders))


def ignored(name: str, is_folder: bool, patterns: list[str]) -> bool:
    """Whether a pattern matches `name`: `/` first binds it to the top, `/` last to folders, others match any part."""
    for pattern in patterns:
        bare = pattern.rstrip("/")
        if pattern.endswith("/") and not is_folder:
            continue
        if "/" in bare:
            if fnmatch.fnmatchcase(name, bare.lstrip("/")):
                return True
        elif fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], bare):
            return True
    return False


def _pack_folder(folder: Path) -> Bundle:
    if not (folder / _MANIFEST).is_file():
        raise OrpheusError("invalid-request", f"cannot deploy {folder}: it has no {_MANIFEST}. Name the folder that "
                                              f"holds it, or write one; `orpheusctl validate` checks it")
    with ExitStack() as unless_packed:
        stream = unless_packed.enter_context(tempfile.SpooledTemporaryFile(_SPOOL_BYTES))
        with (gzip.GzipFile(fileobj=stream, mode="wb", mtime=0, filename="") as packed,
              tarfile.open(fileobj=packed, mode="w") as archive):
            files = _add_all(archive, folder)
        size_bytes = stream.tell()
        stream.seek(0)
        unless_packed.pop_all()
    return Bundle(stream, size_bytes, files)


def _add_all(archive: tarfile.TarFile, folder: Path) -> int:
    """How many files were added. What is over the limits is refused before it is read."""
    files = size_bytes = 0
    for count, member in enumerate(members(folder), start=1):
        if stat.S_ISREG(member.facts.st_mode):
            files += 1
            size_bytes += member.facts.st_size
        if count > FILES_LIMIT or size_bytes > SIZE_LIMIT_BYTES:
            raise OrpheusError("too-large", f"cannot deploy {folder}: it holds more than {FILES_LIMIT} files or "
                                            f"{SIZE_LIMIT_BYTES // 2**20} MiB; name what the agent does not need "
                                            f"in {_IGNORE_FILE}")
        _add(archive, member)
    return files


def _add(archive: tarfile.TarFile, member: Member) -> None:
    info = tarfile.TarInfo(member.name)
    if stat.S_ISDIR(member.facts.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
        return
    info.mode = 0o755 if member.facts.st_mode & stat.S_IXUSR else 0o644
    info.size = member.facts.st_size
    try:
        with member.path.open("rb") as file:
            archive.addfile(info, file)
    except OSError as error:
        raise _cannot(member.name, error.strerror or str(error)) from None


def _member(name: str, path: Path, root: Path) -> Member:
    try:
        facts = path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            target = path.resolve(strict=True)
            facts = target.stat()
            if not target.is_relative_to(root):
                raise _cannot(name, f"it is a link that leaves the folder, to {path.readlink()}")
            if not stat.S_ISREG(facts.st_mode):
                raise _cannot(name, "it is a link to a folder; only links to files are packed")
            path = target
    except FileNotFoundError:
        raise _cannot(name, "it is a link to nothing" if path.is_symlink() else "it has just gone") from None
    except (OSError, RuntimeError) as error:
        raise _cannot(name, str(error)) from None
    if not (stat.S_ISREG(facts.st_mode) or stat.S_ISDIR(facts.st_mode)):
        raise _cannot(name, "it is neither a file nor a folder")
    return Member(name, path, facts)


def _open_ready(path: Path) -> Bundle:
    try:
        with tarfile.open(path, "r:gz") as archive:
            for number, info in enumerate(archive):
                if info.name.removeprefix("./") == _MANIFEST:
                    break
                if number >= FILES_LIMIT:
                    raise OrpheusError("too-large", f"cannot deploy {path}: it holds more than {FILES_LIMIT} files")
            else:
                raise OrpheusError("invalid-request", f"cannot deploy {path}: there is no {_MANIFEST} at its top; "
                                                      f"pack it with `tar -C FOLDER -czf {path.name} .`")
        stream = path.open("rb")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise OrpheusError("invalid-request", f"cannot deploy {path}: it is neither a folder nor a readable .tar.gz "
                                              f"({error})") from None
    return Bundle(stream, os.fstat(stream.fileno()).st_size, None)


def _read_patterns(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _cannot(_IGNORE_FILE, error.strerror or str(error)) from None
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith("!") for line in lines):
        raise OrpheusError("invalid-request", f"{_IGNORE_FILE}: a pattern cannot begin with `!`: what one leaves out, "
                                              f"no other brings back")
    return [line for line in lines if line and not line.startswith("#")]


def _cannot(name: str, why: str) -> OrpheusError:
    return OrpheusError("invalid-request", f"cannot pack {name!r}: {why}. Change it, or name it in {_IGNORE_FILE}")
