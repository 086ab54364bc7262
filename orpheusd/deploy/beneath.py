"""Opens, measures and empties what lies below a directory, and can be led nowhere else.

What is below may belong to somebody hostile who is changing it at this moment: every path is relative to an
open directory, no symlink is ever followed, nothing recurses, and few descriptors are open at a time.
"""

import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

#: The number of openat2 in asm-generic/unistd.h, the same on every architecture it was added to.
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x02, 0x04, 0x08

#: What a kernel before 5.6, or a system call filter that does not know it, answers to openat2.
_NOT_TO_BE_HAD = (errno.ENOSYS, errno.EPERM)

#: Opens a directory itself and never what a symlink of its name points at.
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

#: Rounds over one directory that somebody goes on filling before it is left to him.
_ROUNDS = 100

_libc = ctypes.CDLL(None, use_errno=True)


class Measured(NamedTuple):
    """What a tree holds. `complete` is false when it was too large or too deep to count to the end."""

    files: int
    size_bytes: int
    complete: bool


class Emptied(NamedTuple):
    """What was removed: files (all that is not a directory) and their bytes; `left` could not be removed."""

    files: int
    size_bytes: int
    left: int


def open_beneath(root: int, path: str, flags: int, mode: int = 0) -> int:
    """A descriptor of `path` below the directory `root`. Raises OSError (ELOOP, EXDEV) for any way out of it."""
    try:
        return _openat2(root, path, flags | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno not in _NOT_TO_BE_HAD:
            raise
    return open_by_parts(root, path, flags, mode)


def open_by_parts(root: int, path: str, flags: int, mode: int = 0) -> int:
    """The same without openat2: each directory is opened by itself, and none may be a symlink."""
    *parents, leaf = path.split("/")
    if any(part in ("", ".", "..") for part in (*parents, leaf)):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    here = os.dup(root)
    try:
        for part in parents:
            deeper = os.open(part, DIRECTORY, dir_fd=here)
            os.close(here)
            here = deeper
        return os.open(leaf, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=here)
    finally:
        os.close(here)


def unlink(directory: Path, folder: str, name: str, before: float) -> None:
    """Removes the file `name` in `folder`, a path below `directory`, if it was last changed before that moment.

    Raises OSError, also for any way out of the directory.
    """
    root = os.open(directory, DIRECTORY)
    try:
        below = open_beneath(root, folder, DIRECTORY)
        try:
            if os.stat(name, dir_fd=below, follow_symlinks=False).st_mtime < before:
                os.unlink(name, dir_fd=below)
        finally:
            os.close(below)
    finally:
        os.close(root)


def measure(path: Path, limit_entries: int = 1_000_000, limit_depth: int = 100) -> Measured:
    """Files and bytes below the directory `path`. A descriptor is open per level, hence `limit_depth`."""
    count = _Count(limit_entries)
    levels = [_Level(os.open(path, DIRECTORY))]
    try:
        count.scan(levels[0])
        while levels and not count.full:
            level = levels[-1]
            if not level.directories:
                os.close(levels.pop().fd)
            elif len(levels) >= limit_depth:
                count.complete = False
                level.directories.clear()
            else:
                try:
                    fd = os.open(level.directories.pop(), DIRECTORY, dir_fd=level.fd)
                except OSError:
                    continue  # gone by now, or no directory any more
                levels.append(_Level(fd))
                count.scan(levels[-1])
    finally:
        for level in levels:
            os.close(level.fd)
    return Measured(count.files, count.size_bytes, count.complete and not count.full)


def empty(path: Path, keep: Collection[str] = ()) -> Emptied:
    """Removes everything below the directory `path`, which stays: it may be mounted elsewhere.

    Directories in it that `keep` names stay too.

    Inner directories are moved up before they are emptied, so that no depth is too deep.
    """
    root = os.open(path, DIRECTORY)
    broom = _Broom(root, f".orpheus-removed-{secrets.token_hex(4)}")
    try:
        _, broom.left = broom.sweep(root)
        broom.waiting = [name for name in broom.waiting if name not in keep]
        while broom.waiting:
            broom.remove_directory(broom.waiting.pop())
        return Emptied(broom.files, broom.size_bytes, broom.left)
    finally:
        os.close(root)


def remove(path: Path) -> None:
    """Removes `path` and everything below it; nothing there is fine. Raises OSError when something stays."""
    try:
        if stat.S_ISDIR(path.lstat().st_mode):
            empty(path)
            path.rmdir()
        else:
            path.unlink()
    except FileNotFoundError:
        pass


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(root: int, path: str, flags: int, mode: int) -> int:
    how = _How(flags, mode, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    fd = int(_libc.syscall(
        ctypes.c_long(_OPENAT2), ctypes.c_int(root), ctypes.c_char_p(os.fsencode(path)), ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how))))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return fd


