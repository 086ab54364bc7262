"""The table of handlings that are taken out fits the code and the tests there are, so that it cannot rot."""

from itertools import pairwise
from pathlib import Path

import pytest

from tests.fault.handlings import HANDLINGS, Handling
from tests.fault.taken_out import BYSTANDER, ROOT, take_out, verdicts
from tests.faults_page import TESTS, Mark, all_marks

#: A checkout in small: a product file, and tests of each fate.
PRODUCT = "def safe():\n    return True\n"
TESTED = """
import pytest
from product import safe

@pytest.mark.parametrize("number", [1, 2])
def test_notices(number):
    assert number == 1 or safe()

def test_does_not_notice():
    pass

@pytest.fixture
def broken():
    raise OSError("no daemon")

def test_cannot_begin(broken):
    pass

@pytest.mark.skip(reason="no root")
def test_is_skipped():
    pass
"""


def ids(handling: Handling) -> str:
    return f"{handling.row} {handling.what}"


@pytest.mark.parametrize("handling", HANDLINGS, ids=ids)
def test_a_handling_is_where_the_table_says(handling: Handling) -> None:
    text = (ROOT / handling.file).read_text()
    assert text.count(handling.text) == 1
    changed = text.replace(handling.text, handling.instead)
    compile(changed, handling.file, "exec")


def test_its_tests_are_tests_of_its_row() -> None:
    marks = set(all_marks())
    for handling in HANDLINGS:
        assert handling.tests, handling.what
        for test in handling.tests:
            assert Mark(handling.row, test) in marks, f"{test} is not there, or not marked `# fault {handling.row}`"


def test_every_part_of_the_faults_is_there() -> None:
    starts = (1, 16, 30, 47, 56, 73, 81)
    for first, beyond in pairwise(starts):
        assert sum(first <= handling.row < beyond for handling in HANDLINGS) >= 2, f"rows {first} to {beyond - 1}"
    assert len({handling.row for handling in HANDLINGS}) >= 12


def test_the_bystander_is_there() -> None:
    path, _, name = BYSTANDER.partition("::")
    assert f"def {name}(" in (TESTS / path).read_text()


@pytest.mark.parametrize("text", ["nowhere", "x = 1"])
def test_a_text_that_is_not_there_once_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "product.py").write_text("x = 1\nx = 1\n")
    with pytest.raises(LookupError, match=r"not in product\.py exactly once"):
        take_out(tmp_path, Handling(1, "", "product.py", text, "pass", ()))


def test_a_test_notices_by_failing_and_by_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "product.py").write_text(PRODUCT)
    (tmp_path / "tests" / "test_small.py").write_text(TESTED)
    (tmp_path / "setup.cfg").write_text("[tool:pytest]\npythonpath = .\n")
    tests = [f"test_small.py::test_{name}" for name in ("notices", "does_not_notice", "cannot_begin", "is_skipped")]
    found = verdicts(tmp_path, tests)
    assert [found[test].word for test in tests] == ["passed", "passed", "error", "skipped"]
    take_out(tmp_path, Handling(1, "", "product.py", "True", "False", ()))
    found = verdicts(tmp_path, tests)
    assert [found[test].word for test in tests] == ["failed", "passed", "error", "skipped"]
