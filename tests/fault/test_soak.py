"""The short form of `make soak`."""

import pytest

from tests.soak import soak


@pytest.mark.parametrize("durability", ["os", "disk"])
def test_nothing_is_lost_by_kills_under_load(durability: str) -> None:
    # fault 30, 36
    report = soak(5, 12, 300, seed=7, durability=durability)
    assert report.violations == [] and report.left == []
    assert report.daemon_kills >= 5 and report.worker_kills >= 12 and report.runs >= 300
    assert set(report.kinds) == {"sync", "stream", "detach"} and report.contexts["warm"] > report.contexts["lost"]
