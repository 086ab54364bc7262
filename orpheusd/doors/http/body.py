"""Receives request bodies: counted, not believed, and each with a deadline. It knows nothing of what they say."""

import asyncio

from starlette.types import Receive, Scope

from orpheusd.doors.http.answers import ClientGone, Refused
from orpheusd.doors.http.head import HEAD, Head
from orpheusd.doors.http.limits import Limits
from orpheusd.errors import OrpheusError

#: Set in the scope of a request whose body was read to its end.
BODY_READ = "orpheus.body_read"
#: Set in the scope of a request that arrived whole: there is nothing to wait for.
WHOLE = "orpheus.whole"


class Bodies:
    """Invariant: the bodies on their way in are at most `limits.bodies_bytes` together, each at most
    `limits.body_bytes`, and each at most `limits.body_deadline_s` on its way.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held_bytes = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body. Raises OrpheusError (too-large, overloaded), Refused (408) and ClientGone."""
        head: Head = scope[HEAD]
        if head.body_bytes is not None and head.body_bytes > self._limits.body_bytes:
            raise self._too_large()
        body = await (self._collect(receive) if WHOLE in scope else self._collect_in_time(receive))
        scope[BODY_READ] = True
        return body

    async def _collect_in_time(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self._limits.body_deadline_s):
                return await self._collect(receive)
        except TimeoutError:
            raise Refused(408, "invalid-request",
                          f"the body did not arrive within {self._limits.body_deadline_s:g} s") from None

    async def _collect(self, receive: Receive) -> bytes:
        pieces: list[bytes] = []
        size_bytes = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if piece := message["body"]:
                    pieces.append(piece)
                    size_bytes += len(piece)
                    self._held_bytes += len(piece)
                    if size_bytes > self._limits.body_bytes:
                        raise self._too_large()
                    if self._held_bytes > self._limits.bodies_bytes:
                        raise OrpheusError("overloaded", "too many large requests are arriving; try again later")
                if not message["more_body"]:
                    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self._held_bytes -= size_bytes

    def _too_large(self) -> OrpheusError:
        return OrpheusError("too-large", f"the body is longer than {self._limits.body_bytes} bytes")
