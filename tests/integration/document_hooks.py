"""Loaded by schemathesis (test_http_document.py): what requests need that no document can say, and a tally of them."""

import atexit
import json
import os
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import strategies

from orpheusd.doors.http.head import GZIP
from orpheusd.doors.http.run import CANCEL_ON_DISCONNECT, PARAM_HEADERS

#: What the test that started schemathesis has prepared.
HOUSE = json.loads(os.environ["TEST_HOUSE"])
BUNDLE = Path(HOUSE["bundle"]).read_bytes()
#: One good run in so many is asked for as a stream.
STREAMED = 2
TIMEOUT_S = 30.0

#: How often an operation was answered with a status, and how often a path with a method that it does not have.
answers: Counter[str] = Counter()
runs = count()
http = httpx.Client(base_url=HOUSE["http"], timeout=TIMEOUT_S, headers={"Authorization": f"Bearer {HOUSE['token']}"})


def deploy(_case: Any) -> httpx.Response:
    return http.post("/v1/deploy", content=BUNDLE, headers={"Content-Type": GZIP.decode()})


def open_session(case: Any) -> httpx.Response:
    return http.post(f"/v1/agents/{HOUSE['agent']}/run", json={
        "input": 1, "session_id": case.path_parameters["session_id"]})


#: What must be there for an operation to take it away, by the path parameters that name it.
FIRST = {
    ("undeploy", "fresh"): deploy,
    ("session.end", HOUSE["agent"], "ended"): open_session,
}


def name_of(case: Any) -> str:
    name: str = case.operation.definition.raw["operationId"]
    return name if case.method.lower() == case.operation.method else "another method"


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: dict[str, Any]) -> None:
    name = name_of(case)
    path = case.path_parameters or {}
    # What never ends is not waited for, and what the others need is not undeployed.
    if name == "run.retry" and path.get("run_id") in HOUSE["going"]:
        path["run_id"] = HOUSE["run"]
    if name == "run" and path.get("agent") == "busy":
        path["agent"] = HOUSE["agent"]
    if name == "undeploy" and path.get("agent") in (HOUSE["agent"], "busy"):
        path["agent"] = "fresh"
    if HOUSE["token"] and (first := FIRST.get((name, *path.values()))):
        first(case).raise_for_status()
    if name != "run" or not case.meta.generation.mode.is_positive:
        return
    headers = case.headers  # changed and not replaced: in a plain dict a check does not find what it takes out
    # Rules that no schema can state: a header and a field that say the same parameter say the same; who does not wait
    # for a run does not end it by leaving.
    for header, field in PARAM_HEADERS.items():
        if isinstance(case.body, dict) and field in case.body:
            headers.pop(header.decode(), None)
    if "prefer" in headers:
        headers.pop(CANCEL_ON_DISCONNECT.decode(), None)
    elif path.get("agent") == HOUSE["agent"] and next(runs) % STREAMED == 0:
        headers["accept"] = "text/event-stream"


@schemathesis.hook
def after_call(_context: Any, case: Any, response: Any) -> None:
    media_type = response.headers.get("content-type", ["none"])[0].partition(";")[0]
    answers[f"{name_of(case)} {response.status_code} {media_type}"] += 1


@atexit.register
def _tell() -> None:
    http.close()
    Path(HOUSE["tally"]).write_text(json.dumps(answers))


schemathesis.openapi.media_type(GZIP.decode(), strategies.one_of(strategies.just(BUNDLE), strategies.binary()))
