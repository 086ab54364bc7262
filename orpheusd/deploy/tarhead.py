"""Reads a tar.gz strictly: files and directories only, one meaning for each name, every byte counted.

The library decodes a header block; what may follow a block is decided here, because the library's reader
follows whatever an archive says: extended headers of any size, sparse maps, sizes stated twice. This file
knows nothing of which names are good.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from orpheusd.errors import OrpheusError

BLOCK_BYTES = 512

#: An extended header holds times, owners and a name of at most 1 KiB.
LIMIT_EXTENSION_BYTES = 16 * 1024

#: Zeros after the last member: tar fills the last record, of 10 KiB by default.
LIMIT_TRAILER_BYTES = 1024 * 1024

#: Inflated bytes for each compressed one. Source code reaches 10, a bomb 1000.
LIMIT_RATIO = 100

#: Small archives may compress better than `LIMIT_RATIO`; they cannot do harm.
RATIO_FREE_BYTES = 1024 * 1024

CHUNK_BYTES = 256 * 1024

_RECORD = re.compile(rb"([0-9]{1,5}) ([^=\n]{1,200})=", re.DOTALL)

#: Keys of extended headers that change nothing here. `path` is used; any other (size, linkpath, GNU.sparse.*)
#: would change what the archive means, and is refused.
_HARMLESS = re.compile(
    rb"mtime|atime|ctime|uid|gid|uname|gname|comment|charset|hdrcharset|(SCHILY|LIBARCHIVE|APPLE|MSWINDOWS)\..*")

_LONG_NAME, _EXTENDED, _GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE
_KINDS = {
    tarfile.LNKTYPE: "a hard link", tarfile.SYMTYPE: "a symlink", tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a named pipe", tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGLINK: "a link",
}


class Member(NamedTuple):
    """A file or directory as its header states it. Its data, `size_bytes` long, comes next on the tape."""

    name: str
    directory: bool
    executable: bool
    size_bytes: int


class Tape:
    """Inflates a stream in order. Invariant: never gives a byte beyond `limit_bytes`, nor beyond `LIMIT_RATIO`."""

    def __init__(self, stream: BinaryIO, limit_bytes: int) -> None:
        self._stream = stream
        self._inflate = gzip.GzipFile(fileobj=stream, mode="rb")
        self._limit_bytes = limit_bytes
        self._read_bytes = 0

    def read(self, size_bytes: int, member: str = "") -> bytes:
        """The next bytes: fewer than asked for only at the end. Ask for no more than `CHUNK_BYTES`."""
        try:
            data = self._inflate.read(size_bytes)
            while 0 < len(data) < size_bytes and (more := self._inflate.read(size_bytes - len(data))):
                data += more
        except EOFError:
            raise invalid(member, "the bundle ends too early; send it again") from None
        except gzip.BadGzipFile as error:
            raise invalid(member, f"the bundle is not a whole tar.gz file ({error})") from None
        except zlib.error:
            raise invalid(member, "the bundle is damaged; send it again") from None
        self._read_bytes += len(data)
        if self._read_bytes > self._limit_bytes:
            raise too_large(member, f"the bundle holds more than {self._limit_bytes} bytes")
        if self._read_bytes > RATIO_FREE_BYTES and self._read_bytes > LIMIT_RATIO * self._stream.tell():
            raise too_large(member, f"the bundle inflates to more than {LIMIT_RATIO} times its size")
        return data

    def exactly(self, size_bytes: int, member: str = "") -> bytes:
        data = self.read(size_bytes, member)
        if len(data) != size_bytes:
            raise invalid(member, "the bundle ends too early; send it again")
        return data

    def data_of(self, member: Member) -> Iterator[bytes]:
        """The data of the member whose header was read last, in pieces; read it to the end."""
        left = member.size_bytes
        while left:
            piece = self.exactly(min(left, CHUNK_BYTES), member.name)
            left -= len(piece)
            yield piece
        self.exactly(-member.size_bytes % BLOCK_BYTES, member.name)


def members(tape: Tape) -> Iterator[Member]:
    """Each member in order; the caller reads `tape.data_of(member)` before it asks for the next.

    Raises OrpheusError(invalid-request | too-large).
    """
    last = name = ""
    seen: set[bytes] = set()
    while True:
        block = tape.read(BLOCK_BYTES, last)
        info = _header(block, last)
        if info is None:
            _trailer(tape)
            return
        if info.type in (_LONG_NAME, _EXTENDED, _GLOBAL):
            if info.type in seen:
                raise invalid(last, "the bundle holds two extended headers for one member")
            seen.add(info.type)
            data = _extension(tape, info, last)
            stated = _long_name(data) if info.type == _LONG_NAME else _path_of(data, info.type == _EXTENDED)
            if name and stated:
                raise invalid(stated, "has two names")
            name = stated or name
            continue
        last = name or _plain_name(block, info)
        yield _member(info, last)
        name = ""
        seen.clear()


def invalid(member: str, why: str) -> OrpheusError:
    return _refused("invalid-request", member, why)


def too_large(member: str, why: str) -> OrpheusError:
    return _refused("too-large", member, why)


def _refused(code: str, member: str, why: str) -> OrpheusError:
    if not member:
        return OrpheusError(code, f"cannot unpack: {why}")
    shown = member[:200].encode("unicode_escape", "surrogatepass").decode("ascii")
    return OrpheusError(code, f"cannot unpack: `{shown}`: {why}", {"member": shown})


def _header(block: bytes, last: str) -> tarfile.TarInfo | None:
    """The decoded block, or None at the end of the archive."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if len(block) == BLOCK_BYTES and not any(block):
            return None
        if len(block) < BLOCK_BYTES and (last or not block):
            raise invalid(last, "the bundle ends too early; send it again") from None
        if not last:
            raise invalid("", "the bundle holds no tar archive; it must be the tar.gz of an agent's folder") from None
        raise invalid(last, f"what follows it is not a tar header ({error})") from None


