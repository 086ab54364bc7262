"""The operations table, its check of parameters, and the page made from it."""

from pathlib import Path

import pytest

from orpheusd.errors import OrpheusError
from orpheusd.operations import BY_NAME, KINDS, OPERATIONS, check_params
from orpheusd.reference import page

ROOT = Path(__file__).resolve().parents[2]
RUN = BY_NAME["run"]


def test_the_page_is_what_the_table_makes() -> None:
    text = (ROOT / "docs/operations.md").read_text()
    assert text == page(text), "run: python -m orpheusd.reference"


def test_names_routes_and_commands_are_unique() -> None:
    names = [operation.name for operation in OPERATIONS]
    routes = [operation.http for operation in OPERATIONS if operation.http]
    commands = [operation.cli for operation in OPERATIONS if operation.cli]
    for given in (names, routes, commands):
        assert len(given) == len(set(given))


def test_every_parameter_has_a_kind() -> None:
    assert {param.kind for operation in OPERATIONS for param in operation.params} <= set(KINDS)


def test_defaults_are_filled_in() -> None:
    params = check_params(RUN, {"agent": "a", "input": None})
    assert params["input"] is None
    assert params["stream"] is False
    assert params["session_id"] is None


@pytest.mark.parametrize(("given", "says"), [
    ({"input": 1}, "needs `agent`"),
    ({"agent": "a"}, "needs `input`"),
    ({"agent": "A", "input": 1}, "`agent` must be"),
    ({"agent": 5, "input": 1}, "`agent` must be"),
    ({"agent": "a", "input": 1, "sesion_id": "x"}, "did you mean `session_id`"),
    ({"agent": "a", "input": 1, "timeout_s": 0}, "`timeout_s` must be"),
    ({"agent": "a", "input": 1, "timeout_s": float("nan")}, "`timeout_s` must be"),
    ({"agent": "a", "input": 1, "timeout_s": float("inf")}, "`timeout_s` must be"),
    ({"agent": "a", "input": 1, "timeout_s": True}, "`timeout_s` must be"),
    ({"agent": "a", "input": 1, "stream": 1}, "`stream` must be"),
    ({"agent": "a", "input": 1, "overlap": "both"}, "one of allow, queue, reject, interrupt"),
])
def test_wrong_parameters_are_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(OrpheusError, match=says) as caught:
        check_params(RUN, given)
    assert caught.value.code == "invalid-request"


def test_a_count_is_a_number_that_everybody_has_exactly() -> None:
    assert check_params(BY_NAME["run.list"], {"before": 2**53 - 1})["before"] == 2**53 - 1
    for count in (2**53, 2**63, 2**64 - 1, -1, 1.0, True):
        with pytest.raises(OrpheusError, match=r"`before` must be a whole number from 0 to 2\^53 - 1"):
            check_params(BY_NAME["run.list"], {"before": count})


@pytest.mark.parametrize("timeout_s", [5e-324, 1e-9, 1, 1.5e308])
def test_any_time_above_0_is_a_timeout(timeout_s: float) -> None:
    assert check_params(RUN, {"agent": "a", "input": 1, "timeout_s": timeout_s})["timeout_s"] == timeout_s


@pytest.mark.parametrize(("name", "most"), [("run.list", 1000), ("session.list", 1000), ("logs", 100_000)])
def test_there_is_a_most_that_one_may_ask_for_at_once(name: str, most: int) -> None:
    """What is listed is made on the loop that all callers share."""
    for limit in (0, most):
        assert check_params(BY_NAME[name], {"agent": "a", "limit": limit})["limit"] == limit
    for limit in (-1, most + 1, 2**64 - 1):
        with pytest.raises(OrpheusError, match=f"`limit` must be a whole number from 0 to {most}") as caught:
            check_params(BY_NAME[name], {"agent": "a", "limit": limit})
        assert caught.value.code == "invalid-request"


@pytest.mark.parametrize("id", [
    "", "a" * 129, "a\0b", "../x", ".", "-a", "_a", "a/b", "a b", "a\n", "a\r\n", "\u202eabc", "é", "e\u0301",
    "😀", "a%2fb?", "\ud800", "ａ", "a;b",
])  # fault 66
def test_bad_session_ids_are_refused(id: str) -> None:
    with pytest.raises(OrpheusError, match="session id"):
        check_params(RUN, {"agent": "a", "input": 1, "session_id": id})


@pytest.mark.parametrize("id", ["a", "0", "a" * 128, "user-123", "A.b_c:d@e-f", "u@example.org"])
def test_good_session_ids_are_accepted(id: str) -> None:
    assert check_params(RUN, {"agent": "a", "input": 1, "session_id": id})["session_id"] == id


@pytest.mark.parametrize("moment", [0, 1.5, 1_790_000_000, "2026-01-31T12:00:00Z", "2026-01-31t12:00:00.25+02:00"])
def test_a_moment_is_a_time_or_a_number(moment: object) -> None:
    assert check_params(BY_NAME["run.list"], {"since": moment})["since"] == moment


@pytest.mark.parametrize("moment", [
    -1, True, 1e300, float("nan"), "1h", "now", "", "2026-01-31", "2026-01-31T12:00:00", "2026-01-31T12:00:00Z\n"])
def test_anything_else_is_no_moment(moment: object) -> None:
    with pytest.raises(OrpheusError, match="`until` must be a moment: RFC 3339"):
        check_params(BY_NAME["run.list"], {"until": moment})
