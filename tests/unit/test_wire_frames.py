"""Line framing: whatever way the bytes come, the same lines come out, and no peer makes us hold too much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orpheusd.wire.frames import FrameTooLong, LineBuffer

LINES = st.lists(st.binary(max_size=20).map(lambda line: line.replace(b"\n", b" ")))


@given(LINES, st.data())
def test_lines_do_not_depend_on_how_the_bytes_come(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    buffer = LineBuffer(limit_bytes=20)
    found: list[bytes] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        found += buffer.feed(stream[:cut])
        stream = stream[cut:]
    assert found == lines
    assert buffer.pending_bytes == 0


def test_a_line_that_has_begun_is_counted() -> None:
    buffer = LineBuffer(10)
    assert buffer.feed(b"abc") == []
    assert buffer.pending_bytes == 3
    assert buffer.feed(b"\nd") == [b"abc"]
    assert buffer.pending_bytes == 1


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"x" * 10, b"x"], [b"x" * 11 + b"\n"], [b"ok\n" + b"x" * 11]])
def test_a_line_over_the_limit_is_refused_when_it_is_seen(pieces: list[bytes]) -> None:
    # fault 18
    buffer = LineBuffer(10)
    for piece in pieces[:-1]:
        buffer.feed(piece)
    with pytest.raises(FrameTooLong, match="longer than 10 bytes") as refused:
        buffer.feed(pieces[-1])
    assert refused.value.limit_bytes == 10


@pytest.mark.parametrize("pieces", [[b"x" * 11 + b"\n"], [b"x", b"x" * 10 + b"\n"], [b"a\n" + b"x" * 11 + b"\nb\n"],
                                    [b"xx", b"x\n\n" + b"x" * 11 + b"\n"]])
def test_a_line_over_the_limit_is_refused_wherever_it_is(pieces: list[bytes]) -> None:
    buffer = LineBuffer(10)
    for piece in pieces[:-1]:
        buffer.feed(piece)
    with pytest.raises(FrameTooLong):
        buffer.feed(pieces[-1])


def test_a_line_of_exactly_the_limit_passes() -> None:
    assert LineBuffer(10).feed(b"x" * 10 + b"\n") == [b"x" * 10]
