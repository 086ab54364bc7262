"""Bundles on their way in: pieces are appended to a file until the whole is deployed, dropped or forgotten.

It knows nothing of what the bytes are. Time comes from the clock it is given.
"""

import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orpheusd.errors import OrpheusError

#: Compressed; a bundle may inflate to four times this.
LIMIT_BYTES = 64 * 1024 * 1024
LIMIT_UPLOADS = 8

#: A sender that is silent for so long is gone.
LIFETIME_S = 600.0


@dataclass(slots=True)
class _Upload:
    path: Path
    size_bytes: int
    expires_at: float
    claimed: bool = False


class Uploads:
    """The uploads under way. Invariant: at most `LIMIT_UPLOADS` files of at most `LIMIT_BYTES` in `directory`."""

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

    def append(self, upload_id: str, data: bytes) -> int:
        """The size of the upload with `data` added. Beyond the limit the upload is dropped and too-large raised.

        It is dropped as well when the disk does not take all of `data` (OSError): a second try would add to a part.
        """
        upload = self._find(upload_id)
        if upload.size_bytes + len(data) > LIMIT_BYTES:
            self.drop(upload_id)
            raise OrpheusError(
                "too-large", f"cannot take the bundle: it is more than {LIMIT_BYTES // 2**20} MiB compressed; "
                "leave out data, virtual environments and caches")
        try:
            with upload.path.open("ab") as stream:
                stream.write(data)
        except OSError:
            self.drop(upload_id)
            raise
        upload.size_bytes += len(data)
        upload.expires_at = self._clock() + LIFETIME_S
        return upload.size_bytes

    def open(self, upload_id: str) -> Path:
        """The file of an upload, to be read at once. Raises OrpheusError(not-found)."""
        return self._find(upload_id).path

    def claim(self, upload_id: str) -> Path:
        """The file of an upload, which stays until `drop`, whoever leaves meanwhile. Raises OrpheusError(not-found).

        Nobody else can claim it.
        """
        upload = self._find(upload_id)
        if upload.claimed:
            raise OrpheusError("conflict", f"upload {upload_id} is being deployed already; begin a new one")
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

    def _find(self, upload_id: str) -> _Upload:
        self.expire()
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise OrpheusError(
                "not-found", f"there is no upload {upload_id[:32]!r}; it may have expired; begin a new one")
        return upload
