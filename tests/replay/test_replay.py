"""Stories that went wrong once, told again. Each is shown to go wrong still when its bug is put back.

A story is a file of lines `[now, event, fields]`; a first line `{"about", "seed"}` says what was wrong, and names the
bug in tests/property/seeds.py that does it again. The world prints its story in this form when it finds something.
"""

import json
from pathlib import Path

import pytest

from tests.property.seeded_bugs import seeded
from tests.property.seeds import REAL, SEEDS
from tests.property.story import read_story
from tests.property.world import World

STORIES = sorted(Path(__file__).parent.glob("*.jsonl"), key=lambda path: path.name)


def tell(path: Path) -> None:
    world = World()
    for now, event in read_story(path.read_text().splitlines()):
        world.now = now
        world.tell_of(event)


def seed_of(path: Path) -> str:
    name: str = json.loads(path.read_text().splitlines()[0])["seed"]
    return name


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_goes_well(path: Path) -> None:
    tell(path)


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
def test_the_story_can_go_wrong(path: Path) -> None:
    with seeded(SEEDS[seed_of(path)]), pytest.raises(Exception, match=r"."):
        tell(path)


def test_each_bug_that_was_real_has_its_story() -> None:
    assert {seed_of(path) for path in STORIES} == {seed.name for seed in REAL}