def _member(info: tarfile.TarInfo, name: str) -> Member:
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
        raise invalid(name, f"is {_KINDS.get(info.type, 'neither a file nor a folder')}; "
                      "a bundle may hold files and folders only")
    directory = info.isdir()
    if info.size < 0 or (directory and info.size):
        raise invalid(name, f"has the impossible size {info.size}")
    return Member(name, directory, bool(info.mode & 0o100), info.size)


def _plain_name(block: bytes, info: tarfile.TarInfo) -> str:
    for start, end in ((0, 100), (345, 500)):
        if block[start:end].rstrip(b"\0").count(b"\0"):
            raise invalid(info.name, "holds a NUL in its name")
    return info.name


def _extension(tape: Tape, info: tarfile.TarInfo, last: str) -> bytes:
    if not 0 <= info.size <= LIMIT_EXTENSION_BYTES:
        raise invalid(last, f"is followed by an extended header of {info.size} bytes")
    data = tape.exactly(info.size, last)
    tape.exactly(-info.size % BLOCK_BYTES, last)
    return data


def _long_name(data: bytes) -> str:
    name = data.removesuffix(b"\0").decode("utf-8", "surrogateescape")
    if not name or "\0" in name:
        raise invalid(name, "holds a NUL in its name" if name else "the bundle holds an empty name")
    return name


def _path_of(data: bytes, may_name: bool) -> str:
    """The `path` of an extended header, or "". Records are `LENGTH KEY=VALUE\\n`, LENGTH counting all of it."""
    path = ""
    while data:
        match = _RECORD.match(data)
        end = int(match[1]) if match else 0
        if match is None or end <= match.end() or data[end - 1:end] != b"\n":
            raise invalid(path, "the bundle holds a malformed extended header")
        if match[2] == b"path" and may_name:
            path = data[match.end():end - 1].decode("utf-8", "surrogateescape")
        elif not _HARMLESS.fullmatch(match[2]):
            key = match[2].decode("utf-8", "backslashreplace")
            raise invalid(path, f"the bundle holds an extended header that is not allowed ({key})")
        data = data[end:]
    return path


def _trailer(tape: Tape) -> None:
    """Reads to the end, so that the checksum of the whole is verified; only zeros may be there."""
    read_bytes = 0
    while piece := tape.read(CHUNK_BYTES):
        read_bytes += len(piece)
        if any(piece) or read_bytes > LIMIT_TRAILER_BYTES:
            raise invalid("", "the bundle holds something after its end")
