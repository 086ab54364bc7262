"""Which settings a reload can change: the doors stay where they are, whatever words their address is given in."""

from dataclasses import replace
from pathlib import Path

import pytest

from orpheusd.config import Config
from orpheusd.errors import OrpheusError
from orpheusd.reload import check_fixed


def check(before: str | None, after: str | None, given: tuple[str, ...] = ()) -> None:
    place = Path("/nowhere")
    check_fixed(Config(place, place, http=before), Config(place, place, http=after), given)


@pytest.mark.parametrize(("before", "after"), [
    ("127.0.0.1:7777", "127.0.0.1:07777"), ("localhost:7777", "localhost:07777"), ("[::1]:80", "::1:80"),
    (None, None)])
def test_an_address_is_the_same_in_other_words(before: str | None, after: str | None) -> None:
    check(before, after)


@pytest.mark.parametrize(("before", "after"), [
    ("127.0.0.1:7777", "127.0.0.1:7778"), ("127.0.0.1:7777", "[::1]:7777"),
    ("localhost:7777", "127.0.0.1:7777"), (None, "127.0.0.1:7777"),
    ("127.0.0.1:7777", None)])
def test_another_address_refuses_it_unless_systemd_has_the_door(before: str | None, after: str | None) -> None:
    with pytest.raises(OrpheusError, match="http would be"):
        check(before, after)
    check(before, after, ("http", "control"))


@pytest.mark.parametrize("name", ["http_admin", "http_require_token"])
def test_what_needs_the_token_is_settled_when_the_daemon_starts(name: str) -> None:
    """The doors go on as they were started."""
    place = Path("/nowhere")
    with pytest.raises(OrpheusError, match=f"{name} would be True, and stays False"):
        check_fixed(Config(place, place), replace(Config(place, place), **{name: True}), ())
