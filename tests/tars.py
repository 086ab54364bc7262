"""Raw tar archives, block by block, with whatever a hostile sender could put into them; and what a tree looks like."""

import gzip
import hashlib
import stat
import tarfile
from pathlib import Path

MANIFEST = b"name: a\nruntime: python3\n"

#: Path, inode, time, mode and content of everything below a folder.
Snapshot = dict[str, tuple[int, int, int, str]]


def header(name: str | bytes, kind: bytes = tarfile.REGTYPE, size: int = 0, **facts: object) -> bytes:
    """One raw header block, with whatever is asked for."""
    raw = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, max(size, 0)
    for fact, value in facts.items():
        setattr(info, fact, value)
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[0:100] = raw[:100].ljust(100, b"\0")
    if size < 0:
        block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
    return checked(block)


def checked(block: bytearray) -> bytes:
    """The header block with its checksum made right."""
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def member(name: str | bytes, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **facts: object) -> bytes:
    return header(name, kind, len(data), **facts) + data + b"\0" * (-len(data) % 512)


def pax(kind: bytes = tarfile.XHDTYPE, **records: bytes) -> bytes:
    data = b""
    for key, value in records.items():
        rest = b" " + key.replace("__", ".").encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        data += str(length).encode() + rest
    return member("pax", data, kind)


def folder(name: str) -> bytes:
    return member(name, kind=tarfile.DIRTYPE, mode=0o755)


GOOD = member("agent.yaml", MANIFEST)
END = b"\0" * 1024


def packed(path: Path, tar: bytes) -> Path:
    path.write_bytes(gzip.compress(tar, 1))
    return path


def snapshot(root: Path) -> Snapshot:
    found: Snapshot = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(facts.st_mode) else ""
        found[str(path)] = (facts.st_ino, facts.st_mtime_ns, facts.st_mode, digest)
    facts = root.lstat()
    found["."] = (facts.st_ino, 0, facts.st_mode, "")
    return found
