"""Exceptions as data: bounded, ASCII, and never an exception of their own."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.worker import failures
from orpheusd.worker.failures import MESSAGE_LIMIT_BYTES, TRACEBACK_LIMIT_BYTES, describe, refusal, safe_text
from orpheusd.worker.handler import UnusableHandler


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit("no")

    __repr__ = __str__


class HostileText(str):
    """A str whose methods lie."""

    def __getitem__(self, _key: Any) -> str:
        raise RuntimeError

    def encode(self, *_args: Any, **_options: Any) -> bytes:
        raise RuntimeError

    def __str__(self) -> str:
        return self


class Sly(Exception):
    def __str__(self) -> str:
        return HostileText("sly")


def caught(error: BaseException) -> dict[str, str]:
    try:
        raise error
    except BaseException as same:
        payload = describe(same)
    assert payload.isascii() and b"\n" not in payload
    value: dict[str, str] = json.loads(payload)
    assert list(value) == ["type", "message", "traceback"]
    assert len(value["message"].encode()) <= MESSAGE_LIMIT_BYTES
    assert len(value["traceback"].encode()) <= TRACEBACK_LIMIT_BYTES
    return value


@pytest.mark.parametrize(("error", "type", "message"), [
    (ValueError("plain"), "ValueError", "plain"),
    (KeyError("key"), "KeyError", "'key'"),
    (Hostile(), f"{__name__}.Hostile", "(no message: its __str__ raised SystemExit)"),
    (Sly(), f"{__name__}.Sly", "sly"),
    (MemoryError(), "MemoryError", ""),
    (SystemExit(3), "SystemExit", "3"),
    (ValueError("\ud800\0\n\x1b"), "ValueError", "\\ud800\0\n\x1b"),
    (UnusableHandler("ours"), "UnusableHandler", "ours"),
])
def test_type_and_message(error: BaseException, type: str, message: str) -> None:
    value = caught(error)
    assert (value["type"], value["message"]) == (type, message)


def test_the_traceback_is_the_agents() -> None:
    assert "test_worker_failures.py" in caught(ValueError("x"))["traceback"]
    assert caught(UnusableHandler("ours"))["traceback"] != "", "it went through the agent's code"
    assert json.loads(describe(UnusableHandler("ours")))["traceback"] == ""


def test_ten_megabytes_are_cut() -> None:
    value = caught(ValueError("m" * 10_000_000))
    assert value["message"].endswith("... (cut)") and len(value["message"]) == MESSAGE_LIMIT_BYTES
    assert value["traceback"].startswith("Traceback")


def test_a_long_chain_ends() -> None:
    error: BaseException = ValueError("first")
    for number in range(3000):
        later = ValueError(f"number {number}")
        later.__cause__ = error
        error = later
    assert "number 2999" in caught(error)["traceback"]


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    assert "second" in caught(first)["traceback"]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups came with Python 3.11")
def test_groups_show_their_members() -> None:
    trace = caught(ExceptionGroup("several", [ValueError("one"), KeyError("two")]))["traceback"]
    assert "ValueError: one" in trace and "KeyError: 'two'" in trace


def test_a_message_may_be_put_better() -> None:
    value = json.loads(describe(SystemExit(3), "it left", "Exit"))
    assert (value["type"], value["message"]) == ("Exit", "it left")


def test_a_refusal_has_no_traceback() -> None:
    assert json.loads(refusal("Kind", "why")) == {"type": "Kind", "message": "why", "traceback": ""}


@given(st.text(alphabet=st.characters()), st.integers(20, 200))
def test_safe_text_is_bounded_and_sound(text: str, limit_bytes: int) -> None:
    safe = safe_text(text, limit_bytes)
    assert len(safe.encode()) <= limit_bytes
    if len(text.encode("utf-8", "backslashreplace")) <= limit_bytes:
        assert safe == text.encode("utf-8", "backslashreplace").decode()


def test_safe_repr_copes() -> None:
    assert failures.safe_repr(3) == "3"
    class Broken:
        def __repr__(self) -> str:
            raise OSError
    assert failures.safe_repr(Broken()) == "<Broken>"