class _Level:
    """An open directory and those of its directories that are still to be visited."""

    __slots__ = ("directories", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.directories: list[str] = []


@dataclass(slots=True)
class _Count:
    """Running totals of `measure`. Invariant: never more than `limit_entries` entries are looked at."""

    limit_entries: int
    entries: int = 0
    files: int = 0
    size_bytes: int = 0
    complete: bool = True
    full: bool = False

    def scan(self, level: _Level) -> None:
        with os.scandir(level.fd) as listing:
            for entry in listing:
                if self.entries >= self.limit_entries:
                    self.full = True
                    return
                self.entries += 1
                if entry.is_dir(follow_symlinks=False):
                    level.directories.append(entry.name)
                else:
                    self.files += 1
                    self.size_bytes += _size_bytes(level.fd, entry.name)


@dataclass(slots=True)
class _Broom:
    """Running totals of `empty`. Invariant: `waiting` names directories directly below `root`."""

    root: int
    prefix: str
    files: int = 0
    size_bytes: int = 0
    left: int = 0
    moved: int = 0
    waiting: list[str] = field(default_factory=list)

    def sweep(self, directory: int) -> tuple[int, int]:
        """Removes what is directly in `directory`: how many entries went away, and how many could not.

        Its directories become waiting.
        """
        gone = stuck = 0
        with os.scandir(directory) as listing:
            for entry in listing:
                try:
                    if not entry.is_dir(follow_symlinks=False):
                        size_bytes = _size_bytes(directory, entry.name)
                        os.unlink(entry.name, dir_fd=directory)
                        self.files += 1
                        self.size_bytes += size_bytes
                    elif directory == self.root:
                        self.waiting.append(entry.name)
                        continue
                    else:
                        self._move_up(directory, entry.name)
                    gone += 1
                except OSError:
                    stuck += 1  # or changed since it was listed; a further round sees what it is now
        return gone, stuck

    def remove_directory(self, name: str) -> None:
        for _ in range(_ROUNDS):
            try:
                fd = _open_directory(name, self.root)
            except FileNotFoundError:
                return
            except OSError:  # no directory any more
                self._unlink(name)
                return
            try:
                gone, _ = self.sweep(fd)
            finally:
                os.close(fd)
            try:
                os.rmdir(name, dir_fd=self.root)
                return
            except OSError:
                if not gone:
                    break
        self.left += 1

    def _move_up(self, directory: int, name: str) -> None:
        self.moved += 1
        new = f"{self.prefix}-{self.moved}"
        try:
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=self.root)
        except PermissionError:
            os.close(_open_directory(name, directory))
            os.rename(name, new, src_dir_fd=directory, dst_dir_fd=self.root)
        self.waiting.append(new)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self.root)
            self.files += 1
        except OSError:
            self.left += 1


def _open_directory(name: str, parent: int) -> int:
    """A descriptor of a directory, made readable and writable first where its owner took that away."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=parent)
        if os.fstat(fd).st_mode & stat.S_IRWXU == stat.S_IRWXU:
            return fd
        os.fchmod(fd, stat.S_IRWXU)
        return fd
    except PermissionError:
        pass
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        Path(f"/proc/self/fd/{handle}").chmod(stat.S_IRWXU)
    finally:
        os.close(handle)
    return os.open(name, DIRECTORY, dir_fd=parent)


def _size_bytes(directory: int, name: str) -> int:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
