"""The door as an ASGI application: the guard, then the routes, and the one place where a failure becomes an answer."""

from contextlib import suppress

from starlette.types import ASGIApp, Receive, Scope, Send

from orpheusd.doors.http.answers import ClientGone, send_error
from orpheusd.doors.http.body import BODY_READ
from orpheusd.doors.http.complaints import Complaints
from orpheusd.doors.http.head import HEAD, read_head
from orpheusd.doors.http.limits import Limits
from orpheusd.errors import OrpheusError

#: All a caller learns of a fault of ours; the log has the rest.
_INTERNAL = OrpheusError("internal", "the HTTP door failed; its log has the details")


class Door:
    """Invariant: every request is answered exactly once, or its client is gone; nothing is raised."""

    def __init__(self, routes: ASGIApp, limits: Limits, complaints: Complaints) -> None:
        self._routes = routes
        self._limits = limits
        self._complaints = complaints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            scope[HEAD] = read_head(scope, self._limits)
            await self._routes(scope, receive, send)
        except OrpheusError as error:
            await send_error(send, error, hang_up=_unread(scope))
        except ClientGone:
            pass
        except Exception as error:  # nobody foresaw it: the door lives on for the other callers
            self._complaints.failed("a request failed", error)
            with suppress(Exception):  # an answer may have begun; the server then cuts it off
                await send_error(send, _INTERNAL, hang_up=True)


def _unread(scope: Scope) -> bool:
    """Whether some of the request is still on its way, or may be."""
    return HEAD not in scope or (scope[HEAD].has_body and BODY_READ not in scope)
