"""Takes the handling of a fault out of a copy of the checkout and shows that its tests fail then:
`python -m tests.fault.taken_out [ROW...]`.

A test that cannot fail shows nothing. The untouched copy passes all the tests first. Then each handling is taken out
of a copy of its own, where its tests must fail while a run still works: it was that handling and no more. The core has
its own way of being broken, `tests/property/seeded_bugs.py`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copy2
from typing import NamedTuple
from xml.etree import ElementTree

from tests.daemon import ROOT, environment
from tests.fault.handlings import HANDLINGS, Handling

#: Works whatever single handling is missing: an agent is deployed, and a session is warm.
BYSTANDER = "integration/test_sessions_live.py::test_both_doors_reach_one_session"
#: All tests of the table together take a fraction of this on a slow machine.
TESTS_TIMEOUT_S = 1200.0
#: From worst to best: a test function is what the worst of its cases is.
WORDS = ("failed", "error", "passed", "skipped")

_WHENCE = """
import subprocess, sys, orpheusd, tests.daemon as daemon
print(orpheusd.__file__, flush=True)
subprocess.run([sys.executable, "-c", "import orpheusd; print(orpheusd.__file__)"],
               cwd=daemon.ROOT, env=daemon.environment(), check=True)
"""


class Verdict(NamedTuple):
    """How a test ended, one of `WORDS`, and the first line of why."""

    word: str
    why: str


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of what belongs to this checkout, from which its tests and their daemons import."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                            check=True, capture_output=True).stdout
    with tempfile.TemporaryDirectory(prefix="taken-out-") as folder:
        copy = Path(folder).resolve()
        for name in map(os.fsdecode, filter(None, listed.split(b"\0"))):
            if (ROOT / name).exists():  # else it was removed and that is not committed
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                copy2(ROOT / name, copy / name)
        found = _python(copy, "-c", _WHENCE).stdout.split()
        if found != [str(copy / "orpheusd" / "__init__.py")] * 2:
            raise RuntimeError(f"the tests in {copy} would not try its code, but {found}")
        yield copy


def take_out(copy: Path, handling: Handling) -> None:
    """Raises LookupError unless the text is there exactly once."""
    path = copy / handling.file
    text = path.read_text()
    if text.count(handling.text) != 1:
        raise LookupError(f"row {handling.row}: {handling.text!r} is not in {handling.file} exactly once; "
                          "correct tests/fault/handlings.py")
    path.write_text(text.replace(handling.text, handling.instead))


def verdicts(copy: Path, tests: Iterable[str]) -> dict[str, Verdict]:
    """What becomes of these tests there. Those that did not run at all are missing."""
    report = copy / "report.xml"
    _python(copy, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--junitxml", str(report),
            *(f"tests/{test}" for test in tests), check=False)
    found: dict[str, Verdict] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        path = case.attrib["classname"].removeprefix("tests.").replace(".", "/")
        test = f"{path}.py::{case.attrib['name'].partition('[')[0]}"
        worst = min([_verdict(case), found.get(test, Verdict("skipped", ""))], key=lambda each: WORDS.index(each.word))
        found[test] = worst
    return found


def _verdict(case: ElementTree.Element) -> Verdict:
    for tag, word in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        if (said := case.find(tag)) is not None:
            return Verdict(word, (said.get("message") or "").partition("\n")[0])
    return Verdict("passed", "")


def missed(copy: Path, handling: Handling) -> list[str]:
    """Sentences about what should have happened in this copy and did not; prints what the tests said."""
    # first: what an unhandled fault does to the daemon that tests share is not to be seen by the bystander
    found = verdicts(copy, [BYSTANDER, *handling.tests])
    wrong = []
    for test in handling.tests:
        word, why = found.get(test, Verdict("missing", ""))
        print(f"      {word:7} {test}: {why}"[:200])
        if word != "failed":
            wrong.append(f"{test} {word}")
    if found.get(BYSTANDER, Verdict("missing", "")).word != "passed":
        wrong.append(f"nothing works any more: {BYSTANDER} did not pass")
    return wrong


def _python(copy: Path, *arguments: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], cwd=copy, env={**environment(), "PYTHONPATH": str(copy)},
                          check=check, capture_output=True, text=True, timeout=TESTS_TIMEOUT_S)


def main(rows: list[str]) -> int:
    chosen = [handling for handling in HANDLINGS if not rows or str(handling.row) in rows]
    tests = dict.fromkeys([BYSTANDER, *(test for handling in chosen for test in handling.tests)])
    with copied() as copy:
        found = verdicts(copy, tests)
    unsound = [test for test in tests if found.get(test, Verdict("missing", "")).word != "passed"]
    print(f"{len(tests) - len(unsound)} of {len(tests)} tests pass while nothing is taken out", flush=True)
    for test in unsound:
        print(f"  {test}: {': '.join(found.get(test, Verdict('missing', '')))}")
    failures = len(unsound)
    for handling in chosen:
        began = time.monotonic()
        with copied() as copy:
            take_out(copy, handling)
            print(f"row {handling.row}, without this: {handling.what}")
            wrong = missed(copy, handling)
        failures += bool(wrong)
        said = f"MISSED: {'; '.join(wrong)}" if wrong else "noticed"
        print(f"      {said}, {time.monotonic() - began:.1f} s", flush=True)
    print(f"{len(chosen)} handlings of {len({handling.row for handling in chosen})} rows, {failures} missed")
    return 1 if failures or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
