"""How one input is made of others: by bytes, and by the values of a JSON line. Pure; the dice are handed in.

What comes out is decided by the dice alone, so that a seed tells a whole stream of inputs.
"""

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

#: No input is longer: what a decoder does with size is the fault tests' business, and one line of theirs.
LIMIT_BYTES = 16 * 1024

#: What has broken readers before: of numbers, of text, of names, of nothing at all.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, -2**63, 1e-9, 1.5, 1e300, -1e300,
    5e-324, "", " ", "\0", "a\nb", "\x1b[31m", "\u202e", "é", "\ud800", "x" * 129, "x" * 4000, "../..", "/etc/passwd",
    "-1", "null", "NaN", [], [[]], {}, {"": None}, [1, "a", None], {"type": "hello"}, {"jsonrpc": "2.0"})
RAW = (
    b"", b"\0", b"\n", b"\r\n", b"\r\n\r\n", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u0000", b"{", b"}",
    b"[" * 200, b'"', b":", b",", b"1" * 5000, b"1e999", b"-0", b"0x10", b"NaN", b"Infinity", b"\xef\xbb\xbf", b"%00",
    b"%2e%2e%2f")


def mutated(dice: random.Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """`data`, changed once to six times: cut, repeated, joined with one of `others`, or with one of `words` put in."""
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        data = dice.choice(_BYTES)(dice, data, others, words)
    return data[:LIMIT_BYTES]


def mutated_lines(dice: random.Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """The same for lines of which most are JSON: lines are moved, and the values in them replaced; sometimes bytes."""
    if dice.random() < 0.2:
        return mutated(dice, data, others, words)
    lines = data.split(b"\n")
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(lines))
        kind = dice.random()
        if kind < 0.6:
            lines[at] = _changed_line(dice, lines[at], words)
        elif kind < 0.7:
            lines.insert(at, dice.choice(lines))
        elif kind < 0.8 and others:
            lines.insert(at, dice.choice(dice.choice(others).split(b"\n")))
        elif kind < 0.9 and len(lines) > 1:
            del lines[at]
        else:
            lines[at] = mutated(dice, lines[at], others, words)
    return b"\n".join(lines)[:LIMIT_BYTES]


def _changed_line(dice: random.Random, line: bytes, words: Sequence[bytes]) -> bytes:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return mutated(dice, line, (), words)
    text = json.dumps(changed(dice, value), ensure_ascii=dice.random() < 0.5)
    return text.encode("utf-8", "surrogatepass")


def changed(dice: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it, anywhere, replaced, left out, doubled or nested."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key = dice.choice(sorted(value))
        kind = dice.random()
        if kind < 0.75:
            return {**value, key: changed(dice, value[key])}
        if kind < 0.85:
            return {name: one for name, one in value.items() if name != key}
        if kind < 0.95:
            return {**value, dice.choice(sorted(value)): value[key]}
        return {**value, str(dice.choice(VALUES))[:40]: dice.choice(VALUES)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        return [*value[:at], changed(dice, value[at]), *value[at + dice.randrange(2):]]
    if isinstance(value, str) and dice.random() < 0.3:
        return mutated(dice, value.encode("utf-8", "surrogatepass"), (), RAW).decode(errors="replace")
    if dice.random() < 0.1:
        return [value] if dice.random() < 0.5 else {"a": value}
    return dice.choice(VALUES)


def _cut(dice: random.Random, data: bytes, *_: Sequence[bytes]) -> bytes:
    start, end = _span(dice, data)
    return data[:start] + data[end:]


def _double(dice: random.Random, data: bytes, *_: Sequence[bytes]) -> bytes:
    start, end = _span(dice, data)
    return data[:end] + data[start:end] * dice.choice((1, 1, 2, 20)) + data[end:]


def _flip(dice: random.Random, data: bytes, *_: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1:]


def _put(dice: random.Random, data: bytes, _others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    start, end = _span(dice, data)
    word = dice.choice(RAW if not words or dice.random() < 0.3 else words)
    return data[:start] + word + data[dice.choice((start, end)):]


def _join(dice: random.Random, data: bytes, others: Sequence[bytes], *_: Sequence[bytes]) -> bytes:
    other = dice.choice(others) if others else data
    return data[:_span(dice, data)[0]] + other[_span(dice, other)[0]:]


def _number(dice: random.Random, data: bytes, *_: Sequence[bytes]) -> bytes:
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    match = dice.choice(found)
    number = dice.choice((b"0", b"-1", b"%d" % (2**63), b"9" * 20, b"9" * 5000, b"%d" % (int(match[0][:9]) + 1),
    b"1.5"))
    return data[:match.start()] + number + data[match.end():]


def _span(dice: random.Random, data: bytes) -> tuple[int, int]:
    """Somewhere in `data`, most often short."""
    start = dice.randrange(len(data) + 1)
    return start, min(len(data), start + dice.choice((1, 1, 2, 4, 16, 64, 512)))


_BYTES: tuple[Callable[..., bytes], ...] = (_cut, _double, _flip, _put, _put, _join, _number)
