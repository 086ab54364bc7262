"""What holds for every test: a deadline, nothing left behind, no secret told, and a real daemon for those that ask.

Warnings are errors (setup.cfg).
"""

import faulthandler
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import hypothesis
import pytest

from tests import leaks, planted
from tests.daemon import Daemon

#: Longer than any test takes on a slow machine; a test that needs more says so with `deadline`.
DEADLINE_S = 120.0
#: Where an exception from a signal handler does not end a test (an idle uvloop), the whole run ends this much later.
BACKSTOP_S = 30.0


REAL_STDERR = pytest.StashKey[int]()


# A test says what must be so; how long it takes is the machine's business, and `deadline` is ours.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


class Late(BaseException):
    """A test took longer than it may. No Exception, which hypothesis would take for a finding and try to shrink."""


def pytest_configure(config: pytest.Config) -> None:
    leaks.adopt_orphans()
    config.stash[REAL_STDERR] = os.dup(sys.stderr.fileno())
    planted.look_at_http()


def pytest_report_header() -> str:
    bwrap = shutil.which("bwrap") or "missing"
    return f"kernel {platform.release()}, {os.cpu_count()} cores, uid {os.getuid()}, bwrap {bwrap}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # pytest-xdist: what a process tells the one that shows it
    if output is not None:
        output["lookout"] = planted.LOOKOUT.figures()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    planted.LOOKOUT.add(getattr(node, "workeroutput", {}).get("lookout", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(str(planted.LOOKOUT))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.getuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("deadline")
    deadline_s = marker.args[0] if marker else DEADLINE_S

    def late(_number: int, _frame: FrameType | None) -> None:
        raise Late(f"the test took longer than {deadline_s} s")

    earlier = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    faulthandler.dump_traceback_later(deadline_s + BACKSTOP_S, exit=True, file=request.config.stash[REAL_STDERR])
    before = leaks.census()
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier)
    if told := planted.LOOKOUT.taken():
        pytest.fail("a secret was found in\n  " + "\n  ".join(told), pytrace=False)
    if left := leaks.left_since(before):
        pytest.fail("the test left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _no_secret_told() -> Iterator[None]:
    """What daemons are looked at for that end with their module or after the last test."""
    yield
    if told := planted.LOOKOUT.taken():
        pytest.fail("a secret was found in\n  " + "\n  ".join(told), pytrace=False)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """One daemon for all tests that only add agents of their own; a test that stops or kills takes `new_daemon`."""
    shared = Daemon()
    try:
        yield shared.start()
    finally:
        shared.close()


@pytest.fixture
def new_daemon() -> Iterator[Callable[..., Daemon]]:
    """A function that starts a daemon for this test alone, with the arguments of `Daemon`."""
    started: list[Daemon] = []

    def start(*flags: str, **settings: Any) -> Daemon:
        started.append(Daemon(*flags, **settings))
        return started[-1].start()

    try:
        yield start
    finally:
        for one in started:
            one.close()
