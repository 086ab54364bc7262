"""The token of the HTTP door: a file in the state directory that only the daemon's user can read.

Whoever can read it may do what needs it, which may be everything. It is shown to nobody: a door is given its digest,
which tells a right token from a wrong one and is no token.
"""

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from orpheusd.errors import OrpheusError

#: 256 bits, as text that fits into a header.
TOKEN_BYTES = 32
_TOKEN = re.compile(r"[A-Za-z0-9_-]{43,128}", re.ASCII)


def token_file(state_dir: Path) -> Path:
    return state_dir / "token"


def make_token(state_dir: Path) -> Path:
    """Write a new token; the one before is none any more. Raises OrpheusError(permission-denied).

    It is the state directory's owner's, whoever makes it: root may do so for the daemon's user.
    """
    path = token_file(state_dir)
    new = path.with_name("token.new")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        new.unlink(missing_ok=True)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as stream:
            owner = state_dir.stat()
            if owner.st_uid != os.geteuid():
                os.fchown(fd, owner.st_uid, owner.st_gid)
            stream.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
            stream.flush()
            os.fsync(fd)
        new.rename(path)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise OrpheusError(
            "permission-denied", f"cannot write {path}: {error.strerror}; run this as the daemon's user") from error
    return path


def digest_of_token(state_dir: Path) -> bytes:
    """Raises OrpheusError(permission-denied) when there is no token that nobody else can know."""
    path = token_file(state_dir)
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), encoding="ascii") as stream:
            found = os.fstat(stream.fileno())
            text = stream.read(1024).strip()
    except FileNotFoundError:
        raise _unusable(f"there is no {path}") from None
    except (OSError, ValueError) as error:
        raise _unusable(f"{path} cannot be read ({error})") from None
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise _unusable(f"{path} is not this user's alone (mode 0600)")
    if not _TOKEN.fullmatch(text):
        raise _unusable(f"{path} holds no token of at least 43 characters of A-Z a-z 0-9 _ -")
    return hashlib.sha256(text.encode()).digest()


def _unusable(why: str) -> OrpheusError:
    return OrpheusError("permission-denied", f"what needs the token is refused over HTTP: {why}; `orpheusd "
                                             "--make-token` makes a new one, and a restart of the daemon takes it")
