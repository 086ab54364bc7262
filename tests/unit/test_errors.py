"""The error table: each code has the numbers of the design, and an error says how it is to be told."""

import pytest

from orpheusd.errors import CODES, OrpheusError, Outcome

#: Code, HTTP status, exit code of orpheusctl, and whether asking again later makes sense.
DESIGN = [
    ("invalid-request", 400, 2, False),
    ("permission-denied", 403, 77, False),
    ("not-found", 404, 1, False),
    ("conflict", 409, 1, False),
    ("session-busy", 409, 1, False),
    ("context-not-warm", 409, 1, False),
    ("too-large", 413, 2, False),
    ("session-queue-full", 429, 75, True),
    ("cancelled", 499, 130, False),
    ("handler-failed", 500, 1, False),
    ("unserialisable-result", 500, 1, False),
    ("internal", 500, 70, False),
    ("worker-crashed", 502, 70, False),
    ("overloaded", 503, 75, True),
    ("draining", 503, 75, True),
    ("quarantined", 503, 75, True),
    ("timed-out", 504, 75, False),
]


@pytest.mark.parametrize(("code", "status", "exit_code", "again"), DESIGN)
def test_a_code_has_its_numbers(code: str, status: int, exit_code: int, again: bool) -> None:
    error = OrpheusError(code, "why")
    assert (error.outcome.http_status, error.outcome.exit_code) == (status, exit_code)
    assert (error.retry_after_s is not None) == again


def test_there_is_no_other_code() -> None:
    """`unreachable` is the client's own: no door ever says it."""
    assert set(CODES) == {code for code, *_ in DESIGN} | {"unreachable"}
    assert CODES["unreachable"].exit_code == 69


def test_an_unknown_code_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError, match="no-such-code"):
        OrpheusError("no-such-code", "why")


def test_an_error_is_its_message() -> None:
    error = OrpheusError("not-found", "there is no agent x", {"agent": "x"})
    assert str(error) == error.message == "there is no agent x"
    assert error.details == {"agent": "x"}
    assert OrpheusError("not-found", "gone").details == {}


def test_a_stated_time_comes_before_that_of_the_table() -> None:
    assert OrpheusError("overloaded", "full").retry_after_s == 1
    assert OrpheusError("overloaded", "full", {"retry_after_s": 7}).retry_after_s == 7
    assert OrpheusError("conflict", "soon", {"retry_after_s": 3}).retry_after_s == 3
    assert OrpheusError("overloaded", "full", {"retry_after_s": "soon"}).retry_after_s == 1


def test_exit_codes_fit_into_a_byte_and_none_is_success() -> None:
    assert all(isinstance(outcome, Outcome) and 0 < outcome.exit_code < 256 for outcome in CODES.values())
    assert all(400 <= outcome.http_status < 600 for outcome in CODES.values())
