"""What workers say of runs: what is not JSON is not passed on, and what they tell of errors cannot be much."""

import json
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.operations import RESULT_LIMIT_BYTES
from orpheusd.said import ERROR_LIMITS, is_json, read_error

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=12)
#: Bytes that mean something in JSON, or must not be there.
PIECES = st.sampled_from([bytes([one]) for one in b'{}[],:"\\/019.-+eEu \t\r\x00\x1f\x7f\x80\xc3\xed\xff'])
CHANGES = st.lists(
    st.tuples(st.sampled_from(["insert", "remove", "replace"]), st.integers(0, 400), PIECES), max_size=3)
#: A number that may be more than a double holds, which orjson refuses and JSON does not.
HUGE = re.compile(rb"[eE]\+?\d{3}")


def decodes(payload: bytes) -> bool:
    """And is one line: a carriage return ends one too, where events are streamed."""
    if b"\r" in payload:
        return False
    try:
        orjson.loads(payload)
    except orjson.JSONDecodeError:
        return False
    return True


@given(VALUES, st.booleans(), CHANGES)
def test_what_is_json_is_what_can_be_decoded(value: Any, ascii: bool, changes: list[tuple[str, int, bytes]]) -> None:
    payload = bytearray(json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass"))
    for change, at, piece in changes:
        at %= len(payload) + 1
        payload[at:at + (change != "insert")] = b"" if change == "remove" else piece
    if not HUGE.search(payload):
        assert is_json(bytes(payload)) == decodes(bytes(payload)), payload


@pytest.mark.parametrize("payload", [
    b"", b" ", b"NaN", b"-Infinity", b'"\\ud800"', b'"\\udc00\\ud800"', b'"\xff"', b'"\xed\xa0\x80"', b'"\t"', b"01",
    b"1.", b"[1,]", b"{1:2}", b"1 2", b"null}", b'1},"id":2,"result":{"result":1', b"\xef\xbb\xbf1",
    b"[" * 100_000 + b"]" * 100_000], ids=lambda payload: repr(payload[:20]))
def test_what_is_not_json_is_not_passed_on(payload: bytes) -> None:
    assert not is_json(payload) and not decodes(payload)


def test_numbers_that_no_double_holds_are_json() -> None:
    assert is_json(b"[1e999,%d]" % 10**400)
    assert read_error(b'{"type":"E","message":"m","n":1e999}') == {}


def test_of_an_error_no_more_is_read_than_an_honest_worker_tells() -> None:
    longest = {name: "\x01" * limit for name, limit in ERROR_LIMITS.items()}
    assert read_error(orjson.dumps(longest)) == longest
    assert read_error(b'{"type":"E","message":"m","more":"%b"}' % (b"x" * RESULT_LIMIT_BYTES)) == {}
    assert read_error(b"[]") == {}
