"""The token for changes over HTTP as a file: whose it is, and who can make one."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orpheusd.doors.token import digest_of_token, make_token, token_file
from orpheusd.errors import OrpheusError

NOBODY, SOMEBODY = 65534, 4711


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory that users other than this one can reach."""
    place = Path(tempfile.mkdtemp(prefix="orpheus-token-"))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def as_nobody(action: Callable[[], object]) -> str:
    """What `action` came to for an unprivileged user: "", or the reason that was given."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            action()
        except BaseException as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        said = told.read()
    os.waitpid(pid, 0)
    return said


def test_each_token_is_another_and_this_users_alone(state: Path) -> None:
    digests = set()
    for _ in range(2):
        found = make_token(state).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (os.geteuid(), 0o600)
        digests.add(digest_of_token(state))
    assert len(digests) == 2


@pytest.mark.root
def test_what_root_makes_is_the_daemons(state: Path) -> None:
    os.chown(state, NOBODY, NOBODY)
    found = make_token(state).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (NOBODY, NOBODY, 0o600)
    assert as_nobody(lambda: digest_of_token(state)) == ""


@pytest.mark.root
def test_who_cannot_give_it_to_the_daemon_makes_none(state: Path) -> None:
    os.chown(state, SOMEBODY, SOMEBODY)
    make_token(state)
    state.chmod(0o777)
    before = token_file(state).read_text()
    assert "run this as the daemon's user" in as_nobody(lambda: make_token(state))
    assert [path.name for path in state.iterdir()] == ["token"] and token_file(state).read_text() == before
    with pytest.raises(OrpheusError, match="not this user's alone"):
        digest_of_token(state)
