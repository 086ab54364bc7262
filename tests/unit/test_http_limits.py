"""The door's limits as flags, and what it says when everything goes wrong at once."""

import logging

import pytest

from orpheusd.doors.http.complaints import WINDOW_LIMIT, Complaints
from orpheusd.doors.http.limits import Limits, with_overrides
from orpheusd.errors import OrpheusError


def test_overrides_have_the_types_of_the_defaults() -> None:
    limits = with_overrides(["body_bytes=100", "grace_s=0.5"])
    assert limits == Limits()._replace(body_bytes=100, grace_s=0.5)


@pytest.mark.parametrize("text", [
    "nonsense=1", "body_bytes", "body_bytes=x", "body_bytes=1.5", "grace_s=0", "grace_s=-1", "grace_s=nan", "count=1",
    "_fields=1"])
def test_wrong_overrides_are_refused(text: str) -> None:
    with pytest.raises(OrpheusError) as caught:
        with_overrides([text])
    assert caught.value.code == "invalid-request"


def test_a_fault_of_every_request_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    for number in range(1000):
        complaints.failed("a request failed", ValueError(f"fault {number}"))
    assert len(caplog.records) == WINDOW_LIMIT
    assert caplog.records[0].levelno == logging.ERROR
    assert "fault 0" in caplog.text and "fault 500" not in caplog.text
