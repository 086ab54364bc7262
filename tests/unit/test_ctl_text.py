"""orpheusctl/escape.py, units.py and the input of a run: text in, text out."""

import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusctl import escape, inputs, units
from orpheusctl.output import flattened
from orpheusd.errors import OrpheusError
from orpheusd.operations import INPUT_LIMIT_BYTES


@given(st.text(st.characters(), max_size=50))
def test_no_control_character_survives_one_line(text: str) -> None:
    safe = escape.one_line(text)
    assert all(char.isprintable() or char.isspace() or ord(char) > 0x9F for char in safe)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000 for char in safe)
    assert len(safe.splitlines()) <= 1


@pytest.mark.parametrize(("text", "safe"), [
    ("plain ünïcode 🙂", "plain ünïcode 🙂"),
    ("\x1b[31mred", "\\x1b[31mred"),
    ("a\nb\tc\r", "a\\x0ab\\x09c\\x0d"),
    ("\x9b2J\x7f", "\\x9b2J\\x7f"),
    ("\u202egnp.exe", "\\u202egnp.exe"),
])
def test_what_is_escaped_and_what_is_left(text: str, safe: str) -> None:
    assert escape.one_line(text) == safe


@pytest.mark.parametrize(("text", "ago_s"), [("90s", 90), ("15m", 900), ("1h", 3600), ("1.5h", 5400), ("7d", 604800)])
def test_an_age_is_a_moment_before_now(text: str, ago_s: float) -> None:
    moment = units.moment(text)
    assert isinstance(moment, float) and abs(time.time() - ago_s - moment) < 5


@pytest.mark.parametrize(("text", "moment"), [
    ("1790000000", 1_790_000_000.0), ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"), ("h", "h"), ("", "")])
def test_other_moments_are_left_as_they_are(text: str, moment: object) -> None:
    assert units.moment(text) == moment


def test_lines_keep_their_ends_and_nothing_else() -> None:
    assert escape.lines("a\tb\n\x1b]0;title\x07\r\n") == "a       b\n\\x1b]0;title\\x07\\x0d\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3))


@given(VALUES)
def test_escaped_json_means_the_same(value: object) -> None:
    text = escape.json_text(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value
    assert escape.one_line(text) == text


@pytest.mark.parametrize(("key", "value", "shown"), [
    ("rss_bytes", 999, "999 B"), ("rss_bytes", 3_400_000, "3.4 MB"), ("rss_bytes", 812_345, "812 kB"),
    ("size_bytes", 999_999, "1.0 MB"), ("idle_s", 0.0412, "41 ms"), ("idle_s", 59.9, "60 s"),
    ("uptime_s", 61, "1 min 1 s"),
    ("uptime_s", 7325, "2 h 2 min"), ("uptime_s", 200_000, "2 d 7 h"), ("cpu_percent", 3.14159, "3.1 %"),
    ("ready", True, "yes"), ("home", None, "-"), ("workers", 3, "3"), ("name", "a\x1bb", "a\\x1bb"),
    ("labels", [1], "[1]"),
])
def test_fields_read_with_their_units(key: str, value: object, shown: str) -> None:
    assert units.human(key, value) == shown


def test_moments_for_scripts_are_utc() -> None:
    assert units.iso(1_700_000_000.1239) == "2023-11-14T22:13:20.123Z"


def test_facts_have_paths_that_can_be_grepped() -> None:
    answer = {"queue": {"depth": 0}, "workers": [{"id": "w-1", "pid": 7}], "tags": [], "name": "a"}
    assert list(flattened(answer)) == [("queue.depth", 0), ("workers.w-1.pid", 7), ("tags", []), ("name", "a")]


@pytest.mark.parametrize(("argument", "value"), [
    (None, {}), ("{}", {}), ('{"a": [1, 2.5, null, "ü"]}', {"a": [1, 2.5, None, "ü"]}), ("  5 ", 5), ('"-"', "-"),
])
def test_an_input_is_read(argument: str | None, value: object) -> None:
    assert inputs.read(argument) == value


@pytest.mark.parametrize(("argument", "says"), [
    ("{query: 1}", "line 1, column 2: .*single quotes"),
    ("[1,\n 2", "line 2"),
    ("hello", "quoted twice"),
    ("", "it is empty"),
    ("NaN", "NaN is not JSON"), ("[-Infinity]", "-Infinity is not JSON"), ("1e999", "number that JSON cannot carry"),
    ("[" * 200_000, "nested too deeply|not JSON"),
    ("1" * 5000, "not JSON"),
    ('"\udc80"', "not UTF-8"), ('"\\ud800"', "not valid Unicode"),
    ("@/nonexistent/input.json", "cannot read the input from '/nonexistent/input.json': No such file"),
    ("@", "cannot read the input"),
])
def test_an_input_that_is_not_json_is_refused(argument: str, says: str) -> None:
    with pytest.raises(OrpheusError, match=says) as caught:
        inputs.read(argument)
    assert caught.value.outcome.exit_code == 2


def test_an_input_from_stdin_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"a": 1}\n')))
    assert inputs.read("-") == {"a": 1}
    (tmp_path / "q.json").write_bytes(b"[1]")
    assert inputs.read(f"@{tmp_path}/q.json") == [1]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(OrpheusError, match="closed"):
        inputs.read("-")


def test_the_limit_is_counted_and_read_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    def stdin(data: bytes) -> io.BytesIO:
        stream = io.BytesIO(data)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        return stream

    stdin(b'"' + b"x" * (INPUT_LIMIT_BYTES - 2) + b'"')
    assert len(inputs.read("-")) == INPUT_LIMIT_BYTES - 2
    stream = stdin(b'"' + b"x" * (INPUT_LIMIT_BYTES * 2))
    with pytest.raises(OrpheusError) as caught:
        inputs.read("-")
    assert caught.value.code == "too-large"
    assert stream.tell() == INPUT_LIMIT_BYTES + 1


def test_an_input_that_grows_when_it_is_sent_is_refused_before() -> None:
    grows = b"[" + b",".join([b"1e15"] * (INPUT_LIMIT_BYTES // 6)) + b"]"
    with pytest.raises(OrpheusError) as caught:
        inputs.decode(grows, "stdin", "")
    assert caught.value.code == "too-large"
