"""/openapi.json against the tables it is made from."""

import re
from typing import Any

import pytest

from orpheusd.doors.http.openapi import document
from orpheusd.doors.http.run import PARAM_HEADERS
from orpheusd.doors.http.schemas import RESULTS
from orpheusd.errors import CODES
from orpheusd.operations import BY_NAME, OPERATIONS, Access, Operation

ROUTED = [one for one in OPERATIONS if one.http]


def described(operation: Operation) -> dict[str, Any]:
    assert operation.http
    found: dict[str, Any] = document()["paths"][operation.http[1]][operation.http[0].lower()]
    return found


def test_every_served_operation_has_the_schema_of_its_result() -> None:
    served = {one.name for one in ROUTED if one.access is not Access.ADMIN}
    assert set(RESULTS) == served - {"metrics"}


@pytest.mark.parametrize("operation", ROUTED, ids=lambda operation: operation.name)
def test_every_parameter_has_one_place(operation: Operation) -> None:
    entry = described(operation)
    assert entry["operationId"] == operation.name
    assert operation.http
    in_path = [one["name"] for one in entry["parameters"] if one["in"] == "path"]
    assert in_path == re.findall(r"{(\w+)}", operation.http[1])
    assert all(one["required"] for one in entry["parameters"] if one["in"] == "path")
    if operation.name != "run" and operation.access is not Access.ADMIN:
        by_header = {"stream"} if operation.name == "run.retry" else set()
        assert {one["name"] for one in entry["parameters"]} == {param.name for param in operation.params} - by_header


def test_run_takes_headers_and_a_body() -> None:
    entry = described(BY_NAME["run"])
    headers = {one["name"].lower() for one in entry["parameters"] if one["in"] == "header"}
    assert headers == {name.decode() for name in (*PARAM_HEADERS, b"prefer", b"x-orpheus-cancel-on-disconnect")}
    body = entry["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["input"]
    assert set(body["properties"]) == {
        "input", "session_id", "affinity", "overlap", "require", "timeout_s", "idempotency_key"}
    statuses = {code: outcome.http_status for code, outcome in CODES.items()}
    assert {str(status) for status in statuses.values()} <= set(entry["responses"])


@pytest.mark.parametrize("guarded", [(), (Access.ADMIN,), (Access.READ, Access.RUN), tuple(Access)])
def test_what_needs_the_token_says_so_and_is_served(guarded: tuple[Access, ...]) -> None:
    for operation in ROUTED:
        assert operation.http
        entry = document(guarded)["paths"][operation.http[1]][operation.http[0].lower()]
        needs = operation.access in guarded
        assert (entry.get("security") == [{"token": []}], "401" in entry["responses"]) == (needs, needs)
        assert ("200" in entry["responses"]) == (needs or operation.access is not Access.ADMIN)


def test_a_change_promises_no_success() -> None:
    for operation in ROUTED:
        responses = described(operation)["responses"]
        assert ("200" in responses) == (operation.access is not Access.ADMIN)
        assert "403" in responses


def test_every_reference_leads_somewhere() -> None:
    whole = document()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [found for item in value.values() for found in references(item)]
        return [found for item in value for found in references(item)] if isinstance(value, list) else []

    found = set(references(whole))
    assert found
    for reference in found:
        target: Any = whole
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
