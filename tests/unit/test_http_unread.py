"""What is held for slow readers is bounded, and who goes for it is the one that has taken nothing for longest."""

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from orpheusd.doors.http.unread import Unread


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60))))
def test_what_is_held_is_bounded_and_the_longest_waiting_goes(steps: list[tuple[int, int]]) -> None:
    unread, gone = Unread(100), list[int]()
    cut_off = [partial(gone.append, number) for number in range(5)]
    held: dict[int, int] = {}  # in the order of the last change
    for number, size_bytes in steps:
        gone.clear()
        held.pop(number, None)
        if size_bytes:
            held[number] = size_bytes
        unread.hold(cut_off[number], size_bytes)
        for one in gone:
            assert one == next(iter(held)) and one != number
            del held[one]
        assert unread.held_bytes == sum(held.values()) <= 100


def test_one_reader_may_hold_more_than_all_may() -> None:
    unread = Unread(100)
    unread.hold(lambda: None, 1000)
    assert unread.held_bytes == 1000
