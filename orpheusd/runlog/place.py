"""Where a run log lies: the names of its files, and whether that is a place it may be kept in."""

import os
import re
import stat
from pathlib import Path

from orpheusd.errors import OrpheusError

#: SQLite's WAL needs shared memory and locks that hold; over a network neither does.
NETWORK_FILE_SYSTEMS = frozenset((
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gfs2", "ocfs2",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.rclone",
))  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")
#: How the kernel writes spaces and the like in a mount point.
_OCTAL = re.compile(r"\\([0-7]{3})")


def wal_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def shm_of(path: Path) -> Path:
    return path.with_name(path.name + "-shm")


def mark_of(path: Path) -> Path:
    return path.with_name(path.name + ".mark")


def reserve_of(path: Path) -> Path:
    return path.with_name(path.name + ".reserve")


def check(path: Path) -> None:
    """Raises OrpheusError in one clear line when the log cannot be kept at `path`. Makes what is there private."""
    folder = path.parent
    if not folder.is_dir():
        raise _unusable(path, f"{folder} is not a directory")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        raise _unusable(path, f"{folder} is not writable for uid {os.geteuid()}; change its owner or mode")
    kind = file_system(folder)
    if kind in NETWORK_FILE_SYSTEMS:
        raise _unusable(path, f"{folder} is on {kind}, a network file system; keep state on a local disk")
    for file in (path, wal_of(path), shm_of(path), mark_of(path), reserve_of(path)):
        try:
            found = file.lstat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise _unusable(path, f"{file} is not a regular file; move it away")
        if found.st_uid != os.geteuid():
            raise _unusable(
                path, f"{file} belongs to uid {found.st_uid} and this daemon runs as {os.geteuid()}; change its owner")
        if not os.access(file, os.R_OK | os.W_OK) or not found.st_mode & stat.S_IWUSR:
            raise _unusable(path, f"{file} is read-only; make it writable with `chmod u+w`")
        if found.st_mode & 0o077:
            file.chmod(0o600)


def file_system(folder: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that `folder` is on, or "" when the kernel does not say."""
    folder = folder.resolve()
    found, longest = "", -1
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = Path(_OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]))
        # Of two mounts on one point the later one counts.
        if folder.is_relative_to(point) and len(point.parts) >= longest:
            found, longest = after.split()[0], len(point.parts)
    return found


def sync_folder(folder: Path) -> None:
    """Make new and changed names in it survive a power failure."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _unusable(path: Path, why: str) -> OrpheusError:
    return OrpheusError("internal", f"cannot keep the run log {path}: {why}")
