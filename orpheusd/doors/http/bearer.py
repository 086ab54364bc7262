"""What over HTTP needs the token, and who has it: whoever sends it, as RFC 6750 says. It knows the digest alone."""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Collection

from starlette.types import Receive, Scope, Send

from orpheusd.doors.http.answers import Refused
from orpheusd.doors.http.complaints import Complaints
from orpheusd.doors.http.head import HEAD
from orpheusd.operations import Access

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What a header may hold of a token; a longer one is no token of ours.
TOKEN_LIMIT_BYTES = 256
CHALLENGE = [(b"www-authenticate", b'Bearer realm="orpheus"')]


class Bearer:
    """Invariant: a token is compared in the same time whatever it is, and is neither kept nor told. That somebody had
    none, or a wrong one, is said in the log, as often as its limit lets it; the daemon is not asked. What is of an
    access class in `guarded` needs it; without a digest there is no token, and all of that is refused."""

    def __init__(self, digest: bytes | None = None, guarded: Collection[Access] = ()) -> None:
        self.guarded = frozenset(guarded)
        self._digest = digest
        self._complaints = Complaints()  # its own: a flood of these keeps no fault of the door out of the log

    def before(self, access: Access, handler: Handler) -> Handler:
        """`handler`, behind the token where `access` needs it."""
        return WithToken(self, handler) if access in self.guarded else handler

    def check(self, fields: dict[bytes, bytes]) -> None:
        """Raises Refused: 401 when no token was sent, 403 when it is the wrong one, or there is none to be sent."""
        if self._digest is None:
            raise Refused(403, "permission-denied", "this needs the token of this daemon, which has none; "
                          "`orpheusd --make-token` makes one, and a restart of the daemon takes it")
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            self._complaints.say("a request over HTTP was refused: it had no token", logging.WARNING)
            raise Refused(401, "permission-denied", "this needs the token of this daemon: send "
                          "`Authorization: Bearer TOKEN` with what is in the file `token` of its state directory",
                          CHALLENGE)
        sent = hashlib.sha256(token[:TOKEN_LIMIT_BYTES]).digest()
        if not hmac.compare_digest(sent, self._digest) or len(token) > TOKEN_LIMIT_BYTES:
            self._complaints.say("a request over HTTP was refused: its token is wrong", logging.WARNING)
            raise Refused(403, "permission-denied", "that is not the token of this daemon")


class WithToken:
    """What needs the token: it is looked at before anything else of the request that its handler would."""

    def __init__(self, bearer: Bearer, handler: Handler) -> None:
        self._bearer = bearer
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._bearer.check(scope[HEAD].fields)
        await self._handler(scope, receive, send)
