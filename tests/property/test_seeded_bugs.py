"""The world can fail: bugs seeded into the core are found by it. All of them with `-m slow`, the plain ones always."""

import pytest

from tests.property.seeded_bugs import finding, seeded
from tests.property.seeds import REAL, SEEDS, THOUGHT_UP

#: Found within a few stories, one for each kind of promise.
PLAIN = (
    "a home on a dead worker", "context warm after death", "ttl off by one", "lru evicts a waiting session",
    "a delivered run is run again", "a run is answered twice", "a run to a draining worker", "capacity ignored",
    "a lost waiter when a home dies", "run deadline not armed", "a slot is never refilled", "max_workers exceeded",
    "an outdated worker serves anybody", "old sessions move at once", "nothing is rolled back",
    "a silent worker is no home",
    "what workers say of homes is not heard", "a run that nobody has is forgotten",
    "a run starts before its home was heard",
)
FEW_STORIES = 250


@pytest.mark.parametrize("name", PLAIN)
def test_the_bug_is_found_at_once(name: str) -> None:
    assert finding(SEEDS[name], FEW_STORIES) is not None


@pytest.mark.slow
@pytest.mark.deadline(300)
@pytest.mark.parametrize("name", [name for name in SEEDS if name not in PLAIN])
def test_the_bug_is_found(name: str) -> None:
    assert finding(SEEDS[name]) is not None


@pytest.mark.parametrize("name", SEEDS)
def test_the_bug_can_be_seeded(name: str) -> None:
    with seeded(SEEDS[name]):
        pass


def test_no_two_bugs_have_one_name() -> None:
    assert len(SEEDS) == len(THOUGHT_UP) + len(REAL)
