"""What stands before what needs the token, and before what does not: nothing at all."""

import hashlib

import pytest
from starlette.types import Receive, Scope, Send

from orpheusd.doors.http.answers import Refused
from orpheusd.doors.http.bearer import Bearer
from orpheusd.operations import Access


async def handler(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise AssertionError("nobody asks")


@pytest.mark.parametrize("guarded", [(), (Access.ADMIN,), (Access.READ, Access.RUN), tuple(Access)])
def test_what_is_not_guarded_is_the_handler_itself(guarded: tuple[Access, ...]) -> None:
    """So that a run costs the same as in a door that knows no token."""
    bearer = Bearer(b"", guarded)
    assert [access for access in Access if bearer.before(access, handler) is not handler] == list(guarded)


@pytest.mark.parametrize("digest", [None, b"", hashlib.sha256(b"other").digest()])
def test_nobody_has_a_token_that_there_is_not(digest: bytes | None) -> None:
    for sent in (b"", b"x"):
        with pytest.raises(Refused) as refused:
            Bearer(digest).check({b"authorization": b"Bearer " + sent})
        assert refused.value.status == (403 if sent or digest is None else 401)


def test_who_has_the_token_passes() -> None:
    Bearer(hashlib.sha256(b"right").digest()).check({b"authorization": b"bearer right"})
