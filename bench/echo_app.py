"""The baselines' application: Starlette, one route, the answer shape of a run, and nothing behind it.

`python -m bench.echo_app PORT` serves it with Hypercorn on uvloop, as the HTTP door is served; uvicorn imports `app`.
"""

import asyncio
import sys
import time
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/v1/agents/echo/run"


async def run(request: Request) -> Response:
    begun = time.perf_counter()
    body: dict[str, Any] = orjson.loads(await request.body())
    session = request.headers.get("x-session-id")
    answer = {
        "request_id": "r-0123456789abcdef", "result": body["input"], "worker_id": "w-000000-1",
        "duration_ms": (time.perf_counter() - begun) * 1e3,
        "session": {"id": session, "context": "warm", "turn": 1},
    }  # fmt: skip
    return Response(orjson.dumps(answer), media_type="application/json")


app = Starlette(routes=[Route(PATH, run, methods=["POST"])])


def main() -> None:
    # here, as uvicorn's own environment has neither
    import uvloop  # noqa: PLC0415
    from hypercorn.asyncio import serve  # noqa: PLC0415
    from hypercorn.config import Config  # noqa: PLC0415

    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.loglevel = "ERROR"
    uvloop.run(serve(app, config, shutdown_trigger=asyncio.Event().wait))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
