"""The daemon's own log: whatever is said in it, a line is a line and nothing in it is obeyed by a terminal."""

import json
import logging
import sys

import pytest

from orpheusd.__main__ import _JsonFormatter, _TextFormatter

HOSTILE = "\x1b[2Jred\x07\r\u202e\x9b31m\x00"


def record(text: str) -> logging.LogRecord:
    """A record with a message and an exception, both of which say `text`."""
    try:
        raise ValueError(text)
    except ValueError:
        return logging.LogRecord("orpheusd", logging.ERROR, __file__, 1, "%s", (text,), sys.exc_info())


def test_no_control_character_is_written_raw() -> None:
    # fault 67
    line = _TextFormatter().format(record(HOSTILE))
    assert {char for char in line if not char.isprintable()} == {"\n"}
    assert line.count("\\x1b[2Jred") == 2, "it is still to be read, in the message and in the traceback"


@pytest.mark.parametrize("text", [HOSTILE, "two\nlines"])
def test_json_is_one_line(text: str) -> None:
    # fault 67
    line = _JsonFormatter().format(record(text))
    assert line.isprintable() and line.isascii()
    assert json.loads(line)["message"] == text


def test_a_message_cannot_begin_a_line_of_its_own() -> None:
    # fault 67
    line = _TextFormatter().format(logging.LogRecord(
        "orpheusd", logging.INFO, __file__, 1, "%s", ("done\n2026-01-01T00:00:00 CRITICAL orpheusd: forged",), None))
    assert "\n" not in line
