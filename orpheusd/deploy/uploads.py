"""Bundles on their way in: pieces are appended to a file until the whole is deployed, dropped or forgotten.

It knows nothing of what the bytes are. Time comes from the clock it is given. The loop decides, a thread decodes and
writes: a piece has millions of bytes, and a disk may hang.
"""

import asyncio
import binascii
import math
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orpheusd.errors import OrpheusError

#: Compressed; a bundle may inflate to four times this.
LIMIT_BYTES = 64 * 1024 * 1024
LIMIT_UPLOADS = 8

#: A piece of a bundle; in base64 and with its envelope it fits a control frame several times.
PIECE_LIMIT_BYTES = 4 * 1024 * 1024

#: What is decoded between two writes, each of which lets the loop have its turn; whole groups of four characters.
_STRETCH = 64 * 1024

#: A sender that is silent for so long is gone.
LIFETIME_S = 600.0


@dataclass(slots=True)
class _Upload:
    path: Path
    size_bytes: int
    expires_at: float
    claimed: bool = False
    taking: bool = False


class Uploads:
    """The uploads under way. Invariant: at most `LIMIT_UPLOADS` files of at most `LIMIT_BYTES` in `directory`, each
    written to by one thread at a time and by nobody once it is claimed.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._uploads: dict[str, _Upload] = {}

    def __len__(self) -> int:
        return len(self._uploads)

    def begin(self) -> str:
        """The id of a new, empty upload. Raises OrpheusError(overloaded) when too many are under way."""
        self.expire()
        if len(self._uploads) >= LIMIT_UPLOADS:
            raise OrpheusError(
                "overloaded", f"cannot take another bundle: {LIMIT_UPLOADS} uploads are under way; try again later")
        upload_id = secrets.token_hex(16)
        path = self._directory / f"upload-{upload_id}.tar.gz"
        path.touch(mode=0o600, exist_ok=False)
        self._uploads[upload_id] = _Upload(path, 0, self._clock() + LIFETIME_S)
        return upload_id

    async def append(self, upload_id: str, encoded: str) -> int:
        """The size of the upload with a piece added, which comes in base64. Raises OrpheusError(not-found), (conflict)
        while another is being added, (too-large) for a piece that is; beyond the limit the upload is dropped as well.

        It is dropped too when the piece is no base64 (OrpheusError(invalid-request)) or the disk does not take all of
        it (OSError): a second try would add to a part.
        """
        upload = self._free(upload_id)
        size_bytes = len(encoded) // 4 * 3 - encoded[-2:].count("=")
        if size_bytes > PIECE_LIMIT_BYTES:
            raise OrpheusError("too-large", f"cannot take the piece: it may have {PIECE_LIMIT_BYTES} bytes")
        if upload.size_bytes + size_bytes > LIMIT_BYTES:
            self.drop(upload_id)
            raise OrpheusError(
                "too-large", f"cannot take the bundle: it is more than {LIMIT_BYTES // 2**20} MiB compressed; "
                "leave out data, virtual environments and caches")
        upload.taking = True
        try:
            await asyncio.to_thread(_write, upload.path, encoded, size_bytes)
        except FileNotFoundError:
            self.drop(upload_id)  # as it was already, meanwhile
        except ValueError as error:
            self.drop(upload_id)
            raise OrpheusError("invalid-request", f"cannot take the piece: it is not base64: {error}") from error
        except BaseException:
            self.drop(upload_id)
            raise
        finally:
            upload.taking = False
        if self._uploads.get(upload_id) is upload:  # else it is not found below
            upload.size_bytes += size_bytes
            upload.expires_at = self._clock() + LIFETIME_S
        return self._find(upload_id).size_bytes

    def open(self, upload_id: str) -> Path:
        """The file of an upload, to be read at once. Raises OrpheusError as `append` does."""
        return self._settled(upload_id).path

    def claim(self, upload_id: str) -> Path:
        """The file of an upload, which stays until `drop`, whoever leaves meanwhile.

        Nobody else can claim it, or add to it. Raises OrpheusError as `append` does.
        """
        upload = self._free(upload_id)
        upload.claimed = True
        upload.expires_at = math.inf
        return upload.path

    def abandon(self, upload_id: str) -> None:
        """Whoever began it has left: drop it, unless it is claimed."""
        upload = self._uploads.get(upload_id)
        if upload is not None and not upload.claimed:
            self.drop(upload_id)

    def drop(self, upload_id: str) -> None:
        upload = self._uploads.pop(upload_id, None)
        if upload is not None:
            upload.path.unlink(missing_ok=True)

    def expire(self) -> None:
        """Drops what nobody has touched for `LIFETIME_S`."""
        now = self._clock()
        for upload_id in [key for key, upload in self._uploads.items() if upload.expires_at <= now]:
            self.drop(upload_id)

    def _settled(self, upload_id: str) -> _Upload:
        upload = self._find(upload_id)
        if upload.taking:
            raise OrpheusError(
                "conflict", f"a piece of upload {upload_id} is still being written; wait for its answer")
        return upload

    def _free(self, upload_id: str) -> _Upload:
        upload = self._settled(upload_id)
        if upload.claimed:
            raise OrpheusError("conflict", f"upload {upload_id} is being deployed already; begin a new one")
        return upload

    def _find(self, upload_id: str) -> _Upload:
        self.expire()
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise OrpheusError(
                "not-found", f"there is no upload {upload_id[:32]!r}; it may have expired; begin a new one")
        return upload


def _write(path: Path, encoded: str, size_bytes: int) -> None:
    """Append the `size_bytes` that are `encoded` to the file. Raises ValueError when that is no base64, OSError."""
    text = encoded.encode("ascii")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)  # not made again when it was dropped meanwhile
    with os.fdopen(fd, "ab") as stream:
        written = sum(stream.write(binascii.a2b_base64(text[start : start + _STRETCH], strict_mode=True))
                      for start in range(0, len(text), _STRETCH))
    if written != size_bytes:
        raise ValueError("padding before the end, or too much of it")
