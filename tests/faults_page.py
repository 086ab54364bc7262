"""docs/faults.md and the marks in the tests: `python -m tests.faults_page` writes into the page what covers what.

A mark is a comment such as `# fault 16` or `# faults 43, 45`, above a test or in it; more may follow on its line.
The page keeps its prose, one row a fault; the column of tests and the count above the table are made from the marks,
and a `not yet` is taken out when a test has come. How many handlings are taken out comes from their table.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.fault.handlings import HANDLINGS

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "faults.md"
FAULTS = range(1, 81)
NOT_YET = "not yet"

_MARK = re.compile(r"\bfaults? (\d+(?:(?:, | and )\d+)*)")
_COUNT = re.compile(r"^\d+ of \d+ rows have a test", re.MULTILINE)
_TAKEN_OUT = re.compile(r"\d+ handlings of \d+ rows")


class Mark(NamedTuple):
    """One fault, and the test that says it covers it: `path::name`, the path from `tests/`."""

    fault: int
    test: str


class Misplaced(Exception):
    """A mark that no test follows or contains."""


class Row(NamedTuple):
    """One line of the table. `left` says what is not covered yet or does not apply, "" when nothing is."""

    fault: int
    what: str
    right: str
    tests: tuple[str, ...]
    left: str


def marks_in(path: str, text: str) -> Iterator[Mark]:
    """The marks of one test file. Raises Misplaced."""
    if not _MARK.search(text):
        return
    nodes = ast.parse(text).body
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        found = _MARK.findall(token.string) if token.type == tokenize.COMMENT else []
        if not found:
            continue
        line, column = token.start
        # at the margin it is about what follows, else about what it stands in
        around = [node for node in nodes if _first_line(node) <= line]
        after = [node for node in nodes if (node.end_lineno or 0) >= line]
        node = around[-1:] if column else after[:1]
        if not node or not isinstance(node[0], ast.FunctionDef | ast.AsyncFunctionDef) or node[0].name[:5] != "test_":
            raise Misplaced(f"{path}:{line}: {token.string} is not above or in a test")
        for number in re.findall(r"\d+", " ".join(found)):
            yield Mark(int(number), f"{path}::{node[0].name}")


def _first_line(node: ast.stmt) -> int:
    """Decorators belong to what they decorate."""
    return min([node.lineno, *(decorator.lineno for decorator in getattr(node, "decorator_list", ()))])


def all_marks() -> Iterator[Mark]:
    for path in sorted(TESTS.rglob("test_*.py")):
        yield from marks_in(str(path.relative_to(TESTS)), path.read_text())


def by_fault(marks: Iterator[Mark]) -> dict[int, tuple[str, ...]]:
    found: defaultdict[int, dict[str, None]] = defaultdict(dict)
    for fault, test in marks:
        found[fault][test] = None
    return {fault: tuple(tests) for fault, tests in found.items()}


def rows(page: str) -> list[Row]:
    """The table's rows, as they stand in the page."""
    found = []
    for line in page.splitlines():
        if re.match(r"\| \d+ \|", line):
            fault, what, right, tests, left = (cell.strip() for cell in line.strip("|").split("|"))
            found.append(Row(int(fault), what, right, tuple(re.findall(r"`([^`]+)`", tests)), left))
    return found


def filled(page: str, covered: Mapping[int, tuple[str, ...]]) -> str:
    """The page with its column of tests and its count made from the marks, and the count of handlings."""
    lines = []
    for line in page.splitlines(keepends=True):
        if found := rows(line):
            fault, what, right, _, left = found[0]
            if fault in covered and left == NOT_YET:
                left = ""
            tests = ", ".join(f"`{test}`" for test in covered.get(fault, ()))
            line = f"| {fault} | {what} | {right} | {tests} | {left} |\n"
        lines.append(line)
    count = sum(fault in covered for fault in FAULTS)
    page = _COUNT.sub(f"{count} of {len(FAULTS)} rows have a test", "".join(lines), count=1)
    taken_out = f"{len(HANDLINGS)} handlings of {len({handling.row for handling in HANDLINGS})} rows"
    return _TAKEN_OUT.sub(taken_out, page, count=1)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(), by_fault(all_marks())))
