"""orpheusctl/reach.py: where the socket is looked for, and which server is believed."""

import errno
import os
import re
from pathlib import Path

import pytest

from orpheusctl import reach

SERVICE_UID = 65534


def test_places_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/xdg")
    monkeypatch.delenv("ORPHEUS_SOCKET", raising=False)
    assert reach.candidates(None) == ["/xdg/orpheus/ctl.sock", "/run/orpheus/ctl.sock"]
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert reach.candidates(None)[0] == f"/run/user/{os.getuid()}/orpheus/ctl.sock"
    monkeypatch.setenv("ORPHEUS_SOCKET", "/env.sock")
    assert reach.candidates(None) == ["/env.sock"]
    assert reach.candidates("/stated.sock") == ["/stated.sock"]


def test_root_and_oneself_are_trusted_anywhere(tmp_path: Path) -> None:
    assert reach.trusted(str(tmp_path / "s"), 0, 1000)
    assert reach.trusted(str(tmp_path / "s"), 1000, 1000)
    assert not reach.trusted(str(tmp_path / "missing" / "s"), 1001, 1000)
    assert not reach.trusted("/tmp/s", 1001, 1000)


@pytest.mark.root
@pytest.mark.parametrize(("above_mode", "above_uid", "owner", "trusted"), [
    (0o755, 0, SERVICE_UID, True),
    (0o755, 0, 0, False),           # root's directory, but the server is not root
    (0o755, 0, 12345, False),       # somebody else's directory
    (0o1777, 0, SERVICE_UID, False),  # as in /tmp: anybody could have made the directory
    (0o775, 0, SERVICE_UID, False),
    (0o755, SERVICE_UID, SERVICE_UID, False),
])
def test_a_service_is_trusted_where_only_root_can_have_put_it(
    tmp_path: Path, above_mode: int, above_uid: int, owner: int, trusted: bool
) -> None:
    place = tmp_path / "run" / "orpheus"
    place.mkdir(parents=True)
    os.chown(place, owner, -1)
    os.chown(place.parent, above_uid, -1)
    place.parent.chmod(above_mode)
    assert reach.trusted(str(place / "ctl.sock"), SERVICE_UID, 1000) is trusted
    (tmp_path / "link").symlink_to(place)
    assert reach.trusted(str(tmp_path / "link" / "ctl.sock"), SERVICE_UID, 1000) is trusted


@pytest.mark.parametrize(("number", "says"), [
    (errno.ENOENT, "no such socket.*Is it running"),
    (errno.ECONNREFUSED, "nobody listens there.*Is it running"),
    (errno.EAGAIN, "too many connections.*overloaded or stuck"),
    (errno.EACCES, "Permission denied.*sudo"),
    (errno.ENOTSOCK, "Socket operation on non-socket"),
])
def test_the_error_says_what_was_tried_and_what_to_do(number: int, says: str, tmp_path: Path) -> None:
    path = str(tmp_path / "ctl.sock")
    error = reach.unreachable([reach.Attempt(path, OSError(number, os.strerror(number)))])
    assert path in error.message
    assert re.search(says, error.message, re.DOTALL), error.message
    assert error.outcome.exit_code == 69


@pytest.mark.root
def test_the_group_that_guards_the_socket_is_named(tmp_path: Path) -> None:
    place = tmp_path / "orpheus"
    place.mkdir()
    os.chown(place, -1, 4)  # `adm` on Debian
    denied = reach.Attempt(str(place / "ctl.sock"), OSError(errno.EACCES, "Permission denied"))
    assert "usermod -aG adm $USER" in reach.unreachable([denied]).message
