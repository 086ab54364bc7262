"""What a worker said before it died is heard before its death is judged, whichever the daemon learns of first."""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from orpheusd.process.channel import Channel
from orpheusd.process.processes import LAST_WORDS_S
from tests.integration.engine_house import House, in_house

#: The pidfd and the template tell of a death at once; what the worker said, and its end, come this much later.
LATE_S = LAST_WORDS_S / 4


@pytest.fixture
def _words_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is so busy elsewhere: what comes from workers, and from nobody else, is heard late and in order."""
    late: deque[Callable[[], None]] = deque()

    def hear_next() -> None:
        late.popleft()()

    def held_back(heard: Callable[..., None]) -> Callable[..., None]:
        def hear(channel: Channel, what: Any) -> None:
            if channel.owner.startswith("w-"):
                late.append(partial(heard, channel, what))
                asyncio.get_running_loop().call_later(LATE_S, hear_next)
            else:
                heard(channel, what)

        return hear

    monkeypatch.setattr(Channel, "data_received", held_back(Channel.data_received))
    monkeypatch.setattr(Channel, "connection_lost", held_back(Channel.connection_lost))


@pytest.mark.usefixtures("_words_are_late")
def test_an_answer_counts_although_the_death_is_known_before_it() -> None:
    # fault 5
    async def story(house: House) -> None:
        outcome = await house.run("replies_and_goes")
        assert (outcome.state, outcome.result) == ("completed", b'"replied"')

    in_house(story)


@pytest.mark.usefixtures("_words_are_late")
def test_a_death_that_is_known_early_is_told_all_the_same() -> None:
    # fault 3: the delay above is no delay of everything
    async def story(house: House) -> None:
        outcome = await house.run("exits", status=0)
        assert (outcome.state, outcome.cause) == ("crashed", "exit 0")

    in_house(story)
