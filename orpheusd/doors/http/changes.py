"""Deploying over HTTP, where changes are served: a bundle is passed on in pieces as it arrives, counted and with a
deadline. What does not arrive whole is forgotten.
"""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from orpheusd.doors.http.answers import ClientGone, Refused, send_answer
from orpheusd.doors.http.body import BODY_READ
from orpheusd.doors.http.client import ControlClient
from orpheusd.doors.http.head import GZIP, HEAD, media_type_of
from orpheusd.doors.http.limits import Limits
from orpheusd.errors import OrpheusError

#: Of one upload this much is held here; with base64 it fits the control protocol's frame.
PIECE_BYTES = 1024 * 1024
#: Values of variables, which are secrets: a header gets into no log and no command line.
ENV_HEADER = b"x-orpheus-env"


class Deploy:
    """`POST /v1/deploy`: the body is the bundle, the answer is the daemon's."""

    def __init__(self, client: ControlClient, limits: Limits) -> None:
        self._client = client
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = scope[HEAD]
        if scope["query_string"]:
            raise OrpheusError("invalid-request", "deploy takes no query string, only a body and headers")
        if media_type_of(head.fields) != GZIP:
            raise Refused(415, "invalid-request", "the body must be a tar.gz, with Content-Type: application/gzip")
        env = _env(head.fields)
        if head.body_bytes is not None and head.body_bytes > self._limits.bundle_bytes:
            raise self._too_large()
        upload: dict[str, Any] = {}
        try:
            async with asyncio.timeout(self._limits.bundle_deadline_s):
                async for piece in self._pieces(receive):
                    data = base64.b64encode(piece).decode()
                    told = orjson.loads(await self._client.call("bundle.put", {**upload, "data": data}))
                    upload = {"upload_id": told["upload_id"]}
        except (OrpheusError, ClientGone, TimeoutError) as error:
            if upload:
                with suppress(OrpheusError):  # dropped there already, or the daemon is gone and it with it
                    await self._client.call("bundle.drop", upload)
            if isinstance(error, TimeoutError):
                raise Refused(408, "invalid-request", "the bundle did not arrive within "
                              f"{self._limits.bundle_deadline_s:g} s") from None
            raise
        scope[BODY_READ] = True
        if not upload:
            raise OrpheusError("invalid-request", "the body must be a tar.gz of an agent's folder")
        await send_answer(send, 200, await self._client.call("deploy", {**upload, "env": env}))

    async def _pieces(self, receive: Receive) -> AsyncIterator[bytes]:
        """The body as it arrives, none larger than PIECE_BYTES and one message of the server's."""
        piece, size_bytes, more = bytearray(), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message["more_body"]
            size_bytes += len(message["body"])
            if size_bytes > self._limits.bundle_bytes:
                raise self._too_large()
            piece += message["body"]
            if len(piece) >= PIECE_BYTES or (piece and not more):
                yield bytes(piece)
                piece.clear()

    def _too_large(self) -> OrpheusError:
        return OrpheusError("too-large", f"the bundle is longer than {self._limits.bundle_bytes} bytes")


def _env(fields: dict[bytes, bytes]) -> dict[str, str]:
    try:
        env = orjson.loads(fields.get(ENV_HEADER, b"{}"))
    except orjson.JSONDecodeError:
        env = None
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        raise OrpheusError("invalid-request", f"{ENV_HEADER.decode()} must be a JSON object of strings, in ASCII")
    return env
