"""Every input that is kept, tried on a daemon again: what once led somewhere new, and what once broke something."""

from collections.abc import Iterator

import pytest

from orpheusd.errors import OrpheusError
from tests.fuzz import corpus
from tests.fuzz.house import House
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS


@pytest.fixture(scope="module")
def targets() -> dict[str, Target]:
    return {name: make() for name, make in TARGETS.items()}


@pytest.fixture(scope="module")
def house(targets: dict[str, Target]) -> Iterator[House]:
    def prepare(house: House) -> None:
        for target in targets.values():
            target.prepare(house)

    with House(prepare) as one:
        yield one
        assert one.stop() == []


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_that_is_kept_breaks_the_daemon(house: House, targets: dict[str, Target], name: str) -> None:
    target, inputs = targets[name], corpus.load(name)
    assert inputs, "an empty corpus tries nothing"
    assert sum(len(data) for data in inputs.values()) < corpus.KEPT_BYTES * 2 * corpus.KEPT_INPUTS
    target.prepare(house)
    for data in inputs.values():
        try:
            target.decode(data)
        except OrpheusError:
            pass
        target.send(house, data)
    assert house.judge.verdict() == []
