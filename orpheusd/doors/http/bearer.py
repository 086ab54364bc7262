"""Who may make changes over HTTP: whoever sends the token, as RFC 6750 says. It knows the token's digest alone."""

import hashlib
import hmac
import logging

from orpheusd.doors.http.answers import Refused
from orpheusd.doors.http.complaints import Complaints

#: What a header may hold of a token; a longer one is no token of ours.
TOKEN_LIMIT_BYTES = 256
CHALLENGE = [(b"www-authenticate", b'Bearer realm="orpheus"')]


class Bearer:
    """Invariant: a token is compared in the same time whatever it is, and is neither kept nor told. That somebody had
    none, or a wrong one, is said in the log, as often as its limit lets it; the daemon is not asked."""

    def __init__(self, digest: bytes) -> None:
        self._digest = digest
        self._complaints = Complaints()  # its own: a flood of these keeps no fault of the door out of the log

    def check(self, fields: dict[bytes, bytes]) -> None:
        """Raises Refused: 401 when no token was sent, 403 when it is the wrong one."""
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            self._complaints.say("a change over HTTP was refused: it had no token", logging.WARNING)
            raise Refused(401, "permission-denied", "changes need the token of this daemon: send "
                          "`Authorization: Bearer TOKEN` with what is in the file `token` of its state directory",
                          CHALLENGE)
        sent = hashlib.sha256(token[:TOKEN_LIMIT_BYTES]).digest()
        if not hmac.compare_digest(sent, self._digest) or len(token) > TOKEN_LIMIT_BYTES:
            self._complaints.say("a change over HTTP was refused: its token is wrong", logging.WARNING)
            raise Refused(403, "permission-denied", "that is not the token of this daemon")
