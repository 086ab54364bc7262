"""docs/faults.md says of each fault which test covers it, and says it truly."""

import pytest

from tests.faults_page import FAULTS, PAGE, Mark, Misplaced, all_marks, by_fault, filled, marks_in, rows

TEXT = '''
"""fault 1, in a text."""

def helper():
    pass

# fault 2: above
# fault 3
@decorated([
    1,
])  # fault 4
def test_one():
    x = 1  # faults 5, 6; the other half of 7 to 9
    # as in fault 10 and fault 11

async def test_two(): pass  # faults 12 and 13
'''


def test_the_page_is_the_one_that_is_made_of_the_marks() -> None:
    page = PAGE.read_text()
    assert page == filled(page, by_fault(all_marks())), "run: python -m tests.faults_page"


def test_every_fault_has_its_row_and_every_mark_is_a_fault() -> None:
    assert [row.fault for row in rows(PAGE.read_text())] == list(FAULTS)
    assert {mark.fault for mark in all_marks()} <= set(FAULTS)


def test_a_row_has_a_test_or_says_why_not() -> None:
    for row in rows(PAGE.read_text()):
        assert row.what and row.right, row
        assert row.tests or row.left, f"row {row.fault} has neither a test nor a word about it"


def test_marks_are_found_where_they_may_stand() -> None:
    assert list(marks_in("unit/test_x.py", TEXT)) == [
        *(Mark(fault, "unit/test_x.py::test_one") for fault in (2, 3, 4, 5, 6, 10, 11)),
        *(Mark(fault, "unit/test_x.py::test_two") for fault in (12, 13))]


@pytest.mark.parametrize("text", [
    "# fault 1\nx = 1\n", "x = 1  # fault 1\ndef test_one(): pass\n", "def helper():\n    x = 1  # fault 1\n",
    "x = 1\n# fault 1\n"])
def test_a_mark_that_is_no_tests_is_refused(text: str) -> None:
    with pytest.raises(Misplaced, match="fault 1 is not above or in a test"):
        list(marks_in("unit/test_x.py", text))


def test_only_tests_and_count_of_the_page_are_made() -> None:
    page = ("Prose.\n\n0 of 80 rows have a test.\n\n| 16 | a flood | cut | | half |\n| 17 | noise | kill | `x` | |\n"
            "| 18 | a drip | refused | | not yet |\n")
    assert filled(page, {16: ("unit/test_x.py::test_1", "unit/test_x.py::test_2"), 18: ("test_y.py::test_3",)}) == (
        "Prose.\n\n2 of 80 rows have a test.\n\n"
        "| 16 | a flood | cut | `unit/test_x.py::test_1`, `unit/test_x.py::test_2` | half |\n"
        "| 17 | noise | kill |  |  |\n"
        "| 18 | a drip | refused | `test_y.py::test_3` |  |\n")
